"""Half-precision models in float32 for a moment: what packing changes is told from what their arithmetic rounds.

A score of a real model in bfloat16 is rounded by tenths, and by other tenths in a pack than alone. In float32 the same
weights, which it holds exactly, show whether both are one computation.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator

import torch

from w2s_tasks.packing import budget

HALVES = (torch.float16, torch.bfloat16)


def _tensors(model: torch.nn.Module) -> list[torch.Tensor]:
    return list(itertools.chain(model.parameters(), model.buffers()))


def widenable(model: torch.nn.Module, tokens: int) -> bool:
    """Whether a model has weights in half precision, and room for a pass of so many tokens with all of them in float32.

    Quantised weights, which compute in a type of their own, and weights that are not on their device are left alone.
    """
    weights = list(model.parameters())
    if not any(p.dtype in HALVES for p in weights) or any(p.is_meta or not p.is_floating_point() for p in weights):
        return False
    device = weights[0].device
    more = sum(p.nbytes for p in weights if p.dtype in HALVES and p.device == device)
    return more + 2 * tokens * budget.token_bytes(model) <= budget.room_on(device, model)


def _cast(tensors: Iterable[tuple[torch.Tensor, torch.dtype]]) -> None:
    """Give tensors other types in place; in inference mode their new memory would be unfit for training."""
    with torch.inference_mode(False):
        for tensor, dtype in tensors:
            tensor.data = tensor.data.to(dtype)


@contextlib.contextmanager
def in_float32(model: torch.nn.Module) -> Iterator[None]:
    """Hold all half-precision weights and buffers in float32; afterwards each is again what it was, bit for bit."""
    halves = [(tensor, tensor.dtype) for tensor in _tensors(model) if tensor.dtype in HALVES]
    try:
        _cast((tensor, torch.float32) for tensor, _ in halves)
        yield
    finally:
        _cast(halves)
