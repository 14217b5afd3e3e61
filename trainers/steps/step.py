"""What a step is. Each holds what it stands on as values, and is pure until it is built.

`recipe` is hashed into its key, `rows` counts, and only `build` does work, in a folder that it is given. What `build` stands
on it names itself (functions and classes, followed by `w2s_tasks.code_scope`); what it finds in a registry, `code` names.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from trainers.fit.trainer import Code
from trainers.harness.pool import ModelPool
from trainers.harness.tasks import HarnessTask
from trainers.training.settings import ModelSettings


class Ground(Protocol):
    """What a step stands on while it is built."""

    pool: ModelPool
    """Loaded models."""

    def folder_of(self, step: Step) -> Path:
        """The folder of a step that is built already."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Step(ABC):
    """One stage to be."""

    kind: ClassVar[str]
    """What it is called in the store and in tables of seconds."""
    task: HarnessTask
    """The training task."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Its own among the steps of a layout; for people, nothing reads it."""

    @property
    @abstractmethod
    def title(self) -> str:
        """For progress lines."""

    @property
    def inputs(self) -> tuple[Step, ...]:
        """The steps that it stands on."""
        return ()

    @property
    def base(self) -> ModelSettings | None:
        """Whose model it loads from outside; None where its inputs say all."""
        return None

    @property
    def start(self) -> Step | None:
        """The step that prepared the model that it loads; None for one from outside."""
        return self.base.start if self.base else None

    @property
    def needs(self) -> tuple[Step, ...]:
        """All steps that have to be there: its inputs, and what prepared its model."""
        return self.inputs if self.start is None else (*self.inputs, self.start)

    @property
    def code(self) -> tuple[Code, ...]:
        """What `build` finds in registries."""
        return ()

    @abstractmethod
    def recipe(self) -> dict[str, Any]:
        """Its own part of all that its result depends on."""

    @abstractmethod
    def rows(self) -> int:
        """How many rows or documents pass through a model.

        Raises:
            MissingDataError: that hangs on data that is not here.
        """

    @abstractmethod
    def build(self, ground: Ground, out: Path) -> None:
        """Fill a folder, once the inputs are there."""
