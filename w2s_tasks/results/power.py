"""What n questions can show: the smallest difference that the test in use finds, given how often the models differ."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import binom, nct
from scipy.stats import t as student_t

from w2s_tasks.results.components import PSEUDO, critical

Array = npt.NDArray[Any]
STEPS = 40


@dataclass(frozen=True)
class Design:
    """What a paired comparison stands on.

    ``rows``: independent rows that its questions are worth; ``degrees``: degrees of freedom of the questions' error;
    ``discordance``: share of the questions that exactly one model has right; ``seed_df``: seeds minus 1; ``seed_variance``
    and ``row_variance``: of the mean difference, where there are several seeds.
    """

    rows: float
    degrees: float
    discordance: float
    seed_df: int = 0
    seed_variance: float = 0.0
    row_variance: float = 0.0


def power_of_one(design: Design, difference: float, level: float) -> float:
    """Chance that the paired comparison of two fixed models finds a difference: exact over all outcomes.

    The comparison is `paired_difference`: McNemar's exact test (of clusters: sign flips) and the adjusted Wald interval have
    to agree. A difference larger than the discordance brings its own.

    Args:
        design: the comparison; effective rows are rounded down.
        difference: accuracy of one model minus the other's, above 0.
        level: two-sided.
    """
    n, discordance = int(design.rows), min(1.0, max(design.discordance, difference))
    differing = np.arange(n + 1)
    t = float(student_t.isf(level / 2, design.degrees))
    # Of N rows that differ b favour one model: exact if P(B >= b) <= level / 2, Wald if 2 b - N passes t standard errors.
    exact = binom.isf(level / 2, differing, 0.5) + 1
    wald = t * np.sqrt((differing + PSEUDO) / (1 + t**2 / (n + PSEUDO)))
    needed = np.maximum(exact, np.floor((differing + wald) / 2) + 1)
    share = (1 + difference / discordance) / 2
    return float(binom.pmf(differing, n, discordance) @ binom.sf(needed - 1, differing, share))


def power_over_seeds(design: Design, difference: float, level: float) -> float:
    """The same over several seeds, by the noncentral t, with the variances that were estimated.

    Args:
        design: the comparison.
        difference: as above.
        level: two-sided.
    """
    own = (difference - difference**2) / design.rows  # a difference of d means that at least the share d differs
    rows, seeds = max(design.row_variance, own), design.seed_variance
    total = seeds + rows
    bar = float(critical(np.array(seeds), np.array(rows), design.seed_df, design.degrees, 1 - level))
    degrees = total**2 / (seeds**2 / design.seed_df + rows**2 / design.degrees)
    return float(nct.sf(bar, degrees, difference / math.sqrt(total)))


def detectable(design: Design, *, power: float = 0.8, level: float = 0.05) -> float | None:
    """The smallest difference that a comparison finds with this power; None where even a difference of 1 is not found.

    Args:
        design: the comparison.
        power: chance to find it.
        level: two-sided; of the strictest of a family's tests where p is adjusted.
    """
    found: Callable[[Design, float, float], float] = power_over_seeds if design.seed_df else power_of_one
    low, high = 0.0, 1.0
    if found(design, high, level) < power:
        return None
    for _ in range(STEPS):
        middle = (low + high) / 2
        if found(design, middle, level) >= power:
            high = middle
        else:
            low = middle
    return high
