"""The kernels of attention on a CPU: a part of the keys at a time, with the log-sum-exp that merges the parts.

Outputs of parts are merged by their log-sum-exp, as in ring attention (Liu et al. 2023, arXiv:2310.01889). The same
log-sum-exp makes the gradients of the parts those of the whole (Dao 2023, arXiv:2307.08691, section 3.1).
"""

from __future__ import annotations

import torch

Part = tuple[torch.Tensor, torch.Tensor]
"""Output, [batch, heads, queries, size], and log-sum-exp of the scores, [batch, heads, queries]."""


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
