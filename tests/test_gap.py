"""PGR and its interval: hand-made cases, the closed form of Fieller, the bootstrap, and when there is no number."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import t

from w2s_tasks.results.gap import fieller, gap_components, in_fieller_set, recovered


def _nested(n: int, *shares: float) -> list[np.ndarray]:
    """Models that are right on nested sets of questions: the better one on all of the worse one's."""
    return [(np.arange(n) < round(n * share)).astype(float) for share in shares]


def _drawn(n: int, *shares: float, seed: int = 4, noise: float = 0.2) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    difficulty = rng.random(n)
    return [(difficulty + noise * rng.standard_normal(n) < p).astype(float) for p in shares]


def test_pgr_from_the_studys_counts():
    gap = recovered(*_nested(872, 770 / 872, 837 / 872, 841 / 872))
    assert gap.defined
    assert gap.pgr == pytest.approx((837 - 770) / (841 - 770))
    assert gap.ci95[0] < gap.pgr < gap.ci95[1]
    assert gap.per_seed == (pytest.approx(gap.pgr),)


def test_pgr_is_undefined_over_an_insignificant_gap_and_says_why():
    rng = np.random.default_rng(0)
    weak, student, ceiling = ((rng.random(300) < p).astype(float) for p in (0.8, 0.8, 0.8))
    gap = recovered(weak, student, ceiling)
    assert (gap.defined, gap.pgr, gap.ci95, gap.rows_ci95) == (False, None, None, None)
    assert "not significantly above" in gap.reason


def test_a_ceiling_below_the_supervisor_defines_nothing():
    gap = recovered(*_nested(600, 0.9, 0.7, 0.6))
    assert not gap.defined
    assert gap.gap < 0


def test_pgr_is_never_clipped():
    assert recovered(*_nested(1000, 0.7, 0.6, 0.9)).pgr == pytest.approx(-0.5)
    assert recovered(*_nested(1000, 0.7, 0.95, 0.9)).pgr == pytest.approx(1.25)


@pytest.mark.parametrize("n", [150, 872, 4000])
def test_the_interval_is_fiellers_closed_form_with_one_seed(n):
    """The roots of (N - r D)^2 = t^2 V(r) in r, from the covariance of the means of the two contrasts."""
    weak, student, ceiling = _drawn(n, 0.65, 0.75, 0.9)
    parts = gap_components(*(x[None] for x in (weak, student, ceiling)))
    (a, b), v = parts.mean, parts.rows
    z2 = t.ppf(0.975, n - 1) ** 2
    quadratic = [b**2 - z2 * v[1, 1], -2 * (a * b - z2 * v[0, 1]), a**2 - z2 * v[0, 0]]
    assert fieller(parts) == pytest.approx(sorted(np.roots(quadratic)), abs=1e-9)
    # Without the pseudo-rows this is the textbook's covariance of the mean.
    plain = np.cov(np.stack([student - weak, ceiling - weak]), ddof=0) / n
    assert v == pytest.approx(plain, rel=0.2 if n < 500 else 0.05)


def test_the_share_of_a_gap_is_the_same_counted_in_errors():
    """Errors for right answers turn the sign of numerator and gap: the ratio and its interval stay."""
    right = [x[None] for x in _drawn(800, 0.65, 0.75, 0.9)]
    interval = fieller(gap_components(*right))
    assert 0 < interval[0] < interval[1] < 1
    assert fieller(gap_components(*(1 - x for x in right))) == pytest.approx(interval)


def test_fieller_and_the_paired_bootstrap_agree():
    found = recovered(*_drawn(2000, 0.7, 0.8, 0.9))
    assert found.ci95 == pytest.approx(found.rows_ci95, abs=0.02)


def test_the_set_is_unbounded_exactly_where_the_gap_is_not_significant():
    seen = set()
    for seed in range(60):
        weak, student, ceiling = _drawn(250, 0.7, 0.72, 0.76, seed=seed)
        gap = recovered(weak, student, ceiling, draws=10)
        parts = gap_components(*(x[None] for x in (weak, student, ceiling)))
        ends = fieller(parts)
        bounded = all(math.isfinite(x) for x in ends)
        assert bounded == (gap.gap_ci95[0] > 0 or gap.gap_ci95[1] < 0)
        assert gap.defined == (gap.gap_ci95[0] > 0)
        seen.add(bounded)
    assert seen == {True, False}


@pytest.mark.parametrize("seeds", [1, 3, 8])
def test_the_ends_are_where_the_contrast_stops_being_significant(seeds):
    rng = np.random.default_rng(2)
    scores = [
        np.stack([_drawn(600, p + 0.02 * rng.standard_normal(), seed=s)[0] for s in range(seeds)]) for p in (0.6, 0.7, 0.85)
    ]
    parts = gap_components(*scores)
    low, high = fieller(parts)
    inside = in_fieller_set(parts, np.array([low + 1e-6, high - 1e-6, low - 1e-6, high + 1e-6]))
    assert inside.tolist() == [True, True, False, False]


def test_pgr_of_several_seeds_is_wider_than_of_one_where_seeds_differ():
    rng = np.random.default_rng(2)
    weak = np.tile(_nested(800, 0.7)[0], (4, 1))
    ceiling = np.tile(_nested(800, 0.9)[0], (4, 1))
    student = rng.permuted(np.stack([_nested(800, share)[0] for share in (0.7, 0.75, 0.85, 0.9)]), axis=1)
    several = recovered(weak, student, ceiling)
    one = recovered(weak[:1], student[1:2], ceiling[:1])
    assert several.ci95[1] - several.ci95[0] > one.ci95[1] - one.ci95[0]
    # The questions alone would promise more than the seeds hold.
    assert several.ci95[1] - several.ci95[0] > 1.5 * (several.rows_ci95[1] - several.rows_ci95[0])
    assert several.reason.startswith("4 seeds")
    assert one.reason.startswith("one seed: given these weights")
    assert several.per_seed == pytest.approx((0, 0.25, 0.75, 1), abs=0.01)


def test_a_student_equal_to_the_ceiling_is_not_certain_to_be_so():
    weak, ceiling = _nested(100, 0.6, 0.8)
    found = recovered(weak, ceiling, ceiling)
    assert found.pgr == 1
    assert found.ci95[0] < 1 < found.ci95[1]


def test_a_seed_without_a_gap_has_no_pgr_of_its_own():
    weak = np.stack(_nested(500, 0.7, 0.7, 0.7))
    ceiling = np.stack(_nested(500, 0.9, 0.88, 0.7))
    assert recovered(weak, weak, ceiling, draws=10).per_seed in ((), (0.0, 0.0, None))
