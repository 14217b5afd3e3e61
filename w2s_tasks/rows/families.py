"""Rows that were written from one source: which text, or which other rows, a row must not be parted from.

A task says it in its YAML, ``metadata: {source: {column: NAME}}``: rows with the same text there belong together. ``before``
cuts that text at a separator; ``variants`` means that the rows are variants of scenarios, whose own text tells the family.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

ENDS = 4
"""Words that variants have in common at their ends, together. In ETHICS' justice 98 of 100 neighbours within a group have as
many, 2 of 100 where the next group begins; of commonsense's scenarios in random order 2 of 1,000."""
GRAM = 13
"""Words in a row that unrelated texts don't share: Brown et al. 2020 (arXiv 2005.14165), appendix C."""

Gram = tuple[str, ...]


def words(text: str) -> list[str]:
    """The words of a text as that appendix counts them: without case and punctuation, parted by white space."""
    return re.sub(r"[^\w\s]", "", text.casefold()).split()


def grams(text: str) -> Iterator[Gram]:
    """Every thirteen words in a row."""
    found = words(text)
    return zip(*(found[i:] for i in range(GRAM)), strict=False)


def plain(text: str) -> str:
    """A text without case, its white space single spaces."""
    return " ".join(text.casefold().split())


def agreeing(first: Sequence[str], second: Sequence[str]) -> int:
    """How many words two texts have in common from the beginning and from the end, at most all of the shorter one's."""
    shorter = min(len(first), len(second))
    beginning = next((i for i in range(shorter) if first[i] != second[i]), shorter)
    rest = shorter - beginning
    return beginning + next((i for i in range(rest) if first[-1 - i] != second[-1 - i]), rest)


def connected(rows: int, pairs: Iterable[tuple[int, int]]) -> list[int]:
    """For each row the first one that pairs connect it with, from row to row."""
    first = list(range(rows))

    def beginning(row: int) -> int:
        while first[row] != row:
            first[row] = first[first[row]]
            row = first[row]
        return row

    for one, other in pairs:
        early, late = sorted((beginning(one), beginning(other)))
        first[late] = early
    return [beginning(row) for row in range(rows)]


def families(texts: Sequence[str]) -> list[int]:
    """The number of the row that each row's family of variants begins with.

    Neighbours are related that agree in `ENDS` words or more at their ends, as are rows that share thirteen words in a row
    or all of their text; and so on, from row to row.
    """
    return connected(len(texts), _related(texts))


def _related(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """The pairs of rows, the earlier first, that are of one family at first sight."""
    seen: dict[Gram | str, int] = {}
    before: list[str] = []
    for row, text in enumerate(texts):
        now = words(text)
        if row and agreeing(before, now) >= ENDS:
            yield row - 1, row
        keys: list[Gram | str] = [plain(text), *grams(text)]
        for key in keys:
            yield seen.setdefault(key, row), row
        before = now


def numbered(labels: Iterable[Any]) -> list[int]:
    """Labels as numbers from 0, in the order in which they occur first."""
    number: dict[Any, int] = {}
    return [number.setdefault(label, len(number)) for label in labels]


def source_texts(docs: Sequence[Mapping[str, Any]], source: Mapping[str, Any]) -> list[str]:
    """The text that tells each row's source.

    Args:
        docs: rows, in the order of their file.
        source: ``column``, and ``before`` or ``variants``, as in a task's metadata.

    Raises:
        KeyError: a row has no such column.
    """
    texts = [str(doc[source["column"]]) for doc in docs]
    if "before" in source:
        return [text.partition(source["before"])[0] for text in texts]
    return [texts[row] for row in families(texts)] if source.get("variants") else texts
