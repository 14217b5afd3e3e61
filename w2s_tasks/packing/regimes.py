"""Position tables that depend on how long the text is: which texts may stand in one forward pass.

LongRoPE changes its factors where a text is longer than those of the first training (Ding et al. 2024, arXiv:2402.13753);
dynamic NTK has other frequencies for every length beyond that. transformers goes by the longest text of a pass, so in a pack
or a batch a text would be given its neighbours' table. Texts of one *regime* have the same table. It is not read from a
configuration but asked: the table's entry for position 1, where the longest text has so many tokens.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from w2s_tasks.packing.masks import inner
from w2s_tasks.packing.tree import Pass

FAR = 2**20
"""A length beyond every switch."""
CACHED = "max_seq_len_cached"


@dataclass(frozen=True)
class _Table:
    """A module that turns position ids into rotations; of one kind of layers where the kinds have their own."""

    module: torch.nn.Module
    kind: str | None

    def at(self, length: int) -> bytes:
        """Its entry for position 1 in a pass whose longest text has this many tokens."""
        buffer = next(self.module.buffers())
        places = torch.tensor([[1, length - 1]], device=buffer.device)
        named = {"layer_type": self.kind} if self.kind else {}
        rotations = self.module(torch.zeros(1, 1, 1, device=buffer.device), places, **named)
        return b"".join(part[0, 0].float().cpu().numpy().tobytes() for part in rotations)


def _forget(module: Any, *_: Any) -> None:
    """Set a dynamic table back to its first state, which transformers keeps from one text to the next.

    Without it a text's table would be that of a longer text before it.
    """
    first = getattr(module, "original_max_seq_len", None)
    for name in [name for name in vars(module) if name.endswith(CACHED)]:
        prefix = name.removesuffix(CACHED)
        if first is not None and getattr(module, name) > first:
            setattr(module, name, first)
            setattr(module, f"{prefix}inv_freq", getattr(module, f"{prefix}original_inv_freq").to(module.inv_freq.device))


def _tables(model: torch.nn.Module) -> list[_Table]:
    """The modules without weights that take position ids."""
    found: list[_Table] = []
    for module in inner(model).modules():
        takes = inspect.signature(module.forward).parameters
        weighs = next(module.parameters(), None) is not None
        if "position_ids" not in takes or weighs or next(module.buffers(), None) is None:
            continue
        kinds = getattr(module, "rope_type", None)
        named = list(kinds) if isinstance(kinds, dict) and "layer_type" in takes else [None]
        found += [_Table(module, kind) for kind in named]
    return found


def _adapts(table: _Table) -> bool:
    try:
        return table.at(2) != table.at(FAR)
    except (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError):
        return False  # takes something else than positions in a row; `trial` compares what comes out of the whole model


@dataclass
class Positions:
    """A model's position tables that depend on the length of the text; none in almost all models."""

    tables: list[_Table]
    known: dict[int, Hashable] = field(default_factory=dict)

    @property
    def adaptive(self) -> bool:
        """Whether there is any."""
        return bool(self.tables)

    @torch.no_grad()
    def regime(self, length: int) -> Hashable:
        """Equal for lengths that have the same tables."""
        if not self.tables:
            return None
        if length not in self.known:
            self.known[length] = tuple(table.at(max(2, length)) for table in self.tables)
        return self.known[length]

    def first(self, length: int) -> bool:
        """Whether a text of this length, and with it each of its beginnings, has the tables of short texts."""
        return self.regime(length) == self.regime(2)


_known: weakref.WeakKeyDictionary[torch.nn.Module, Positions] = weakref.WeakKeyDictionary()


@torch.no_grad()
def positions_of(model: torch.nn.Module) -> Positions:
    """A model's position tables that depend on the length; from then on they keep nothing from one pass to the next."""
    base = inner(model)
    if base not in _known:
        tables = [table for table in _tables(base) if _adapts(table)]
        for module in {id(table.module): table.module for table in tables}.values():
            module.register_forward_pre_hook(_forget)
        _known[base] = Positions(tables)
    return _known[base]


def by_regime(model: torch.nn.Module, passes: Sequence[Pass]) -> list[tuple[bool, list[Pass]]]:
    """Passes that may stand in one forward pass, and whether it is the regime of short texts, which can share beginnings."""
    positions = positions_of(model)
    if not positions.adaptive:
        return [(True, list(passes))] if passes else []
    parts: dict[Hashable, list[Pass]] = {}
    for item in passes:
        parts.setdefault(positions.regime(len(item.tokens)), []).append(item)
    return [(positions.first(len(part[0].tokens)), part) for part in parts.values()]
