"""PGR, the performance gap recovered (Burns et al. 2023, arXiv 2312.09390): (student - weak) / (ceiling - weak).

The ratio over a gap that may be zero is noise, so it is given only where ceiling - weak is significantly above 0; it is
never clipped. Its interval comes from one joint, paired bootstrap over evaluation rows, and over seeds where there are
several.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from w2s_tasks.results.stats import bootstrap_means

Array = npt.NDArray[Any]
DRAWS = 10_000


@dataclass(frozen=True)
class Gap:
    """PGR with a 95 % interval (None where undefined or unbounded), and the gap that it stands on."""

    pgr: float | None
    ci95: tuple[float | None, float | None] | None
    defined: bool
    reason: str
    gap: float
    gap_ci95: tuple[float, float]


def _draw(scores: Array, draws: int, rng: np.random.Generator) -> Array:
    """Joint resamples of [models, seeds, n] correctness: means over rows and seeds, shape [draws, models]."""
    models, seeds, n = scores.shape
    means = bootstrap_means(scores.reshape(models * seeds, n), draws, rng).reshape(draws, models, seeds)
    if seeds == 1:
        return means[:, :, 0]
    picks = rng.integers(seeds, size=(draws, 1, seeds))
    return np.take_along_axis(means, np.broadcast_to(picks, means.shape), axis=2).mean(axis=2)


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def recovered(weak: Array, student: Array, ceiling: Array, *, draws: int = DRAWS, seed: int = 0) -> Gap:
    """PGR of a student.

    Args:
        weak: correctness (0/1) of the weak supervisor, shape [seeds, n].
        student: the same for the student, the same questions in the same order.
        ceiling: the same for the model trained on gold labels.
        draws: bootstrap resamples.
        seed: of the bootstrap.
    """
    scores = np.stack([np.atleast_2d(x).astype(float) for x in (weak, student, ceiling)])
    means = scores.mean(axis=(1, 2))
    gap = float(means[2] - means[0])
    samples = _draw(scores, draws, np.random.default_rng(seed))
    below = samples[:, 2] - samples[:, 0]
    gap_low, gap_high = (float(x) for x in np.quantile(below, [0.025, 0.975]))
    if gap_low <= 0:
        reason = (
            f"the ceiling is not significantly above the weak supervisor (ceiling - weak = {gap:+.3f}, "
            f"95 % interval {gap_low:+.3f} to {gap_high:+.3f}, n = {scores.shape[2]}), so the ratio would be noise"
        )
        return Gap(None, None, False, reason, gap, (gap_low, gap_high))
    above = samples[:, 1] - samples[:, 0]
    # The few resamples without a gap (at most 2.5 %) count as unbounded on the numerator's side.
    ratio = np.where(below > 0, above / np.where(below > 0, below, 1), np.where(above < 0, -np.inf, np.inf))
    low, high = np.quantile(ratio, [0.025, 0.975], method="inverted_cdf")
    seeds = scores.shape[1]
    reason = "given these weights: rows resampled, one seed" if seeds == 1 else f"rows and {seeds} seeds resampled"
    return Gap(float(means[1] - means[0]) / gap, (_finite(low), _finite(high)), True, reason, gap, (gap_low, gap_high))
