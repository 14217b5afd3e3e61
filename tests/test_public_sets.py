"""StereoSet, BBQ and Social IQa: rows, scores by hand, and lm_eval's own acc_norm on the same rows."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from trainers.report.collected import parts_of
from w2s_tasks import TASK_PATH
from w2s_tasks.plugin.manager import W2STaskManager
from w2s_tasks.results.read import read_evaluation
from w2s_tasks.rows import public_sets
from w2s_tasks.scoring import free_text as ft

NAMES = ("w2s_stereoset", "w2s_stereoset_sense", "w2s_bbq", "w2s_social_iqa")


def lm_eval(harness_names: list[str], out: Path, model: object = "dummy", **settings: object) -> dict:
    """lm_eval's results of a model (by default one of random answers), and its files below `out`."""
    import lm_eval as lm
    from lm_eval.loggers import EvaluationTracker

    tracker = EvaluationTracker(output_path=str(out))
    found = lm.simple_evaluate(
        model, tasks=harness_names, task_manager=W2STaskManager(), bootstrap_iters=0, log_samples=True, **settings
    )
    samples = found.pop("samples")
    tracker.save_results_aggregated(results=found, samples=samples)
    for name in found["configs"]:
        tracker.save_results_samples(task_name=name, samples=samples[name])
    return found["results"]


@pytest.fixture(scope="module")
def tasks() -> dict:
    return W2STaskManager().load(list(NAMES))["tasks"]


@pytest.mark.pypi
def test_the_sets_have_their_sizes_and_every_cluster_is_on_one_side(tasks: dict):
    rows = {name: {s: task.dataset[s] for s in ("train", "validation")} for name, task in tasks.items()}
    sizes = {name: sum(map(len, splits.values())) for name, splits in rows.items()}
    assert sizes == {"w2s_stereoset": 2123, "w2s_stereoset_sense": 4246, "w2s_bbq": 1012, "w2s_social_iqa": 1935}
    for splits in rows.values():
        assert not set(splits["train"]["w2s_group"]) & set(splits["validation"]["w2s_group"])
        assert len(splits["train"]) >= public_sets.SHOTS
        share = np.bincount(splits["validation"]["label"]) / len(splits["validation"])
        assert np.abs(share - 1 / len(share)).max() < 0.06  # no place among the choices is the right one more often


@pytest.mark.pypi
def test_the_first_rows_are_a_sample_of_all(tasks: dict):
    """A limit takes the first rows: they must not be of a few targets or of one kind."""
    first = tasks["w2s_stereoset"].dataset["validation"][:250]
    assert len(set(first["target"])) > 60
    assert set(Counter(first["bias_type"])) == {"race", "profession", "gender", "religion"}
    pairs = tasks["w2s_stereoset_sense"].dataset["validation"][:40]
    assert pairs["context"][::2] == pairs["context"][1::2]  # both sentences of a context stand together


@pytest.mark.pypi
def test_bbqs_ambiguous_rows_are_those_that_can_not_be_told(tasks: dict):
    rows = tasks["w2s_bbq"].dataset["validation"]
    answers = [choices[label] for choices, label in zip(rows["choices"], rows["label"], strict=True)]
    ambiguous = [answer for answer, kind in zip(answers, rows["ambiguous"], strict=True) if kind]
    told = [answer for answer, kind in zip(answers, rows["ambiguous"], strict=True) if not kind]
    assert len(set(ambiguous)) < 12 < len(set(told))  # a few phrases, against people
    assert 0.4 < len(ambiguous) / len(answers) < 0.6


@pytest.mark.pypi
def test_scores_are_lm_evals_own_and_their_rows_are_read_as_such(tmp_path: Path, tasks: dict):
    results = lm_eval(list(NAMES), tmp_path, limit=60)
    found = read_evaluation(tmp_path)
    for name in NAMES:
        scores = found[name]
        assert scores.metrics["acc"] == results[name]["acc_norm,none"]  # the score that the task names
        assert scores.correct.mean() == pytest.approx(results[name]["acc_norm,none"])
        assert scores.cluster is not None
        assert not scores.classes
        assert scores.logliks is not None
        docs = tasks[name].dataset["validation"].select(range(60))
        plain = scores.logliks * np.array([[len(choice) for choice in doc["choices"]] for doc in docs])
        assert (plain.argmax(axis=1) == docs["label"]).mean() == pytest.approx(results[name]["acc,none"])
    preference = results["w2s_stereoset"]
    assert preference["ss,none"] == pytest.approx(1 - found["w2s_stereoset"].correct.mean(), abs=0.15)
    assert results["w2s_bbq"]["ambiguous,none"] >= 0
    assert results["w2s_social_iqa"]["mrr,none"] > 1 / 3


@pytest.mark.pypi
def test_shots_are_balanced_over_the_places_and_never_evaluated(tasks: dict):
    task = tasks["w2s_social_iqa"]
    task.set_fewshot_seed(1234)
    shots = task.sampler.sample(6)
    assert Counter(shot["label"] for shot in shots) == {0: 2, 1: 2, 2: 2}
    assert not {s["context"] for s in shots} & set(task.dataset["validation"]["context"])
    text = task.fewshot_context(task.dataset["validation"][0], 2)
    assert text.count("\nA: ") == 2
    assert text.endswith("\nA:")


@pytest.mark.pypi
def test_a_limit_within_one_cluster_is_read(tmp_path: Path):
    lm_eval(["w2s_stereoset_sense"], tmp_path, limit=2)
    scores = read_evaluation(tmp_path)["w2s_stereoset_sense"]
    assert scores.n == 2
    assert "acc" not in scores.stderr  # one cluster tells nothing of their spread


@pytest.mark.pypi
def test_a_preference_is_in_no_mean(tmp_path: Path):
    lm_eval(["w2s_stereoset", "w2s_social_iqa"], tmp_path, limit=8)
    scores = read_evaluation(tmp_path)
    assert scores["w2s_stereoset"].ideal == 0.5
    assert parts_of(scores) == [("test", False, ["w2s_social_iqa"])]


def test_a_silent_row_prefers_nothing():
    doc = {"choices": ["ab", "cd"], "label": 0, "w2s_group": 3}
    silent, said = ft.stereotype(doc, [(-math.inf, False)] * 2), ft.stereotype(doc, [(-2.0, False), (-1.0, False)])
    assert silent["acc_norm"] == (3, 0.0)
    assert ft.over_targets([silent["ss"], said["ss"]]) == 1.0
    assert math.isnan(ft.over_targets([silent["ss"]]))


def test_scores_by_hand():
    doc = {"choices": ["ab", "abcdefgh", "abcd"], "label": 1, "w2s_group": 7}
    item = ft.choice(doc, [(-2.0, False), (-4.0, False), (-3.0, False)])
    assert item["acc"] == (7, 0.0)
    assert item["acc_norm"] == (7, 1.0)  # -1, -0.5, -0.75 a character
    assert item["mrr"] == (7, 1.0)
    worse = ft.choice(doc, [(-0.2, False), (-4.0, False), (-1.0, False)])
    assert worse["mrr"] == (7, 1 / 3)
    silent = ft.choice(doc, [(-math.inf, False)] * 3)
    assert (silent["acc_norm"], silent["mrr"]) == ((7, 0.0), (7, 1 / 3))
    broken = ft.choice(doc, [(math.nan, False), (-1.0, False), (-1.0, False)])
    assert math.isnan(broken["acc_norm"][1])


def test_targets_count_alike_whatever_their_number_of_rows():
    items = [(0, 1.0)] * 9 + [(1, 0.0)]
    assert ft.mean(items) == pytest.approx(0.9)
    assert ft.over_targets(items) == pytest.approx(0.5)
    assert ft.over_targets_stderr(items) == pytest.approx(0.5)


def test_the_rows_of_a_kind_are_scored_apart():
    items = [(0, 1.0, True), (1, 0.0, True), (2, 1.0, False)]
    assert ft.ambiguous(items) == 0.5
    assert ft.disambiguated(items) == 1.0
    assert math.isnan(ft.ambiguous(items[2:]))


def test_every_public_set_has_a_readme_that_names_its_paper():
    for folder in ("stereoset", "bbq", "social_iqa"):
        text = (TASK_PATH / folder / "README.md").read_text(encoding="utf-8")
        assert "https://" in text
        assert "@inproceedings" in text
        assert "icence" in text
