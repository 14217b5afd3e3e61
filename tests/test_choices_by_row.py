"""Rows with choices of their own, in different numbers: labels, losses, trainers, controls, results and the report."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bad_input import one_clear_error
from conftest import BAD, EXPERIMENT, FILLER, GOOD
from test_own_rows import use, write

from trainers.config.reading import load
from trainers.fit import language_model, lora
from trainers.fit.lora import Lora
from trainers.fit.reward import Reward
from trainers.flow.progress import Progress
from trainers.flow.run import open_run
from trainers.harness import evaluate as hn
from trainers.labels.arms import ARMS, operation
from trainers.labels.gold import gold_labels
from trainers.labels.label_set import LabelSet
from trainers.report.report import write_report
from trainers.training.losses import ABSENT, LOSSES, State
from trainers.training.rows import normalised
from w2s_tasks.errors import UserError
from w2s_tasks.models.classifier import W2SClassifier
from w2s_tasks.models.ref import ModelRef
from w2s_tasks.results.diagnostics import capa
from w2s_tasks.results.read import read_evaluation

Models = Callable[[str], Path]


def ragged(n: int, seed: int, sizes: tuple[int, ...] = (2, 3, 5)) -> list[dict[str, Any]]:
    """Rows with one good word among bad ones."""
    rng = random.Random(seed)
    found = []
    for i in range(n):
        size = sizes[i % len(sizes)]
        choices = [*rng.sample(BAD, size - 1), rng.choice(GOOD)]
        rng.shuffle(choices)
        label = next(k for k, choice in enumerate(choices) if choice in GOOD)
        found.append({"text": f"{' '.join(rng.choices(FILLER, k=4))} {i}", "choices": choices, "label": label})
    return found


OWN = {"doc_to_text": "Which word is good, {{text}}?\nWord:", "doc_to_choice": "choices"}


@pytest.fixture
def ragged_task(tmp_path: Path) -> Path:
    return write(tmp_path / "own_tasks", ragged(240, 1), ragged(60, 2), **OWN)


# ---- labels ---------------------------------------------------------------------------------------------------------------

LISTS = [[0.5, 0.5], [0.1, 0.2, 0.7], [0.25, 0.75], [0.1, 0.2, 0.3, 0.4]]


@pytest.fixture
def labels() -> LabelSet:
    return LabelSet.of(("a", "b", "c", "d"), LISTS)


def test_labels_of_different_lengths_come_back_from_a_file_and_in_part(labels: LabelSet, tmp_path: Path):
    labels.save(tmp_path / "l.parquet")
    back = LabelSet.load(tmp_path / "l.parquet")
    assert back.lists == labels.lists == LISTS
    assert back.hard.tolist() == [0, 2, 1, 3]
    assert back.hardened().lists == [[1, 0], [0, 0, 1], [0, 1], [0, 0, 0, 1]]
    assert back.subset(np.array([True, False, True, False])).lists == [LISTS[0], LISTS[2]]
    assert back.take([3, 0]).row_id == ("d", "a")
    same = LabelSet.of(("a", "c"), [LISTS[0], LISTS[2]])
    assert same.sizes is None  # nothing differs


def test_a_probability_behind_the_last_choice_is_refused():
    with pytest.raises(UserError, match="behind a row's last choice"):
        LabelSet(("a", "b"), np.array([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]]), np.array([2, 3]))


def test_a_gold_label_outside_its_own_row_is_told():
    assert gold_labels(["a", "b"], [1, 2], [2, 3]).lists == [[0, 1], [0, 0, 1]]
    with pytest.raises(UserError, match="row b has the gold label 2, but there are 2 choices"):
        gold_labels(["a", "b"], [1, 2], [3, 2])


# ---- controls and operations ----------------------------------------------------------------------------------------------


def many(n: int = 600, seed: int = 0) -> tuple[LabelSet, np.ndarray]:
    """Labels that are right in some two thirds of rows of 2 to 6 choices."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, 7, size=n)
    gold = rng.integers(sizes)
    lists = []
    for size, right in zip(sizes, gold, strict=True):
        logits = rng.normal(size=size) + 1.6 * np.eye(size)[right]
        lists.append((np.exp(logits) / np.exp(logits).sum()).tolist())
    return LabelSet.of([str(i) for i in range(n)], lists), gold


def apply(name: str, labels: LabelSet, seed: int, *gold: np.ndarray) -> LabelSet:
    return operation(name)(labels, np.random.default_rng(seed), *gold)


def test_random_labels_are_even_over_each_rows_own_choices():
    labels, _ = many()
    drawn = np.stack([apply("random_labels", labels, seed).hard for seed in range(300)])
    for i in range(40):
        size = labels.sizes[i]
        assert drawn[:, i].max() == size - 1
        assert np.bincount(drawn[:, i], minlength=size) / 300 == pytest.approx(np.full(size, 1 / size), abs=0.12)


def test_permuted_labels_keep_each_rows_probabilities_and_no_information():
    labels, gold = many()
    right = [(apply("permuted_labels", labels, seed).hard == gold).mean() for seed in range(20)]
    assert np.mean(right) == pytest.approx((1 / labels.sizes).mean(), abs=0.02)
    dealt = apply("permuted_labels", labels, 0)
    assert [sorted(row) for row in dealt.lists] == [sorted(row) for row in labels.lists]


def test_noise_matched_labels_are_as_often_wrong_but_on_other_rows():
    labels, gold = many()
    share = (labels.hard == gold).mean()
    dealt = [apply("noise_matched", labels, seed, gold) for seed in range(200)]
    assert all((one.hard == gold).mean() == share for one in dealt)
    assert [sorted(row) for row in dealt[0].lists] == [sorted(row) for row in labels.lists]
    by_row = np.mean([one.hard == gold for one in dealt], axis=0)
    assert by_row[labels.hard == gold].mean() == pytest.approx(by_row[labels.hard != gold].mean(), abs=0.02)
    wrong = dealt[0].hard != gold
    assert len(set((dealt[0].hard - gold)[wrong].tolist())) > 3  # not one wrong choice for all


def test_confidence_matched_labels_are_as_often_wrong_among_equally_sure_rows():
    labels, gold = many()
    dealt = [apply("confidence_matched", labels, seed, gold) for seed in range(100)]
    assert all((one.hard == gold).mean() == (labels.hard == gold).mean() for one in dealt)
    assert all(one.confidence[:, 0] == pytest.approx(labels.confidence[:, 0]) for one in dealt[:3])
    by_row, order = np.mean([one.hard == gold for one in dealt], axis=0), np.argsort(labels.confidence[:, 0], kind="stable")
    for rows in np.array_split(order, 10):
        assert by_row[rows] == pytest.approx((labels.hard == gold)[rows].mean(), abs=0.22)  # 100 draws


def test_what_needs_classes_says_so():
    labels, _ = many(30)
    for name in ("calibrate", "balance"):
        with pytest.raises(UserError, match=f"{name} needs classes"):
            apply(name, labels, 0)
    kept = operation("filter")(labels, np.random.default_rng(0), keep=0.5)
    assert len(kept) == 15
    assert kept.soft.max(axis=1).min() >= np.sort(labels.soft.max(axis=1))[15]  # of all rows together


# ---- losses ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(LOSSES))
def test_a_loss_of_a_row_is_the_same_beside_rows_with_more_choices(name: str):
    """Value and gradient, of the row alone and in a table that is wider than the row."""
    torch.manual_seed(0)
    raw, target = torch.randn(3), torch.tensor([0.2, 0.7, 0.1])

    def run(width: int) -> tuple[float, torch.Tensor]:
        scores = raw.clone().requires_grad_()
        others = torch.randn(width) if width > 3 else torch.zeros(0)
        table = torch.zeros(1 + (width > 3), width)
        table[0, :3] = target
        if width > 3:
            table[1] = others.softmax(0)
        logprobs = normalised(torch.cat([scores, others]), table, [3, width] if width > 3 else [3])
        loss = LOSSES[name](logprobs, table, State(0.5, table.mean(0), None, classes=False))[0]
        loss.backward()
        return loss.item(), scores.grad

    value, gradient = run(3)
    wider, other = run(7)
    assert np.isfinite(value)
    assert wider == pytest.approx(value, abs=1e-6)
    assert other.tolist() == pytest.approx(gradient.tolist(), abs=1e-6)
    assert torch.isfinite(other).all()


def test_normalised_scores_stand_at_their_own_rows():
    scores = torch.tensor([1.0, 2.0, 0.5, 0.1, 3.0])
    found = normalised(scores, torch.zeros(2, 3), [2, 3])
    assert found[0].tolist() == pytest.approx([*scores[:2].log_softmax(0).tolist(), ABSENT])
    assert found[1].tolist() == pytest.approx(scores[2:].log_softmax(0).tolist())


# ---- trainers -------------------------------------------------------------------------------------------------------------


def test_the_lora_trainer_scores_every_choice_as_lm_eval_does(ragged_task: Path, causal_model: Models):
    task = use(ragged_task)
    ours: Any = hn.ModelPool().load(lora.base_ref(Lora(model=str(causal_model("llama")))))
    docs = task.train_docs[:6]
    requests = [ours.encode(task.pairs(doc, hn.PromptStyle())) for doc in docs]
    with torch.no_grad():
        found = language_model.choice_logprobs(ours.language_model, requests, torch.zeros(6, 5), ours.max_length)
    answers = iter(ours.loglikelihood(task.requests(docs, hn.PromptStyle()), disable_tqdm=True))
    for row, doc in zip(found, docs, strict=True):
        own = torch.tensor([next(answers)[0] for _ in doc["choices"]]).log_softmax(0)
        assert row[: len(own)].tolist() == pytest.approx(own.tolist(), abs=1e-4)
        assert (row[len(own) :] == ABSENT).all()


def run(file: Path, runs: Path, *settings: str) -> tuple[Any, dict[str, Any]]:
    flow = open_run(load(str(file), list(settings))[0], runs)
    flow.build(Progress(quiet=True))
    return flow, write_report(flow)[0].json()


def experiment(folder: Path, encoder: Path, strong: Path, **changes: str) -> Path:
    path = folder / "small.yaml"
    path.write_text(EXPERIMENT.format(encoder=encoder, strong=strong).replace(", text: text", ""))
    return path


def test_an_experiment_over_rows_of_two_to_five_choices(
    ragged_task: Path, tmp_path: Path, encoder_folder: Path, causal_model: Models
):
    """A cross-encoder teaches; every control, soft methods, and a report without classes."""
    file = experiment(tmp_path, encoder_folder, causal_model("llama"))
    arms = "arms=[zero_shot, few_shot(2), weak_untrained, student, ceiling, random_labels, permuted_labels, noise_matched]"
    flow, report = run(file, tmp_path / "runs", arms, "methods=[xent, filter+logconf]", "weak.epochs=12")
    assert {arm["arm"] for arm in report["arms"]} >= {"weak", "student", "noise_matched", "few_shot(2)"}
    weak = next(arm for arm in report["arms"] if arm["arm"] == "weak")
    assert weak["metrics"]["acc"] > 0.6  # the words tell, and chance is .34
    config = json.loads((flow.stages["fit/weak, seed 0"].path / "model" / "config.json").read_text())
    assert len(config["id2label"]) == 1
    labels = LabelSet.load(flow.stages["labels/weak, seed 0"].path / "labels.parquet")
    assert set(labels.sizes.tolist()) == {2, 3, 5}
    scores = read_evaluation(flow.stages["evaluate/zero_shot"].path)["own_reviews"]
    assert scores.sizes.tolist() == [2, 3, 5] * 20
    assert not scores.classes
    assert report["choices"] == []


def test_what_needs_classes_is_refused_before_anything_is_trained(
    ragged_task: Path, tmp_path: Path, encoder_folder: Path, causal_model: Models
):
    file = experiment(tmp_path, encoder_folder, causal_model("llama"))
    for setting, told in (
        ("arms=[unsupervised_spread]", "unsupervised_spread needs classes"),
        ("methods=[balance]", "balance needs classes"),
        ("arms=[self_labels_calibrated]", "calibrate needs classes"),
    ):
        config, _ = load(str(file), [setting])
        one_clear_error(lambda config=config: open_run(config, tmp_path / "runs"), told)


def test_a_reward_model_learns_which_answer_is_good(
    ragged_task: Path, tmp_path: Path, encoder_folder: Path, causal_model: Models
):
    file = experiment(tmp_path, encoder_folder, causal_model("llama"))
    settings = ["arms=[student, ceiling]", "strong.trainer=reward", "strong.epochs=8", "weak.epochs=12"]
    flow, report = run(file, tmp_path / "runs", *settings)
    ceiling = next(arm for arm in report["arms"] if arm["arm"] == "ceiling")
    assert ceiling["metrics"]["acc"] > 0.6
    ref = ModelRef.load(flow.stages["fit/ceiling, seed 0"].path)
    assert (ref.model, ref.args["untrained_head"]) == ("w2s-classifier", 1)
    again = W2SClassifier(**ref.args)
    task = use(ragged_task)
    docs = list(task.task.eval_docs)
    answers = again.loglikelihood(task.requests(docs, hn.PromptStyle()), disable_tqdm=True)
    best = iter(answers)
    right = [int(np.argmax([next(best)[0] for _ in doc["choices"]])) == doc["label"] for doc in docs]
    assert np.mean(right) == pytest.approx(ceiling["metrics"]["acc"])


def test_arms_that_ask_the_untuned_model_are_refused_for_a_random_head(
    ragged_task: Path, tmp_path: Path, encoder_folder: Path, causal_model: Models
):
    file = experiment(tmp_path, encoder_folder, causal_model("llama"))
    for arm in ("zero_shot", "few_shot(4)", "random_shots", "self_labels", "unsupervised_unsearched"):
        changes = [f"arms=[student, {arm}]", "strong.trainer=reward"]
        one_clear_error(lambda changes=changes: load(str(file), changes), "random before")
    assert isinstance(load(str(file), ["arms=[student]", "strong.trainer=reward"])[0].strong, Reward)


def test_a_reward_of_two_answers_is_the_logistic_loss_on_their_difference():
    rewards = torch.tensor([0.3, 1.9], requires_grad=True)
    label = torch.tensor([[0.0, 1.0]])
    loss = LOSSES["xent"](normalised(rewards, label, [2]), label, State()).sum()
    assert loss.item() == pytest.approx(-torch.nn.functional.logsigmoid(rewards[1] - rewards[0]).item(), abs=1e-6)


# ---- the reader -----------------------------------------------------------------------------------------------------------


def test_agreement_beyond_chance_knows_each_rows_number_of_choices():
    """By hand: independent models, errors even over each row's wrong choices, come to 0."""
    rng = np.random.default_rng(0)
    n = 40_000
    sizes = rng.integers(2, 6, size=n)
    gold = np.zeros(n, dtype=int)
    tables = []
    for accuracy in (0.7, 0.6):
        chosen = np.where(rng.random(n) < accuracy, 0, 1 + rng.integers(sizes - 1))
        tables.append(np.eye(5)[chosen])
    assert capa(*tables, gold, sizes) == pytest.approx(0, abs=0.02)
    assert abs(capa(*tables, gold)) > 0.03  # as if all had five


def test_every_arm_has_an_answer_for_such_rows():
    """A new arm either takes rows of different numbers of choices or says that it can't."""
    labels, gold = many(50)
    for name, kind in ARMS.items():
        if kind.labels is None:
            continue
        if name == "self_labels_calibrated":
            continue  # refused: see above
        made = kind.labels(labels, np.random.default_rng(0), *([gold] if kind.sees_gold else []))
        assert made.soft[~made.present].sum() == 0, name
