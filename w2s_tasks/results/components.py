"""Rows and seeds: the two sources of error of a mean over evaluation questions and training runs, kept apart.

Every seed is evaluated on the same questions, so the spread between seeds holds nothing of the error that comes from having
asked these questions and no others. A contrast z[s, i] (seed s, question i) is taken as crossed random effects,

    z[s, i] = mu + seed[s] + row[i] + rest[s, i],

and the variance of its mean is estimated from the analysis of variance of the two-way table:

    A = var(seed means) / S                          seeds, and what they share of the rest; S - 1 degrees of freedom
    B = var(row means) / n - var(rest) / (S n)       rows; G - 1 degrees of freedom (G clusters of rows, or n rows)
    variance of the mean = A + B

(the last term of B keeps the rest from being counted twice, as in two-way clustering: Cameron, Gelbach & Miller 2011). With
one seed A is unknown and left out: the result then holds *given these weights*. With several, the interval is never shorter
than the one given these weights, as it would be where A is small by chance.

The critical value goes from the rows' quantile to Student's t of S - 1 with the share w = A / (A + B) of the seeds,
t_rows + (t_seeds - t_rows) w^1.5 (1.2 for two seeds). Cochran's approximation has the exponent 1 and covers up to 97.8 %;
Satterthwaite's degrees of freedom cover as little as 92 % at 3 seeds and 87 % at 2; `w2s_tasks.results.coverage` shows 93 to
97 % for this one.

Two pseudo-rows, one right under the first model only and one under the second only, are added to every comparison (Bonett &
Price 2012, Statistics in Medicine 31), so that no interval shrinks to nothing where two models happen to agree everywhere.
With several seeds each seed's pair falls on other questions.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student_t

Array = npt.NDArray[Any]

EXPONENT, EXPONENT_OF_TWO = 1.5, 1.2
"""How fast the critical value grows from the rows' to the seeds', found by simulation."""
PSEUDO = 2
"""Pseudo-rows of a comparison."""


@dataclass(frozen=True)
class Components:
    """The mean of k contrasts, and its covariance by source. Leading dimensions are free: simulations stack repetitions.

    ``mean``: [..., k]; ``seeds``, ``rows`` and ``rest``: covariances of the mean, [..., k, k]; ``seed_means``: [..., k, S];
    ``seed_df``: S - 1, 0 with one seed; ``row_df``: clusters of rows minus 1.
    """

    mean: Array
    seeds: Array
    rows: Array
    rest: Array
    seed_means: Array
    seed_df: int
    row_df: int

    def variance(self, direction: Array) -> tuple[Array, Array]:
        """Variances (seeds, rows) of the linear combination with these weights, [..., k] -> [...]; never negative."""
        return _quadratic(self.seeds, direction), _quadratic(self.rows, direction)

    def half_width(self, direction: Array, level: float = 0.95) -> Array:
        """Half-width of the interval of that linear combination."""
        seeds, rows = self.variance(direction)
        both = critical(seeds, rows, self.seed_df, self.row_df, level) * np.sqrt(seeds + rows)
        given_weights = quantile(0.5 + level / 2, max(self.row_df, 1)) * np.sqrt(self.given_weights(direction))
        width: Array = np.maximum(both, given_weights)
        return width

    def broadcast(self) -> Components:
        """The same with a new last leading dimension, over which directions of shape [m, k] spread."""
        seeds, rows, rest = (m[..., None, :, :] for m in (self.seeds, self.rows, self.rest))
        return Components(self.mean[..., None, :], seeds, rows, rest, self.seed_means, self.seed_df, self.row_df)

    def given_weights(self, direction: Array) -> Array:
        """Variance of that combination over other questions, these models kept."""
        return _quadratic(self.rows + self.rest, direction)

    def p_value(self, direction: Array) -> float:
        """Two-sided p of that combination: 1 - the level of the interval that just holds 0. No leading dimensions."""
        (seeds, rows), size = self.variance(direction), abs(float(direction @ self.mean))
        if size == 0:
            return 1.0
        both = p_value(size / math.sqrt(seeds + rows), float(seeds), float(rows), self.seed_df, self.row_df)
        alone = 2 * float(student_t.sf(size / math.sqrt(self.given_weights(direction)), max(self.row_df, 1)))
        return max(both, alone)


def _quadratic(matrix: Array, direction: Array) -> Array:
    value: Array = np.maximum(np.einsum("...i,...ij,...j->...", direction, matrix, direction), 0)
    return value


def crossed(contrasts: Array, cluster: Array | None = None, pseudo: Array | None = None) -> Components:
    """Estimate the components of k contrasts.

    Args:
        contrasts: shape [..., k, S, n]; seeds in one order, the same questions in one order.
        cluster: number of each question's group, shape [n], where questions come in groups.
        pseudo: sum over the pseudo-rows of z zᵀ, shape [k, k]; None for none.
    """
    z = np.asarray(contrasts, dtype=float)
    *_, seeds, n = z.shape
    size = n + (PSEUDO if pseudo is not None else 0)
    over_rows, over_seeds = z.mean(axis=-1), z.mean(axis=-2)  # [..., k, S] and [..., k, n]
    plain = over_rows.mean(axis=-1)
    rest = _rest(z, over_rows, over_seeds, plain)
    shrink = n / size
    mean = plain * shrink
    sums = over_seeds - mean[..., None]
    if cluster is not None:
        sums = _cluster_sums(sums, cluster)
    clusters = sums.shape[-1]
    squares = np.einsum("...ig,...jg->...ij", sums, sums)
    if cluster is not None and clusters > 1:
        squares *= clusters / (clusters - 1)
    if pseudo is not None:
        squares = squares + pseudo / seeds + PSEUDO * mean[..., :, None] * mean[..., None, :]
    rest = rest * shrink**2
    rows = squares / size**2 - rest
    deviations = (over_rows - plain[..., None]) * shrink
    between = np.zeros_like(rows)
    if seeds > 1:
        between = np.einsum("...is,...js->...ij", deviations, deviations) / (seeds - 1) / seeds
    return Components(mean, between, rows, rest, over_rows, seeds - 1, clusters - 1)


def _cluster_sums(values: Array, cluster: Array) -> Array:
    """Sums over the last dimension within clusters: [..., n] -> [..., G]."""
    order = np.argsort(cluster, kind="stable")
    starts = np.flatnonzero(np.diff(np.asarray(cluster)[order], prepend=np.nan))
    sums: Array = np.add.reduceat(values[..., order], starts, axis=-1)
    return sums


def _rest(z: Array, over_rows: Array, over_seeds: Array, mean: Array) -> Array:
    """Covariance of the residuals of the two-way table as part of the mean's: shape [..., k, k]; 0 with one seed."""
    *_, seeds, n = z.shape
    if seeds == 1 or n == 1:
        return np.zeros((*mean.shape, mean.shape[-1]))
    total = np.einsum("...isn,...jsn->...ij", z, z)
    total -= n * np.einsum("...is,...js->...ij", over_rows, over_rows)
    total -= seeds * np.einsum("...in,...jn->...ij", over_seeds, over_seeds)
    total += seeds * n * np.einsum("...i,...j->...ij", mean, mean)
    rest: Array = total / ((seeds - 1) * (n - 1)) / (seeds * n)
    return rest


@functools.lru_cache(maxsize=4096)
def quantile(probability: float, df: int) -> float:
    """Quantile of Student's t; kept, because a search for an interval's ends asks for the same ones thousands of times."""
    return float(student_t.ppf(probability, df))


def critical(seeds: Array, rows: Array, seed_df: int, row_df: int, level: float = 0.95) -> Array:
    """Half-width of an interval in standard errors, given the variances of both sources (see the module's text).

    Args:
        seeds: variance of the mean that seeds bring, any shape.
        rows: variance of the mean that rows bring, the same shape.
        seed_df: seeds minus 1; 0 with one seed.
        row_df: clusters of rows minus 1.
        level: of the interval.
    """
    tail = 0.5 + level / 2
    of_rows = quantile(tail, max(row_df, 1))
    if seed_df == 0:
        return np.full(np.shape(seeds), of_rows)
    of_seeds = quantile(tail, seed_df)
    total = np.asarray(seeds + rows, dtype=float)
    share = np.divide(seeds, total, out=np.zeros_like(total), where=total > 0)
    return np.asarray(of_rows + (of_seeds - of_rows) * share ** (EXPONENT_OF_TWO if seed_df == 1 else EXPONENT))


def p_value(statistic: float, seeds: float, rows: float, seed_df: int, row_df: int) -> float:
    """Two-sided p of mean / standard error: 1 - the level of the interval that just holds 0."""
    from scipy.optimize import brentq

    size = abs(statistic)
    if not math.isfinite(size):
        return 0.0 if size > 0 else float("nan")
    if size == 0:
        return 1.0

    def beyond(log_p: float) -> float:
        level = 1 - math.exp(log_p)
        return float(critical(np.array(seeds), np.array(rows), seed_df, row_df, level)) - size

    smallest, largest = -30.0, -1e-12
    if beyond(largest) >= 0:
        return 1.0  # a difference of rounding errors
    return math.exp(brentq(beyond, smallest, largest)) if beyond(smallest) > 0 else math.exp(smallest)


def average(parts: Sequence[Components]) -> Components:
    """Unweighted mean of tasks: their questions are independent samples, their seeds are the same training runs.

    Args:
        parts: one entry a task, without leading dimensions, with equal seeds.
    """
    seed_means = np.mean([p.seed_means for p in parts], axis=0)  # [k, S]
    seeds = seed_means.shape[-1]
    deviations = seed_means - seed_means.mean(axis=-1, keepdims=True)
    between = deviations @ deviations.T / (seeds - 1) / seeds if seeds > 1 else np.zeros_like(parts[0].seeds)
    rows, rest = (np.sum(each, axis=0) / len(parts) ** 2 for each in ([p.rows for p in parts], [p.rest for p in parts]))
    mean = np.mean([p.mean for p in parts], axis=0)
    return Components(mean, between, rows, rest, seed_means, parts[0].seed_df, sum(p.row_df for p in parts))
