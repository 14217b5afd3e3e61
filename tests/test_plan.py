"""What is run, by hand: sizes of trees, where packs and batches are cut, which beginnings are kept, what is worth a pack."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest

from w2s_tasks.packing import plan as planning
from w2s_tasks.packing.plan import Group, Plan, cut_batches, cut_packs, find_trunks, make_plan, tree_size
from w2s_tasks.packing.tree import Pass

EVERY = -1.0
"""A saving that every pack makes."""


def passes_of(texts: Sequence[Sequence[int]], own: int = 1) -> list[Pass]:
    """One pass a text, that scores a continuation of `own` tokens."""
    return [Pass(tuple(text), ((i, (9,) * own),)) for i, text in enumerate(texts)]


def tokens_of(packs: Sequence[Sequence[Pass]]) -> list[list[tuple[int, ...]]]:
    return [[p.tokens for p in pack] for pack in packs]


TREE = [(1, 2, 3), (1, 2, 4, 5), (1, 6), (7, 8)]


def test_a_tree_counts_each_shared_token_once_and_the_trunk_never():
    passes = passes_of(TREE)
    assert tree_size(passes) == 3 + 2 + 1 + 2
    assert tree_size(passes[:3], 1) == 2 + 2 + 1
    assert tree_size(passes[:2], 2) == 1 + 2
    assert tree_size(passes[:1], 1) == 2


def test_a_plan_counts_trunks_trees_and_padding():
    passes = passes_of(TREE)
    assert Plan([Group((1,), (tuple(passes[:2]), (passes[2],)))], [[passes[1], passes[3]]]).tokens == 1 + 4 + 1 + 2 * 4
    assert Plan().tokens == 0


@pytest.mark.parametrize(
    ("trunk", "budget", "packs"),
    [
        (0, 8, [[0, 1, 2, 3]]),
        (0, 7, [[0, 1, 2], [3]]),
        (0, 6, [[0, 1, 2], [3]]),
        (0, 5, [[0, 1], [2, 3]]),  # the third does not share its first token any more: it begins its row
        (0, 4, [[0], [1], [2, 3]]),
        (0, 1, [[0], [1], [2], [3]]),
    ],
)
def test_a_pack_takes_what_its_tree_has_room_for(trunk: int, budget: int, packs: list[list[int]]):
    assert tokens_of(cut_packs(passes_of(TREE), trunk, budget)) == [[TREE[i] for i in pack] for pack in packs]


@pytest.mark.parametrize(("budget", "packs"), [(5, [[0, 1, 2]]), (4, [[0, 1], [2]]), (3, [[0], [1], [2]])])
def test_behind_a_trunk_only_what_follows_it_takes_room(budget: int, packs: list[list[int]]):
    """Beyond (1,): two tokens, two more, then one; the second pack begins with all that its first text has."""
    assert tokens_of(cut_packs(passes_of(TREE[:3]), 1, budget)) == [[TREE[i] for i in pack] for pack in packs]


def test_batches_are_padded_to_their_longest_and_the_longest_run_first():
    texts = [(1,) * n for n in (2, 3, 3, 5, 1)]
    lengths = [[len(p.tokens) for p in batch] for batch in cut_batches(passes_of(texts), 9)]
    assert lengths == [[5], [3, 3, 2], [1]]
    lengths = [[len(p.tokens) for p in batch] for batch in cut_batches(passes_of(texts), 10)]
    assert lengths == [[5, 3], [3, 2, 1]]
    assert tokens_of(cut_batches(passes_of([(2, 1), (1, 3), (1, 2)]), 100)) == [[(1, 2), (1, 3), (2, 1)]]
    assert cut_batches([], 9) == []


def with_beginning(beginning: Sequence[int], count: int, length: int, first: int) -> list[tuple[int, ...]]:
    """Texts with a common beginning and endings that share nothing."""
    return [(*beginning, *([first + n] * length)) for n in range(count)]


def test_a_beginning_is_kept_where_more_than_one_pack_stands_behind_it():
    passes = passes_of(with_beginning([1, 2, 3], 4, 2, 10))
    assert find_trunks(passes, 3 + 4 * 2) == [(0, 4, 0)]  # one row holds all
    assert find_trunks(passes, 3 + 4 * 2 - 1) == [(0, 4, 3)]
    assert find_trunks(passes_of([(1,), (2,), (3,)]), 1) == [(0, 3, 0)]  # nothing is shared


def test_each_stretch_has_the_beginning_of_its_own():
    texts = with_beginning([1, 2, 3], 4, 2, 10) + with_beginning([4, 5], 4, 2, 10)
    assert find_trunks(passes_of(texts), 4) == [(0, 4, 3), (4, 8, 2)]
    inside = with_beginning([1, 1, 2, 2, 2, 2], 4, 2, 10) + with_beginning([1, 3, 3, 3, 3, 3], 4, 2, 10)
    assert find_trunks(passes_of(inside), 4) == [(0, 4, 6), (4, 8, 6)]
    # A common beginning that is longer than what the two keep for themselves is kept once for both.
    longer = with_beginning([1] * 9 + [2], 2, 3, 10) + with_beginning([1] * 9 + [3], 2, 3, 10)
    assert find_trunks(passes_of(longer), 6) == [(0, 4, 9)]


def test_a_trunk_ends_before_the_tokens_that_predict():
    """A text that is nothing but the others' beginning runs its last tokens itself."""
    texts = [(1, 2, 3), (1, 2, 3, 4, 4), (1, 2, 3, 5, 5), (1, 2, 3, 6, 6)]
    assert find_trunks(passes_of(texts), 4) == [(0, 4, 2)]
    assert find_trunks(passes_of(texts, own=2), 4) == [(0, 1, 0), (1, 4, 3)]  # it stands alone: the others keep more
    assert find_trunks(passes_of(texts, own=3), 4) == [(0, 1, 0), (1, 4, 2)]
    assert find_trunks(passes_of([*texts[1:], (1, 2, 3, 9, 9)]), 4) == [(0, 4, 3)]
    assert find_trunks(passes_of([(1, 2, 3, 4, 4), (1, 2, 3, 4, 4, 4), (1, 2, 3, 5, 5)], own=3), 2) == [(0, 3, 2)]
    assert find_trunks([*passes_of([(1, 2, 3, 3, 3)]), *passes_of([(1, 2, 4)], own=2)], 2) == [(0, 2, 1)]


def shortest_way(passes: Sequence[Pass], budget: int) -> int:
    """The fewest tokens of all ways to give stretches a trunk that its passes share: tried one by one."""
    best = {0: 0}
    for end in range(1, len(passes) + 1):
        ways = []
        for start in range(end):
            part = passes[start:end]
            room = min(len(p.tokens) - p.own for p in part)
            shared = min([len(part[0].tokens)] + [planning.common(a.tokens, b.tokens) for a, b in itertools.pairwise(part)])
            for trunk in {0, min(room, shared)}:
                packs = cut_packs(part, trunk, budget)
                ways.append(best[start] + Plan([Group(part[0].tokens[:trunk], tuple(packs))]).tokens)
        best[end] = min(ways)
    return best[len(passes)]


def test_trunks_run_hardly_more_than_the_best_of_all_ways():
    """It cuts only where the least is shared; over 60 random trees that costs at most 10 % more than the best way."""
    rng, more = random.Random(0), []
    for _ in range(60):
        texts = {tuple(rng.choices([0, 1], weights=[3, 1], k=rng.randint(3, 12))) for _ in range(8)}
        passes = sorted(passes_of(sorted(texts)), key=lambda p: p.tokens)
        budget = rng.randint(6, 14)
        found = sum(
            Plan([Group(passes[a].tokens[:trunk], tuple(cut_packs(passes[a:b], trunk, budget)))]).tokens
            for a, b, trunk in find_trunks(passes, budget)
        )
        assert found <= planning._Trunks(passes, budget)._cost(0, len(passes), 0)[0]
        more.append(found / shortest_way(passes, budget))
    assert max(more) < 1.35
    assert sum(more) / len(more) < 1.1


def test_the_tokens_of_the_search_are_those_of_the_plan():
    rng = random.Random(1)
    for _ in range(40):
        passes = passes_of(sorted({tuple(rng.choices([0, 1], k=rng.randint(2, 8))) for _ in range(9)}))
        budget = rng.randint(2, 12)
        search = planning._Trunks(passes, budget)
        total, stretches = search.best(0, len(passes))
        groups = [Group(passes[a].tokens[:t], tuple(cut_packs(passes[a:b], t, budget))) for a, b, t in stretches]
        assert total == Plan(groups).tokens
        assert [a for a, _, _ in stretches] == [0, *(b for _, b, _ in stretches[:-1])]
        for a, b, trunk in stretches:
            packs = cut_packs(passes[a:b], trunk, budget)
            assert search._cost(a, b, trunk) == (Plan([Group(passes[a].tokens[:trunk], tuple(packs))]).tokens, len(packs))


def test_no_deeper_than_the_deepest_level(monkeypatch: pytest.MonkeyPatch):
    texts = with_beginning([1, 2, 3], 4, 2, 10) + with_beginning([4, 5], 4, 2, 10)
    monkeypatch.setattr(planning, "DEEPEST", 1)
    assert find_trunks(passes_of(texts), 4) == [(0, 8, 0)]  # a level down nothing is looked for, and apart saves nothing
    monkeypatch.setattr(planning, "DEEPEST", 2)
    assert find_trunks(passes_of(texts), 4) == [(0, 4, 3), (4, 8, 2)]


def test_without_packs_everything_is_batched():
    passes = passes_of(TREE)
    assert make_plan(passes, in_pack=100, in_batch=8, pack=False) == Plan(batches=cut_batches(passes, 8))
    assert make_plan([], in_pack=100, in_batch=8) == Plan()


def test_without_trunks_packs_hold_their_whole_tree():
    passes = passes_of(with_beginning([1, 2, 3], 4, 2, 10))
    plan = make_plan(passes, in_pack=7, in_batch=9, trunks=False, min_saving=EVERY)
    assert [(g.trunk, tokens_of(g.packs)) for g in plan.groups] == [((), tokens_of([passes[:2], passes[2:]]))]
    plan = make_plan(passes, in_pack=7, in_batch=9, min_saving=EVERY)
    assert [(g.trunk, tokens_of(g.packs)) for g in plan.groups] == [((1, 2, 3), tokens_of([passes[:3], passes[3:]]))]
    assert plan.batches == []


def test_a_plan_sorts_and_runs_each_pass_once():
    texts = [(4, 5, 6), *with_beginning([1, 2, 3], 4, 2, 10)[::-1]]
    plan = make_plan(passes_of(texts), in_pack=4, in_batch=9)
    assert [(g.trunk, tokens_of(g.packs)) for g in plan.groups] == [((1, 2, 3), [sorted(texts)[:2], sorted(texts)[2:4]])]
    assert tokens_of(plan.batches) == [[(4, 5, 6)]]


def test_a_group_and_a_pack_have_to_save_their_share():
    """Behind a trunk of 3: 4 * 5 tokens become 3 + 4 * 2 = 11, a saving of 9 / 20 = 0.45; without a trunk as much."""
    passes = passes_of(with_beginning([1, 2, 3], 4, 2, 10))
    for in_pack in (4, 11):  # in two packs behind the trunk, and in one without
        assert len(make_plan(passes, in_pack=in_pack, in_batch=9, min_saving=0.45).groups) == 1
        plan = make_plan(passes, in_pack=in_pack, in_batch=10, min_saving=0.46)
        assert (len(plan.groups), tokens_of(plan.batches)) == (0, tokens_of([passes[:2], passes[2:]]))


def test_what_is_not_worth_a_trunk_goes_into_packs_with_the_rest_where_that_pays():
    """Two stretches: one saves enough for its trunk; the other's passes and what stands alone are batched."""
    good, poor = with_beginning([1] * 6, 4, 1, 10), [(2, *([20 + n] * 5)) for n in range(4)]
    plan = make_plan(passes_of([*good, *poor, (3, 3, 3)]), in_pack=2, in_batch=12)
    assert [g.trunk for g in plan.groups] == [(1,) * 6]
    assert tokens_of(plan.batches) == [poor[:2], poor[2:], [(3, 3, 3)]]
    # A stretch behind one that has no trunk keeps its own.
    alone = [(0, 5)]
    plan = make_plan(passes_of([*alone, *good]), in_pack=2, in_batch=12)
    assert ([g.trunk for g in plan.groups], tokens_of(plan.batches)) == ([(1,) * 6], [alone])
    # Of the packs without a trunk each is judged by itself.
    texts = [(1, 1, 1, 1, 2), (1, 1, 1, 1, 3), (5, 6), (6, 7), (7, 8)]
    plan = make_plan(passes_of(texts), in_pack=6, in_batch=4)
    assert [(g.trunk, tokens_of(g.packs)) for g in plan.groups] == [((), [texts[:2]])]
    assert tokens_of(plan.batches) == [texts[2:4], texts[4:]]
