"""Which models can be packed, and under which kind of mask: each is tried once, on two passes of its first group."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator

import torch

from w2s_tasks.packing import masks
from w2s_tasks.packing.forward import Part, score_batch, score_group
from w2s_tasks.packing.masks import inner
from w2s_tasks.packing.plan import Group, Plan, cut_batches
from w2s_tasks.packing.tree import Pass

log = logging.getLogger(__name__)

TRIAL_TOKENS = 48
"""Of a trunk, when a model is tried; a whole few-shot prompt would take as long as twenty documents."""
TOLERANCE = 1e-3
"""How far a packed score may be from the plain one when an architecture is tried first (in bfloat16 a hundred times)."""
NOT = "not"
"""The kind of mask of a model that can't be packed."""
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
        parts = score_group(model, trial, device, kind=kind)
        packed = _by_request(part for _, part in parts)
    except torch.OutOfMemoryError:
        raise
    except (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError, NotImplementedError) as error:
        return str(error).strip().partition("\n")[0] or type(error).__name__
    plain = _by_request(score_batch(model, batch, device) for batch in cut_batches(trial.packs[0], 1))
    worst = max(abs(packed[i] - plain[i]) for i in plain)
    allowed = TOLERANCE * (1 if next(model.parameters()).dtype == torch.float32 else 100)
    return "" if worst <= allowed else f"packed scores differ by {worst:.1e}"


def attention_for(model: torch.nn.Module, group: Group, device: torch.device) -> str:
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
            last = kind == kinds[-1]
            instead = "its passes are batched" if last else "a dense mask is tried"
            level = logging.WARNING if last else logging.INFO
            log.log(level, "%s can't be packed (%s); %s instead", type(inner(model)).__name__, reason, instead)
    return tried[case]


def likely_attention(model: torch.nn.Module, device: torch.device) -> str:
    """What `attention_for` found without a trunk, or hopes to find."""
    kinds = masks.kinds_for(model, device)
    return _packable.get(inner(model), {}).get((False, kinds), kinds[0])


def can_pack(model: torch.nn.Module, group: Group, device: torch.device) -> bool:
    """Whether a model's packed scores are exact."""
    return attention_for(model, group, device) != NOT


def checked(model: torch.nn.Module, plan: Plan, in_batch: int, device: torch.device) -> Plan:
    """The plan with every group that this model can't be packed in cut into batches instead."""
    groups = [g for g in plan.groups if can_pack(model, g, device)]
    if len(groups) == len(plan.groups):
        return plan
    kept = {id(g) for g in groups}
    loose = [p for g in plan.groups if id(g) not in kept for pack in g.packs for p in pack]
    return Plan(groups, [*plan.batches, *cut_batches(loose, in_batch)])
