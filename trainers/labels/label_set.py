"""LabelSet: who labelled which row how. Labels attach to documents by row id, never by position."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from lm_eval.api.model import LM

from trainers.harness.tasks import HarnessTask, PromptStyle, rendering
from w2s_tasks.errors import UserError
from w2s_tasks.user_text import one_line, shown

Array = npt.NDArray[Any]
COLUMNS = ("row_id", "soft", "hard")
WEIGHT = "weight"
"""A column that is there where rows count differently."""
CLASSES = "w2s_classes"
"""Metadata of a label file: whether all rows have the same choices."""
LABELS = "labels.parquet"
"""The file of a stage's labels."""


@dataclass(frozen=True)
class LabelSet:
    """Labels of some rows of a task.

    ``soft`` holds a probability for each choice, shape [n, choices]; where rows have choices of their own, as many as the
    most, and 0 behind a row's last. ``sizes`` is the number of each row's choices then, shape [n]; None where all have the
    same ones. ``weight`` is how much each row counts in the loss, shape [n], at least 0; None for 1 each: a mean of 1 leaves
    the learning rate what it is. What is right stands elsewhere: `trainers.labels.gold`.
    """

    row_id: tuple[str, ...]
    soft: Array
    sizes: Array | None = None
    weight: Array | None = None

    def __post_init__(self) -> None:
        n = len(self.row_id)
        if self.soft.ndim != 2 or len(self.soft) != n:
            raise UserError(f"label set: {n} row ids, soft labels {self.soft.shape}.")
        refuse_twice(self.row_id)
        if n and (not np.isfinite(self.soft).all() or (self.soft < 0).any() or abs(self.soft.sum(1) - 1).max() > 1e-4):
            bad = int(
                np.argmax(~np.isfinite(self.soft).all(1) | (abs(self.soft.sum(1) - 1) > 1e-4) | (self.soft < 0).any(1))
            )
            raise UserError(
                f"label set: row {self.row_id[bad]} has the soft label {shown(self.soft[bad].tolist())}, no distribution."
            )
        if self.sizes is not None and self.soft[~self.present].any():
            raise UserError("label set: a probability stands behind a row's last choice.")
        if self.weight is not None:
            _check_weight(self.weight, n)

    @classmethod
    def of(cls, row_id: Sequence[str], soft: Sequence[Sequence[float]], classes: bool | None = None) -> LabelSet:
        """From one list of probabilities a row, each as long as the row has choices.

        Args:
            row_id: of the rows.
            soft: their probabilities.
            classes: whether all rows have the same choices; None to take it from their numbers.
        """
        sizes = np.array([len(row) for row in soft], dtype=int)
        table = np.zeros((len(soft), sizes.max(initial=0)))
        table[_present(sizes, table.shape[1])] = [value for row in soft for value in row]
        alike = len(set(sizes.tolist())) < 2 if classes is None else classes
        return cls(tuple(row_id), table, None if alike else sizes)

    def __len__(self) -> int:
        return len(self.row_id)

    @property
    def present(self) -> Array:
        """Which entries of ``soft`` stand for a choice, shape [n, choices]."""
        if self.sizes is None:
            return np.ones(self.soft.shape, dtype=bool)
        return _present(self.sizes, self.soft.shape[1])

    @property
    def lists(self) -> list[list[float]]:
        """One list of probabilities a row, each as long as the row has choices."""
        rows: list[list[float]] = self.soft.tolist()
        return rows if self.sizes is None else [row[:size] for row, size in zip(rows, self.sizes.tolist(), strict=True)]

    @property
    def hard(self) -> Array:
        """The most probable choice of each row, shape [n]."""
        return self.soft.argmax(axis=1)

    @property
    def confidence(self) -> Array:
        """The largest probability of each row, shape [n, 1]."""
        return np.asarray(self.soft.max(axis=1, keepdims=True))

    def groups(self, by_class: bool) -> list[Array]:
        """The numbers of the rows of each labelled class; of all together where these are not asked for, or not there."""
        classes = np.unique(self.hard).tolist() if by_class and self.sizes is None else []
        return [np.flatnonzero(self.hard == c) for c in classes] or [np.arange(len(self))]

    def class_share(self, classes: int) -> list[float]:
        """Of each class; empty where there are none."""
        return class_share(self.hard, classes)

    def hardened(self) -> LabelSet:
        """The same with all weight on the most probable choice."""
        return self.with_soft(np.eye(self.soft.shape[1])[self.hard])

    def with_soft(self, soft: Array) -> LabelSet:
        """The same rows with other labels of the same choices."""
        return replace(self, soft=soft)

    def with_weight(self, weight: Array) -> LabelSet:
        """The same labels, of which each row counts so much in the loss; shape [n]."""
        return replace(self, weight=weight)

    def subset(self, mask: Array) -> LabelSet:
        """The rows where a mask of shape [n] is true, in their order."""
        return self.take(np.flatnonzero(mask))

    def take(self, rows: Array | Sequence[int]) -> LabelSet:
        """The rows of these numbers, in that order."""
        sizes, weight = (None if part is None else part[rows] for part in (self.sizes, self.weight))
        return LabelSet(tuple(self.row_id[i] for i in rows), self.soft[rows], sizes, weight)

    def join(self, other: LabelSet) -> LabelSet:
        """These rows, then another set's."""
        joined = LabelSet.of((*self.row_id, *other.row_id), [*self.lists, *other.lists], self.sizes is None)
        if self.weight is None and other.weight is None:
            return joined
        parts = [np.ones(len(part)) if part.weight is None else part.weight for part in (self, other)]
        return joined.with_weight(np.concatenate(parts))

    def permuted(self, rng: np.random.Generator) -> LabelSet:
        """The labels dealt out to other rows; where rows have choices of their own, each row's among these."""
        if self.sizes is None:
            return self.with_soft(self.soft[rng.permutation(len(self))])
        dealt = LabelSet.of(self.row_id, [rng.permutation(row).tolist() for row in self.lists], classes=False)
        return replace(dealt, weight=self.weight)

    def pairs(
        self, task: HarnessTask, docs: Sequence[Mapping[str, Any]], style: PromptStyle, lm: LM | None
    ) -> list[list[tuple[str, str]]]:
        """For each row the prompt and each choice, as the task renders them."""
        found = [task.pairs(doc, style, lm) for doc in rendering(docs)]
        for row, (own, label) in enumerate(zip(found, self.lists, strict=True)):
            if len(own) != len(label):
                raise UserError(f"the task '{task.name}': row {row} has {len(own)} choices, its label {len(label)}.")
        return found

    def save(self, path: Path) -> None:
        """Write parquet with the columns row_id, soft (a list a row, as long as it has choices), hard, and any weight."""
        soft = pa.array(self.lists, type=pa.list_(pa.float64()))
        columns = [pa.array(self.row_id), soft, pa.array(self.hard, type=pa.int64())]
        table = pa.table(columns, names=list(COLUMNS))
        if self.weight is not None:
            table = table.append_column(WEIGHT, pa.array(self.weight, type=pa.float64()))
        pq.write_table(table.replace_schema_metadata({CLASSES: str(self.sizes is None)}), path)

    @classmethod
    def load(cls, path: Path) -> LabelSet:
        """Read a label set.

        Raises:
            UserError: the file is missing, no parquet, lacks a column or a value, or holds labels that are no distributions.
        """
        columns = read_columns(path, COLUMNS)
        check_values(path, columns, {"row_id": (str, "text"), "hard": (int, "a whole number")})
        _check_soft(path, columns["soft"])
        try:
            told = (pq.read_schema(path).metadata or {}).get(CLASSES.encode())
            labels = cls.of(columns["row_id"], columns["soft"], None if told is None else told == b"True")
            if WEIGHT in pq.read_schema(path).names:
                weight = read_columns(path, (WEIGHT,))[WEIGHT]
                check_values(path, {"row_id": columns["row_id"], WEIGHT: weight}, {WEIGHT: ((int, float), "a number")})
                labels = labels.with_weight(np.array(weight, dtype=float))
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        wrong = labels.hard != np.array(columns["hard"])
        if wrong.any():
            row = int(np.argmax(wrong))
            raise UserError(f"{path}, row {row}: the column hard does not follow from soft; the file was altered.")
        return labels


def _check_weight(weight: Array, n: int) -> None:
    """Refuse weights that are not one number from 0 for each row, or all 0."""
    if weight.shape != (n,) or not np.isfinite(weight).all() or (weight < 0).any() or (n and not weight.any()):
        raise UserError(
            f"label set: weights are one number from 0 for each of {n} rows, not all 0; found {shown(weight.tolist())}."
        )


def _present(sizes: Array, widest: int) -> Array:
    return np.arange(widest) < sizes[:, None]


def class_share(values: Array, classes: int) -> list[float]:
    """The share of each class among class numbers, shape [n]; empty where there are no classes."""
    counts = np.bincount(values, minlength=classes) if classes else np.zeros(0)
    return [float(x) for x in counts / max(1, counts.sum())]


def refuse_twice(ids: Sequence[str]) -> None:
    """Refuse a row id that occurs twice."""
    if len(set(ids)) != len(ids):
        twice = next(i for i, count in Counter(ids).items() if count > 1)
        raise UserError(f"label set: a row id occurs twice: {shown(twice)}.")


def read_columns(path: Path, wanted: Sequence[str]) -> dict[str, list[Any]]:
    """The columns of a label file as lists of Python values.

    Raises:
        UserError: the file is missing or no parquet, or a column is not there once.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such label set. `w2s label --out FILE` writes one.")
    try:
        # A plain file: read_table would take folder names such as gold=1/ above it for columns.
        with pq.ParquetFile(path) as file:
            table = file.read()
        names = table.column_names
        found = {c: table[c].to_pylist() for c in wanted if names.count(c) == 1}
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{path}: not a readable label set ({one_line(error)}); write it again with w2s label.") from error
    missing = [c for c in wanted if c not in names]
    if missing:
        raise UserError(f"{path}: a label set has the columns {', '.join(wanted)}; missing: {', '.join(missing)}.")
    twice = [c for c in wanted if names.count(c) > 1]
    if twice:
        raise UserError(f"{path}: the column {twice[0]} is there more than once; keep one.")
    return found


def check_values(
    path: Path, columns: Mapping[str, list[Any]], kinds: Mapping[str, tuple[type | tuple[type, ...], str]]
) -> None:
    """Refuse a label file without rows, with a missing value, or with values of another type.

    Args:
        path: the file.
        columns: all of them.
        kinds: what the values of some have to be, as a type and in words.
    """
    if not columns["row_id"]:
        raise UserError(f"{path}: the label set is empty.")
    for name, (kind, meaning) in kinds.items():
        for row, value in enumerate(columns[name]):
            if value is None:
                raise UserError(f"{path}, row {row}: no {name}; every row of a label set has all of {', '.join(columns)}.")
            if not isinstance(value, kind) or isinstance(value, bool):
                raise UserError(f"{path}, row {row}: {name} must be {meaning}, found {shown(value)}.")


def _check_soft(path: Path, values: list[Any]) -> None:
    """Refuse soft labels that are no lists of numbers, one for each of two choices or more."""
    for row, value in enumerate(values):
        if value is None:
            raise UserError(f"{path}, row {row}: no soft; every row of a label set has all of {', '.join(COLUMNS)}.")
        numbers = isinstance(value, list) and all(isinstance(x, int | float) and not isinstance(x, bool) for x in value)
        if not numbers or len(value) < 2:
            raise UserError(
                f"{path}, row {row}: soft must be a list of numbers, one for each of two choices or more, found "
                f"{shown(value)}."
            )
