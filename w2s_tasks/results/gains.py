"""What a student gains over its supervisor, beside PGR: the share of errors removed, and one method against another.

PGR asks how much of the gap to a ceiling came out; it needs a ceiling, and a gap that is there. The share of its errors
that are gone, (student - weak) / (1 - weak), needs neither: its ceiling is a model without an error. Two methods are
compared question by question and seed by seed; their difference in PGR, (a - b) / (ceiling - weak), has Fieller's interval
as PGR has (`w2s_tasks.results.gap`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from w2s_tasks.results.components import crossed
from w2s_tasks.results.gap import Array, fieller, finite, gap_components

APART = np.array([[2.0, 0.0], [0.0, 2.0]])
"""Pseudo-rows of two comparisons that have no model in common: one row each way for each."""


@dataclass(frozen=True)
class Ratio:
    """A ratio with Fieller's 95 % interval; None where what it is divided by is not significantly above 0."""

    value: float | None
    low: float | None
    high: float | None


UNDEFINED = Ratio(None, None, None)


def errors_removed(weak: Array, student: Array, cluster: Array | None = None) -> Ratio:
    """The share of the supervisor's errors that the student does not make; below 0 where it makes more.

    Args:
        weak: correctness (0/1) of the supervisor, shape [seeds, n].
        student: of the student, the same seeds and questions.
        cluster: each question's group where questions come in groups, shape [n].
    """
    parts = gap_components(weak, student, np.ones_like(weak), cluster=cluster)
    errors = float(1 - weak.mean())
    return _ratio(float((student - weak).mean()), errors, fieller(parts))


def pgr_difference(first: Array, second: Array, weak: Array, ceiling: Array, cluster: Array | None = None) -> Ratio:
    """PGR of one method minus another's.

    Args:
        first: correctness (0/1) under the one, shape [seeds, n].
        second: under the other; the same seeds and questions, as for all.
        weak: of the supervisor.
        ceiling: of the model trained on gold labels.
        cluster: each question's group where questions come in groups, shape [n].
    """
    parts = crossed(np.stack([first - second, ceiling - weak], axis=-3), cluster, APART)
    return _ratio(float((first - second).mean()), float((ceiling - weak).mean()), fieller(parts))


def _ratio(above: float, below: float, ends: tuple[float, float]) -> Ratio:
    if below <= 0 or not np.isfinite(ends).any():
        return UNDEFINED
    return Ratio(above / below, finite(ends[0]), finite(ends[1]))
