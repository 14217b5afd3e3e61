"""What a bench shows over its tasks: contrasts between arms, pooled (`w2s_tasks.results.pooling`), from the cells' reports.

A contrast of one task comes with the variance that its seeds bring and the one that its questions bring
(`trainers.report.sections.joint`). Few seeds hardly tell the first, so its mean over the tasks is taken for all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainers.report.entries import Entry, Interval
from trainers.report.sections.joint import Joint
from trainers.report.text import Named
from w2s_tasks.results.components import PSEUDO, critical
from w2s_tasks.results.pooling import FEWEST, Estimate, Pooled, pooled


@dataclass(frozen=True)
class Cell:
    """One experiment of a bench."""

    task: str
    supervisor: str
    joint: Joint
    safety: tuple[Joint, ...]

    def of(self, safety: str | None) -> Joint | None:
        """Its training task's, or a safety task's."""
        return self.joint if safety is None else next((one for one in self.safety if one.task == safety), None)


@dataclass(frozen=True)
class Contrast:
    """A weighted sum of arms' accuracies on one task."""

    task: str
    value: float
    seeds: float
    """Variance of the value, from what differs between seeds."""
    questions: float
    """Variance of the value, from which questions are asked."""
    repetitions: int

    @property
    def ends(self) -> tuple[float, float]:
        """The task's own 95 % interval, without the others."""
        width = critical(np.array(self.seeds), np.array(self.questions), self.repetitions - 1, 1e6)
        half = float(width) * math.sqrt(self.seeds + self.questions)
        return self.value - half, self.value + half


def contrast(cell: Cell, weights: dict[Named, float], safety: str | None = None) -> Contrast | None:
    """A contrast of one cell; None where one of the arms is not there."""
    joint = cell.of(safety)
    places = {group: joint.place(group) for group in weights} if joint else {}
    if joint is None or None in places.values():
        return None
    direction = np.zeros(len(joint.arms))
    for group, weight in weights.items():
        direction[places[group]] += weight
    seeds, questions = (
        max(0.0, float(direction @ np.array(m) @ direction)) for m in (joint.seed_covariance, joint.question_covariance)
    )
    # The pseudo-questions of a comparison: no error is 0 where two models happen to agree everywhere.
    least = PSEUDO * float(np.abs(direction).max()) ** 2 / joint.n**2
    return Contrast(cell.task, float(direction @ joint.accuracy), seeds, questions + least, joint.seeds)


def difference(first: Named, second: Named) -> dict[Named, float]:
    """The weights of a plain difference."""
    return {first: 1.0, second: -1.0}


@dataclass(frozen=True, kw_only=True)
class TaskEffect(Entry):
    """A contrast on one task."""

    task: str
    """The bench's name of it."""
    value: float
    """As measured."""
    ci95: Interval
    """Of this task alone."""
    drawn: float
    """Drawn towards the mean of all tasks."""
    drawn_ci95: Interval
    """Its interval."""


@dataclass(frozen=True, kw_only=True)
class Effect(Entry):
    """A contrast over tasks."""

    mean: float
    """Over tasks like these."""
    ci95: Interval
    """Of that mean."""
    new_task_ci95: Interval
    """Of the effect on a task that is not here."""
    spread: float
    """Standard deviation of the effect between tasks."""
    p: float
    """Two-sided, that the mean has the other sign."""
    tasks: list[TaskEffect]
    """One by one."""


def effect(contrasts: Sequence[Contrast], *, shared: bool = False) -> Effect | None:
    """A contrast pooled over tasks; None of fewer than three.

    Args:
        contrasts: one a task.
        shared: whether all tasks are asked the same questions.
    """
    if len(contrasts) < FEWEST:
        return None
    found = pool(contrasts, shared=shared)
    each = [
        TaskEffect(task=c.task, value=c.value, ci95=c.ends, drawn=one.mean, drawn_ci95=(one.low, one.high))
        for c, one in zip(contrasts, found.each, strict=True)
    ]
    return Effect(
        mean=found.overall.mean,
        ci95=(found.overall.low, found.overall.high),
        new_task_ci95=(found.new_task.low, found.new_task.high),
        spread=found.spread.mean,
        p=found.p,
        tasks=each,
    )


def pool(contrasts: Sequence[Contrast], *, shared: bool = False) -> Pooled:
    """The same as posteriors."""
    repetitions = [c.repetitions for c in contrasts]
    of_one_seed = float(np.mean([c.seeds * c.repetitions for c in contrasts]))
    seeds = np.array([of_one_seed / n for n in repetitions])
    questions = np.array([c.questions for c in contrasts])
    common = float(questions.mean()) if shared else 0.0
    least = 1e-12  # a variance of 0 would leave the others out
    return pooled([c.value for c in contrasts], seeds + (least if shared else questions), common)


RATIOS = (-5.0, 5.0)
"""Between which ends of a PGR are looked for; beyond them they are called unbounded."""


def recovered(cells: Sequence[Cell], group: Named, ceiling: Named) -> tuple[float, Interval] | None:
    """PGR over tasks: the r at which the mean of (arm - weak) - r (ceiling - weak) is 0, with those that its interval holds.

    Fieller's idea for a pooled mean. None where the pooled gap between weak and ceiling is not significant.
    """
    from scipy.optimize import brentq

    weak: Named = ("weak", None)
    chosen = [cell for cell in cells if contrast(cell, {group: 1.0, ceiling: -1.0, weak: 0.0})]
    if len(chosen) < FEWEST or _over(chosen, difference(ceiling, weak)).overall.low <= 0:
        return None

    def at(ratio: float) -> Estimate:
        weights = {group: 1.0, weak: ratio - 1}
        weights[ceiling] = weights.get(ceiling, 0.0) - ratio
        return _over(chosen, weights).overall

    lowest, highest = (at(ratio) for ratio in RATIOS)
    if lowest.mean < 0 or highest.mean > 0:
        return None

    def root(end: str, first: float, last: float) -> float:
        return float(brentq(lambda ratio: getattr(at(ratio), end), first, last, xtol=1e-4))

    middle = root("mean", *RATIOS)
    low = None if lowest.low <= 0 else root("low", RATIOS[0], middle)
    high = None if highest.high >= 0 else root("high", middle, RATIOS[1])
    return middle, (low, high)


def _over(cells: Sequence[Cell], weights: dict[Named, float]) -> Pooled:
    return pool([found for cell in cells if (found := contrast(cell, weights))])
