"""The kernels of attention on a CPU: a part of the keys at a time, with the log-sum-exp that merges the parts.

Outputs of parts are merged by their log-sum-exp, as in ring attention (Liu et al. 2023, arXiv:2310.01889). The same
log-sum-exp makes the gradients of the parts those of the whole (Dao 2023, arXiv:2307.08691, section 3.1).
"""

from __future__ import annotations

import torch

from w2s_tasks.models import linear

Part = tuple[torch.Tensor, torch.Tensor]
"""Output, [batch, heads, queries, size], and log-sum-exp of the scores, [batch, heads, queries]."""
BLOCK_SCORES = 300_000
"""Scores of one block of `attend_all`: few enough to stay in a core's cache between its two products."""
MIN_ROWS, MIN_KEYS = 64, 64
"""A block of fewer rows, or scores of fewer keys, is too small a product to gain by it."""


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, mask: torch.Tensor | None, *, causal: bool
) -> Part:
    """Attention of queries to keys and values, [batch, heads or key heads, tokens, size], by PyTorch's kernel."""
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out, lse = flash(q, k, v, 0.0, causal, attn_mask=mask, scale=scale)
    return out, lse


def attend_back(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    whole: Part,
    scale: float,
    mask: torch.Tensor | None,
    *,
    causal: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of a part of the keys, given the output and the log-sum-exp over all keys."""
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    dq, dk, dv = flash(grad, q, k, v, *whole, 0.0, causal, attn_mask=mask, scale=scale)
    return dq, dk, dv


def attend_all(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> Part:
    """Attention of every query to every key of one row, by the faster library for matrix products (`models.linear`).

    PyTorch's kernel multiplies small blocks by MKL, in one pass over memory. All query heads of a key head are rows of one
    product here, which pays where such products are twice as fast: on two cores of an AMD EPYC of Zen 4, 1,000 queries to
    1,360 keys take 20 ms by PyTorch's kernel and 28 ms this way.
    """
    if not linear.twice_as_fast_here() or q.dtype != torch.float32 or k.shape[2] < MIN_KEYS or q.shape[0] > 1:
        return attend(q, k, v, scale, None, causal=False)
    heads, keys = k.shape[1:3]
    rows = (q * scale).reshape(heads, -1, q.shape[3])
    out = torch.empty(*rows.shape[:2], v.shape[3])
    lse = torch.empty(rows.shape[:2])
    block = max(MIN_ROWS, BLOCK_SCORES // keys)
    for head in range(heads):
        across = v[0, head].t()
        for start in range(0, rows.shape[1], block):
            here = head, slice(start, start + block)
            scores = linear.product(rows[here], k[0, head])
            shares = torch.softmax(scores, -1)
            # The largest share is exp(largest score - log-sum-exp): cheaper than a second pass of exponentials.
            lse[here] = scores.amax(-1) - shares.amax(-1).log()
            out[here] = linear.product(shares, across)
    return out.view(*q.shape[:3], -1), lse.view(q.shape[:3])
