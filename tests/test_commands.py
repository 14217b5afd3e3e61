"""Every command that the suite prints runs as it is printed, in another folder, and gives the number that it stands for."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import write_own_task
from transformers import AutoTokenizer

from trainers.cli import _model_arguments
from trainers.config.reading import load
from trainers.flow import commands
from trainers.flow.progress import Progress
from trainers.flow.run import open_run
from trainers.harness.evaluate import Harness, ModelPool, PromptStyle, evaluate
from trainers.report.report import write_report
from w2s_tasks.models.ref import ModelRef
from w2s_tasks.plugin.eval_arguments import _parsed
from w2s_tasks.results.read import read_evaluation

ODD = 'the reviewer\'s "own", a=b (1)'
"""A folder's name with what shells and lm_eval's own readers of arguments stumble over."""


CHAT = {"chat_template": True, "system_prompt": 'Say what\'s "good", $HOME, `id` or not.'}


def paste(command: str, folder: Path) -> str:
    """Run a command as a shell does, in a folder of its own; its standard output."""
    folder.mkdir(exist_ok=True)
    environment = {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    done = subprocess.run(["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stderr[-2000:]}"
    return done.stdout


def accuracy(command: str, folder: Path, task: str) -> float:
    """What a printed evaluation measures."""
    paste(f"{command} --log_samples --output_path out", folder)
    return read_evaluation(folder / "out")[task].metrics["acc"]


@pytest.fixture
def odd(tmp_path: Path, causal_model: Callable[[str], Path], encoder_folder: Path) -> dict[str, Any]:
    """An experiment whose task, models and run folder lie below a folder of that name; few-shot, limited, chat."""
    home = tmp_path / ODD
    home.mkdir()
    write_own_task(tmp_path / "rows")
    (home / "tasks").mkdir()
    (tmp_path / "rows" / "own_reviews.yaml").rename(home / "tasks" / "own_reviews.yaml")
    (tmp_path / "others").mkdir()
    shutil.copytree(causal_model("llama"), home / "strong")
    shutil.copytree(encoder_folder, home / "weak")
    return {
        "task": "own_reviews",
        "include_path": [str(tmp_path / "others"), str(home / "tasks")],
        "split": {"by": "source", "weak": 0.5, "limit": {"weak": 96, "transfer": 64}},
        "weak": {"model": str(home / "weak"), "text": "text", "epochs": 3, "lr": 2e-3},
        "strong": {"model": str(home / "strong"), "r": 4, "lr": 1e-2, "model_args": {"token_budget": 512}, **CHAT},
        "arms": ["zero_shot", "few_shot(2)", "student"],
        "evaluate": {"num_fewshot": 1, "limit": 44},
    }


def run(config: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The report of a run whose folder is named relative to the working folder, as `w2s run` names it."""
    (folder / "odd.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    monkeypatch.chdir(folder)
    flow = open_run(load("odd.yaml")[0], Path("my runs"))
    flow.build(Progress(quiet=True))
    return write_report(flow)[0].json()


@pytest.mark.slow
def test_every_command_of_a_report_measures_what_the_report_says(
    odd: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    report = run(odd, tmp_path / ODD, monkeypatch)
    arms = {(a["arm"], a["seed"]): a for a in report["arms"]}
    assert len(report["commands"]) == len(arms) == 4
    told = [a["metrics"]["acc"] for a in report["arms"]]
    assert len(set(told)) > 2, "arms that can't be told apart would prove nothing"
    for i, (printed, arm) in enumerate(zip(report["commands"], report["arms"], strict=True)):
        measured = accuracy(printed["command"], tmp_path / f"elsewhere-{i}", "own_reviews")
        assert measured == pytest.approx(arm["metrics"]["acc"]), printed
    card = next((tmp_path / ODD / "my runs/odd/model_cards").glob("student*")).read_text(encoding="utf-8")
    assert report["commands"][-1]["command"] in card
    again = paste(report["command"], tmp_path / "elsewhere")
    assert f"report: {tmp_path / ODD / 'my runs/odd/report.json'}" in again
    assert not list((tmp_path / "elsewhere").iterdir()), "it went on where the run is"


@pytest.mark.slow
def test_a_cell_of_a_sweep_says_how_to_run_it_alone(experiment_file: Path, tmp_path: Path):
    home = tmp_path / ODD
    home.mkdir()
    sweep = ["w2s", "sweep", str(experiment_file), "--grid", "seed=3", "--set", "arms=[zero_shot]", "--runs-dir", "runs"]
    paste(shlex.join(sweep), home)
    (cell,) = (home / "runs/small/cells").iterdir()
    report = json.loads((cell / "report.json").read_text(encoding="utf-8"))
    again = paste(report["command"], tmp_path / "elsewhere")
    assert f"report: {home / 'runs' / report['experiment'] / 'report.json'}" in again


def test_finetune_ends_with_a_command_that_finds_model_and_task(odd: dict[str, Any], tmp_path: Path):
    folders = [word for folder in odd["include_path"] for word in ("--include_path", folder)]
    settings = ["chat_template=true", "lr=1e-2", f"system_prompt={json.dumps(CHAT['system_prompt'])}"]
    arguments = ["--task", "own_reviews", *folders, "--model", odd["strong"]["model"], "--limit", "32", "--out", "my model"]
    arguments += [word for setting in settings for word in ("--set", setting)]
    said = paste(shlex.join(["w2s", "finetune", *arguments]), tmp_path / ODD)
    printed = said.splitlines()[-1]
    measured = accuracy(printed, tmp_path / "elsewhere", "own_reviews")
    ref = ModelRef.load(tmp_path / ODD / "my model")
    assert measured == pytest.approx(
        evaluated(ref, odd["include_path"], PromptStyle(0, True, CHAT["system_prompt"]), tmp_path)
    )


@pytest.mark.parametrize(("more", "begins"), [(0, "lm_eval run --model hf"), (40, "w2s eval --model w2s-hf")])
def test_stock_lm_eval_is_not_named_where_it_would_change_the_embeddings(
    more: int, begins: str, causal_model: Callable[[str], Path], tmp_path: Path
):
    """With an adapter lm_eval's `hf` cuts a padded vocabulary to the tokenizer's, and the scores are others."""
    base = shutil.copytree(causal_model("llama"), tmp_path / "base")
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    config["vocab_size"] = len(AutoTokenizer.from_pretrained(base)) + more
    (base / "config.json").write_text(json.dumps(config), encoding="utf-8")
    ref = ModelRef("w2s-hf", {"pretrained": str(base), "peft": "adapter"})
    command = commands.evaluation(ref, Harness(), "w2s_ethics_probe_justice", PromptStyle(0, False))
    assert command.split(" --model_args")[0] == begins


@pytest.mark.usefixtures("smollm2")
def test_a_base_from_the_package_index_is_found_for_its_command():
    ref = ModelRef("w2s-hf", {"pretrained": "pypi:smollm2-135m-instruct", "peft": "adapter"})
    command = commands.evaluation(ref, Harness(), "w2s_ethics_probe_justice", PromptStyle(0, False))
    assert command.startswith("lm_eval run --model hf")


def evaluated(ref: ModelRef, include_path: list[str], style: PromptStyle, folder: Path, limit: int | None = None) -> float:
    """The accuracy of a model on the task, as a run measures it."""
    harness = Harness(include_path)
    evaluate(harness, ModelPool(), ref, {harness.task("own_reviews"): limit}, folder / "mine", style=style)
    return read_evaluation(folder / "mine")["own_reviews"].metrics["acc"]


@pytest.mark.parametrize("multiturn", [True, False])
def test_a_model_behind_an_endpoint_is_asked_in_the_same_way(own_task: Path, service: Any, tmp_path: Path, multiturn: bool):
    ref = ModelRef("w2s-chat", {"model": "tiny", "base_url": service.base_url, "store": str(tmp_path / ODD)})
    style, folders = PromptStyle(2, True, CHAT["system_prompt"], multiturn), [str(own_task)]
    expected = evaluated(ref, folders, style, tmp_path, limit=24)
    asked = service.count("POST", ".*/chat/completions")
    printed = commands.evaluation(ref, Harness(folders), "own_reviews", style, 24)
    assert accuracy(printed, tmp_path / "elsewhere", "own_reviews") == pytest.approx(expected)
    assert service.count("POST", ".*/chat/completions") == asked, "the very same requests: their answers are on disk"


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ({"pretrained": "org/model", "dtype": "float32"}, "pretrained=org/model,dtype=float32"),
        ({"pretrained": "org/model", "load_in_8bit": True, "revision": None, "rank": 8}, None),
        *(
            ({"pretrained": "org/model", "name": value}, None)
            for value in ("a,b", "k=v", "o'brien", "(x", "1e3", "true", " a")
        ),
        ({"pretrained": "org/model", "name": "", "more": {"a": [1]}}, None),
    ],
)
def test_arguments_are_read_back_by_lm_eval_as_they_are(args: dict[str, Any], text: str | None):
    written = ModelRef("hf", args).model_args()
    assert written == (text or written)
    assert _parsed(["--tasks", "t", "--model_args", written]).model_args == args
    assert _model_arguments(written) == args
