"""The LoRA trainer: any causal language model learns a distribution over a task's choices.

The prompt is the task's own, rendered and tokenized as lm_eval does for evaluation; the score of a choice is the
log-likelihood of its whole continuation, as lm_eval scores it; the target is the label's distribution over the choices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from trainers.config import Strong, Weak
from trainers.harness import HarnessTask, ModelPool, PromptStyle
from trainers.labels import LabelSet
from trainers.training import Row, fit_choices
from w2s_tasks import packing
from w2s_tasks.errors import UserError
from w2s_tasks.models.ref import ModelRef

OBJECTIVE = "choices"


def base_ref(settings: Strong | Weak) -> ModelRef:
    """The model before training."""
    return ModelRef("w2s-hf", {"pretrained": settings.model, **settings.model_args})


def style_of(settings: Strong | Weak, num_fewshot: int = 0) -> PromptStyle:
    """The prompt style that the settings ask for, the same in training and evaluation."""
    return PromptStyle(num_fewshot, settings.chat_template, getattr(settings, "system_prompt", None))


def choice_logprobs(
    model: torch.nn.Module, requests: Sequence[packing.Request], choices: int, max_length: int
) -> torch.Tensor:
    """Normalised log-probabilities over the choices.

    Args:
        model: causal language model.
        requests: all choices of a row together, rows one after the other.
        choices: choices a row.
        max_length: the model's window.

    Returns:
        Shape [rows, choices]; differentiable where gradients are enabled.
    """
    scores = packing.score(model, requests, max_length=max_length)
    return scores.loglik.view(-1, choices).log_softmax(dim=-1)


def _with_adapter(base: torch.nn.Module, settings: Strong | Weak) -> Any:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha if settings.alpha is not None else 2 * settings.r,
        lora_dropout=getattr(settings, "dropout", 0.0),
        target_modules=getattr(settings, "target_modules", "all-linear"),
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(base, config)
    except ValueError as error:
        raise UserError(f"strong.target_modules: {str(error).splitlines()[0]}") from error


def fit(
    task: HarnessTask,
    docs: Sequence[dict[str, Any]],
    labels: LabelSet,
    settings: Strong | Weak,
    out: Path,
    *,
    pool: ModelPool,
    method: str = "xent",
    loss_args: Mapping[str, Any] | None = None,
    seed: int = 0,
    title: str = "strong",
) -> ModelRef:
    """Train a LoRA adapter; the loaded base comes out unchanged and stays in the pool.

    Args:
        task: renders prompts and choices.
        docs: the documents of the label set, in its order.
        labels: what to learn, soft or hard.
        settings: model and hyperparameters.
        out: the folder to fill: ``adapter/`` (standard PEFT layout, safetensors) and ``curves.json``.
        pool: where the base model is loaded.
        method: a loss of `trainers.losses`.
        loss_args: its settings.
        seed: of the adapter's initialisation and the row order.
        title: of the progress bar.

    Raises:
        UserError: rows with different numbers of choices, or a model that can't be loaded.
    """
    from transformers import set_seed

    base = base_ref(settings)
    lm: Any = pool.load(base)
    if lm.backend != "causal":
        raise UserError(f"{settings.model} is no causal language model; the lora trainer needs one.")
    choices = labels.soft.shape[1]
    style = style_of(settings)
    rows: list[Row] = []
    for doc, target, gold in zip(docs, labels.soft.tolist(), labels.gold.tolist(), strict=True):
        requests = lm.encode(task.pairs(doc, style, lm))
        if len(requests) != choices:
            raise UserError(f"the task '{task.name}': a row has {len(requests)} choices, its label {choices}.")
        rows.append({"requests": requests, "targets": target, "gold": gold})

    def collate(batch: Sequence[Row]) -> dict[str, Any]:
        flat = [request for row in batch for request in row["requests"]]
        return {"requests": flat, "targets": torch.tensor([row["targets"] for row in batch])}

    def logprobs(model: torch.nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        return choice_logprobs(model, batch["requests"], choices, lm.max_length)

    set_seed(seed)
    model = _with_adapter(lm.language_model, settings)
    try:
        fit_choices(
            model,
            rows,
            collate=collate,
            choice_logprobs=logprobs,
            settings=settings,
            lr=settings.lr,
            method=method,
            loss_args=loss_args,
            out=out,
            seed=seed,
            title=title,
        )
        model.save_pretrained(str(out / "adapter"))
    finally:
        model.unload()
    return ModelRef("w2s-hf", {**base.args, "peft": str(out / "adapter")})
