"""Scores against scikit-learn and against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm
from sklearn import metrics as sk

from w2s_tasks.scoring import metrics as m

RNG = np.random.default_rng(0)
PAIRS = list(zip(RNG.integers(2, size=300).tolist(), RNG.integers(2, size=300).tolist(), strict=True))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (m.precision, sk.precision_score),
        (m.recall, sk.recall_score),
        (m.f1, sk.f1_score),
        (m.balanced_acc, sk.balanced_accuracy_score),
        (m.mcc, sk.matthews_corrcoef),
    ],
)
def test_scores_equal_scikit_learn(ours, theirs):
    gold, predicted = zip(*PAIRS, strict=True)
    assert ours(PAIRS) == pytest.approx(theirs(gold, predicted))


def test_scores_of_the_studys_confusion_matrix():
    pairs = [(0, 0)] * 414 + [(0, 1)] * 14 + [(1, 0)] * 21 + [(1, 1)] * 423
    assert m.precision(pairs) == pytest.approx(423 / 437)
    assert m.recall(pairs) == pytest.approx(423 / 444)


def test_scores_are_zero_where_nothing_is_called_positive():
    pairs = [(1, 0), (0, 0)]
    assert (m.precision(pairs), m.recall(pairs), m.f1(pairs), m.mcc(pairs)) == (0, 0, 0, 0)


@pytest.mark.parametrize("score", ["precision", "recall", "f1", "balanced_acc", "mcc", "d_prime", "criterion"])
def test_standard_error_equals_a_row_bootstrap(score):
    rows = np.array(PAIRS)
    rng = np.random.default_rng(5)
    draws = [getattr(m, score)(rows[rng.integers(len(rows), size=len(rows))]) for _ in range(1500)]
    assert getattr(m, f"{score}_stderr")(PAIRS) == pytest.approx(np.std(draws, ddof=1), rel=0.1)


def test_clustered_error_equals_the_plain_one_for_single_rows_and_grows_with_equal_rows():
    values = RNG.integers(2, size=200).astype(float)
    plain = values.std(ddof=1) / np.sqrt(200)
    assert m.clustered_stderr(values, np.arange(200)) == pytest.approx(plain)
    doubled = np.repeat(values, 2)
    assert m.clustered_stderr(doubled, np.repeat(np.arange(200), 2)) == pytest.approx(plain)
    assert np.isnan(m.clustered_stderr(values, np.zeros(200)))  # one group tells nothing about the spread of groups


@pytest.mark.parametrize("score", ["precision", "recall", "f1", "balanced_acc", "mcc", "d_prime", "criterion"])
def test_groups_that_answer_alike_count_once_in_every_error(score):
    pairs = np.repeat(np.array(PAIRS), 4, axis=0)
    alone = [tuple(row) for row in pairs.tolist()]
    grouped = [(*row, i // 4) for i, row in enumerate(alone)]
    assert getattr(m, score)(grouped) == getattr(m, score)(alone)
    stderr = getattr(m, f"{score}_stderr")
    assert stderr(grouped) == pytest.approx(stderr(PAIRS), rel=0.12)
    assert stderr(grouped) > 1.7 * stderr(alone)


def test_a_document_without_an_answer_is_wrong_and_a_broken_model_has_no_score():
    doc = {"label": 0, "w2s_group": 1}
    none = m.binary(doc, [(-np.inf, False), (-np.inf, False)])
    assert (none["acc"], none["precision"]) == (0.0, (0, m.NO_ANSWER))
    assert m.recall([(1, m.NO_ANSWER), (1, 1)]) == 0.5
    broken = m.grouped_binary(doc, [(np.nan, False), (-1.0, False)])
    assert np.isnan(m.grouped_acc([broken["acc"], (1, 1.0)]))
    assert np.isnan(m.exact_match([broken["em"], (1, 1.0), (2, 1.0), (2, 1.0)]))
    assert np.isnan(m.f1([broken["f1"], (1, 1, 1)]))
    assert np.isnan(m.f1_stderr([broken["f1"], (1, 1, 1)]))


def test_a_rating_that_is_nan_is_no_wrong_order():
    doc = {"w2s_pair": 0, "w2s_role": 1}
    item = m.expected_rating(doc, [(np.nan, False)] * 9)["acc"]
    assert np.isnan(m.ranking_acc([item, (0, 0, 3.0), (1, 1, 5.0), (1, 0, 2.0)]))


def test_exact_match_counts_whole_groups_only():
    items = [(0, 1.0)] * 4 + [(1, 1.0)] * 3 + [(1, 0.0)] + [(2, 1.0)] * 2
    assert m.exact_match(items) == 0.5
    assert m.grouped_acc(items) == pytest.approx(0.9)


def test_the_scores_of_one_question():
    right, wrong = (
        m.binary({"label": 0}, [(-1.0, False), (-2.0, False)]),
        m.binary({"label": 0}, [(-2.0, False), (-1.0, False)]),
    )
    assert (right["acc"], wrong["acc"]) == (1.0, 0.0)
    assert (right["f1"], wrong["mcc_stderr"]) == ((0, 0), (0, 1))
    assert (right["auroc"], wrong["auroc_stderr"]) == ((0, -1.0), (0, 1.0))
    names = (*m.ALL_TABLES, "auroc")
    assert set(right) == {"acc"} | {f"{name}{end}" for name in names for end in ("", "_stderr")}


def leanings(n: int, group: int = 1) -> list[tuple[float, ...]]:
    """Items of `auroc`: n rows, or each of them `group` times as one group."""
    rng = np.random.default_rng(3)
    gold = rng.integers(2, size=n)
    margin = rng.normal(gold * 1.0, 1.0)
    rows = [(int(g), float(x)) for g, x in zip(gold, margin, strict=True)]
    return rows if group == 1 else [(*row, i) for i, row in enumerate(rows) for _ in range(group)]


def test_auroc_is_scikit_learns_and_its_error_a_row_bootstraps():
    items = leanings(300)
    gold, margin = np.array(items).T
    assert m.auroc(items) == pytest.approx(sk.roc_auc_score(gold, margin))
    rng = np.random.default_rng(5)
    draws = [sk.roc_auc_score(gold[i], margin[i]) for i in rng.integers(300, size=(1500, 300))]
    assert m.auroc_stderr(items) == pytest.approx(np.std(draws, ddof=1), rel=0.08)


def test_groups_of_equal_rows_count_once_in_the_error_of_auroc():
    assert m.auroc(leanings(300, 4)) == pytest.approx(m.auroc(leanings(300)))
    assert m.auroc_stderr(leanings(300, 4)) == pytest.approx(m.auroc_stderr(leanings(300)), rel=0.02)


def test_auroc_of_broken_silent_and_one_sided_models():
    assert np.isnan(m.auroc([(0, np.nan), (1, 1.0)]))
    assert np.isnan(m.auroc([(1, 0.5), (1, 1.0)]))
    doc, none = {"label": 1}, [(-np.inf, False), (-np.inf, False)]
    silent = m.binary(doc, none)["auroc"]
    assert silent == (1, -np.inf)  # leans away from its right class
    assert m.auroc([silent, (0, -5.0)]) == 0


def test_sensitivity_by_hand():
    """Macmillan & Creelman (2005), ch. 2: 20 of 25 hits, 10 of 25 false alarms; here with half a row added to each cell."""
    pairs = [(1, 1)] * 20 + [(1, 0)] * 5 + [(0, 1)] * 10 + [(0, 0)] * 15
    hit, alarm = norm.ppf(20.5 / 26), norm.ppf(10.5 / 26)
    assert m.d_prime(pairs) == pytest.approx(hit - alarm)
    assert m.criterion(pairs) == pytest.approx(-(hit + alarm) / 2)
    assert m.criterion(pairs) < 0  # class 1 is preferred
    assert m.d_prime([(1, m.NO_ANSWER), (0, m.NO_ANSWER)]) < 0  # no answer is the wrong one


def test_scores_of_one_positive_row():
    assert m.precision([(1, 1)]) == m.recall([(1, 1), (0, 0)]) == m.f1([(1, 1)]) == 1


def test_the_error_of_a_grouped_accuracy_by_hand():
    # Deviations from .6 summed by group, +.8, -.2 and -.6, each squared over 1 - the group's share of the five rows.
    items = [(7, 1.0), (7, 1.0), (8, 1.0), (8, 0.0), (9, 0.0)]
    assert m.grouped_acc_stderr(items) == pytest.approx((0.64 / 0.6 + 0.04 / 0.6 + 0.36 / 0.8) ** 0.5 / 5)


@pytest.mark.parametrize(
    ("items", "share", "error"),
    [
        ([(0, 1.0), (0, 1.0), (1, 1.0), (1, 0.0), (2, 1.0), (2, 1.0)], 2 / 3, (2 / 9 / 2) ** 0.5),
        ([(0, 1.0), (0, 1.0), (1, 0.0), (1, 1.0)], 0.5, 0.5),  # sqrt(.5 / 2)
        ([(3, 1.0), (3, 0.0)], 0.0, 0.0),
        ([(3, 1.0), (3, 1.0)], 1.0, 0.0),
        ([(1, 1.0), (1, 1.0), (1, 1.0), (2, 0.0)], 1.0, 0.0),  # the limit cut the last group
    ],
)
def test_exact_match_by_hand(items: list[tuple[int, float]], share: float, error: float):
    assert m.exact_match(items) == pytest.approx(share)
    assert m.exact_match_stderr(items) == pytest.approx(error)


def test_an_expected_rating_is_the_mean_under_the_normalised_probabilities():
    logliks = [(float(np.log(p)) - 900, False) for p in (0.1, 0.2, 0.7)]
    item = m.expected_rating({"w2s_pair": 4, "w2s_role": 1}, logliks)["acc"]
    assert item == (4, 1, pytest.approx(0.1 + 0.4 + 2.1))


def test_the_error_of_the_ranking_by_hand():
    # Margins .5, 0, -.5 and .25: two of four right, variance 1/3 over four pairs.
    items = [(5, 1, 3.5), (5, 0, 3.0), (6, 1, 2.0), (6, 0, 2.0), (7, 0, 2.5), (7, 1, 2.0), (8, 1, 9.0), (8, 0, 8.75)]
    assert m.ranking_acc(items) == 0.5
    assert m.ranking_acc_stderr(items) == pytest.approx((1 / 3 / 4) ** 0.5)
    assert (m.ranking_pairs(items), m.ranking_ties(items)) == (4, 0.25)
    assert m.ranking_acc_stderr(items[:6]) == pytest.approx(1 / 3)  # .5, 0, -.5: a tie is wrong, sqrt(1/3 / 3)
    assert m.ranking_acc_stderr(items[:4]) == pytest.approx(0.5)
    assert m.ranking_acc_stderr(items[:2]) == 0
    assert np.isnan([m.ranking_acc(items[:1]), m.ranking_ties(items[:1])]).all()


def _rating(pair: int, role: int, best: int) -> tuple[int, int, float]:
    logliks = [(0.0 if k == best else -50.0, False) for k in range(1, 10)]
    return m.expected_rating({"w2s_pair": pair, "w2s_role": role}, logliks)["acc"]


def test_ranking_compares_the_two_scenarios_of_a_pair():
    items = [
        _rating(0, 1, 8),
        _rating(0, 0, 3),
        _rating(1, 0, 7),
        _rating(1, 1, 2),
        _rating(2, 1, 5),
        _rating(2, 0, 5),
        _rating(3, 1, 9),
    ]
    assert items[0][2] == pytest.approx(8, abs=1e-6)
    assert m.ranking_pairs(items) == 3
    assert m.ranking_acc(items) == pytest.approx(1 / 3)
    assert m.ranking_ties(items) == pytest.approx(1 / 3)


def test_bootstrap_errors_of_few_rows_and_groups_are_those_of_a_sample():
    """The recall of rows that are all of one class is a share: its error is the root of p (1 - p) / (n - 1)."""
    for n, share in ((2, 1 / 2), (3, 2 / 3)):
        gold, chosen = np.ones(n, int), np.array([1, 0, 1][:n])
        expected = np.sqrt(share * (1 - share) / (n - 1))
        alone = m.table_stderr("recall", gold, chosen)
        assert alone == pytest.approx(expected, rel=0.08)
        twice = m.table_stderr("recall", gold.repeat(2), chosen.repeat(2), np.arange(n).repeat(2))
        assert twice == pytest.approx(alone)
    assert m.table_stderr("recall", np.ones(1, int), np.ones(1, int)) == 0


def test_two_groups_have_an_error():
    assert m.clustered_stderr(np.array([1.0, 1, 0, 0]), np.array([0, 0, 1, 1])) == pytest.approx(0.5)


def test_a_scenario_without_an_answer_is_rated_off_the_scale_so_that_its_pair_is_wrong():
    none = [(-np.inf, False)] * 9
    assert [m.expected_rating({"w2s_pair": 4, "w2s_role": role}, none)["acc"] for role in (1, 0)] == [(4, 1, 0), (4, 0, 10)]
