"""TextLabels: who wrote which row's solution. The counterpart of `LabelSet` where the target is a text, not a choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from lm_eval.api.model import LM

from trainers.harness.tasks import HarnessTask, PromptStyle, rendering
from trainers.labels.label_set import Array, check_values, read_columns, refuse_twice
from w2s_tasks.errors import UserError

COLUMNS: dict[str, tuple[type | tuple[type, ...], str]] = {
    "row_id": (str, "text"),
    "solution": (str, "text"),
    "answer": (str, "text"),
    "logprob": ((int, float), "a number"),
    "agreement": ((int, float), "a number"),
}
"""With the type of their values."""


@dataclass(frozen=True)
class TextLabels:
    """Solutions of some rows of a task, one each.

    ``answer`` is what a solution comes to, as the task reads it (`w2s_tasks.scoring.replies`); ``logprob`` the solution's
    mean log-probability a token under the model that wrote it, at temperature 1, shape [n]; ``agreement`` the share of that
    model's samples that came to this answer (self-consistency), shape [n]. Of gold solutions they are 0 and 1.
    """

    row_id: tuple[str, ...]
    solution: tuple[str, ...]
    answer: tuple[str, ...]
    logprob: Array
    agreement: Array

    def __post_init__(self) -> None:
        n = len(self.row_id)
        if any(len(column) != n for column in (self.solution, self.answer, self.logprob, self.agreement)):
            raise UserError(f"label set: {n} row ids, but not as many solutions, answers, logprobs and agreements.")
        refuse_twice(self.row_id)
        for i, solution, answer in zip(self.row_id, self.solution, self.answer, strict=True):
            if not solution.strip() or not answer.strip():
                raise UserError(f"label set: row {i} has an empty {'answer' if solution.strip() else 'solution'}.")
        wrong = ~(np.isfinite(self.logprob) & (self.logprob <= 1e-6) & (self.agreement > 0) & (self.agreement <= 1))
        if wrong.any():
            bad = int(np.argmax(wrong))
            raise UserError(
                f"label set: row {self.row_id[bad]} has the logprob {self.logprob[bad]} and the agreement "
                f"{self.agreement[bad]}; they are at most 0, and above 0 and at most 1."
            )

    @classmethod
    def of(cls, rows: Mapping[str, tuple[str, str, float, float]]) -> TextLabels:
        """From solution, answer, logprob and agreement by row id."""
        solution, answer, logprob, agreement = zip(*rows.values(), strict=True) if rows else ((), (), (), ())
        return cls(tuple(rows), solution, answer, np.array(logprob, dtype=float), np.array(agreement, dtype=float))

    def __len__(self) -> int:
        return len(self.row_id)

    @property
    def soft(self) -> Array:
        """All weight on the one solution, shape [n, 1]."""
        return np.ones((len(self), 1))

    @property
    def sizes(self) -> None:
        """All rows have one."""

    @property
    def weight(self) -> None:
        """None: every solution counts alike."""

    @property
    def confidence(self) -> Array:
        """Self-consistency, then log-probability among equals, shape [n, 2]."""
        return np.stack([self.agreement, self.logprob], axis=1)

    def groups(self, by_class: bool) -> list[Array]:
        """All rows together: texts have no classes."""
        return [np.arange(len(self))]

    def class_share(self, classes: int) -> list[float]:
        """None: texts have no classes."""
        return []

    def subset(self, mask: Array) -> TextLabels:
        """The rows where a mask of shape [n] is true, in their order."""
        return self.take(np.flatnonzero(mask))

    def take(self, rows: Array | Sequence[int]) -> TextLabels:
        """The rows of these numbers, in that order."""
        return self.with_rows(tuple(self.row_id[i] for i in rows), rows)

    def with_rows(self, row_id: tuple[str, ...], rows: Array | Sequence[int]) -> TextLabels:
        """The labels of these numbers as those of other rows."""
        solution, answer = (tuple(column[i] for i in rows) for column in (self.solution, self.answer))
        return TextLabels(row_id, solution, answer, self.logprob[rows], self.agreement[rows])

    def join(self, other: TextLabels) -> TextLabels:
        """These rows, then another set's."""
        joined = (np.concatenate([getattr(self, name), getattr(other, name)]) for name in ("logprob", "agreement"))
        return TextLabels(
            (*self.row_id, *other.row_id), (*self.solution, *other.solution), (*self.answer, *other.answer), *joined
        )

    def permuted(self, rng: np.random.Generator) -> TextLabels:
        """The labels dealt out to other rows."""
        return self.with_rows(self.row_id, rng.permutation(len(self)))

    def pairs(
        self, task: HarnessTask, docs: Sequence[Mapping[str, Any]], style: PromptStyle, lm: LM | None
    ) -> list[list[tuple[str, str]]]:
        """For each row its prompt and its solution, as the task's few-shot examples show them."""
        return [[task.reply_pair(doc, own, style, lm)] for doc, own in zip(rendering(docs), self.solution, strict=True)]

    def save(self, path: Path) -> None:
        """Write parquet with the columns row_id, solution, answer, logprob, agreement."""
        text, number = pa.string(), pa.float64()
        columns = [
            *(pa.array(getattr(self, name), type=text) for name in ("row_id", "solution", "answer")),
            *(pa.array(getattr(self, name), type=number) for name in ("logprob", "agreement")),
        ]
        pq.write_table(pa.table(columns, names=list(COLUMNS)), path)

    @classmethod
    def load(cls, path: Path) -> TextLabels:
        """Read a label set.

        Raises:
            UserError: the file is missing, no parquet, lacks a column or a value, or holds what no label can be.
        """
        columns = read_columns(path, tuple(COLUMNS))
        check_values(path, columns, COLUMNS)
        row_id, solution, answer = (tuple(columns[name]) for name in ("row_id", "solution", "answer"))
        logprob, agreement = (np.array(columns[name], dtype=float) for name in ("logprob", "agreement"))
        try:
            return cls(row_id, solution, answer, logprob, agreement)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
