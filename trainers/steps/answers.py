"""Labels that one model gives: a trained one's answers, an untuned one's, or those that it finds without a teacher."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trainers.fit.trainer import Code, training_style
from trainers.harness.tasks import PromptStyle
from trainers.labels import ask, splits, unsupervised
from trainers.labels.kinds import AnyLabels
from trainers.labels.label_set import LABELS, LabelSet
from trainers.steps.fit import Asking, Fit, model_of
from trainers.steps.source import Labels, Split
from trainers.steps.step import Ground, Step
from trainers.store import processes
from trainers.training.settings import ModelSettings
from w2s_tasks.errors import UserError


def ask_model(
    how: ask.Asking, fit: Fit | None, settings: ModelSettings, split: Split, ids: list[str], ground: Ground, out: Path
) -> AnyLabels:
    """Let a model label rows: the one that a step trained, or the untuned one of `settings`."""
    task = split.task
    lm = ground.pool.load(model_of(fit, settings, task, ground))
    return how.ask(lm, task, task.docs_of(ids), ids, training_style(settings), split.seed, out)


@dataclass(frozen=True, eq=False, kw_only=True)
class Answers(Labels, Asking):
    """A model's own labels of the transfer rows: a trained one's, or an untuned one's."""

    how: ask.Asking
    """What it is asked for."""

    @property
    def code(self) -> tuple[Code, ...]:
        """What answers, and what asks it."""
        return *super().code, type(self.how).ask

    def recipe(self) -> dict[str, Any]:
        """The prompts, and of an untuned model its arguments."""
        prompts = {**self.how.recipe(self.split.seed), "renderer": self.task.renderer_hash(training_style(self.settings))}
        return prompts if self.fit else prompts | {"args": self.settings.model_args}

    def build(self, ground: Ground, out: Path) -> None:
        """Ask the model."""
        ids = splits.read(ground.folder_of(self.split), "transfer")
        ask_model(self.how, self.fit, self.settings, self.split, ids, ground, out).save(out / LABELS)


@dataclass(frozen=True, eq=False, kw_only=True)
class Search(Labels, Asking):
    """Labels that no teacher gave: the untuned strong model finds those that predict each other."""

    search: unsupervised.Unsupervised
    whose: str = "unsupervised"

    def recipe(self) -> dict[str, Any]:
        """The search's settings, the model's, and the prompts."""
        return {
            "unsupervised": self.search.model_dump(),
            "seed": self.split.seed,
            "args": self.settings.model_args,
            "renderer": self.task.renderer_hash(PromptStyle()),
        }

    def build(self, ground: Ground, out: Path) -> None:
        """Search; one chain of small questions, so there is nothing to share out among processes."""
        if not processes.is_main():
            return
        ids = splits.read(ground.folder_of(self.split), "transfer")
        lm = ground.pool.load(model_of(self.fit, self.settings, self.task, ground))
        docs, seed = self.task.docs_of(ids), self.split.seed
        unsupervised.label_without_teacher(self.task, lm, docs, ids, self.search, seed, out).save(out / LABELS)


@dataclass(frozen=True, eq=False, kw_only=True)
class SearchPart(Labels):
    """The labels of the rows that were searched, or of those to which they were spread."""

    search: Search
    part: Literal["searched", "spread"]

    @property
    def inputs(self) -> tuple[Step, ...]:
        """The search."""
        return (self.search,)

    def recipe(self) -> dict[str, Any]:
        """Which part."""
        return {"part": self.part}

    def rows(self) -> int:
        """Those of the part."""
        rows, searched = super().rows(), self.search.search.rows
        return min(rows, searched) if self.part == "searched" else max(0, rows - searched)

    def build(self, ground: Ground, out: Path) -> None:
        """Take the part.

        Raises:
            UserError: every row was searched, and the others are asked for.
        """
        labels = LabelSet.load(ground.folder_of(self.search) / LABELS)
        part = self.search.search.parts(labels)[self.part]
        if not len(part):
            raise UserError(f"{self.whose}: all {len(labels)} transfer rows were searched; take fewer unsupervised.rows.")
        part.save(out / LABELS)
