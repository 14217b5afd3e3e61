"""The trainers, one entry each: a module with `fit`, and what the rest has to know of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lm_eval.api.registry import get_model

from trainers.config.experiment import AnyTrainable, OpenAIStrong, Strong, Weak
from trainers.fit import classifier as weak
from trainers.fit import lora
from trainers.fit import openai as openai_ft
from trainers.flow.steps import Code
from trainers.harness.pool import ModelPool
from trainers.harness.tasks import PromptStyle
from trainers.registry import Registry
from trainers.section import Section
from trainers.training.losses import LOSSES
from w2s_tasks import register
from w2s_tasks.models.ref import ModelRef


@dataclass(frozen=True)
class Trainer:
    """A way to train a model."""

    settings: type[Section]
    """The section of `w2s finetune --set`."""
    fit: Callable[..., ModelRef]
    """Task, documents, labels, settings and a folder to the trained model; see `trainers.fit.lora.fit`."""
    untuned: Callable[..., ModelRef]
    """Settings and the task's choices to the model before training."""
    style: Callable[..., PromptStyle]
    """Settings and a number of shots to how it prompts, in training and when it labels."""
    model: str
    """What lm_eval calls the model that it trains."""
    local: bool = True
    """Whether it trains here, by one of `trainers.training.losses.LOSSES`."""
    in_pool: bool = False
    """Whether it trains on the loaded untuned model."""
    check: Callable[..., None] | None = None
    """Refuses settings whose model it can't train, before others are trained."""


TRAINERS: Registry[Trainer] = Registry(
    classifier=Trainer(Weak, weak.fit, weak.untrained, weak.style_of, "w2s-classifier"),
    lora=Trainer(Strong, lora.fit, lora.base_ref, lora.style_of, "w2s-hf", in_pool=True, check=lora.check_base),
    openai=Trainer(OpenAIStrong, openai_ft.fit, openai_ft.base_ref, openai_ft.style_of, "w2s-chat", local=False),
)


def training_style(settings: AnyTrainable, num_fewshot: int | None = 0) -> PromptStyle:
    """How a trainer of these settings prompts, in training and when it labels."""
    return TRAINERS[settings.trainer].style(settings, num_fewshot)


def untuned(settings: AnyTrainable, choices: Sequence[str]) -> ModelRef:
    """The model of these settings before training."""
    return TRAINERS[settings.trainer].untuned(settings, choices)


def answering_code(settings: AnyTrainable) -> tuple[Code, ...]:
    """What loads and runs a model of these settings; of lm_eval's own models the renderer's hash has the version."""
    register()
    return ModelPool, get_model(TRAINERS[settings.trainer].model)


def training_code(settings: AnyTrainable, loss: str) -> tuple[Code, ...]:
    """What trains a model of these settings by a loss."""
    trainer = TRAINERS[settings.trainer]
    by = (LOSSES[loss],) if trainer.local else ()
    return trainer.fit, *by, *(answering_code(settings) if trainer.in_pool else ())
