"""A strong model that learns tasks of its own first: every arm starts from it, on whatever machine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_experiment

from trainers.config.reading import load
from trainers.fit.language_model import Learning
from trainers.fit.prepare import drawn, mixture
from trainers.flow.progress import Progress
from trainers.flow.run import Run, open_run
from trainers.harness.evaluate import Harness
from trainers.report.report import write_report
from w2s_tasks.errors import UserError
from w2s_tasks.models.ref import ModelRef

PREPARE = "strong.prepare={tasks: [w2s_ethics_probe_justice, own_reviews], rows: 48, epochs: 2, lr: 0.01}"
SETS = (PREPARE, "arms=[zero_shot,student,self_labels]", "safety={tasks: [w2s_ethics_probe_justice], limit: 8}")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, encoder_folder: Path, causal_model: Callable[[str], Path]) -> Path:
    """A folder with an experiment, and a run of it."""
    folder = tmp_path_factory.mktemp("prepared")
    built(write_experiment(folder, encoder_folder, causal_model("llama")), folder / "runs", *SETS)
    return folder


def built(config: Path, runs: Path, *sets: str) -> Run:
    flow = open_run(load(str(config), list(sets))[0], runs)
    flow.build(Progress(quiet=True))
    return flow


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def config_of(root: Path) -> Path:
    return next(root.glob("*.yaml"))


def test_every_arm_starts_from_the_prepared_model(root: Path, causal_model) -> None:
    flow = built(config_of(root), root / "runs", *SETS)
    assert all(one.reused for one in flow.stages.values())
    stage = flow.stages["fit/prepared"].path
    before, after = weights(causal_model("llama")), weights(stage / "model")
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    points = [p["loss"] for p in json.loads((stage / "curves.json").read_text()) if "loss" in p]
    assert points[-1] < points[0]
    strong = [arm for arm in flow.layout.evaluations if arm.kind.model == "strong"]
    assert {str(flow.model_of(arm).args["pretrained"]) for arm in strong} == {str(stage / "model")}
    assert {arm.name for arm in strong} == {"zero_shot", "student", "self_labels"}
    assert write_report(flow)[0].json()["safety"]


def test_another_preparation_redoes_what_stands_on_it_and_nothing_else(root: Path) -> None:
    flow, other = (
        open_run(load(str(config_of(root)), [*SETS, *more])[0], root / "runs") for more in ((), ("strong.prepare.rows=40",))
    )
    same = {name for name, step in flow.layout.steps.items() if other.key(other.layout.steps[name]) == flow.key(step)}
    assert {name for name in flow.layout.steps if "weak" in name or "split" in name} <= same
    assert not [name for name in same if any(part in name for part in ("prepared", "student", "zero_shot", "self_labels"))]


def test_a_run_folder_that_moved_finds_its_prepared_model(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "runs", tmp_path / "elsewhere")
    flow = built(config_of(root), tmp_path / "elsewhere", *SETS)
    arm = next(a for a in flow.layout.evaluations if a.name == "student")
    there = Path(str(flow.model_of(arm).args["pretrained"]))
    assert there.is_relative_to(tmp_path / "elsewhere")
    written = ModelRef.load(flow.stages["fit/student, seed 0"].path).args["pretrained"]
    assert Path(str(written)).is_relative_to(root)  # as it was when it was trained


def test_tasks_of_different_numbers_of_choices_are_one_mixture() -> None:
    def part(*targets: list[float]) -> Learning:
        rows = [{"requests": [([1], [2])] * len(t), "targets": t, "gold": t.index(1.0)} for t in targets]
        return Learning(None, rows, False, None)

    rows = mixture([part([0.0, 1.0], [1.0, 0.0]), part([0.0, 0.0, 1.0])]).rows
    assert [row["targets"] for row in rows] == [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    assert [row["choices"] for row in rows] == [2, 2, 3]


def test_the_rows_are_the_same_ones_every_time_and_labelled_gold(own_task: Path) -> None:
    task = Harness([str(own_task)]).task("own_reviews")
    docs, labels = drawn(task, 12)
    assert docs == drawn(task, 12)[0]
    assert [task.gold(doc) for doc in docs] == labels.hard.tolist()
    assert len(drawn(task, 10**6)[0]) == len(task.train_docs)


@pytest.mark.parametrize(
    ("sets", "sentence"),
    [
        (["weak={trainer: lora, model: m, prepare: {tasks: [own_reviews]}}"], "weak.prepare: only the strong model"),
        (["strong.prepare={tasks: [w2s_ethics_probe_utilitarianism]}"], "can't be trained on"),
        (["strong.prepare={tasks: []}"], "prepare"),
        ([PREPARE, "strong.model_args={load_in_4bit: true}"], "prepare merges an adapter"),
    ],
)
def test_what_can_not_be_prepared_is_refused(sets: list[str], sentence: str, root: Path, tmp_path: Path) -> None:
    with pytest.raises((UserError, ValueError), match=sentence):
        built(config_of(root), tmp_path / "runs", *sets)


def test_the_plan_shows_it(root: Path) -> None:
    from trainers.flow.plan import planned_steps

    steps: list[Any] = planned_steps(load(str(config_of(root)), list(SETS))[0])[0]
    first = next(step for step in steps if step.title.startswith("prepare the strong model"))
    assert first.rows == 40 + 48  # the probe has 40
