"""Half-precision models are packed and padded: what that changes is told from what their arithmetic rounds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_packing import few_shot, gradients, ignore_masks, instances, kinds_of, prompts
from transformers import AutoModelForCausalLM

from w2s_tasks.models.packed_hf import W2SHF
from w2s_tasks.packing import budget, masks, precision, scoring, trial

HALVES = [torch.bfloat16, torch.float16]


@pytest.fixture(scope="module")
def rough_model(causal_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose scores in bfloat16 are off by more than `HALF_TOLERANCE`, as those of models in use are."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("rough")
    model = AutoModelForCausalLM.from_pretrained(causal_model("llama"))
    model.lm_head.weight.data.mul_(20)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(causal_model("llama")).save_pretrained(folder)
    return folder


def scores(lm: W2SHF) -> list[float]:
    return [loglik for loglik, _ in lm.loglikelihood(instances(few_shot(12)), disable_tqdm=True)]


def furthest(found: list[float], right: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(found, right, strict=True))


@pytest.mark.parametrize("dtype", HALVES)
def test_scores_in_half_precision_are_packed_and_as_near_as_plain_ones(
    rough_model: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    right = scores(W2SHF(str(rough_model), device="cpu", dtype="float32"))
    lm = W2SHF(str(rough_model), device="cpu", dtype=str(dtype).removeprefix("torch."))
    packed = furthest(scores(lm), right)
    assert masks.BRANCHES in kinds_of(lm)
    monkeypatch.setattr(scoring, "try_groups", lambda *args, **kwargs: trial.NOT)
    plain = furthest(scores(lm), right)
    assert packed <= 4 * plain
    assert dtype != torch.bfloat16 or plain > trial.HALF_TOLERANCE


def test_gradients_and_replies_in_half_precision_are_packed(rough_model: Path):
    lm = W2SHF(str(rough_model), device="cpu", dtype="bfloat16")
    lm.generate_until(prompts(3), disable_tqdm=True)
    model = AutoModelForCausalLM.from_pretrained(rough_model, dtype=torch.bfloat16).train()
    gradients(model, lm.encode(few_shot(6)), pack=True)
    ways = {
        name: tried.kind for state in (lm.language_model, model) for (name, *_), tried in trial.known(state).ways.items()
    }
    assert ways == {"decoding": masks.DENSE, "training": masks.BRANCHES}


@pytest.mark.parametrize("dtype", HALVES)
def test_a_model_that_ignores_the_mask_is_not_packed_in_half_precision_either(rough_model: Path, dtype: torch.dtype):
    lm = W2SHF(str(rough_model), device="cpu", dtype=str(dtype).removeprefix("torch."))
    ignore_masks(lm)
    scores(lm)
    assert kinds_of(lm) == {trial.NOT}


def test_arithmetic_that_is_wrong_in_half_precision_alone_is_found(rough_model: Path, monkeypatch: pytest.MonkeyPatch):
    lm = W2SHF(str(rough_model), device="cpu", dtype="bfloat16")
    original = trial._score_packed

    def broken(model: torch.nn.Module, group: Any, kind: str) -> list[torch.Tensor]:
        found = original(model, group, kind)
        return found if next(model.parameters()).dtype == torch.float32 else [found[0] * 3]

    monkeypatch.setattr(trial, "SCORING", trial.Way("scoring", broken, trial._score_plain))
    scores(lm)
    assert kinds_of(lm) == {trial.NOT}


def test_weights_come_back_bit_for_bit_with_what_stands_on_them(rough_model: Path):
    model = AutoModelForCausalLM.from_pretrained(rough_model, dtype=torch.bfloat16)
    before = {name: (tensor, tensor.clone()) for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    kinds = {name: tensor.dtype for name, (tensor, _) in before.items()}
    assert set(kinds.values()) == {torch.bfloat16, torch.float32}  # the rotary table is float32
    seen: set[torch.dtype] = set()

    def interrupted() -> None:
        with torch.inference_mode(), precision.in_float32(model):
            seen.update(p.dtype for p in model.parameters())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert seen == {torch.float32}
    after = dict([*model.named_parameters(), *model.named_buffers()])
    for name, (tensor, values) in before.items():
        assert after[name] is tensor
        assert (tensor.dtype, torch.equal(tensor, values), tensor.is_inference()) == (kinds[name], True, False)


def test_what_is_quantised_or_too_large_or_already_float32_is_tried_as_it_is(
    rough_model: Path, monkeypatch: pytest.MonkeyPatch
):
    half = AutoModelForCausalLM.from_pretrained(rough_model, dtype=torch.bfloat16)
    assert precision.widenable(half, 100)
    assert not precision.widenable(half.to(torch.float32), 100)
    half = AutoModelForCausalLM.from_pretrained(rough_model, dtype=torch.bfloat16)
    half.register_parameter("packed", torch.nn.Parameter(torch.zeros(3, dtype=torch.uint8), requires_grad=False))
    assert not precision.widenable(half, 100)
    del half.packed
    room = sum(p.nbytes for p in half.parameters()) + 200 * budget.token_bytes(half)
    for more, able in ((0, True), (-1, False)):
        monkeypatch.setattr(budget, "room_on", lambda device, model, more=more: room + more)
        assert precision.widenable(half, 100) is able


def test_without_room_a_rough_model_is_not_packed_and_that_is_told(
    rough_model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(trial, "widenable", lambda model, tokens: False)
    lm = W2SHF(str(rough_model), device="cpu", dtype="bfloat16")
    scores(lm)
    assert kinds_of(lm) == {trial.NOT}
    assert "packed scores differ" in caplog.text
