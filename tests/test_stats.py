"""Intervals, paired differences and their tests against references and by simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, t

from w2s_tasks.results.components import critical, crossed, p_value
from w2s_tasks.results.stats import (
    Difference,
    accuracy_interval,
    bootstrap_means,
    difference_of,
    holm,
    mean_accuracy,
    paired_difference,
    share_interval,
    sign_flip_p,
)


@pytest.mark.parametrize(("right", "n"), [(7, 10), (1, 10), (770, 872), (871, 872)])
def test_the_interval_of_a_share_is_where_the_mid_p_is_its_level(right, n):
    low, high = share_interval(right, n)
    assert binom.sf(right, n, low) + binom.pmf(right, n, low) / 2 == pytest.approx(0.025)
    assert binom.cdf(right, n, high) - binom.pmf(right, n, high) / 2 == pytest.approx(0.025)


@pytest.mark.parametrize(("right", "n"), [(0, 10), (10, 10), (0, 1), (1, 1)])
def test_where_all_trials_come_out_alike_the_bound_is_clopper_and_pearsons(right, n):
    reference = binomtest(right, n).proportion_ci(method="exact")
    assert share_interval(right, n) == pytest.approx((reference.low, reference.high))


@pytest.mark.parametrize("n", [10, 24, 100, 400])
def test_the_interval_of_a_share_covers_at_every_share(n):
    counts = np.arange(n + 1)
    low, high = np.array([share_interval(k, n) for k in counts]).T
    shares = np.linspace(0.5, 0.999, 200)
    inside = (low <= shares[:, None]) & (shares[:, None] <= high)
    covered = (binom.pmf(counts, n, shares[:, None]) * inside).sum(axis=1)
    assert covered.min() > 0.92
    assert 0.95 < covered.mean() < 0.98


def test_the_interval_of_an_accuracy_counts_clusters_not_rows():
    correct = np.repeat(np.arange(20) % 4 > 0, 5).astype(float)
    cluster = np.repeat(np.arange(20), 5)
    assert accuracy_interval(correct, cluster) == pytest.approx(share_interval(15, 20))
    assert accuracy_interval(np.ones(100), cluster) == pytest.approx(share_interval(20, 20))  # the worst is taken


# ---- paired differences ---------------------------------------------------------------------------------------------------


def test_paired_difference_uses_only_the_questions_that_differ():
    first, second = np.array([1.0] * 80 + [0] * 20), np.array([1.0] * 70 + [0] * 30)
    found = paired_difference(first, second)
    assert found.value == pytest.approx(0.1)
    assert found.discordance == pytest.approx(0.1)
    assert found.p >= binomtest(10, 10).pvalue
    assert found.stderr < np.hypot(first.std(), second.std()) / 10


def test_the_interval_is_bonett_and_prices():
    wins, losses, n = 12, 5, 80
    first = np.array([1.0] * wins + [0] * losses + [1] * (n - wins - losses))
    second = np.array([0.0] * wins + [1] * losses + [1] * (n - wins - losses))
    found = paired_difference(first, second)
    p12, p21 = (wins + 1) / (n + 2), (losses + 1) / (n + 2)
    stderr = np.sqrt((p12 + p21 - (p12 - p21) ** 2) / (n + 2))
    half = t.ppf(0.975, n - 1) * stderr
    assert (found.low, found.high) == pytest.approx((p12 - p21 - half, p12 - p21 + half), abs=1e-12)


def test_models_that_agree_everywhere_still_have_an_interval():
    same = np.ones(50)
    found = paired_difference(same, same)
    assert found.value == 0
    assert found.p == 1
    assert -0.1 < found.low < 0 < found.high < 0.1


def test_clusters_of_equal_rows_count_once():
    rng = np.random.default_rng(0)
    first, second = (np.repeat(rng.integers(2, size=50), 4).astype(float) for _ in range(2))
    cluster = np.repeat(np.arange(50), 4)
    alone, grouped = paired_difference(first, second), paired_difference(first, second, cluster)
    assert grouped.stderr == pytest.approx(2 * alone.stderr, rel=0.02)
    assert grouped.p > alone.p
    # The order of the rows is of no importance.
    order = rng.permutation(200)
    shuffled = paired_difference(first[order], second[order], cluster[order])
    assert (shuffled.stderr, shuffled.p) == pytest.approx((grouped.stderr, grouped.p))


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match="paired comparison"):
        paired_difference(np.ones(3), np.ones(4))


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=9))
@settings(max_examples=60, deadline=None)
def test_the_sign_flip_test_equals_all_sign_patterns(sums):
    values = np.array(sums)
    patterns = np.array(list(itertools.product([-1, 1], repeat=len(sums))))
    reference = (np.abs(patterns @ values) >= abs(values.sum())).mean()
    assert sign_flip_p(values) == pytest.approx(reference)


def test_the_sign_flip_test_of_single_rows_is_mcnemars():
    delta = np.array([1] * 14 + [-1] * 5 + [0] * 40)
    assert sign_flip_p(delta) == pytest.approx(binomtest(14, 19).pvalue)
    assert paired_difference((delta > 0).astype(float), (delta < 0).astype(float)).p == pytest.approx(
        binomtest(14, 19).pvalue
    )  # larger here than the interval's own


def test_a_difference_stays_on_its_scale_and_gives_way_to_the_exact_test():
    all_lost = paired_difference(np.zeros(6), np.ones(6))
    assert (all_lost.value, all_lost.low, all_lost.n, all_lost.n_seeds) == (-1, -1, 6, 1)
    assert Difference(0.1, 0.02, 0.05, 0.15, 0.01, 100).n_seeds == 1
    assert paired_difference(np.ones(6), np.zeros(6)).high == 1
    rng = np.random.default_rng(8)
    values = 0.3 * rng.normal(size=(2, 1, 40)) + np.array([0.5, -3.0])[:, None, None]
    for sign in (1, -1):
        parts = crossed(sign * values)
        plain = difference_of(parts, 40)
        assert plain.value == pytest.approx(sign * values[0].mean())  # the first contrast, whatever the others are
        alone = difference_of(crossed(sign * values[:1]), 40)
        assert (plain.low, plain.high, plain.p) == pytest.approx((alone.low, alone.high, alone.p))
        assert (plain.low > 0) == (sign > 0)
        assert plain.high < 1
        assert plain.p < 0.05
        for exact, holds in ((0.049, False), (0.05, True), (0.9, True)):
            found = difference_of(parts, 40, exact=exact)
            assert found.p == max(plain.p, exact)
            assert (found.low <= 0 <= found.high) == holds
            assert (found.low, found.high) == ((min(plain.low, 0), max(plain.high, 0)) if holds else (plain.low, plain.high))


def test_no_sign_pattern_is_likelier_than_one():
    for n in range(1, 60):
        assert sign_flip_p(np.array([1, -1] * n)) <= 1


# ---- seeds ----------------------------------------------------------------------------------------------------------------


def test_equal_seeds_add_no_information_and_no_error():
    rng = np.random.default_rng(3)
    first, second = ((rng.random(400) < p).astype(float) for p in (0.8, 0.7))
    one = paired_difference(first, second)
    three = paired_difference(np.tile(first, (3, 1)), np.tile(second, (3, 1)))
    assert three.value == pytest.approx(one.value)
    assert (three.low, three.high) == pytest.approx((one.low, one.high), abs=2e-3)


def test_p_and_interval_tell_the_same():
    rng = np.random.default_rng(6)
    first = (rng.random((3, 300)) < np.array([[0.74], [0.8], [0.83]])).astype(float)
    second = (rng.random((3, 300)) < 0.7).astype(float)
    found = paired_difference(first, second)
    parts = crossed((first - second)[None])
    seeds, rows = float(parts.seeds[0, 0]), float(parts.rows[0, 0])
    assert p_value(float(critical(seeds, rows, 2, 299)), seeds, rows, 2, 299) == pytest.approx(0.05, rel=1e-6)
    assert (found.p < 0.05) == (found.low > 0)
    assert p_value(0.0, seeds, rows, 2, 299) == 1
    assert p_value(1e-16, seeds, rows, 2, 299) == 1  # a difference of rounding errors


def test_mean_accuracy_over_seeds_is_wider_than_over_rows_alone():
    rng = np.random.default_rng(7)
    correct = (rng.random((3, 500)) < np.array([[0.6], [0.75], [0.8]])).astype(float)
    acc, low, high = mean_accuracy(correct)
    assert acc == pytest.approx(correct.mean())
    assert high - low > 2 * (share_interval(350, 500)[1] - share_interval(350, 500)[0])
    assert mean_accuracy(correct[:1])[1:] == pytest.approx(share_interval(correct[0].sum(), 500))
    assert mean_accuracy(np.tile(correct[0], (3, 1)))[1:] == pytest.approx(share_interval(correct[0].sum(), 500))
    # Only the first two seeds answer alike: there is a spread over seeds.
    alike = np.stack([correct[0], correct[0], correct[2]])
    assert np.ptp(mean_accuracy(alike)[1:]) > 1.5 * np.ptp(accuracy_interval(alike))
    half = float(crossed(correct[None]).half_width(np.ones(1)))
    assert (low, high) == pytest.approx((acc - half, acc + half))
    assert np.ptp(mean_accuracy(alike[::-1])[1:]) == pytest.approx(np.ptp(mean_accuracy(alike)[1:]))
    far_apart = np.array([[1.0] * 20, [1] * 10 + [0] * 10])
    assert mean_accuracy(far_apart)[2] == 1
    assert mean_accuracy(1 - far_apart)[1] == 0


def test_seeds_that_collapse_to_opposite_classes_have_an_interval():
    """On balanced labels every seed has half of the rows right, and every row is right at half of the seeds."""
    labels = np.arange(100) % 2 == 0
    collapsed = np.stack([labels, ~labels]).astype(float)
    acc, low, high = mean_accuracy(collapsed)
    assert acc == 0.5
    assert low < 0.48 < 0.52 < high
    found = paired_difference(collapsed, np.stack([labels, labels]).astype(float))
    assert found.low < found.value == 0 < found.high
    assert found.p == 1
    same = crossed((collapsed - 0.5)[None])
    assert same.p_value(np.ones(1)) == 1  # no difference and no error at all


# ---- families and resamples -----------------------------------------------------------------------------------------------


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1, 1]


def test_bootstrap_means_have_the_right_spread_and_keep_the_pairing():
    rng = np.random.default_rng(1)
    scores = (rng.random((2, 400)) < 0.7).astype(float)
    scores[1] = scores[0]
    means = bootstrap_means(scores, 4000, rng)
    assert np.array_equal(means[:, 0], means[:, 1])
    assert means[:, 0].std() == pytest.approx(scores[0].std() / 20, rel=0.05)
