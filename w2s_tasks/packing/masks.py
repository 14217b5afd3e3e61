"""Who sees whom: the attention masks of packed rows, in the form that the model's attention takes.

A dense additive mask serves every device and every architecture that takes a four-dimensional mask. What it hides is
computed all the same, which a GPU hardly notices at the sizes of a pack; on a CPU `branches` cuts the mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from w2s_tasks.packing import branches
from w2s_tasks.packing.cuts import cut_attention
from w2s_tasks.packing.tree import Layout

BRANCHES, DENSE = "branches", "dense"
"""Kinds of masks: cut, for the attention function of `branches`; or whole, for the model's own."""
FULL, SLIDING = "full_attention", "sliding_attention"
watchers: list[Callable[[Any], None]] = []
"""Called with every mask of a packed row that is made (`witness`)."""


class UnsupportedAttentionError(ValueError):
    """A model with a kind of attention that these masks can't express."""


def inner(model: torch.nn.Module) -> Any:
    """The transformers model inside a data-parallel and a PEFT wrapper."""
    model = getattr(model, "module", model)
    unwrap: Callable[[], torch.nn.Module] = getattr(model, "get_base_model", lambda: model)
    return unwrap()


def text_config(model: torch.nn.Module) -> Any:
    """The configuration of a model's text part, which is all of it but in models that see pictures too."""
    config = inner(model).config
    return getattr(config, "text_config", None) or config


def attention_kinds(model: torch.nn.Module) -> dict[str, int | None]:
    """The kinds of attention layers that a model has, with the window of each in tokens (None for none).

    Raises:
        UnsupportedAttentionError: a recurrent, chunked or otherwise special layer.
    """
    config = text_config(model)
    window = getattr(config, "sliding_window", None)
    if not getattr(config, "use_sliding_window", True):
        window = None
    kinds = set(getattr(config, "layer_types", None) or [SLIDING if window else FULL])
    if not kinds <= {FULL, SLIDING}:
        raise UnsupportedAttentionError(f"layers of kind {', '.join(sorted(kinds - {FULL, SLIDING}))}")
    return {kind: int(window) if kind == SLIDING and window else None for kind in sorted(kinds)}


def windowed(model: torch.nn.Module, length: int) -> bool:
    """Whether a layer hides something of a text of this many tokens: a smaller window, or a kind these masks don't know."""
    try:
        return any(window is not None and window < length for window in attention_kinds(model).values())
    except UnsupportedAttentionError:
        return True


def tree_sight(layout: Layout, trunk: int, device: torch.device) -> torch.Tensor:
    """Which token sees which, shape [tokens, trunk + tokens]: the trunk, its ancestors and itself."""
    index = torch.arange(len(layout.tokens), device=device)
    ends = torch.tensor(layout.ends, device=device)
    seen = (index[None, :] <= index[:, None]) & (index[:, None] < ends[None, :])
    return torch.cat([seen.new_ones(len(index), trunk), seen], dim=1)


def _given(masks: dict[str, Any]) -> Any:
    """Masks as a model takes them: by kind of layer where it mixes kinds, else the one."""
    for mask in masks.values():
        for watcher in watchers:
            watcher(mask)
    return masks if len(masks) > 1 else next(iter(masks.values()))


def additive(
    model: torch.nn.Module, seen: torch.Tensor, positions: torch.Tensor, key_positions: torch.Tensor
) -> torch.Tensor | dict[str, torch.Tensor]:
    """The mask to add to attention scores, one for each kind of layer where a model mixes kinds.

    Args:
        model: tells the kinds of attention and the dtype.
        seen: who sees whom, [tokens, keys], before any window.
        positions: position ids of the tokens.
        key_positions: position ids of the keys; a window counts in positions, not in places of the row.
    """
    dtype = next(model.parameters()).dtype
    masks: dict[str, torch.Tensor] = {}
    for kind, window in attention_kinds(model).items():
        allowed = seen if window is None else seen & (positions[:, None] - key_positions[None, :] < window)
        zeros = torch.zeros(allowed.shape, dtype=dtype, device=seen.device)
        masks[kind] = zeros.masked_fill(~allowed, torch.finfo(dtype).min)[None, None]
    return _given(masks)


def recomputes(model: torch.nn.Module) -> bool:
    """Whether gradient checkpointing is on: it runs layers again when the attention function has been set back."""
    names = "is_activation_checkpointing", "is_gradient_checkpointing"  # transformers 5 renamed it
    return bool(next((getattr(inner(model), name) for name in names if hasattr(type(inner(model)), name)), False))


def kinds_for(model: torch.nn.Module, device: torch.device) -> tuple[str, ...]:
    """The kinds of masks that may serve this model's packs, the fastest first."""
    if device.type == "cpu" and inner(model).config._attn_implementation == "sdpa" and not recomputes(model):
        return BRANCHES, DENSE
    return (DENSE,)


def pack_attention(model: torch.nn.Module, layout: Layout, trunk: int, device: torch.device, *, kind: str) -> Any:
    """What a packed row is given as its attention mask."""
    positions = torch.tensor(layout.positions, device=device)
    keys = torch.cat([torch.arange(trunk, device=device), positions])
    found = additive(model, tree_sight(layout, trunk, device), positions, keys)
    if kind == BRANCHES:
        cut = cut_attention(layout, trunk, next(model.parameters()).dtype)
        whole = max(layout.positions) + 1
        windows = attention_kinds(model)
        for layers, mask in (found if isinstance(found, dict) else dict.fromkeys(windows, found)).items():
            if (windows[layers] or whole) >= whole:  # a window that hides something keeps its dense mask
                branches.mark(mask, cut)
    return found


@contextmanager
def _branch_attention(model: Any) -> Iterator[None]:
    branches.register()
    before = model.config._attn_implementation
    model.set_attn_implementation(branches.NAME)
    try:
        if model.config._attn_implementation != branches.NAME:
            raise UnsupportedAttentionError("its attention function can't be chosen")
        yield
    finally:
        model.set_attn_implementation(before)


def packed_attention(model: torch.nn.Module, *, kind: str) -> AbstractContextManager[None]:
    """While packs run: the attention function of their kind of mask, else the model's own."""
    return _branch_attention(inner(model)) if kind == BRANCHES else nullcontext()


def dropout_on(model: torch.nn.Module) -> bool:
    """Whether a forward pass is random: shared tokens would then share their noise."""
    if not model.training:
        return False
    if any(isinstance(m, torch.nn.Dropout) and m.p > 0 for m in model.modules()):
        return True
    # Attention's own dropout is no module.
    config = inner(model).config
    return any(
        bool(getattr(config, name, 0)) for name in ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob")
    )
