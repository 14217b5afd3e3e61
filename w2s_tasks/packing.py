"""Score continuations with the fewest tokens: used by evaluation and, with gradients, by training.

A request is (context tokens, continuation tokens), as lm_eval encodes it. Requests that need the same forward pass (one
context, one-token choices) share it; passes are sorted by length, cut into batches under a token budget, and the
vocabulary is projected only at the positions that score a token. Right padding under causal attention changes nothing
for the tokens before it, so no mask is needed and every number is what lm_eval's own `hf` computes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Tokens = Sequence[int]
Request = tuple[Tokens, Tokens]

DEFAULT_BUDGET = {"cpu": 512, "cuda": 16_384}


@dataclass(frozen=True)
class Pass:
    """One sequence to run and the continuations it scores: (request index, continuation tokens)."""

    tokens: tuple[int, ...]
    scores: tuple[tuple[int, tuple[int, ...]], ...]


@dataclass
class Scores:
    """Summed log-probability of each continuation, shape [requests], and whether greedy decoding would produce it."""

    loglik: torch.Tensor
    greedy: torch.Tensor


def plan_passes(requests: Sequence[Request], max_length: int) -> list[Pass]:
    """Merge requests with equal context + continuation[:-1]; truncate from the left as lm_eval does.

    Args:
        requests: encoded pairs; continuations are not empty.
        max_length: the model's window; one token more fits because the last one is only predicted.
    """
    shared: dict[tuple[int, ...], list[tuple[int, tuple[int, ...]]]] = {}
    for i, (context, continuation) in enumerate(requests):
        tokens = (*context, *continuation)[-(max_length + 1) :][:-1]
        shared.setdefault(tokens, []).append((i, tuple(continuation)))
    return [Pass(tokens, tuple(scores)) for tokens, scores in shared.items()]


def batches(passes: Sequence[Pass], budget: int) -> list[list[Pass]]:
    """Cut length-sorted passes into batches of at most `budget` padded tokens, the longest first: memory fails early."""
    out: list[list[Pass]] = []
    for item in sorted(passes, key=lambda p: (-len(p.tokens), p.tokens)):
        if out and len(out[-1][0].tokens) * (len(out[-1]) + 1) <= budget:
            out[-1].append(item)
        else:
            out.append([item])
    return out


def _accepts_positions(model: torch.nn.Module) -> bool:
    """Whether forward() takes `logits_to_keep`, looking through a PEFT wrapper."""
    unwrap: Callable[[], torch.nn.Module] = getattr(model, "get_base_model", lambda: model)
    forward: Callable[..., Any] = unwrap().forward
    return "logits_to_keep" in inspect.signature(forward).parameters


def _score_batch(model: torch.nn.Module, batch: Sequence[Pass], device: torch.device) -> tuple[list[int], Scores]:
    longest = len(batch[0].tokens)
    # The padding's value is irrelevant: nothing before it attends to it, and nothing of it is scored.
    rows = [[*p.tokens, *([0] * (longest - len(p.tokens)))] for p in batch]
    entries = [
        (i, row, len(p.tokens) - len(cont) + k, token)
        for row, p in enumerate(batch)
        for i, cont in p.scores
        for k, token in enumerate(cont)
    ]
    ids, row_of, position_of, targets = (torch.tensor(column, device=device) for column in zip(*entries, strict=True))
    positions, column_of = torch.unique(position_of, return_inverse=True)
    narrow = _accepts_positions(model)
    extra = {"logits_to_keep": positions} if narrow else {}
    logits = model(input_ids=torch.tensor(rows, device=device), use_cache=False, **extra).logits
    cells, cell_of = torch.unique(torch.stack([row_of, column_of if narrow else position_of]), dim=1, return_inverse=True)
    chosen = logits[cells[0], cells[1]].float()  # [distinct scored positions, vocabulary]
    normaliser = torch.logsumexp(chosen, dim=-1)
    logprob = chosen[cell_of, targets] - normaliser[cell_of]
    hit = chosen.argmax(dim=-1)[cell_of] == targets
    order, slot = torch.unique(ids, return_inverse=True)
    loglik = torch.zeros(len(order), device=device).index_add(0, slot, logprob)
    misses = torch.zeros(len(order), device=device).index_add(0, slot, (~hit).float())
    return order.tolist(), Scores(loglik, misses == 0)


def score(
    model: torch.nn.Module,
    requests: Sequence[Request],
    *,
    max_length: int,
    budget: int | None = None,
    done: Callable[[int], object] | None = None,
) -> Scores:
    """Log-likelihood of every continuation given its context, differentiable where gradients are enabled.

    Args:
        model: a causal language model of transformers, bare or with a PEFT adapter.
        requests: encoded (context, continuation) pairs.
        max_length: the model's window in tokens.
        budget: padded tokens a forward pass; by default 512 on a CPU and 16,384 on a GPU.
        done: called with the number of requests that each batch finished.

    Returns:
        `Scores` in the order of `requests`.
    """
    device = next(model.parameters()).device
    limit = budget or DEFAULT_BUDGET.get(device.type, 4096)
    parts: list[torch.Tensor] = []
    greedy = torch.zeros(len(requests), dtype=torch.bool, device=device)
    order: list[int] = []
    for batch in batches(plan_passes(requests, max_length), limit):
        ids, scores = _score_batch(model, batch, device)
        parts.append(scores.loglik)
        greedy[torch.tensor(ids, device=device)] = scores.greedy
        order += ids
        if done:
            done(len(ids))
    back = torch.argsort(torch.tensor(order, device=device))
    return Scores(torch.cat(parts)[back], greedy)
