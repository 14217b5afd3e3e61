"""Calibrated scores: the published formulas by hand, and `calibrate=` of w2s-hf through lm_eval itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bad_input import one_clear_error
from scipy.special import softmax

from trainers.config.reading import load
from trainers.harness import evaluate as hn
from trainers.labels.label_set import LabelSet
from trainers.labels.operations import METHOD_OPS
from w2s_tasks.errors import UserError
from w2s_tasks.models.packed_hf import W2SHF
from w2s_tasks.models.ref import ModelRef
from w2s_tasks.results.calibrated import calibrated, mass
from w2s_tasks.results.read import TaskScores, read_evaluation
from w2s_tasks.results.stats import mean_accuracy
from w2s_tasks.scoring.calibration import CONTENT_FREE, batch_calibrated, content_free, frame, premise

RNG = np.random.default_rng(2)
PROMPTS = [f"Review: {text}\nSentiment:" for text in ("bad film", "bold acting", "a bore")]


def scores(logliks: Any, gold: Any, **more: Any) -> TaskScores:
    """A model's answers."""
    logliks, gold = np.asarray(logliks, dtype=float), np.asarray(gold)
    predicted = logliks.argmax(axis=1)
    correct, units = (predicted == gold).astype(float), tuple(map(str, range(len(gold))))
    return TaskScores("t", len(gold), {}, {}, units, correct, predicted=predicted, gold=gold, logliks=logliks, **more)


# ---- formulas ---------------------------------------------------------------------------------------------------------


def test_batch_calibration_is_the_papers():
    """Zhou et al. 2023, eq. 3 and 4: p(y | x) over its mean over the batch, then the largest."""
    logliks = RNG.normal([0.0, 2.0, -1.0], 1.0, size=(50, 3))
    p = softmax(logliks, axis=1)
    expected = p / p.mean(axis=0)
    found = np.exp(batch_calibrated(logliks))
    assert found == pytest.approx(expected / expected.sum(axis=1, keepdims=True))
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).all()


def test_a_preference_is_taken_out_and_what_rows_say_stays():
    gold = np.arange(400) % 2
    known = RNG.normal(np.where(gold == 1, 0.5, -0.5), 1.0)
    preferring = scores(np.stack([np.zeros(400), known + 5], axis=1), gold)  # answers 1 to everything
    even = scores(np.stack([np.zeros(400), known], axis=1), gold)
    assert preferring.correct.mean() == pytest.approx(0.5, abs=0.01)
    found = calibrated(preferring)
    assert found is not None
    assert found.correct.mean() == pytest.approx(even.correct.mean(), abs=0.03)


def test_a_row_without_an_answer_stays_wrong_and_says_nothing_of_the_prior():
    logliks = np.array([[-1.0, -2.0], [-1.0, -1.5], [0.0, 0.0]])
    given = scores(logliks, [0, 1, 0])
    silent = TaskScores(**{**vars(given), "predicted": np.array([0, 0, -1]), "correct": np.array([1.0, 0.0, 0.0])})
    found, alone = calibrated(silent), calibrated(scores(logliks[:2], [0, 1]))
    assert found is not None
    assert alone is not None
    assert found.correct.tolist() == [*alone.correct.tolist(), 0.0]
    assert found.predicted is not None
    assert found.predicted[2] == -1


@pytest.mark.parametrize(("n", "shift", "share"), [(60, 1.0, 0.5), (200, 3.0, 0.5), (600, 1.0, 0.3)])
def test_the_interval_of_calibrated_accuracy_covers(n: int, shift: float, share: float):
    """The prior is estimated from the very rows; the truth is accuracy with the prior of all rows. 500 draws: ± 1 point."""
    rng = np.random.default_rng(9)

    def right(rows: int) -> np.ndarray:
        gold = (rng.random(rows) < share).astype(int)
        margin = rng.normal(np.where(gold == 1, 0.7, -0.7), 1.5) + shift
        found = calibrated(scores(np.stack([np.zeros(rows), margin], axis=1), gold))
        assert found is not None
        return found.correct

    truth = right(200_000).mean()
    ends = [mean_accuracy(right(n)[None])[1:] for _ in range(500)]
    assert np.mean([low <= truth <= high for low, high in ends]) >= 0.92


def test_choices_of_their_own_have_no_prior_and_no_mass():
    given = scores([[-1.0, -2.0], [-2.0, -1.0]], [0, 1], classes=False)
    assert calibrated(given) is None
    assert mass(given) is None


def test_a_model_without_a_say_keeps_its_answer():
    """All rows alike: nothing is left of the answers, so the plain ones stay; and decisions have no prior at all."""
    gold = (np.arange(100) < 70).astype(int)
    alike = scores(np.tile([-3.0, -1.0], (100, 1)), gold)
    found = calibrated(alike)
    assert found is not None
    assert found.correct.mean() == alike.correct.mean() == 0.7
    assert calibrated(scores(np.tile([-100.0, 0.0], (100, 1)), gold, mode="generated")) is None


def test_a_class_without_any_probability_keeps_none():
    collapsed = LabelSet(("a", "b"), np.array([[1.0, 0.0], [1.0, 0.0]]))
    assert METHOD_OPS["calibrate"](collapsed, RNG).soft == pytest.approx(collapsed.soft)


def test_the_mass_of_the_choices():
    assert mass(scores(np.log([[0.3, 0.1], [0.05, 0.15]]), [0, 1])) == pytest.approx(0.3)


def test_labels_are_calibrated_as_scores_are():
    soft = softmax(RNG.normal([0.0, 2.0], 1.0, size=(30, 2)), axis=1)
    labels = METHOD_OPS["calibrate"](LabelSet(tuple(map(str, range(30))), soft), RNG)
    assert labels.soft == pytest.approx(np.exp(batch_calibrated(np.log(soft))))
    hard = LabelSet(("a", "b"), np.eye(2))
    assert METHOD_OPS["calibrate"](hard, RNG).soft == pytest.approx(np.eye(2))


# ---- what prompts have in common --------------------------------------------------------------------------------------


def test_the_frame_of_prompts_is_their_template():
    assert frame(PROMPTS) == ("Review: ", "\nSentiment:")
    assert content_free(PROMPTS) == [f"Review: {text}\nSentiment:" for text in CONTENT_FREE]
    assert premise(PROMPTS) == "Sentiment:"


def test_the_premise_of_a_chat_keeps_what_the_answer_comes_after():
    chat = [f"<|user|>\nReview: {text}\nSentiment:<|end|>\n<|assistant|>\n" for text in ("a", "b")]
    assert premise(chat) == "<|assistant|>\n"


def test_texts_that_begin_or_end_alike_are_no_part_of_the_frame():
    alike = [f"Review: {text}\nSentiment:" for text in ("unbearable plot", "unbelievable plot")]
    assert frame(alike)[0] == "Review: "
    assert frame(alike)[1] == " plot\nSentiment:"  # whole words that all rows share can't be told from a template
    assert frame(["one", "one two"]) == ("", "")
    assert premise(["a b", "c d"]) == ""


def test_shots_that_all_documents_share_are_part_of_the_frame():
    shots = "Review: fine\nSentiment: positive\n\n"
    assert frame([shots + prompt for prompt in PROMPTS])[0] == f"{shots}Review: "


# ---- through lm_eval --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(causal_model: Callable[[str], Path]) -> Path:
    return causal_model("llama")


def evaluated(model: Path, task: str, out: Path, **args: Any) -> dict[str, TaskScores]:
    harness = hn.Harness()
    ref = ModelRef("w2s-hf", {"pretrained": str(model), "dtype": "float32", **args})
    hn.evaluate(harness, hn.ModelPool(), ref, {harness.task(task): 24}, out, style=hn.PromptStyle(0))
    return read_evaluation(out)


PROBE = "w2s_ethics_probe_justice"


def test_calibrated_evaluations_differ_by_a_constant_a_choice(model: Path, tmp_path: Path):
    plain = evaluated(model, PROBE, tmp_path / "plain")[PROBE]
    assert plain.logliks is not None
    for how in ("batch", "contextual", "domain"):
        found = evaluated(model, PROBE, tmp_path / how, calibrate=how)[PROBE]
        assert found.logliks is not None
        prior = plain.logliks - found.logliks
        assert np.ptp(prior, axis=0).max() < 1e-4
        assert np.abs(prior).max() > 1e-3
    p = softmax(plain.logliks, axis=1)
    batch = read_evaluation(tmp_path / "batch")[PROBE]
    assert batch.predicted is not None
    assert (batch.predicted == (p / p.mean(axis=0)).argmax(axis=1)).all()
    by_rows = calibrated(plain)
    assert by_rows is not None
    assert (batch.correct == by_rows.correct).all()  # the arm and the report's column are one thing


def test_the_priors_are_those_of_the_papers_prompts(model: Path, tmp_path: Path):
    plain = evaluated(model, PROBE, tmp_path / "plain")[PROBE]
    task = hn.Harness().task(PROBE)
    docs = list(task.task.eval_docs)[:24]
    prompts, choices = task.prompts(docs, hn.PromptStyle(0)), [f" {choice}" for choice in task.classes]
    lm = W2SHF(str(model), dtype="float32")

    def asked(texts: list[str]) -> np.ndarray:
        from lm_eval.api.instance import Instance

        requests = [Instance("loglikelihood", {}, (text, choice), 0) for text in texts for choice in choices]
        return np.array([x for x, _ in lm.loglikelihood(requests, disable_tqdm=True)]).reshape(len(texts), -1)

    assert plain.logliks is not None
    contextual = evaluated(model, PROBE, tmp_path / "c", calibrate="contextual")[PROBE]
    expected = plain.logliks - np.log(softmax(asked(content_free(prompts)), axis=1).mean(axis=0))
    assert contextual.logliks == pytest.approx(expected, abs=1e-4)
    assert premise(prompts) == "Answer:"
    domain = evaluated(model, PROBE, tmp_path / "d", calibrate="domain")[PROBE]
    assert domain.logliks == pytest.approx(plain.logliks - asked(["Answer:"]), abs=1e-4)


@pytest.mark.pypi
def test_only_domain_calibration_takes_choices_of_their_own(model: Path, tmp_path: Path):
    name = "w2s_social_iqa"
    plain, found = (
        evaluated(model, name, tmp_path / "p")[name],
        evaluated(model, name, tmp_path / "d", calibrate="domain")[name],
    )
    assert plain.logliks is not None
    assert found.logliks is not None
    assert np.abs(plain.logliks - found.logliks).max() > 1e-3
    with pytest.raises(UserError, match=r"the rows of w2s_social_iqa have choices of their own.*calibrate=domain"):
        evaluated(model, name, tmp_path / "b", calibrate="batch")


def test_mistakes_of_the_user_are_one_clear_error(model: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"calibrate='bach': no such calibration. Did you mean .?batch"):
        W2SHF(str(model), calibrate="bach")
    lm = W2SHF(str(model), calibrate="batch")
    with pytest.raises(UserError, match="leave --use_cache out"):
        lm.set_cache_hook(None)
    task = hn.Harness().task(PROBE)
    alone = task.requests(list(task.task.eval_docs)[:1], hn.PromptStyle(0), lm)
    with pytest.raises(UserError, match="has one prompt here"):
        lm.loglikelihood(alone)


def test_choices_that_are_prompts_have_no_prior(model: Path):
    from lm_eval.api.instance import Instance

    lm = W2SHF(str(model), calibrate="batch")
    asked = [Instance("loglikelihood", {}, (f"prompt {k} {i}", " end"), k, ("t", i, 1)) for i in range(3) for k in range(2)]
    with pytest.raises(UserError, match="the choices of t are prompts"):
        lm.loglikelihood(asked)


def test_one_base_serves_plain_and_calibrated_answers(model: Path):
    pool, ref = hn.ModelPool(), {"pretrained": str(model)}
    first = pool.load(ModelRef("w2s-hf", {**ref, "calibrate": "batch"}))
    assert pool.load(ModelRef("w2s-hf", ref)) is first
    assert first.calibrate is None  # type: ignore[attr-defined]


def test_the_arms_need_a_model_that_is_asked_here(experiment_file: Path):
    arms = "arms=[zero_shot_calibrated]"
    one_clear_error(
        lambda: load(str(experiment_file), [arms, "evaluate.engine=vllm"]),
        "zero_shot_calibrated needs strong.trainer: full, lora or probe, evaluated here",
    )
    one_clear_error(
        lambda: load(str(experiment_file), [arms, "resources={evaluate: {processes: 2}}"]),
        "zero_shot_calibrated is evaluated in one process",
    )
    config = load(str(experiment_file), [arms, "evaluate.calibration=domain"])[0]
    assert config.evaluate.calibration == "domain"
