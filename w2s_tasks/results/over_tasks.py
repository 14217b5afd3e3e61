"""Means over tasks: of differences between two models, and of accuracies.

The seeds of all tasks are the same trained models, so whatever moves with a seed moves in all tasks at once, above all in
those of one subtask (test, hard, long): each seed's mean over the tasks is formed first. The questions of different tasks
are different samples. With one seed everything holds given these weights and these examples in the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from w2s_tasks.results.components import average, crossed
from w2s_tasks.results.stats import Difference, accuracy_interval, difference_of, paired_components, stretched

Array = npt.NDArray[Any]
FEWEST_SUBTASKS = 3
"""Subtasks whose spread is looked at; with two Student's t has one degree of freedom."""


def mean_difference(pairs: Sequence[tuple[Array, Array, Array | None]], subtasks: Sequence[str]) -> Difference:
    """Unweighted mean over tasks of first - second.

    The interval holds for these tasks, with their questions as independent samples, and from three subtasks on also for the
    subtasks as a sample of such subtasks, by Student's t over their means: it is the hull of both, and p the larger one.

    Args:
        pairs: for each task the correctness of both models, shape [seeds, n], and the cluster of each row, or None.
        subtasks: which subtask each task belongs to.
    """
    parts = [paired_components(*pair) for pair in pairs]
    n = sum(first.shape[-1] for first, _, _ in pairs)
    of_these = difference_of(average(parts), n)
    if len(set(subtasks)) < FEWEST_SUBTASKS:
        return of_these
    by_task = np.vstack([p.seed_means for p in parts]).T  # [S, tasks]
    of_such = difference_of(crossed(by_task[None], np.asarray(subtasks)), n)
    low, high = min(of_these.low, of_such.low), max(of_these.high, of_such.high)
    return Difference(
        of_these.value, max(of_these.stderr, of_such.stderr), low, high, max(of_these.p, of_such.p), n, of_these.n_seeds
    )


def mean_level(tables: Sequence[tuple[Array, Array | None]]) -> tuple[float, float, float]:
    """Unweighted mean accuracy over tasks with its 95 % interval: over questions, and over seeds where there are several.

    Args:
        tables: for each task correctness, shape [seeds, n], and the cluster of each row, or None.
    """
    levels = np.array([correct.mean() for correct, _ in tables])
    ends = np.array([accuracy_interval(correct, cluster) for correct, cluster in tables])  # [tasks, 2]
    mean = float(levels.mean())
    below, above = np.sqrt(np.square(ends.T - levels).sum(axis=1)) / len(levels)
    low, high = mean - float(below), mean + float(above)
    over_seeds = average([crossed(correct[None], cluster) for correct, cluster in tables])
    return mean, *(stretched((low, high), over_seeds) if over_seeds.seed_df else (low, high))
