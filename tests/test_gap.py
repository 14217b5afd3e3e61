"""PGR and its interval: hand-made cases, the closed form of Fieller, the bootstrap, and when there is no number."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import t

from w2s_tasks.results.components import Components
from w2s_tasks.results.gap import _rows_interval, fieller, gap_components, in_fieller_set, recovered
from w2s_tasks.results.stats import bootstrap_means, paired_components, paired_difference


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


@pytest.mark.parametrize(
    ("n", "shares", "seed", "low", "high"),
    [
        *((n, (0.65, 0.75, 0.9), 4, (0, 0.5), (0.4, 0.9)) for n in (150, 872, 4000)),
        (250, (0.7, 0.72, 0.76), 4, (-9, -7), (0, 1)),
        (250, (0.7, 0.72, 0.76), 6, (0, 1), (5, 7)),
        (400, (0.9, 0.75, 0.65), 4, (0, 0.5), (0.5, 1)),
    ],
    ids=["150", "872", "4000", "far below", "far above", "negative gap"],
)
def test_the_interval_is_fiellers_closed_form_with_one_seed(n, shares, seed, low, high):
    """The roots of (N - r D)^2 = t^2 V(r) in r, from the covariance of the means of the two contrasts."""
    weak, student, ceiling = _drawn(n, *shares, seed=seed)
    parts = gap_components(*(x[None] for x in (weak, student, ceiling)))
    (a, b), v = parts.mean, parts.rows
    z2 = t.ppf(0.975, n - 1) ** 2
    quadratic = [b**2 - z2 * v[1, 1], -2 * (a * b - z2 * v[0, 1]), a**2 - z2 * v[0, 0]]
    found = fieller(parts)
    assert found == pytest.approx(sorted(np.roots(quadratic)), abs=1e-9)
    assert low[0] < found[0] < low[1]
    assert high[0] < found[1] < high[1]
    # Without the pseudo-rows this is the textbook's covariance of the mean.
    plain = np.cov(np.stack([student - weak, ceiling - weak]), ddof=0) / n
    assert v == pytest.approx(plain, rel=0.2 if n < 500 else 0.05)


@pytest.mark.parametrize("student", [0.03, -0.03])
def test_a_gap_that_is_barely_significant_has_an_interval_that_is_all_but_unbounded(student):
    """Independent errors of .04 and t / 1.00001 of the gap: the ends are roots of one equation, one in the thousands."""
    quantile, gap = t.ppf(0.975, 99), 0.1
    errors = np.diag([0.04, gap / quantile / 1.00001]) ** 2
    parts = Components(
        np.array([student, gap]), 0 * errors, errors, 0 * errors, np.zeros((2, 1)), 0, np.array(99.0), np.ones(())
    )
    quadratic = [gap**2 - quantile**2 * errors[1, 1], -2 * student * gap, student**2 - quantile**2 * errors[0, 0]]
    found = fieller(parts)
    assert found == pytest.approx(sorted(np.roots(quadratic)), rel=1e-3)
    assert max(abs(x) for x in found) > 1000


def test_the_share_of_a_gap_is_the_same_counted_in_errors():
    """Errors for right answers turn the sign of numerator and gap: the ratio and its interval stay."""
    right = [x[None] for x in _drawn(800, 0.65, 0.75, 0.9)]
    interval = fieller(gap_components(*right))
    assert 0 < interval[0] < interval[1] < 1
    assert fieller(gap_components(*(1 - x for x in right))) == pytest.approx(interval)


def test_fieller_and_the_paired_bootstrap_agree():
    found = recovered(*_drawn(2000, 0.7, 0.8, 0.9))
    assert found.ci95 == pytest.approx(found.rows_ci95, abs=0.02)
    assert found == recovered(*_drawn(2000, 0.7, 0.8, 0.9), draws=10_000, seed=0)  # the same in every report


def test_the_set_is_unbounded_exactly_where_the_gap_is_not_significant():
    seen = set()
    for seed in range(60):
        weak, student, ceiling = _drawn(250, 0.7, 0.72, 0.76, seed=seed)
        gap = recovered(weak, student, ceiling, draws=10)
        parts = gap_components(*(x[None] for x in (weak, student, ceiling)))
        ends = fieller(parts)
        bounded = all(math.isfinite(x) for x in ends)
        assert bounded == (gap.gap_ci95[0] > 0 or gap.gap_ci95[1] < 0)
        assert bounded or ends == (-math.inf, math.inf)
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
    weak = np.stack(_nested(500, *[0.7] * 8))
    ceiling = np.stack(_nested(500, *[0.9] * 7, 0.7))
    found = recovered(weak, weak, ceiling, draws=10)
    assert (found.defined, found.pgr, found.per_seed) == (True, 0, (0.0,) * 7 + (None,))


def test_pgr_knows_the_groups_of_its_questions():
    rng = np.random.default_rng(12)
    difficulty = np.repeat(rng.random(60), 5)
    scores = [(difficulty < p).astype(float) for p in (0.5, 0.65, 0.8)]
    cluster = np.repeat(np.arange(60), 5)
    alone, grouped = recovered(*scores, draws=2000), recovered(*scores, cluster=cluster, draws=2000)
    assert alone.pgr == grouped.pgr
    for name in ("ci95", "rows_ci95", "gap_ci95"):
        narrow, wide = (np.ptp(getattr(gap, name)) for gap in (alone, grouped))
        assert wide > 1.5 * narrow, name


def test_questions_without_a_score_define_no_pgr():
    weak, ceiling = np.zeros(50), np.ones(50)
    student = np.where(np.arange(50) < 3, np.nan, 1.0)
    found = recovered(weak, student, ceiling)
    assert (found.defined, found.pgr) == (False, None)
    assert "3 of 50 questions have no score" in found.reason


def test_every_pair_of_models_has_the_pseudo_rows_of_a_paired_difference():
    weak, student, ceiling = (x[None] for x in _drawn(300, 0.65, 0.75, 0.9))
    parts = gap_components(weak, student, ceiling)
    for direction, pair in (((1, 0), (student, weak)), ((0, 1), (ceiling, weak)), ((1, -1), (student, ceiling))):
        alone, along = paired_components(*pair), np.array(direction, dtype=float)
        assert along @ parts.mean == pytest.approx(alone.mean[0])
        assert along @ parts.rows @ along == pytest.approx(alone.rows[0, 0])


def test_the_interval_of_the_gap_is_that_of_a_paired_difference():
    weak, student, ceiling = _drawn(300, 0.65, 0.75, 0.9)
    found, alone = recovered(weak, student, ceiling, draws=10), paired_difference(ceiling, weak)
    assert (found.gap, *found.gap_ci95) == pytest.approx((alone.value, alone.low, alone.high))
    assert found.gap_ci95 != pytest.approx((alone.low - 0.01, alone.high))


def test_a_set_is_where_its_contrast_is_not_significant_and_infinity_asks_for_the_gap():
    parts = gap_components(*(x[None] for x in _drawn(250, 0.7, 0.72, 0.76)))
    ratios = np.array([-40.0, -2.0, -0.1, 0.0, 0.4, 1.0, 7.0, math.inf, -math.inf])
    for level in (0.5, 0.95, 0.9999):
        quantile = t.ppf(0.5 + level / 2, 249)
        expected = []
        for r in ratios:
            along = np.array([0.0, 1.0] if math.isinf(r) else [1.0, -r])
            expected.append(abs(along @ parts.mean) <= quantile * math.sqrt(along @ parts.rows @ along))
        assert in_fieller_set(parts, ratios, level).tolist() == expected
    assert in_fieller_set(parts, ratios, 0.9999).all()


def test_resamples_without_a_gap_are_unbounded_on_the_side_of_their_numerator():
    """Ten questions: many a resample has no gap, or a negative one. The same resamples, ratio by ratio."""
    weak = np.array([1.0, 1, 0, 0, 0, 0, 0, 0, 1, 1])
    ceiling = np.array([1.0, 1, 1, 1, 0, 0, 1, 0, 0, 1])
    for student in (weak, ceiling, 1 - ceiling, np.roll(weak, 2)):
        scores = np.stack([weak, student, ceiling])
        ratios = []
        for w, s, c in bootstrap_means(scores, 400, np.random.default_rng(3), None):
            ratios.append((s - w) / (c - w) if c > w else -math.inf if s < w else math.inf)
        ratios.sort()
        low, high = _rows_interval(scores, 400, 3, None)
        expected = [ratios[math.ceil(400 * share) - 1] for share in (0.025, 0.975)]
        assert [low, high] == [x if math.isfinite(x) else None for x in expected]


def test_what_an_interval_stands_on_is_told():
    weak, student, ceiling = (np.tile(x, (3, 1)) for x in _nested(400, 0.6, 0.7, 0.8))
    alike = recovered(weak, student, ceiling, draws=10)
    assert alike.reason == "3 seeds, Student's t over seeds and questions; no arm varies with the seed"
    student[0, :20] = 0
    assert recovered(weak, student, ceiling, draws=10).reason == "3 seeds, Student's t over seeds and questions"
