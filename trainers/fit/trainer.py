"""What a trainer is: one file in this folder, whose function `fit` registers it with all that the rest has to know of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from lm_eval.api.registry import get_model

from trainers.harness.pool import ModelPool
from trainers.harness.tasks import HarnessTask, PromptStyle
from trainers.registry import Registry
from trainers.section import changed
from trainers.training.losses import LOSSES
from trainers.training.settings import ModelSettings
from w2s_tasks import register
from w2s_tasks.models.ref import ModelRef

Role = Literal["weak", "strong"]
Code = Callable[..., Any]
"""A function or class that a step's result stands on."""


@dataclass(frozen=True)
class Trainer:
    """A way to train a model."""

    settings: type[ModelSettings]
    """Its section of an experiment file, and of `w2s finetune --set`."""
    fit: Callable[..., ModelRef]
    """Task, documents, labels, settings and a folder to the trained model; see `trainers.fit.lora.fit`."""
    untuned: Callable[..., ModelRef]
    """Settings and the task to the model before training."""
    style: Callable[..., PromptStyle]
    """Settings and a number of shots to how it prompts, in training and when it labels."""
    model: str
    """What lm_eval calls the model that it trains."""
    roles: tuple[Role, ...]
    """The sections of an experiment that may have it."""
    losses: bool = True
    """Whether it trains by one of `trainers.training.losses.LOSSES`; a service may have a loss of its own."""
    paid: bool = False
    """Whether a service trains it and is paid by the token."""
    untuned_model: str | None = None
    """What lm_eval calls the model before training, where it is called otherwise."""
    keeps: bool = False
    """Whether it trains an adapter: one can be kept part of the way through (`evaluate.checkpoints`) and put on a server."""
    check: Callable[..., None] | None = None
    """Refuses settings whose model it can't train, before others are trained."""
    answers_untuned: bool = True
    """Whether its model can answer before it is trained: one with a random head can't."""
    texts: bool = False
    """Whether it can learn texts (`trainers.labels.text_labels`), where its settings' `learns` is language_model."""
    in_pool: bool = False
    """Whether it trains the loaded untuned model, or what is put on it."""

    @property
    def base_model(self) -> str:
        """What lm_eval calls the model before training."""
        return self.untuned_model or self.model


TRAINERS: Registry[Trainer] = Registry("trainer")


def trainer(
    name: str, *, like: str | None = None, **entry: Any
) -> Callable[[Callable[..., ModelRef]], Callable[..., ModelRef]]:
    """Register a trainer by its function `fit`.

    Args:
        name: its own.
        like: a trainer that it is a variant of, whose entry it takes where it says nothing else.
        **entry: fields of `Trainer`.
    """
    entry = {**(vars(TRAINERS[like]) if like else {}), **entry}
    entry.pop("fit", None)

    def register_fit(fit: Callable[..., ModelRef]) -> Callable[..., ModelRef]:
        TRAINERS.add(name, Trainer(fit=fit, **entry), fit)
        return fit

    return register_fit


def training_style(settings: ModelSettings, num_fewshot: int | None = 0) -> PromptStyle:
    """How a trainer of these settings prompts, in training and when it labels."""
    return TRAINERS[settings.trainer].style(settings, num_fewshot)


def untuned(settings: ModelSettings, task: HarnessTask) -> ModelRef:
    """The model of these settings before training, as it answers a task."""
    return TRAINERS[settings.trainer].untuned(settings, task)


def named(role: Role, has: Callable[[Trainer], bool]) -> str:
    """The trainers of a role that have something, as an error names them: full, lora or probe."""
    names = [name for name, entry in TRAINERS.items() if role in entry.roles and has(entry)]
    return " or ".join([*([", ".join(names[:-1])] if names[1:] else []), *names[-1:]])


def answering_code(settings: ModelSettings, *, tuned: bool = True) -> tuple[Code, ...]:
    """What loads and runs a model of these settings; of lm_eval's own models the renderer's hash has the version."""
    entry = TRAINERS[settings.trainer]
    return model_code(entry.model if tuned else entry.base_model)


def model_code(name: str) -> tuple[Code, ...]:
    """What loads and runs a model of lm_eval's registry."""
    register()
    return ModelPool, get_model(name)


def training_code(settings: ModelSettings, loss: str) -> tuple[Code, ...]:
    """What trains a model of these settings by a loss."""
    entry = TRAINERS[settings.trainer]
    by = (LOSSES[loss],) if entry.losses else ()
    return entry.fit, *by, *(answering_code(settings, tuned=False) if entry.in_pool else ())


def variant(settings: ModelSettings, changes: dict[str, Any], where: str) -> ModelSettings:
    """A model's section with some keys changed; of another trainer's section what both have.

    Raises:
        ValueError: an unknown key or a value that does not fit; `where` names the place.
    """
    other = TRAINERS.get(changes.get("trainer", settings.trainer))
    if other is None or isinstance(settings, other.settings):
        found = changed(settings, changes, where)
        return found.starting(settings.start) if found.model == settings.model else found
    common = settings.model_fields_set & other.settings.model_fields.keys() - {"trainer", "lr"}
    start = other.settings.model_validate({name: getattr(settings, name) for name in common})
    return changed(start, changes, where)
