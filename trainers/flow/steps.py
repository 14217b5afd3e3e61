"""The nouns of an experiment's flow: arms, steps, and where a model's labels come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trainers.config.experiment import AnyTrainable
from trainers.labels.arms import Kind, kind_of


@dataclass(frozen=True)
class Arm:
    """One model of the report: how it came about, under which method and seed (None where nothing was trained)."""

    name: str
    method: str | None = None
    seed: int | None = None
    at: float | None = None
    """The share of its training's steps after which it was kept (`evaluate.checkpoints`); None for the end."""

    @property
    def kind(self) -> Kind:
        """What this arm is."""
        return kind_of(self.name)

    @property
    def title(self) -> str:
        """For progress lines and figures."""
        parts = [self.name]
        parts += [self.method] if self.method and self.method != "xent" else []
        parts += [f"seed {self.seed}"] if self.seed is not None else []
        parts += [f"at {self.at}"] if self.at is not None else []
        return ", ".join(parts)


Code = Callable[..., Any]
"""A function or class that a step's result stands on."""


@dataclass(frozen=True)
class Step:
    """One stage to be: its name in the flow, what it stands on, its settings, and how to build it."""

    name: str
    kind: str
    title: str
    settings: dict[str, Any]
    inputs: tuple[str, ...]
    build: Callable[[Path], None] = field(repr=False)
    rows: Callable[[], int] = field(repr=False)
    arm: Arm | None = None
    base: AnyTrainable | None = None
    """Whose model this step loads from outside: a section of the config, or None where its inputs say all."""
    asked: dict[str, int] | None = None
    """Of an evaluation: how many documents of each task it asks."""
    code: tuple[Code, ...] = ()
    """What `build` runs beside what it names: entries of registries, classes of models."""


Op = tuple[str, dict[str, Any]]
"""A label operation and its settings."""


@dataclass(frozen=True)
class Source:
    """Labels to train on: those of a labels stage, or the gold labels of a side of the split; then operations on them."""

    stage: str | None = None
    side: str = "transfer"
    ops: tuple[Op, ...] = ()
    share: float = 1.0
    """About how many of the side's rows are left, for a plan."""

    def then(self, name: str, settings: dict[str, Any] | None = None) -> Source:
        """The same with one more operation."""
        settings = settings or {}
        return replace(self, ops=(*self.ops, (name, settings)), share=self.share * settings.get("keep", 1.0))
