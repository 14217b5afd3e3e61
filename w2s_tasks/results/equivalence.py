"""That nothing was lost, shown: a difference that is significantly smaller than one that would matter.

That a test finds no difference shows nothing: with few questions it could hardly find one. Two one-sided tests (TOST;
Schuirmann 1987, J. Pharmacokinet. Biopharm. 15) ask whether the difference lies within a margin that was named before.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from w2s_tasks.results.components import Components


@dataclass(frozen=True)
class Equivalence:
    """One-sided p of both questions.

    ``not_below``: that the first is below the second by the margin or more is rejected; ``equal``: that they differ by the
    margin or more, either way, is rejected (TOST: the larger of two one-sided p).
    """

    not_below: float
    equal: float


def equivalence(parts: Components, margin: float) -> Equivalence:
    """Test a paired difference against a margin, with the errors of its interval.

    Args:
        parts: of first - second (`stats.paired_components`), without leading dimensions.
        margin: the smallest difference that would matter, above 0.
    """
    lower, upper = _above(parts, -margin), _above(replace(parts, mean=-parts.mean), -margin)
    return Equivalence(lower, max(lower, upper))


def _above(parts: Components, bound: float) -> float:
    """One-sided p of a first contrast that is not above a bound."""
    direction = np.eye(len(parts.mean))[0]
    shifted = replace(parts, mean=parts.mean - bound * direction)
    half = shifted.p_value(direction) / 2
    return half if float(shifted.mean[0]) > 0 else 1 - half
