"""The LoRA trainer: adapters on a causal language model, which learn a task's choices or its replies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from trainers.fit.language_model import LanguageModel, Learning, base_ref, check_base, style_of
from trainers.fit.trainer import trainer
from trainers.harness.pool import ModelPool
from trainers.harness.tasks import HarnessTask
from trainers.labels.kinds import AnyLabels
from trainers.training.settings import LocalSettings
from w2s_tasks import packing
from w2s_tasks.errors import UserError
from w2s_tasks.models.ref import ModelRef
from w2s_tasks.user_text import one_line


class Adapter(LocalSettings):
    """LoRA adapters on a language model."""

    lr: float = Field(default=2e-4, gt=0)
    """Peak learning rate."""
    r: int = Field(default=16, ge=1)
    """LoRA rank."""
    alpha: float | None = None
    """LoRA scale; null for 2 r."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """LoRA dropout."""
    target_modules: str | list[str] = "all-linear"
    """Which layers get an adapter, as PEFT names them."""


class Lora(Adapter, LanguageModel):
    """A causal language model with LoRA adapters."""

    trainer: Literal["lora"] = "lora"
    """lora: PEFT LoRA on a causal language model."""


def with_adapter(base: torch.nn.Module, settings: Adapter, kind: Literal["CAUSAL_LM", "SEQ_CLS"] = "CAUSAL_LM") -> Any:
    """A model with new adapters on it; of a classifier its head is trained and kept too.

    Raises:
        UserError: `target_modules` that are not there.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha if settings.alpha is not None else 2 * settings.r,
        lora_dropout=settings.dropout,
        target_modules=settings.target_modules,
        task_type=kind,
    )
    try:
        return get_peft_model(base, config)
    except ValueError as error:
        raise UserError(f"strong.target_modules: {str(error).splitlines()[0]}") from error


def _check_runs(model: torch.nn.Module, name: str, requests: Sequence[packing.Request], max_length: int) -> None:
    """Refuse layers that PEFT puts LoRA on and can't run, as routers that give more than one tensor."""
    try:
        with torch.no_grad():
            packing.score(model, requests, max_length=max_length)
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise UserError(
            f"strong.target_modules: {name} does not run with LoRA on these layers ({type(error).__name__}: "
            f"{one_line(error)}). Name others, e.g. [q_proj, v_proj]."
        ) from error


@trainer(
    "lora",
    settings=Lora,
    untuned=base_ref,
    style=style_of,
    check=check_base,
    model="w2s-hf",
    roles=("strong", "weak"),
    keeps=True,
    texts=True,
    in_pool=True,
)
def fit(
    task: HarnessTask,
    docs: Sequence[dict[str, Any]],
    labels: AnyLabels,
    settings: Lora,
    out: Path,
    *,
    pool: ModelPool,
    method: str = "xent",
    loss_args: Mapping[str, Any] | None = None,
    seed: int = 0,
    title: str = "strong",
    keep: Sequence[float] = (),
) -> ModelRef:
    """Train a LoRA adapter; the loaded base comes out unchanged and stays in the pool.

    Args:
        task: renders prompts and choices.
        docs: the documents of the label set, in its order.
        labels: what to learn: choices, soft or hard, or solutions, which need ``objective: language_model``.
        settings: model and hyperparameters.
        out: the folder to fill: ``adapter/`` (standard PEFT layout, safetensors), ``curves.json``,
            ``training.json``, ``at/SHARE/adapter/``.
        pool: where the base model is loaded.
        method: a loss of `trainers.training.losses`.
        loss_args: its settings.
        seed: of the adapter's initialisation and the row order.
        title: of the progress bar.
        keep: shares of the optimizer steps at which the adapter is kept too.

    Raises:
        UserError: labels of other choices than the rows have, or a model that can't be loaded.
    """
    from transformers import set_seed

    from trainers.training.kept import Keep

    base = base_ref(settings)
    lm: Any = pool.load(base)
    learning = Learning.of(task, docs, labels, settings, lm)
    set_seed(seed)
    model = with_adapter(lm.language_model, settings)
    try:
        _check_runs(model, settings.model, learning.rows[0]["requests"], lm.max_length)
        kept = Keep(keep, out, lambda folder: model.save_pretrained(str(folder))) if keep else None
        training = {"method": method, "loss_args": loss_args, "seed": seed, "title": title}
        learning.train(model, settings, out, keep=kept, **training)
        model.save_pretrained(str(out / "adapter"))
    finally:
        model.unload()
    return ModelRef("w2s-hf", {**base.args, "peft": str(out / "adapter")})
