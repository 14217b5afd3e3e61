"""Means over tasks against t tests over subtasks, the hull of both intervals, and the squares of the tasks' own bounds."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import t

from w2s_tasks.results.components import average, crossed
from w2s_tasks.results.over_tasks import mean_difference, mean_level
from w2s_tasks.results.stats import accuracy_interval, difference_of, paired_components

Pair = tuple[np.ndarray, np.ndarray, np.ndarray | None]
CLUSTER = np.arange(60) // 3


def _pair(gain: float, seed: int, *, seeds: int = 1, n: int = 60, cluster: np.ndarray | None = None) -> Pair:
    """Two models on one task, the first better by about `gain`."""
    rng = np.random.default_rng(seed)
    difficulty = rng.random(n)
    first, second = (
        (difficulty + 0.1 * rng.standard_normal((seeds, n)) < level).astype(float) for level in (0.5 + gain, 0.5)
    )
    return first, second, cluster


def _students(means: np.ndarray) -> tuple[float, float]:
    half = t.ppf(0.975, len(means) - 1) * means.std(ddof=1) / np.sqrt(len(means))
    return float(means.mean() - half), float(means.mean() + half)


def test_subtasks_that_differ_much_give_students_t_over_their_means():
    pairs = [_pair(gain, i, n=n) for i, (gain, n) in enumerate([(0.3, 60), (-0.1, 50), (0.2, 80)])]
    found = mean_difference(pairs, ["a", "b", "c"])
    means = np.array([(first - second).mean() for first, second, _ in pairs])
    assert found.value == pytest.approx(means.mean())
    assert (found.low, found.high) == pytest.approx(_students(means))
    assert found.stderr == pytest.approx(means.std(ddof=1) / np.sqrt(3))
    assert found.p == pytest.approx(2 * t.sf(abs(means.mean()) / found.stderr, 2))
    assert (found.n, found.n_seeds) == (190, 1)
    # Test, hard and long of a subtask count as one: the mean of each, by Student's t over three.
    twice = mean_difference([pair for pair in pairs for _ in range(2)], ["a", "a", "b", "b", "c", "c"])
    assert (twice.low, twice.high, twice.p) == pytest.approx((found.low, found.high, found.p))


def test_subtasks_that_are_alike_give_the_interval_of_these_tasks():
    pair = _pair(0.1, 3, cluster=CLUSTER)
    of_these = difference_of(average([paired_components(*pair)] * 3), 180)
    assert mean_difference([pair] * 3, ["a", "b", "c"]) == of_these
    assert of_these.stderr > 0


def test_two_subtasks_are_no_sample_of_subtasks():
    pairs = [_pair(0.4, 1), _pair(-0.2, 2)]
    of_these = difference_of(average([paired_components(*pair) for pair in pairs]), 120)
    assert mean_difference(pairs, ["a", "b"]) == of_these
    three = [*pairs, _pair(0.4, 3)]
    assert mean_difference(three, ["a", "b", "b"]) == difference_of(
        average([paired_components(*pair) for pair in three]), 180
    )
    assert mean_difference(three, ["a", "b", "c"]).high > mean_difference(three, ["a", "b", "b"]).high


def test_an_interval_holds_both_and_p_is_the_larger_one():
    """Over seeds: subtasks are the rows of a table whose seeds are the training runs."""
    for spread in (0.0, 0.05, 0.1, 0.3):
        pairs = [_pair(0.15 + spread * side, 7 + side, seeds=3) for side in (-1, 0, 1)]
        parts = [paired_components(*pair) for pair in pairs]
        of_these = difference_of(average(parts), 180)
        table = np.stack([(first - second).mean(axis=1) for first, second, _ in pairs], axis=1)
        of_such = difference_of(crossed(table[None], np.array(["a", "b", "c"])), 180)
        found = mean_difference(pairs, ["a", "b", "c"])
        assert found.value == pytest.approx(table.mean())
        for name, hull in (("low", min), ("high", max), ("p", max), ("stderr", max)):
            assert getattr(found, name) == hull(getattr(of_these, name), getattr(of_such, name)), name
        assert (found.n, found.n_seeds) == (180, 3)


@pytest.mark.parametrize("level", [0.5, 0.97])
def test_a_mean_accuracy_of_one_seed_adds_the_squares_of_the_tasks_bounds(level):
    """Zou & Donner's (2008) rule for a sum of independent estimates, each with bounds of its own."""
    rng = np.random.default_rng(2)
    tables = [
        ((rng.random((1, n)) < level).astype(float), cluster) for n, cluster in ((60, CLUSTER), (30, None), (45, None))
    ]
    levels = np.array([correct.mean() for correct, _ in tables])
    low, high = np.array([accuracy_interval(*table) for table in tables]).T
    expected = (
        levels.mean(),
        levels.mean() - np.sqrt(((levels - low) ** 2).sum()) / 3,
        levels.mean() + np.sqrt(((high - levels) ** 2).sum()) / 3,
    )
    assert mean_level(tables) == pytest.approx(expected)
    assert mean_level(tables[:1]) == pytest.approx((levels[0], low[0], high[0]))


def test_a_mean_accuracy_over_seeds_holds_their_spread():
    """A seed moves all tasks at once, so they are no more values than there are seeds: Student's t over .4, .6 and .5."""
    rng = np.random.default_rng(6)
    tables = [
        (np.stack([rng.permutation(np.arange(n) < round(n * s)) for s in (0.4, 0.6, 0.5)]).astype(float), None)
        for n in (20_000, 40_000)
    ]
    mean, low, high = mean_level(tables)
    expected = average([crossed(table[None]) for table, _ in tables])
    half = float(expected.half_width(np.ones(1)))
    assert (mean, low, high) == pytest.approx((0.5, 0.5 - half, 0.5 + half))
    assert half == pytest.approx(t.ppf(0.975, 2) * 0.1 / np.sqrt(3), rel=0.01)
    two = [(table[:2], None) for table, _ in tables]
    assert mean_level(two)[1:] == (0, 1)  # t of one degree of freedom reaches past either end


def test_seeds_that_are_alike_leave_the_interval_of_the_rows():
    rng = np.random.default_rng(5)
    rows = [(rng.random((1, 80)) < 0.8).astype(float) for _ in range(2)]
    one, three = (mean_level([(np.tile(row, (seeds, 1)), None) for row in rows]) for seeds in (1, 3))
    assert three[0] == pytest.approx(one[0])
    assert three[1] <= one[1] < one[2] <= three[2]
    assert three[1:] == pytest.approx(one[1:], abs=0.02)
