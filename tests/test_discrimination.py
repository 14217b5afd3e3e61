"""AUROC against scikit-learn, DeLong's error against its published worked form, clusters, seeds and silent models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from w2s_tasks.results.discrimination import auroc_difference, auroc_interval, discrimination, newcombe, sensitivity
from w2s_tasks.results.read import TaskScores
from w2s_tasks.scoring import metrics
from w2s_tasks.scoring.discrimination import auroc_rows, class_scores, macro_auroc_rows, placements

RNG = np.random.default_rng(7)


def scores(logliks: Any, gold: Any, **more: Any) -> TaskScores:
    """A model's answers."""
    logliks, gold = np.asarray(logliks, dtype=float), np.asarray(gold)
    predicted = np.where(np.isinf(logliks).all(axis=1), -1, logliks.argmax(axis=1))
    units = tuple(map(str, range(len(gold))))
    correct = (predicted == gold).astype(float)
    return TaskScores("t", len(gold), {}, {}, units, correct, predicted=predicted, gold=gold, logliks=logliks, **more)


def two_choice(margin: Any, gold: Any, **more: Any) -> TaskScores:
    return scores(np.stack([np.zeros(len(margin)), margin], axis=1), gold, **more)


@pytest.mark.parametrize("ties", [False, True])
def test_auroc_is_scikit_learns(ties: bool):
    for n in (5, 40, 301):
        gold = np.r_[0, 1, RNG.integers(0, 2, n - 2)]
        margin = RNG.normal(gold, 1.5)
        margin = np.round(margin) if ties else margin
        assert auroc_rows(margin, gold == 1).mean() == pytest.approx(roc_auc_score(gold, margin))


def test_the_error_is_de_longs():
    """By the definition: variances of the structural components over each class, n - 1 in the denominator."""
    gold = RNG.integers(0, 2, 80) == 1
    margin = RNG.normal(gold, 1)
    positive, negative = margin[gold], margin[~gold]
    kernel = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
    by_hand = kernel.mean(axis=1).var(ddof=1) / len(positive) + kernel.mean(axis=0).var(ddof=1) / len(negative)
    rows = auroc_rows(margin, gold)
    assert np.square(rows - rows.mean()).sum() / len(rows) ** 2 == pytest.approx(by_hand)
    assert placements(margin, gold)[gold] == pytest.approx(kernel.mean(axis=1))
    assert placements(margin, gold)[~gold] == pytest.approx(kernel.mean(axis=0))


def test_several_classes_are_one_against_the_rest():
    gold = RNG.integers(0, 4, 200)
    logits = RNG.normal(size=(200, 4)) + 1.2 * np.eye(4)[gold]
    shifted = logits + RNG.normal(size=(200, 1)) * 5  # a row's own level means nothing
    probability = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = roc_auc_score(gold, probability, multi_class="ovr", average="macro")
    assert macro_auroc_rows(shifted, gold).mean() == pytest.approx(expected)


def test_a_model_of_one_answer_can_know_the_difference():
    gold = np.tile([0, 1], 30)
    known = two_choice(gold + 5.0, gold)
    found = discrimination([known])
    assert found is not None
    assert known.correct.mean() == 0.5
    assert (found.auroc, found.high) == (1, 1)
    assert 0.9 < found.low < 1
    assert found.d_prime == pytest.approx(0)
    assert found.criterion is not None
    assert found.criterion < -2


def test_a_row_without_an_answer_is_on_the_wrong_side_of_all():
    gold = np.array([1, 1, 0, 0])
    silent = -np.inf * np.ones(2)
    told = scores([[0, 1], silent, [1, 0], silent], gold)
    assert class_scores(told.logliks, gold)[:, 1].tolist() == [1, -np.inf, -1, np.inf]  # type: ignore[arg-type]
    found = discrimination([told])
    assert found is not None
    assert found.auroc == pytest.approx(0.25)


def test_what_has_no_classes_has_no_auroc():
    assert discrimination([two_choice(np.arange(4.0), np.ones(4, dtype=int))]) is None
    assert discrimination([TaskScores("t", 2, {}, {}, ("a", "b"), np.ones(2), generated=True)]) is None
    assert auroc_difference([two_choice(np.arange(4.0), np.ones(4, dtype=int))], []) is None


def test_newcombes_interval_solves_hanley_and_mcneils_error_at_its_ends():
    """Newcombe 2006, method 5: Hanley & McNeil's (1982) variance at the bound, both classes of (m + n) / 2 rows in it."""
    for area, m, n in ((0.9306, 51, 58), (0.6, 12, 30), (0.3, 9.5, 200)):
        for bound in newcombe(area, m, n):
            q1, q2, size = bound / (2 - bound), 2 * bound**2 / (1 + bound), (m + n) / 2
            variance = (bound * (1 - bound) + (size - 1) * (q1 - bound**2 + q2 - bound**2)) / (m * n)
            assert abs(bound - area) == pytest.approx(1.959964 * variance**0.5, rel=1e-5)
    assert newcombe(1.0, 12, 12)[1] == 1
    assert 0.7 < newcombe(1.0, 12, 12)[0] < 0.9
    assert newcombe(0.0, 12, 12)[0] == 0


def test_a_difference_is_paired_over_seeds_and_rows():
    gold = RNG.integers(0, 2, 300)
    base = RNG.normal(gold, 1)
    weak = [two_choice(base, gold)]
    strong = [two_choice(base + 1.0 * gold + RNG.normal(0, 0.3, 300), gold) for _ in range(3)]
    found = auroc_difference(strong, weak)
    assert found is not None
    areas = [roc_auc_score(gold, one.logliks[:, 1]) for one in strong]  # type: ignore[index]
    assert found.value == pytest.approx(np.mean(areas) - roc_auc_score(gold, base))
    assert found.n_seeds == 3
    assert found.low > 0
    unpaired = two_choice(RNG.permutation(base), gold)
    same = auroc_difference([unpaired], [unpaired])
    assert same is not None
    assert (same.value, same.p) == (0, 1)
    assert same.low < 0 < same.high  # no interval shrinks to nothing


def test_rows_that_come_in_groups_count_as_fewer():
    gold = np.repeat(RNG.integers(0, 2, 40), 5)
    margin = np.repeat(RNG.normal(gold[::5], 1), 5) + RNG.normal(0, 0.01, 200)
    table = macro_auroc_rows(np.stack([np.zeros(200), margin], axis=1), gold)[None]
    alone = auroc_interval(table, gold)
    grouped = auroc_interval(table, gold, np.repeat(np.arange(40), 5))
    assert grouped[1] - grouped[0] > 1.7 * (alone[1] - alone[0])


def test_d_prime_and_criterion_are_those_of_the_textbook():
    """Macmillan & Creelman 2005: hits .8, false alarms .2 give d' 1.68 and no bias."""
    gold = np.repeat([1, 0], 1000)
    predicted = np.r_[np.ones(800), np.zeros(200), np.ones(200), np.zeros(800)].astype(int)
    assert sensitivity(predicted, gold) == pytest.approx((1.683, 0), abs=0.01)
    assert sensitivity(np.full(2000, -1), gold)[0] < -5  # no answer is the wrong one


def test_a_silent_row_leans_away_as_in_lm_evals_own_score():
    logliks, gold = np.array([[-1.0, -3.0], [-3.0, -1.0], [-np.inf, -np.inf], [-2.0, -1.0]]), np.array([0, 1, 1, 1])
    docs = [{"label": int(g)} for g in gold]
    items = [metrics.binary(doc, [(x, False) for x in row])["auroc"] for doc, row in zip(docs, logliks, strict=True)]
    parsed = np.array([True, True, False, True])
    read = scores(np.where(parsed[:, None], logliks, 0.0), gold, parsed=parsed)
    found = discrimination([read])
    assert found is not None
    assert found.auroc == pytest.approx(metrics.auroc(items)) == pytest.approx(2 / 3)
