"""Forward passes: packs behind their trunks, and batches; every score is a sum of log-probabilities."""

from __future__ import annotations

import ctypes
import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from w2s_tasks.packing import masks
from w2s_tasks.packing.masks import inner
from w2s_tasks.packing.plan import Group
from w2s_tasks.packing.tree import Pass, lay_out

TRIM_EVERY = 4
"""Packs after which free memory goes back to the system: every pack's logits have another size and leave other holes."""


@dataclass
class Scores:
    """Summed log-probability of each continuation, shape [requests], and whether greedy decoding would produce it."""

    loglik: torch.Tensor
    greedy: torch.Tensor


Part = tuple[list[int], Scores]


@dataclass(frozen=True)
class _Scored:
    """Where the scored tokens of some passes are: for each the request, its row and position, and the token."""

    request: torch.Tensor
    row: torch.Tensor
    position: torch.Tensor
    token: torch.Tensor


class _TokenLogprobs(torch.autograd.Function):
    """Log-probabilities of chosen tokens: ``logits.log_softmax(-1)[cell, token]``.

    Its gradient is written once: autograd would fill a second tensor as large as the logits with zeros, to put a few
    numbers into it.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, cell: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        logprob = logits.log_softmax(-1)
        ctx.save_for_backward(logprob, cell, token)
        return logprob[cell, token]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        logprob, cell, token = ctx.saved_tensors
        of_cell = grad.new_zeros(len(logprob)).index_add_(0, cell, grad)
        to_logits = logprob.exp().mul_(-of_cell[:, None])
        return to_logits.index_put_((cell, token), grad, accumulate=True), None, None


def _gather(logits: torch.Tensor, where: _Scored) -> Part:
    """Sum the log-probabilities of each request's tokens; `where.position` indexes the second axis of `logits`."""
    flat = logits.flatten(0, 1)
    cells, cell_of = torch.unique(where.row * logits.shape[1] + where.position, return_inverse=True)
    # [distinct scored positions, vocabulary]; of a pack these are all that were projected, and a copy would be large.
    chosen = (flat if len(cells) == len(flat) else flat[cells]).float()
    logprob: torch.Tensor = _TokenLogprobs.apply(chosen, cell_of, where.token)
    hit = chosen.argmax(dim=-1)[cell_of] == where.token
    order, slot = torch.unique(where.request, return_inverse=True)
    zeros = torch.zeros(len(order), device=logits.device)
    loglik = zeros.index_add(0, slot, logprob)
    misses = zeros.index_add(0, slot, (~hit).float())
    return order.tolist(), Scores(loglik, misses == 0)


def _locate(passes: Sequence[Pass], rows: Sequence[int], tails: Sequence[Sequence[int]], device: torch.device) -> _Scored:
    """Scored tokens of passes that lie in `rows`, the last `Pass.own` tokens of each at the positions `tails`."""
    entries = [
        (i, row, tail[len(tail) - len(continuation) + k], token)
        for p, row, tail in zip(passes, rows, tails, strict=True)
        for i, continuation in p.scores
        for k, token in enumerate(continuation)
    ]
    return _Scored(*(torch.tensor(column, device=device) for column in zip(*entries, strict=True)))


def narrows(model: torch.nn.Module) -> bool:
    """Whether forward() takes `logits_to_keep`."""
    return "logits_to_keep" in inspect.signature(inner(model).forward).parameters


def _run(model: torch.nn.Module, where: _Scored, **inputs: Any) -> Part:
    """One forward pass, projecting only the scored positions where the architecture allows it."""
    if not narrows(model):
        return _gather(model(**inputs).logits, where)
    kept, column = torch.unique(where.position, return_inverse=True)
    logits = model(**inputs, logits_to_keep=kept).logits
    return _gather(logits, _Scored(where.request, where.row, column, where.token))


def score_batch(model: torch.nn.Module, batch: Sequence[Pass], device: torch.device) -> Part:
    longest = len(batch[0].tokens)
    # The padding's value is irrelevant: nothing before it attends to it, and nothing of it is scored.
    rows = [[*p.tokens, *([0] * (longest - len(p.tokens)))] for p in batch]
    tails = [range(len(p.tokens) - p.own, len(p.tokens)) for p in batch]
    where = _locate(batch, range(len(batch)), tails, device)
    return _run(model, where, input_ids=torch.tensor(rows, device=device), use_cache=False)


def _score_pack(
    model: torch.nn.Module, pack: Sequence[Pass], trunk: int, cache: Any, device: torch.device, *, kind: str
) -> Part:
    layout = lay_out(pack, trunk)
    result = _run(
        model,
        _locate(pack, [0] * len(pack), layout.tails, device),
        input_ids=torch.tensor([layout.tokens], device=device),
        position_ids=torch.tensor([layout.positions], device=device),
        attention_mask=masks.pack_attention(model, layout, trunk, device, kind=kind),
        past_key_values=cache,
        use_cache=cache is not None,
    )
    if cache is not None:
        cache.crop(-len(layout.tokens))  # back to the trunk
    return result


def run_trunk(model: torch.nn.Module, trunk: Sequence[int], device: torch.device) -> Any:
    """The trunk's keys and values, or None where there is no trunk."""
    if not trunk:
        return None
    from transformers import DynamicCache

    cache = DynamicCache()  # without the config: a sliding layer's cache could not be cropped
    narrow = {"logits_to_keep": 1} if narrows(model) else {}
    model(input_ids=torch.tensor([list(trunk)], device=device), past_key_values=cache, use_cache=True, **narrow)
    return cache


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    """glibc's function of this name, where glibc is."""
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


def _give_back_memory() -> None:
    trim = _malloc_trim()
    if trim:
        trim(0)


def score_group(
    model: torch.nn.Module, group: Group, device: torch.device, *, kind: str
) -> Iterator[tuple[Sequence[Pass], Part]]:
    """Run the trunk once, then pack after pack behind its keys and values."""
    cache = run_trunk(model, group.trunk, device)
    for number, pack in enumerate(group.packs, start=1):
        with masks.packed_attention(model, kind=kind):
            part = _score_pack(model, pack, len(group.trunk), cache, device, kind=kind)
        yield pack, part
        if device.type == "cpu" and number % TRIM_EVERY == 0:
            _give_back_memory()
