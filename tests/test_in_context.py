"""The arms in_context(K) and random_shots(K): rows with weak or random labels in the prompt of the untuned strong model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainers.config.reading import load
from trainers.flow.layout import Layout
from trainers.flow.progress import Progress
from trainers.flow.run import Run, open_run
from trainers.labels import shots
from trainers.labels.arms import random_shots
from trainers.labels.label_set import LABELS, LabelSet
from trainers.labels.text_labels import TextLabels
from trainers.report.report import write_report
from trainers.steps.evaluation import InContext
from w2s_tasks.errors import UserError

RNG = np.random.default_rng(0)
SMALL = ["split.limit={weak: 48, transfer: 32}", "evaluate.limit=12", "weak.epochs=1"]


def built(file: Path, *sets: str) -> Run:
    run = open_run(load(str(file), [*SMALL, *sets])[0], file.parent / "runs")
    run.build(Progress(quiet=True))
    return run


def prompts(run: Run, name: str) -> list[str]:
    (file,) = run.folder_of(run.layout.steps[name]).rglob("samples_*.jsonl")
    samples: list[dict[str, Any]] = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [sample["arguments"]["gen_args_0"]["arg_0"] for sample in samples]


def test_every_prompt_begins_with_the_same_rows_as_the_supervisor_labelled_them(experiment_file: Path):
    run = built(experiment_file, "arms=[zero_shot, few_shot(4), in_context(4), in_context(6), student]", "seeds=[0, 1]")
    texts, bare = prompts(run, "evaluate/in_context(4), seed 0"), prompts(run, "evaluate/zero_shot")
    start = {text.removesuffix(question) for text, question in zip(texts, bare, strict=True)}
    assert len(start) == 1  # one prefix for all questions, which is run once
    shown = start.pop().strip().split("\n\n")
    assert len(shown) == 4
    labels = LabelSet.load(run.folder_of(run.layout.weak_labels[0]) / LABELS)
    task = run.layout.task
    answers = {
        task.prompts([doc], run.layout.evaluations[run.layout.arms()[1]].style)[0].split("\n\n")[-1]: task.classes[hard]
        for doc, hard in zip(task.docs_of(labels.row_id), labels.hard.tolist(), strict=True)
    }
    told = [next((prompt, shot) for prompt in answers if shot.startswith(prompt)) for shot in shown]
    assert [shot[len(prompt) :].strip() for prompt, shot in told] == [answers[prompt].strip() for prompt, _ in told]
    assert prompts(run, "evaluate/in_context(4), seed 1")[0] != texts[0]  # another split, supervisor and draw
    report = write_report(run)[0].json()
    means = {mean["arm"]: mean["seeds"] for mean in report["arm_means"]}
    assert means["in_context(4)"] == means["in_context(6)"] == [0, 1]
    assert means["few_shot(4)"] == [None]
    assert {gap["arm"] for gap in report["gaps"]} <= {*means}


def test_shots_are_balanced_over_the_labels_and_interleaved():
    labels = LabelSet(tuple(map(str, range(40))), np.eye(2)[[0] * 30 + [1] * 10])
    for k in (2, 4, 6, 20):
        rows = shots.drawn(labels, k, np.random.default_rng(3))
        assert len(set(rows.tolist())) == k
        assert all(sorted(labels.hard[rows[i : i + 2]]) == [0, 1] for i in range(0, k, 2))
    assert sorted(shots.drawn(labels, 40, RNG).tolist()) == list(range(40))  # the commoner class alone at the end
    with pytest.raises(UserError, match="41 shots: only 40 rows have a label"):
        shots.drawn(labels, 41, RNG)


def test_random_shots_are_balanced_and_know_nothing_of_gold():
    gold = np.repeat([0, 1], 100)
    labels = LabelSet(tuple(map(str, range(200))), np.eye(2)[gold])
    right = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        made = random_shots(labels, rng)
        rows = shots.drawn(made, 12, rng)
        assert sum(shots.answers(made, rows)) == 6
        right.append((made.hard[rows] == gold[rows]).mean())
    assert np.mean(right) == pytest.approx(0.5, abs=0.04)  # four standard errors of a coin


def test_random_shots_are_asked_by_the_training_task_once_a_seed(experiment_file: Path):
    sets = ["arms=[random_shots, random_shots(12), student]", "seeds=[0, 1]", "evaluate={few_shot_k: 6}"]
    layout = Layout.load(load(str(experiment_file), [*SMALL, *sets])[0])
    asked = {arm.title: step for arm, step in layout.evaluations.items() if arm.name.startswith("random_shots")}
    assert {title: step.style.num_fewshot for title, step in asked.items()} == {
        **{f"random_shots, seed {seed}": 6 for seed in (0, 1)},
        **{f"random_shots(12), seed {seed}": 12 for seed in (0, 1)},
    }
    step = asked["random_shots(12), seed 1"]
    assert isinstance(step, InContext)
    assert step.inputs == (layout.steps["split/1"],)  # no supervisor
    assert step.shown.ops == (("random_shots", {}),)
    assert random_shots in step.code


def test_rows_with_choices_of_their_own_and_solutions_are_shown_too():
    ragged = LabelSet.of(("a", "b", "c"), [[0.1, 0.9], [0.2, 0.3, 0.5], [0.6, 0.4]])
    assert shots.answers(ragged, [1, 0]) == [2, 1]
    assert len(shots.drawn(ragged, 3, RNG)) == 3
    texts = TextLabels.of({"a": ("It is 4.", "4", -0.5, 0.5), "b": ("It is 5.", "5", -0.1, 1.0)})
    assert shots.answers(texts, [1]) == ["It is 5."]
    assert len(shots.drawn(texts, 2, RNG)) == 2


@pytest.mark.parametrize("arm", ["in_context(0)", "in_context(x)", "student(3)", "in_contextt(3)"])
def test_an_arm_that_there_is_not_is_refused(experiment_file: Path, arm: str):
    with pytest.raises(UserError, match=r"arms: no arm .* few_shot\(K\), in_context\(K\)"):
        load(str(experiment_file), [f"arms=[student, '{arm}']"])


def test_more_shots_than_labelled_rows_end_with_one_clear_error(experiment_file: Path):
    with pytest.raises(UserError, match="33 shots: only 32 rows have a label"):
        built(experiment_file, "arms=[in_context(33)]")
