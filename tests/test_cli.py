"""The command line: help with examples, one clear error a mistake, exit code 2, no traceback."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from trainers.labels.label_set import LabelSet


def w2s(*arguments: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trainers.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=os.environ | env)


COMMANDS = ("run", "plan", "report", "label", "finetune", "eval", "tasks", "validate", "rescore", "fetch", "build", "doctor")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_what_the_command_does(command: str):
    done = w2s(command, "--help")
    assert done.returncode == 0
    assert f"w2s {command}" in done.stdout or command == "doctor"


def test_help_imports_nothing_heavy():
    code = "import sys, trainers.cli; assert not {'torch', 'transformers', 'lm_eval', 'datasets'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nothing.yaml"], "no config file 'nothing.yaml'"),
        (["run", "quickstrat"], "Did you mean 'quickstart'"),
        (["run", "quickstart", "--set", "strong.lrr=1"], r"strong\.lrr: unknown key\. Did you mean 'lr'"),
        (["plan", "quickstart", "--set", "arms=[stundent]"], "Did you mean 'student'"),
        (["fetch", "smollm"], "no package asset 'smollm'"),
        (["report", "nowhere"], "not a readable report"),
        (
            ["eval", "--model", "dummy", "--tasks", "w2s_sst2", "--model_args", "api_key=sk-canary"],
            "keys are read from the environment",
        ),
        (
            ["label", "--task", "w2s_ethics_probe_justice", "--model", "w2s-clasifier", "--model_args", "a=b", "--out", "x"],
            "Did you mean 'w2s-classifier'",
        ),
        (["finetune", "--task", "w2s_ethics_probe_utilitarianism", "--model", "m", "--out", "x"], "scored as a ranking"),
        (
            ["finetune", "--task", "w2s_ethics_probe_justice", "--model", "m", "--trainer", "lore", "--out", "x"],
            "Did you mean 'lora'",
        ),
        (
            ["finetune", "--task", "w2s_ethics_probe_justice", "--model", "m", "--set", "epoch=2", "--out", "x"],
            "Did you mean 'epochs'",
        ),
        (
            ["finetune", "--task", "w2s_ethics_probe_justice", "--model", "./none", "--out", "x"],
            "model folder ./none does not exist",
        ),
    ],
)
def test_a_mistake_is_one_clear_error(tmp_path: Path, arguments: list[str], message: str):
    done = w2s(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert re.search(message, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir()) or [p.name for p in tmp_path.iterdir()] == ["runs"]


def test_a_model_that_is_nowhere_says_what_would_work(tmp_path: Path):
    done = w2s(
        "finetune",
        "--task",
        "w2s_ethics_probe_justice",
        "--model",
        "nobody/nothing",
        "--out",
        "x",
        cwd=tmp_path,
        HF_HOME=str(tmp_path / "hf"),
    )
    assert done.returncode == 2
    assert "nobody/nothing" in done.stderr
    assert "Traceback" not in done.stderr


def test_tasks_path_is_the_folder_for_include_path():
    done = w2s("tasks", "--path")
    assert (Path(done.stdout.strip()) / "sst2" / "w2s_sst2.yaml").is_file()
    assert "w2s_ethics_all" in w2s("tasks").stdout


def test_plan_needs_neither_network_nor_data_nor_weights(tmp_path: Path):
    done = w2s(
        "plan", "sst2_bert_smollm2", "--set", "seeds=[0,1]", W2S_DATA="", HF_HOME=str(tmp_path), W2S_CACHE=str(tmp_path)
    )
    assert done.returncode == 0, done.stderr
    assert "train student" in done.stdout
    assert "because the data is not here" in done.stdout.replace("\n", " ")
    done = w2s("plan", "quickstart", W2S_CACHE=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_doctor_tells_what_works():
    done = w2s("doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "lm_eval 0.4" in done.stdout
    assert "CPU" in done.stdout or "GPU" in done.stdout


def test_run_prints_the_tables_and_ends_with_the_reports_path(experiment_file: Path, tmp_path: Path):
    done = w2s("run", str(experiment_file), "--runs-dir", str(tmp_path / "runs"))
    assert done.returncode == 0, done.stderr
    last = done.stdout.strip().splitlines()[-1]
    report = Path(last.removeprefix("report: "))
    assert report.is_absolute()
    assert json.loads(report.read_text())["schema"] == 2
    assert "PGR" in done.stdout
    assert "[ 1/" in done.stderr
    again = w2s("run", str(experiment_file), "--runs-dir", str(tmp_path / "runs"), "--if-exists", "fail")
    assert again.returncode == 2
    assert "--if-exists resume" in again.stderr
    shown = w2s("report", str(report.parent))
    assert shown.stdout.splitlines()[1:5] == done.stdout.splitlines()[1:5]
    both = w2s("report", str(report.parent), str(report))
    assert both.stdout.count("small") == 2
    (report.parent / "mine.txt").write_text("keep me")
    refused = w2s("run", str(experiment_file), "--runs-dir", str(tmp_path / "runs"), "--if-exists", "delete")
    assert refused.returncode == 2
    assert "mine.txt" in refused.stderr
    (report.parent / "mine.txt").unlink()
    anew = w2s("run", str(experiment_file), "--runs-dir", str(tmp_path / "runs"), "--if-exists", "delete")
    assert anew.returncode == 0
    assert "there already" not in anew.stderr


@pytest.mark.slow
def test_finetune_label_finetune_by_hand(own_task: Path, encoder_folder: Path, causal_model, tmp_path: Path):
    own = ["--include_path", str(own_task), "--task", "own_reviews"]
    weak = w2s("finetune", *own, "--model", str(encoder_folder), "--trainer", "classifier", "--limit", "120")
    assert weak.returncode == 2  # --out is missing
    settings = ["--set", "text=text", "--set", "epochs=4", "--set", "lr=2e-3"]
    weak = w2s(
        "finetune",
        *own,
        "--model",
        str(encoder_folder),
        "--trainer",
        "classifier",
        "--limit",
        "120",
        "--out",
        str(tmp_path / "weak"),
        *settings,
    )
    assert weak.returncode == 0, weak.stderr
    assert weak.stdout.startswith("w2s eval --model w2s-classifier")
    labelled = w2s(
        "label",
        *own,
        "--model_args",
        f"pretrained={tmp_path / 'weak' / 'model'}",
        "--limit",
        "64",
        "--out",
        str(tmp_path / "l.parquet"),
    )
    assert labelled.returncode == 0, labelled.stderr
    assert len(LabelSet.load(tmp_path / "l.parquet")) == 64
    strong = [
        "--model",
        str(causal_model("llama")),
        "--labels",
        str(tmp_path / "l.parquet"),
        "--out",
        str(tmp_path / "student"),
        "--set",
        "lr=1e-2",
    ]
    student = w2s("finetune", *own, *strong)
    assert student.returncode == 0, student.stderr
    assert (tmp_path / "student" / "adapter" / "adapter_model.safetensors").is_file()
    assert w2s("finetune", *own, *strong).returncode == 2
    other = w2s(
        "finetune",
        "--task",
        "w2s_ethics_probe_justice",
        "--model",
        str(causal_model("llama")),
        "--labels",
        str(tmp_path / "l.parquet"),
        "--out",
        str(tmp_path / "no"),
    )
    assert other.returncode == 2
    assert "is not in the training split" in other.stderr
    assert not (tmp_path / "no").exists()


def test_an_interrupt_keeps_what_was_finished(experiment_file: Path, tmp_path: Path):
    import signal
    import time

    command = [sys.executable, "-m", "trainers.cli", "run", str(experiment_file), "--runs-dir", str(tmp_path / "runs")]

    def heed_interrupts() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background inherits that it is ignored

    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts
    )
    stages = tmp_path / "runs" / "small" / "stages"
    deadline = time.monotonic() + 120
    while not list(stages.glob("labels-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "run the same command again" in errors
    assert "Traceback" not in errors
    assert list(stages.glob("fit-*"))
