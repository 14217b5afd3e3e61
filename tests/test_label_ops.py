"""What happens to labels before training: each operation does what its name says, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from trainers.config.method_args import known
from trainers.config.methods import Method, parse_method
from trainers.labels import relabel
from trainers.labels.arms import ARMS, kind_of, operation
from trainers.labels.label_set import Array, LabelSet
from trainers.labels.operations import most_confident
from w2s_tasks.errors import UserError


def _labelled(n: int = 200, seed: int = 0, choices: int = 2, skew: float = 0.3) -> tuple[LabelSet, Array]:
    """Labels that are often right, and what is right."""
    rng = np.random.default_rng(seed)
    gold = (rng.random(n) < skew).astype(int) if choices == 2 else rng.integers(choices, size=n)
    logits = rng.normal(size=(n, choices)) + 1.2 * np.eye(choices)[gold] + 0.8 * np.arange(choices)
    soft = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return LabelSet(tuple(f"r{i}" for i in range(n)), soft), gold


def _labels(n: int = 200, seed: int = 0, choices: int = 2) -> LabelSet:
    return _labelled(n, seed, choices)[0]


def _confusion(labels: LabelSet, gold: Array) -> list[list[int]]:
    table = np.zeros((labels.soft.shape[1],) * 2, dtype=int)
    np.add.at(table, (gold, labels.hard), 1)
    return table.tolist()


def _apply(name: str, labels: LabelSet, seed: int = 0, **settings: object) -> LabelSet:
    return operation(name)(labels, np.random.default_rng(seed), **settings)


@pytest.mark.parametrize("choices", [2, 3])
def test_noise_matched_keeps_the_confusion_matrix_and_moves_the_errors(choices: int):
    labels, gold = _labelled(choices=choices)
    noisy = _apply("noise_matched", labels, gold=gold)
    assert _confusion(noisy, gold) == _confusion(labels, gold)
    assert (noisy.hard != labels.hard).sum() > 20
    assert sorted(noisy.soft[:, 0]) == pytest.approx(sorted(labels.soft[:, 0]))
    assert noisy.row_id == labels.row_id
    # The errors no longer follow the rows: over many draws every row of a class is wrong equally often.
    wrong = np.mean([_apply("noise_matched", labels, s, gold=gold).hard != gold for s in range(400)], axis=0)
    for right in range(choices):
        share = (labels.hard != gold)[gold == right].mean()
        assert wrong[gold == right] == pytest.approx(share, abs=0.12)


@pytest.mark.parametrize("choices", [2, 3])
def test_confidence_matched_keeps_confusion_confidence_and_calibration_and_moves_the_errors(choices: int):
    labels, gold = _labelled(1000, choices=choices)
    right, sure = labels.hard == gold, labels.confidence[:, 0]
    dealt = [_apply("confidence_matched", labels, seed, gold=gold) for seed in range(200)]
    for one in dealt[:3]:
        assert _confusion(one, gold) == _confusion(labels, gold)
        assert one.confidence[:, 0] == pytest.approx(sure)
        assert np.sort(one.soft) == pytest.approx(np.sort(labels.soft))
    moved = np.mean([one.hard == gold for one in dealt], axis=0)
    # A tenth of a class stays as often right as it was, and each of its rows is so as often as the others.
    for one in range(choices):
        of_class = np.flatnonzero(gold == one)
        for rows in np.array_split(of_class[np.argsort(sure[of_class], kind="stable")], 10):
            assert moved[rows] == pytest.approx(right[rows].mean(), abs=0.16)  # 200 draws: a standard error of .035
    # noise_matched moves the confidence with the label.
    assert np.abs(_apply("noise_matched", labels, gold=gold).confidence[:, 0] - sure).mean() > 0.02


def test_the_hard_control_has_the_supervisors_decisions_alone():
    labels, gold = _labelled(choices=3)
    hard = _apply("noise_matched_hard", labels, gold=gold)
    assert set(np.unique(hard.soft)) == {0.0, 1.0}
    assert _confusion(hard, gold) == _confusion(labels, gold)
    assert (hard.soft == _apply("noise_matched", labels, gold=gold).hardened().soft).all()


def test_random_and_permuted_labels_hold_no_information():
    labels, gold = _labelled(4000)
    assert _apply("random_labels", labels).hard.mean() == pytest.approx(0.5, abs=0.03)
    permuted = _apply("permuted_labels", labels)
    assert permuted.hard.mean() == labels.hard.mean()
    chance = (labels.hard.mean() * gold.mean()) + (1 - labels.hard.mean()) * (1 - gold.mean())
    assert (permuted.hard == gold).mean() == pytest.approx(chance, abs=0.03)


def test_the_filter_keeps_the_surest_rows_and_their_labels():
    labels, gold = _labelled()
    kept = _apply("filter", labels, keep=0.25, by_class=False)
    assert len(kept) == 50
    where = [labels.row_id.index(i) for i in kept.row_id]
    assert where == sorted(where)
    assert (kept.soft == labels.soft[where]).all()
    left = np.setdiff1d(np.arange(200), where)
    assert labels.soft[where].max(1).min() >= labels.soft[left].max(1).max()
    assert (kept.hard == gold[where]).mean() > (labels.hard == gold).mean()


def test_the_filter_by_class_keeps_the_class_shares():
    labels = _labels()
    kept = _apply("filter", labels, keep=0.5, by_class=True)
    for c in (0, 1):
        assert (kept.hard == c).sum() == -(-(labels.hard == c).sum() // 2)
    assert len(_apply("filter", labels, keep=1.0, by_class=True)) == 200
    assert _apply("filter", labels).row_id == kept.row_id
    assert known()().of("filter") == {"keep": 0.5, "by_class": True}
    assert most_confident(labels, 1e-9, True).sum() == 2  # never less than one row a class


def test_the_filter_takes_its_share_of_every_predicted_class_by_itself():
    # Sureness by class: 0 at rows 0, 3, 4, 6; 1 at rows 1, 5; 2 at row 2. Half of four, of two and (rounded up) of one.
    sure = np.array([0.9, 0.6, 0.5, 0.8, 0.95, 0.7, 0.4])
    hard = np.array([0, 1, 2, 0, 0, 1, 0])
    soft = np.where(np.arange(3) == hard[:, None], sure[:, None], (1 - sure[:, None]) / 2)
    labels = LabelSet(tuple("abcdefg"), soft)
    assert np.flatnonzero(most_confident(labels, 0.5, True)).tolist() == [0, 2, 4, 5]
    assert np.flatnonzero(most_confident(labels, 0.5, False)).tolist() == [0, 3, 4, 5]


def test_equally_sure_rows_are_kept_in_their_order():
    labels = _labels().hardened()
    assert np.flatnonzero(most_confident(labels, 0.1, False)).tolist() == list(range(20))


def test_balance_gives_every_labelled_class_as_many_rows_as_the_rarest():
    labels = _labels(choices=3)
    balanced = _apply("balance", labels)
    counts = np.bincount(labels.hard)
    assert np.bincount(balanced.hard).tolist() == [counts.min()] * 3
    assert set(balanced.row_id) <= set(labels.row_id)
    assert balanced.row_id != _apply("balance", labels, seed=1).row_id


def test_harden_puts_all_weight_on_one_choice():
    hard = _apply("harden", _labels())
    assert set(hard.soft.ravel()) == {0.0, 1.0}
    assert (hard.hard == _labels().hard).all()


def test_an_ensemble_is_the_weighted_mean_of_probabilities():
    a, b = _labels(seed=0), _labels(seed=0)
    b = b.with_soft(b.soft[:, ::-1])
    assert relabel.average([a, b], [0.5, 0.5]).soft == pytest.approx(0.5)
    assert relabel.average([a, b], [0.75, 0.25]).soft == pytest.approx(0.75 * a.soft + 0.25 * b.soft)
    with pytest.raises(UserError, match="different rows"):
        relabel.average([a, a.subset(np.arange(200) > 0)], [0.5, 0.5])


def _fitted(folder: Path, name: str, accuracy: float | None, rows: int = 99) -> Path:
    path = folder / name
    path.mkdir()
    curve = [{"step": 1, "loss": 0.7}]
    curve += [
        {"step": s, "eval_accuracy": a, "eval_rows": rows} for s, a in ((1, 0.5), (2, accuracy)) if accuracy is not None
    ]
    (path / "curves.json").write_text(json.dumps(curve))
    return path


def test_members_are_weighted_by_the_log_odds_of_their_last_held_out_accuracy(tmp_path: Path):
    good, fair, coin = (_fitted(tmp_path, str(a), a) for a in (0.9, 0.7, 0.4))
    weights = relabel.ensemble_weights("accuracy", [good, fair, coin])
    odds = [np.log((99 * a + 0.5) / (99 * (1 - a) + 0.5)) for a in (0.9, 0.7)]
    assert weights == pytest.approx([odds[0] / sum(odds), odds[1] / sum(odds), 0.0])
    assert relabel.ensemble_weights("accuracy", [coin, coin]) == [0.5, 0.5]
    assert relabel.ensemble_weights("mean", [good, coin]) == [0.5, 0.5]
    assert relabel.ensemble_weights([3, 1], [good, coin]) == [0.75, 0.25]
    assert relabel.log_odds_weight(1.0, 10_000) == relabel.LARGEST_LOG_ODDS
    with pytest.raises(UserError, match=r"raise weak\.holdout"):
        relabel.ensemble_weights("accuracy", [_fitted(tmp_path, "none", None)])


def test_relabelling_keeps_sure_weak_labels_and_adds_sure_new_ones():
    labels = _labels()
    left = relabel.discarded(labels, 0.5, True)
    kept = _apply("filter", labels, keep=0.5, by_class=True)
    assert set(left.row_id) | set(kept.row_id) == set(labels.row_id)
    assert not set(left.row_id) & set(kept.row_id)
    new = left.with_soft(left.soft[:, ::-1])
    both = relabel.two_stage(labels, new, keep=0.5, add=0.4, by_class=True)
    assert both.row_id[: len(kept)] == kept.row_id
    assert (both.soft[: len(kept)] == kept.soft).all()
    added = both.subset(np.arange(len(both)) >= len(kept))
    assert abs(len(added) - 0.4 * len(left)) <= 2
    assert set(added.row_id) <= set(left.row_id)
    by_id = dict(zip(new.row_id, new.soft.tolist(), strict=True))
    assert all(by_id[i] == s for i, s in zip(added.row_id, added.soft.tolist(), strict=True))
    refused = new.subset(np.arange(len(new)) != 0)
    assert new.row_id[0] not in relabel.two_stage(labels, refused, keep=0.5, add=1.0, by_class=True).row_id
    with pytest.raises(UserError, match="did not label the rows"):
        relabel.two_stage(labels, labels, keep=0.5, add=0.4, by_class=True)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("xent", Method()),
        ("logconf", Method((), "logconf")),
        ("filter", Method(("filter",), "xent")),
        ("ensemble+filter+harden+product", Method(("ensemble", "filter", "harden"), "product")),
        ("bootstrap+relabel", Method(("bootstrap", "relabel"), "xent")),
    ],
)
def test_method_names_are_read_from_left_to_right(name: str, method: Method):
    assert parse_method(name) == method


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("xnet", "no method 'xnet'.* Did you mean 'xent'"),
        ("logconf+window", "two losses"),
        ("filter+filter", "a part twice"),
        ("logconf+filter", r"the loss comes last, as in filter\+logconf"),
        ("filter+ensemble", "ensemble comes first"),
        ("harden+filter", "needs soft labels"),
        ("", "no method ''"),
    ],
)
def test_method_names_that_make_no_sense_are_refused(name: str, message: str):
    with pytest.raises(ValueError, match=message):
        parse_method(name)


def test_an_arm_is_known_with_its_shots_too():
    assert kind_of("few_shot(16)") is kind_of("few_shot") is ARMS["few_shot"]
    assert kind_of("ceiling") is ARMS["ceiling"]
    assert {name for name, kind in ARMS.items() if kind.model == "weak"} == {"weak", "weak_untrained"}
    assert {name for name, kind in ARMS.items() if kind.teacher is None} == {
        "zero_shot",
        "zero_shot_calibrated",
        "few_shot",
        "weak",
        "weak_untrained",
    }
    assert len({kind.colour for kind in ARMS.values()}) == len(ARMS)


# ---- gold labels and weights --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["random", "uncertain"])
def test_a_budget_of_gold_labels_replaces_as_many_and_no_other(how: str):
    labels, gold = _labelled(100, choices=3)
    made = operation("gold")(labels, np.random.default_rng(1), gold, rows=20, how=how)
    exact = np.eye(3)[gold]
    chosen = np.flatnonzero((made.soft != labels.soft).any(axis=1))
    assert len(chosen) == 20
    assert (made.soft[chosen] == exact[chosen]).all()
    if how == "uncertain":
        rest = np.setdiff1d(np.arange(100), chosen)
        assert labels.confidence[chosen].max() <= labels.confidence[rest].min()
    everything = operation("gold")(labels, np.random.default_rng(1), gold, rows=1000, how=how)
    assert (everything.soft == exact).all()


def test_weights_stay_with_their_rows(tmp_path: Path):
    labels = _labels(6)
    weight = np.array([0.0, 1, 2, 3, 4, 5])
    weighed = labels.with_weight(weight)
    assert weighed.take([5, 0]).weight.tolist() == [5, 0]
    assert weighed.hardened().weight.tolist() == weighed.with_soft(labels.soft).weight.tolist() == weight.tolist()
    other = LabelSet(("x",), labels.soft[:1])
    assert weighed.join(other).weight.tolist() == [*weight, 1]
    assert other.join(weighed).weight.tolist() == [1, *weight]
    weighed.save(tmp_path / "l.parquet")
    assert LabelSet.load(tmp_path / "l.parquet").weight.tolist() == weight.tolist()
    labels.save(tmp_path / "l.parquet")
    assert LabelSet.load(tmp_path / "l.parquet").weight is None


@pytest.mark.parametrize("weight", [[1.0], [-1.0, 1, 1], [np.nan, 1, 1], [np.inf, 1, 1], [0.0, 0, 0]])
def test_weights_that_mean_nothing_are_refused(weight: list[float]):
    with pytest.raises(UserError, match="weights are one number from 0 for each of 3 rows"):
        _labels(3).with_weight(np.array(weight))
