"""docs/own_methods.md, followed to the letter: its six plug-ins run in one experiment, and do what they say."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trainers.config.reading import load
from trainers.flow.progress import Progress
from trainers.flow.run import Run, open_run
from trainers.labels.label_set import LABELS, LabelSet
from trainers.labels.operations import METHOD_OPS
from trainers.report.report import write_report
from trainers.training.losses import LOSSES, State

PAGE = Path(__file__).parents[1] / "docs" / "own_methods.md"
BLOCKS = dict(re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL))
SMALL = ["split.limit={weak: 48, transfer: 40}", "evaluate.limit=16", "weak.epochs=1", "arms=[student]"]
RNG = np.random.default_rng(0)


@pytest.fixture
def examples(plugins: Callable[..., Any], tmp_path: Path) -> list[str]:
    """All plug-ins of the page, loaded; their names."""
    return [plugins(tmp_path, name, text).name for name, text in BLOCKS.items()]


def built(file: Path, *sets: str) -> Run:
    run = open_run(load(str(file), [*SMALL, *sets])[0], file.parent / "runs")
    run.build(Progress(quiet=True))
    return run


def labels_of(run: Run, method: str) -> LabelSet:
    """What the student of a method learnt."""
    return LabelSet.load(run.folder_of(run.layout.steps[f"fit/student, {method}, seed 0"]) / LABELS)


def test_the_page_has_six_examples(examples: list[str]):
    assert examples == ["gce", "margin", "knn", "self_training", "audited", "attention"]


def test_all_of_them_run_in_one_experiment(examples: list[str], experiment_file: Path):
    methods = ["gce", "margin+gce", "knn", "self_training", "audited", "gold"]
    args = "method_args={knn: {k: 3, keep: 0.6}, self_training: {rounds: 3}, audited: {rows: 8}, gold: {rows: 8}}"
    run = built(experiment_file, f"methods=[xent, {', '.join(methods)}]", args, "requires=[gce, knn]")
    report = write_report(run)[0].json()
    assert [arm["method"] for arm in report["arms"] if arm["arm"] == "student"] == ["xent", *methods]
    assert {arm["method"] for arm in report["arms"] if arm["sees_gold"]} == {"audited", "gold"}
    assert f"--plugin {experiment_file.parent / 'knn.py'}" in report["command"]
    weak = LabelSet.load(run.folder_of(run.layout.weak_labels[0]) / LABELS)
    weight = labels_of(run, "margin+gce").weight
    assert weight is not None
    assert weight.mean() == pytest.approx(1)
    assert (weight.argmax(), weight.argmin()) == (weak.confidence[:, 0].argmax(), weak.confidence[:, 0].argmin())
    assert len(labels_of(run, "knn")) == 24
    rounds = [name for name in run.layout.steps if name.startswith("fit/self_training, round")]
    assert len(rounds) == 3
    changed = (labels_of(run, "gold").soft != weak.soft).any(axis=1)
    assert changed.sum() == 8
    # The report, the manifests and the cards say whose code it was: of each stage that stands on it, and of no other.
    told = {plugin["name"]: plugin["sha256"] for plugin in report["software"]["plugins"]}
    assert told.keys() == {"gce", "margin", "knn", "self_training", "audited"}
    used = {name: [p["name"] for p in stage.manifest["plugins"]] for name, stage in run.stages.items()}
    assert used["fit/student, seed 0"] == used["fit/weak, seed 0"] == used["evaluate/student, gce, seed 0"] == []
    assert used["fit/student, margin+gce, seed 0"] == ["gce", "margin"]
    assert used["labels/knn, seed 0"] == ["knn"]
    cards = run.folder / "model_cards"
    assert f"knn (sha256 {told['knn'][:12]})" in (cards / "student-knn-seed0.md").read_text(encoding="utf-8")
    assert "no gold label was seen" in (cards / "student-knn-seed0.md").read_text(encoding="utf-8")
    assert "given gold labels of some" in (cards / "student-audited-seed0.md").read_text(encoding="utf-8")


def test_the_trainer_trains_fewer_parameters(examples: list[str], experiment_file: Path):
    run = built(experiment_file, "strong.trainer=attention")
    adapter = run.folder_of(run.layout.steps["fit/student, seed 0"]) / "adapter" / "adapter_config.json"
    assert sorted(json.loads(adapter.read_text())["target_modules"]) == ["q_proj", "v_proj"]


def test_the_loss_is_its_formula(examples: list[str]):
    p, y = torch.tensor([[0.2, 0.8], [0.5, 0.5]]), torch.tensor([[0.0, 1.0], [0.7, 0.3]])
    found = LOSSES["gce"](p.log(), y, State(), q=0.7)
    assert found.tolist() == pytest.approx([(1 - 0.8**0.7) / 0.7, (1 - 0.5**0.7) / 0.7])
    assert LOSSES["gce"](p.log(), y, State(), q=1e-4).tolist() == pytest.approx([-np.log(0.8), -np.log(0.5)], rel=1e-3)


def test_audited_labels_follow_the_audited_rows(examples: list[str]):
    gold = np.arange(400) % 2
    wrong = RNG.random(400) < np.where(gold == 1, 0.4, 0.0)  # only ever takes 1 for 0
    labels = LabelSet(tuple(map(str, range(400))), np.eye(2)[np.where(wrong, 1 - gold, gold)])
    made = METHOD_OPS["audited"](labels, RNG, gold, rows=200)
    kept = (made.soft == np.eye(2)[gold]).all(axis=1)
    assert kept.sum() >= 200
    rest = np.flatnonzero(~kept)
    assert made.soft[rest[labels.hard[rest] == 1], 1].min() > 0.95  # what it calls 1 is 1
    assert made.soft[rest[labels.hard[rest] == 0], 1] == pytest.approx(0.4 / 1.4, abs=0.1)


def test_neighbours_of_other_labels_leave_a_row_out(examples: list[str], plugins: Callable[..., Any]):
    import sys

    states = np.concatenate([RNG.normal(size=(20, 4)) * 0.05 + [1, 0, 0, 0], RNG.normal(size=(20, 4)) * 0.05 + [0, 1, 0, 0]])
    hard = np.repeat([0, 1], 20)
    hard[[3, 25]] = 1 - hard[[3, 25]]
    labels = LabelSet(tuple(map(str, range(40))), np.eye(2)[hard])
    kept = sys.modules["knn"].agreeing(labels, states, RNG, k=5, keep=0.95)
    assert set(labels.row_id) - set(kept.row_id) == {"3", "25"}
