"""From requests to passes, and from passes to the prefix tree in one row."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Tokens = Sequence[int]
Request = tuple[Tokens, Tokens]


@dataclass(frozen=True)
class Pass:
    """One sequence to run and the continuations it scores: (request index, continuation tokens)."""

    tokens: tuple[int, ...]
    scores: tuple[tuple[int, tuple[int, ...]], ...]

    @property
    def own(self) -> int:
        """How many tokens at the end must be run in any case: those that predict the continuations."""
        return max(len(continuation) for _, continuation in self.scores)


def plan_passes(requests: Sequence[Request], max_length: int) -> list[Pass]:
    """Merge requests with equal context + continuation[:-1]; truncate from the left as lm_eval does.

    Args:
        requests: encoded pairs; continuations are not empty.
        max_length: the model's window; one token more fits because the last one is only predicted.

    Raises:
        ValueError: a request without context or continuation, or a continuation longer than the window.
    """
    shared: dict[tuple[int, ...], list[tuple[int, tuple[int, ...]]]] = {}
    for i, (context, continuation) in enumerate(requests):
        if not context or not 0 < len(continuation) <= max_length:
            raise ValueError(
                f"request {i}: {len(context)} tokens of context and {len(continuation)} of continuation; both need one at "
                f"least, and the continuation has to fit the window of {max_length}."
            )
        tokens = (*context, *continuation)[-(max_length + 1) :][:-1]
        shared.setdefault(tokens, []).append((i, tuple(continuation)))
    return [Pass(tokens, tuple(scores)) for tokens, scores in shared.items()]


def common(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Length of the common beginning; by bisection, because comparing slices is fast and few-shot prompts are long."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


@dataclass(frozen=True)
class Layout:
    """The prefix tree of some passes, written into one row depth first, without the trunk that all of them begin with.

    Depth-first order makes the ancestors of a token those before it whose subtree has not ended: j is seen by i where
    ``j <= i < ends[j]``. One integer a token holds the whole tree.
    """

    tokens: list[int]
    positions: list[int]
    """Position id of each token: its depth in the tree, the trunk included."""
    ends: list[int]
    """Row index after each token's last descendant."""
    tails: list[list[int]]
    """For each pass the row indices of its last `Pass.own` tokens."""


def lay_out(passes: Sequence[Pass], trunk: int = 0) -> Layout:
    """Write sorted passes into one row; what a pass shares with the one before it is not written again.

    Args:
        passes: in the order of their tokens.
        trunk: how many tokens at the beginning are left out, the same for all passes.
    """
    tokens: list[int] = []
    positions: list[int] = []
    ends: list[int] = []
    tails: list[list[int]] = []
    path: list[int] = []  # the row index of each token of the pass at hand
    before: tuple[int, ...] = ()
    for item in passes:
        own = item.tokens[trunk:]
        shared = common(before, own)
        for index in path[shared:]:
            ends[index] = len(tokens)
        path[shared:] = range(len(tokens), len(tokens) + len(own) - shared)
        tokens += own[shared:]
        positions += range(trunk + shared, trunk + len(own))
        ends += itertools.repeat(-1, len(own) - shared)
        tails.append(path[len(path) - item.own :])
        before = own
    for index in path:
        ends[index] = len(tokens)
    return Layout(tokens, positions, ends, tails)
