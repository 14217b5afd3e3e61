"""Scoring requests: from requests to a plan, and from a plan to scores in the order of the requests."""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Callable, Iterator, Sequence

import torch

from w2s_tasks.packing import masks
from w2s_tasks.packing.budget import LEAST_TOKENS, Budget, find_budget, fits, part_tokens
from w2s_tasks.packing.forward import Part, Scores, score_batch, score_group
from w2s_tasks.packing.masks import inner
from w2s_tasks.packing.padding import padded
from w2s_tasks.packing.plan import MIN_SAVING, Group, Plan, cut_batches, make_plan
from w2s_tasks.packing.regimes import by_regime
from w2s_tasks.packing.tree import Pass, Request, plan_passes
from w2s_tasks.packing.trial import NOT, attention_for, likely_attention, try_groups

log = logging.getLogger(__name__)

PART_COST = 0.08
"""A step is not cut where its parts would run more than this share of tokens twice: prompts that the rows share."""

_told: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()


def _may_pack(model: torch.nn.Module) -> bool:
    if not masks.dropout_on(model):
        return True
    if inner(model) not in _told:
        _told.add(inner(model))
        log.warning("dropout is on: rows must not share its noise, so they are trained in batches, not in packs")
    return False


def _min_saving(model: torch.nn.Module, longest: int, device: torch.device) -> float:
    """Branch by branch, attention costs nothing for what is not shared: every pack is worth it, for it pads nothing."""
    return 0.0 if likely_attention(model, device) == masks.BRANCHES and not masks.windowed(model, longest) else MIN_SAVING


def _checked(model: torch.nn.Module, plan: Plan, in_batch: int, device: torch.device) -> Plan:
    """The plan with every group that this model can't be packed in cut into batches, and batches into rows, instead."""
    groups: list[Group] = []
    loose: list[Pass] = []
    for behind in (True, False):
        some = [g for g in plan.groups if bool(g.trunk) is behind]
        if some and try_groups(model, some, device) == NOT:
            loose += [item for g in some for pack in g.packs for item in pack]
        else:
            groups += some
    batches = [*plan.batches, *cut_batches(loose, in_batch)]
    return Plan(groups, padded(model, batches))


def _layouts(
    model: torch.nn.Module, passes: Sequence[Pass], budget: Budget, *, pack: bool, trunks: bool, min_saving: float
) -> list[Plan]:
    """Plans of passes that may stand side by side; almost all models have one for all."""
    return [
        make_plan(
            part,
            in_pack=budget.in_pack,
            in_batch=budget.in_batch,
            pack=pack and shares,
            trunks=trunks,
            min_saving=min_saving,
        )
        for shares, part in by_regime(model, passes)
    ]


def _plan(model: torch.nn.Module, passes: Sequence[Pass], budget: Budget, device: torch.device) -> Plan:
    parts = _layouts(
        model,
        passes,
        budget,
        pack=_may_pack(model),
        trunks=not torch.is_grad_enabled(),
        min_saving=_min_saving(model, max((len(p.tokens) for p in passes), default=0), device),
    )
    parts = [_checked(model, part, budget.in_batch, device) for part in parts]
    return Plan([g for part in parts for g in part.groups], [b for part in parts for b in part.batches])


def plan_for(model: torch.nn.Module, requests: Sequence[Request], max_length: int, budget: int | None = None) -> Plan:
    """How `score` runs some requests."""
    device = next(model.parameters()).device
    return _plan(model, plan_passes(requests, max_length), find_budget(model, device, budget), device)


def cut_rows(model: torch.nn.Module, rows: Sequence[Sequence[Request]], max_length: int) -> list[list[int]]:
    """Cut a training step's rows into parts that are run, and run back, one after the other: less memory, the same gradient.

    Args:
        model: the model that is trained.
        rows: the requests of every row; those of one row stay together, for its loss needs all of them.
        max_length: the model's window in tokens.

    Returns:
        The numbers of the rows of each part, the longest rows first; one part where cutting would run a shared prompt twice
        and the memory does for the whole.
    """
    device = next(model.parameters()).device
    budget = find_budget(model, device)

    def passes(part: Sequence[int]) -> list[Pass]:
        return plan_passes([request for i in part for request in rows[i]], max_length)

    def tokens(part: Sequence[int]) -> int:
        saving = 0.0 if packs else MIN_SAVING
        return sum(p.tokens for p in _layouts(model, passes(part), budget, pack=packs, trunks=False, min_saving=saving))

    order = sorted(range(len(rows)), key=lambda i: -max(len(context) + len(reply) for context, reply in rows[i]))
    plan = _plan(model, passes(order), budget, device)
    whole, packs = plan.tokens, bool(plan.groups)
    size = part_tokens(model, device)
    while size < whole:
        each = math.ceil(len(rows) / math.ceil(whole / size))
        parts = [order[i : i + each] for i in range(0, len(order), each)]
        if sum(map(tokens, parts)) <= (1 + PART_COST) * whole or not fits(2 * size, model, device):
            return parts
        size *= 2
    return [order]


def _run_plan(model: torch.nn.Module, plan: Plan, device: torch.device) -> Iterator[tuple[Sequence[Pass], Part]]:
    for group in plan.groups:
        yield from score_group(model, group, device, kind=attention_for(model, group, device))
    for batch in plan.batches:
        yield batch, score_batch(model, batch, device)


def _run_all(model: torch.nn.Module, passes: Sequence[Pass], budget: Budget, device: torch.device) -> Iterator[Part]:
    """Run every pass; where the memory of the device does not do, what is left is planned again with half the tokens."""
    left = {p.tokens: p for p in passes}
    while left:
        try:
            for done, part in _run_plan(model, _plan(model, list(left.values()), budget, device), device):
                for p in done:
                    del left[p.tokens]
                yield part
        except torch.OutOfMemoryError:
            if torch.is_grad_enabled() or budget.in_pack < 2 * LEAST_TOKENS:
                raise
            budget = budget.half()
            log.warning("out of memory: going on with %d tokens a pass", budget.in_pack)
            if device.type == "cuda":
                torch.cuda.empty_cache()


def score(
    model: torch.nn.Module,
    requests: Sequence[Request],
    *,
    max_length: int,
    budget: int | None = None,
    done: Callable[[int], object] | None = None,
) -> Scores:
    """Log-likelihood of every continuation given its context, differentiable where gradients are enabled.

    With gradients no keys and values are kept between forward passes (gradient checkpointing would drop them): a pack then
    holds its whole tree, so that a micro-batch runs its shared prompt once, and the gradient flows through it once.

    Args:
        model: a causal language model of transformers, bare or with a PEFT adapter.
        requests: encoded (context, continuation) pairs.
        max_length: the model's window in tokens.
        budget: tokens a forward pass; by default what the device does best, halved when its memory runs out.
        done: called with the number of requests that each forward pass finished.

    Returns:
        `Scores` in the order of `requests`.
    """
    device = next(model.parameters()).device
    parts: list[torch.Tensor] = []
    greedy = torch.zeros(len(requests), dtype=torch.bool, device=device)
    order: list[int] = []
    for ids, scores in _run_all(model, plan_passes(requests, max_length), find_budget(model, device, budget), device):
        parts.append(scores.loglik)
        greedy[torch.tensor(ids, device=device)] = scores.greedy
        order += ids
        if done:
            done(len(ids))
    back = torch.argsort(torch.tensor(order, device=device))
    return Scores(torch.cat(parts)[back], greedy)
