"""Score continuations with the fewest tokens: used by evaluation and, with gradients, by training.

A request is (context tokens, continuation tokens), as lm_eval encodes it. Three ideas save tokens, all of them exact:

1. Requests that need the same forward pass (one context, one-token choices) share it.
2. Passes with a long common beginning (few-shot examples, an instruction) share a **trunk**: it runs once, its keys and
   values are kept, and the rest of many passes is packed side by side into one row, each attending to the trunk and to
   itself only, with its own position ids. Nothing is padded, and the trunk is never copied.
3. The vocabulary is projected only at the positions that score a token.

Without a trunk worth its while, passes of similar length are batched; right padding under causal attention changes nothing
for the tokens before it, so no mask is needed.
"""

from __future__ import annotations

import inspect
import itertools
import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

log = logging.getLogger(__name__)

Tokens = Sequence[int]
Request = tuple[Tokens, Tokens]

BATCH_TOKENS = {"cpu": 512, "cuda": 16_384}
PACK_TOKENS = {"cpu": 384, "cuda": 4096}
DEEPEST = 200
"""Levels of the prefix tree that are looked at; real prompts have a few dozen."""
MIN_SAVING = 0.2
"""A trunk is shared where it saves at least this share of a group's tokens."""
TOLERANCE = 1e-3
"""How far a packed score may be from the plain one when an architecture is tried first (in bfloat16 ten times as far)."""


@dataclass(frozen=True)
class Pass:
    """One sequence to run and the continuations it scores: (request index, continuation tokens)."""

    tokens: tuple[int, ...]
    scores: tuple[tuple[int, tuple[int, ...]], ...]

    @property
    def own(self) -> int:
        """How many tokens at the end must be run in any case: those that predict the continuations."""
        return max(len(continuation) for _, continuation in self.scores)


@dataclass(frozen=True)
class Group:
    """Passes that begin with the same `trunk` tokens; a trunk of 0 means that they share nothing worth keeping."""

    trunk: int
    passes: tuple[Pass, ...]


@dataclass
class Scores:
    """Summed log-probability of each continuation, shape [requests], and whether greedy decoding would produce it."""

    loglik: torch.Tensor
    greedy: torch.Tensor


# ---- planning: which tokens are run ---------------------------------------------------------------------------------


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


def _common(a: Pass, b: Pass) -> int:
    """Length of the common beginning of two passes, as far as both can give it to a trunk."""
    limit = min(len(a.tokens) - a.own, len(b.tokens) - b.own)
    if a.tokens[:limit] == b.tokens[:limit]:
        return max(0, limit)
    return next(i for i in range(limit) if a.tokens[i] != b.tokens[i])


def _saving(trunk: int, n: int) -> int:
    return trunk * (n - 1)


def _best(passes: Sequence[Pass], common: Sequence[int], depth: int = 0) -> tuple[int, list[Group]]:
    """The grouping of sorted passes that saves most tokens: one trunk for all, or the best of the parts.

    ``common[i]`` is what passes i and i+1 share. All of them share the minimum; cutting where it is reached gives the parts.
    """
    n = len(passes)
    if n == 1:
        return 0, [Group(0, tuple(passes))]
    least = min(common)
    cuts = [i for i, c in enumerate(common) if c == least]
    together = _saving(least, n), [Group(least, tuple(passes))]
    if len(cuts) == n - 1 or depth == DEEPEST:
        return together
    apart, start = 0, 0
    groups: list[Group] = []
    for end in [*(c + 1 for c in cuts), n]:
        saved, parts = _best(passes[start:end], common[start : end - 1], depth + 1)
        apart, groups, start = apart + saved, groups + parts, end
    return (apart, groups) if apart > together[0] else together


def plan_groups(passes: Sequence[Pass]) -> list[Group]:
    """Group passes by shared trunk; those whose trunk would not pay are left together without one."""
    if not passes:
        return []
    ordered = sorted(passes, key=lambda p: p.tokens)
    common = [_common(a, b) for a, b in itertools.pairwise(ordered)]
    groups: list[Group] = []
    plain: list[Pass] = []
    for group in _best(ordered, common)[1]:
        total = sum(len(p.tokens) for p in group.passes)
        if _saving(group.trunk, len(group.passes)) >= MIN_SAVING * total:
            groups.append(group)
        else:
            plain += group.passes
    return [*groups, *([Group(0, tuple(plain))] if plain else [])]


def batches(passes: Sequence[Pass], budget: int) -> list[list[Pass]]:
    """Cut length-sorted passes into batches of at most `budget` padded tokens, the longest first: memory fails early."""
    out: list[list[Pass]] = []
    for item in sorted(passes, key=lambda p: (-len(p.tokens), p.tokens)):
        if out and len(out[-1][0].tokens) * (len(out[-1]) + 1) <= budget:
            out[-1].append(item)
        else:
            out.append([item])
    return out


def packs(group: Group, budget: int) -> list[list[Pass]]:
    """Cut a group into packs whose tokens beyond the trunk fit the budget."""
    out: list[list[Pass]] = []
    room = 0
    for item in group.passes:
        size = len(item.tokens) - group.trunk
        if not out or size > room:
            out.append([])
            room = budget
        out[-1].append(item)
        room -= size
    return out


# ---- running --------------------------------------------------------------------------------------------------------


def _inner(model: torch.nn.Module) -> torch.nn.Module:
    """The transformers model inside a PEFT wrapper."""
    unwrap: Callable[[], torch.nn.Module] = getattr(model, "get_base_model", lambda: model)
    return unwrap()


def _accepts_positions(model: torch.nn.Module) -> bool:
    """Whether forward() takes `logits_to_keep`."""
    forward: Callable[..., Any] = _inner(model).forward
    return "logits_to_keep" in inspect.signature(forward).parameters


@dataclass(frozen=True)
class _Scored:
    """Where the scored tokens of some passes are: for each the request, its row and position, and the token."""

    request: torch.Tensor
    row: torch.Tensor
    position: torch.Tensor
    token: torch.Tensor


def _gather(logits: torch.Tensor, where: _Scored) -> tuple[list[int], Scores]:
    """Sum the log-probabilities of each request's tokens; `where.position` indexes the second axis of `logits`."""
    cells, cell_of = torch.unique(torch.stack([where.row, where.position]), dim=1, return_inverse=True)
    chosen = logits[cells[0], cells[1]].float()  # [distinct scored positions, vocabulary]
    logprob = chosen[cell_of, where.token] - torch.logsumexp(chosen, dim=-1)[cell_of]
    hit = chosen.argmax(dim=-1)[cell_of] == where.token
    order, slot = torch.unique(where.request, return_inverse=True)
    zeros = torch.zeros(len(order), device=logits.device)
    loglik = zeros.index_add(0, slot, logprob)
    misses = zeros.index_add(0, slot, (~hit).float())
    return order.tolist(), Scores(loglik, misses == 0)


def _locate(passes: Sequence[Pass], rows: Sequence[int], offsets: Sequence[int], device: torch.device) -> _Scored:
    """Scored tokens of passes that lie in `rows`, each pass's first token at position `offset` of its row."""
    entries = [
        (i, row, offset + len(p.tokens) - len(continuation) + k, token)
        for p, row, offset in zip(passes, rows, offsets, strict=True)
        for i, continuation in p.scores
        for k, token in enumerate(continuation)
    ]
    return _Scored(*(torch.tensor(column, device=device) for column in zip(*entries, strict=True)))


def _run(model: torch.nn.Module, where: _Scored, **inputs: Any) -> tuple[list[int], Scores]:
    """One forward pass, projecting only the scored positions where the architecture allows it."""
    if not _accepts_positions(model):
        return _gather(model(**inputs).logits, where)
    kept, column = torch.unique(where.position, return_inverse=True)
    logits = model(**inputs, logits_to_keep=kept).logits
    return _gather(logits, _Scored(where.request, where.row, column, where.token))


def _score_batch(model: torch.nn.Module, batch: Sequence[Pass], device: torch.device) -> tuple[list[int], Scores]:
    longest = len(batch[0].tokens)
    # The padding's value is irrelevant: nothing before it attends to it, and nothing of it is scored.
    rows = [[*p.tokens, *([0] * (longest - len(p.tokens)))] for p in batch]
    where = _locate(batch, range(len(batch)), [0] * len(batch), device)
    return _run(model, where, input_ids=torch.tensor(rows, device=device), use_cache=False)


def _branch_mask(sizes: Sequence[int], trunk: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Additive mask [1, 1, tokens, trunk + tokens]: every branch sees the trunk and, causally, itself."""
    branch = torch.repeat_interleave(torch.arange(len(sizes), device=device), torch.tensor(sizes, device=device))
    index = torch.arange(len(branch), device=device)
    allowed = (branch[:, None] == branch[None, :]) & (index[:, None] >= index[None, :])
    allowed = torch.cat([allowed.new_ones(len(branch), trunk), allowed], dim=1)
    return torch.zeros(allowed.shape, dtype=dtype, device=device).masked_fill(~allowed, torch.finfo(dtype).min)[None, None]


def _score_pack(
    model: torch.nn.Module, pack: Sequence[Pass], trunk: int, cache: Any, device: torch.device
) -> tuple[list[int], Scores]:
    sizes = [len(p.tokens) - trunk for p in pack]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    tokens = [token for p in pack for token in p.tokens[trunk:]]
    positions = [trunk + k for size in sizes for k in range(size)]
    where = _locate(pack, [0] * len(pack), [start - trunk for start in starts], device)
    dtype = next(model.parameters()).dtype
    result = _run(
        model,
        where,
        input_ids=torch.tensor([tokens], device=device),
        position_ids=torch.tensor([positions], device=device),
        attention_mask=_branch_mask(sizes, trunk, dtype, device),
        past_key_values=cache,
        use_cache=True,
    )
    cache.crop(-len(tokens))
    return result


def _score_group(
    model: torch.nn.Module, group: Group, budget: int, device: torch.device
) -> Iterator[tuple[list[int], Scores]]:
    """Run the trunk once, then pack after pack behind its keys and values."""
    from transformers import DynamicCache

    cache = DynamicCache()
    trunk = torch.tensor([group.passes[0].tokens[: group.trunk]], device=device)
    narrow = {"logits_to_keep": 1} if _accepts_positions(model) else {}
    model(input_ids=trunk, past_key_values=cache, use_cache=True, **narrow)
    for pack in packs(group, budget):
        yield _score_pack(model, pack, group.trunk, cache, device)


# ---- which architectures can be packed ------------------------------------------------------------------------------

_packable: weakref.WeakKeyDictionary[torch.nn.Module, bool] = weakref.WeakKeyDictionary()


def _window(model: torch.nn.Module) -> int | None:
    """The sliding window of a model that has one: beyond it our mask would show too much."""
    config = getattr(_inner(model), "config", None)
    config = getattr(config, "text_config", config)
    window = getattr(config, "sliding_window", None)
    return int(window) if window and getattr(config, "use_sliding_window", True) else None


def _try_packing(model: torch.nn.Module, group: Group, budget: int, device: torch.device) -> bool:
    """Whether packed scores of an architecture are its plain ones, tried on two passes of the first group it meets."""
    some = Group(group.trunk, (group.passes[0], group.passes[-1]))
    try:
        packed = dict(_by_request(_score_group(model, some, budget, device)))
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError, NotImplementedError) as error:
        log.info("%s can't be packed (%s); its passes are batched instead", type(_inner(model)).__name__, error)
        return False
    plain = dict(_by_request(_score_batch(model, batch, device) for batch in batches(some.passes, 1)))
    worst = max(abs(packed[i] - plain[i]) for i in plain)
    allowed = TOLERANCE * (1 if next(model.parameters()).dtype == torch.float32 else 10)
    if worst > allowed:
        log.info("%s: packed scores differ by %.1e; its passes are batched instead", type(_inner(model)).__name__, worst)
    return worst <= allowed


def _by_request(parts: Iterator[tuple[list[int], Scores]]) -> Iterator[tuple[int, float]]:
    for ids, scores in parts:
        yield from zip(ids, scores.loglik.tolist(), strict=True)


def _can_pack(model: torch.nn.Module, group: Group, budget: int, device: torch.device) -> bool:
    if group.trunk == 0 or torch.is_grad_enabled():
        return False
    window = _window(model)
    if window is not None and max(len(p.tokens) for p in group.passes) > window:
        return False
    inner = _inner(model)
    if inner not in _packable:
        _packable[inner] = _try_packing(model, group, budget, device)
    return _packable[inner]


# ---- the one entrance -----------------------------------------------------------------------------------------------


def _parts(
    model: torch.nn.Module, passes: Sequence[Pass], budget: int | None, device: torch.device
) -> Iterator[tuple[list[int], Scores]]:
    in_batch = budget or BATCH_TOKENS.get(device.type, 4096)
    in_pack = budget or PACK_TOKENS.get(device.type, 1024)
    plain: list[Pass] = []
    for group in plan_groups(passes) if not torch.is_grad_enabled() else [Group(0, tuple(passes))]:
        if _can_pack(model, group, in_pack, device):
            yield from _score_group(model, group, in_pack, device)
        else:
            plain += group.passes
    for batch in batches(plain, in_batch):
        yield _score_batch(model, batch, device)


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
        budget: tokens a forward pass; by default 512 in a batch and 384 in a pack on a CPU, more on a GPU.
        done: called with the number of requests that each forward pass finished.

    Returns:
        `Scores` in the order of `requests`.
    """
    device = next(model.parameters()).device
    parts: list[torch.Tensor] = []
    greedy = torch.zeros(len(requests), dtype=torch.bool, device=device)
    order: list[int] = []
    for ids, scores in _parts(model, plan_passes(requests, max_length), budget, device):
        parts.append(scores.loglik)
        greedy[torch.tensor(ids, device=device)] = scores.greedy
        order += ids
        if done:
            done(len(ids))
    back = torch.argsort(torch.tensor(order, device=device))
    return Scores(torch.cat(parts)[back], greedy)
