"""Attention of a packed row on a CPU, branch by branch: nothing is computed for pairs of tokens that don't see each other.

A packed row is a common beginning and branches behind it (`tree.Layout`). A dense mask makes every token look at the whole
row and throws most of it away. Here every token of a branch attends to the beginning, which needs no mask and is never
copied, and to its own branch; the two are merged by their log-sum-exp, as in ring attention (Liu et al. 2023,
arXiv:2310.01889). The same log-sum-exp makes the gradients of the parts those of the whole (Dao 2023, arXiv:2307.08691,
section 3.1). Exact to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from w2s_tasks.packing.tree import Layout

NAME = "w2s_branches"
"""Its name among transformers' attention functions."""
SIMILAR = 0.75
"""Branches of one call are padded to the longest; one that is shorter than this share of it goes into the next call."""
HIDDEN = 1e30
"""The log-sum-exp of a place that only pads: its probabilities become 0 in the backward pass."""


@dataclass(frozen=True)
class _Stack:
    """Branches of similar length, padded to the longest on the right."""

    places: torch.Tensor
    """Their tokens' places in the row, [branches x longest]; padding repeats the branch's last place."""
    padding: torch.Tensor | None
    """Which of these only pad, [branches x longest]; None where none does."""
    real: torch.Tensor | slice
    """The others' numbers."""
    longest: int
    mask: torch.Tensor | None
    """Added to the scores, [branches, 1, longest, longest]; None where all are chains, which is plain causal attention."""


@dataclass(frozen=True)
class Branches:
    """How the attention of a packed row is cut."""

    beginning: int
    """Tokens at the row's start that all others see."""
    causal: torch.Tensor | None
    """Mask of the beginning, [beginning, trunk + beginning]; None without a trunk, where plain causal attention does."""
    stacks: list[_Stack]


def _tops(layout: Layout, beginning: int) -> list[tuple[int, int]]:
    """The branches behind the beginning: (start, end) of the subtrees whose roots see no other one."""
    out: list[tuple[int, int]] = []
    start = beginning
    while start < len(layout.tokens):
        out.append((start, layout.ends[start]))
        start = layout.ends[start]
    return out


def _is_chain(layout: Layout, start: int, end: int) -> bool:
    return all(layout.ends[i] == end for i in range(start, end))


def _stack(layout: Layout, spans: Sequence[tuple[int, int]], dtype: torch.dtype, *, chains: bool) -> _Stack:
    longest = max(end - start for start, end in spans)
    starts = torch.tensor([start for start, _ in spans])
    lasts = torch.tensor([end for _, end in spans]) - 1
    steps = starts[:, None] + torch.arange(longest)[None, :]
    real = steps <= lasts[:, None]
    places = torch.minimum(steps, lasts[:, None])
    mask = None
    if not chains:
        ends = torch.tensor(layout.ends)[places]
        # Padding sees what the last token sees, so that no line of the mask is empty.
        seen = (places[:, None, :] <= places[:, :, None]) & (places[:, :, None] < ends[:, None, :]) & real[:, None, :]
        mask = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)[:, None]
    if bool(real.all()):
        return _Stack(places.flatten(), None, slice(None), longest, mask)
    return _Stack(places.flatten(), ~real.flatten(), real.flatten().nonzero()[:, 0], longest, mask)


def cut_branches(layout: Layout, trunk: int, dtype: torch.dtype) -> Branches:
    """Cut a packed row into its beginning and stacks of branches.

    Args:
        layout: the row.
        trunk: keys before the row, which all of it sees.
        dtype: of the scores.
    """
    length = len(layout.tokens)
    beginning = next((i for i, end in enumerate(layout.ends) if end < length), length)
    causal = None
    if trunk and beginning:
        later = torch.ones(beginning, trunk + beginning, dtype=torch.bool).triu(trunk + 1)
        causal = torch.zeros(later.shape, dtype=dtype).masked_fill(later, torch.finfo(dtype).min)
    stacks: list[_Stack] = []
    by_kind: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
    for start, end in _tops(layout, beginning):
        by_kind[_is_chain(layout, start, end)].append((start, end))
    for chains, spans in by_kind.items():
        spans.sort(key=lambda span: span[0] - span[1])
        while spans:
            longest = spans[0][1] - spans[0][0]
            similar = [span for span in spans if span[1] - span[0] >= SIMILAR * longest]
            stacks.append(_stack(layout, similar, dtype, chains=chains))
            spans = spans[len(similar) :]
    return Branches(beginning, causal, stacks)


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, mask: torch.Tensor | None, *, causal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention output and log-sum-exp of its scores."""
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out, lse = flash(q, k, v, 0.0, causal, attn_mask=mask, scale=scale)
    return out, lse


def _attend_back(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    whole: tuple[torch.Tensor, torch.Tensor],
    scale: float,
    mask: torch.Tensor | None,
    *,
    causal: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of a part of the keys, given the output and the log-sum-exp over all keys."""
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    dq, dk, dv = flash(grad, q, k, v, *whole, 0.0, causal, attn_mask=mask, scale=scale)
    return dq, dk, dv


def _take(x: torch.Tensor, stack: _Stack) -> torch.Tensor:
    """A stack's places of [1, heads, row, size], as [branches, heads, longest, size]."""
    picked = x[0].transpose(0, 1)[stack.places]  # [branches x longest, heads, size]
    return picked.view(-1, stack.longest, *picked.shape[1:]).transpose(1, 2)


def _put(x: torch.Tensor, stack: _Stack, into: torch.Tensor) -> None:
    """Write [branches, heads, longest, size] to the stack's places of [1, heads, row, size]."""
    flat = x.transpose(1, 2).flatten(0, 1)
    into[0].transpose(0, 1)[stack.places[stack.real]] = flat[stack.real]


def _forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cut: Branches, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output, [1, heads, row, size], and log-sum-exp, [1, heads, row], of a whole row."""
    trunk = k.shape[2] - q.shape[2]
    seen = trunk + cut.beginning
    # Laid out as the next layer reads it, so that it is kept once for both backward passes.
    out = torch.empty(1, q.shape[2], q.shape[1], v.shape[3], dtype=q.dtype).transpose(1, 2)
    lse = torch.empty(q.shape[:3], dtype=torch.float32)
    if cut.beginning:
        own = slice(None, cut.beginning)
        out[:, :, own], lse[:, :, own] = _attend(
            q[:, :, own], k[:, :, :seen], v[:, :, :seen], scale, cut.causal, causal=cut.causal is None
        )
    rest = slice(cut.beginning, None)
    row_k, row_v = k[:, :, trunk:], v[:, :, trunk:]
    for stack in cut.stacks:
        part, part_lse = _attend(
            _take(q, stack), _take(row_k, stack), _take(row_v, stack), scale, stack.mask, causal=stack.mask is None
        )
        _put(part, stack, out)
        _put(part_lse[..., None], stack, lse[..., None])
    if seen and cut.stacks:
        first, first_lse = _attend(q[:, :, rest], k[:, :, :seen], v[:, :, :seen], scale, None, causal=False)
        both = torch.logaddexp(first_lse, lse[:, :, rest])
        share = (first_lse - both).exp_()[..., None].to(out.dtype)
        out[:, :, rest].lerp_(first, share)
        lse[:, :, rest] = both
    return out, lse


class _BranchAttention(torch.autograd.Function):
    """`_forward` with its gradients; every part's backward pass gets the whole row's output and log-sum-exp."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cut: Branches, scale: float) -> torch.Tensor:
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
            if stack.padding is not None:
                part_lse = part_lse.masked_fill(stack.padding.view(-1, 1, stack.longest), HIDDEN)
            whole = _take(out, stack), part_lse
            row_q, row_k, row_v = (_take(x, stack) for x in (q, k[:, :, trunk:], v[:, :, trunk:]))
            parts = _attend_back(
                _take(grad, stack), row_q, row_k, row_v, whole, scale, stack.mask, causal=stack.mask is None
            )
            for part, into in zip(parts, (dq, dk[:, :, trunk:], dv[:, :, trunk:]), strict=True):
                _put(part, stack, into)
        for queries, mask, causal in (
            (slice(None, cut.beginning), cut.causal, cut.causal is None),
            (slice(cut.beginning, None), None, False),
        ):
            if seen and q[:, :, queries].shape[2]:
                whole = out[:, :, queries].contiguous(), lse[:, :, queries].contiguous()
                first_k, first_v, part = k[:, :, :seen], v[:, :, :seen], grad[:, :, queries].contiguous()
                parts = _attend_back(part, q[:, :, queries], first_k, first_v, whole, scale, mask, causal=causal)
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


def mark(mask: torch.Tensor, cut: Branches) -> torch.Tensor:
    """Tell a dense mask's cut to `branch_attention`; an architecture that slices the mask loses it, and the mask serves."""
    mask.w2s_branches = cut  # type: ignore[attr-defined]
    return mask


def branches_of(mask: torch.Tensor | None) -> Branches | None:
    """How a mask may be cut, where `mark` said it."""
    return getattr(mask, "w2s_branches", None)


def register() -> None:
    """Make the attention function known to transformers."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, branch_attention)
