"""Design effects, enlarged variances and degrees of freedom, each against the formula written out with matrices."""

from __future__ import annotations

import numpy as np
import pytest

from w2s_tasks.results.clusters import Clusters
from w2s_tasks.results.components import quantile
from w2s_tasks.results.stats import accuracy_interval, share_interval

UNEQUAL = {
    "three large ones": [30, 30, 30, *[3] * 20],
    "sizes that differ by one": [2, 3, 3, 2, 3],
    "three": [1, 4, 2],
    "two": [5, 2],
}


def test_clusters_of_any_label_and_order_are_found():
    labels = np.array(["b", "a", "b", "c", "a", "b"])
    clusters = Clusters.of(labels)
    assert clusters.sizes.tolist() == [2, 3, 1]
    assert clusters.sums(np.arange(6.0)).tolist() == [5, 7, 3]
    assert clusters.largest_effect == pytest.approx(14 / 6)
    assert clusters.enlarged == pytest.approx([6 / 4, 6 / 3, 6 / 5])


def test_a_single_cluster_is_not_enlarged_and_two_are():
    assert Clusters.of(np.zeros(7)).enlarged.tolist() == [1.0]
    assert Clusters.of(np.array([0, 0, 0, 1])).enlarged == pytest.approx([4, 4 / 3])


@pytest.mark.parametrize("sizes", UNEQUAL.values(), ids=UNEQUAL)
def test_degrees_of_freedom_are_the_trace_formula(sizes):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    clusters, n = Clusters.of(labels), len(labels)
    effects = np.linspace(1.0, clusters.largest_effect, 5)
    same, expected = labels[:, None] == labels[None], []
    for effect in effects:
        covariance = np.where(same, (effect - 1) / (clusters.largest_effect - 1), 0.0)
        np.fill_diagonal(covariance, 1.0)
        residual = np.eye(n) - 1 / n
        member = (labels[:, None] == np.arange(len(sizes))) * np.sqrt(clusters.enlarged)
        form = member.T @ residual @ covariance @ residual @ member
        expected.append(np.trace(form) ** 2 / np.trace(form @ form))
    assert clusters.degrees(effects) == pytest.approx(expected)
    assert clusters.degrees(effects.reshape(5, 1)).shape == (5, 1)
    assert clusters.degrees(effects[2]) == pytest.approx(expected[2])
    assert 1 - 1e-9 <= min(expected) <= max(expected) <= len(sizes) - 1 + 1e-9


@pytest.mark.parametrize(("sizes", "expected"), [([4] * 12, 11), ([1] * 9, 8), ([3, 3], 1), ([6], 1)])
def test_clusters_of_one_size_have_one_degree_less_than_there_are(sizes, expected):
    clusters = Clusters.of(np.repeat(np.arange(len(sizes)), sizes))
    for effect in (1.0, clusters.largest_effect):
        assert clusters.degrees(np.array([effect, effect])).tolist() == [expected, expected]


@pytest.mark.parametrize("unit", [0.25, 1.0])
def test_a_design_effect_is_that_of_the_squares_with_one_pseudo_cluster(unit):
    rng = np.random.default_rng(3)
    sizes = [5, 1, 4, 2, 2, 6]
    labels = np.repeat(np.arange(6), sizes)
    values = rng.normal(size=(3, 2, 20)) + 0.4 * rng.normal(size=(3, 2, 6))[..., labels]
    clusters = Clusters.of(labels)
    most = sum(s**2 for s in sizes) / 20
    for i, found in enumerate(clusters.effect(values, unit)):
        together = sum((values[i, j, labels == g].sum()) ** 2 for j in range(2) for g in range(6)) + 2 * unit * most**2
        alone = (values[i] ** 2).sum() + 2 * unit * most
        assert 1 < together / alone < most
        assert found == pytest.approx(together / alone)


def test_a_design_effect_is_at_least_that_of_single_rows_and_at_most_that_of_whole_clusters():
    labels = np.repeat(np.arange(100), 2)
    against = np.tile([1.0, -1.0], 100)[None]
    assert Clusters.of(labels).effect(against, 1.0) == 1
    large = np.repeat([0, 1, 2], [40, 1, 1])
    clusters = Clusters.of(large)
    assert clusters.effect(np.repeat([50.0, 0, 0], [40, 1, 1])[None], 1.0) == pytest.approx(clusters.largest_effect)


def test_the_interval_of_an_accuracy_stands_on_the_effective_number_of_rows():
    """Written out: rows over how alike seeds are, over the design effect, and over how few clusters decide."""
    rng = np.random.default_rng(4)
    sizes = [9, 1, 3, 3, 6, 2]
    labels = np.repeat(np.arange(6), sizes)
    difficulty = np.repeat(rng.random(6), sizes)
    table = (0.5 * difficulty + 0.5 * rng.random((3, 24)) < 0.6).astype(float)
    share, n = table.mean(), 24
    away = table.mean(axis=0) - share
    alike = ((away**2).sum() + 4 / 4) / (n * share * (1 - share) + 4 / 4)  # four rows of variance 1/4 count as alike
    assert 1 / 3 < alike < 1
    assert accuracy_interval(table) == pytest.approx(share_interval(share * n / alike, n / alike))
    clusters = Clusters.of(labels)
    effect = clusters.effect(away[None], 0.25)
    few = quantile(0.975, 5) / quantile(0.975, clusters.degrees(effect))
    worth = float(n / alike / effect * few**2)
    assert few < 0.95
    assert accuracy_interval(table, labels) == pytest.approx(share_interval(share * worth, worth))


@pytest.mark.parametrize("sizes", [[24], [20, 4]], ids=["one", "two"])
def test_an_accuracy_over_one_or_two_clusters_stands_on_one_degree_of_freedom(sizes):
    correct = (np.arange(24) % 3 > 0).astype(float)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    clusters = Clusters.of(labels)
    effect = clusters.effect((correct - correct.mean())[None], 0.25)
    worth = float(24 / effect * (quantile(0.975, 1) / quantile(0.975, clusters.degrees(effect))) ** 2)
    assert accuracy_interval(correct, labels) == pytest.approx(share_interval(worth * 2 / 3, worth))


def test_seeds_add_rows_only_so_far_as_they_differ():
    rng = np.random.default_rng(5)
    row = (rng.random(200) < 0.7).astype(float)
    assert accuracy_interval(np.tile(row, (5, 1))) == pytest.approx(share_interval(row.sum(), 200))
    apart = np.stack([np.roll(np.tile([1.0, 1, 1, 0], 50), i) for i in range(4)])  # every row right at three seeds of four
    assert accuracy_interval(apart) == pytest.approx(share_interval(600, 800))
    assert accuracy_interval(np.ones((3, 20))) == pytest.approx(share_interval(20, 20))
