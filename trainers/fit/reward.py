"""The reward trainer: a language model with LoRA and a head of one number, which scores each answer beside its question.

Over two answers the cross-entropy of their softmax is the logistic loss on the difference of their rewards: the model of
Bradley and Terry (1952), as reward models are trained (Ouyang et al. 2022, arXiv 2203.02155, eq. 1). Over more it is that of
Plackett and Luce for the best one, and its accuracy is best-of-n. The head is random before training, so there is no untuned
model to compare with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from trainers.fit.classifier import check, style_of
from trainers.fit.heads import View, fit_head, with_head
from trainers.fit.lora import Adapter, with_adapter
from trainers.fit.trainer import trainer
from trainers.harness.pool import ModelPool
from trainers.harness.tasks import HarnessTask
from trainers.labels.label_set import LabelSet
from w2s_tasks.models.reading import Reader
from w2s_tasks.models.ref import ModelRef


class Reward(Adapter):
    """A language model with LoRA adapters and a scalar head."""

    trainer: Literal["reward"] = "reward"
    """reward: a scalar head that scores each answer; logistic loss on the differences."""
    text: str | list[str] | None = None
    """The question that it reads: a column, a template with {{, two columns, or null for what the task names, else its
    prompt."""
    max_length: int | None = Field(default=None, ge=8)
    """Tokens of a question with an answer that it reads; null for its window."""


def untrained(settings: Reward, task: HarnessTask) -> ModelRef:
    """The base with a random head."""
    from w2s_tasks.models.classifier import CROSS_ENCODER

    view = View.of(task, settings.text, pairs=True)
    window = {} if settings.max_length is None else {"max_length": settings.max_length}
    head = {"pretrained": settings.model, "untrained_head": CROSS_ENCODER}
    return ModelRef("w2s-classifier", {**head, **settings.model_args, **view.arguments, **window})


@trainer(
    "reward",
    settings=Reward,
    untuned=untrained,
    style=style_of,
    check=check,
    model="w2s-classifier",
    roles=("strong", "weak"),
    answers_untuned=False,
)
def fit(
    task: HarnessTask,
    docs: Sequence[dict[str, Any]],
    labels: LabelSet,
    settings: Reward,
    out: Path,
    *,
    pool: ModelPool,
    method: str = "xent",
    loss_args: Mapping[str, Any] | None = None,
    seed: int = 0,
    title: str = "strong",
) -> ModelRef:
    """Train an adapter and a head on `settings.model`.

    Args:
        task: names what its choices stand for, or renders the prompt.
        docs: the documents of the label set, in its order.
        labels: what to learn, soft or hard.
        settings: model and hyperparameters.
        out: the folder to fill: ``adapter/`` (PEFT layout with the head, safetensors), ``curves.json``, ``training.json``.
        pool: unused.
        method: a loss of `trainers.training.losses`.
        loss_args: its settings.
        seed: of the head, the adapter, the row order and dropout.
        title: of the progress bar.

    Raises:
        UserError: a column that is not there, a model that can't be loaded.
    """
    ref, view = untrained(settings, task), View.of(task, settings.text, pairs=True)
    base, tokenizer = with_head(settings, ref.args, seed)
    reader = Reader(base, tokenizer, settings.model, settings.max_length)
    model = with_adapter(base, settings, "SEQ_CLS")
    training = {"method": method, "loss_args": loss_args, "seed": seed, "title": title}
    fit_head(model, reader, view, task, docs, labels, settings, out, **training)
    model.save_pretrained(str(out / "adapter"))
    return ModelRef(ref.model, {**ref.args, "peft": str(out / "adapter")})
