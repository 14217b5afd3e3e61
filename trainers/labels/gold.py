"""Gold labels: what the task says is right, in a file of their own, so that no student sees them by mistake.

The weak supervisor, the ceilings and the controls of the experiment are made of them; the report measures labels by them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainers.harness.tasks import HarnessTask
from trainers.labels.label_set import Array, LabelSet, class_share
from trainers.labels.text_labels import TextLabels
from w2s_tasks.errors import UserError
from w2s_tasks.scoring.replies import AnswerReader

GOLD = "gold.parquet"
"""The file of a split's gold labels."""


@dataclass(frozen=True)
class Gold:
    """The right choice of some rows, by row id."""

    right: Mapping[str, int]

    @classmethod
    def told(cls, task: HarnessTask, ids: Sequence[str], docs: Sequence[Mapping[str, Any]]) -> Gold:
        """What a task says of rows."""
        return cls({i: task.gold(doc) for i, doc in zip(ids, docs, strict=True)})

    def of(self, ids: Sequence[str]) -> Array:
        """The right choices of rows, shape [n]."""
        return np.array([self.right[i] for i in ids], dtype=int)

    def labels(self, ids: Sequence[str], task: HarnessTask) -> LabelSet:
        """Those of rows as a label set."""
        return gold_labels(ids, self.of(ids).tolist(), len(task.classes) or task.sizes(task.docs_of(ids)))

    def correct(self, labels: LabelSet) -> Array:
        """Which rows' most probable choice is right, shape [n]."""
        return np.asarray(labels.hard == self.of(labels.row_id))

    def accuracy(self, labels: LabelSet) -> float:
        """Share of a label set's rows whose most probable choice is right."""
        return _share(self.correct(labels))

    def class_share(self, ids: Sequence[str], classes: int) -> list[float]:
        """Of each class among rows; empty where there are none."""
        return class_share(self.of(ids), classes)

    def told_beside(self, labels: LabelSet) -> list[list[Any]]:
        """For each row its label, how sure that is, and what is right, for people."""
        sure, right = labels.confidence[:, 0].tolist(), self.of(labels.row_id).tolist()
        return [list(row) for row in zip(labels.hard.tolist(), sure, right, strict=True)]

    def save(self, path: Path) -> None:
        """Write parquet with the columns row_id, gold."""
        _write(path, self.right, "gold", pa.int64())

    @classmethod
    def load(cls, path: Path, task: HarnessTask | None = None) -> Gold:
        """Read what `save` wrote; the task is not needed."""
        return cls(_read(path, "gold"))


@dataclass(frozen=True)
class GoldTexts:
    """The gold solution of some rows, by row id, and how the task reads answers."""

    right: Mapping[str, str]
    reader: AnswerReader

    @classmethod
    def told(cls, task: HarnessTask, ids: Sequence[str], docs: Sequence[Mapping[str, Any]]) -> GoldTexts:
        """What a task says of rows."""
        return cls({i: task.solution(doc) for i, doc in zip(ids, docs, strict=True)}, task.reader)

    def answer(self, row_id: str) -> str:
        """What the gold solution of a row comes to."""
        found = self.reader.of(self.right[row_id])
        assert found is not None  # noqa: S101 - `HarnessTask.check_trainable` refuses such rows
        return found

    def labels(self, ids: Sequence[str], task: HarnessTask) -> TextLabels:
        """Those of rows as a label set."""
        return TextLabels.of({i: (self.right[i], self.answer(i), 0.0, 1.0) for i in ids})

    def correct(self, labels: TextLabels) -> Array:
        """Which rows' solutions come to the same answer as the gold one, shape [n]."""
        pairs = zip(labels.row_id, labels.answer, strict=True)
        return np.array([self.reader.equal(self.answer(i), said) for i, said in pairs], dtype=bool)

    def accuracy(self, labels: TextLabels) -> float:
        """Share of a label set's rows whose answer is right."""
        return _share(self.correct(labels))

    def class_share(self, ids: Sequence[str], classes: int) -> list[float]:
        """None: texts have no classes."""
        return []

    def told_beside(self, labels: TextLabels) -> list[list[Any]]:
        """For each row its label's answer, how sure that is, and what is right, for people."""
        right = [
            said if ok else self.answer(i)
            for i, said, ok in zip(labels.row_id, labels.answer, self.correct(labels).tolist(), strict=True)
        ]
        return [list(row) for row in zip(labels.answer, labels.agreement.tolist(), right, strict=True)]

    def save(self, path: Path) -> None:
        """Write parquet with the columns row_id, gold."""
        _write(path, self.right, "gold", pa.string())

    @classmethod
    def load(cls, path: Path, task: HarnessTask) -> GoldTexts:
        """Read what `save` wrote."""
        return cls(_read(path, "gold"), task.reader)


def _share(correct: Array) -> float:
    return float(correct.mean()) if len(correct) else float("nan")


def _write(path: Path, values: Mapping[str, Any], name: str, kind: pa.DataType) -> None:
    columns = [pa.array(list(values)), pa.array(list(values.values()), type=kind)]
    pq.write_table(pa.table(columns, names=["row_id", name]), path)


def _read(path: Path, name: str) -> dict[str, Any]:
    with pq.ParquetFile(path) as file:
        table = file.read()
    return dict(zip(table["row_id"].to_pylist(), table[name].to_pylist(), strict=True))


def gold_labels(ids: Sequence[str], gold: Sequence[int], choices: int | Sequence[int]) -> LabelSet:
    """Gold labels as a label set: what the weak supervisor and the ceiling learn from.

    Args:
        ids: of the rows.
        gold: the right choice of each.
        choices: how many choices all rows have, where they are the same ones; else how many each has.

    Raises:
        UserError: a gold label that is none of the choices.
    """
    sizes = [choices] * len(ids) if isinstance(choices, int) else choices
    for i, right, n in zip(ids, gold, sizes, strict=True):
        if not 0 <= right < n:
            raise UserError(f"row {i} has the gold label {right}, but there are {n} choices (0 to {n - 1}).")
    return LabelSet.of(
        ids, [np.eye(n)[right].tolist() for right, n in zip(gold, sizes, strict=True)], isinstance(choices, int)
    )
