"""What an experiment will be able to show, before it is run: simulated with the tests that its report will use.

Answers of supervisor, student and ceiling are drawn for given accuracies. A row has a difficulty that all models share, and
each model a leaning of its own on each row, half of it the same at every seed; how much they share is what makes two models
differ on the given share of rows. Each training shifts a model's accuracy (``seed_sd``). Every drawn experiment then goes
through the report's own intervals: paired differences, the gate of PGR, Fieller's interval.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.stats import multivariate_normal, norm

from w2s_tasks.results.components import Components, crossed
from w2s_tasks.results.gap import fieller, gap_components, in_fieller_set
from w2s_tasks.results.power import Design, detectable, power_of_one
from w2s_tasks.results.stats import PAIR

Array = npt.NDArray[Any]
OWN = 0.5
"""Share of a model's own leaning on a row that all its trainings have in common."""
DRAWS = 400
SEARCHED = 100
"""Drawn experiments of which the interval of PGR is searched."""
BLOCK = 4_000_000
"""Answers held at once."""


@dataclass(frozen=True)
class Expected:
    """What an experiment is taken to be like.

    ``discordance``: share of the rows on which exactly one of two models of equal accuracy is right; ``seed_sd``: standard
    deviation of a model's accuracy over trainings; ``tests``: comparisons that p is corrected for; ``difference``: student
    minus the model that it is compared with (by default the supervisor); ``margin``: the smallest difference that matters.
    """

    weak: float
    student: float
    ceiling: float
    discordance: float = 0.2
    seed_sd: float = 0.02
    tests: int = 1
    difference: float | None = None
    margin: float | None = None

    @property
    def middle(self) -> float:
        """An accuracy between supervisor and ceiling, at which `discordance` holds."""
        return min(0.98, max(0.02, (self.weak + self.ceiling) / 2))

    @property
    def effect(self) -> float:
        """The difference that is to be found."""
        return self.student - self.weak if self.difference is None else self.difference


@dataclass(frozen=True)
class Planned:
    """What n questions and some seeds show; shares of drawn experiments.

    ``detectable``: the smallest difference that is found with 80 % power, None where none is; ``power``: chance to find the
    expected difference; ``equal``: chance to show that two models that do not differ are within the margin; ``gate``: chance
    that the gap is significant, so that PGR is given; ``pgr_width``: median width of its interval where it is.
    """

    n: int
    seeds: int
    detectable: float | None
    power: float
    equal: float | None
    gate: float
    pgr_width: float | None


def most_discordant(accuracy: float) -> float:
    """Share of the rows on which two models of this accuracy differ that err independently."""
    return 2 * accuracy * (1 - accuracy)


@functools.lru_cache(maxsize=64)
def shared_variance(discordance: float, accuracy: float) -> float:
    """Correlation of two models' leanings with which they differ on this share of the rows.

    Args:
        discordance: rows that exactly one has right.
        accuracy: of both.

    Raises:
        ValueError: two models of this accuracy can't differ so often.
    """
    z = float(norm.ppf(accuracy))

    def differing(shared: float) -> float:
        both = float(multivariate_normal.cdf([z, z], cov=[[1, shared], [shared, 1]]))
        return 2 * (accuracy - both) - discordance

    most = most_discordant(accuracy)
    if not 0 < discordance <= most:
        raise ValueError(
            f"discordance: two models that are right on {accuracy:.0%} of the rows, and err independently, differ on "
            f"{most:.0%} of them; {discordance:.0%} is not between 0 and that"
        )
    return float(brentq(differing, 0, 1 - 1e-9)) if discordance < most - 1e-9 else 0.0


def drawn(accuracies: Array, n: int, expected: Expected, rng: np.random.Generator) -> Array:
    """Correctness of models over seeds.

    Args:
        accuracies: of each training, shape [draws, models, seeds].
        n: rows.
        expected: the rest.
        rng: where it comes from.

    Returns:
        0/1, shape [draws, models, seeds, n].
    """
    draws, models, seeds = accuracies.shape
    shared = shared_variance(round(expected.discordance, 4), round(expected.middle, 4))
    row = rng.standard_normal((draws, 1, 1, n), dtype=np.float32) * math.sqrt(shared)
    own = rng.standard_normal((draws, models, 1, n), dtype=np.float32) * math.sqrt(OWN * (1 - shared))
    fresh = rng.standard_normal((draws, models, seeds, n), dtype=np.float32) * math.sqrt((1 - OWN) * (1 - shared))
    bar = norm.ppf(np.clip(accuracies, 0.001, 0.999))[..., None]
    return (row + own + fresh < bar).astype(np.float32)


def planned(expected: Expected, n: int, seeds: int, draws: int = DRAWS, seed: int = 0) -> Planned:
    """What an experiment of n questions and some seeds shows.

    Raises:
        ValueError: see `shared_variance`.
    """
    compared, unchanged, gaps = [], [], []
    for weak, own, ceiling, other, same in _experiments(expected, n, seeds, draws, seed):
        compared.append(_pairs(own, other))
        unchanged.append(_pairs(same, own))
        gaps.append(gap_components(weak, own, ceiling))
    level, design = 0.05 / expected.tests, _design(unchanged, n, expected)
    return Planned(
        n=n,
        seeds=seeds,
        detectable=detectable(design, level=level),
        power=_power(compared, design, expected, level),
        equal=None if expected.margin is None else _mean(_within(parts, expected.margin, level) for parts in unchanged),
        gate=_mean(_passes(parts) for parts in gaps),
        pgr_width=_width(gaps),
    )


def _experiments(expected: Expected, n: int, seeds: int, draws: int, seed: int) -> Iterator[Array]:
    """Drawn experiments in blocks: supervisor, student, ceiling, what the student is compared with, one that is as it is."""
    rng, student = np.random.default_rng([seed, n, seeds]), expected.student
    levels = np.array([expected.weak, student, expected.ceiling, student - expected.effect, student])[None, :, None]
    for size in _blocks(draws, levels.size * seeds * n):
        accuracies = levels + expected.seed_sd * rng.standard_normal((size, levels.size, seeds))
        yield np.moveaxis(drawn(accuracies, n, expected, rng), 1, 0)


def seeds_needed(expected: Expected, n: int, power: float = 0.8, most: int = 30) -> int | None:
    """The fewest seeds, from two on, with which the expected difference is found with this power; None beyond `most`.

    One seed is not among them: its result holds for its own weights alone.
    """

    def enough(seeds: int) -> bool:
        found = (_pairs(own, other) for _, own, _, other, _ in _experiments(expected, n, seeds, DRAWS, 0))
        return _found(found, 0.05 / expected.tests) >= power

    low, high = 2, most
    if not enough(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return low


def _blocks(draws: int, numbers: int) -> list[int]:
    size = max(1, min(draws, BLOCK // numbers))
    return [min(size, draws - start) for start in range(0, draws, size)]


def _mean(parts: Iterable[Array]) -> float:
    return float(np.concatenate([np.ravel(part) for part in parts]).mean())


def _design(unchanged: Sequence[Components], n: int, expected: Expected) -> Design:
    """What the comparison of two models stands on, by the variances that the draws had on average."""
    seeds, rows = (_mean(part.variance(np.ones(1))[which] for part in unchanged) for which in (0, 1))
    first = unchanged[0]
    return Design(n, float(first.row_df.flat[0]), expected.discordance, first.seed_df, seeds, rows)


def _power(compared: Sequence[Components], design: Design, expected: Expected, level: float) -> float:
    """Chance that the expected difference is found; with one seed exact over all outcomes."""
    if not design.seed_df:
        return power_of_one(design, abs(expected.effect), level) if expected.effect else level
    return _found(compared, level)


def _pairs(first: Array, second: Array) -> Components:
    """Every drawn experiment's comparison of two models, as `stats.paired_components` makes one."""
    return crossed((first - second)[:, None], None, PAIR)


def _found(compared: Iterable[Components], level: float) -> float:
    """Share of drawn comparisons of several seeds whose interval leaves 0 out."""
    return _mean(np.abs(part.mean[..., 0]) > part.half_width(np.ones(1), 1 - level) for part in compared)


def _passes(parts: Components) -> Array:
    """Whether the gap is significantly above 0, as PGR asks."""
    return np.asarray(~in_fieller_set(parts, np.array([math.inf]))[..., 0] & (parts.mean[..., 1] > 0))


def _within(parts: Components, margin: float, level: float) -> Array:
    """Whether two one-sided tests at this level exclude the margin: whether the interval of twice that lies within it."""
    return np.asarray(np.abs(parts.mean[..., 0]) + parts.half_width(np.ones(1), 1 - 2 * level) < margin)


def _width(gaps: Sequence[Components]) -> float | None:
    """Median width of Fieller's interval where the gap is significant; of some drawn experiments, for it takes a search."""
    widths = []
    for parts in gaps:
        for i in np.flatnonzero(_passes(parts))[: max(1, SEARCHED // len(gaps))]:
            low, high = fieller(_one(parts, int(i)))
            widths.append(high - low)
    return float(np.median(widths)) if widths else None


def _one(parts: Components, i: int) -> Components:
    """One drawn experiment's."""
    fields = {name: np.asarray(getattr(parts, name))[i] for name in ("mean", "seeds", "rows", "rest", "seed_means")}
    degrees, effect = (np.broadcast_to(value, len(parts.mean))[i] for value in (parts.row_df, parts.effect))
    return replace(parts, **fields, row_df=degrees, effect=effect)
