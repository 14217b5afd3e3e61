"""The full trainer: every parameter of a causal language model learns, as in Burns et al. 2023 (arXiv 2312.09390).

Weights are float32 while they are trained, whatever `model_args.dtype` says of their evaluation: bfloat16 rounds most
updates of a small learning rate away (``trainer_args: {bf16: true}`` computes in it and keeps the weights). With AdamW that
is 16 bytes of memory a parameter, and 12 on the disk for each checkpoint.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from trainers.fit.language_model import QUANTISED, LanguageModel, Learning, base_ref, check_base, style_of
from trainers.fit.trainer import trainer
from trainers.harness.pool import ModelPool
from trainers.harness.tasks import HarnessTask
from trainers.labels.kinds import AnyLabels
from w2s_tasks.errors import UserError
from w2s_tasks.models.loading import base_config
from w2s_tasks.models.ref import ModelRef

PLACES = ("revision", "subfolder", "gguf_file", "tokenizer")
"""Arguments that say where in `pretrained` the base is: the trained model is a folder of its own."""


class Full(LanguageModel):
    """A causal language model, all of it trained."""

    trainer: Literal["full"] = "full"
    """full: every parameter of a causal language model."""
    lr: float = Field(default=1e-5, gt=0)
    """Peak learning rate."""


def check(settings: Full) -> None:
    """Refuse, by its configuration alone, a model that can't be trained whole.

    Raises:
        UserError: as `check_base`; quantised weights, which take no gradient.
    """
    check_base(settings)
    asked = next((name for name in QUANTISED if settings.model_args.get(name)), None)
    saved = "gguf_file" not in settings.model_args and getattr(
        base_config(base_ref(settings).args), "quantization_config", None
    )
    if asked or saved:
        why = f"model_args.{asked}" if asked else "the checkpoint's quantization_config"
        raise UserError(
            f"{settings.model}: quantised weights ({why}) can't be trained themselves. Take trainer: lora, whose adapters "
            "can be trained on them, or a checkpoint that is not quantised."
        )


@trainer(
    "full",
    settings=Full,
    untuned=base_ref,
    style=style_of,
    check=check,
    model="w2s-hf",
    roles=("strong", "weak"),
    texts=True,
    in_pool=True,
)
def fit(
    task: HarnessTask,
    docs: Sequence[dict[str, Any]],
    labels: AnyLabels,
    settings: Full,
    out: Path,
    *,
    pool: ModelPool,
    method: str = "xent",
    loss_args: Mapping[str, Any] | None = None,
    seed: int = 0,
    title: str = "strong",
) -> ModelRef:
    """Train every parameter; the model comes from the pool, which loads its base anew for whoever asks next.

    Args:
        task: renders prompts and choices.
        docs: the documents of the label set, in its order.
        labels: what to learn: choices, soft or hard, or solutions, which need ``objective: language_model``.
        settings: model and hyperparameters.
        out: the folder to fill: ``model/`` (safetensors, with tokenizer and chat template), ``curves.json``,
            ``training.json``.
        pool: loads the base, and gives it away.
        method: a loss of `trainers.training.losses`.
        loss_args: its settings.
        seed: of the row order and dropout.
        title: of the progress bar.

    Raises:
        UserError: labels of other choices than the rows have, or a model that can't be loaded.
    """
    from transformers import set_seed

    base = base_ref(settings)
    lm: Any = pool.take(ModelRef(base.model, {**base.args, "dtype": "float32"}))
    learning = Learning.of(task, docs, labels, settings, lm)
    set_seed(seed)
    model = lm.language_model.requires_grad_(True)
    learning.train(model, settings, out, method=method, loss_args=loss_args, seed=seed, title=title)
    model.save_pretrained(str(out / "model"))
    lm.tokenizer.save_pretrained(str(out / "model"))
    gc.collect()  # the optimizer's states lie in a circle of references: twice the model's memory
    evaluated = {name: value for name, value in base.args.items() if name not in PLACES}
    return ModelRef(base.model, {**evaluated, "pretrained": str(out / "model")})
