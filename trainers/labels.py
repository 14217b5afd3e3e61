"""LabelSet: who labelled which row how. Labels attach to documents by row id, never by position."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from w2s_tasks.errors import UserError

Array = npt.NDArray[Any]
COLUMNS = ("row_id", "soft", "hard", "gold")


def row_ids(docs: Iterable[Mapping[str, Any]]) -> list[str]:
    """A stable id a document: the hash of its content and its ordinal among equal ones (duplicates are real)."""
    seen: Counter[str] = Counter()
    ids = []
    for doc in docs:
        text = json.dumps(doc, sort_keys=True, ensure_ascii=False, default=str)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        ids.append(f"{digest}-{seen[digest]}")
        seen[digest] += 1
    return ids


@dataclass(frozen=True)
class LabelSet:
    """Labels of some rows of a task.

    ``soft`` holds a probability for each choice, shape [n, choices]; ``gold`` is for diagnosis only: no student sees it.
    """

    row_id: tuple[str, ...]
    soft: Array
    gold: Array

    def __post_init__(self) -> None:
        n = len(self.row_id)
        if self.soft.ndim != 2 or len(self.soft) != n or len(self.gold) != n:
            raise UserError(f"label set: {n} row ids, soft labels {self.soft.shape}, {len(self.gold)} gold labels.")
        if len(set(self.row_id)) != n:
            raise UserError("label set: a row id occurs twice.")
        if n and (not np.isfinite(self.soft).all() or (self.soft < 0).any() or abs(self.soft.sum(1) - 1).max() > 1e-4):
            bad = int(
                np.argmax(~np.isfinite(self.soft).all(1) | (abs(self.soft.sum(1) - 1) > 1e-4) | (self.soft < 0).any(1))
            )
            raise UserError(
                f"label set: row {self.row_id[bad]} has the soft label {self.soft[bad].tolist()}, no distribution."
            )

    def __len__(self) -> int:
        return len(self.row_id)

    @property
    def hard(self) -> Array:
        """The most probable choice of each row, shape [n]."""
        hard: Array = self.soft.argmax(axis=1)
        return hard

    @property
    def accuracy(self) -> float:
        """Share of rows whose label is the gold one."""
        return float((self.hard == self.gold).mean()) if len(self) else float("nan")

    def hardened(self) -> LabelSet:
        """The same with all weight on the most probable choice."""
        return LabelSet(self.row_id, np.eye(self.soft.shape[1])[self.hard], self.gold)

    def with_soft(self, soft: Array) -> LabelSet:
        """The same rows with other labels."""
        return LabelSet(self.row_id, soft, self.gold)

    def subset(self, mask: Array) -> LabelSet:
        """The rows where a mask of shape [n] is true, in their order."""
        rows = np.flatnonzero(mask)
        return LabelSet(tuple(self.row_id[i] for i in rows), self.soft[rows], self.gold[rows])

    def save(self, path: Path) -> None:
        """Write parquet with the columns row_id, soft, hard, gold."""
        soft = pa.array(self.soft.tolist(), type=pa.list_(pa.float64()))
        columns = [
            pa.array(self.row_id),
            soft,
            pa.array(self.hard, type=pa.int64()),
            pa.array(self.gold, type=pa.int64()),
        ]
        pq.write_table(pa.table(columns, names=list(COLUMNS)), path)

    @classmethod
    def load(cls, path: Path) -> LabelSet:
        """Read a label set.

        Raises:
            UserError: the file is missing, no parquet, lacks a column, or holds labels that are no distributions.
        """
        try:
            table = pq.read_table(path)
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{path}: not a readable label set ({str(error).splitlines()[0]}).") from error
        missing = [c for c in COLUMNS if c not in table.column_names]
        if missing:
            raise UserError(f"{path}: a label set has the columns {', '.join(COLUMNS)}; missing: {', '.join(missing)}.")
        try:
            soft = np.array(table["soft"].to_pylist(), dtype=float)
        except (TypeError, ValueError) as error:
            raise UserError(f"{path}: soft labels must be lists of numbers of one length ({error}).") from error
        if not np.array_equal(soft.argmax(1) if len(soft) else [], table["hard"].to_numpy()):
            raise UserError(f"{path}: the column hard does not follow from soft; the file was altered.")
        return cls(tuple(map(str, table["row_id"].to_pylist())), soft, table["gold"].to_numpy())


def gold_labels(ids: Sequence[str], gold: Sequence[int], choices: int) -> LabelSet:
    """The gold labels themselves as a label set: what the weak supervisor and the ceiling learn from.

    Raises:
        UserError: a gold label that is none of the choices.
    """
    bad = next((i for i, g in enumerate(gold) if not 0 <= g < choices), None)
    if bad is not None:
        raise UserError(
            f"row {ids[bad]} has the gold label {gold[bad]}, but the task has {choices} choices (0 to {choices - 1})."
        )
    return LabelSet(tuple(ids), np.eye(choices)[np.asarray(gold, dtype=int)], np.asarray(gold, dtype=int))
