"""The split of a seed, and the labels that a model learns: a step's or gold ones, with operations on them."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from trainers.fit.trainer import Code
from trainers.harness.tasks import HarnessTask, PromptStyle
from trainers.labels import splits
from trainers.labels.arms import ARMS, operation
from trainers.labels.gold import GOLD, Gold
from trainers.labels.kinds import AnyLabels, kind_for
from trainers.labels.label_set import LABELS
from trainers.labels.operations import NEEDS_GOLD
from trainers.steps.step import Ground, Step
from w2s_tasks.errors import MissingDataError, UserError
from w2s_tasks.rows.overlap import Rule, common, overlapping, texts_of

Side = Literal["weak", "transfer"]
Op = tuple[str, dict[str, Any]]
"""A label operation and its settings."""


@functools.cache
def given_away(task: HarnessTask, rule: Rule) -> frozenset[int]:
    """The numbers of the training rows that stand in the task's evaluation split.

    Raises:
        UserError: the rule is `source`, and single rows of the task don't tell theirs.
    """
    evaluation, training = texts_of(task.task, list(task.task.eval_docs), rule), texts_of(task.task, task.train_docs, rule)
    if evaluation is None or training is None:
        raise UserError(
            f"split.drop_overlap: source: the metadata of the task '{task.name}' don't say which column holds the source "
            "(`source: {column: NAME}`), for training and evaluation rows alike. Use 13gram or exact."
        )
    marks = overlapping(training, common(evaluation, training, rule), rule)
    return frozenset(row for row, mark in enumerate(marks) if mark)


@dataclass(frozen=True, eq=False, kw_only=True)
class Split(Step):
    """The training split's two halves, and the gold labels of their rows."""

    kind: ClassVar[str] = "split"
    settings: splits.SplitSettings
    seed: int

    @property
    def name(self) -> str:
        """By its seed."""
        return f"split/{self.seed}"

    @property
    def title(self) -> str:
        """By its seed."""
        return f"split, seed {self.seed}"

    @property
    def code(self) -> tuple[Code, ...]:
        """What the task says of its rows."""
        told = kind_for(self.task).gold.told, HarnessTask.gold, HarnessTask.solution
        return HarnessTask.source_texts, *told, *((given_away,) if self.settings.drop_overlap else ())

    def recipe(self) -> dict[str, Any]:
        """The settings and the rows; where texts decide, the prompts too; where the evaluation split does, its rows."""
        drop = self.settings.drop_overlap
        settings = self.settings.model_dump(exclude=None if drop else {"drop_overlap"})
        by_text = drop or self.settings.by == "source" or self.task.generates  # then gold is a text too
        texts = {"renderer": self.task.renderer_hash(PromptStyle())} if by_text else {}
        asked = {"evaluation": self.task.eval_hash(None)} if drop else {}
        number = {"seed": self.settings.seed + self.seed}
        return settings | number | {"data": self.task.train_hash} | texts | asked

    def rows(self) -> int:
        """All of the training split."""
        return len(self.task.train_docs)

    @functools.cached_property
    def halves(self) -> splits.Halves:
        """The row numbers of both halves, without limits."""
        drop = self.settings.drop_overlap
        return self._cut().without(given_away(self.task, drop)) if drop else self._cut()

    def _cut(self) -> splits.Halves:
        number, rows = self.settings.seed + self.seed, len(self.task.train_docs)
        if self.settings.by == "study":
            return splits.split_as_study(rows)
        if self.settings.by == "row":
            return splits.split_by_row(rows, self.settings.weak, number)
        texts, contained = self.task.source_texts()
        return splits.split_by_source(texts, self.settings.weak, number, contained=contained)

    def side(self, side: Side) -> list[int]:
        """The row numbers of one half, as many as the experiment takes."""
        return splits.limited(getattr(self.halves, side), getattr(self.settings.limit, side), side)

    def size(self, side: Side) -> int:
        """How many rows a half has; where the data is not here, how many are asked for."""
        try:
            return len(self.side(side))
        except MissingDataError:
            limit: int | None = getattr(self.settings.limit, side)
            if limit is None:
                raise
            return limit

    def build(self, ground: Ground, out: Path) -> None:
        """Write the row ids of both halves, and gold labels; a label outside the choices stops the run here."""
        weak, transfer = ([self.task.train_ids[i] for i in self.side(side)] for side in ("weak", "transfer"))
        rows = [*weak, *transfer]
        kind_for(self.task).gold.told(self.task, rows, self.task.docs_of(rows)).save(out / GOLD)
        splits.write(out, weak, transfer, self.halves)


@dataclass(frozen=True, eq=False, kw_only=True)
class Labels(Step):
    """A step that leaves a label set of the transfer rows."""

    kind: ClassVar[str] = "labels"
    whose: str
    split: Split

    @property
    def name(self) -> str:
        """By whose labels they are."""
        return f"labels/{self.whose}, seed {self.split.seed}"

    @property
    def title(self) -> str:
        """By whose labels they are."""
        return f"labels of {self.whose}, seed {self.split.seed}"

    @property
    def inputs(self) -> tuple[Step, ...]:
        """Who answers, where a step trained it, and the rows."""
        return (*super().inputs, self.split)

    def rows(self) -> int:
        """The transfer rows."""
        return self.split.size("transfer")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Labels to train on: those that a step made, or gold labels of sides of the split; then operations on them."""

    split: Split
    made: Labels | None = None
    sides: tuple[Side, ...] = ("transfer",)
    ops: tuple[Op, ...] = ()
    share: float = 1.0
    """About how many of the rows are left, for a plan."""

    def then(self, name: str, settings: dict[str, Any] | None = None) -> Source:
        """The same with one more operation."""
        settings = settings or {}
        return replace(self, ops=(*self.ops, (name, settings)), share=self.share * settings.get("keep", 1.0))

    @property
    def inputs(self) -> tuple[Step, ...]:
        """The steps that it reads."""
        return (self.split, self.made) if self.made else (self.split,)

    @property
    def code(self) -> tuple[Code, ...]:
        """Its operations."""
        return tuple(operation(name) for name, _ in self.ops)

    def recipe(self) -> dict[str, Any]:
        """What it is, its inputs apart."""
        return {"rows": "made" if self.made else self.sides, "label_ops": self.ops}

    def rows(self) -> int:
        """About how many rows there are."""
        return round(self.share * (self.made.rows() if self.made else sum(self.split.size(side) for side in self.sides)))


def needs_gold(name: str) -> bool:
    """Whether a label operation is given gold labels of the rows."""
    return name in NEEDS_GOLD or (name in ARMS and ARMS[name].sees_gold)


def read_labels(source: Source, ground: Ground, seed: int) -> AnyLabels:
    """The labels that a source stands for, once its steps are built.

    Raises:
        UserError: an operation left no row.
    """
    split, task = ground.folder_of(source.split), source.split.task
    kind = kind_for(task)
    labels: Any
    if source.made:
        labels = kind.labels.load(ground.folder_of(source.made) / LABELS)
    else:
        ids = [i for side in source.sides for i in splits.read(split, side)]
        labels = kind.gold.load(split / GOLD, task).labels(ids, task)
    for name, settings in source.ops:
        # A seed of its own for each operation, so that adding an arm changes no other.
        number = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)
        gold = (Gold.load(split / GOLD).of(labels.row_id),) if needs_gold(name) else ()  # of choices: texts have none
        labels = operation(name)(labels, np.random.default_rng([number, seed]), *gold, **settings)
    found: AnyLabels = labels
    return found
