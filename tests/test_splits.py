"""Halves of a training split, against what the sources' definition gives by hand."""

from __future__ import annotations

import random

import pytest

from trainers.labels.splits import Halves, containing_sources, limited, split_as_study, split_by_row, split_by_source
from w2s_tasks.errors import UserError

FILM = ("a", "very", "good", "film")
PLOT = ("a", "thin", "plot")


def test_a_source_is_a_phrase_that_no_other_contains_as_consecutive_words():
    found = containing_sources(["a very good film", "Very  good", "a thin plot", "a", "a film", "ery good"])
    assert found == {
        FILM: {FILM},
        ("very", "good"): {FILM},
        PLOT: {PLOT},
        ("a",): {FILM, PLOT, ("a", "film")},
        ("a", "film"): {("a", "film")},  # its words stand apart in the longer phrase
        ("ery", "good"): {("ery", "good")},  # words, not letters
    }


def test_an_empty_text_is_its_own_source():
    assert containing_sources(["", "a"]) == {(): {()}, ("a",): {("a",)}}


def test_rows_of_both_halves_are_dropped_and_the_others_follow_their_source():
    texts = ["a very good film", "very good", "a thin plot", "thin", "a"]
    seen = set()
    for seed in range(20):
        halves = split_by_source(texts, 0.5, seed, contained=True)
        assert halves.dropped == 1  # "a" stands in both sources
        seen.add((frozenset(halves.weak), frozenset(halves.transfer)))
    assert seen == {(frozenset({0, 1}), frozenset({2, 3})), (frozenset({2, 3}), frozenset({0, 1}))}


@pytest.mark.parametrize(("share", "weak"), [(0.3, 30), (0.5, 50), (0.8, 80), (0.006, 1)])
def test_the_weak_half_has_its_share_of_the_sources_and_of_the_rows(share: float, weak: int):
    texts = [f"text {i}" for i in range(100)]
    for halves in (split_by_source(texts, share, 0, contained=False), split_by_row(100, share, 0)):
        assert (len(halves.weak), len(halves.transfer), halves.dropped) == (weak, 100 - weak, 0)
        assert sorted(halves.weak + halves.transfer) == list(range(100))
        # In random order, both of them: what `limit` takes from the front is a sample.
        assert halves.weak != sorted(halves.weak) or weak == 1
        assert halves.transfer != sorted(halves.transfer)


def test_without_containment_a_phrase_is_no_part_of_a_longer_one():
    texts = ["a b c", "a b", "b c", "c"]
    halves = [split_by_source(texts, 0.5, seed, contained=False) for seed in range(10)]
    assert all((len(h.weak), len(h.transfer), h.dropped) == (2, 2, 0) for h in halves)
    assert any({0, 1} & set(h.weak) and {0, 1} & set(h.transfer) for h in halves)


def test_a_seed_draws_the_rows_by_pythons_generator():
    """The published runs name seeds: the draw is part of what they mean."""
    rows = list(range(10))
    random.Random(3).shuffle(rows)
    assert split_by_row(10, 0.4, 3) == Halves(rows[:4], rows[4:], 0)


@pytest.mark.parametrize(("n", "cut"), [(10, 5), (11, 5), (67_349, 33_674)])
def test_the_study_cuts_in_the_middle_without_a_shuffle(n: int, cut: int):
    assert split_as_study(n) == Halves(list(range(cut)), list(range(cut, n)), 0)


def test_a_limit_takes_the_first_rows_and_all_where_there_is_none():
    assert limited([5, 3, 4], 2, "weak") == [5, 3]
    assert limited([5, 3, 4], 3, "weak") == [5, 3, 4]
    assert limited([5, 3, 4], None, "weak") == [5, 3, 4]
    with pytest.raises(UserError, match="the transfer half is empty"):
        limited([], None, "transfer")
    with pytest.raises(UserError, match="4 rows asked for, the transfer half has 3"):
        limited([5, 3, 4], 4, "transfer")
