"""Attention branch by branch is attention under the dense mask: outputs, gradients, and every architecture's way to it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_packing import ARCHITECTURES, few_shot

from w2s_tasks import packing
from w2s_tasks.models.packed_hf import W2SHF
from w2s_tasks.packing import branches, cuts, masks
from w2s_tasks.packing.tree import Layout, lay_out

CPU = torch.device("cpu")
TREES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=14)


def row_of(sequences: list[list[int]], trunk: int) -> Layout:
    passes = packing.plan_passes([((*[7] * trunk, *s), (9,)) for s in sequences], max_length=64)
    return lay_out(sorted(passes, key=lambda p: p.tokens), trunk)


def dense_mask(layout: Layout, trunk: int) -> torch.Tensor:
    seen = masks.tree_sight(layout, trunk, CPU)
    return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[None, None]


def tensors(length: int, trunk: int, seed: int) -> list[torch.Tensor]:
    """Queries of 4 heads and keys and values of 2, as a model's projections lay them in memory."""
    made = torch.Generator().manual_seed(seed)
    shapes = [(1, length, 4, 8), (1, trunk + length, 2, 8), (1, trunk + length, 2, 8)]
    return [torch.randn(shape, generator=made).transpose(1, 2).requires_grad_() for shape in shapes]


def through(mask: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    layer: Any = torch.nn.Module()
    layer.num_key_value_groups = 2
    return branches.branch_attention(layer, q, k, v, mask)[0]


@given(TREES, st.sampled_from([0, 1, 5]), st.integers(0, 99))
@settings(max_examples=150, deadline=None)
def test_outputs_and_gradients_are_those_under_the_dense_mask(sequences: list[list[int]], trunk: int, seed: int):
    layout = row_of(sequences, trunk)
    mask = dense_mask(layout, trunk)
    inputs = tensors(len(layout.tokens), trunk, seed)
    weights = torch.randn(1, len(layout.tokens), 4, 8, generator=torch.Generator().manual_seed(seed + 1))
    dense = through(mask.clone(), *inputs)
    expected = torch.autograd.grad((dense * weights).sum(), inputs)
    marked = branches.mark(mask, cuts.cut_attention(layout, trunk, torch.float32))
    cut = through(marked, *inputs)
    assert torch.allclose(cut, dense, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(through(marked, *inputs), cut)
    for found, wanted in zip(torch.autograd.grad((cut * weights).sum(), inputs), expected, strict=True):
        assert torch.allclose(found, wanted, atol=1e-4)


@given(TREES)
@settings(deadline=None)
def test_every_token_lies_in_the_beginning_or_in_one_branch(sequences: list[list[int]]):
    layout = row_of(sequences, 0)
    cut = cuts.cut_attention(layout, 0, torch.float32)
    places = [p for stack in cut.stacks for p in stack.places[stack.own].tolist()]
    assert sorted([*range(cut.beginning), *places]) == list(range(len(layout.tokens)))


def test_chains_need_no_mask_and_similar_lengths_share_a_call():
    chains = [[0, 0, 1 + n, *[2] * n] for n in (8, 8, 9, 2)]
    forked = [[0, 0, 20, 3], [0, 0, 20, 4]]
    layout = row_of([[*s, i] for i, s in enumerate(chains + forked)], 0)
    cut = cuts.cut_attention(layout, 0, torch.float32)
    assert (cut.beginning, cut.causal) == (2, None)
    # The two of 8 share their first nine tokens, so they are one piece with a fork; the forked ones are cut behind
    # "20", which both see and one owns.
    assert sorted((s.longest, len(s.places) // s.longest, s.mask is None) for s in cut.stacks) == [
        (4, 3, True),
        (11, 1, False),
        (11, 1, True),
    ]
    apart = row_of([[0, 1 + i, *[2] * n] for i, n in enumerate((8, 8, 9, 2))], 0)
    stacks = cuts.cut_attention(apart, 0, torch.float32).stacks
    assert [(s.longest, len(s.places) // s.longest, s.mask is None) for s in stacks] == [(10, 3, True), (3, 1, True)]


def test_long_branches_behind_one_shared_token_are_cut_apart_and_each_sees_it():
    layout = row_of([[0, 1, *[2 + n] * 12] for n in range(6)] + [[0, 9]], 3)
    cut = cuts.cut_attention(layout, 3, torch.float32)
    assert [(s.longest, len(s.places) // s.longest, s.mask is None) for s in cut.stacks] == [(13, 6, True), (1, 1, True)]
    first = cut.stacks[0]
    assert first.places.view(6, 13)[:, 0].tolist() == [1] * 6
    assert len(first.places[first.own]) == 6 * 12 + 1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("trained", [False, True])
def test_every_architectures_layers_come_here_with_their_cut(
    causal_model, monkeypatch: pytest.MonkeyPatch, architecture: str, trained: bool
):
    lm = W2SHF(str(causal_model(architecture)), device="cpu")
    model: Any = lm.language_model
    layers, seen = model.config.num_hidden_layers, []
    original = branches._forward
    monkeypatch.setattr(branches, "_forward", lambda *args: (seen.append(1), original(*args))[1])
    before = model.config._attn_implementation
    with torch.set_grad_enabled(trained):
        packing.score(model, lm.encode(few_shot(6)), max_length=256)
        seen.clear()
        packing.score(model, lm.encode(few_shot(6)), max_length=256)
    windows = masks.attention_kinds(model)
    kinds = getattr(model.config, "layer_types", None) or [*windows] * layers
    assert len(seen) >= sum(windows[kind] is None for kind in kinds)
    assert seen or all(windows.values())
    assert model.config._attn_implementation == before


def test_a_mask_that_lost_its_cut_serves_as_it_is():
    layout = row_of([[0, 1], [0, 2], [1, 1]], 2)
    marked = branches.mark(dense_mask(layout, 2), cuts.cut_attention(layout, 2, torch.float32))
    inputs = tensors(len(layout.tokens), 2, 0)
    assert branches.branches_of(marked[:, :, :, :]) is None
    assert torch.allclose(through(marked[:, :, :, :], *inputs), through(marked, *inputs), atol=1e-5)


def test_a_model_whose_attention_function_is_its_own_is_not_cut(causal_model):
    from transformers import AutoModelForCausalLM

    eager = AutoModelForCausalLM.from_pretrained(causal_model("llama"), attn_implementation="eager")
    assert masks.kinds_for(eager, CPU) == (masks.DENSE,)
