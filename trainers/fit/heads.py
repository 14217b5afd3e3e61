"""What trainers of a classification head share: what it reads of documents, rows and their scores, the training."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainers.harness.tasks import HarnessTask, PromptStyle
from trainers.labels.label_set import LabelSet
from trainers.training.rows import collated, label_columns, normalised
from trainers.training.settings import LocalSettings
from trainers.training.told import Told
from w2s_tasks.models.loading import NO_CODE, base_config, base_tokenizer, check_tokenizer, loading
from w2s_tasks.models.reading import Reader, Tokens
from w2s_tasks.models.ref import resolve
from w2s_tasks.models.texts import Text, TextSpec, answer_texts, document_text, reads_prompt
from w2s_tasks.packing.budget import part_tokens
from w2s_tasks.scoring import system_place

ROWS_TOGETHER = 8
"""On a CPU a step's texts run in length-sorted parts of so many: padding costs more there than another forward pass."""


@dataclass(frozen=True)
class View:
    """What a head reads of a document: one text, whose classes are the choices, or each answer beside the question."""

    pairs: bool
    """Whether it reads each answer: the head gives one number, and the softmax over a row's choices is its answer."""
    text: TextSpec = None
    """Of the document, or of the question; None for the prompt."""
    answers: tuple[str, ...] | None = None
    """For each choice the column of its text; None for the choice itself."""

    @classmethod
    def of(cls, task: HarnessTask, text: TextSpec, *, pairs: bool = False) -> View:
        """One text where all rows have the same choices, else pairs; a task may name what its choices stand for.

        That is ``metadata: {candidates: {question: COLUMN, answers: [COLUMN, ...]}}``: choices called A and B are told
        apart by the texts that they name.

        Args:
            task: with its metadata.
            text: what the user asks to be read for the question, before what the task names.
            pairs: whatever the task.
        """
        candidates = (task.task.config.metadata or {}).get("candidates")
        if candidates:
            return cls(True, candidates["question"] if text is None else text, tuple(candidates["answers"]))
        return cls(pairs or not task.classes, text)

    @property
    def arguments(self) -> dict[str, Any]:
        """The same as arguments of `w2s-classifier`."""
        answers = None if self.answers is None else list(self.answers)
        return {key: value for key, value in (("text", self.text), ("answers", answers)) if value is not None}

    def texts(self, task: HarnessTask, docs: Sequence[Mapping[str, Any]], reader: Reader) -> list[list[Text]]:
        """For each document the texts that are scored: one, or one a choice."""
        questions = own_texts(task, docs, self.text, PromptStyle())
        if not self.pairs:
            return [[question] for question in questions]
        return [
            reader.pairs(question, answer_texts(self.answers, doc, task.choices_of(doc)))
            for question, doc in zip(questions, docs, strict=True)
        ]

    def system_place(self, task: HarnessTask) -> str | None:
        """Where the task's description stands in what is read; None where it is not."""
        return system_place.PLAIN if reads_prompt(self.text) and task.has_system(PromptStyle()) else None


def own_texts(task: HarnessTask, docs: Sequence[Mapping[str, Any]], text: TextSpec, style: PromptStyle) -> list[Text]:
    """What a head reads of documents, their answers apart."""
    prompts = task.prompts(docs, style) if reads_prompt(text) else [""] * len(docs)
    return [document_text(text, doc, prompt) for doc, prompt in zip(docs, prompts, strict=True)]


def with_head(settings: LocalSettings, args: Mapping[str, Any], seed: int, **more: Any) -> tuple[Any, Any]:
    """A pretrained model with a random head, in float32 on the device that trains, and its tokenizer.

    Args:
        settings: whose model.
        args: of the untuned model: `untrained_head` is the number of classes.
        seed: of the head.
        **more: further entries of the model's configuration.

    Raises:
        UserError: a model that can't be loaded.
    """
    from transformers import AutoModelForSequenceClassification, set_seed

    from w2s_tasks.models.packed_hf import default_device

    path = resolve(settings.model)
    set_seed(seed)
    check_tokenizer(path)
    config, tokenizer = base_config(args), base_tokenizer(args)
    for name, value in {"num_labels": args["untrained_head"], **more}.items():
        setattr(config, name, value)
    revision = args.get("revision", "main")
    with loading(settings.model):
        model = AutoModelForSequenceClassification.from_pretrained(
            path, config=config, use_safetensors=True, dtype=torch.float32, revision=revision, **NO_CODE
        )
    return model.to(default_device()), tokenizer


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


def parts_of(model: torch.nn.Module, texts: Sequence[Sequence[Tokens]]) -> list[list[int]]:
    """A step's rows in parts that are run, and run back, one after the other, the longest first: less memory, same gradient.

    Args:
        model: the model that is trained.
        texts: of every row those of its choices, which stay together.
    """
    most = part_tokens(model, next(model.parameters()).device)
    tokens = [len(row) * max(len(text["input_ids"]) for text in row) for row in texts]
    parts: list[list[int]] = []
    for i in sorted(range(len(texts)), key=lambda i: -tokens[i]):
        if not parts or sum(tokens[j] for j in parts[-1]) + tokens[i] > most:
            parts.append([])
        parts[-1].append(i)
    return parts


def fit_head(
    model: Any,
    reader: Reader,
    view: View,
    task: HarnessTask,
    docs: Sequence[dict[str, Any]],
    labels: LabelSet,
    settings: LocalSettings,
    out: Path,
    **training: Any,
) -> None:
    """Train a model with a head in place; leaves ``curves.json`` and ``training.json`` in `out`.

    Args:
        model: a sequence classifier, with an adapter or without.
        reader: its tokenizer and window.
        view: what it reads.
        task: whose documents.
        docs: of the label set, in its order.
        labels: what to learn.
        settings: epochs, batch size and the rest.
        out: the stage's work folder.
        **training: method, loss_args, seed, title, keep: see `trainers.training.loop.fit_choices`.

    Raises:
        UserError: a column that is not there, or what the training ends with.
    """
    from trainers.training.loop import fit_choices

    texts = view.texts(task, docs, reader)
    encoded = iter(reader.encode([text for row in texts for text in row]))
    columns = label_columns(labels, [task.gold(doc) for doc in docs])
    rows = [{"texts": [next(encoded) for _ in own], **row} for own, row in zip(texts, columns, strict=True)]
    padded = reader.pads_exactly([text for row in rows for text in row["texts"]])

    def choice_logprobs(model: torch.nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        flat = [text for row in batch["texts"] for text in row]
        device = next(model.parameters()).device
        longest = max(len(text["input_ids"]) for text in flat)
        fitting = ROWS_TOGETHER if device.type == "cpu" else max(1, part_tokens(model, device) // longest)
        together = min(len(flat), fitting)
        tensors = {key: value.to(device) for key, value in reader.pad_together(flat).items()}
        logits = logits_by_length(model, tensors, together, padded=padded).float()
        if not view.pairs:
            return logits.log_softmax(-1)
        return normalised(logits.squeeze(-1), batch["learnt"], [len(row) for row in batch["texts"]])

    def cut(model: torch.nn.Module, batch: dict[str, Any]) -> list[list[int]]:
        return parts_of(model, batch["texts"])

    warnings = fit_choices(
        model,
        rows,
        collate=functools.partial(collated, "texts"),
        choice_logprobs=choice_logprobs,
        settings=settings,
        out=out,
        cut=cut if view.pairs else None,
        **training,
    )
    Told(view.system_place(task), tuple(warnings)).save(out)
