"""How many tokens run at once follows from the device's memory, not from what happens to be free."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from w2s_tasks import packing
from w2s_tasks.models.packed_hf import W2SHF
from w2s_tasks.packing import budget, scoring

CPU = torch.device("cpu")
MB = 10**6


@pytest.fixture
def model(causal_model) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(causal_model("llama"))


def set_memory(monkeypatch: pytest.MonkeyPatch, megabytes: float) -> None:
    monkeypatch.setattr(budget, "memory_of", lambda _: int(megabytes * MB))


@torch.no_grad()
def test_with_memory_to_spare_a_pass_is_as_large_as_is_fast(model: Any):
    assert budget.find_budget(model, CPU) == budget.Budget(budget.PACK_TOKENS["cpu"], budget.BATCH_TOKENS["cpu"])
    assert budget.find_budget(model, CPU, asked=96) == budget.Budget(96, 96)


def test_a_smaller_memory_halves_it_until_it_fits(model: Any, monkeypatch: pytest.MonkeyPatch):
    weights = sum(p.nbytes for p in model.parameters())
    with torch.no_grad():
        each = budget.token_bytes(model)
        set_memory(monkeypatch, (weights + 600 * each) / budget.USABLE["cpu"] / MB)
        assert budget.find_budget(model, CPU).in_pack == 512
        set_memory(monkeypatch, weights / MB)  # not even the weights fit: the least that is worth trying
        assert budget.find_budget(model, CPU) == budget.Budget(budget.LEAST_TOKENS, budget.LEAST_TOKENS)


def test_what_is_kept_for_the_pass_back_needs_more_and_less_where_it_is_computed_again(model: Any):
    with torch.no_grad():
        scored = budget.token_bytes(model)
    trained = budget.token_bytes(model.train())
    model.gradient_checkpointing_enable()
    assert scored < budget.token_bytes(model) < trained


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox", "qwen2", "qwen3", "mistral", "gemma3"])
def test_a_step_needs_no_more_than_was_counted(causal_model, architecture: str):
    """Bytes that autograd keeps of a packed pass, against the estimate, which must not be below them."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(causal_model(architecture)).train(False)
    requests = W2SHF(str(causal_model(architecture)), device="cpu").encode(
        [(f"Review: the plot {i} was cold\nSentiment:", " positive") for i in range(40)]
    )
    tokens = scoring.plan_for(model, requests, 256).tokens  # the architecture is tried here
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    mine = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        packing.score(model, requests, max_length=256).loglik.sum()
    activations = sum(size for place, size in kept.items() if place not in mine)
    assert activations <= tokens * budget.token_bytes(model)


def test_a_step_is_cut_where_memory_asks_for_it_though_a_shared_prompt_runs_again(
    causal_model, monkeypatch: pytest.MonkeyPatch
):
    lm = W2SHF(str(causal_model("llama")), device="cpu")
    shared = "Tell whether the review is negative or positive, in one word. " * 6
    rows = [lm.encode([(f"{shared}Review {i}: cold\nSentiment:", " positive")]) for i in range(16)]
    assert packing.cut_rows(lm.language_model, rows, 1024) == [sorted(range(16), key=lambda i: -len(rows[i][0][0]))]
    whole = scoring.plan_for(lm.language_model, [r for row in rows for r in row], 1024).tokens
    room = 0.6 * whole * budget.token_bytes(lm.language_model)
    weights = sum(p.nbytes for p in lm.language_model.parameters())
    monkeypatch.setattr(budget, "TRAIN_TOKENS", {"cpu": whole})
    set_memory(monkeypatch, (weights + room) / budget.USABLE["cpu"] / MB)
    parts = packing.cut_rows(lm.language_model, rows, 1024)
    assert len(parts) == 2
    assert sorted(i for part in parts for i in part) == list(range(16))


def test_the_machines_memory_is_what_it_has():
    assert 2**28 < budget.memory_of(CPU) < 2**50
    assert budget.room_on(CPU, torch.nn.Linear(10, 10)) == pytest.approx(budget.USABLE["cpu"] * budget.memory_of(CPU) - 440)


@torch.no_grad()
def test_prompts_that_are_decoded_side_by_side_are_cut_the_same_way(model: Any, monkeypatch: pytest.MonkeyPatch):
    assert budget.decoding_tokens(model, CPU) == budget.DECODING_TOKENS["cpu"]
    set_memory(monkeypatch, 1)
    assert budget.decoding_tokens(model, CPU) == budget.LEAST_TOKENS


@pytest.mark.parametrize(
    "other",
    [{"num_attention_heads": None, "num_key_value_heads": None}, {"intermediate_size": [96, 48]}, {"hidden_size": None}],
)
def test_architectures_without_the_usual_sizes_have_a_budget_too(model: Any, other: dict[str, object]):
    """Recurrent models have no heads; others have layers of several widths."""
    before = budget.token_bytes(model)
    for name, value in other.items():
        model.config.__dict__[name] = value
    assert budget.token_bytes(model) >= before
