"""A server of Tinker's protocol that is not our stand-in scores and trains as this machine does.

`scripts/test --tinker URL MODEL FOLDER` runs it on a server that serves MODEL, whose weights and tokenizer lie in FOLDER,
with the SDK that is installed or comes first in PYTHONPATH. A failure tells in what a server differs; docs/services.md has
those that it ran on.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_tinker import ROWS, curve, fit, logliks, losses, run, soft, task_of
from test_tinker_model import WORDS, asked, choices

from trainers.fit import lora, tinker_steps
from trainers.fit.lora import Lora
from trainers.fit.tinker import Tinker
from trainers.harness.pool import ModelPool
from trainers.harness.tasks import HarnessTask
from trainers.labels.label_set import LabelSet
from w2s_tasks.errors import UserError
from w2s_tasks.models.packed_hf import W2SHF
from w2s_tasks.models.tinker import weights
from w2s_tasks.models.tinker.model import W2STinker
from w2s_tasks.models.tinker.service import Service, result_of

SERVER = "W2S_TINKER_SERVER"
pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Served:
    """A model at a server, and the same one here."""

    base_url: str
    model: str
    folder: str

    @property
    def service(self) -> Service:
        """How it is reached; a shape that is new to a server may be compiled for a minute."""
        return Service(self.base_url, timeout=300.0)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Served:
    if SERVER not in os.environ:
        pytest.skip("needs a running server of Tinker's protocol: scripts/test --tinker URL MODEL FOLDER")
    monkeypatch.setenv("W2S_CACHE", str(tmp_path / "cache"))
    return Served(*os.environ[SERVER].split())


@pytest.fixture
def settings(server: Served) -> Callable[..., Tinker]:
    """Settings of few steps without a cut of the gradient."""
    own = {"model": server.model, "tokenizer": server.folder, "base_url": server.base_url, "timeout": 300.0}
    few = {"r": 8, "lr": 1e-2, "batch_size": 8, "holdout": 0.2, "save_steps": 3, "max_grad_norm": 0.0, "eps": fresh_eps()}
    return lambda **more: Tinker(**{**own, **few, **more})  # of one key within a test


def fresh_eps() -> float:
    """AdamW's epsilon, which makes a key that the server has not seen, and no difference."""
    return 1e-8 * (1 + secrets.randbelow(10**6) * 1e-9)


def gold(task: HarnessTask) -> LabelSet:
    return LabelSet(tuple(str(i) for i in range(ROWS)), np.eye(2)[[task.gold(doc) for doc in task.train_docs[:ROWS]]])


# ---- answers ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def both(server: Served, tmp_path: Path) -> tuple[W2STinker, W2SHF]:
    there = W2STinker(server.model, tokenizer=server.folder, base_url=server.base_url, store=str(tmp_path), timeout=300)
    return there, W2SHF(server.folder, device="cpu", dtype="float32")


def test_log_likelihoods_of_the_base_are_those_of_w2s_hf(both: tuple[W2STinker, W2SHF]) -> None:
    there, here = (lm.loglikelihood(choices()[:-1], disable_tqdm=True) for lm in both)
    assert [x for x, _ in there] == pytest.approx([x for x, _ in here], abs=1e-3)


def test_text_of_the_base_is_that_of_w2s_hf(both: tuple[W2STinker, W2SHF]) -> None:
    how = {"until": ["\n"], "max_gen_toks": 8, "do_sample": False}
    requests = asked("generate_until", *[(f"the {word} was", how) for word in WORDS])
    there, here = (lm.generate_until(requests, disable_tqdm=True) for lm in both)
    assert there == here


# ---- training --------------------------------------------------------------------------------------------------------


def start(server: Served, settings: Tinker, seed: int, to: Path) -> Path:
    """The adapter that a training at the server begins with, as it exports it."""
    with server.service.session() as client:
        how = {"rank": settings.r, "seed": seed, "train_unembed": settings.unembedding}
        training = result_of(lambda: client.create_lora_training_client(server.model, **how))
        training.save_state("start").result()
        path = training.save_weights_for_sampler("start").result().path
        return weights.fetch(path, to, server.service)


def begin_with(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a local training begin with these matrices; PEFT would draw others."""
    plain = lora.with_adapter

    def with_adapter(base: torch.nn.Module, settings: Any, *kind: Any) -> Any:
        model = plain(base, settings, *kind)
        for name, tensor in load_file(adapter / weights.WEIGHTS).items():
            factor = weights.FACTOR.fullmatch(name)
            assert factor is not None
            getattr(model.get_submodule(factor["module"]), f"lora_{factor['which']}")["default"].weight.data.copy_(tensor)
        return model

    monkeypatch.setattr(lora, "with_adapter", with_adapter)


CASES: dict[str, tuple[dict[str, Any], Callable[[HarnessTask], LabelSet]]] = {
    "replies, hard labels": ({"objective": "language_model"}, gold),
    "replies, soft labels": ({"objective": "language_model"}, soft),
    "choices, soft labels": ({}, soft),
    "a cut of the gradient": ({"objective": "language_model", "max_grad_norm": 1e-6}, gold),
}


@pytest.mark.parametrize("case", CASES)
def test_a_training_has_the_curve_of_one_here(
    case: str,
    server: Served,
    settings: Callable[..., Tinker],
    own_task: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each row's part of the loss counts by the sum of its weights, which may be negative; see docs/services.md."""
    changes, labels_of = CASES[case]
    there, task = settings(**changes), task_of(own_task)
    labels, adapter = labels_of(task), start(server, there, 3, tmp_path / "start")
    begin_with(adapter, monkeypatch)
    fit(task, there, tmp_path / "there", labels, seed=3)
    shared = there.model_dump(include=Lora.model_fields.keys() - {"trainer", "model", "model_args", "trainer_args"})
    alpha = json.loads((adapter / weights.CONFIG).read_text())["lora_alpha"]
    adam = {"max_grad_norm": there.max_grad_norm, "adam_epsilon": there.eps}
    here = Lora(model=server.folder, alpha=alpha, trainer_args=adam, **shared)
    (tmp_path / "here").mkdir()
    lora.fit(task, task.train_docs[:ROWS], labels, here, tmp_path / "here", pool=ModelPool(), seed=3)
    assert losses(tmp_path / "there") == pytest.approx(losses(tmp_path / "here"), abs=1e-3)
    assert curve(tmp_path / "there", "eval_loss") == pytest.approx(curve(tmp_path / "here", "eval_loss"), abs=1e-3)


def test_a_training_that_was_cut_goes_on_elsewhere_and_is_not_trained_again(
    settings: Callable[..., Tinker], own_task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, settle = task_of(own_task), tinker_steps.Loop._settle

    def cut(loop: Any, step: int, *more: Any) -> None:
        if step == 5:
            raise UserError("out of luck")
        settle(loop, step, *more)

    with monkeypatch.context() as patch:
        patch.setattr(tinker_steps.Loop, "_settle", cut)
        with pytest.raises(UserError, match="out of luck"):
            fit(task, settings(), tmp_path / "cut", gold(task))
    _, told = fit(task, settings(), tmp_path / "elsewhere", gold(task))
    assert any("found step 3 of 7" in line for line in told)
    fit(task, settings(eps=1.1 * settings().eps), tmp_path / "uncut", gold(task))  # another key, the same arithmetic
    assert losses(tmp_path / "elsewhere")[-4:] == pytest.approx(losses(tmp_path / "uncut")[-4:], abs=1e-3)
    _, told = fit(task, settings(), tmp_path / "again", gold(task))
    assert any("found step 7 of 7" in line for line in told)


def test_weights_that_came_home_answer_as_they_do_there(
    server: Served, settings: Callable[..., Tinker], own_task: Path, tmp_path: Path
) -> None:
    task = task_of(own_task)
    ref, _ = fit(task, settings(objective="language_model"), tmp_path / "out", gold(task))
    folder = weights.fetch(str(ref.args["model_path"]), tmp_path / "adapter", server.service)
    there = logliks(ModelPool().load(ref), task)
    here = logliks(W2SHF(server.folder, peft=str(folder), device="cpu", dtype="float32"), task)
    assert there[:, 0] == pytest.approx(here[:, 0], abs=1e-3)
    untuned = logliks(W2SHF(server.folder, device="cpu", dtype="float32"), task)
    assert np.abs(here - untuned).max() > 1e-2


def test_an_experiment_runs(server: Served, own_task: Path, encoder_folder: Path, tmp_path: Path) -> None:
    where = f"model: {server.model}, tokenizer: {server.folder}, base_url: '{server.base_url}', timeout: 300"
    (tmp_path / "small.yaml").write_text(
        f"""\
task: own_reviews
include_path: [own_tasks]
split: {{by: source, weak: 0.5, limit: {{weak: 96, transfer: 64}}, seed: 0}}
weak: {{model: {encoder_folder}, text: text, epochs: 3, lr: 2e-3, batch_size: 16}}
strong: {{{where}, trainer: tinker, r: 8, eps: {fresh_eps()}, lr: 4e-3, batch_size: 16, epochs: 4, max_grad_norm: 0}}
arms: [zero_shot, student, ceiling]
seeds: [0]
evaluate: {{num_fewshot: 0}}
"""
    )
    _, report = run(tmp_path / "small.yaml", tmp_path / "runs")
    strong = {arm["arm"]: arm for arm in report["arms"] if arm["arm"] in ("zero_shot", "student", "ceiling")}
    assert {arm["mode"] for arm in strong.values()} == {"loglikelihood"}
    assert strong["ceiling"]["metrics"]["acc"] > strong["zero_shot"]["metrics"]["acc"]
