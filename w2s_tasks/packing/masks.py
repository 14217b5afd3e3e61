"""Who sees whom: the attention masks of packed rows, in the form that the model's attention takes.

A dense additive mask serves every device and every architecture that takes a four-dimensional mask. On a GPU a model that
supports FlexAttention gets a block mask instead: blocks of a pack that see nothing of each other are skipped.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from w2s_tasks.packing.tree import Layout

FULL, SLIDING = "full_attention", "sliding_attention"


class UnsupportedAttentionError(ValueError):
    """A model with a kind of attention that these masks can't express."""


def inner(model: torch.nn.Module) -> Any:
    """The transformers model inside a data-parallel and a PEFT wrapper."""
    model = getattr(model, "module", model)
    unwrap: Callable[[], torch.nn.Module] = getattr(model, "get_base_model", lambda: model)
    return unwrap()


def attention_kinds(model: torch.nn.Module) -> dict[str, int | None]:
    """The kinds of attention layers that a model has, with the window of each in tokens (None for none).

    Raises:
        UnsupportedAttentionError: a recurrent, chunked or otherwise special layer.
    """
    config = inner(model).config
    config = getattr(config, "text_config", None) or config
    window = getattr(config, "sliding_window", None)
    if not getattr(config, "use_sliding_window", True):
        window = None
    kinds = set(getattr(config, "layer_types", None) or [SLIDING if window else FULL])
    if not kinds <= {FULL, SLIDING}:
        raise UnsupportedAttentionError(f"layers of kind {', '.join(sorted(kinds - {FULL, SLIDING}))}")
    return {kind: int(window) if kind == SLIDING and window else None for kind in sorted(kinds)}


def tree_sight(layout: Layout, trunk: int, device: torch.device) -> torch.Tensor:
    """Which token sees which, shape [tokens, trunk + tokens]: the trunk, its ancestors and itself."""
    index = torch.arange(len(layout.tokens), device=device)
    ends = torch.tensor(layout.ends, device=device)
    seen = (index[None, :] <= index[:, None]) & (index[:, None] < ends[None, :])
    return torch.cat([seen.new_ones(len(index), trunk), seen], dim=1)


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
    return masks if len(masks) > 1 else next(iter(masks.values()))


def _block_masks(model: torch.nn.Module, layout: Layout, trunk: int, device: torch.device) -> Any:
    """The tree as FlexAttention's block mask: the rule of `Layout`, evaluated inside the kernel."""
    from torch.nn.attention.flex_attention import create_block_mask

    ends = torch.tensor(layout.ends, device=device)
    query_position = torch.tensor(layout.positions, device=device)
    key_position = torch.cat([torch.arange(trunk, device=device), query_position])
    length = len(layout.tokens)

    def rule(window: int | None) -> Callable[..., torch.Tensor]:
        def sees(batch: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
            place = torch.clamp(key - trunk, min=0)
            allowed = (key < trunk) | ((place <= query) & (query < ends[place]))
            if window is not None:
                allowed = allowed & (query_position[query] - key_position[key] < window)
            return allowed

        return sees

    masks = {
        kind: create_block_mask(rule(window), None, None, length, trunk + length, device=str(device))
        for kind, window in attention_kinds(model).items()
    }
    return masks if len(masks) > 1 else next(iter(masks.values()))


def wants_blocks(model: torch.nn.Module, device: torch.device) -> bool:
    """Whether packs of this model run through FlexAttention."""
    return device.type == "cuda" and bool(getattr(inner(model), "_supports_flex_attn", False))


def pack_attention(model: torch.nn.Module, layout: Layout, trunk: int, device: torch.device, *, blocks: bool) -> Any:
    """What a packed row is given as its attention mask."""
    if blocks:
        return _block_masks(model, layout, trunk, device)
    positions = torch.tensor(layout.positions, device=device)
    keys = torch.cat([torch.arange(trunk, device=device), positions])
    return additive(model, tree_sight(layout, trunk, device), positions, keys)


@contextmanager
def _attention(model: Any, implementation: str) -> Any:
    before = model.config._attn_implementation
    model.set_attn_implementation(implementation)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def packed_attention(model: torch.nn.Module, *, blocks: bool) -> AbstractContextManager[None]:
    """While packs run: FlexAttention for block masks, else the model's own implementation."""
    context: AbstractContextManager[None] = _attention(inner(model), "flex_attention") if blocks else nullcontext()
    return context


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
