"""Intervals and paired comparisons: no accuracy without n and error, no comparison that is not paired."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import betainc
from scipy.stats import binom, norm

from w2s_tasks.results.clusters import SHARE_UNIT, Clusters
from w2s_tasks.results.components import FEW, Components, crossed, quantile

Array = npt.NDArray[Any]
Z95 = float(norm.ppf(0.975))


def share_interval(right: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """Mid-p interval of a share: what the exact binomial test keeps that counts half of the observed count's probability.

    Lancaster (1961, JASA 56); Berry & Armitage (1995, The Statistician 44); where all trials came out alike, Clopper and
    Pearson's bound. It covers 92 % or more at any share from ten trials on; Wilson's falls to 84 % for shares near 1.

    Args:
        right: number of successes.
        n: number of trials, above 0; effective numbers, which need not be whole, where trials come in clusters.
        level: of the interval.
    """
    tail = (1 - level) / 2

    def above(share: float) -> float:
        """Probability of more successes, and half of that of as many."""
        return float(betainc(right + 1, n - right, share) + betainc(right, n - right + 1, share)) / 2

    if right <= 0 or right >= n:
        alone = tail ** (1 / n)
        return (0.0, 1 - alone) if right <= 0 else (alone, 1.0)
    return float(brentq(lambda p: above(p) - tail, 0, 1)), float(brentq(lambda p: above(p) - (1 - tail), 0, 1))


def accuracy_interval(correct: Array, cluster: Array | None = None) -> tuple[float, float]:
    """95 % interval of an accuracy, given these weights; with clusters, and over seeds, over the effective number of rows.

    After Korn & Graubard (1998, Survey Methodology 24), with the number lowered further where few large clusters decide.
    Seeds that answer alike add no rows, seeds that err independently as many rows again.

    Args:
        correct: 0/1 a unit, shape [n] or [seeds, n].
        cluster: each unit's group where units come in groups, shape [n].
    """
    table = np.atleast_2d(correct)
    seeds, n = table.shape
    share = float(table.mean())
    away = table.mean(axis=0) - share
    alike = float(((away**2).sum() + FEW * SHARE_UNIT) / (n * share * (1 - share) + FEW * SHARE_UNIT))
    worth = n / max(1 / seeds, alike)
    if cluster is not None:
        clusters = Clusters.of(cluster)
        effect = clusters.effect(away[None], SHARE_UNIT)
        unequal = quantile(0.975, max(1, len(clusters.sizes) - 1)) / quantile(0.975, clusters.degrees(effect))
        worth = float(worth / effect * unequal**2)
    return share_interval(share * worth, worth)


@dataclass(frozen=True)
class Difference:
    """Accuracy of one model minus another's on the same questions, with a 95 % interval and a two-sided p.

    ``n_seeds`` > 1: a mean over seeds, whose spread the interval includes; 1: it holds given these weights.
    ``discordance`` is the share of questions that one model has right and the other wrong.
    """

    value: float
    """Difference of shares from -1 to 1; .01 is a point."""
    stderr: float
    """Its standard error."""
    low: float
    """Lower end of its 95 % interval."""
    high: float
    """Upper end of its 95 % interval."""
    p: float
    """Two-sided p of no difference."""
    n: int
    """Questions."""
    n_seeds: int = 1
    """Seeds that it is a mean over."""
    discordance: float | None = None
    """Share of questions that just one of the two has right, 0 to 1."""


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
    return sign_flip_p(delta if cluster is None else Clusters.of(cluster).sums(delta))


def difference_of(parts: Components, n: int, *, exact: float | None = None, discordance: float | None = None) -> Difference:
    """The first contrast of `parts` with its interval.

    p and interval agree: p < .05 exactly where the interval leaves 0 out. With an exact test beside it a difference has to
    pass both, so p is the larger of the two, and the interval reaches to 0 where the exact test keeps it.

    Args:
        parts: from `w2s_tasks.results.components`, without leading dimensions.
        n: questions.
        exact: p of an exact test, where there is one.
        discordance: share of questions on which the models differ.
    """
    first = np.eye(len(parts.mean))[0]
    seeds, rows = (float(v) for v in parts.variance(first))
    # The pseudo-rows pull the centre towards 0 by 2 / (n + 2) of it; the estimate itself stays plain.
    value, centre, half = float(parts.seed_means[0].mean()), float(parts.mean[0]), float(parts.half_width(first))
    low, high, p = max(-1.0, centre - half), min(1.0, centre + half), parts.p_value(first)
    if exact is not None and exact >= 0.05:
        low, high = min(low, 0.0), max(high, 0.0)
    p = p if exact is None else max(p, exact)
    return Difference(value, math.sqrt(seeds + rows), low, high, p, n, parts.seed_df + 1, discordance)


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
        are any. With one seed it has to pass an exact test too: McNemar's, or the sign-flip test over clusters.

    Raises:
        ValueError: other shapes.
    """
    parts = paired_components(first, second, cluster)
    delta = np.atleast_2d(first - second)
    exact = _exact_p(delta.ravel(), cluster) if len(delta) == 1 else None
    return difference_of(parts, delta.shape[1], exact=exact, discordance=float((delta != 0).mean()))


def stretched(ends: tuple[float, float], parts: Components) -> tuple[float, float]:
    """The interval of an accuracy, made to hold that of its components too, between 0 and 1."""
    centre, half = parts.mean.item(), float(parts.half_width(np.ones(1)))
    return max(0.0, min(ends[0], centre - half)), min(1.0, max(ends[1], centre + half))


def mean_accuracy(correct: Array, cluster: Array | None = None) -> tuple[float, float, float]:
    """Accuracy over seeds and rows with its 95 % interval.

    With one seed `accuracy_interval`. With several, Student's t over both sources of error, which is stretched to hold
    `accuracy_interval` too: seeds that collapse to opposite classes would have no error at all on balanced labels.

    Args:
        correct: 0/1 a unit, shape [seeds, n].
        cluster: each unit's group where units come in groups, shape [n].
    """
    ends = accuracy_interval(correct, cluster)
    if np.ptp(correct, axis=0).any():  # seeds differ
        ends = stretched(ends, crossed(correct[None], cluster))
    return float(correct.mean()), *ends


def holm(p: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p-values of one family, in the order given."""
    values = np.asarray(p, dtype=float)
    order = np.argsort(values)
    stepped = np.maximum.accumulate(values[order] * (len(values) - np.arange(len(values))))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(stepped, 1)
    return [float(x) for x in adjusted]


def bootstrap_means(scores: Array, draws: int, rng: np.random.Generator, cluster: Array | None = None) -> Array:
    """Means of rows, or of whole clusters of rows, resampled with replacement, the same ones for every series.

    Args:
        scores: shape [series, n].
        draws: number of resamples.
        rng: where the resamples come from.
        cluster: each row's group where rows come in groups, shape [n].

    Returns:
        Shape [draws, series].
    """
    sums = np.vstack([scores, np.ones(scores.shape[1])])
    if cluster is not None:
        sums = Clusters.of(cluster).sums(sums)
    # Equal columns are interchangeable: resampling n of them is one multinomial draw over the distinct patterns.
    patterns, counts = np.unique(sums.T, axis=0, return_counts=True)
    weights = rng.multinomial(sums.shape[1], counts / sums.shape[1], size=draws)
    totals = weights @ patterns
    return totals[:, :-1] / totals[:, -1:]
