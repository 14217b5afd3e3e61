"""Intervals, paired differences and PGR against references and by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from w2s_tasks.results.gap import recovered
from w2s_tasks.results.stats import bootstrap_means, paired_difference, wilson


@pytest.mark.parametrize(("right", "n"), [(0, 10), (7, 10), (770, 872), (872, 872)])
def test_wilson_equals_scipy(right, n):
    reference = binomtest(right, n).proportion_ci(method="wilson")
    assert wilson(right, n) == pytest.approx((reference.low, reference.high), abs=1e-12)


def test_paired_difference_uses_only_the_questions_that_differ():
    first, second = np.array([1.0] * 80 + [0] * 20), np.array([1.0] * 70 + [0] * 30)
    found = paired_difference(first, second)
    assert found.value == pytest.approx(0.1)
    assert found.p == pytest.approx(binomtest(10, 10).pvalue)
    assert found.stderr < np.hypot(first.std(), second.std()) / 10


def test_paired_difference_with_clusters_is_wider_for_equal_rows():
    rng = np.random.default_rng(0)
    first, second = (np.repeat(rng.integers(2, size=50), 4).astype(float) for _ in range(2))
    alone = paired_difference(first, second)
    grouped = paired_difference(first, second, np.repeat(np.arange(50), 4))
    assert grouped.stderr == pytest.approx(2 * alone.stderr, rel=1e-6)


def test_bootstrap_means_have_the_right_spread_and_keep_the_pairing():
    rng = np.random.default_rng(1)
    scores = (rng.random((2, 400)) < 0.7).astype(float)
    scores[1] = scores[0]
    means = bootstrap_means(scores, 4000, rng)
    assert np.array_equal(means[:, 0], means[:, 1])
    assert means[:, 0].std() == pytest.approx(scores[0].std() / 20, rel=0.05)


def _nested(n: int, *shares: float) -> list[np.ndarray]:
    """Models that are right on nested sets of questions: the better one on all of the worse one's."""
    return [(np.arange(n) < round(n * share)).astype(float) for share in shares]


def test_pgr_from_the_studys_counts():
    weak, student, ceiling = _nested(872, 770 / 872, 837 / 872, 841 / 872)
    gap = recovered(weak, student, ceiling)
    assert gap.defined
    assert gap.pgr == pytest.approx((837 - 770) / (841 - 770))
    assert gap.ci95 is not None
    assert gap.ci95[0] < gap.pgr < gap.ci95[1]


def test_pgr_is_undefined_over_an_insignificant_gap_and_says_why():
    rng = np.random.default_rng(0)
    weak, student, ceiling = ((rng.random(300) < p).astype(float) for p in (0.8, 0.8, 0.8))
    gap = recovered(weak, student, ceiling)
    assert (gap.defined, gap.pgr, gap.ci95) == (False, None, None)
    assert "not significantly above" in gap.reason


def test_pgr_is_never_clipped():
    weak, student, ceiling = _nested(1000, 0.7, 0.6, 0.9)
    assert recovered(weak, student, ceiling).pgr == pytest.approx(-0.5)
    weak, student, ceiling = _nested(1000, 0.7, 0.95, 0.9)
    assert recovered(weak, student, ceiling).pgr == pytest.approx(1.25)


def test_pgr_of_several_seeds_is_wider_than_of_one_where_seeds_differ():
    rng = np.random.default_rng(2)
    weak = np.tile(_nested(800, 0.7)[0], (4, 1))
    ceiling = np.tile(_nested(800, 0.9)[0], (4, 1))
    student = np.stack([_nested(800, share)[0] for share in (0.7, 0.75, 0.85, 0.9)])
    student = rng.permuted(student, axis=1)
    several = recovered(weak, student, ceiling)
    one = recovered(weak[:1], student[1:2], ceiling[:1])
    assert several.ci95[1] - several.ci95[0] > one.ci95[1] - one.ci95[0]
    assert "4 seeds" in several.reason


def _fieller(weak, student, ceiling) -> tuple[float, float]:
    """Paired Fieller interval of the ratio of two means."""
    a, b = student - weak, ceiling - weak
    n, z2 = len(a), 1.959964**2
    ma, mb = a.mean(), b.mean()
    va, vb, vab = a.var(ddof=1) / n, b.var(ddof=1) / n, np.cov(a, b)[0, 1] / n
    qa, qb, qc = mb**2 - z2 * vb, -2 * (ma * mb - z2 * vab), ma**2 - z2 * va
    root = np.sqrt(qb**2 - 4 * qa * qc)
    return (-qb - root) / (2 * qa), (-qb + root) / (2 * qa)


def test_pgr_interval_agrees_with_fieller():
    rng = np.random.default_rng(4)
    difficulty = rng.random(2000)
    weak, student, ceiling = ((difficulty + 0.2 * rng.standard_normal(2000) < p).astype(float) for p in (0.7, 0.8, 0.9))
    found = recovered(weak, student, ceiling)
    assert found.ci95 == pytest.approx(_fieller(weak, student, ceiling), abs=0.02)


def test_pgr_interval_covers_the_truth():
    rng = np.random.default_rng(9)
    inside = 0
    for i in range(200):
        difficulty = rng.random(600)
        weak, student, ceiling = ((difficulty + 0.3 * (rng.random(600) - 0.5) < p).astype(float) for p in (0.6, 0.7, 0.8))
        found = recovered(weak, student, ceiling, draws=1000, seed=i)
        inside += found.defined and found.ci95[0] <= 0.5 <= found.ci95[1]
    assert 180 <= inside <= 199
