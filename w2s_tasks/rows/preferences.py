"""Which of two replies to one dialogue is better: any set of chosen and rejected replies, both shown, on drawn sides.

`pairs` is the ``custom_dataset`` of these tasks. A task's YAML says what it reads under one key, ``pairs`` (`Pairs`), in its
``dataset_kwargs`` or ``metadata``: one key, since lm_eval hands a model's own arguments (a ``seed``) over with the metadata.
"""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import datasets
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from w2s_tasks.errors import UserError, nearest
from w2s_tasks.rows import sources
from w2s_tasks.rows.dialogues import ASSISTANT, HUMAN, INSIDE, Turn, is_asked, rendered, turns_of, without_blank_lines
from w2s_tasks.rows.forms import paired
from w2s_tasks.rows.sources import Splits, digest
from w2s_tasks.user_text import shown

log = logging.getLogger(__name__)

Doc = dict[str, Any]

TOLD = 0.1
"""Share of a set's pairs from which on it is a warning that they are left out."""


class Pairs(BaseModel):
    """The settings of a set of pairs."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    path: str
    """Hub id, or a folder of train.jsonl and test.jsonl (parquet, CSV); below $W2S_DATA first."""
    name: str | None = None
    """Config of the set."""
    data_dir: str | None = None
    """Folder of the set, where it has folders and no configs."""
    train: str = "train"
    """Its split for training and shots."""
    validation: str = "test"
    """Its split for evaluation."""
    chosen: str = "chosen"
    """Column of the dialogue with the better reply; with `prompt`, of the reply alone."""
    rejected: str = "rejected"
    """The same of the worse one."""
    prompt: str | None = None
    """Column of what both reply to, a dialogue or one text; without it both dialogues hold it."""
    last_turns: int | None = Field(default=None, ge=1)
    """Turns of the dialogue that are shown before the replies, the last ones; all where it is not set."""
    max_words: int | None = Field(default=None, ge=1)
    """Words of it that are shown: it is cut at its beginning by whole turns; replies are never cut."""
    both_orders: bool = False
    """Every pair twice, as A/B and as B/A."""
    seed: int = 0
    """Of the sides."""

    def __str__(self) -> str:
        part = self.name or self.data_dir
        return f"{self.path} ({part})" if part else self.path


class Left(StrEnum):
    """Why a pair is left out."""

    MALFORMED = "that are no dialogues in which human and assistant take turns, or whose reply holds turns"
    PARTED = "that part before their last reply"
    EMPTY = "with an empty reply"
    EQUAL = "of equal replies"
    HELD = "whose prompt stands in the evaluation split"


@dataclass(frozen=True)
class Pair:
    """Two replies to one dialogue."""

    context: tuple[Turn, ...]
    better: str
    worse: str

    @functools.cached_property
    def prompt_key(self) -> str:
        """What all pairs of one prompt share: the hash of the first turn's words."""
        return digest(" ".join(self.context[0][1].casefold().split()))[:16]

    @functools.cached_property
    def question(self) -> str:
        """The whole dialogue, of which sides and order are drawn however much of it is shown."""
        return rendered(self.context)


def _settings(given: object) -> Pairs:
    """The settings of a YAML.

    Raises:
        UserError: with the first key that can't be, and why.
    """
    if not isinstance(given, Mapping):
        raise UserError(f"the task's `pairs` must be settings such as {{path: org/name}}, found {shown(given)}.")
    try:
        return Pairs(**{str(key): value for key, value in given.items()})
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        hint = nearest(key, Pairs.model_fields) if first["type"] == "extra_forbidden" else ""
        raise UserError(f"the task's `pairs`: {key}: {first['msg']}.{hint}") from error


def _reply(cell: Any) -> Turn | None:
    """A reply in a column of its own: a text, or a list of one message."""
    if isinstance(cell, str):
        return ASSISTANT, without_blank_lines(cell)
    turns = turns_of(cell)
    return turns[0] if turns and len(turns) == 1 and turns[0][0] == ASSISTANT else None


def _asked(cell: Any) -> list[Turn] | None:
    """A prompt in a column of its own: a dialogue, with or without the mark of the reply at its end, or one text."""
    turns = turns_of(cell)
    if turns is None and isinstance(cell, str):
        return [(HUMAN, without_blank_lines(cell))]
    return turns[:-1] if turns and turns[-1] == (ASSISTANT, "") else turns


def _dialogues(row: Mapping[str, Any], settings: Pairs) -> list[list[Turn] | None]:
    """Both dialogues of a row with their replies, the better one first."""
    cells = row[settings.chosen], row[settings.rejected]
    if settings.prompt is None:
        return [turns_of(cell) for cell in cells]
    asked = _asked(row[settings.prompt])
    return [[*asked, reply] if asked and (reply := _reply(cell)) else None for cell in cells]


def pair_of(row: Mapping[str, Any], settings: Pairs) -> Pair | Left:
    """The pair of a row, or why it is none."""
    (*context, better), (*other, worse) = (turns or [("", "")] for turns in _dialogues(row, settings))
    if not (better[0] == worse[0] == ASSISTANT and is_asked(context) and is_asked(other)):
        return Left.MALFORMED
    if INSIDE.search(better[1]) or INSIDE.search(worse[1]):
        return Left.MALFORMED
    if context != other:
        return Left.PARTED
    if not (better[1] and worse[1]):
        return Left.EMPTY
    return Left.EQUAL if better == worse else Pair(tuple(context), better[1], worse[1])


def _split(loaded: Mapping[str, datasets.Dataset], split: str, settings: Pairs) -> list[Doc]:
    """The rows of a split.

    Raises:
        UserError: the set has no such split, or lacks a column.
    """
    if split not in loaded:
        raise UserError(f"{settings} has no split '{split}', only {', '.join(loaded)}: set `train` and `validation`.")
    rows = loaded[split]
    wanted = [column for column in (settings.prompt, settings.chosen, settings.rejected) if column is not None]
    missing = [column for column in wanted if column not in rows.column_names]
    if missing:
        lacks = f"no column {', '.join(map(repr, missing))}, only {', '.join(rows.column_names)}"
        raise UserError(
            f"{settings}, split '{split}' has {lacks}: set `chosen`, `rejected` and, where replies stand alone, `prompt`."
        )
    return list(rows.select_columns(wanted).to_list())


def _tell(settings: Pairs, split: str, kept: Sequence[Pair], left: Counter[Left]) -> None:
    """Log what is left out of a split.

    Raises:
        UserError: nothing is left.
    """
    reasons = ", ".join(f"{n:,} {reason}" for reason, n in left.items())
    if not kept:
        raise UserError(f"{settings}, split '{split}': no pair can be used; left out: {reasons or 'none, it has no rows'}.")
    if reasons:
        level = logging.WARNING if left.total() > TOLD * (len(kept) + left.total()) else logging.INFO
        log.log(level, "%s, split '%s': %s pairs; left out: %s", settings, split, f"{len(kept):,}", reasons)


def _usable(found: Iterable[Pair | Left], held: frozenset[str]) -> tuple[list[Pair], Counter[Left]]:
    """The pairs whose prompt is not held out, in the order of their texts' hashes, and what was left out."""
    kept: list[Pair] = []
    left: Counter[Left] = Counter()
    for pair in found:
        if isinstance(pair, Left):
            left[pair] += 1
        elif pair.prompt_key in held:
            left[Left.HELD] += 1
        else:
            kept.append(pair)
    return sorted(kept, key=lambda pair: digest("\x1f".join((pair.question, pair.better, pair.worse)))), left


def _docs(pair: Pair, settings: Pairs) -> list[Doc]:
    """The rows of a pair: one, or both orders, the drawn one first."""
    (a, b), label = paired(pair.question, pair.better, pair.worse, settings.seed)
    context = rendered(pair.context, settings.last_turns, settings.max_words)
    doc = {"context": context, "a": a, "b": b, "label": label, "prompt_key": pair.prompt_key}
    return [doc, {**doc, "a": b, "b": a, "label": 1 - label}] if settings.both_orders else [doc]


@functools.cache
def _splits(settings: Pairs, _local: Path | None) -> Splits:
    loaded = sources.load(settings.path, settings.name, settings.data_dir)
    held: frozenset[str] = frozenset()
    kept: dict[str, list[Pair]] = {}
    for side, split in (("validation", settings.validation), ("train", settings.train)):
        rows = _split(loaded, split, settings)
        kept[side], left = _usable((pair_of(row, settings) for row in rows), held)
        _tell(settings, split, kept[side], left)
        held = frozenset(pair.prompt_key for pair in kept[side])
    keys = sorted({pair.prompt_key for found in kept.values() for pair in found})
    group = {key: number for number, key in enumerate(keys)}
    return {side: _numbered(kept[side], group, settings) for side in ("train", "validation")}


def _numbered(pairs_: Sequence[Pair], group: Mapping[str, int], settings: Pairs) -> datasets.Dataset:
    """The rows of pairs with the number of their prompt and, in both orders, of the pair."""
    rows = []
    for number, pair in enumerate(pairs_):
        numbers = {"w2s_group": group[pair.prompt_key], **({"w2s_pair": number} if settings.both_orders else {})}
        rows += [doc | numbers for doc in _docs(pair, settings)]
    return datasets.Dataset.from_list(rows)


def pairs(pairs: Mapping[str, Any] | None = None, **_: Any) -> Splits:
    """Pairs of replies as rows: context, a, b, label (0 = A is better), prompt_key, w2s_group (all pairs of one prompt).

    With ``both_orders`` each pair is two rows, one after the other, of one ``w2s_pair``. Training rows whose prompt stands
    in the evaluation split are left out; what else is, and how often, is logged (`Left`).

    Args:
        pairs: settings, see `Pairs`.

    Raises:
        UserError: settings, splits or columns that can't be, or a split without a usable pair.
        MissingDataError: the set is not to be had.
    """
    settings = _settings(pairs)
    return dict(_splits(settings, sources.local_folder(settings.path)))
