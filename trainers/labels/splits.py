"""Cut a training split into a weak half (gold labels for the supervisor) and a transfer half (its labels for the student).

Rows of one source stay on one side. In SST-2 most rows are phrases of other rows' sentences, so that a row split leaks:
there a source is a phrase that no other phrase contains.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from trainers.section import Section
from w2s_tasks.errors import UserError
from w2s_tasks.rows.overlap import Rule


class Limit(Section):
    """How many rows of each half are used; null for all."""

    weak: int | None = Field(default=None, ge=8)
    """Rows with gold labels that the weak supervisor learns from."""
    transfer: int | None = Field(default=None, ge=8)
    """Rows that the weak supervisor labels, and that student, ceiling and controls learn from."""


class SplitSettings(Section):
    """How the training split is cut into a weak half and a transfer half."""

    by: Literal["source", "row", "study"] = "source"
    """source: no sentence on both sides; row: rows at random; study: train[:50%] and train[50%:], unshuffled."""
    weak: float = Field(default=0.5, gt=0, lt=1)
    """Share of the sources (or rows) in the weak half."""
    limit: Limit = Limit()
    """Row limits of both halves."""
    seed: int = 0
    """Seed of the split; an experiment's seed is added to it."""
    drop_overlap: Rule | None = None
    """Leave out training rows that stand in the task's evaluation split: exact (the same text), 13gram (thirteen words in a
    row), source (any row of a source that is asked about); null for none. `w2s validate TASK --overlap` counts them."""

    @model_validator(mode="after")
    def _study_is_fixed(self) -> Self:
        if self.by == "study" and (self.weak != 0.5 or self.seed):
            raise ValueError("by: study is train[:50%] and train[50%:]; it would ignore `weak` and `seed`")
        return self


@dataclass(frozen=True)
class Halves:
    """Row numbers of both halves, in random order; how many rows were dropped because they belong to both, and how many
    because they stand in the evaluation split."""

    weak: list[int]
    transfer: list[int]
    dropped: int
    overlapping: int = 0

    def without(self, rows: Container[int]) -> Halves:
        """The same halves without some rows, so that a split with the overlap and one without it differ in nothing else."""
        weak, transfer = ([row for row in side if row not in rows] for side in (self.weak, self.transfer))
        left_out = len(self.weak) + len(self.transfer) - len(weak) - len(transfer)
        return replace(self, weak=weak, transfer=transfer, overlapping=left_out)


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
        raise UserError(f"split: the {side} half is empty; with split.drop_overlap, try a rule that drops less.")
    if limit is not None and limit > len(rows):
        raise UserError(f"split.limit.{side}: {limit} rows asked for, the {side} half has {len(rows)}.")
    return rows[:limit]


def write(folder: Path, weak: Sequence[str], transfer: Sequence[str], halves: Halves) -> None:
    """Write the row ids of both halves, and how many rows belong to neither and why, as split.json."""
    counts = {"dropped": halves.dropped, "overlapping": halves.overlapping}
    data = {"weak": list(weak), "transfer": list(transfer), **counts}
    (folder / "split.json").write_text(json.dumps(data), encoding="utf-8")


def counts(folder: Path) -> dict[str, int]:
    """How many rows belong to neither half, by reason: dropped, overlapping."""
    data = json.loads((folder / "split.json").read_text(encoding="utf-8"))
    return {name: int(data[name]) for name in ("dropped", "overlapping")}


def read(folder: Path, side: str) -> list[str]:
    """The row ids of one half."""
    return json.loads((folder / "split.json").read_text(encoding="utf-8"))[side]
