"""Ranks with intervals: how many of the others one is shown to be below, and above.

The interval of a rank goes from 1 + the number of those that are significantly better to the size of the field less those
that are significantly worse, over all pairs at once (Mogstad, Romano, Shaikh & Wilhelm 2024, Review of Economic Studies 91:
with tests that hold the family-wise error, all intervals hold their ranks together with that probability). Two that can't be
told apart share their places: a table of means alone ranks noise.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from w2s_tasks.results.stats import holm


@dataclass(frozen=True)
class Rank:
    """A place among others, 1 the best."""

    best: int
    worst: int


def ranks(names: Sequence[str], compare: Callable[[str, str], tuple[float, float]], level: float = 0.05) -> dict[str, Rank]:
    """Every name's rank.

    Args:
        names: what is ranked.
        compare: of two names the first's value minus the second's, and its two-sided p.
        level: family-wise error over all pairs.
    """
    pairs = list(itertools.combinations(names, 2))
    found = [compare(*pair) for pair in pairs]
    above = dict.fromkeys(names, 0)
    below = dict.fromkeys(names, 0)
    for (first, second), (value, _), p in zip(pairs, found, holm([p for _, p in found]), strict=True):
        if p < level and value != 0:
            winner, loser = (first, second) if value > 0 else (second, first)
            below[winner] += 1
            above[loser] += 1
    return {name: Rank(1 + above[name], len(names) - below[name]) for name in names}
