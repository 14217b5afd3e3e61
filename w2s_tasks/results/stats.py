"""Intervals and paired comparisons: no accuracy without n and error, no comparison that is not paired."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import binom, binomtest, norm

from w2s_tasks.metrics import clustered_stderr
from w2s_tasks.results.components import Components, crossed, p_value

Array = npt.NDArray[Any]
Z95 = float(norm.ppf(0.975))


def wilson(right: float, n: float) -> tuple[float, float]:
    """95 % Wilson score interval of a share.

    Args:
        right: number of successes.
        n: number of trials, at least 1; an effective number where trials come in clusters.
    """
    p, z2 = right / n, Z95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def design_effect(values: Array, cluster: Array | None) -> float:
    """Variance of a mean with clusters over that without, between 1 and the largest cluster (Kish 1965).

    Args:
        values: one value a row, shape [n].
        cluster: number of each row's group; None where rows are independent.
    """
    if cluster is None:
        return 1.0
    largest = float(np.unique(cluster, return_counts=True)[1].max())
    alone = float(values.std()) / math.sqrt(len(values))
    if alone == 0:
        return largest
    return min(largest, max(1.0, (clustered_stderr(values, cluster) / alone) ** 2))


def accuracy_interval(correct: Array, cluster: Array | None = None) -> tuple[float, float]:
    """95 % Wilson interval of an accuracy; with clusters over the effective number of rows (Korn & Graubard 1998).

    Args:
        correct: 0/1 a unit, shape [n].
        cluster: number of each unit's group where units come in groups.
    """
    n = len(correct) / design_effect(correct, cluster)
    return wilson(float(correct.mean()) * n, n)


@dataclass(frozen=True)
class Difference:
    """Accuracy of one model minus another's on the same questions, with a 95 % interval and a two-sided p.

    ``seeds`` > 1: a mean over seeds, whose spread the interval includes; 1: it holds given these weights.
    ``discordance`` is the share of questions that one model has right and the other wrong.
    """

    value: float
    stderr: float
    low: float
    high: float
    p: float
    n: int
    seeds: int = 1
    discordance: float | None = None


def sign_flip_p(sums: Array) -> float:
    """Exact two-sided p of the sign-flip test on whole-numbered sums (of +1, 0, -1 over the rows of a cluster).

    Under the null hypothesis each cluster's sum is as likely with the other sign. The distribution of the total over all
    sign patterns is built by convolution, so that no pattern is sampled; with clusters of one row it is McNemar's test.

    Args:
        sums: one sum a cluster, integers, shape [G].
    """
    sizes, counts = np.unique(np.abs(np.rint(sums)).astype(int), return_counts=True)
    distribution = np.ones(1)
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        if size:
            part = np.zeros(2 * size * count + 1)
            part[:: 2 * size] = binom.pmf(np.arange(count + 1), count, 0.5)
            distribution = np.convolve(distribution, part)
    centre = len(distribution) // 2
    far = np.abs(np.arange(len(distribution)) - centre) >= abs(int(np.rint(sums).sum()))
    return min(1.0, float(distribution[far].sum()))


def _exact_p(delta: Array, cluster: Array | None) -> float:
    if cluster is None:
        wins, losses = int((delta > 0).sum()), int((delta < 0).sum())
        return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0
    _, index = np.unique(cluster, return_inverse=True)
    return sign_flip_p(np.bincount(index, weights=delta))


def difference_of(parts: Components, n: int, *, p: float | None = None, discordance: float | None = None) -> Difference:
    """The first contrast of `parts` with its interval.

    Args:
        parts: from `w2s_tasks.results.components`, without leading dimensions.
        n: questions.
        p: of an exact test where there is one; by default from the interval's own distribution.
        discordance: share of questions on which the models differ.
    """
    first = np.eye(len(parts.mean))[0]
    seeds, rows = (float(v) for v in parts.variance(first))
    stderr, half = math.sqrt(seeds + rows), float(parts.half_width(first))
    value, centre = float(parts.seed_means[0].mean()), float(parts.mean[0])
    if p is None:
        p = p_value(centre / stderr, seeds, rows, parts.seed_df, parts.row_df) if stderr > 0 else float(value == 0)
    # The pseudo-rows pull the centre towards 0 by 2 / (n + 2) of it; the estimate itself stays plain.
    return Difference(value, stderr, centre - half, centre + half, p, n, parts.seed_df + 1, discordance)


PAIR = np.array([[2.0]])
"""Pseudo-rows of one comparison: +1 and -1."""


def paired_components(first: Array, second: Array, cluster: Array | None = None) -> Components:
    """Components of variance of first - second; 0/1 a unit, shape [n] or [seeds, n], the same units in the same order.

    Raises:
        ValueError: other shapes.
    """
    if first.shape != second.shape:
        raise ValueError(f"paired comparison of {first.shape} with {second.shape} units")
    return crossed(np.atleast_2d(first - second)[None], cluster, PAIR)


def paired_difference(first: Array, second: Array, cluster: Array | None = None) -> Difference:
    """Compare two models question by question (Miller 2024, arXiv 2411.00640, section 4).

    Args:
        first: 0/1 a unit, shape [n], or [seeds, n] where each was trained several times.
        second: the same for the other model, the same units in the same order.
        cluster: number of each unit's group where units come in groups, shape [n].

    Returns:
        The mean difference with the adjusted Wald interval of Bonett & Price (2012), clustered and over seeds where there
        are any. With one seed p is exact: McNemar's test, or the sign-flip test over clusters.

    Raises:
        ValueError: other shapes.
    """
    parts = paired_components(first, second, cluster)
    delta = np.atleast_2d(first - second)
    exact = _exact_p(delta[0], cluster) if len(delta) == 1 else None
    return difference_of(parts, delta.shape[1], p=exact, discordance=float((delta != 0).mean()))


def mean_accuracy(correct: Array, cluster: Array | None = None) -> tuple[float, float, float]:
    """Accuracy over seeds and rows, with a 95 % interval: Wilson's with one seed, else from both sources of error.

    Args:
        correct: 0/1 a unit, shape [seeds, n].
        cluster: number of each unit's group where units come in groups.
    """
    if len(correct) == 1 or (correct == correct[0]).all():
        return (float(correct[0].mean()), *accuracy_interval(correct[0], cluster))
    found = difference_of(crossed(correct[None], cluster), correct.shape[1])
    return found.value, max(0.0, found.low), min(1.0, found.high)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p-values of one family, in the order given."""
    values = np.asarray(p, dtype=float)
    order = np.argsort(values)
    stepped = np.maximum.accumulate(values[order] * (len(values) - np.arange(len(values))))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(stepped, 1)
    return [float(x) for x in adjusted]


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
