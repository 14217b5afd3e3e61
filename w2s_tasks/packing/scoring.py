"""Running a plan: packs behind their trunks, and batches; every score is a sum of log-probabilities."""

from __future__ import annotations

import ctypes
import functools
import inspect
import logging
import math
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from w2s_tasks.packing import masks
from w2s_tasks.packing.masks import inner
from w2s_tasks.packing.plan import MIN_SAVING, Group, Plan, cut_batches, make_plan
from w2s_tasks.packing.tree import Pass, Request, lay_out, plan_passes

log = logging.getLogger(__name__)

BATCH_TOKENS = {"cpu": 256, "cuda": 16_384}
PACK_TOKENS = {"cpu": 1024, "cuda": 4096}
TRAIN_TOKENS = {"cpu": 1024, "cuda": 8192}
"""In training the trunk is part of the row, so a pack has to hold a whole micro-batch to share it."""
PART_TOKENS = {"cpu": 1024, "cuda": 8192}
"""Tokens whose activations a training step keeps at once, where rows share little; fewer would only cost speed."""
PART_COST = 0.08
"""A step is not cut where its parts would run more than this share of tokens twice: prompts that the rows share."""
LEAST_TOKENS = 64
"""Where even so few tokens don't fit the memory, the model is too large for the device."""
TRIAL_TOKENS = 48
"""Of a trunk, when a model is tried; a whole few-shot prompt would take as long as twenty documents."""
TRIM_EVERY = 4
"""Packs after which free memory goes back to the system: every pack's logits have another size and leave other holes."""
TOLERANCE = 1e-3
"""How far a packed score may be from the plain one when an architecture is tried first (in bfloat16 a hundred times)."""


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


def _score_batch(model: torch.nn.Module, batch: Sequence[Pass], device: torch.device) -> Part:
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


def _score_group(
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


# ---- which models can be packed -------------------------------------------------------------------------------------

NOT = "not"
_packable: weakref.WeakKeyDictionary[torch.nn.Module, dict[tuple[bool, tuple[str, ...]], str]] = weakref.WeakKeyDictionary()


def _by_request(parts: Iterator[Part]) -> dict[int, float]:
    return {i: value for ids, scores in parts for i, value in zip(ids, scores.loglik.tolist(), strict=True)}


def _trial(model: torch.nn.Module, group: Group) -> Group:
    """Two passes of a group, with the end of its trunk only: masks, positions and cache work alike behind a short one."""
    passes = [p for pack in group.packs for p in pack]
    windowed = any(masks.attention_kinds(model).values())
    left_out = 0 if windowed else max(0, len(group.trunk) - TRIAL_TOKENS)
    some = (Pass(p.tokens[left_out:], p.scores) for p in dict.fromkeys((passes[0], passes[-1])))
    return Group(group.trunk[left_out:], (tuple(some),))


@torch.no_grad()
def _try_packing(model: torch.nn.Module, group: Group, device: torch.device, *, kind: str) -> str:
    """Why a model can't be packed, tried on two passes of the first group it meets; empty where its scores are exact."""
    try:
        trial = _trial(model, group)
        parts = _score_group(model, trial, device, kind=kind)
        packed = _by_request(part for _, part in parts)
    except torch.OutOfMemoryError:
        raise
    except (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError, NotImplementedError) as error:
        return str(error).strip().partition("\n")[0] or type(error).__name__
    plain = _by_request(_score_batch(model, batch, device) for batch in cut_batches(trial.packs[0], 1))
    worst = max(abs(packed[i] - plain[i]) for i in plain)
    allowed = TOLERANCE * (1 if next(model.parameters()).dtype == torch.float32 else 100)
    return "" if worst <= allowed else f"packed scores differ by {worst:.1e}"


def _attention(model: torch.nn.Module, group: Group, device: torch.device) -> str:
    """The kind of mask under which a model's packed scores are exact; found out once, with and without a trunk."""
    tried = _packable.setdefault(inner(model), {})
    kinds = masks.kinds_for(model, device)
    case = bool(group.trunk), kinds
    if case not in tried:
        tried[case] = NOT
        for kind in kinds:
            reason = _try_packing(model, group, device, kind=kind)
            if not reason:
                tried[case] = kind
                break
            instead = "its passes are batched" if kind == masks.DENSE else "a dense mask is tried"
            log.info("%s can't be packed (%s); %s instead", type(inner(model)).__name__, reason, instead)
    return tried[case]


def can_pack(model: torch.nn.Module, group: Group, device: torch.device) -> bool:
    """Whether a model's packed scores are exact."""
    return _attention(model, group, device) != NOT


def checked(model: torch.nn.Module, plan: Plan, in_batch: int, device: torch.device) -> Plan:
    """The plan with every group that this model can't be packed in cut into batches instead."""
    groups = [g for g in plan.groups if can_pack(model, g, device)]
    if len(groups) == len(plan.groups):
        return plan
    kept = {id(g) for g in groups}
    loose = [p for g in plan.groups if id(g) not in kept for pack in g.packs for p in pack]
    return Plan(groups, [*plan.batches, *cut_batches(loose, in_batch)])


# ---- the one entrance -----------------------------------------------------------------------------------------------

_told: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()


def _may_pack(model: torch.nn.Module) -> bool:
    if not masks.dropout_on(model):
        return True
    if inner(model) not in _told:
        _told.add(inner(model))
        log.info("dropout is on: rows must not share its noise, so they are trained in batches, not in packs")
    return False


@dataclass(frozen=True)
class _Budget:
    """Tokens of one forward pass."""

    in_pack: int
    in_batch: int

    def half(self) -> _Budget:
        return _Budget(self.in_pack // 2, self.in_batch // 2)


def _budget(device: torch.device, asked: int | None) -> _Budget:
    in_pack = TRAIN_TOKENS if torch.is_grad_enabled() else PACK_TOKENS
    return _Budget(asked or in_pack.get(device.type, 1024), asked or BATCH_TOKENS.get(device.type, 4096))


def _min_saving(model: torch.nn.Module, longest: int, device: torch.device) -> float:
    """Branch by branch, attention costs nothing for what is not shared: every pack is worth it, for it pads nothing."""
    kinds = masks.kinds_for(model, device)
    found = _packable.get(inner(model), {}).get((False, kinds), kinds[0])
    return 0.0 if found == masks.BRANCHES and not masks.windowed(model, longest) else MIN_SAVING


def _plan(model: torch.nn.Module, passes: Sequence[Pass], budget: _Budget, device: torch.device) -> Plan:
    plan = make_plan(
        passes,
        in_pack=budget.in_pack,
        in_batch=budget.in_batch,
        pack=_may_pack(model),
        trunks=not torch.is_grad_enabled(),
        min_saving=_min_saving(model, max((len(p.tokens) for p in passes), default=0), device),
    )
    return checked(model, plan, budget.in_batch, device)


def plan_for(model: torch.nn.Module, requests: Sequence[Request], max_length: int, budget: int | None = None) -> Plan:
    """How `score` runs some requests."""
    device = next(model.parameters()).device
    return _plan(model, plan_passes(requests, max_length), _budget(device, budget), device)


def cut_rows(model: torch.nn.Module, rows: Sequence[Sequence[Request]], max_length: int) -> list[list[int]]:
    """Cut a training step's rows into parts that are run, and run back, one after the other: less memory, the same gradient.

    Args:
        model: the model that is trained.
        rows: the requests of every row; those of one row stay together, for its loss needs all of them.
        max_length: the model's window in tokens.

    Returns:
        The numbers of the rows of each part, the longest rows first; one part where cutting would run a shared prompt twice.
    """

    device = next(model.parameters()).device
    budget = _budget(device, None)

    def passes(part: Sequence[int]) -> list[Pass]:
        return plan_passes([request for i in part for request in rows[i]], max_length)

    def tokens(part: Sequence[int]) -> int:
        return make_plan(
            passes(part),
            in_pack=budget.in_pack,
            in_batch=budget.in_batch,
            pack=packs,
            trunks=False,
            min_saving=0.0 if packs else MIN_SAVING,
        ).tokens

    order = sorted(range(len(rows)), key=lambda i: -max(len(context) + len(reply) for context, reply in rows[i]))
    plan = _plan(model, passes(order), budget, device)
    whole, packs = plan.tokens, bool(plan.groups)
    size = PART_TOKENS.get(device.type, PART_TOKENS["cuda"])
    while size < whole:
        each = math.ceil(len(rows) / math.ceil(whole / size))
        parts = [order[i : i + each] for i in range(0, len(order), each)]
        if sum(map(tokens, parts)) <= (1 + PART_COST) * whole:
            return parts
        size *= 2
    return [order]


def _run_plan(model: torch.nn.Module, plan: Plan, device: torch.device) -> Iterator[tuple[Sequence[Pass], Part]]:
    for group in plan.groups:
        yield from _score_group(model, group, device, kind=_attention(model, group, device))
    for batch in plan.batches:
        yield batch, _score_batch(model, batch, device)


def _run_all(model: torch.nn.Module, passes: Sequence[Pass], budget: _Budget, device: torch.device) -> Iterator[Part]:
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
            log.info("out of memory: going on with %d tokens a pass", budget.in_pack)
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
    for ids, scores in _run_all(model, plan_passes(requests, max_length), _budget(device, budget), device):
        parts.append(scores.loglik)
        greedy[torch.tensor(ids, device=device)] = scores.greedy
        order += ids
        if done:
            done(len(ids))
    back = torch.argsort(torch.tensor(order, device=device))
    return Scores(torch.cat(parts)[back], greedy)
