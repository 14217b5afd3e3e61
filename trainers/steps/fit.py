"""The training of one model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from trainers.fit.prepare import MODEL
from trainers.fit.trainer import TRAINERS, Code, answering_code, training_code, training_style, untuned
from trainers.harness.tasks import HarnessTask
from trainers.labels import splits
from trainers.labels.label_set import LABELS
from trainers.steps.arm import Arm
from trainers.steps.source import Source, read_labels
from trainers.steps.step import Ground, Step
from trainers.training.settings import ModelSettings, Optimised
from w2s_tasks.models.ref import ModelRef


@dataclass(frozen=True, eq=False, kw_only=True)
class Fit(Step):
    """The training of one model."""

    kind: ClassVar[str] = "fit"
    whose: str
    """Whose model it is: an arm's label, or that of a model in between."""
    settings: ModelSettings
    source: Source
    seed: int
    """Of initialisation, order and label operations."""
    loss: str = "xent"
    loss_args: Mapping[str, Any] = field(default_factory=dict)
    arm: Arm | None = None
    """None for a model in between, which is not evaluated."""
    keep: tuple[float, ...] = ()
    """Shares of its steps at which the model is kept too."""
    equal_steps: bool = False
    """Whether it takes as many optimizer steps as a training on all rows of the transfer half."""

    @property
    def name(self) -> str:
        """By its model and the experiment's seed."""
        return f"fit/{self.model}"

    @property
    def model(self) -> str:
        """Whose model, with the experiment's seed."""
        return f"{self.whose}, seed {self.source.split.seed}"

    @property
    def title(self) -> str:
        """By its model."""
        return f"train {self.model}"

    @property
    def inputs(self) -> tuple[Step, ...]:
        """Where its labels come from."""
        return self.source.inputs

    @property
    def base(self) -> ModelSettings | None:
        """The model that is trained."""
        return self.settings

    @property
    def code(self) -> tuple[Code, ...]:
        """The trainer, the loss, the label operations."""
        return *training_code(self.settings, self.loss), *self.source.code

    def recipe(self) -> dict[str, Any]:
        """Labels, loss, settings and prompts."""
        return {
            **self.source.recipe(),
            "loss": [self.loss, self.loss_args],
            "seed": self.seed,
            "settings": self.settings.recipe(),
            "renderer": self.task.renderer_hash(training_style(self.settings)),
            "data": self.task.train_hash,
            "classes": bool(self.task.classes),
            **({"keep": self.keep} if self.keep else {}),
            **({"equal_steps": True} if self.equal_steps else {}),
        }

    def rows(self) -> int:
        """The rows that it learns."""
        return self.source.rows()

    def build(self, ground: Ground, out: Path) -> None:
        """Write the labels as they are learnt, and what the trainer leaves."""
        labels = read_labels(self.source, ground, self.seed)
        labels.save(out / LABELS)
        ref = TRAINERS[self.settings.trainer].fit(
            self.task,
            self.task.docs_of(labels.row_id),
            labels,
            self._optimised(started(self.settings, ground), len(labels), ground),
            out,
            pool=ground.pool,
            method=self.loss,
            loss_args=self.loss_args,
            seed=self.seed,
            title=f"train {self.model}",
            **({"keep": self.keep} if self.keep else {}),
        )
        ref.save(out)

    def _optimised(self, settings: ModelSettings, rows: int, ground: Ground) -> ModelSettings:
        """The settings, with the epochs that make the steps equal where they are to be."""
        if not self.equal_steps or not isinstance(settings, Optimised):
            return settings
        every = len(splits.read(ground.folder_of(self.source.split), "transfer"))
        return settings.of_steps(settings.steps(every), rows)


@dataclass(frozen=True, eq=False, kw_only=True)
class Asking(Step):
    """A step in which one model answers: a trained one, or the untuned one of its section."""

    settings: ModelSettings
    """The section of its model."""
    fit: Fit | None = None
    """None for the untuned model."""

    @property
    def inputs(self) -> tuple[Step, ...]:
        """The training."""
        return (self.fit,) if self.fit else ()

    @property
    def base(self) -> ModelSettings | None:
        """The untuned model."""
        return None if self.fit else self.settings

    @property
    def start(self) -> Step | None:
        """Of a trained one too: its adapter stands on that."""
        return self.settings.start

    @property
    def code(self) -> tuple[Code, ...]:
        """What answers."""
        return answering_code(self.settings, tuned=self.fit is not None)


def model_of(fit: Fit | None, settings: ModelSettings, task: HarnessTask, ground: Ground) -> ModelRef:
    """The model that a step trained, once it is built; without one the untuned model of `settings`."""
    if fit is None:
        return untuned(started(settings, ground), task)
    ref = ModelRef.load(ground.folder_of(fit))
    if settings.start is None or "peft" not in ref.args:
        return ref
    # The folder that it was trained from may be elsewhere on this machine.
    return replace(ref, args={**ref.args, "pretrained": started(settings, ground).model})


def started(settings: ModelSettings, ground: Ground) -> ModelSettings:
    """Settings whose `model` is the one that their first step prepared, once that is built."""
    if settings.start is None:
        return settings
    return settings.model_copy(update={"model": str(ground.folder_of(settings.start) / MODEL)})
