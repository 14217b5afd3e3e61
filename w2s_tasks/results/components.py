"""Rows and seeds: the two sources of error of a mean over evaluation questions and training runs, kept apart.

Every seed is evaluated on the same questions, so the spread between seeds holds nothing of the error that comes from having
asked these questions and no others. A contrast z[s, i] (seed s, question i) is taken as crossed random effects,

    z[s, i] = mu + seed[s] + row[i] + rest[s, i],

and the variance of its mean is estimated from the analysis of variance of the two-way table:

    A = var(seed means) / S                          seeds, and what they share of the rest; S - 1 degrees of freedom
    B = var(row means) / n - var(rest) / (S n)       rows
    variance of the mean = A + B

(the last term of B keeps the rest from being counted twice, as in two-way clustering: Cameron, Gelbach & Miller 2011). With
one seed A is unknown and left out: the result then holds *given these weights*. With several, the interval is never shorter
than the one given these weights, as it would be where A is small by chance.

The critical value goes from the rows' quantile to Student's t of S - 1 with the share w = A / (A + B) of the seeds,
t_rows + (t_seeds - t_rows) w^1.5 (1.2 for two seeds). Cochran's approximation has the exponent 1 and covers up to 97.8 %;
Satterthwaite's degrees of freedom cover as little as 92 % at 3 seeds and 87 % at 2; `scripts/coverage` shows 93 to
97 % for this one.

Questions that come in groups (clusters) enter as the sums of their groups, each enlarged by what its share of the rows takes
from its residual (CR2: Bell & McCaffrey 2002, Survey Methodology 28), with the degrees of freedom that Satterthwaite's rule
gives for clusters of these sizes (`clusters.degrees`).

Two pseudo-rows, one right under the first model only and one under the second only, are added to every comparison (Bonett &
Price 2012, Statistics in Medicine 31), so that no interval shrinks to nothing where two models happen to agree everywhere.
In clusters a pseudo-row stands for a whole cluster that changes, in so far as clusters do (the design effect).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student_t

from w2s_tasks.results.clusters import SHARE_UNIT, Clusters

Array = npt.NDArray[Any]

EXPONENT, EXPONENT_OF_TWO = 1.5, 1.2
"""How fast the critical value grows from the rows' to the seeds', found by simulation."""
PSEUDO = 2
"""Pseudo-rows of a comparison."""
FEW = 4
"""Rows that differ at which seeds count as half independent of each other (`_pseudo_squares`)."""


@dataclass(frozen=True)
class Components:
    """The mean of k contrasts, and its covariance by source. Leading dimensions are free: simulations stack repetitions.

    ``mean``: [..., k]; ``seeds``, ``rows`` and ``rest``: covariances of the mean, [..., k, k]; ``seed_means``: [..., k, S];
    ``seed_df``: S - 1, 0 with one seed; ``row_df``: degrees of freedom of the rows, at least 1, [...]; ``effect``: design
    effect of the rows' clusters, [...], 1 without.
    """

    mean: Array
    seeds: Array
    rows: Array
    rest: Array
    seed_means: Array
    seed_df: int
    row_df: Array
    effect: Array

    def variance(self, direction: Array) -> tuple[Array, Array]:
        """Variances (seeds, rows) of the linear combination with these weights, [..., k] -> [...]; never negative."""
        return _quadratic(self.seeds, direction), _quadratic(self.rows, direction)

    def half_width(self, direction: Array, level: float = 0.95) -> Array:
        """Half-width of the interval of that linear combination."""
        seeds, rows = self.variance(direction)
        both = critical(seeds, rows, self.seed_df, self.row_df, level) * np.sqrt(seeds + rows)
        given_weights = quantile(0.5 + level / 2, self.row_df) * np.sqrt(self.given_weights(direction))
        return np.maximum(both, given_weights)

    def broadcast(self) -> Components:
        """The same with a new last leading dimension, over which directions of shape [m, k] spread."""
        seeds, rows, rest = (m[..., None, :, :] for m in (self.seeds, self.rows, self.rest))
        degrees = np.asarray(self.row_df)[..., None]
        return replace(self, mean=self.mean[..., None, :], seeds=seeds, rows=rows, rest=rest, row_df=degrees)

    def given_weights(self, direction: Array) -> Array:
        """Variance of that combination over other questions, these models kept."""
        return _quadratic(self.rows + self.rest, direction)

    def p_value(self, direction: Array) -> float:
        """Two-sided p of that combination: 1 - the level of the interval that just holds 0. No leading dimensions.

        1 where nothing differs, 0 where a difference has no error at all.
        """
        (seeds, rows), size = self.variance(direction), abs(float(direction @ self.mean))
        if size == 0:
            return 1.0
        degrees = float(self.row_df)
        both, alone = (_standardised(size, float(v)) for v in (seeds + rows, self.given_weights(direction)))
        return max(p_value(both, float(seeds), float(rows), self.seed_df, degrees), 2 * float(student_t.sf(alone, degrees)))


def _standardised(size: float, variance: float) -> float:
    return size / math.sqrt(variance) if variance > 0 else math.inf


def _quadratic(matrix: Array, direction: Array) -> Array:
    return np.maximum(np.einsum("...i,...ij,...j->...", direction, matrix, direction), 0)


def crossed(contrasts: Array, cluster: Array | None = None, pseudo: Array | None = None) -> Components:
    """Estimate the components of k contrasts.

    Args:
        contrasts: shape [..., k, S, n]; seeds in one order, the same questions in one order.
        cluster: each question's group, shape [n], where questions come in groups.
        pseudo: sum over the pseudo-rows of z zᵀ, shape [k, k]; None for none.
    """
    z = np.asarray(contrasts, dtype=float)
    *leading, _, seeds, n = z.shape
    over_rows, over_seeds = z.mean(axis=-1), z.mean(axis=-2)  # [..., k, S] and [..., k, n]
    plain = over_rows.mean(axis=-1)
    effect, degrees, clusters = np.ones(leading), np.full(leading, max(1.0, n - 1.0)), None
    added = 0 if pseudo is None else PSEUDO
    if cluster is not None:
        clusters = Clusters.of(np.asarray(cluster))
        effect = clusters.effect(over_seeds - plain[..., None], SHARE_UNIT if pseudo is None else 1.0)
        degrees = clusters.degrees(effect) + added
    size = (n + added * effect)[..., None]
    mean = plain * n / size
    squares = _squares(over_seeds - mean[..., None], clusters)
    if pseudo is not None:
        squares = squares + _pseudo_squares(z, mean, effect, pseudo)
    rest = _rest(z, over_rows, over_seeds, plain, clusters) / size[..., None] ** 2
    deviations = (over_rows - plain[..., None]) * (n / size)[..., None]
    between = np.einsum("...is,...js->...ij", deviations, deviations) / max(1, seeds - 1) / seeds
    return Components(mean, between, squares / size[..., None] ** 2 - rest, rest, over_rows, seeds - 1, degrees, effect)


def _pseudo_squares(z: Array, mean: Array, effect: Array, pseudo: Array) -> Array:
    """What the pseudo-rows add to the squares of the row means, [..., k, k].

    Each counts as a cluster of `effect` rows. Where many rows differ, each seed's pair falls on other questions; where few
    do, the seeds may answer alike because they must, as collapsed models do, and the pair is the same for all.
    """
    *_, k, seeds, _ = z.shape
    differing = np.square(z).sum(axis=(-3, -2, -1)) / (k * seeds * effect)
    alike = FEW / (FEW + differing)
    shared = (alike + (1 - alike) / seeds)[..., None, None]
    squares: Array = shared * pseudo + PSEUDO * mean[..., :, None] * mean[..., None, :]
    return squares * effect[..., None, None] ** 2


def _squares(values: Array, clusters: Clusters | None) -> Array:
    """Sum over rows, or over clusters of their enlarged sums, of v vᵀ: [..., k, n] -> [..., k, k]."""
    if clusters is not None:
        values = clusters.sums(values) * np.sqrt(clusters.enlarged)
    return np.einsum("...ig,...jg->...ij", values, values)


def _rest(z: Array, over_rows: Array, over_seeds: Array, mean: Array, clusters: Clusters | None) -> Array:
    """Squares of the residuals of the two-way table, as n^2 times their part of the mean's covariance; 0 with one seed.

    Returns:
        Shape [..., k, k].
    """
    *_, seeds, n = z.shape
    if seeds == 1 or n == 1:
        return np.zeros((*mean.shape, mean.shape[-1]))
    if clusters is not None:  # a seed may change its mind about a group as a whole
        residuals = z - over_rows[..., None] - over_seeds[..., None, :] + mean[..., None, None]
        sums = clusters.sums(residuals) * np.sqrt(clusters.enlarged)
        total = np.einsum("...isg,...jsg->...ij", sums, sums)
        return np.asarray(total / ((seeds - 1) * seeds))
    total = np.einsum("...isn,...jsn->...ij", z, z)
    total -= n * np.einsum("...is,...js->...ij", over_rows, over_rows)
    total -= seeds * np.einsum("...in,...jn->...ij", over_seeds, over_seeds)
    total += seeds * n * np.einsum("...i,...j->...ij", mean, mean)
    return total * n / ((seeds - 1) * (n - 1) * seeds)


@functools.lru_cache(maxsize=4096)
def _quantile(probability: float, df: float) -> float:
    return float(student_t.ppf(probability, df))


def quantile(probability: float, df: Array | float) -> Array:
    """Quantile of Student's t, of df's shape; kept, because a search for an interval's ends asks for the same ones often."""
    different, index = np.unique(np.asarray(df, dtype=float), return_inverse=True)
    if len(different) > 8:
        return np.asarray(student_t.ppf(probability, df))
    return np.array([_quantile(probability, float(d)) for d in different])[index].reshape(np.shape(df))


def critical(seeds: Array, rows: Array, seed_df: int, row_df: Array | float, level: float = 0.95) -> Array:
    """Half-width of an interval in standard errors, given the variances of both sources (see the module's text).

    Args:
        seeds: variance of the mean that seeds bring, any shape.
        rows: variance of the mean that rows bring, the same shape.
        seed_df: seeds minus 1; 0 with one seed.
        row_df: degrees of freedom of the rows, a shape that spreads over the variances'.
        level: of the interval.
    """
    tail = 0.5 + level / 2
    of_rows = quantile(tail, row_df)
    if seed_df == 0:
        return np.broadcast_to(of_rows, np.broadcast_shapes(np.shape(seeds), np.shape(of_rows)))
    total = np.asarray(seeds + rows, dtype=float)
    share = np.divide(seeds, total, out=np.zeros_like(total), where=total > 0)
    return between(of_rows, share, seed_df, level)


def between(rest: Array, share: Array, df: int, level: float = 0.95) -> Array:
    """Half-width in standard errors where a share of the variance is that of a few levels: see the module's text.

    Args:
        rest: half-width of what brings the rest of the variance.
        share: of the variance, 0 to 1, a shape that spreads over the first's.
        df: levels minus 1, above 0.
        level: of the interval.
    """
    return np.asarray(rest + (quantile(0.5 + level / 2, df) - rest) * share ** (EXPONENT_OF_TWO if df == 1 else EXPONENT))


def p_value(statistic: float, seeds: float, rows: float, seed_df: int, row_df: float) -> float:
    """Two-sided p of mean / standard error: 1 - the level of the interval that just holds 0."""
    from scipy.optimize import brentq

    size = abs(statistic)
    if math.isnan(size):
        return math.nan
    if math.isinf(size):
        return 0.0

    def beyond(log_p: float) -> float:
        level = 1 - math.exp(log_p)
        return float(critical(np.array(seeds), np.array(rows), seed_df, row_df, level)) - size

    smallest, largest = -30.0, -1e-12
    if beyond(largest) >= 0:
        return 1.0  # no difference, or one of rounding errors
    return math.exp(brentq(beyond, smallest, largest)) if beyond(smallest) > 0 else math.exp(smallest)


def average(parts: Sequence[Components]) -> Components:
    """Unweighted mean of tasks: their questions are independent samples, their seeds are the same training runs.

    The degrees of freedom are Satterthwaite's of the tasks' question parts.

    Args:
        parts: one entry a task, without leading dimensions, with equal seeds.
    """
    seed_means = np.mean([p.seed_means for p in parts], axis=0)  # [k, S]
    seeds = seed_means.shape[-1]
    deviations = seed_means - seed_means.mean(axis=-1, keepdims=True)
    between = deviations @ deviations.T / max(1, seeds - 1) / seeds
    rows, rest = (np.sum(each, axis=0) / len(parts) ** 2 for each in ([p.rows for p in parts], [p.rest for p in parts]))
    mean = np.mean([p.mean for p in parts], axis=0)
    of_task = np.array([max(0.0, float(np.trace(p.rows + p.rest))) for p in parts])
    degrees = np.array([float(p.row_df) for p in parts])
    whole = float((of_task**2 / degrees).sum())
    row_df = of_task.sum() ** 2 / whole if whole > 0 else degrees.sum()
    return Components(mean, between, rows, rest, seed_means, seeds - 1, np.asarray(row_df), np.ones(()))
