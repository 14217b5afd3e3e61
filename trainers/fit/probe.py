"""The probe trainer: a linear head on the hidden states of a frozen model.

What it finds stood in the model before. As the linear probes of Burns et al. 2023 (arXiv 2312.09390; `linear_probe` in
weak_to_strong/model.py of openai/weak-to-strong) it reads the state of the prompt's last token, and the head begins as 0.
It is trained by this suite's own losses and loop, on states that are computed once and standardised. Where rows have choices
of their own it gives each answer behind its question one number, and the softmax of a row's numbers is its answer.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from trainers.fit.classifier import style_of
from trainers.fit.heads import View
from trainers.fit.language_model import base_ref
from trainers.fit.trainer import trainer
from trainers.harness.pool import ModelPool
from trainers.harness.tasks import HarnessTask
from trainers.labels.label_set import LabelSet
from trainers.store import processes
from trainers.store.stages import CHECKPOINTS
from trainers.training.rows import Row, collated, label_columns, normalised
from trainers.training.settings import LocalSettings
from trainers.training.told import Told
from w2s_tasks.models.ref import ModelRef
from w2s_tasks.models.texts import Pooling

FEATURES = "features.safetensors"
"""The states of all texts, among the checkpoints: they outlive a kill, and go when the head is trained."""
OF_BODY = ("gradient_checkpointing", "gradient_checkpointing_kwargs", "activation_checkpointing", "bf16", "fp16")


class Probe(LocalSettings):
    """A linear head on the hidden states of a frozen model."""

    trainer: Literal["probe"] = "probe"
    """probe: a linear head on the hidden states of a frozen model."""
    lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate."""
    epochs: float = Field(default=10, gt=0)
    """Passes over the labels; the model itself runs over them once."""
    layer: int = -1
    """Behind which layer: 0 for the embeddings, 1 and so on from below; -1 for the last, with the model's final norm."""
    pooling: Pooling | None = None
    """The state of the last token, or the mean over the text's tokens; null for last, in encoders for the mean."""
    text: str | list[str] | None = None
    """What it reads: a column, a template with {{, two columns, or null for what the task names, else its prompt."""
    max_length: int | None = Field(default=None, ge=8)
    """Tokens a text that it reads; null for its window."""

    @field_validator("trainer_args")
    @classmethod
    def _of_a_head(cls, value: dict[str, Any]) -> dict[str, Any]:
        if taken := next((name for name in OF_BODY if name in value), None):
            raise ValueError(f"'{taken}' is for a model that is trained; here it is frozen, and one linear layer is trained")
        return value


def _answering(settings: Probe, view: View, head: Path) -> ModelRef:
    """The model under the head."""
    window = {} if settings.max_length is None else {"max_length": settings.max_length}
    args = {"pretrained": settings.model, "head": str(head), **settings.model_args, **view.arguments, **window}
    return ModelRef("w2s-classifier", args)


def check(settings: Probe) -> None:
    """Refuse, by its configuration alone, a model that can't be probed so, before others are trained.

    Raises:
        UserError: no such layer; `model_args` that the model under a head does not take; `trainer_args` likewise.
    """
    from trainers.training.loop import check_arguments
    from w2s_tasks.models.loading import base_config
    from w2s_tasks.models.pooled import check_layer
    from w2s_tasks.plugin import eval_arguments

    check_arguments(settings)
    ref = _answering(settings, View(False), Path("head"))
    eval_arguments.check_arguments(ref.model, ref.args, f"model_args with trainer: {settings.trainer}")
    check_layer(base_config(ref.args), settings.layer, settings.model)


def _states(reader: Any, texts: Sequence[Any], folder: Path) -> torch.Tensor:
    """The states of texts, [texts, width]; those of a run that was killed are taken up."""
    from w2s_tasks.models.pooled import pooled_states

    path = folder / FEATURES
    if processes.is_main() and not _whole(path):
        found = torch.from_numpy(pooled_states(reader, reader.encode(texts) if texts else []))
        folder.mkdir(exist_ok=True)
        unfinished = folder / f".{FEATURES}"
        save_file({"states": found}, unfinished)
        unfinished.replace(path)
    processes.wait()
    return load_file(path)["states"]


def _whole(path: Path) -> bool:
    try:
        return path.is_file() and "states" in load_file(path)
    except (SafetensorError, OSError):
        return False


@trainer(
    "probe",
    settings=Probe,
    untuned=base_ref,
    style=style_of,
    check=check,
    model="w2s-classifier",
    untuned_model="w2s-hf",
    roles=("strong", "weak"),
)
def fit(
    task: HarnessTask,
    docs: Sequence[dict[str, Any]],
    labels: LabelSet,
    settings: Probe,
    out: Path,
    *,
    pool: ModelPool,
    method: str = "xent",
    loss_args: Mapping[str, Any] | None = None,
    seed: int = 0,
    title: str = "strong",
) -> ModelRef:
    """Train a head on the states of `settings.model`.

    Args:
        task: renders the prompt where ``settings.text`` is null, and names the choices.
        docs: the documents of the label set, in its order.
        labels: what to learn, soft or hard.
        settings: model and hyperparameters.
        out: the folder to fill: ``head/`` (safetensors and ``head.json``), ``curves.json``, ``training.json``.
        pool: unused.
        method: a loss of `trainers.training.losses`.
        loss_args: its settings.
        seed: of the rows that are held back, and of the row order.
        title: of the progress bar.

    Raises:
        UserError: a column that is not there, a model that can't be loaded, or what the training ends with.
    """
    from transformers import set_seed

    from w2s_tasks.models.pooled import Head, StateReader, load_pooled
    from w2s_tasks.models.pooled import Probe as Saved

    view = View.of(task, settings.text)
    pooled, tokenizer = load_pooled(base_ref(settings).args, settings.layer, settings.pooling)
    reader = StateReader(pooled, tokenizer, settings.model, settings.max_length)
    texts = view.texts(task, docs, reader)
    states = _states(reader, [text for row in texts for text in row], out / CHECKPOINTS)
    head = Head(states.shape[1], 1 if view.pairs else len(task.classes))
    head.standardise(states)
    set_seed(seed)
    columns = label_columns(labels, [task.gold(doc) for doc in docs])
    training = {"method": method, "loss_args": loss_args, "seed": seed, "title": title}
    warnings = _train(head, states, [len(row) for row in texts], columns, settings, out, **training)
    Saved(settings.layer, pooled.pooling, () if view.pairs else tuple(task.classes)).save(head, out / "head")
    Told(view.system_place(task), tuple(warnings)).save(out)
    return _answering(settings, view, out / "head")


def _train(
    head: torch.nn.Module,
    states: torch.Tensor,
    sizes: Sequence[int],
    columns: Sequence[Row],
    settings: Probe,
    out: Path,
    **training: Any,
) -> list[str]:
    """Train a head in place.

    Args:
        head: states to the logits of classes, or to one number a text.
        states: of the texts, one row's after the other's, [texts, width].
        sizes: how many texts each row has.
        columns: the rows' labels.
        settings: epochs, batch size and the rest.
        out: the stage's work folder.
        **training: see `trainers.training.loop.fit_choices`.

    Returns:
        What the user has to know of it, a sentence each.
    """
    from trainers.training.loop import fit_choices

    ends = torch.tensor(sizes).cumsum(0).tolist()
    rows = [{"places": range(end - size, end), **row} for end, size, row in zip(ends, sizes, columns, strict=True)]
    pairs = head.linear.out_features == 1  # type: ignore[union-attr]

    def choice_logprobs(model: torch.nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        device = next(model.parameters()).device
        logits = model(states[[i for places in batch["places"] for i in places]].to(device))
        if not pairs:
            return logits.log_softmax(-1)
        return normalised(logits.squeeze(-1), batch["learnt"], [len(places) for places in batch["places"]])

    collate = functools.partial(collated, "places")
    return fit_choices(head, rows, collate=collate, choice_logprobs=choice_logprobs, settings=settings, out=out, **training)
