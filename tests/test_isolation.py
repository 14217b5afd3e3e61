"""Two models never share cached answers, labels or evaluations, whatever they are called."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from trainers.cli import app
from trainers.config.reading import load
from trainers.flow.progress import Progress
from trainers.flow.run import Run, open_run

Models = Callable[[str], Path]


def run(config: Path, runs: Path, *sets: str) -> Run:
    flow = open_run(load(str(config), ["arms=[zero_shot, student]", "evaluate.limit=20", *sets])[0], runs)
    flow.build(Progress(quiet=True))
    return flow


def answers(folder: Path) -> list[Any]:
    (path,) = folder.rglob("samples_*.jsonl")
    return [json.loads(line)["filtered_resps"] for line in path.read_text(encoding="utf-8").splitlines()]


def flip(file: Path) -> None:
    """Turn every tensor upside down, keeping the file's size and times."""
    stat = file.stat()
    save_file({name: tensor.flip(0).contiguous() for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    assert file.stat().st_size == stat.st_size
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_the_same_name_with_other_weights_shares_nothing(
    experiment_file: Path, tmp_path: Path, causal_model: Models, encoder_folder: Path
):
    strong, weak = tmp_path / "strong", tmp_path / "weak"
    shutil.copytree(causal_model("llama"), strong)
    shutil.copytree(encoder_folder, weak)
    sets = (f"strong.model={strong}", f"weak.model={weak}")
    first = run(experiment_file, tmp_path / "runs", *sets)
    before = answers(first.stages["evaluate/zero_shot"].path)
    flip(strong / "model.safetensors")
    second = run(experiment_file, tmp_path / "runs", *sets)
    built = {name for name, stage in second.stages.items() if not stage.reused}
    assert built == {"evaluate/zero_shot", "fit/student, seed 0", "evaluate/student, seed 0"}
    assert answers(second.stages["evaluate/zero_shot"].path) != before
    assert answers(first.stages["evaluate/zero_shot"].path) == before  # the first one's are still its own
    flip(weak / "model.safetensors")
    third = run(experiment_file, tmp_path / "runs", *sets)
    built = {name for name, stage in third.stages.items() if not stage.reused}
    assert {"fit/weak, seed 0", "labels/weak, seed 0", "fit/student, seed 0"} <= built
    assert "evaluate/zero_shot" not in built


def test_the_same_weights_under_another_name_have_stages_of_their_own(
    experiment_file: Path, tmp_path: Path, causal_model: Models
):
    shutil.copytree(causal_model("llama"), tmp_path / "copy")
    first = run(experiment_file, tmp_path / "runs")
    second = run(experiment_file, tmp_path / "runs", f"strong.model={tmp_path / 'copy'}")
    for name in ("evaluate/zero_shot", "fit/student, seed 0", "evaluate/student, seed 0"):
        assert second.stages[name].path != first.stages[name].path
        assert not second.stages[name].reused
    assert answers(second.stages["evaluate/zero_shot"].path) == answers(first.stages["evaluate/zero_shot"].path)
    base = json.loads((second.stages["fit/student, seed 0"].path / "model.json").read_text(encoding="utf-8"))
    assert base["args"]["pretrained"] == str(tmp_path / "copy")


def test_lm_evals_cache_gives_no_model_anothers_answers(own_task: Path, causal_model: Models, tmp_path: Path):
    """Its keys hold the request alone: the second model was given the first one's answers."""

    def evaluate(model: Path, out: Path, *more: str) -> list[Any]:
        command = ["eval", "--model", "w2s-hf", "--model_args", f"pretrained={model}", "--tasks", "own_reviews"]
        command += ["--include_path", str(own_task), "--limit", "12", "--log_samples", "--output_path", str(out), *more]
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output[-2000:]
        return answers(out)

    one = tmp_path / "one"
    shutil.copytree(causal_model("llama"), one)
    cache = ("--use_cache", str(tmp_path / "cache"))
    first = evaluate(one, tmp_path / "a", *cache)
    flip(one / "model.safetensors")
    cached = evaluate(one, tmp_path / "b", *cache)
    assert cached != first
    assert cached == evaluate(one, tmp_path / "c")
    assert len(list(tmp_path.glob("cache-*.db"))) == 2
