"""Which models can be packed or padded, and under which kind of mask: each is tried before its numbers are used.

A trial runs a small prefix tree, of branches of several lengths with shared beginnings, in a pack, and each of its texts by
itself. It is made as long as needed to reach past everything that an architecture declares or that its masks hide
(`witness`). Where it can't be known what the layers see, the largest pack that is about to be run is tried itself, as often
as a larger one comes. Scoring, training (with gradients) and decoding are tried each for itself.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import re
import weakref
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from w2s_tasks.packing import masks
from w2s_tasks.packing.forward import Part, score_batch, score_group
from w2s_tasks.packing.masks import inner
from w2s_tasks.packing.plan import Group, tree_size
from w2s_tasks.packing.precision import in_float32, widenable
from w2s_tasks.packing.regimes import positions_of
from w2s_tasks.packing.tree import Pass
from w2s_tasks.packing.witness import Witness, watching

log = logging.getLogger(__name__)

REACH = 32
"""Tokens of the trial's stem where nothing is known to change further back."""
BRANCHES = 9
"""Tokens of the longest branch behind it; so far a trial reaches past a window."""
SCORED = 4
"""Tokens at the end of each of its texts that are scored."""
TOLERANCE = {torch.float32: 2e-4, torch.float64: 2e-4}
"""How far a packed score may be from the plain one, in float32, in which half-precision models are tried too."""
HALF_TOLERANCE = 1e-1
"""The same where a half-precision model has no room for that."""
NOISE = 8
"""How many times as far from the float32 score as the plain half-precision one a packed one may be."""
GRADIENT_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
"""How far a gradient may be off, as a share of its largest number."""
NOT = "not"
"""The kind of mask of a model that can't be packed."""
WINDOW_NAMES = re.compile(r"(?<!num_)(?<!use_)(window|chunk|local|block|span|stride|segment|distance|floor|keep)")
"""Names of settings that may say how far a layer sees."""
REFUSALS = (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError, NotImplementedError, AssertionError)
"""What an architecture raises where it does not take packed rows."""

Values = list[torch.Tensor]
"""Of every text of a group its scores, then gradients."""


@dataclass(frozen=True)
class Way:
    """One way of running packs: how a group goes through the model, and what must come out."""

    name: str
    packed: Callable[[torch.nn.Module, Group, str], Values]
    plain: Callable[[torch.nn.Module, Sequence[Pass]], Values]
    more: int = 0
    """Tokens that each text may grow by."""


@dataclass
class _Tried:
    """A kind of mask that serves, and up to which lengths that is known."""

    kind: str
    longest: int = 0
    row: int = 0


@dataclass
class _Known:
    """What is known of a model."""

    driven: bool | None = None
    """Whether masks alone decide what layers see; None before it was watched."""
    witness: Witness = field(default_factory=Witness)
    ways: dict[tuple[str, bool, tuple[str, ...]], _Tried] = field(default_factory=dict)
    padded: int = 0
    """Length up to which padding on the right is known to change nothing."""
    alone: bool = False
    """Whether its rows are run one at a time."""
    told: set[str] = field(default_factory=set)


_models: weakref.WeakKeyDictionary[torch.nn.Module, _Known] = weakref.WeakKeyDictionary()


def known(model: torch.nn.Module) -> _Known:
    """What trials have found out about a model so far."""
    return _models.setdefault(inner(model), _Known())


# ---- ways -----------------------------------------------------------------------------------------------------------


def by_text(parts: Iterable[Part], asked: Container[int] | None = None) -> torch.Tensor:
    found = {i: value for ids, scores in parts for i, value in zip(ids, scores.loglik, strict=True)}
    return torch.stack([found[i] for i in sorted(found) if asked is None or i in asked])


def device_of(model: torch.nn.Module) -> torch.device:
    return next(model.parameters()).device


def _score_packed(model: torch.nn.Module, group: Group, kind: str) -> Values:
    return [by_text(part for _, part in score_group(model, group, device_of(model), kind=kind))]


def _score_plain(model: torch.nn.Module, passes: Sequence[Pass]) -> Values:
    return [by_text(score_batch(model, [item], device_of(model)) for item in passes)]


def _with_gradients(model: torch.nn.Module, scores: torch.Tensor) -> Values:
    """Scores, and the gradients of a sum that weighs them differently by all that is trained."""
    trained = [p for p in model.parameters() if p.requires_grad]
    weighed = (scores * torch.linspace(0.5, 1.5, len(scores), device=scores.device)).sum()
    if not trained:
        return [scores]
    grads = torch.autograd.grad(weighed, trained, allow_unused=True)
    return [scores.detach(), *(p.new_zeros(1) if g is None else g for p, g in zip(trained, grads, strict=True))]


SCORING = Way("scoring", _score_packed, _score_plain)
TRAINING = Way(
    "training",
    lambda model, group, kind: _with_gradients(model, _score_packed(model, group, kind)[0]),
    lambda model, passes: _with_gradients(model, _score_plain(model, passes)[0]),
)


def _way() -> Way:
    return TRAINING if torch.is_grad_enabled() else SCORING


# ---- what is tried --------------------------------------------------------------------------------------------------


def _declared(config: Any) -> set[int]:
    """Numbers in a configuration whose names sound like a window's."""

    def values(name: str, value: Any) -> Iterator[int]:
        if isinstance(value, dict):
            for key, inside in value.items():
                yield from values(str(key), inside)
        elif isinstance(value, list | tuple):
            for inside in value:
                yield from values(name, inside)
        elif isinstance(value, int) and not isinstance(value, bool) and value > 1 and WINDOW_NAMES.search(name):
            yield value

    return {number for name, value in config.to_dict().items() for number in values(name, value)}


def _reach(model: torch.nn.Module, longest: int) -> int:
    """Tokens of the trial's stem: past every window that texts of this length cross, no longer than the model takes."""
    config = masks.text_config(model)
    windows = {window for window in _declared(config) if window < longest}
    windows |= known(model).witness.hides_from(longest)
    reach = max([REACH, *(window + BRANCHES for window in windows)])
    room = getattr(config, "max_position_embeddings", None) or reach + BRANCHES
    if positions_of(model).adaptive:
        room = min(room, longest)
    return max(SCORED, min(reach, room - BRANCHES))


def _tree(group: Group, reach: int, way: Way) -> Group:
    """Four texts on a stem of the group's own tokens; two share a branch, one leaves the stem early.

    Of replies, whose plain way takes many passes, two.
    """
    longest = max((item for pack in group.packs for item in pack), key=lambda item: len(item.tokens))
    stem = tuple(itertools.islice(itertools.cycle(longest.tokens), reach))
    half = reach // 2
    others = [token for token in dict.fromkeys((*longest.tokens, *range(8))) if token != stem[half]]

    def branch(number: int, length: int) -> tuple[int, ...]:
        return tuple(others[(number + 3 * place) % len(others)] for place in range(length))

    texts = [
        (*stem, *branch(0, 6)),
        (*stem, *branch(1, BRANCHES)),
        (*stem, *branch(1, 4), *branch(3, 3)),
        (*stem[:half], *branch(2, SCORED)),
    ]
    passes = [
        Pass(text, ((i, text[-SCORED + 1 :] + text[:1]),))
        for i, text in enumerate(dict.fromkeys(texts[1::2] if way.more else texts))
    ]
    trunk = stem[:half] if group.trunk else ()
    return Group(trunk, (tuple(sorted(passes, key=lambda item: item.tokens)),))


def _largest(groups: Sequence[Group]) -> Group:
    """The pack with the longest row, as a group of its own."""
    packs = [(len(g.trunk) + tree_size(pack, len(g.trunk)), g.trunk, pack) for g in groups for pack in g.packs]
    _, trunk, pack = max(packs, key=lambda entry: entry[0])
    return Group(trunk, (pack,))


def difference(packed: Values, plain: Values, dtype: torch.dtype) -> str:
    """What differs by more than rounding; empty where nothing does."""
    worst = float((packed[0] - plain[0]).abs().max())
    if not worst <= TOLERANCE.get(dtype, HALF_TOLERANCE):
        return f"packed scores differ by {worst:.1e}"
    largest = [float(grad.abs().max()) for grad in plain[1:]]
    for mine, theirs, own in zip(packed[1:], plain[1:], largest, strict=True):
        # Some gradients are nothing but rounding, as those of the keys' biases.
        allowed = GRADIENT_TOLERANCE.get(dtype, HALF_TOLERANCE) * max(own, max(largest) * 1e-2)
        if not float((mine - theirs).abs().max()) <= allowed:
            return "packed gradients differ"
    return ""


def compared(model: torch.nn.Module, tokens: int, packed: Callable[[], Values], plain: Callable[[], Values]) -> str:
    """Why one way of running a model does not give another's values; empty where it does but for rounding.

    Args:
        model: which both run.
        tokens: of a pass at most.
        packed: runs it in the way that is tried.
        plain: runs it in the way that is right.
    """
    try:
        if not widenable(model, tokens):
            return difference(packed(), plain(), next(model.parameters()).dtype)
        with in_float32(model):
            right = plain()
            reason = difference(packed(), right, torch.float32)
        return reason or _noisier(packed(), plain(), right)
    except torch.OutOfMemoryError:
        raise
    except REFUSALS as error:
        return reason_of(error)


def _noisier(packed: Values, plain: Values, right: Values) -> str:
    """How far packed scores in half precision are off where that is many times as far as plain ones; else empty."""
    noise, worst = (float((values[0] - right[0]).abs().max()) for values in (plain, packed))
    if worst <= max(HALF_TOLERANCE, NOISE * noise):
        return ""
    return f"packed scores differ by {worst:.1e}, plain ones by {noise:.1e}"


def reason_of(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


@contextlib.contextmanager
def same_chances(device: torch.device) -> Iterator[None]:
    """A trial draws nothing from the generators that a training goes on with."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def _try(model: torch.nn.Module, group: Group, way: Way, kind: str, some: Iterable[Pass] | None = None) -> str:
    """Why a group's packed numbers can't be used; empty where they are the plain ones, of all texts or of some."""
    passes = (item for pack in group.packs for item in pack) if some is None else some
    ordered = sorted(passes, key=lambda item: item.scores[0][0])
    row = len(group.trunk) + sum(len(item.tokens) for pack in group.packs for item in pack)
    return compared(model, row, lambda: way.packed(model, group, kind), lambda: way.plain(model, ordered))


def _try_tree(model: torch.nn.Module, group: Group, way: Way, kind: str, longest: int) -> str:
    """A trial of the small tree, again with a longer one where watching it has shown a window further back."""
    state = known(model)
    reach = _reach(model, longest)
    if state.driven is not None:
        return _try(model, _tree(group, reach, way), way, kind)
    witness = Witness()
    with watching(witness):
        reason = _try(model, _tree(group, reach, way), way, kind)
    if reason:
        return reason
    state.driven = witness.driven(model)
    state.witness = witness if state.driven else Witness()
    further = _reach(model, longest)
    return _try(model, _tree(group, further, way), way, kind) if further > reach else ""


def _try_real(model: torch.nn.Module, groups: Sequence[Group], kind: str) -> str:
    """The largest pack itself against its first, last and longest text."""
    group = _largest(groups)
    (pack,) = group.packs
    some = {pack[0], pack[-1], max(pack, key=lambda item: len(item.tokens))}
    asked = {i for item in some for i, _ in item.scores}

    def packed(model: torch.nn.Module, group: Group, kind: str) -> Values:
        parts = (part for _, part in score_group(model, group, device_of(model), kind=kind))
        return [by_text(parts, asked)]

    with torch.no_grad():
        return _try(model, group, Way("scoring", packed, _score_plain), kind, some)


def tell(model: torch.nn.Module, fact: str, reason: str, instead: str) -> None:
    """Say a fact once for a model that goes a slower way."""
    told = known(model).told
    level = logging.INFO if fact in told else logging.WARNING
    log.log(level, "%s %s (%s); %s", type(inner(model)).__name__, fact, reason, instead)
    told.add(fact)


def _search(model: torch.nn.Module, groups: Sequence[Group], way: Way, kinds: Sequence[str], longest: int) -> str:
    """The first kind of mask under which the model's packs are exact."""
    for kind in kinds:
        reason = _try_tree(model, groups[0], way, kind, longest)
        if not reason and not known(model).driven:
            # What the layers see is their own affair; and a reply makes its row longer than any that was tried.
            reason = _try_real(model, groups, kind) if not way.more else "its layers have masks of their own"
        if not reason:
            return kind
        if kind != kinds[-1]:
            log.info("%s can't be packed (%s); a dense mask is tried instead", type(inner(model)).__name__, reason)
        else:
            instead = "its replies are generated one at a time" if way.more else "its passes are batched instead"
            tell(model, "can't be packed", reason, instead)
    return NOT


def _covered(model: torch.nn.Module, tried: _Tried, longest: int, row: int) -> bool:
    """Whether an earlier trial says all about texts and rows of these lengths."""
    if tried.kind == NOT or (longest <= tried.longest and row <= tried.row):
        return True
    return bool(known(model).driven) and _reach(model, longest) <= _reach(model, tried.longest)


def try_groups(
    model: torch.nn.Module, groups: Sequence[Group], device: torch.device, way: Way | None = None, kinds: Sequence[str] = ()
) -> str:
    """The kind of mask under which packs behind a trunk, or those without one, are exact; tried where it is not known.

    Args:
        model: what runs them.
        groups: all with a trunk or all without.
        device: where it lies.
        way: how they are run; by default scored, with gradients where these are enabled.
        kinds: the kinds of masks to try, by default all that may serve.
    """
    way, kinds = way or _way(), tuple(kinds) or masks.kinds_for(model, device)
    longest = way.more + max(len(item.tokens) for g in groups for pack in g.packs for item in pack)
    row = max(len(g.trunk) + tree_size(pack, len(g.trunk)) for g in groups for pack in g.packs)
    case = way.name, bool(groups[0].trunk), kinds
    tried = known(model).ways.get(case)
    if tried is None or not _covered(model, tried, longest, row):
        unwrapped: torch.nn.Module = getattr(model, "module", model)
        with same_chances(device), torch.set_grad_enabled(way is TRAINING):
            first = tried.kind if tried else ""
            kind = _search(unwrapped, groups, way, kinds[kinds.index(first) :] if first else kinds, longest)
        before = tried or _Tried(kind)
        tried = _Tried(kind, max(before.longest, longest), max(before.row, row))
        known(model).ways[case] = tried
    return tried.kind


def attention_for(model: torch.nn.Module, group: Group, device: torch.device) -> str:
    """The kind of mask under which the scores of a group are exact."""
    return try_groups(model, [group], device)


def likely_attention(model: torch.nn.Module, device: torch.device) -> str:
    """What `try_groups` found without a trunk, or hopes to find."""
    kinds = masks.kinds_for(model, device)
    tried = known(model).ways.get((_way().name, False, kinds))
    return tried.kind if tried else kinds[0]
