"""The classifier trainer: fine-tunes an encoder with a classification head on labels of a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field

from trainers.fit.trainer import trainer
from trainers.harness.pool import ModelPool
from trainers.harness.tasks import HarnessTask, PromptStyle
from trainers.labels.label_set import LabelSet
from trainers.training.settings import LocalSettings
from trainers.training.told import Told
from w2s_tasks.errors import UserError
from w2s_tasks.models.loading import NO_CODE, base_config, base_tokenizer, check_tokenizer, loading
from w2s_tasks.models.reading import Reader
from w2s_tasks.models.ref import ModelRef, resolve
from w2s_tasks.packing.linear import quicken
from w2s_tasks.scoring import system_place

if TYPE_CHECKING:
    from trainers.training.choice_trainer import Row

ROWS_TOGETHER = 8
"""On a CPU a step's rows run in length-sorted parts of so many: padding costs more there than another forward pass."""


class Classifier(LocalSettings):
    """An encoder with a classification head."""

    trainer: Literal["classifier"] = "classifier"
    """classifier: an encoder with a classification head."""
    lr: float = Field(default=5e-5, gt=0)
    """Peak learning rate."""
    text: str | list[str] | None = None
    """What it reads: a column, a template with {{, two columns, or null for the task's prompt."""
    max_length: int | None = Field(default=None, ge=8)
    """Tokens a row that it reads; null for its window."""


def untrained(settings: Classifier, choices: Sequence[str]) -> ModelRef:
    """The supervisor before training: its head is random, so it is no baseline, only a check."""
    args = {"pretrained": settings.model, "untrained_head": len(choices), **settings.model_args}
    return ModelRef("w2s-classifier", args | ({"text": settings.text} if settings.text else {}))


def style_of(settings: Classifier, num_fewshot: int | None = 0) -> PromptStyle:
    """The plain prompt, where the classifier reads it."""
    return PromptStyle(num_fewshot)


def check(settings: Classifier) -> None:
    """Refuse `trainer_args` that would not be taken."""
    from trainers.training.loop import check_arguments

    check_arguments(settings)


def _constant_choices(task: HarnessTask, docs: Sequence[dict[str, Any]]) -> list[str]:
    choices = list(task.task.doc_to_choice(docs[0]))
    for i, doc in enumerate(docs):
        if list(task.task.doc_to_choice(doc)) != choices:
            raise UserError(
                f"the task '{task.name}' has other choices for row {i} than for row 0: a classifier needs the same ones "
                "for every row. Use weak.trainer: lora."
            )
    return choices


def logits_by_length(
    model: torch.nn.Module, columns: dict[str, torch.Tensor], rows_together: int, *, padded: bool = True
) -> torch.Tensor:
    """Class logits of right-padded rows, run in length-sorted parts without the padding that a part does not need.

    Args:
        model: a sequence classifier.
        columns: input_ids, attention_mask and the like, each [rows, tokens].
        rows_together: rows a part.
        padded: whether a part may hold rows of several lengths.

    Returns:
        Shape [rows, classes], in the order of the rows.
    """
    lengths = columns["attention_mask"].sum(dim=1)
    order = lengths.argsort(descending=True)
    runs = [order] if padded else order.split(torch.unique_consecutive(lengths[order], return_counts=True)[1].tolist())
    parts = [
        model(**{k: v[rows, : int(lengths[rows[0]])] for k, v in columns.items()}).logits
        for run in runs
        for rows in run.split(rows_together)
    ]
    return torch.cat(parts)[order.argsort()]


@trainer(
    "classifier",
    settings=Classifier,
    untuned=untrained,
    style=style_of,
    check=check,
    model="w2s-classifier",
    roles=("weak",),
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
        UserError: choices that differ between rows, a column that is not there, a model that can't be loaded.
    """
    from transformers import AutoModelForSequenceClassification, set_seed

    from trainers.training.loop import fit_choices
    from w2s_tasks.models.classifier import CONFIG_KEY, document_text, reads_prompt
    from w2s_tasks.models.packed_hf import default_device

    choices = _constant_choices(task, docs)
    path, args = resolve(settings.model), untrained(settings, choices).args
    set_seed(seed)
    check_tokenizer(path)
    config, tokenizer = base_config(args), base_tokenizer(args)
    config.num_labels = len(choices)
    config.id2label, config.label2id = dict(enumerate(choices)), {c: i for i, c in enumerate(choices)}
    setattr(config, CONFIG_KEY, settings.model_dump(include={"text", "max_length"}, exclude_none=True))
    revision = args.get("revision", "main")
    with loading(settings.model):
        model = AutoModelForSequenceClassification.from_pretrained(
            path, config=config, use_safetensors=True, dtype=torch.float32, revision=revision, **NO_CODE
        )
    model.to(default_device())
    quicken(model)
    prompts = task.prompts(docs, PromptStyle()) if reads_prompt(settings.text) else [""] * len(docs)
    texts = [document_text(settings.text, doc, prompt) for doc, prompt in zip(docs, prompts, strict=True)]
    reader = Reader(model, tokenizer, settings.model, settings.max_length)
    encoded = reader.encode(texts)
    padded = reader.pads_exactly(encoded)
    rows: list[Row] = [
        {**row, "targets": target, "gold": task.gold(doc)}
        for row, target, doc in zip(encoded, labels.soft.tolist(), docs, strict=True)
    ]

    def collate(batch: Sequence[Row]) -> dict[str, Any]:
        return {**reader.pad_together(batch), "targets": torch.tensor([row["targets"] for row in batch])}

    def choice_logprobs(model: torch.nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        rows = len(batch["input_ids"])
        together = min(rows, ROWS_TOGETHER) if batch["input_ids"].device.type == "cpu" else rows
        return logits_by_length(model, batch, together, padded=padded).float().log_softmax(-1)

    warnings = fit_choices(
        model,
        rows,
        collate=collate,
        choice_logprobs=choice_logprobs,
        settings=settings,
        method=method,
        loss_args=loss_args,
        out=out,
        seed=seed,
        title=title,
    )
    in_prompt = system_place.PLAIN if reads_prompt(settings.text) and task.has_system(PromptStyle()) else None
    Told(in_prompt, tuple(warnings)).save(out)
    model.save_pretrained(out / "model")
    tokenizer.save_pretrained(out / "model")
    evaluated = {key: value for key, value in settings.model_args.items() if key != "revision"}
    return ModelRef("w2s-classifier", {"pretrained": str(out / "model"), **evaluated})
