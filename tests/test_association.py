"""Rank correlations against scipy and their interval against its formula."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.stats import norm, rankdata, spearmanr

from w2s_tasks.results.association import rank_correlation


def test_rank_correlation_equals_scipy_and_is_undefined_with_few_points():
    rng = np.random.default_rng(9)
    x = rng.normal(size=7)
    y = x + rng.normal(size=7)
    found = rank_correlation(x, y)
    assert found.rho == pytest.approx(spearmanr(x, y).statistic)
    assert found.low < found.rho < found.high
    assert rank_correlation(x[:4], y[:4]).defined is False
    assert "at least 5" in rank_correlation(x[:4], y[:4]).reason
    assert rank_correlation(x, np.ones(7)).defined is rank_correlation(np.ones(7), x).defined is False
    assert rank_correlation(y > 0, x).defined
    assert rank_correlation([1, 2, 3, 4, 5], [1, 2, 3, 4, 5]).p == pytest.approx(2 / 120)
    # A mean over seeds of one and the same accuracy varies by rounding errors only; NaN has no rank; p is never 0.
    assert rank_correlation(x, [0.1 + 0.2, 0.3] * 3 + [0.3]).defined is False
    assert rank_correlation(x, [*y[:6], np.nan]).defined is False
    assert rank_correlation(range(12), range(12)).p == pytest.approx(2 / math.factorial(12))


def _fisher(rho: float, independent: float) -> tuple[float, float]:
    """Bonett & Wright's interval around a rho that is drawn in, by Fisher's transform written out."""
    drawn = rho * (1 - independent**-1.5)
    centre = math.log((1 + drawn) / (1 - drawn)) / 2
    half = norm.ppf(0.975) * math.sqrt((1 + drawn**2 / 2) / (independent - 3))
    low, high = ((math.exp(2 * z) - 1) / (math.exp(2 * z) + 1) for z in (centre - half, centre + half))
    return low, high


@pytest.mark.parametrize("n", [5, 6, 8, 9, 40])
def test_interval_and_p_are_those_of_their_formulas_with_ties(n):
    rng = np.random.default_rng(n)
    x, y = rng.integers(6, size=n).astype(float), rng.integers(4, size=n).astype(float)
    found, reference = rank_correlation(x, y), spearmanr(x, y)
    assert found.rho == pytest.approx(reference.statistic)
    assert (found.low, found.high) == pytest.approx(_fisher(found.rho, n))
    if n > 8:
        assert found.p == pytest.approx(reference.pvalue)
    else:
        ranks, others = rankdata(x), rankdata(y)[np.array(list(itertools.permutations(range(n))))]
        products = (others - others.mean(axis=1, keepdims=True)) @ (ranks - ranks.mean())
        assert found.p == pytest.approx((abs(products) >= abs(products[0]) - 1e-9).mean())
    assert (found.defined, found.n, found.clusters) == (True, n, n)


def test_points_of_a_cluster_count_as_one_in_the_interval():
    rng = np.random.default_rng(2)
    sizes = [1, 1, 1, 2, 3]  # worth 8^2 / 16 = 4
    cluster = [c for c, size in zip("abcde", sizes, strict=True) for _ in range(size)]
    x = rng.normal(size=8)
    y = x + rng.normal(size=8)
    found = rank_correlation(x, y, cluster)
    assert found.rho == pytest.approx(spearmanr(x, y).statistic)
    assert (found.low, found.high) == pytest.approx(_fisher(found.rho, 4))
    assert (found.p, found.n, found.clusters) == (None, 8, 5)
    assert "count as one" in found.reason
    # One point more in the largest cluster makes them worth 9^2 / 23 = 3.5; four clusters are too few whatever their sizes.
    unequal = rank_correlation([*x, 3.0], [*y, 0.0], [*cluster, "e"])
    assert (unequal.defined, unequal.n, unequal.clusters) == (False, 9, 5)
    assert "9 points of 5 arms, worth 3.5 independent ones" in unequal.reason
    assert not rank_correlation(x, y, list("aabbccdd")).defined
    # Clusters of one point each are independent points.
    assert rank_correlation(x, y, list("abcdefgh")) == rank_correlation(x, y)


def test_values_are_told_apart_to_nine_digits():
    level = np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    assert rank_correlation(level, 0.5 + 2e-9 * np.arange(5)).rho == pytest.approx(1)
    assert rank_correlation(level, 0.5 + 1e-10 * np.arange(5)).defined is False


def test_nothing_has_no_rank_correlation():
    found = rank_correlation([], [])
    assert (found.defined, found.n, found.clusters) == (False, 0, 0)
