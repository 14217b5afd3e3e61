"""Pieces of a packed row, by hand: where it is cut, what is copied, which pieces share a call, what their masks hide."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from w2s_tasks.packing import cuts
from w2s_tasks.packing.cuts import Cut, cut_attention
from w2s_tasks.packing.tree import Layout, Pass, lay_out


def row_of(texts: Sequence[Sequence[int]], trunk: int = 0) -> Layout:
    return lay_out([Pass((*[0] * trunk, *text), ((i, (9,)),)) for i, text in enumerate(texts)], trunk)


def branch(first: int, length: int) -> list[int]:
    return [first] * length


def stacks_of(cut: Cut) -> list[tuple[list[list[int]], list[int] | None, bool]]:
    """Of each stack its rows of places, the numbers of those that are its own, and whether it needs no mask."""
    out = []
    for stack in cut.stacks:
        own = None if isinstance(stack.own, slice) else stack.own.tolist()
        assert (stack.hidden is None) == (own is None)
        if stack.hidden is not None:
            assert [i for i, hidden in enumerate(stack.hidden.tolist()) if not hidden] == own
        out.append((stack.places.view(-1, stack.longest).tolist(), own, stack.mask is None))
    return out


def test_a_chain_is_all_beginning():
    cut = cut_attention(row_of([[1, 2, 3]]), 0, torch.float32)
    assert (cut.beginning, cut.causal, cut.stacks) == (3, None, [])


def test_the_beginning_behind_a_trunk_sees_it_and_itself():
    cut = cut_attention(row_of([[1, 2, 3, 3], [1, 2, 4, 4]], trunk=2), 2, torch.float64)
    least = torch.finfo(torch.float64).min
    assert cut.beginning == 2
    assert cut.causal is not None
    assert cut.causal.dtype == torch.float64
    assert cut.causal.tolist() == [[0, 0, 0, least], [0, 0, 0, 0]]
    assert stacks_of(cut) == [([[4, 5], [2, 3]], None, True)] or stacks_of(cut) == [([[2, 3], [4, 5]], None, True)]
    # No beginning, no mask of it.
    assert cut_attention(row_of([[1], [2]], trunk=2), 2, torch.float32).causal is None


def test_similar_pieces_share_a_call_and_shorter_ones_repeat_their_last_place():
    """Of lengths 8, 6 and 5: six is three quarters of eight and goes along, five has a call of its own."""
    cut = cut_attention(row_of([branch(1, 8), branch(2, 6), branch(3, 5)]), 0, torch.float32)
    places = [list(range(8)), [*range(8, 14), 13, 13]]
    assert stacks_of(cut) == [(places, list(range(14)), True), ([list(range(14, 19))], None, True)]
    # Lengths of the next call are measured by its own longest.
    cut = cut_attention(row_of([branch(1, 16), branch(2, 8), branch(3, 6)]), 0, torch.float32)
    assert [stack.longest for stack in cut.stacks] == [16, 8]


def test_a_fork_is_cut_where_that_leaves_three_quarters_of_the_pairs():
    """A stem of s tokens and two ends of e: apart 2 (s + e)^2 pairs, together (s + 2 e)^2."""
    # s = 1, e = 2: 18 of 25 pairs, cut; the first part owns the stem, the other has a copy. A chain stands beside it.
    cut = cut_attention(row_of([[1, 2, 2], [1, 3, 3], [4, 4, 4]]), 0, torch.float32)
    ((rows, own, causal),) = stacks_of(cut)
    assert causal
    assert sorted(rows) == [[0, 1, 2], [0, 3, 4], [5, 6, 7]]
    copy = rows.index([0, 3, 4])
    assert own == [i for i in range(9) if i != 3 * copy]
    # s = 2, e = 2: 32 of 36 pairs, left whole with a mask.
    cut = cut_attention(row_of([[1, 1, 2, 2], [1, 1, 3, 3], [4]]), 0, torch.float32)
    assert stacks_of(cut) == [([[6]], None, True), ([[0, 1, 2, 3, 4, 5]], None, False)]
    # s = 1, e = 1.5 on the mean: 4 + 9 pairs of 16 is more than three quarters.
    assert not stacks_of(cut_attention(row_of([[1, 2], [1, 3, 3], [4]]), 0, torch.float32))[1][2]


def test_exactly_three_quarters_is_cut(monkeypatch: pytest.MonkeyPatch):
    """A stem of one token and three ends of one: 3 * 4 pairs of 16."""
    layout = row_of([[1, 2], [1, 3], [1, 4], [5]])
    assert [stack.mask is None for stack in cut_attention(layout, 0, torch.float32).stacks] == [True, True]
    monkeypatch.setattr(cuts, "WORTH", 0.7499)
    assert [stack.mask is None for stack in cut_attention(layout, 0, torch.float32).stacks] == [True, False]


def test_copies_go_along_with_the_stem_of_an_inner_fork():
    """A fork behind a fork: the first part of the first part owns all, every other owns what is behind its copies."""
    texts = [[1, 2, *branch(3, 4)], [1, 2, *branch(4, 4)], [1, *branch(5, 5)], [1, *branch(6, 5)], [7]]
    layout = row_of(texts)
    cut = cut_attention(layout, 0, torch.float32)
    rows = {tuple(row): number for stack in stacks_of(cut) for number, row in enumerate(stack[0])}
    assert set(rows) == {(0, *range(1, 6)), (0, 1, *range(6, 10)), (0, *range(10, 15)), (0, *range(15, 20)), (20,)}
    owned = sorted(int(p) for stack in cut.stacks for p in stack.places[stack.own])
    assert owned == list(range(21))
    first = cut.stacks[0]
    assert isinstance(first.own, torch.Tensor)
    numbers = first.own.tolist()
    expected = {(0, *range(1, 6)): 6, (0, 1, *range(6, 10)): 4, (0, *range(10, 15)): 5, (0, *range(15, 20)): 5}
    for row, size in expected.items():
        assert [n for n in numbers if n // 6 == rows[row]] == list(range(6 * rows[row] + 6 - size, 6 * rows[row] + 6))


def test_a_mask_hides_other_branches_and_padding_and_leaves_no_empty_line():
    """Two forks that stay whole, of six and five tokens, in one call: the shorter is padded with its last place."""
    layout = row_of([[1, 1, 2, 2], [1, 1, 3, 3], [4, 4, 4, 5], [4, 4, 4, 6], [7]])
    cut = cut_attention(layout, 0, torch.float32)
    (stack,) = [stack for stack in cut.stacks if stack.mask is not None]
    assert stack.mask is not None
    seen = (stack.mask == 0).int()[:, 0].tolist()
    assert torch.finfo(torch.float32).min == stack.mask.min()
    assert (tuple(stack.mask.shape), stack.mask.dtype) == ((2, 1, 6, 6), torch.float32)
    assert seen[0] == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [1, 1, 0, 0, 1, 1],
    ]
    assert seen[1] == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 0, 1, 0],
        [1, 1, 1, 0, 1, 0],
    ]
