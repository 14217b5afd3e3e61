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
from trainers.labels.label_set import Array, LabelSet
from w2s_tasks.errors import UserError

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

    def accuracy(self, labels: LabelSet) -> float:
        """Share of a label set's rows whose most probable choice is right."""
        return float((labels.hard == self.of(labels.row_id)).mean()) if len(labels) else float("nan")

    def save(self, path: Path) -> None:
        """Write parquet with the columns row_id, gold."""
        columns = [pa.array(list(self.right)), pa.array(list(self.right.values()), type=pa.int64())]
        pq.write_table(pa.table(columns, names=["row_id", "gold"]), path)

    @classmethod
    def load(cls, path: Path) -> Gold:
        """Read what `save` wrote."""
        with pq.ParquetFile(path) as file:
            table = file.read()
        return cls(dict(zip(table["row_id"].to_pylist(), table["gold"].to_pylist(), strict=True)))


def gold_labels(ids: Sequence[str], gold: Sequence[int], choices: int | Sequence[int]) -> LabelSet:
    """Gold labels as a label set: what the weak supervisor and the ceiling learn from.

    Args:
        ids: of the rows.
        gold: the right choice of each.
        choices: how many choices each has, or all have.

    Raises:
        UserError: a gold label that is none of the choices.
    """
    sizes = [choices] * len(ids) if isinstance(choices, int) else choices
    for i, right, n in zip(ids, gold, sizes, strict=True):
        if not 0 <= right < n:
            raise UserError(f"row {i} has the gold label {right}, but there are {n} choices (0 to {n - 1}).")
    return LabelSet.of(ids, [np.eye(n)[right].tolist() for right, n in zip(gold, sizes, strict=True)])
