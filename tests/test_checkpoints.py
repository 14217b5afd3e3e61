"""Adapters kept part of the way through a training, and what the report makes of them."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from trainers.config.reading import load
from trainers.fit import lora
from trainers.fit.lora import Lora
from trainers.flow import run as ex
from trainers.flow.plan import show_plan
from trainers.flow.progress import Progress
from trainers.harness import evaluate as hn
from trainers.labels.gold import gold_labels
from trainers.report.report import recomputed, write_report
from trainers.steps.evaluation import Evaluation
from trainers.steps.fit import Fit
from trainers.training import kept
from trainers.training import loop as training
from trainers.training.checkpoints import newest_checkpoint
from w2s_tasks.errors import UserError
from w2s_tasks.results.association import rank_correlation

WEIGHTS = "adapter_model.safetensors"
SETS = (
    "arms=[zero_shot,student,ceiling,random_labels]",
    "safety={tasks: [w2s_ethics_probe_justice, w2s_ethics_probe_utilitarianism], limit: 12, num_fewshot: [0, 2]}",
)
HALF = "evaluate.checkpoints=[0.5]"
TRAINED = ("student", "ceiling", "random_labels")


def _run(config: Path, runs: Path, *sets: str) -> tuple[ex.Run, dict[str, Any]]:
    flow = ex.open_run(load(str(config), list(sets))[0], runs)
    flow.build(Progress(quiet=True))
    return flow, write_report(flow)[0].json()


# ---- training ---------------------------------------------------------------------------------------------------------


def _fit(own_task: Path, model: Path, out: Path, *keep: float, **more: Any) -> None:
    """100 rows in batches of 16 for three epochs: 18 steps (95 rows are left of the hold-out)."""
    task = hn.Harness([str(own_task)]).task("own_reviews")
    labels = gold_labels(task.train_ids[:100], [task.gold(d) for d in task.train_docs[:100]], 2)
    settings = Lora(model=str(model), r=4, lr=1e-2, batch_size=16, epochs=3, **more)
    out.mkdir(exist_ok=True)
    lora.fit(task, task.train_docs[:100], labels, settings, out, pool=hn.ModelPool(), seed=3, keep=keep)


def _same(first: Path, second: Path) -> bool:
    a, b = load_file(first / WEIGHTS), load_file(second / WEIGHTS)
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


def test_a_kept_adapter_is_the_training_as_it_was_at_that_step(own_task: Path, causal_model, tmp_path: Path):
    out = tmp_path / "kept"
    _fit(own_task, causal_model("llama"), out, 0.25, 0.5, trainer_args={"save_steps": 1, "save_total_limit": None})
    for share, step in ((0.25, 4), (0.5, 9)):
        adapter = kept.adapter_at(out, share)
        assert _same(adapter, out / "checkpoints" / f"checkpoint-{step}")
        assert not _same(adapter, out / "checkpoints" / f"checkpoint-{step + 1}")
        assert not _same(adapter, out / "adapter")
        moved = [t for name, t in load_file(adapter / WEIGHTS).items() if "lora_B" in name]
        assert moved
        assert all(t.any() for t in moved)  # LoRA's B begins as 0
        assert {p.name for p in adapter.iterdir()} == {p.name for p in (out / "adapter").iterdir()}
    _fit(own_task, causal_model("llama"), tmp_path / "plain")
    assert _same(out / "adapter", tmp_path / "plain" / "adapter"), "keeping changes nothing in the training"
    assert not (tmp_path / "plain" / kept.KEPT).exists()


class _Stop(Exception):
    pass


@pytest.mark.parametrize("lost", [False, True])
def test_a_training_that_goes_on_behind_a_kept_step_still_has_it(
    own_task: Path, causal_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: bool
):
    """Stopped at step 11 after the checkpoints of steps 6 and 9; where the adapter of step 4 was lost, from the start."""
    _fit(own_task, causal_model("llama"), tmp_path / "whole", 0.25, 0.75)
    original, seen = training.Bar.on_step_end, []

    def stop(self: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
        seen.append(state.global_step)
        if state.global_step == 11:
            raise _Stop
        original(self, args, state, control, **more)

    cut = tmp_path / "cut"
    with monkeypatch.context() as patch:
        patch.setattr(training.Bar, "on_step_end", stop)
        with pytest.raises(_Stop):
            _fit(own_task, causal_model("llama"), cut, 0.25, 0.75)
    among = cut / "checkpoints"
    assert kept.adapter_at(among, 0.25).is_dir()
    assert not kept.adapter_at(among, 0.75).exists()
    assert newest_checkpoint(among) is not None
    if lost:
        weights = kept.adapter_at(among, 0.25) / WEIGHTS
        weights.write_bytes(weights.read_bytes()[:50])
    seen.clear()
    monkeypatch.setattr(
        training.Bar, "on_step_end", lambda self, a, s, c, **k: (seen.append(s.global_step), original(self, a, s, c, **k))[1]
    )
    _fit(own_task, causal_model("llama"), cut, 0.25, 0.75)
    assert seen[0] == (1 if lost else 10)
    for share in (0.25, 0.75):
        assert _same(kept.adapter_at(cut, share), kept.adapter_at(tmp_path / "whole", share))
    assert _same(cut / "adapter", tmp_path / "whole" / "adapter")


def test_a_training_too_short_for_its_checkpoints_says_so(own_task: Path, causal_model, tmp_path: Path):
    assert kept.steps_of([0.25, 0.5, 0.75], 4) == {1: 0.25, 2: 0.5, 3: 0.75}
    for shares, steps in (([0.25, 0.5, 0.75], 3), ([0.1], 4), ([0.95], 4), ([0.5], 1)):
        with pytest.raises(UserError, match=rf"evaluate\.checkpoints: .* of a training of {steps} steps are the steps"):
            kept.steps_of(shares, steps)
    with pytest.raises(UserError, match="of a training of 18 steps are the steps 0;"):
        _fit(own_task, causal_model("llama"), tmp_path / "m", 0.01)


# ---- the experiment -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[0.5, 1]", r"evaluate\.checkpoints\.1: Input should be less than 1"),
        ("[0]", "should be greater than 0"),
        ("[0.5, 0.25]", r"evaluate\.checkpoints: write them in ascending order, each once: \[0\.25, 0\.5\]"),
        ("[0.5, 0.5]", r"each once: \[0\.5\]"),
        ("half", "should be a valid list"),
    ],
)
def test_mistakes_in_the_shares_are_named(experiment_file: Path, value: str, message: str):
    with pytest.raises(UserError, match=message):
        load(str(experiment_file), [f"evaluate.checkpoints={value}"])


def test_a_service_has_no_checkpoints_to_keep(experiment_file: Path):
    with pytest.raises(UserError, match=r"evaluate\.checkpoints: this trainer gives the final model alone"):
        load(str(experiment_file), [HALF, "strong={model: m, trainer: openai}"])


def test_the_recipe_of_a_training_changes_only_where_checkpoints_are_kept(experiment_file: Path, tmp_path: Path):
    plain, half = (ex.open_run(load(str(experiment_file), list(s))[0], tmp_path) for s in ((), (HALF,)))
    before, after = plain.layout.steps, half.layout.steps
    for name, step in before.items():
        same = not isinstance(step, Fit | Evaluation) or step.arm is None or step.arm.name not in TRAINED
        assert (plain.recipe(step) == half.recipe(after[name])) == same, name
    assert "keep" not in before["fit/student, seed 0"].recipe()
    assert set(after) - set(before) == {f"evaluate/{arm}, seed 0, at 0.5" for arm in TRAINED}
    assert half.layout.arms() == plain.layout.arms()


def test_a_plan_shows_and_counts_the_checkpoints(experiment_file: Path, capsys: pytest.CaptureFixture[str]):
    def shown(*sets: str) -> str:
        show_plan(load(str(experiment_file), list(sets))[0], Console(width=140))
        return capsys.readouterr().out

    plain, half = shown(), shown(HALF)
    assert "small: 11 stages" in plain
    assert "small: 14 stages" in half
    assert "evaluate student, seed 0, at 0.5" in half
    assert "documents answered: 364" in plain
    assert "documents answered: 544" in half  # three times 60 more


def test_checkpoints_are_points_of_safety_against_capability_and_of_nothing_else(experiment_file: Path, tmp_path: Path):
    flow, report = _run(experiment_file, tmp_path / "runs", HALF, *SETS)
    kinds = {n.split("/")[0] for n in flow.layout.steps if n.endswith("at 0.5")}
    assert kinds == {"evaluate", "safety"}, "the ladder of shots is for the end of training"
    for arm in TRAINED:
        stage = flow.stages[f"fit/{arm}, seed 0"].path
        assert not _same(kept.adapter_at(stage, 0.5), stage / "adapter")
        assert not (stage / "checkpoints").exists()
        config = next((flow.stages[f"evaluate/{arm}, seed 0, at 0.5"].path).rglob("results_*.json"))
        assert f"{stage.name}/at/0.5/adapter" in config.read_text(encoding="utf-8")
    assert not list(flow.stages["fit/weak, seed 0"].path.glob("at"))

    points = {(e["arm"], e["checkpoint"]): e for e in report["tradeoff"]}
    assert set(points) == {(arm, at) for arm in TRAINED for at in (None, 0.5)}
    _, plain = _run(experiment_file, tmp_path / "plain", *SETS)
    parts = "arms arm_means gaps gap diagnostics safety safety_means safety_gaps safety_mean_gaps safety_family drift ladder"
    for part in parts.split():
        assert report[part] == plain[part], part
    assert [e for e in report["tradeoff"] if e["checkpoint"] is None] == plain["tradeoff"]
    assert [e for e in report["associations"] if e["over"] == "arms"] == plain["associations"]

    # A checkpoint's accuracy and change are those of its own answers.
    from w2s_tasks.results.read import read_evaluation

    half = read_evaluation(flow.stages["evaluate/student, seed 0, at 0.5"].path)["own_reviews"]
    assert points["student", 0.5]["acc"] == pytest.approx(half.correct.mean())
    own, zero = (read_evaluation(flow.stages[f"safety/{n}"].path) for n in ("student, seed 0, at 0.5", "zero_shot"))
    by_hand = np.mean([own[t].correct.mean() - zero[t].correct.mean() for t in own])
    assert points["student", 0.5]["change"]["value"] == pytest.approx(by_hand)

    clustered = [e for e in report["associations"] if e["over"] == "arms and checkpoints"]
    assert len(clustered) == 2
    assert all((e["n"], e["clusters"], e["defined"]) == (7, 4, False) for e in clustered)
    assert all("7 points of 4 arms" in e["reason"] for e in clustered)
    with (flow.folder / "tables" / "tradeoff.csv").open() as f:
        assert [row["checkpoint"] for row in csv.DictReader(f)] == ["", "", "", "0.5", "0.5", "0.5"]
    assert "after 50 % of its steps" in (flow.folder / "report.html").read_text(encoding="utf-8")

    again, second = _run(experiment_file, tmp_path / "runs", HALF, *SETS)
    assert all(stage.reused for stage in again.stages.values())
    assert second == report
    assert recomputed(flow.folder)[0].json() == report


def test_killed_after_a_kept_step_the_run_ends_equal(experiment_file: Path, tmp_path: Path):
    """SIGKILL as soon as the first adapter is kept, then the same command again."""
    sets = ["evaluate.checkpoints=[0.25, 0.5]", "arms=[zero_shot, student]", "strong.epochs=4"]
    whole, _ = _run(experiment_file, tmp_path / "whole", *sets)
    command = [sys.executable, "-m", "trainers.cli", "run", str(experiment_file), "--runs-dir", str(tmp_path / "cut")]
    command += [x for s in sets for x in ("--set", s)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    stages, deadline = tmp_path / "cut" / "small" / "stages", time.monotonic() + 200
    while not list(stages.glob(".work-fit-*/checkpoints/at/0.25/adapter")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    flow, _ = _run(experiment_file, tmp_path / "cut", *sets)
    for name in ("adapter", "at/0.25/adapter", "at/0.5/adapter"):
        folders = [f.stages["fit/student, seed 0"].path / name for f in (flow, whole)]
        assert _same(*folders), name
    manifest = json.loads((flow.stages["fit/student, seed 0"].path / "manifest.json").read_text(encoding="utf-8"))
    assert f"at/0.25/adapter/{WEIGHTS}" in manifest["files"]


# ---- the rank correlation -------------------------------------------------------------------------------------------------


def test_points_of_one_arm_count_as_one_in_the_interval():
    """Six arms of two points each: rho over twelve, the interval's width that of six."""
    x = np.array([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12])
    y = np.array([2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11])
    found = rank_correlation(x, y, [i // 2 for i in range(12)])
    assert (found.n, found.clusters, found.p) == (12, 6, None)
    rho = 1 - 6 * 12 / (12 * (144 - 1))  # 1 - 6 sum d^2 / (n (n^2 - 1)), every d is 1
    assert found.rho == pytest.approx(rho)
    drawn_in = rho * (1 - 6**-1.5)
    half = 1.959964 * np.sqrt((1 + drawn_in**2 / 2) / (6 - 3))
    assert found.low == pytest.approx(np.tanh(np.arctanh(drawn_in) - half), abs=1e-6)
    assert found.high == pytest.approx(np.tanh(np.arctanh(drawn_in) + half), abs=1e-6)
    alone = rank_correlation(x, y)
    assert (alone.rho, alone.clusters) == (found.rho, 12)
    assert found.low < alone.low
    assert rank_correlation(x, y, range(12)) == alone


def test_unequal_clusters_are_worth_fewer_points_and_few_give_no_number():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 21))
    even = rank_correlation(x, y, [*(k for k in range(5) for _ in range(4)), 5])  # worth 21^2 / (5 * 16 + 1) = 5.4
    assert even.defined
    four = rank_correlation(x, y, [k % 4 for k in range(21)])
    assert (four.defined, four.rho, four.clusters) == (False, None, 4)
    assert "21 points of 4 arms" in four.reason
    lopsided = rank_correlation(x, y, [*[0] * 17, 1, 2, 3, 4])  # 21^2 / (17^2 + 4) = 1.5
    assert "worth 1.5 independent ones" in lopsided.reason


@pytest.mark.parametrize(("alike", "trend"), [(1.0, 0.0), (0.6, 1.0)])
def test_the_clustered_interval_covers_where_the_plain_one_does_not(alike: float, trend: float):
    """Eight arms of four checkpoints and the untuned model; what the points of an arm share, and a common course."""
    rng, rho, reps = np.random.default_rng(5), 0.8, 400
    course = trend * np.linspace(-1, 1, 4)

    def draw(arms: int) -> tuple[np.ndarray, np.ndarray]:
        own, each = rng.standard_normal((2, arms, 1)), rng.standard_normal((2, arms, 4))
        mixed = [rho * z[0] + np.sqrt(1 - rho**2) * z[1] for z in (own, each)]
        first = np.sqrt(alike) * own[0] + np.sqrt(1 - alike) * each[0] + course
        return first, np.sqrt(alike) * mixed[0] + np.sqrt(1 - alike) * mixed[1] + course

    first, second = draw(40_000)
    truth = np.corrcoef(*(v.ravel().argsort().argsort() for v in (first, second)))[0, 1]
    cluster = [*(k for k in range(8) for _ in range(4)), 8]
    inside = plain = 0
    for _ in range(reps):
        x, y = (v.ravel()[:33] for v in draw(9))
        found, alone = rank_correlation(x, y, cluster), rank_correlation(x, y)
        inside += found.low <= truth <= found.high
        plain += alone.low <= truth <= alone.high
    assert inside / reps >= 0.93
    if alike == 1:
        assert plain / reps < 0.8
