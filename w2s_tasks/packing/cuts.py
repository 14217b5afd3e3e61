"""How the attention of a packed row is cut into pieces that need no mask, or a small one.

A packed row is a common beginning and branches behind it (`tree.Layout`). A dense mask makes every token look at the whole
row and throws most of it away. A *piece* is a part of the prefix tree with its ancestors up to the beginning, and attends
within itself. Most pieces are chains, for which causal attention is all; a piece that forks takes a mask. Where branches
share a few tokens ("I", behind which half of a task's sentences go on), each gets a copy of them, as long as that makes less
to compute than a mask would hide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from w2s_tasks.packing.tree import Layout

SIMILAR = 0.75
"""Pieces of one call are padded to the longest; one that is shorter than this share of it goes into the next call."""
WORTH = 0.75
"""A fork is cut where its parts have at most this share of the whole's pairs of tokens."""


@dataclass(frozen=True)
class _Piece:
    """A subtree of the row, [start, end), with the ancestors that it sees behind the beginning."""

    ancestors: tuple[int, ...]
    copied: int
    """How many of the ancestors belong to another piece, which computes their output."""
    start: int
    end: int
    chain: bool

    @property
    def length(self) -> int:
        return len(self.ancestors) + self.end - self.start


@dataclass(frozen=True)
class Stack:
    """Pieces of similar length, padded to the longest on the right: one call of the attention kernel."""

    places: torch.Tensor
    """Their tokens' places in the row, [pieces x longest]; padding repeats the piece's last place."""
    hidden: torch.Tensor | None
    """Which of these only pad or are copies, [pieces x longest]; None where none is."""
    own: torch.Tensor | slice
    """The others' numbers: over all stacks, each token behind the beginning once."""
    longest: int
    mask: torch.Tensor | None
    """Added to the scores, [pieces, 1, longest, longest]; None where all are chains, which is plain causal attention."""


@dataclass(frozen=True)
class Cut:
    """How the attention of a packed row is cut."""

    beginning: int
    """Tokens at the row's start that all others see."""
    causal: torch.Tensor | None
    """Mask of the beginning, [beginning, trunk + beginning]; None without a trunk, where plain causal attention does."""
    stacks: list[Stack]


def _subtrees(layout: Layout, start: int, end: int) -> list[tuple[int, int]]:
    """The (start, end) of the subtrees side by side in a part of the row."""
    found: list[tuple[int, int]] = []
    while start < end:
        found.append((start, layout.ends[start]))
        start = layout.ends[start]
    return found


def _pieces(layout: Layout, beginning: int) -> list[_Piece]:
    """Cut the branches behind the beginning, from their roots on, while that makes less to compute."""
    pieces: list[_Piece] = []
    no_ancestors: tuple[int, ...] = ()
    waiting = [(no_ancestors, 0, start, end) for start, end in _subtrees(layout, beginning, len(layout.tokens))]
    while waiting:
        ancestors, copied, start, end = waiting.pop()
        fork = next((place for place in range(start, end) if layout.ends[place] < end), end)
        stem = (*ancestors, *range(start, fork))
        parts = _subtrees(layout, fork, end)
        whole = _Piece(ancestors, copied, start, end, chain=not parts)
        if parts and sum((len(stem) + last - first) ** 2 for first, last in parts) <= WORTH * whole.length**2:
            # The first part owns the stem; the others see copies of it.
            waiting += [(stem, len(stem) if n else copied, *part) for n, part in enumerate(parts)]
        else:
            pieces.append(whole)
    return pieces


def _stack(layout: Layout, pieces: Sequence[_Piece], dtype: torch.dtype) -> Stack:
    longest = max(piece.length for piece in pieces)
    rows = [[*piece.ancestors, *range(piece.start, piece.end)] for piece in pieces]
    places = torch.tensor([row + row[-1:] * (longest - len(row)) for row in rows])
    number = torch.arange(longest)[None, :]
    real = number < torch.tensor([piece.length for piece in pieces])[:, None]
    own = real & (number >= torch.tensor([piece.copied for piece in pieces])[:, None])
    mask = None
    if not all(piece.chain for piece in pieces):
        ends = torch.tensor(layout.ends)[places]
        # Padding sees what the last token sees, so that no line of the mask is empty.
        seen = (places[:, None, :] <= places[:, :, None]) & (places[:, :, None] < ends[:, None, :]) & real[:, None, :]
        mask = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)[:, None]
    if bool(own.all()):
        return Stack(places.flatten(), None, slice(None), longest, mask)
    return Stack(places.flatten(), ~own.flatten(), own.flatten().nonzero().flatten(), longest, mask)


def cut_attention(layout: Layout, trunk: int, dtype: torch.dtype) -> Cut:
    """Cut a packed row into its beginning and stacks of pieces.

    Args:
        layout: the row.
        trunk: keys before the row, which all of it sees.
        dtype: of the scores.
    """
    length = len(layout.tokens)
    beginning = next((i for i, end in enumerate(layout.ends) if end < length), length)
    causal = None
    if trunk and beginning:
        later = torch.ones(beginning, trunk + beginning, dtype=torch.bool).triu(trunk + 1)
        causal = torch.zeros(later.shape, dtype=dtype).masked_fill(later, torch.finfo(dtype).min)
    by_kind: dict[bool, list[_Piece]] = {True: [], False: []}
    for piece in _pieces(layout, beginning):
        by_kind[piece.chain].append(piece)
    stacks: list[Stack] = []
    for pieces in by_kind.values():
        pieces.sort(key=lambda piece: -piece.length)
        while pieces:
            similar = [piece for piece in pieces if piece.length >= SIMILAR * pieces[0].length]
            stacks.append(_stack(layout, similar, dtype))
            pieces = pieces[len(similar) :]
    return Cut(beginning, causal, stacks)
