"""Intervals and paired comparisons: no accuracy without n and error, no comparison that is not paired."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest, norm

from w2s_tasks.metrics import clustered_stderr

Array = npt.NDArray[Any]
Z95 = float(norm.ppf(0.975))


def wilson(right: float, n: int) -> tuple[float, float]:
    """95 % Wilson score interval of a share.

    Args:
        right: number of successes.
        n: number of trials, at least 1.
    """
    p, z2 = right / n, Z95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


@dataclass(frozen=True)
class Difference:
    """Accuracy of one model minus another's on the same questions, with a 95 % interval and a two-sided p."""

    value: float
    stderr: float
    low: float
    high: float
    p: float
    n: int


def paired_difference(first: Array, second: Array, cluster: Array | None = None) -> Difference:
    """Compare two models question by question (Miller 2024, arXiv 2411.00640, section 4).

    Args:
        first: 0/1 a unit, shape [n].
        second: 0/1 for the same units in the same order, shape [n].
        cluster: number of each unit's group where units come in groups.

    Returns:
        The mean difference; p from the exact McNemar test, or from the clustered z where units are grouped.
    """
    if first.shape != second.shape:
        raise ValueError(f"paired comparison of {first.shape} with {second.shape} units")
    delta = first - second
    n = len(delta)
    stderr = clustered_stderr(delta, cluster if cluster is not None else np.arange(n))
    value = float(delta.mean())
    if cluster is None:
        wins, losses = int((delta > 0).sum()), int((delta < 0).sum())
        p = float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0
    else:
        p = float(2 * norm.sf(abs(value) / stderr)) if stderr > 0 else 1.0
    return Difference(value, stderr, value - Z95 * stderr, value + Z95 * stderr, p, n)


def bootstrap_means(scores: Array, draws: int, rng: np.random.Generator) -> Array:
    """Means of rows resampled with replacement, the same rows for every series.

    Args:
        scores: shape [series, n].
        draws: number of resamples.
        rng: where the resamples come from.

    Returns:
        Shape [draws, series].
    """
    n = scores.shape[1]
    # Equal columns are interchangeable: resampling n rows is one multinomial draw over the distinct patterns.
    patterns, counts = np.unique(scores.T, axis=0, return_counts=True)
    weights = rng.multinomial(n, counts / n, size=draws)
    means: Array = weights @ patterns / n
    return means
