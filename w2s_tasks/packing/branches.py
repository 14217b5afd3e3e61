"""Attention of a packed row on a CPU, branch by branch: nothing is computed for pairs of tokens that don't see each other.

Every token of a branch attends to the row's common beginning, which needs no mask and is never copied, and within its piece
of the branch (`cuts`); the two are merged (`attend`). Exact to rounding.
"""

from __future__ import annotations

from typing import Any

import torch

from w2s_tasks.packing.attend import attend, attend_back
from w2s_tasks.packing.cuts import Cut, Stack

NAME = "w2s_branches"
"""Its name among transformers' attention functions."""
HIDDEN = 1e30
"""The log-sum-exp of a place that only pads or is a copy: its probabilities become 0 in the backward pass."""


def _take(x: torch.Tensor, stack: Stack) -> torch.Tensor:
    """A stack's places of [1, heads, row, size], as [pieces, heads, longest, size]."""
    picked = x[0].transpose(0, 1)[stack.places]  # [pieces x longest, heads, size]
    return picked.view(-1, stack.longest, *picked.shape[1:]).transpose(1, 2)


def _put(x: torch.Tensor, stack: Stack, into: torch.Tensor) -> None:
    """Write what is a stack's own of [pieces, heads, longest, size] to its places of [1, heads, row, size]."""
    flat = x.transpose(1, 2).flatten(0, 1)
    into[0].transpose(0, 1)[stack.places[stack.own]] = flat[stack.own]


def _add(x: torch.Tensor, stack: Stack, into: torch.Tensor) -> None:
    """Add [pieces, heads, longest, size] to the stack's places of [1, heads, row, size]; a copied key gets several."""
    into[0].transpose(0, 1).index_add_(0, stack.places, x.transpose(1, 2).flatten(0, 1))


def _forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cut: Cut, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Output, [1, heads, row, size], and log-sum-exp, [1, heads, row], of a whole row."""
    trunk = k.shape[2] - q.shape[2]
    seen = trunk + cut.beginning
    # Laid out as the next layer reads it, so that it is kept once for both backward passes.
    out = torch.empty(1, q.shape[2], q.shape[1], v.shape[3], dtype=q.dtype).transpose(1, 2)
    lse = torch.empty(q.shape[:3], dtype=torch.float32)
    if cut.beginning:
        own = slice(None, cut.beginning)
        out[:, :, own], lse[:, :, own] = attend(
            q[:, :, own], k[:, :, :seen], v[:, :, :seen], scale, cut.causal, causal=cut.causal is None
        )
    rest = slice(cut.beginning, None)
    row_k, row_v = k[:, :, trunk:], v[:, :, trunk:]
    for stack in cut.stacks:
        part, part_lse = attend(
            _take(q, stack), _take(row_k, stack), _take(row_v, stack), scale, stack.mask, causal=stack.mask is None
        )
        _put(part, stack, out)
        _put(part_lse[..., None], stack, lse[..., None])
    if seen and cut.stacks:
        first, first_lse = attend(q[:, :, rest], k[:, :, :seen], v[:, :, :seen], scale, None, causal=False)
        both = torch.logaddexp(first_lse, lse[:, :, rest])
        share = (first_lse - both).exp_()[..., None].to(out.dtype)
        out[:, :, rest].lerp_(first, share)
        lse[:, :, rest] = both
    return out, lse


class _BranchAttention(torch.autograd.Function):
    """`_forward` with its gradients; every part's backward pass gets the whole row's output and log-sum-exp."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cut: Cut, scale: float) -> torch.Tensor:
        out, lse = _forward(q, k, v, cut, scale)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.cut, ctx.scale = cut, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        cut, scale, grad = ctx.cut, ctx.scale, grads[0]
        trunk = k.shape[2] - q.shape[2]
        seen = trunk + cut.beginning
        dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for stack in cut.stacks:
            part_lse = _take(lse[..., None], stack)[..., 0]
            if stack.hidden is not None:
                part_lse = part_lse.masked_fill(stack.hidden.view(-1, 1, stack.longest), HIDDEN)
            whole = _take(out, stack), part_lse
            row_q, row_k, row_v = (_take(x, stack) for x in (q, k[:, :, trunk:], v[:, :, trunk:]))
            parts = attend_back(_take(grad, stack), row_q, row_k, row_v, whole, scale, stack.mask, causal=stack.mask is None)
            for part, into in zip(parts, (dq, dk[:, :, trunk:], dv[:, :, trunk:]), strict=True):
                _add(part, stack, into)
        for queries, mask, causal in (
            (slice(None, cut.beginning), cut.causal, cut.causal is None),
            (slice(cut.beginning, None), None, False),
        ):
            if seen and q[:, :, queries].shape[2]:
                whole = out[:, :, queries].contiguous(), lse[:, :, queries].contiguous()
                first_k, first_v, part = k[:, :, :seen], v[:, :, :seen], grad[:, :, queries].contiguous()
                parts = attend_back(part, q[:, :, queries], first_k, first_v, whole, scale, mask, causal=causal)
                for part, into in zip(parts, (dq[:, :, queries], dk[:, :, :seen], dv[:, :, :seen]), strict=True):
                    into += part
        return dq, dk, dv, None, None


def branch_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function of transformers: branch by branch where the mask says how, else as `sdpa`.

    Args:
        module: the attention layer.
        query: [1, heads, row, size].
        key: [1, key heads, trunk + row, size].
        value: as `key`.
        attention_mask: the dense mask; `branches_of` finds how to cut it.
        dropout: must be 0 for branches; rows are not packed otherwise.
        scaling: of the scores; by default the root of the size.
        kwargs: what `sdpa` takes. Capped scores and the like are refused there.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    cut = branches_of(attention_mask)
    special = any(kwargs.get(name) is not None for name in ("softcap", "s_aux", "position_bias"))
    if cut is None or dropout or special or query.device.type != "cpu":
        out, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return out, None
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
        result = _BranchAttention.apply(query, key, value, cut, scale)
    else:
        result, _ = _forward(query, key, value, cut, scale)
    return result.transpose(1, 2).contiguous(), None


def mark(mask: torch.Tensor, cut: Cut) -> torch.Tensor:
    """Tell a dense mask's cut to `branch_attention`; an architecture that slices the mask loses it, and the mask serves."""
    mask.w2s_branches = cut  # type: ignore[attr-defined]
    return mask


def branches_of(mask: torch.Tensor | None) -> Cut | None:
    """How a mask may be cut, where `mark` said it."""
    return getattr(mask, "w2s_branches", None)


def register() -> None:
    """Make the attention function known to transformers."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, branch_attention)
