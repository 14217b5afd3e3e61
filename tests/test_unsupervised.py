"""The search for labels that predict each other, on a model whose answers are known, and on a real one."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from trainers.fit import lora
from trainers.fit.lora import Lora
from trainers.harness import evaluate as hn
from trainers.labels import unsupervised
from trainers.labels.ask import label
from trainers.labels.label_set import LABELS, Array, LabelSet
from trainers.labels.unsupervised import Search, Unsupervised, find_labels
from trainers.steps.answers import SearchPart
from w2s_tasks.errors import UserError
from w2s_tasks.scoring.calibration import batch_calibrated

SETTINGS = Unsupervised(rows=32, groups=4, initial=8, steps=200)


class Nearby:
    """A stand-in for in-context learning: a row is like the context rows that are near it, and labels have a meaning.

    Rows lie at -1 or +1 with noise. The prediction follows the labels of similar rows in the context, a weak prior that
    places above 0 are called 1, and a strong pull towards the context's commoner label (what calibration has to undo).
    """

    def __init__(self, rows: int, seed: int, pull: float = 0.0) -> None:
        rng = np.random.default_rng(seed)
        self.gold = rng.permutation(np.resize([0, 1], rows))
        self.place = (2 * self.gold - 1) + rng.normal(scale=0.4, size=rows)
        self.pull, self.calls = pull, 0

    def __call__(self, context, rows) -> Array:
        self.calls += 1
        logit = 0.5 * self.place[list(rows)]
        if context:
            where, labels = np.array(context).T
            sign = 2 * labels - 1
            logit = logit + 2 * np.tanh(self.place[list(rows)][:, None] * self.place[where][None]) @ sign / len(where)
            logit = logit + self.pull * sign.mean()
        p = 1 / (1 + np.exp(-logit))
        return np.log(np.stack([1 - p, p], axis=1))


@pytest.mark.parametrize("seed", range(10))
def test_the_search_finds_the_labels_from_random_ones(seed: int, tmp_path: Path):
    model = Nearby(200, seed)
    labels, search = find_labels(SETTINGS, model, 200, 2, np.random.default_rng(seed), tmp_path, "search")
    assert (labels == model.gold).mean() > 0.95
    assert search.trace is not None
    assert search.trace[-1][1] > search.trace[0][1]


def test_a_flipped_labelling_is_turned_round():
    model = Nearby(32, 0)
    search = Search.start(SETTINGS, model, 2, np.random.default_rng(0))
    search.labels = 1 - model.gold
    search.labels[:2] = unsupervised.NONE
    search.logprobs = (
        np.concatenate([search.asked(g, search.labels) for g in range(4)]).reshape(4, 8, 2).swapaxes(0, 1).reshape(32, 2)
    )
    before = search.score(search.labels, search.logprobs)
    search.rename()
    assert search.score(search.labels, search.logprobs) > before
    assert (search.labels[2:] == model.gold[2:]).all()
    assert (search.labels[:2] == unsupervised.NONE).all()
    right = search.labels.copy()
    search.rename()
    assert (search.labels == right).all()


def test_calibration_keeps_one_label_from_swallowing_all(tmp_path: Path):
    accuracy = {}
    for calibrate in (True, False):
        settings = SETTINGS.model_copy(update={"calibrate": calibrate})
        model = Nearby(200, 1, pull=6.0)
        labels, _ = find_labels(settings, model, 200, 2, np.random.default_rng(1), tmp_path / str(calibrate), "search")
        accuracy[calibrate] = (labels == model.gold).mean()
    assert accuracy[True] > 0.95
    assert accuracy[False] == pytest.approx(0.5, abs=0.05)


def test_calibrated_predictions_have_a_flat_mean_shape_and_keep_the_order_of_rows():
    logprobs = np.log(np.array([[0.9, 0.1], [0.8, 0.2], [0.99, 0.01]]))
    found = batch_calibrated(logprobs)
    assert np.exp(found).sum(1) == pytest.approx(1)
    assert found.argmax(1).tolist() == [0, 1, 0]
    assert np.argsort(found[:, 1]).tolist() == np.argsort(logprobs[:, 1]).tolist()


def test_the_start_is_balanced_in_every_group_and_the_score_is_the_mean_log_probability():
    search = Search.start(SETTINGS, Nearby(32, 0), 2, np.random.default_rng(0))
    for group in range(4):
        first = search.labels[search.members(group)]
        assert sorted(first[first >= 0].tolist()) == [0, 1]
    labels = np.full(32, -1)
    labels[[0, 5]] = [1, 0]
    logprobs = np.log(np.full((32, 2), 0.5))
    logprobs[0] = np.log([0.2, 0.8])
    assert search.score(labels, logprobs) == pytest.approx(50 * (np.log(0.8) + np.log(0.5)) / 2)


def test_the_temperature_falls_as_in_the_paper():
    search = Search.start(SETTINGS, Nearby(32, 0), 2, np.random.default_rng(0))
    found = []
    for search.step in (1, 10, 10**9):
        found.append(search.temperature())
    assert found == pytest.approx([10, 10 / (1 + 2 * np.log(10)), 10 / (1 + 2 * np.log(1e9))])
    search.settings = SETTINGS.model_copy(update={"final_temperature": 5.0})
    assert search.temperature() == 5.0


def test_worse_labellings_are_kept_when_hot_and_refused_when_cold():
    kept = {}
    for temperature in (1e9, 1e-9):
        settings = SETTINGS.model_copy(
            update={"start_temperature": temperature, "final_temperature": temperature, "steps": 400, "cooling": 1e-9}
        )
        rng = np.random.default_rng(0)
        noisy = np.random.default_rng(1)

        def predict(
            context, rows, noisy=noisy
        ):  # every question is answered anew at random: most changes look worse or better
            p = noisy.uniform(0.05, 0.95, size=len(rows))
            return np.log(np.stack([p, 1 - p], axis=1))

        search = Search.start(settings, predict, 2, rng)
        scores = [search.score(search.labels, search.logprobs)]
        for _ in range(200):
            full = (search.labels != unsupervised.NONE).all()
            search.advance()
            scores.append(search.score(search.labels, search.logprobs) if full else scores[-1])
        kept[temperature] = min(np.diff(scores))
    assert kept[1e-9] >= -1e-9
    assert kept[1e9] < 0


def test_without_steps_the_same_random_labels_are_spread_and_no_naming_is_chosen(tmp_path: Path):
    asked: list[list[tuple[int, int]]] = []
    model = Nearby(64, 4)

    def predict(context, rows):
        asked.append(list(context))
        return model(context, rows)

    settings = SETTINGS.model_copy(update={"alpha": 3.0}).unsearched
    assert settings == SETTINGS.unsearched  # one stage, whatever a search does
    labels, search = find_labels(settings, predict, 64, 2, np.random.default_rng(4), tmp_path, "labels")
    begun = Search.start(SETTINGS, Nearby(64, 4), 2, np.random.default_rng(4))
    assert search.labels.tolist() == begun.labels.tolist()  # those that a search of this seed begins with
    first = begun.labels != unsupervised.NONE
    assert first.sum() == 8
    assert labels[:32][first].tolist() == begun.labels[first].tolist()
    assert [len(context) for context in asked] == 4 * [2] + 4 * [8]  # every group once, then the rest in full contexts
    assert not (tmp_path / "search.json").exists()


class _Stop(Exception):
    pass


def test_a_killed_search_goes_on_and_ends_equal(tmp_path: Path):
    whole, _ = find_labels(SETTINGS, Nearby(64, 3), 64, 2, np.random.default_rng(3), tmp_path / "whole", "search")
    model = Nearby(64, 3)

    def dies(context, rows):
        if model.calls == 30:
            raise _Stop
        return model(context, rows)

    with pytest.raises(_Stop):
        find_labels(SETTINGS, dies, 64, 2, np.random.default_rng(3), tmp_path / "cut", "search")
    again = Nearby(64, 3)
    labels, search = find_labels(SETTINGS, again, 64, 2, np.random.default_rng(3), tmp_path / "cut", "search")
    assert labels.tolist() == whole.tolist()
    full = Nearby(64, 3)
    find_labels(SETTINGS, full, 64, 2, np.random.default_rng(3), tmp_path / "count", "search")
    assert again.calls < full.calls - 15
    assert search.step == SETTINGS.steps


def test_too_few_rows_are_named(tmp_path: Path):
    with pytest.raises(UserError, match="32 rows to search, the transfer half has 20"):
        find_labels(SETTINGS, Nearby(20, 0), 20, 2, np.random.default_rng(0), tmp_path, "search")


def test_a_search_of_all_rows_spreads_to_none_which_is_told(tmp_path: Path):
    LabelSet(tuple(map(str, range(32))), np.eye(2)[[0, 1] * 16]).save(tmp_path / LABELS)
    about: dict[str, Any] = {"task": None, "split": None, "search": SimpleNamespace(search=SETTINGS)}
    ground: Any = SimpleNamespace(folder_of=lambda step: tmp_path)
    with pytest.raises(UserError, match="unsupervised_spread: all 32 transfer rows were searched; take fewer"):
        SearchPart(**about, whose="unsupervised_spread", part="spread").build(ground, tmp_path)


def test_predictions_in_context_are_lm_evals_few_shot_ones(own_task: Path, causal_model):
    """The same text as lm_eval's own few-shot prompt gets the same log-likelihoods."""
    task = hn.Harness([str(own_task)]).task("own_reviews")
    lm = hn.ModelPool().load(lora.base_ref(Lora(model=str(causal_model("llama")))))
    style = hn.PromptStyle(num_fewshot=3)
    docs = task.train_docs[:4]
    shots = list(task.task.sampler.sample(3, eval_doc=docs[0]))
    task.task.sampler.sample = lambda n, eval_doc=None, **_: shots
    expected = label(lm, task, docs, [str(i) for i in range(4)], style)
    model = unsupervised.InContext(task, lm, [*docs, *shots])
    found = model([(4 + k, task.gold(shot)) for k, shot in enumerate(shots)], range(4))
    assert np.exp(found) == pytest.approx(expected.soft, abs=1e-4)
    with pytest.raises(UserError, match=r"does not fit|the model's window is 256"):
        model([(i % 7, 0) for i in range(60)], [0])


def test_labels_without_a_teacher_are_hard_and_those_of_their_seed(own_task: Path, causal_model, tmp_path: Path):
    task = hn.Harness([str(own_task)]).task("own_reviews")
    lm = hn.ModelPool().load(lora.base_ref(Lora(model=str(causal_model("llama")))))
    docs, ids = task.train_docs[:20], task.train_ids[:20]
    settings = Unsupervised(rows=8, groups=2, initial=4, steps=10)
    found = []
    for name in ("once", "again"):
        (tmp_path / name).mkdir()
        found.append(unsupervised.label_without_teacher(task, lm, docs, ids, settings, 0, tmp_path / name))
    assert (found[0].soft == found[1].soft).all()
    assert found[0].row_id == tuple(ids)
    assert set(found[0].soft.ravel()) == {0.0, 1.0}
    kept = json.loads((tmp_path / "once" / "search.json").read_text(encoding="utf-8"))
    parts = settings.parts(found[0])
    assert kept["row_id"] == list(parts["searched"].row_id) == ids[:8]
    assert kept["labels"] == parts["searched"].hard.tolist()
    assert parts["spread"].row_id == tuple(ids[8:])


@pytest.mark.slow
@pytest.mark.pypi
def test_on_sst2_labels_without_a_teacher_beat_random_ones(smollm2: str, real_data: Path, tmp_path: Path):
    """SmolLM2-135M labels SST-2 rows by coherence alone, far better than a coin would."""
    task = hn.Harness().task("w2s_sst2")
    lm = hn.ModelPool().load(lora.base_ref(Lora(model=smollm2)))
    chosen = np.random.default_rng(0).permutation(len(task.train_docs))[:200]
    docs = [task.train_docs[i] for i in chosen]
    ids = [task.train_ids[i] for i in chosen]
    settings = Unsupervised(rows=48, groups=4, initial=8, steps=96)
    labels = unsupervised.label_without_teacher(task, lm, docs, ids, settings, 0, tmp_path)
    assert (labels.hard == [task.gold(d) for d in docs]).mean() > 0.65  # a coin is above .62 once in 3,000 times
