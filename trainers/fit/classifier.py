"""The classifier trainer: fine-tunes an encoder with a classification head on labels of a task.

Where all rows have the same choices its classes are the choices. Else it is a cross-encoder: it reads each choice beside the
question and gives it one number, and the softmax of a row's numbers is its answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from trainers.fit.heads import View, fit_head, with_head
from trainers.fit.trainer import trainer
from trainers.harness.pool import ModelPool
from trainers.harness.tasks import HarnessTask, PromptStyle
from trainers.labels.label_set import LabelSet
from trainers.training.settings import LocalSettings
from w2s_tasks.models.reading import Reader
from w2s_tasks.models.ref import ModelRef
from w2s_tasks.packing.linear import quicken


class Classifier(LocalSettings):
    """An encoder with a classification head."""

    trainer: Literal["classifier"] = "classifier"
    """classifier: an encoder with a classification head."""
    lr: float = Field(default=5e-5, gt=0)
    """Peak learning rate."""
    text: str | list[str] | None = None
    """What it reads: a column, a template with {{, two columns, or null for what the task names, else its prompt."""
    max_length: int | None = Field(default=None, ge=8)
    """Tokens a row that it reads; null for its window."""


def untrained(settings: Classifier, task: HarnessTask) -> ModelRef:
    """The supervisor before training: its head is random, so it is no baseline, only a check."""
    from w2s_tasks.models.classifier import CROSS_ENCODER

    view = View.of(task, settings.text)
    head = CROSS_ENCODER if view.pairs else len(task.classes)
    return ModelRef(
        "w2s-classifier", {"pretrained": settings.model, "untrained_head": head, **settings.model_args, **view.arguments}
    )


def style_of(settings: Classifier, num_fewshot: int | None = 0) -> PromptStyle:
    """The plain prompt, where the classifier reads it."""
    return PromptStyle(num_fewshot)


def check(settings: Classifier) -> None:
    """Refuse `trainer_args` that would not be taken."""
    from trainers.training.loop import check_arguments

    check_arguments(settings)


@trainer(
    "classifier",
    settings=Classifier,
    untuned=untrained,
    style=style_of,
    check=check,
    model="w2s-classifier",
    roles=("weak",),
    answers_untuned=False,
)
def fit(
    task: HarnessTask,
    docs: Sequence[dict[str, Any]],
    labels: LabelSet,
    settings: Classifier,
    out: Path,
    *,
    pool: ModelPool,
    method: str = "xent",
    loss_args: Mapping[str, Any] | None = None,
    seed: int = 0,
    title: str = "weak",
) -> ModelRef:
    """Fine-tune the encoder of `settings.model`.

    Args:
        task: renders the prompt where ``settings.text`` is null, and names the choices.
        docs: the documents of the label set, in its order.
        labels: what to learn, soft or hard.
        settings: model and hyperparameters.
        out: the folder to fill: ``model/`` (safetensors, with tokenizer) ``curves.json`` and ``training.json``.
        pool: unused.
        method: a loss of `trainers.training.losses`.
        loss_args: its settings.
        seed: of the head, the row order and dropout.
        title: of the progress bar.

    Raises:
        UserError: a column that is not there, a model that can't be loaded.
    """
    from w2s_tasks.models.classifier import CONFIG_KEY

    view = View.of(task, settings.text)
    told: dict[str, Any] = {CONFIG_KEY: view.arguments | settings.model_dump(include={"max_length"}, exclude_none=True)}
    if not view.pairs:
        told |= {"id2label": dict(enumerate(task.classes)), "label2id": {c: i for i, c in enumerate(task.classes)}}
    model, tokenizer = with_head(settings, untrained(settings, task).args, seed, **told)
    quicken(model)
    reader = Reader(model, tokenizer, settings.model, settings.max_length)
    training = {"method": method, "loss_args": loss_args, "seed": seed, "title": title}
    fit_head(model, reader, view, task, docs, labels, settings, out, **training)
    model.save_pretrained(out / "model")
    tokenizer.save_pretrained(out / "model")
    evaluated = {key: value for key, value in settings.model_args.items() if key != "revision"}
    return ModelRef("w2s-classifier", {"pretrained": str(out / "model"), **evaluated})
