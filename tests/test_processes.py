"""Several processes under `accelerate launch` give the numbers of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ports import free_port


def launched(processes: int, port: int, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """`w2s ARGUMENTS` in several CPU processes, once it has ended."""
    command = [sys.executable, "-m", "trainers.cli", *arguments]
    if processes > 1:
        many = ["--cpu", "--num_processes", str(processes), "--num_machines", "1", "--mixed_precision", "no"]
        many += ["--dynamo_backend", "no", "--main_process_port", str(port), "--num_cpu_threads_per_process", "1"]
        command = [sys.executable, "-m", "accelerate.commands.launch", *many, "-m", "trainers.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=dict(os.environ), cwd=cwd)


def launch(processes: int, port: int, *arguments: str, cwd: Path | None = None) -> str:
    """Run `w2s ARGUMENTS` in several CPU processes to its end; its standard output."""
    done = launched(processes, port, *arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def numbers(runs: Path) -> tuple[dict[str, Any], list[list[float]]]:
    """Every accuracy of the report, and the losses of every training."""
    (report,) = runs.rglob("report.json")
    data = json.loads(report.read_text())
    scores = {f"{a['arm']} {a['method']}": a["metrics"]["acc"] for a in data["arms"]}
    scores |= {f"{s['arm']} {s['method']} {s['task']}": s["acc"] for s in data["safety"]}
    curves = [json.loads(p.read_text()) for p in sorted(runs.rglob("curves.json"))]
    return scores, sorted([c["loss"] for c in curve if "loss" in c] for curve in curves)


@pytest.mark.slow
def test_two_processes_run_an_experiment_to_the_numbers_of_one(experiment_file: Path, tmp_path: Path):
    """90 rows in steps of 16: the last step is not whole, so accelerate fills it with copies that must not count."""
    sets = ["--set", "arms=[zero_shot,student,ceiling,unsupervised]", "--set", "methods=[xent,logconf,relabel]"]
    sets += [
        "--set",
        "unsupervised={rows: 8, groups: 2, initial: 4, steps: 12}",
        "--set",
        "split.limit.transfer=90",
        "--set",
        "evaluate.limit=31",
    ]
    sets += ["--set", "safety={tasks: [own_reviews], limit: 20, num_fewshot: 2}", "--set", "strong.holdout=0"]
    sets += ["--set", "strong.batch_size=16"]
    for processes in (1, 2):
        runs = ["--runs-dir", str(processes), "--quiet"]  # not from the root, as the default
        out = launch(processes, free_port(), "run", str(experiment_file), *runs, *sets, cwd=tmp_path)
        assert out.count("report: ") == 1
    (one, losses), (two, losses_of_two) = numbers(tmp_path / "1"), numbers(tmp_path / "2")
    assert two == pytest.approx(one, abs=1e-6)
    assert len(losses) == len(losses_of_two) == 7
    for a, b in zip(losses, losses_of_two, strict=True):
        assert b == pytest.approx(a, abs=1e-3)
    assert not list((tmp_path / "2").rglob(".part*"))
    again = launch(2, free_port(), "run", str(experiment_file), "--runs-dir", str(tmp_path / "2"), *sets)
    assert "report: " in again


@pytest.mark.slow
def test_two_processes_evaluate_to_the_log_likelihoods_of_one(own_task: Path, causal_model, tmp_path: Path):
    for processes in (1, 2):
        arguments = ["--model", "w2s-hf", "--model_args", f"pretrained={causal_model('llama')}", "--tasks", "own_reviews"]
        arguments += ["--include_path", str(own_task), "--num_fewshot", "3", "--limit", "21", "--log_samples"]
        launch(processes, free_port(), "eval", *arguments, "--output_path", str(tmp_path / str(processes)))
    logliks = []
    for processes in ("1", "2"):
        (path,) = (tmp_path / processes).rglob("samples_*.jsonl")
        rows = sorted((json.loads(line) for line in path.read_text().splitlines()), key=lambda r: r["doc_id"])
        logliks.append([float(answer[0]) for row in rows for answer in row["filtered_resps"]])
    assert len(logliks[0]) == 42
    assert logliks[1] == pytest.approx(logliks[0], abs=1e-4)


@pytest.mark.parametrize(
    ("lr", "what"),
    [("1e30", "of step 2 is infinite or NaN"), pytest.param("1e8", "is infinite or NaN", marks=pytest.mark.slow)],
)
def test_a_training_that_runs_away_ends_both_processes_with_one_message(
    experiment_file: Path, tmp_path: Path, lr: str, what: str
):
    runs = ["--runs-dir", str(tmp_path / "runs"), "--quiet", "--set", "arms=[student]", "--set", f"strong.lr={lr}"]
    done = launched(2, free_port(), "run", str(experiment_file), *runs)
    assert done.returncode != 0
    (error,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert error.startswith("error: train student, seed 0: ")
    assert what in error
    assert not list(tmp_path.rglob("report.json"))
    again = launch(2, free_port(), "run", str(experiment_file), *runs, "--set", "strong.lr=1e-2")
    assert "report: " in again


def test_a_mistake_in_the_experiment_is_told_once(experiment_file: Path, tmp_path: Path):
    done = launched(2, free_port(), "run", str(experiment_file), "--runs-dir", str(tmp_path / "runs"), "--set", "seeds=x")
    assert done.returncode != 0
    assert sum(line.startswith("error: ") for line in done.stderr.splitlines()) == 1
