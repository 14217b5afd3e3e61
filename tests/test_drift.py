"""A change in accuracy splits exactly into format, class shares and other answers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from maintenance.coverage_answers import AnswerSetting, cover_answers

from w2s_tasks.results.components import crossed
from w2s_tasks.results.drift import PARTS, contributions, drift
from w2s_tasks.results.read import TaskScores
from w2s_tasks.results.stats import PAIR, difference_of, paired_difference

N = 60
UNPARSED = -1


def scores(predicted: np.ndarray, gold: np.ndarray, **more) -> TaskScores:
    correct = (predicted == gold).astype(float)
    units = tuple(map(str, range(len(gold))))
    share = float((predicted == UNPARSED).mean())
    return TaskScores("t", len(gold), {}, {}, units, correct, predicted=predicted, gold=gold, unparsed=share, **more)


labels = arrays(int, N, elements=st.integers(UNPARSED, 2))


@given(labels, labels, arrays(int, N, elements=st.integers(0, 2)))
@settings(max_examples=150, deadline=None)
def test_the_parts_add_up_exactly(before, after, gold):
    parts = contributions(before, after, gold)
    turned = contributions(before, after, gold, lambda net: True)
    assert turned.sum() == pytest.approx(parts.sum())
    assert parts.sum(axis=0) == pytest.approx((after == gold).astype(float) - (before == gold))


@given(labels, labels, arrays(int, N, elements=st.integers(0, 2)), st.permutations(range(3)))
@settings(max_examples=60, deadline=None)
def test_the_parts_do_not_depend_on_what_the_classes_are_called(before, after, gold, names):
    renamed = np.array([*names, UNPARSED])  # the last for replies that did not parse
    for alike in (lambda net: False, lambda net: True):
        parts = contributions(before, after, gold, alike).mean(axis=1)
        assert contributions(renamed[before], renamed[after], renamed[gold], alike).mean(axis=1) == pytest.approx(parts)


@given(labels, labels, arrays(int, N, elements=st.integers(0, 2)), st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_rows_share_of_the_prior_is_how_much_the_prior_would_change_with_it(before, after, gold, turned):
    """By the definition of an influence value: the derivative of the part, all rows weighted, in the weight of the row."""

    def prior(weight: np.ndarray) -> float:
        total, change = 0.0, (after == gold).astype(float) - (before == gold)
        for j in range(3):
            for k in range(j + 1, 3):
                there, back = (before == j) & (after == k), (before == k) & (after == j)
                larger, smaller = (
                    (there, back)
                    if (there.sum() >= back.sum()) != (turned and back.any() and there.any())
                    else (back, there)
                )
                if larger.any():
                    total += (weight * change)[larger].sum() * (1 - weight[smaller].sum() / weight[larger].sum())
        return total

    ones, step = np.ones(N), 1e-6
    slopes = [(prior(ones + step * row) - prior(ones - step * row)) / (2 * step) for row in np.eye(N)]
    assert contributions(before, after, gold, lambda net: turned)[1] == pytest.approx(np.array(slopes), abs=1e-6)


def _parts(before, after, gold) -> dict[str, float]:
    return dict(zip(PARTS, contributions(before, after, gold).mean(axis=1), strict=True))


GOLD = np.arange(100) % 2
GOOD = np.where(np.arange(100) < 90, GOLD, 1 - GOLD)  # 90 % right, shares about even


def test_answers_that_no_longer_parse_are_format():
    after = np.where(np.arange(100) < 30, UNPARSED, GOOD)
    assert _parts(GOOD, after, GOLD) == pytest.approx({"unparsed": -0.3, "prior": 0, "errors": 0})
    assert _parts(after, GOOD, GOLD) == pytest.approx({"unparsed": 0.3, "prior": 0, "errors": 0})


def test_a_collapse_to_one_class_is_a_shift_of_shares():
    assert _parts(GOOD, np.ones(100, int), GOLD) == pytest.approx({"unparsed": 0, "prior": -0.4, "errors": 0})


def test_answers_exchanged_at_equal_shares_are_real_errors():
    after = GOOD.copy()
    after[:20] = 1 - GOLD[:20]  # ten of each class
    assert _parts(GOOD, after, GOLD) == pytest.approx({"unparsed": 0, "prior": 0, "errors": -0.2})


def test_a_mixture_by_hand():
    """Six rows go from 0 to 1 (all become wrong), two come back (one becomes right, one wrong): net flow four of six."""
    gold = np.array([0] * 6 + [1, 0] + [0, 1])
    before = np.array([0] * 6 + [1, 1] + [0, 1])
    after = np.array([1] * 6 + [0, 0] + [0, 1])
    # d: six times -1; the two that came back: 1 -> 0 with gold 1 is -1, with gold 0 is +1.
    assert _parts(before, after, gold) == pytest.approx({"unparsed": 0, "prior": -0.4, "errors": (-2 + 0) / 10})


def test_the_error_of_a_part_is_that_of_the_bootstrap():
    rng = np.random.default_rng(0)
    gold = rng.integers(2, size=1500)
    before = np.where(rng.random(1500) < 0.8, gold, 1 - gold)
    after = np.where(rng.random(1500) < 0.25, 1, np.where(rng.random(1500) < 0.7, gold, 1 - gold))
    after[rng.random(1500) < 0.1] = UNPARSED
    found = drift([scores(before, gold)], [scores(after, gold)])
    draws = []
    for _ in range(800):
        rows = rng.integers(1500, size=1500)
        draws.append(contributions(before[rows], after[rows], gold[rows]).mean(axis=1))
    spread = np.std(draws, axis=0)
    assert [getattr(found, part).stderr for part in PARTS] == pytest.approx(spread, rel=0.12)
    total = sum(getattr(found, part).value for part in PARTS)
    assert total == pytest.approx(found.total.value)


def _around(parts: np.ndarray, cluster: np.ndarray | None) -> list:
    return [difference_of(crossed(part[None, None], cluster, PAIR), parts.shape[1]) for part in parts]


@pytest.mark.parametrize(
    ("there", "back", "cluster", "both"),
    [
        (12, 9, None, True),
        (30, 4, None, False),
        (30, 0, None, False),
        (12, 2, None, False),  # 10 > 1.96 sqrt(14)
        (12, 2, np.arange(60) // 12 - 3, True),  # the twelve are one group: 10 < 1.96 sqrt(12^2 + 2^2); numbers are names
        (12, 12, np.arange(60) % 12, True),  # every group has one row either way: they cancel exactly
    ],
)
def test_flows_that_chance_may_have_exchanged_are_taken_both_ways(there, back, cluster, both):
    """Class 0 to 1 in the first rows, 1 to 0 in those after; every third and every fourth one becomes right."""
    before = np.array([0] * there + [1] * back + [0] * (60 - there - back))
    after = np.array([1] * there + [0] * back + [0] * (60 - there - back))
    gold = np.array([int(i % 3 == 0) for i in range(there)] + [int(i % 4 != 0) for i in range(60 - there)])
    found = drift([scores(before, gold)], [scores(after, gold, cluster=cluster)])
    one, other = (_around(contributions(before, after, gold, lambda net, t=turned: t), cluster) for turned in (False, True))
    for part, this, that in zip(PARTS, one, other, strict=True):
        got = getattr(found, part)
        low, high, p = (f(getattr(this, n), getattr(that, n)) for f, n in ((min, "low"), (max, "high"), (max, "p")))
        assert (got.low, got.high, got.p) == ((low, high, p) if both else (this.low, this.high, this.p))
        assert (got.value, got.stderr, got.n) == (this.value, this.stderr, 60)
    assert found.total == paired_difference((after == gold).astype(float), (before == gold).astype(float), cluster)
    assert found.task == "t"


def test_sides_tell_shares_and_balanced_accuracy():
    gold = np.array([0] * 80 + [1] * 20)
    found = drift([scores(gold, gold)], [scores(np.zeros(100, int), gold)])
    assert found.before.class_share == pytest.approx((0.8, 0.2))
    assert found.after.class_share == (1, 0)
    assert found.after.balanced_acc == 0.5
    assert found.after.acc == 0.8
    mixed = np.array([0] * 60 + [1] * 15 + [UNPARSED] * 5 + [1] * 10 + [0] * 10)
    side = drift([scores(gold, gold), scores(mixed, gold)], [scores(mixed, gold), scores(mixed, gold)])
    assert side.after.balanced_acc == pytest.approx((60 / 80 + 10 / 20) / 2)
    assert (side.after.class_share, side.after.unparsed) == (pytest.approx((0.7, 0.25)), 0.05)
    assert side.before.balanced_acc == pytest.approx((1 + 0.625) / 2)
    assert (side.before.class_share, side.before.unparsed) == (pytest.approx((0.75, 0.225)), 0.025)


def test_seeds_widen_and_clusters_too():
    rng = np.random.default_rng(1)
    gold = np.tile(np.arange(2), 100)
    before = [scores(np.where(rng.random(200) < 0.9, gold, 1 - gold), gold)]
    after = [scores(np.where(rng.random(200) < p, gold, 1 - gold), gold) for p in (0.5, 0.7, 0.9)]
    one, three = drift(before, after[1:2]), drift(before, after)
    assert three.total.n_seeds == 3
    assert three.total.high - three.total.low > one.total.high - one.total.low


def test_seeds_are_compared_seed_by_seed_and_one_reference_serves_all():
    gold = np.tile(np.arange(2), 30)
    worse, better = (scores(np.where(np.arange(60) < right, gold, 1 - gold), gold) for right in (30, 54))
    same = drift([worse, better], [worse, better])
    assert [getattr(same, part).value for part in (*PARTS, "total")] == [0, 0, 0, 0]
    crossed_over = drift([worse, worse], [better, worse])
    assert crossed_over.total.value == pytest.approx(0.2)  # (24 of 60 + 0) / 2
    assert drift([worse], [better, worse]).total == crossed_over.total


def test_ranked_pairs_have_no_classes_but_may_not_parse():
    units, silent = tuple("abcdefgh"), np.arange(8) == 0
    before = TaskScores("u", 8, {}, {}, units, np.array([1.0, 1, 1, 0, 1, 1, 0, 1]), generated=True)
    right = np.array([0.0, 0, 0, 0, 1, 1, 0, 0])
    after = TaskScores("u", 8, {}, {}, units, right, generated=True, parsed=~silent, unparsed=0.125)
    found = drift([before], [after])
    assert found.prior is None
    assert (found.unparsed.value, found.errors.value) == (-1 / 8, -3 / 8)
    turned = drift([after], [before])
    assert (turned.unparsed.value, turned.errors.value) == (1 / 8, 3 / 8)
    assert found.after.class_share is None


def test_parts_of_a_change_cover_where_both_flows_are_alike():
    """A short form of scripts/coverage. By the flow that happens to be larger, `errors` covers 89 % here."""
    found = cover_answers(AnswerSetting(100, 1, blur=0.3), repetitions=300)
    assert found.parts["errors"] >= 0.93
    assert found.parts["prior"] >= 0.93
    assert found.parts["unparsed"] is None  # nothing is lost here
    assert min(found.metrics.values()) >= 0.9


def test_parts_of_a_change_cover_over_groups():
    found = cover_answers(AnswerSetting(50, 4, 0.75, 0.1, 0.3, 0.2, whole=1.0), repetitions=150)
    assert min(share for share in found.parts.values() if share is not None) >= 0.91
