"""Rows and seeds as two sources of error: every part against the formula written out with loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import t

from w2s_tasks.results.clusters import Clusters
from w2s_tasks.results.components import Components, average, critical, crossed, p_value, quantile
from w2s_tasks.scoring.metrics import clustered_stderr

PSEUDO_OF_TWO = np.array([[2.0, 1.0], [1.0, 2.0]])
LABELS = np.array([0, 0, 0, 1, 2, 2, 1, 3, 3, 3, 3, 0])
SHIFT = 0.4 * np.array([1.0, -1.0, 0.5, 0.2])[LABELS]


def _table(seeds: int, contrasts: int = 2, seed: int = 0) -> np.ndarray:
    """Differences of 0/1 of correlated rows, shape [contrasts, seeds, 12]."""
    rng = np.random.default_rng(seed)
    return np.rint(0.3 + SHIFT + 0.6 * rng.standard_normal((contrasts, seeds, len(LABELS)))).clip(-1, 1)


def _by_hand(z: np.ndarray, labels: np.ndarray | None, pseudo: np.ndarray | None) -> tuple[np.ndarray, ...]:
    """Mean, seeds, rows, rest, as the module's text defines them, entry by entry."""
    k, seeds, n = z.shape
    effect, groups, enlarged = 1.0, [[i] for i in range(n)], np.ones(n)
    if labels is not None:
        groups = [np.flatnonzero(labels == g).tolist() for g in np.unique(labels)]
        enlarged = np.array([1 / (1 - len(g) / n) for g in groups])
        centred = z.mean(axis=1) - z.mean(axis=(1, 2))[:, None]
        effect = float(Clusters.of(labels).effect(centred, 0.25 if pseudo is None else 1.0))
    size = n + (0 if pseudo is None else 2 * effect)
    mean = z.sum(axis=(1, 2)) / seeds / size
    between, rows, rest = np.zeros((k, k)), np.zeros((k, k)), np.zeros((k, k))
    for i in range(k):
        for j in range(k):
            for s in range(seeds if seeds > 1 else 0):
                of_i, of_j = (float((z[c, s] - z[c].mean()).sum()) / size for c in (i, j))
                between[i, j] += of_i * of_j / (seeds - 1) / seeds
                residual = [z[c, s] - z[c, s].mean() - z[c].mean(axis=0) + z[c].mean() for c in (i, j)]
                for g, more in zip(groups, enlarged, strict=True):
                    # Of n rows one degree of freedom is their mean's; groups have `enlarged` for that.
                    more = n / (n - 1) if labels is None else more
                    rest[i, j] += residual[0][g].sum() * residual[1][g].sum() * more / (seeds - 1) / seeds / size**2
            for g, more in zip(groups, enlarged, strict=True):
                of_i, of_j = (float((z[c].mean(axis=0)[g] - mean[c]).sum()) for c in (i, j))
                rows[i, j] += more * of_i * of_j / size**2
    if pseudo is not None:
        differing = (z**2).sum() / (k * seeds * effect)
        alike = 4 / (4 + differing)
        shared = alike + (1 - alike) / seeds
        rows += (shared * pseudo + 2 * np.outer(mean, mean)) * effect**2 / size**2
    return mean, between, rows - rest, rest


@pytest.mark.parametrize("seeds", [1, 2, 3])
@pytest.mark.parametrize("labels", [None, LABELS], ids=["rows", "clusters"])
@pytest.mark.parametrize("pseudo", [None, PSEUDO_OF_TWO], ids=["plain", "pseudo-rows"])
def test_every_component_is_its_formula(seeds, labels, pseudo):
    z = _table(seeds)
    found = crossed(z, labels, pseudo)
    for name, expected in zip(("mean", "seeds", "rows", "rest"), _by_hand(z, labels, pseudo), strict=True):
        assert getattr(found, name) == pytest.approx(expected, abs=1e-15), name
    assert found.seed_means == pytest.approx(z.mean(axis=2))
    assert found.seed_df == seeds - 1
    assert (found.rest.any(), found.seeds.any()) == ((seeds > 1), (seeds > 1))
    if labels is None:
        assert (found.row_df, found.effect) == (11, 1)
    else:
        assert found.row_df == pytest.approx(float(Clusters.of(labels).degrees(found.effect)) + (0 if pseudo is None else 2))
        assert found.effect > 1.2


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("labels", [None, LABELS], ids=["rows", "clusters"])
def test_repetitions_that_are_stacked_are_estimated_one_by_one(labels, seeds):
    tables = np.stack([_table(seeds, seed=seed) for seed in range(12)]).reshape(4, 3, 2, seeds, 12)
    together = crossed(tables, labels, PSEUDO_OF_TWO)
    directions = np.array([[1.0, 0.0], [1.0, -0.4], [0.0, 1.0]])
    spread = together.broadcast().half_width(directions, 0.9)
    assert spread.shape == (4, 3, 3)
    for at in np.ndindex(4, 3):
        alone = crossed(tables[at], labels, PSEUDO_OF_TWO)
        for name in ("mean", "seeds", "rows", "rest", "seed_means", "row_df", "effect"):
            assert getattr(together, name)[at] == pytest.approx(getattr(alone, name)), name
        assert spread[at] == pytest.approx([float(alone.half_width(d, 0.9)) for d in directions])
        assert together.broadcast().mean[at][0] == pytest.approx(alone.mean)


def test_a_single_row_has_a_component_of_its_seeds_only():
    found = crossed(np.array([[[1.0], [0.0], [0.0]]]))
    assert found.seeds[0, 0] == pytest.approx(np.var([1, 0, 0], ddof=1) / 3)
    assert (found.rows[0, 0], found.rest[0, 0], found.row_df) == (0, 0, 1)


def _parts(seeds: float, rows: float, rest: float, seed_df: int, row_df: float, mean: float = 0.1) -> Components:
    """Components with these variances of one contrast."""
    square = [np.array([[v]]) for v in (seeds, rows, rest)]
    means = np.full((1, seed_df + 1), mean)
    return Components(np.array([mean]), *square, means, seed_df, np.asarray(row_df), np.ones(()))


ONE = np.ones(1)


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_the_critical_value_goes_from_the_rows_to_the_seeds(level):
    of_rows, of_two, of_four = (t.ppf(0.5 + level / 2, df) for df in (50, 1, 3))
    assert critical(np.array(0.0), np.array(2.0), 0, 50, level) == pytest.approx(of_rows)
    shares = np.array([0.0, 0.3, 1.0])
    two = critical(shares, 1 - shares, 1, 50, level)
    assert two == pytest.approx(of_rows + (of_two - of_rows) * shares**1.2)
    four = critical(3 * shares, 3 * (1 - shares), 3, 50, level)
    assert four == pytest.approx(of_rows + (of_four - of_rows) * shares**1.5)
    assert critical(np.array(0.0), np.array(0.0), 3, 50, level) == pytest.approx(of_rows)
    assert critical(np.zeros((2, 3)), np.ones((2, 3)), 0, np.array([50, 60, 70]), level).shape == (2, 3)


@pytest.mark.parametrize("size", [3, 8, 9, 20])
def test_quantiles_keep_their_shape_and_their_order(size):
    degrees = np.array([*range(size, 0, -1), 2]).astype(float)
    assert quantile(0.9, degrees) == pytest.approx(t.ppf(0.9, degrees))
    assert quantile(0.9, degrees[:, None]).shape == (size + 1, 1)
    assert float(quantile(0.9, 7.0)) == pytest.approx(t.ppf(0.9, 7))


def test_an_interval_is_never_shorter_than_the_one_given_these_weights():
    for rest in (0.0, 0.5, 0.95, 3.0):
        parts = _parts(0.1, 1.0, rest, 2, 30)
        over_seeds = float(critical(np.array(0.1), np.array(1.0), 2, 30)) * math.sqrt(1.1)
        given = t.ppf(0.975, 30) * math.sqrt(1 + rest)
        assert float(parts.half_width(ONE)) == pytest.approx(max(over_seeds, given))
        assert float(parts.given_weights(ONE)) == pytest.approx(1 + rest)
    assert over_seeds < given
    assert float(parts.half_width(2 * ONE)) == pytest.approx(2 * given)
    assert [float(v) for v in _parts(0.2, -0.1, 0, 1, 9).variance(ONE)] == [0.2, 0]  # an estimate below 0 is none


@pytest.mark.parametrize("rest", [0.0, 3.0], ids=["both sources", "given these weights"])
@pytest.mark.parametrize(("seed_df", "seeds"), [(0, 0.0), (1, 0.3), (4, 0.8)])
@pytest.mark.parametrize("p", [0.7, 0.05, 1e-4, 1e-9])
def test_p_is_the_level_at_which_the_interval_reaches_0(seed_df, seeds, rest, p):
    parts = _parts(seeds, 1.0, rest, seed_df, 12.5)
    half = float(parts.half_width(ONE, 1 - p))
    for mean in (half, -half):
        moved = _parts(seeds, 1.0, rest, seed_df, 12.5, mean)
        assert moved.p_value(ONE) == pytest.approx(p, rel=1e-5)


def test_p_of_differences_without_an_error_and_of_rounding_errors():
    assert p_value(2.0, 0.0, 1.0, 0, 8) == p_value(-2.0, 0.0, 1.0, 0, 8) == pytest.approx(2 * t.sf(2, 8))
    assert p_value(math.inf, 0.0, 1.0, 0, 8) == p_value(-math.inf, 0.0, 1.0, 0, 8) == 0
    assert math.isnan(p_value(math.nan, 0.0, 1.0, 0, 8))
    assert p_value(0.0, 0.5, 1.0, 2, 8) == p_value(1e-16, 0.5, 1.0, 2, 8) == 1
    # Below e^-30 no level can be told from 1. Just above it p is what it should be.
    for size in (8.2, 8.6, 9.1, 1e9):
        expected = max(2 * float(t.sf(size, 99)), math.exp(-30))
        assert p_value(size, 0.0, 1.0, 0, 99) == pytest.approx(expected, rel=0.01, abs=0)
    assert _parts(0, 0, 0, 2, 9, mean=0.0).p_value(ONE) == 1
    assert _parts(0, 0, 0, 2, 9, mean=0.1).p_value(ONE) == 0
    assert 0 < _parts(0, 0, 1e-4, 2, 9, mean=0.1).p_value(ONE) < 0.05


# ---- means over tasks -----------------------------------------------------------------------------------------------------


def test_a_mean_over_tasks_adds_their_questions_and_shares_their_seeds():
    tables = [_table(3, seed=1), _table(3, seed=2)[..., :7], 1 - _table(3, seed=3)]
    parts = [crossed(z, labels, PSEUDO_OF_TWO) for z, labels in zip(tables, (None, None, LABELS), strict=True)]
    found = average(parts)
    assert found.mean == pytest.approx(sum(p.mean for p in parts) / 3)
    for name in ("rows", "rest"):
        assert getattr(found, name) == pytest.approx(sum(getattr(p, name) for p in parts) / 9)
    by_seed = np.mean([z.mean(axis=2) for z in tables], axis=0)
    assert found.seed_means == pytest.approx(by_seed)
    assert found.seeds == pytest.approx(np.cov(by_seed) / 3)
    assert (found.seed_df, found.effect) == (2, 1)
    of_task = [np.trace(p.rows) + np.trace(p.rest) for p in parts]
    degrees = [11, 6, float(parts[2].row_df)]
    expected = sum(of_task) ** 2 / sum(v**2 / d for v, d in zip(of_task, degrees, strict=True))
    assert found.row_df == pytest.approx(expected)
    assert min(degrees) < expected < sum(degrees)


def test_a_mean_over_one_task_is_that_task():
    part = crossed(_table(2), LABELS, PSEUDO_OF_TWO)
    found = average([part])
    for name in ("mean", "rows", "rest", "seed_means", "row_df"):
        assert getattr(found, name) == pytest.approx(getattr(part, name)), name
    size = 12 + 2 * float(part.effect)
    assert found.seeds == pytest.approx(part.seeds * (size / 12) ** 2)  # no pseudo-rows in the means of the seeds


def test_tasks_with_one_seed_or_without_an_error_have_a_mean():
    one = average([crossed(_table(1, seed=s), None, PSEUDO_OF_TWO) for s in (1, 2)])
    assert not one.seeds.any()
    assert (one.seed_df, one.seeds.shape, average([crossed(np.ones((2, 1, 4)))]).seeds.shape) == (0, (2, 2), (2, 2))
    assert average([crossed(np.ones((1, 2, n))) for n in (5, 9)]).row_df == 4 + 8
    negative = [_parts(0, -1.0, 0, 1, 3), _parts(0, 2.0, 0, 1, 7)]  # what is estimated below 0 counts as none
    assert average(negative).row_df == pytest.approx(7)


# ---- simulated, and against other formulas --------------------------------------------------------------------------------


def test_the_clustered_error_without_pseudo_rows_is_millers():
    rng = np.random.default_rng(1)
    values, cluster = rng.normal(size=90), np.repeat(np.arange(30), 3)
    parts = crossed(values[None, None], cluster)
    assert np.sqrt(parts.rows[0, 0]) == pytest.approx(clustered_stderr(values, cluster))
    sums = np.bincount(cluster, weights=values - values.mean())
    assert clustered_stderr(values, cluster) == pytest.approx(np.sqrt((sums**2).sum() * 30 / 29) / 90)


def test_without_rows_the_interval_over_seeds_is_students():
    """Every seed has its own accuracy and the questions make no difference: t over the seed-level values."""
    seeds = np.array([0.60, 0.70, 0.75])
    parts = crossed(np.repeat(seeds[:, None], 5000, axis=1)[None])
    assert parts.rows[0, 0] == pytest.approx(0, abs=1e-12)
    stderr = np.sqrt(parts.seeds[0, 0])
    assert stderr == pytest.approx(seeds.std(ddof=1) / np.sqrt(3))
    assert float(critical(parts.seeds[0, 0], parts.rows[0, 0], 2, 4999)) == pytest.approx(t.ppf(0.975, 2))


def test_components_find_the_variances_they_were_made_with():
    """Mean of the estimates over many tables against the variance of the mean, which neither source alone reaches."""
    rng = np.random.default_rng(5)
    seeds, n, reps = 4, 60, 4000
    of_seed, of_row, rest = (s * rng.standard_normal(shape) for s, shape in (
        (0.05, (reps, seeds, 1)), (0.4, (reps, 1, n)), (0.3, (reps, seeds, n))
    ))  # fmt: skip
    parts = crossed((of_seed + of_row + rest)[:, None])
    true = 0.05**2 / seeds + 0.4**2 / n + 0.3**2 / (seeds * n)
    estimate = (parts.seeds + parts.rows)[:, 0, 0].mean()
    assert estimate == pytest.approx(true, rel=0.03)
    assert parts.mean[:, 0].var() == pytest.approx(true, rel=0.06)
    assert parts.seeds[:, 0, 0].mean() < 0.5 * true
