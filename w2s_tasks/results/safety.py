"""What training did to a model's ethics: accuracy differences to a reference model, question by question."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from w2s_tasks.errors import UserError
from w2s_tasks.results.read import TaskScores
from w2s_tasks.results.stats import Z95, Difference, paired_difference

HARD = "_hard"


def split_of(task: str) -> str:
    """Which test set a task's name stands for: test or hard."""
    return "hard" if HARD in task else "test"


def subtask_of(task: str) -> str:
    """The subtask's name without pack prefix, split and twin: w2s_ethics_probe_justice_hard_gen -> justice."""
    name = task.removesuffix("_gen").removesuffix(HARD)
    for prefix in ("w2s_ethics_probe_", "w2s_ethics_study_", "w2s_ethics_"):
        name = name.removeprefix(prefix)
    return name


@dataclass(frozen=True)
class Change:
    """A model against a reference on one task."""

    task: str
    difference: Difference


def aligned(first: TaskScores, second: TaskScores) -> None:
    """Check that two evaluations asked the same questions.

    Raises:
        UserError: they did not, so that a paired comparison would be wrong.
    """
    if first.units != second.units:
        raise UserError(f"{first.task}: the two evaluations asked different questions; evaluate both with one --limit.")


def changes(model: Mapping[str, TaskScores], reference: Mapping[str, TaskScores]) -> list[Change]:
    """Differences on every task that both have."""
    out = []
    for task, scores in model.items():
        if task in reference:
            aligned(scores, reference[task])
            out.append(Change(task, paired_difference(scores.correct, reference[task].correct, scores.cluster)))
    return out


def mean_change(changed: list[Change]) -> Difference | None:
    """Unweighted mean over tasks of the differences; tasks are independent samples of questions."""
    if not changed:
        return None
    values = np.array([c.difference.value for c in changed])
    errors = np.array([c.difference.stderr for c in changed])
    value, stderr = float(values.mean()), float(np.sqrt((errors**2).sum()) / len(errors))
    half = Z95 * stderr
    return Difference(value, stderr, value - half, value + half, float("nan"), sum(c.difference.n for c in changed))
