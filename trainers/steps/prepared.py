"""The preparation of the strong model: the step that every arm starts from, where an experiment asks for one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from trainers.fit.language_model import LanguageModel
from trainers.fit.prepare import Prepare, prepared
from trainers.fit.trainer import Code, answering_code, training_style
from trainers.harness.tasks import HarnessTask
from trainers.steps.step import Ground, Step
from trainers.training.losses import LOSSES
from trainers.training.settings import ModelSettings


@dataclass(frozen=True, eq=False, kw_only=True)
class Prepared(Step):
    """The strong model after it has learnt tasks of its own."""

    kind: ClassVar[str] = "fit"
    settings: LanguageModel
    """The strong model's, without a preparation."""
    prepare: Prepare
    tasks: tuple[HarnessTask, ...]

    @property
    def name(self) -> str:
        """There is one."""
        return "fit/prepared"

    @property
    def title(self) -> str:
        """By its tasks."""
        return f"prepare the strong model on {', '.join(task.name for task in self.tasks)}"

    @property
    def base(self) -> ModelSettings | None:
        """The model as it comes."""
        return self.settings

    @property
    def code(self) -> tuple[Code, ...]:
        """The loss, and what runs the base."""
        return LOSSES["xent"], *answering_code(self.settings, tuned=False)

    def recipe(self) -> dict[str, Any]:
        """The tasks' rows and prompts, and the settings."""
        style = training_style(self.settings)
        shown = {task.name: [task.train_hash, task.renderer_hash(style)] for task in self.tasks}
        return {"prepare": self.prepare.model_dump(), "tasks": shown, "settings": self.settings.recipe()}

    def rows(self) -> int:
        """The rows that it learns."""
        return sum(min(self.prepare.rows, len(task.train_docs)) for task in self.tasks)

    def build(self, ground: Ground, out: Path) -> None:
        """Train and merge."""
        prepared(self.tasks, self.settings, self.prepare, out, ground.pool)
