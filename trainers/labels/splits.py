"""Cut a training split into a weak half (gold labels for the supervisor) and a transfer half (its labels for the student).

Rows of one source stay on one side. In SST-2 most rows are phrases of other rows' sentences, so that a row split leaks:
there a source is a phrase that no other phrase contains.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from w2s_tasks.errors import UserError


@dataclass(frozen=True)
class Halves:
    """Row numbers of both halves, in random order, and how many rows were dropped because they belong to both."""

    weak: list[int]
    transfer: list[int]
    dropped: int


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.lower().split())


def containing_sources(texts: Sequence[str]) -> dict[tuple[str, ...], set[tuple[str, ...]]]:
    """For each distinct phrase the maximal phrases that contain it as consecutive words (itself, where it is maximal)."""
    phrases = sorted({_words(t) for t in texts}, key=lambda p: (-len(p), p))
    by_word: dict[str, set[int]] = defaultdict(set)
    sources: list[str] = []
    members: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
    for phrase in phrases:
        # Only sources that hold every word can hold the phrase; start with the rarest word's.
        candidates = min((by_word[w] for w in phrase), key=len, default=set())
        needle = f" {' '.join(phrase)} "
        found = {tuple(sources[i].split()) for i in candidates if needle in sources[i]}
        members[phrase] = found or {phrase}
        if not found:
            for word in set(phrase):
                by_word[word].add(len(sources))
            sources.append(needle)
    return members


def _halve(keys: Sequence[object], weak_share: float, rng: random.Random) -> tuple[set[object], set[object]]:
    ordered = sorted(set(keys), key=str)
    rng.shuffle(ordered)
    cut = round(len(ordered) * weak_share)
    return set(ordered[:cut]), set(ordered[cut:])


def split_by_source(texts: Sequence[str], weak_share: float, seed: int, *, contained: bool) -> Halves:
    """Assign whole sources to a half at random.

    Args:
        texts: the text of each row that tells its source.
        weak_share: share of the sources for the weak half.
        seed: of the assignment and of the order.
        contained: a row's sources are the maximal texts that contain it (SST-2); otherwise its own text is its source.
    """
    rng = random.Random(seed)  # noqa: S311 - an experiment's seed, not a secret
    members = containing_sources(texts) if contained else {_words(t): {_words(t)} for t in texts}
    weak_keys, _ = _halve([s for found in members.values() for s in found], weak_share, rng)
    weak: list[int] = []
    transfer: list[int] = []
    for i, text in enumerate(texts):
        sides = {source in weak_keys for source in members[_words(text)]}
        if sides == {True}:
            weak.append(i)
        elif sides == {False}:
            transfer.append(i)
    rng.shuffle(weak)
    rng.shuffle(transfer)
    return Halves(weak, transfer, len(texts) - len(weak) - len(transfer))


def split_by_row(n: int, weak_share: float, seed: int) -> Halves:
    """Assign rows to a half at random, whatever their source."""
    rows = list(range(n))
    random.Random(seed).shuffle(rows)  # noqa: S311
    cut = round(n * weak_share)
    return Halves(rows[:cut], rows[cut:], 0)


def split_as_study(n: int) -> Halves:
    """The study's own: train[:50%] and train[50%:] in the data set's order, without a shuffle or a seed."""
    cut = n // 2
    return Halves(list(range(cut)), list(range(cut, n)), 0)


def limited(rows: list[int], limit: int | None, side: str) -> list[int]:
    """The first `limit` rows of a half.

    Raises:
        UserError: the half has fewer rows than asked for, or none.
    """
    if not rows:
        raise UserError(f"split: the {side} half is empty.")
    if limit is not None and limit > len(rows):
        raise UserError(f"split.limit.{side}: {limit} rows asked for, the {side} half has {len(rows)}.")
    return rows[:limit]
