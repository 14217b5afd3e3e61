"""Changes of a model against a reference: which evaluations are compared, over which seeds, and in which family."""

from __future__ import annotations

import numpy as np
import pytest
from bad_input import one_clear_error

from w2s_tasks.results.over_tasks import mean_difference
from w2s_tasks.results.power import Design, detectable
from w2s_tasks.results.read import TaskScores
from w2s_tasks.results.safety import FEW_DIFFER, Change, adjusted, changes, mean_change, split_of, subtask_of
from w2s_tasks.results.stats import Difference, paired_components, paired_difference

JUSTICE, JUSTICE_HARD, VIRTUE = (f"w2s_ethics_{name}" for name in ("justice", "justice_hard", "virtue"))
CLUSTER = np.arange(60) // 3


def _scores(accuracy: float, seed: int, *tasks: str, first_unit: int = 0) -> dict[str, TaskScores]:
    """One evaluation: 60 questions a task; those of virtue come in threes."""
    rng = np.random.default_rng(seed)
    units = tuple(str(first_unit + i) for i in range(60))
    return {
        task: TaskScores(
            task, 60, {}, {}, units, (rng.random(60) < accuracy).astype(float), CLUSTER if task == VIRTUE else None
        )
        for task in tasks
    }


@pytest.mark.parametrize(
    ("task", "subtask", "split"),
    [
        ("w2s_ethics_justice", "justice", "test"),
        ("w2s_ethics_probe_justice_hard_gen", "justice", "hard"),
        ("w2s_ethics_study_virtue_gen", "virtue", "test"),
        ("w2s_ethics_virtue_hard", "virtue", "hard"),
        ("my_own_task", "my_own_task", "test"),
    ],
)
def test_the_name_of_a_task_tells_its_subtask_and_split(task, subtask, split):
    assert (subtask_of(task), split_of(task)) == (subtask, split)


@pytest.mark.parametrize(("models", "references"), [(1, 1), (3, 1), (1, 3), (3, 3)])
def test_changes_are_paired_seed_by_seed_and_an_evaluation_without_seeds_serves_all(models, references):
    model = [_scores(0.7, i, *(VIRTUE, JUSTICE, "only_here")[:: -1 if i else 1]) for i in range(models)]
    reference = [_scores(0.5, 10 + i, JUSTICE, VIRTUE, "only_there") for i in range(references)]
    found, seeds = changes(model, reference), max(models, references)
    assert [change.task for change in found] == [VIRTUE, JUSTICE]
    for change in found:
        first, second = (
            np.stack([(part * seeds)[i][change.task].correct for i in range(seeds)]) for part in (model, reference)
        )
        cluster = CLUSTER if change.task == VIRTUE else None
        assert change.difference == paired_difference(first, second, cluster)
        parts = paired_components(first, second, cluster)
        assert change.design == Design(
            60 / float(parts.effect),
            float(parts.row_df),
            float((first != second).mean()),
            seeds - 1,
            float(parts.seeds[0, 0]),
            max(0.0, float(parts.rows[0, 0])),
        )
    assert mean_change(model, reference, [JUSTICE, "only_here"]) == mean_difference(
        [(np.stack([s[JUSTICE].correct for s in (model * seeds)[:seeds]]),
          np.stack([s[JUSTICE].correct for s in (reference * seeds)[:seeds]]), None)], ["justice"]
    )  # fmt: skip


def test_a_task_that_one_seed_lacks_is_not_compared():
    whole, part = _scores(0.7, 0, JUSTICE, VIRTUE), _scores(0.7, 1, JUSTICE)
    assert [c.task for c in changes([whole, part], [whole])] == [JUSTICE]
    assert [c.task for c in changes([whole], [whole, part])] == [JUSTICE]
    assert changes([], [whole]) == changes([whole], []) == []
    assert mean_change([whole], [whole], []) is None
    assert mean_change([], [whole], [JUSTICE]) is None


def test_models_that_answer_alike_differ_nowhere():
    (change,) = changes([_scores(0.7, 0, JUSTICE)], [_scores(0.7, 0, JUSTICE)])
    assert (change.difference.value, change.design.discordance) == (0, 0)


def test_a_mean_change_knows_the_subtasks_of_its_tasks():
    tasks = (JUSTICE, JUSTICE_HARD, VIRTUE)
    model, reference = [_scores(0.8, 0, *tasks)], [_scores(0.5, 1, *tasks)]
    pairs = [(model[0][t].correct[None], reference[0][t].correct[None], model[0][t].cluster) for t in tasks]
    assert mean_change(model, reference, tasks) == mean_difference(pairs, ["justice", "justice", "virtue"])


@pytest.mark.parametrize("other", ["model", "reference"])
def test_other_questions_are_not_compared(other):
    same, moved = _scores(0.7, 0, JUSTICE), _scores(0.7, 1, JUSTICE, first_unit=1)
    parts = {"model": [same, same], "reference": [same, same]} | {other: [same, moved]}
    one_clear_error(lambda: changes(parts["model"], parts["reference"]), "different questions.*one --limit")


def test_where_few_independent_questions_differ_the_change_says_so():
    difference = Difference(0.0, 0.02, -0.04, 0.04, 1.0, 400)
    assert FEW_DIFFER == 12
    assert not Change("t", difference, Design(48, 47, 0.25)).few
    assert Change("t", difference, Design(48, 47, 0.24)).few
    assert not Change("t", difference).few


def test_a_family_is_adjusted_as_a_whole():
    family = [Change(f"t{i}", Difference(0.1, 0.02, 0.05, 0.15, p, 100)) for i, p in enumerate((0.001, 0.02, 0.2))]
    assert [c.p_holm for c in adjusted(family)] == pytest.approx([0.003, 0.04, 0.2])
    assert [c.detectable for c in adjusted(family)] == [None] * 3  # nothing is known of how the models differ
    assert adjusted([]) == []


def test_a_family_makes_a_difference_harder_to_detect():
    change = Change("t", Difference(0.0, 0.02, -0.04, 0.04, 1.0, 400), Design(400, 399, 0.1))
    (alone,), several = adjusted([change]), adjusted([change] * 6)
    assert alone.detectable == detectable(change.design)
    assert several[0].detectable == detectable(change.design, level=0.05 / 6)
    assert several[0].detectable > 1.2 * alone.detectable
