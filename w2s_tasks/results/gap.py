"""PGR, the performance gap recovered (Burns et al. 2023, arXiv 2312.09390): (student - weak) / (ceiling - weak).

The ratio over a gap that may be zero is noise, so it is given only where ceiling - weak is significantly above 0; it is
never clipped. Its interval is Fieller's (1954), paired by question: all ratios r for which the contrast
(student - weak) - r (ceiling - weak) does not differ significantly from 0. It is bounded exactly where the gap is
significant. With several seeds the contrast has two sources of error, rows and seeds
(`w2s_tasks.results.components`); with one seed it holds given these weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq

from w2s_tasks.results.components import Components, crossed
from w2s_tasks.results.stats import bootstrap_means

Array = npt.NDArray[Any]
DRAWS = 10_000
PSEUDO = np.array([[2.0, 1.0], [1.0, 2.0]])
"""Half a pseudo-row for each of the six patterns of (weak, student, ceiling) that are not constant: every pair of models
gets one row each way, as in `paired_difference`."""


@dataclass(frozen=True)
class Gap:
    """PGR with a 95 % interval (None where undefined or unbounded), and the gap that it stands on.

    ``rows_ci95`` resamples the questions only and keeps the weights; ``per_seed`` is each seed's PGR, for the eye.
    """

    pgr: float | None
    """Share of the gap that is recovered: 0 as the weak supervisor, 1 as the ceiling; null where undefined."""
    ci95: tuple[float | None, float | None] | None
    """Fieller's 95 % interval of it; null where undefined, an end where unbounded."""
    defined: bool
    """Whether the ceiling is significantly above the weak supervisor."""
    reason: str
    """Why it is undefined, or what the interval holds for."""
    gap: float
    """Ceiling minus weak supervisor, accuracy from 0 to 1."""
    gap_ci95: tuple[float, float]
    """Its 95 % interval."""
    rows_ci95: tuple[float | None, float | None] | None = None
    """95 % interval of PGR for these weights only: what another seed would change is left out."""
    per_seed: tuple[float | None, ...] = ()
    """PGR of each seed."""


def gap_components(weak: Array, student: Array, ceiling: Array, *, cluster: Array | None = None) -> Components:
    """Components of variance of (student - weak, ceiling - weak); correctness, shapes [..., S, n]; clusters of rows, [n]."""
    return crossed(np.stack([student - weak, ceiling - weak], axis=-3), cluster, PSEUDO)


def in_fieller_set(parts: Components, ratio: Array, level: float = 0.95) -> Array:
    """Whether each ratio is in the Fieller set; infinity asks for the gap itself (is it not significant?).

    Args:
        parts: of `gap_components`, leading dimensions free.
        ratio: shape [m]; checked for each leading element.
        level: of the set.

    Returns:
        Shape [..., m].
    """
    return _margin(parts, np.arctan(np.asarray(ratio, dtype=float)), level) >= 0


def _margin(parts: Components, angle: Array, level: float) -> Array:
    """By how much the interval of N - r D holds 0, r = tan(angle) and the contrast (cos, -sin); shape [..., m]."""
    directions = np.stack([np.cos(angle), -np.sin(angle)], axis=-1)
    return parts.broadcast().half_width(directions, level) - np.abs(parts.mean @ directions.T)


def fieller(parts: Components, level: float = 0.95) -> tuple[float, float]:
    """Ends of the Fieller set around the ratio of the means; infinite where the gap is not significant.

    Args:
        parts: of `gap_components`, without leading dimensions.
        level: of the set.
    """
    numerator, gap = (float(x) for x in parts.mean)
    if in_fieller_set(parts, np.array([math.inf]), level).all():
        return -math.inf, math.inf
    centre = math.atan(numerator / gap)  # the vertical, an infinite ratio, is outside: the set lies within a half turn
    return _edge(parts, centre, -math.pi / 2, level), _edge(parts, centre, math.pi / 2, level)


def _edge(parts: Components, start: float, end: float, level: float) -> float:
    """The ratio at which the set ends between two angles: behind the last point of a grid that is inside."""
    grid = np.linspace(start, end, 513)  # begins inside, at the ratio itself, and ends outside
    last = int(np.flatnonzero(_margin(parts, grid[:-1], level) >= 0)[-1])
    return math.tan(brentq(lambda angle: _margin(parts, np.array([angle]), level).item(), grid[last], grid[last + 1]))


def finite(value: float) -> float | None:
    """A number, or None for what is unbounded."""
    return float(value) if math.isfinite(value) else None


def _rows_interval(scores: Array, draws: int, seed: int, cluster: Array | None) -> tuple[float | None, float | None]:
    """Percentile interval of the ratio over paired resamples of rows or clusters, the weights kept; scores [models, n]."""
    samples = bootstrap_means(scores, draws, np.random.default_rng(seed), cluster)
    above, below = samples[:, 1] - samples[:, 0], samples[:, 2] - samples[:, 0]
    # The few resamples without a gap count as unbounded on the numerator's side.
    ratio = np.divide(above, below, out=np.where(above < 0, -np.inf, np.inf), where=below > 0)
    low, high = np.quantile(ratio, [0.025, 0.975], method="inverted_cdf")
    return finite(float(low)), finite(float(high))


def _given(seeds: int, varied: bool) -> str:
    if seeds == 1:
        return "one seed: given these weights, the error is that of the questions only"
    return f"{seeds} seeds, Student's t over seeds and questions" + ("" if varied else "; no arm varies with the seed")


def recovered(
    weak: Array, student: Array, ceiling: Array, *, cluster: Array | None = None, draws: int = DRAWS, seed: int = 0
) -> Gap:
    """PGR of a student.

    Args:
        weak: correctness (0/1) of the weak supervisor, shape [n] or [seeds, n].
        student: the same for the student, the same seeds and questions in the same order.
        ceiling: the same for the model trained on gold labels.
        cluster: each question's group where questions come in groups, shape [n].
        draws: bootstrap resamples of ``rows_ci95``.
        seed: of the bootstrap.
    """
    scores = np.stack([np.atleast_2d(x).astype(float) for x in (weak, student, ceiling)])
    _, seeds, n = scores.shape
    by_seed = scores.mean(axis=2)
    means = by_seed.mean(axis=1)
    if not np.isfinite(scores).all():
        reason = f"{int((~np.isfinite(scores)).any(axis=(0, 1)).sum())} of {n} questions have no score (NaN)"
        return Gap(None, None, False, reason, math.nan, (math.nan, math.nan))
    parts = gap_components(*scores, cluster=cluster)
    gap = float(means[2] - means[0])
    half = float(parts.half_width(np.array([0.0, 1.0])))
    gap_ci95 = float(parts.mean[1]) - half, float(parts.mean[1]) + half
    if gap_ci95[0] <= 0:
        reason = (
            f"the ceiling is not significantly above the weak supervisor (ceiling - weak = {gap:+.3f}, "
            f"95 % interval {gap_ci95[0]:+.3f} to {gap_ci95[1]:+.3f}, n = {n}"
            f"{f', {seeds} seeds' if seeds > 1 else ''}), so the ratio would be noise"
        )
        return Gap(None, None, False, reason, gap, gap_ci95)
    ends = fieller(parts)
    ratios = [float(s - w) / float(c - w) if c > w else None for w, s, c in by_seed.T]
    return Gap(
        float(means[1] - means[0]) / gap,
        (finite(ends[0]), finite(ends[1])),
        True,
        _given(seeds, bool(np.ptp(scores, axis=1).any())),
        gap,
        gap_ci95,
        _rows_interval(scores.mean(axis=1), draws, seed, cluster),
        tuple(ratios),
    )
