"""Agreement, CAPA, copied errors, blind spots and calibration against values worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from w2s_tasks.results.diagnostics import Share, calibration, capa, confusion, diagnose, probabilities
from w2s_tasks.results.read import TaskScores
from w2s_tasks.results.stats import accuracy_interval, paired_difference
from w2s_tasks.scoring.metrics import clustered_stderr


def scores(right_of_one: list[float], gold: list[int], **more) -> TaskScores:
    """A two-choice model by its probability of choice 1."""
    p = np.array(right_of_one)
    logliks = np.log(np.stack([1 - p, p], axis=1)) - 3.0  # not normalised, as lm_eval's are
    predicted, target = logliks.argmax(axis=1), np.array(gold)
    units = tuple(map(str, range(len(p))))
    return TaskScores(
        "t", len(p), {}, {}, units, (predicted == target).astype(float), None, predicted, target, logliks, **more
    )


def test_probabilities_are_normalised():
    assert probabilities(scores([0.9, 0.2], [1, 1])) == pytest.approx(np.array([[0.1, 0.9], [0.8, 0.2]]))


def test_probabilities_of_very_unlikely_choices_are_as_exact():
    far = scores([0.9, 0.2], [1, 1])
    assert probabilities(replace(far, logliks=far.logliks - 2000)) == pytest.approx(probabilities(far))
    assert probabilities(replace(far, logliks=far.logliks + 2000)) == pytest.approx(probabilities(far))


def test_capa_by_hand():
    """Rows (p1, q1) = (.9, .8), (.3, .6) with gold 1 and 0: c_obs .64, accuracies .8 and .6, c_exp .56."""
    first, second = (np.array([[1 - a, a], [1 - b, b]]) for a, b in ((0.9, 0.3), (0.8, 0.6)))
    gold = np.array([1, 0])
    observed = (0.9 * 0.8 + 0.1 * 0.2 + 0.3 * 0.6 + 0.7 * 0.4) / 2
    right, other = (0.9 + 0.7) / 2, (0.8 + 0.4) / 2
    expected = right * other + (1 - right) * (1 - other)
    assert capa(first, second, gold) == pytest.approx((observed - expected) / (1 - expected))


def test_capa_of_equal_independent_and_opposite_models():
    rng = np.random.default_rng(0)
    gold = rng.integers(4, size=20000)

    def model(accuracy: float) -> np.ndarray:
        wrong = (gold + rng.integers(1, 4, size=len(gold))) % 4
        return np.eye(4)[np.where(rng.random(len(gold)) < accuracy, gold, wrong)]

    first = model(0.6)
    assert capa(first, first, gold) == pytest.approx(1)
    assert capa(first, model(0.7), gold) == pytest.approx(0, abs=0.03)
    perfect = np.eye(4)[gold]
    assert capa(perfect, perfect, gold) is None


def test_errors_copied_against_the_ceilings_own():
    gold = [1] * 10
    weak = scores([0.9] * 5 + [0.2] * 5, gold)  # wrong on the last five
    student = scores([0.9] * 5 + [0.2] * 4 + [0.8], gold)  # copies four of them
    ceiling = scores([0.9] * 9 + [0.1], gold)  # has one of them by itself
    found = diagnose(student, weak, ceiling)
    assert (found.copied.value, found.copied.n) == (0.8, 5)
    assert found.copied_by_ceiling.value == pytest.approx(0.2)
    # The ceiling errs on the row that the student mends: four rows one way, one the other.
    assert found.copying.value == pytest.approx(3 / 5)
    assert found.agreement.value == pytest.approx(0.9)
    assert (found.overrides, found.right_overrides.value) == (1, 1.0)


def test_blind_spots_are_confident_errors_where_the_supervisor_was_unsure():
    gold = [1, 1, 1, 1]
    weak = scores([0.55, 0.55, 0.95, 0.4], gold)
    student = scores([0.05, 0.45, 0.05, 0.99], gold)  # only the first: confident, wrong, supervisor below .75
    assert diagnose(student, weak, None).blind_spots.value == 0.25


def test_blind_spots_begin_at_nine_tenths_and_end_below_three_quarters():
    gold = [1] * 7
    weak = scores([0.6, 0.6, 0.6, 0.6, 0.2, 0.95, 0.5], gold)
    student = scores([0.05, 0.02, 0.09, 0.11, 0.03, 0.01, 0.99], gold)
    # Three: confident and wrong, the supervisor unsure. Not confident; supervisor sure of 0; sure of 1; right.
    assert diagnose(student, weak, None).blind_spots.value == pytest.approx(3 / 7)
    odds = replace(scores([0.75], [1]), logliks=np.log(np.array([[1 / 3, 1.0]])))
    assert probabilities(odds).max() == 0.75
    assert diagnose(scores([0.05], [1]), odds, None).blind_spots.value == 0


def test_a_supervisor_without_errors_leaves_nothing_to_copy():
    weak = scores([0.9, 0.1], [1, 0])
    found = diagnose(scores([0.9, 0.8], [1, 0]), weak, weak)
    assert (found.copied, found.copying) == (Share(None, None, None, 0), None)


def test_calibration_by_hand():
    p = np.array([[0.2, 0.8]] * 10)
    gold = np.array([1] * 6 + [0] * 4)
    found = calibration(p, gold, bins=1)
    assert found.ece == pytest.approx(0.2)
    assert found.brier == pytest.approx((6 * 0.08 + 4 * 1.28) / 10)


def test_a_calibrated_model_has_little_error_and_a_sure_one_much():
    rng = np.random.default_rng(1)
    p = rng.uniform(0.5, 1, size=5000)
    gold = (rng.random(5000) < p).astype(int)
    both = np.stack([1 - p, p], axis=1)
    assert calibration(both, gold).ece < 0.03
    sure = np.tile([0.001, 0.999], (5000, 1))
    assert calibration(sure, gold).ece > 0.2
    assert calibration(both[:3], gold[:3]).n == 3


def test_calibration_has_ten_bins_of_equal_size_and_an_error_over_groups():
    rng = np.random.default_rng(2)
    p = np.sort(rng.uniform(0.5, 1, size=40))
    gold = (rng.random(40) < p**2).astype(int)
    both = np.stack([1 - p, p], axis=1)
    order, cluster = rng.permutation(40), np.arange(40) // 4
    found = calibration(both[order], gold[order], cluster)
    assert found.ece == pytest.approx(np.mean([abs(p[i : i + 4].mean() - gold[i : i + 4].mean()) for i in range(0, 40, 4)]))
    squares = 2 * (1 - np.where(gold == 1, p, 1 - p)[order]) ** 2
    assert found.brier == pytest.approx(squares.mean())
    assert found.brier_stderr == pytest.approx(clustered_stderr(squares, cluster))
    assert calibration(both[order], gold[order]).brier_stderr == pytest.approx(squares.std(ddof=1) / np.sqrt(40))


def test_shares_know_their_rows_and_their_groups():
    gold, cluster = [1] * 12, np.arange(12) // 3
    weak = scores([0.9] * 6 + [0.2] * 6, gold)
    student = replace(scores([0.9] * 5 + [0.3] * 5 + [0.8] * 2, gold), cluster=cluster)
    found = diagnose(student, weak, weak)
    other = np.array([i in (5, 10, 11) for i in range(12)])
    assert found.agreement == Share(0.75, *accuracy_interval((~other).astype(float), cluster), 12)
    copied = (~other)[6:].astype(float)
    assert found.copied == Share(pytest.approx(4 / 6), *accuracy_interval(copied, cluster[6:]), 6)
    assert found.copied_by_ceiling.value == 1
    assert found.copying == paired_difference(copied, np.ones(6), cluster[6:])
    assert (found.overrides, found.right_overrides.value, found.right_overrides.n) == (3, pytest.approx(2 / 3), 3)
    assert found.capa == capa(probabilities(student), probabilities(weak), np.array(gold))
    assert found.calibration == calibration(probabilities(student), np.array(gold), cluster)


def test_generated_answers_have_no_probabilities_and_unparsed_is_a_column():
    predicted, gold = np.array([0, 1, -1, 1]), np.array([0, 1, 1, 0])
    text = TaskScores(
        "t_gen", 4, {}, {}, tuple("abcd"), (predicted == gold).astype(float), None, predicted, gold, generated=True
    )
    found = diagnose(text, scores([0.2, 0.9, 0.8, 0.3], [0, 1, 1, 0]), None)
    assert (found.capa, found.calibration, found.blind_spots) == (None, None, None)
    assert found.agreement.value == 0.5
    assert diagnose(scores([0.2, 0.9, 0.8, 0.3], [0, 1, 1, 0]), text, None).capa is None
    assert confusion(text).tolist() == [[1, 1, 0], [0, 1, 1]]
    assert confusion(scores([0.2, 0.9, 0.8, 0.3], [0, 1, 0, 0])).tolist() == [[2, 1], [0, 1]]


def test_ranked_pairs_have_no_diagnosis():
    pairs = TaskScores("u", 2, {}, {}, ("a", "b"), np.array([1.0, 0]))
    classes = scores([0.2, 0.9], [0, 1])
    assert diagnose(pairs, pairs, pairs) is diagnose(classes, pairs, None) is diagnose(pairs, classes, None) is None
    assert confusion(pairs) is None
