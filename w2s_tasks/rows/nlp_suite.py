"""The sets of `w2s_tasks.rows.nlp_sets` in one form: is this so, or: is this the right answer, yes or no.

A question with choices is asked once, with its right choice or one of the others by a coin that its own text decides
(`forms.verified`). Burns et al. (2023, appendix A) keep both; either way a model can't gain by the share of a class. Where
the labels are the set's own, and one of them has more than 55 % of a split, it is cut to the size of the other, as there.
"""

from __future__ import annotations

import functools
import logging
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets

from w2s_tasks.errors import UserError, nearest
from w2s_tasks.rows import sources
from w2s_tasks.rows.forms import draws, verified
from w2s_tasks.rows.nlp_sets import NONE_OF_THEM, SETS, Asked, NlpSet, package_rows
from w2s_tasks.rows.sources import Splits, digest

log = logging.getLogger(__name__)

Row = dict[str, Any]

COLUMNS = ("context", "question", "answer", "label")
EVALUATED = 3
"""One source in so many is evaluated where a set is published without training rows."""
MAJORITY = 0.55
"""The largest share of a class that is left as it is (Burns et al. 2023, appendix A)."""
BLANK_LINES = re.compile(r"\s*\n\s*")


def _clean(text: Any) -> str:
    """A cell's text without blank lines, which separate few-shot examples; empty where it is missing."""
    return BLANK_LINES.sub("\n", str(text).strip()) if text is not None else ""


def _key(text: str) -> str:
    """What two texts share that say the same."""
    return " ".join(text.casefold().split())


def _told(question: str, asked: Asked) -> tuple[str, int] | None:
    """The answer that is asked about, and whether it is right; None where no choice is known as right, or as wrong.

    A choice that says the same as the right one is no wrong one.
    """
    if asked.choices is None:
        return None if asked.answer is None else (_clean(asked.answer), asked.right)
    choices = [_clean(choice) for choice in asked.choices]
    right = choices[asked.right] if 0 <= asked.right < len(choices) else ""
    wrong = list({_key(choice): choice for choice in choices if choice and _key(choice) != _key(right)}.values())
    if not wrong or not (right or asked.right == NONE_OF_THEM):
        return None
    return verified(question, (right, *wrong), 0) if right else (draws(0, "none right", question, *wrong).choice(wrong), 0)


def _row(asked: Asked) -> Row | None:
    """The row of a question; None where it lacks a part."""
    context, question, source = _clean(asked.context), _clean(asked.question), _key(_clean(asked.source))
    told = _told(f"{context}\n{question}", asked)
    if not question or not source or told is None or told[1] not in (0, 1):
        return None
    row = {"context": context, "question": question, "answer": told[0], "label": told[1]}
    texts = frozenset({source, *map(_key, map(_clean, asked.texts))})
    return {**row, "source": source, "texts": texts, "drawn": asked.choices is not None}


def _text(row: Row) -> str:
    return "\x1f".join((row["context"], row["question"], row["answer"]))


def _rows(name: str, docs: Iterable[Mapping[str, Any]]) -> list[Row]:
    """The rows of a split in the order of their texts' hashes, each text once; none that is labelled both ways.

    Raises:
        UserError: a row of other columns than the set has on the hub.
    """
    found: dict[str, Row] = {}
    twofold = set()
    for number, doc in enumerate(docs):
        try:
            row = _row(SETS[name].ask(doc))
        except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
            raise UserError(
                f"{SETS[name].path}, row {number}: not laid out as on the hub ({type(error).__name__}: {error}); it "
                f"has the columns {', '.join(map(str, doc))}."
            ) from error
        if row is not None and found.setdefault(_text(row), row)["label"] != row["label"]:
            twofold.add(_text(row))
    return [found[text] for text in sorted(found.keys() - twofold, key=digest)]


def _balanced(rows: Sequence[Row]) -> list[Row]:
    """The rows, those of a class of more than `MAJORITY` cut to the number of the other, the first by their hash kept.

    What a coin has drawn is left as it fell.
    """
    counts = Counter(row["label"] for row in rows)
    if len(counts) < 2 or any(row["drawn"] for row in rows) or max(counts.values()) <= MAJORITY * len(rows):
        return list(rows)
    kept: Counter[int] = Counter()
    chosen = []
    for row in rows:
        kept[row["label"]] += 1
        if kept[row["label"]] <= min(counts.values()):
            chosen.append(row)
    return chosen


def _sampled(data: datasets.Dataset, most: int | None) -> list[Row]:
    if most is None or len(data) <= most:
        return list(data.to_list())
    chosen = random.Random(0).sample(range(len(data)), most)  # noqa: S311 - a fixed choice, not a secret
    return list(data.select(sorted(chosen)).to_list())


def _of_hub(name: str, nlp_set: NlpSet) -> tuple[list[Row], list[Row]]:
    """Training and evaluation rows of a set in `$W2S_DATA` or on the hub.

    Raises:
        MissingDataError: it is in neither.
        UserError: it lacks a split.
    """
    loaded = sources.load(nlp_set.path, nlp_set.config)
    missing = {nlp_set.train, nlp_set.evaluated} - set(loaded)
    if missing:
        raise UserError(f"{nlp_set.path}: no split {', '.join(sorted(missing))}; it has {', '.join(map(str, loaded))}.")
    train, evaluated = (_rows(name, _sampled(loaded[s], nlp_set.most)) for s in (nlp_set.train, nlp_set.evaluated))
    return train, evaluated


def _of_package(name: str, nlp_set: NlpSet) -> tuple[list[Row], list[Row]]:
    """The same of a file of the package: the published split where it tells, else by the hash of a row's source."""
    docs, published = package_rows(nlp_set.path)
    if published is None:
        rows = _rows(name, docs)
        apart = [int(digest(row["source"]), 16) % EVALUATED == 0 for row in rows]
        return [r for r, a in zip(rows, apart, strict=True) if not a], [r for r, a in zip(rows, apart, strict=True) if a]
    parts: tuple[list[Any], list[Any]] = ([], [])
    for i, doc in enumerate(docs):
        parts[i in published].append(doc)
    return _rows(name, parts[0]), _rows(name, parts[1])


def _numbered(splits: Mapping[str, Sequence[Row]]) -> Iterator[tuple[str, list[Row]]]:
    """The splits with the number of each row's source, the same in both, as `w2s_group` in place of its text."""
    names = sorted({row["source"] for rows in splits.values() for row in rows}, key=digest)
    number = {name: i for i, name in enumerate(names)}
    for split, rows in splits.items():
        yield split, [{**{k: row[k] for k in COLUMNS}, "w2s_group": number[row["source"]]} for row in rows]


@functools.cache
def _build(name: str, local: Path | None) -> Splits:
    nlp_set = SETS[name]
    train, evaluated = _of_package(name, nlp_set) if nlp_set.wheel else _of_hub(name, nlp_set)
    held_out = frozenset().union(*(row["texts"] for row in evaluated))
    kept = [row for row in train if held_out.isdisjoint(row["texts"])]
    if len(kept) < len(train):
        log.info("%s: %d training rows left out, whose source or text is evaluated", name, len(train) - len(kept))
    splits = {"train": _balanced(kept), "validation": _balanced(evaluated)}
    for split, rows in splits.items():
        if not rows:
            raise UserError(f"{nlp_set.path}: no usable row for the split {split} of w2s_nlp_{name}.")
    return {split: datasets.Dataset.from_list(rows) for split, rows in _numbered(splits)}


def nlp(name: str, **_: Any) -> Splits:
    """One set of the suite: columns context, question, answer, label (1 = yes, right), w2s_group (one a source).

    `answer` is empty where the question itself is one of yes or no. Rows come in the order of their texts' hashes; a
    training row whose source is also evaluated is left out.

    Args:
        name: of the set in `nlp_sets.SETS`.

    Raises:
        MissingDataError: the set is neither in `$W2S_DATA` nor to be had from the hub.
        UserError: no such set, or its rows are not laid out as published.
    """
    if name not in SETS:
        raise UserError(f"no set '{name}' in the suite.{nearest(name, SETS)} Known: {', '.join(sorted(SETS))}.")
    return _build(name, None if SETS[name].wheel else sources.local_folder(SETS[name].path))
