"""Which tokens are run: trunks, packs behind them, and batches for what shares too little."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from w2s_tasks.packing.tree import Pass, common

DEEPEST = 200
"""Levels of the prefix tree that are looked at for a trunk; real prompts have a few dozen."""
MIN_SAVING = 0.2
"""Passes are packed where that runs at least this share fewer tokens; below, a dense mask costs more than it saves."""


@dataclass(frozen=True)
class Group:
    """Packs of passes behind a trunk: the tokens that all of them begin with, run once (none where it is empty)."""

    trunk: tuple[int, ...]
    packs: tuple[tuple[Pass, ...], ...]


@dataclass
class Plan:
    """Everything to run."""

    groups: list[Group] = field(default_factory=list)
    batches: list[list[Pass]] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Tokens that go through the model, padding included."""
        packed = sum(len(g.trunk) + sum(tree_size(p, len(g.trunk)) for p in g.packs) for g in self.groups)
        return packed + sum(len(b) * len(b[0].tokens) for b in self.batches)


def tree_size(passes: Sequence[Pass], trunk: int = 0) -> int:
    """Tokens of the passes' prefix tree beyond the trunk; passes are sorted."""
    before: tuple[int, ...] = passes[0].tokens[:trunk]
    size = 0
    for item in passes:
        size += len(item.tokens) - max(trunk, common(before, item.tokens))
        before = item.tokens
    return size


def cut_packs(passes: Sequence[Pass], trunk: int, budget: int) -> list[tuple[Pass, ...]]:
    """Cut sorted passes into packs whose trees beyond the trunk fit the budget (a longer pass is a pack of its own)."""
    out: list[list[Pass]] = []
    room = 0
    for item in passes:
        size = len(item.tokens) - max(trunk, common(out[-1][-1].tokens, item.tokens)) if out else 0
        if not out or size > room:
            out.append([])
            size, room = len(item.tokens) - trunk, budget
        out[-1].append(item)
        room -= size
    return [tuple(pack) for pack in out]


def cut_batches(passes: Iterable[Pass], budget: int) -> list[list[Pass]]:
    """Cut length-sorted passes into batches of at most `budget` padded tokens, the longest first: memory fails early."""
    out: list[list[Pass]] = []
    for item in sorted(passes, key=lambda p: (-len(p.tokens), p.tokens)):
        if out and len(out[-1][0].tokens) * (len(out[-1]) + 1) <= budget:
            out[-1].append(item)
        else:
            out.append([item])
    return out


class _Trunks:
    """Finds the trunks of sorted passes: stretches whose common beginning is worth keeping as keys and values.

    All passes of a stretch share its smallest common beginning; cutting the stretch where that is reached gives the parts,
    each with a longer trunk of its own. The way that runs fewer tokens wins.
    """

    def __init__(self, passes: Sequence[Pass], budget: int) -> None:
        self.budget = budget
        self.lengths = [len(p.tokens) for p in passes]
        self.shared = [common(a.tokens, b.tokens) for a, b in itertools.pairwise(passes)]
        # The tokens that predict a continuation have to be run, so a trunk ends before them.
        self.limits = [
            min(s, len(a.tokens) - a.own, len(b.tokens) - b.own)
            for s, (a, b) in zip(self.shared, itertools.pairwise(passes), strict=True)
        ]

    def _cost(self, start: int, end: int, trunk: int) -> tuple[int, int]:
        """Tokens run and packs, where the stretch stands on a trunk of this length; as `cut_packs` cuts."""
        total, packs, room = trunk, 0, 0
        for i in range(start, end):
            size = self.lengths[i] - max(trunk, self.shared[i - 1]) if packs else 0
            if not packs or size > room:
                size, room, packs = self.lengths[i] - trunk, self.budget, packs + 1
            room -= size
            total += size
        return total, packs

    def best(self, start: int, end: int, depth: int = 0) -> tuple[int, list[tuple[int, int, int]]]:
        """The fewest tokens, and the stretches (start, end, trunk length) that run no more."""
        plain, packs = self._cost(start, end, 0)
        if packs < 2 or depth == DEEPEST:
            return plain, [(start, end, 0)]
        limits = self.limits[start : end - 1]
        least = min(limits)
        behind = self._cost(start, end, least)[0]
        together = (behind, [(start, end, least)]) if behind < plain else (plain, [(start, end, 0)])
        cuts = [start + i + 1 for i, limit in enumerate(limits) if limit == least]
        apart = 0
        stretches: list[tuple[int, int, int]] = []
        for a, b in itertools.pairwise([start, *cuts, end]):
            tokens, found = self.best(a, b, depth + 1)
            apart, stretches = apart + tokens, stretches + found
        return (apart, stretches) if apart < together[0] else together


def find_trunks(passes: Sequence[Pass], in_pack: int) -> list[tuple[int, int, int]]:
    """Stretches (start, end, trunk length) of sorted passes; a length of 0 where no trunk is worth keeping."""
    return _Trunks(passes, in_pack).best(0, len(passes))[1]


def make_plan(
    passes: Sequence[Pass],
    *,
    in_pack: int,
    in_batch: int,
    pack: bool = True,
    trunks: bool = True,
    min_saving: float = MIN_SAVING,
) -> Plan:
    """Decide how passes are run.

    Args:
        passes: what to run.
        in_pack: tokens a pack beyond its trunk.
        in_batch: padded tokens a batch.
        pack: whether the model can be packed at all.
        trunks: whether keys and values may be kept between packs; where not, a pack holds its whole tree.
        min_saving: the least share of tokens that a pack has to save.
    """
    if not pack or not passes:
        return Plan(batches=cut_batches(passes, in_batch))
    ordered = sorted(passes, key=lambda p: p.tokens)
    stretches = find_trunks(ordered, in_pack) if trunks else [(0, len(ordered), 0)]
    groups: list[Group] = []
    loose: list[Pass] = []
    for start, end, trunk in stretches:
        part = ordered[start:end]
        if not trunk:
            loose += part
            continue
        group = Group(part[0].tokens[:trunk], tuple(cut_packs(part, trunk, in_pack)))
        if Plan([group]).tokens <= (1 - min_saving) * sum(len(p.tokens) for p in part):
            groups.append(group)
        else:
            loose += part
    packs = cut_packs(sorted(loose, key=lambda p: p.tokens), 0, in_pack)
    worth = [p for p in packs if tree_size(p) <= (1 - min_saving) * sum(len(x.tokens) for x in p)]
    if worth:
        groups.append(Group((), tuple(worth)))
    chosen = {id(p) for p in worth}
    rest = [item for p in packs if id(p) not in chosen for item in p]
    return Plan(groups, cut_batches(rest, in_batch))
