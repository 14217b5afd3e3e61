"""The LoRA trainer: any causal language model learns a distribution over a task's choices.

The prompt is the task's own, rendered and tokenized as lm_eval does for evaluation; the score of a choice is the
log-likelihood of its whole continuation, as lm_eval scores it; the target is the label's distribution over the choices.
With ``objective: language_model`` the choices are not normalised over each other: the loss is the cross-entropy of the
target's tokens and of the end of the reply, as fine-tuning services train.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator

from trainers.fit.trainer import trainer
from trainers.harness.pool import ModelPool
from trainers.harness.tasks import HarnessTask, PromptStyle
from trainers.labels.kinds import AnyLabels
from trainers.training.losses import ABSENT
from trainers.training.rows import Row, by_row, label_columns, normalised
from trainers.training.settings import LocalSettings
from trainers.training.told import Told
from w2s_tasks import packing
from w2s_tasks.errors import UserError
from w2s_tasks.models.loading import base_config, base_tokenizer
from w2s_tasks.models.ref import ModelRef
from w2s_tasks.scoring import system_place
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


class Lora(Adapter):
    """A causal language model with LoRA adapters."""

    trainer: Literal["lora"] = "lora"
    """lora: PEFT LoRA on a causal language model."""
    objective: Literal["choices", "language_model"] = "choices"
    """choices: a distribution over the task's choices; language_model: the target's tokens and the end of the reply, as
    fine-tuning services train. Only the second teaches the format of a reply."""
    chat_template: bool = False
    """Whether prompts go through the model's chat template, in training and in evaluation."""
    system_prompt: str | None = None
    """A system message before every prompt, in training and in evaluation."""

    @model_validator(mode="after")
    def _in_a_template(self) -> Self:
        if self.system_prompt and not self.chat_template:
            raise ValueError("system_prompt needs chat_template: true")
        return self

    @property
    def learns(self) -> Literal["choices", "language_model"]:
        """As `objective` says."""
        return self.objective


def base_ref(settings: Lora, task: HarnessTask | None = None) -> ModelRef:
    """The model before training, whatever the task."""
    return ModelRef("w2s-hf", {"pretrained": settings.model, **settings.model_args})


def check_base(settings: Lora) -> None:
    """Refuse, by its configuration alone, a model that is no language model, before other models are trained.

    Raises:
        UserError: `trainer_args` that would not be taken; a classifier or an encoder; a configuration that can't be read; no
            chat template where one is to be used.
    """
    from trainers.training.loop import check_arguments
    from w2s_tasks.models.packed_hf import refuse_unfit
    from w2s_tasks.models.prompts import refuse_without_template

    check_arguments(settings)
    if "gguf_file" in settings.model_args:
        return  # decoder-only all of them, and read slowly
    args = base_ref(settings).args
    refuse_unfit(base_config(args), settings.model)
    if settings.chat_template:
        refuse_without_template(base_tokenizer(args), settings.model)


def style_of(settings: Lora, num_fewshot: int | None = 0) -> PromptStyle:
    """The prompt style that the settings ask for, the same in training and evaluation."""
    return PromptStyle(num_fewshot, settings.chat_template, settings.system_prompt)


Requests = Sequence[Sequence[packing.Request]]
"""For each row those of its choices."""


def choice_logprobs(model: torch.nn.Module, requests: Requests, targets: torch.Tensor, max_length: int) -> torch.Tensor:
    """Normalised log-probabilities over each row's choices.

    Args:
        model: causal language model.
        requests: of the rows' choices.
        targets: label distributions, [rows, choices].
        max_length: the model's window.

    Returns:
        Shape [rows, choices], `losses.ABSENT` behind a row's last choice; differentiable where gradients are enabled.
    """
    scores = packing.score(model, [request for row in requests for request in row], max_length=max_length)
    return normalised(scores.loglik, targets, [len(row) for row in requests])


def reply_logprobs(
    model: torch.nn.Module, requests: Requests, targets: torch.Tensor, max_length: int, tokens: float
) -> torch.Tensor:
    """Log-probabilities of whole replies over a mean reply's number of tokens: under `xent` the mean loss a token.

    Args:
        model: causal language model.
        requests: as in `choice_logprobs`, with the end of the reply in every continuation.
        targets: label distributions, [rows, choices]. With gradients, replies of weight 0 are not run.
        max_length: the model's window.
        tokens: mean number of tokens of the replies that are learnt.

    Returns:
        Shape [rows, choices]; 0 for a reply that was not run, `losses.ABSENT` behind a row's last choice.
    """
    sizes = [len(row) for row in requests]
    flat = [request for row in requests for request in row]
    weights = [weight for row, size in zip(targets.tolist(), sizes, strict=True) for weight in row[:size]]
    run = [i for i, weight in enumerate(weights) if weight > 0 or not torch.is_grad_enabled()]
    scores = packing.score(model, [flat[i] for i in run], max_length=max_length)
    loglik = torch.zeros(len(flat), device=scores.loglik.device)
    loglik = loglik.index_put((torch.tensor(run, device=loglik.device),), scores.loglik / tokens)
    return by_row(loglik, targets, sizes, ABSENT)


def end_of_reply(lm: Any, style: PromptStyle) -> list[int]:
    """Tokens that end a reply: what the chat template writes after it, without one the end-of-text token."""
    if not style.chat_template:
        return _end_of_text(lm)
    reply = "reply"
    messages = [{"role": "user", "content": "prompt"}, {"role": "assistant", "content": reply}]
    text = lm.tokenizer.apply_chat_template(messages, tokenize=False)
    ending: list[int] = lm.tokenizer.encode(text[text.rindex(reply) + len(reply) :], add_special_tokens=False)
    return ending or _end_of_text(lm)


def _end_of_text(lm: Any) -> list[int]:
    if lm.eot_token_id is None:
        raise UserError(
            f"{lm.tokenizer.name_or_path} has no end-of-text token, which objective: language_model teaches as the end of a "
            "reply. Use objective: choices, or a tokenizer that has one."
        )
    return [lm.eot_token_id]


def _rows(
    task: HarnessTask, docs: Sequence[dict[str, Any]], labels: AnyLabels, lm: Any, style: PromptStyle, ending: list[int]
) -> list[Row]:
    """Every document's requests with its label; prompts are encoded all at once."""
    pairs = labels.pairs(task, docs, style, lm)
    flat = [pair for own in pairs for pair in own]
    place = [f"training row {row}, choice {choice}" for row, own in enumerate(pairs) for choice in range(len(own))]
    requests = lm.encode(flat, lambda i: f"{task.name}, {place[i]}")
    if ending:
        prompts = lm.tokenize([context for context, _ in flat])
        requests = [_reply(prompt, request, ending) for prompt, request in zip(prompts, requests, strict=True)]
    rest = iter(requests)
    columns = label_columns(labels, None if task.generates else [task.gold(doc) for doc in docs])
    return [{"requests": list(itertools.islice(rest, len(own))), **row} for own, row in zip(pairs, columns, strict=True)]


def _reply(prompt: Sequence[int], request: packing.Request, ending: Sequence[int]) -> packing.Request:
    """A request whose continuation is the reply and its end; `prompt` is encoded alone.

    lm_eval counts spaces and line ends at a prompt's end to the continuation. Here they stay in the prompt where they are
    tokens of their own: a model is given them, it doesn't write them.
    """
    whole = (*request[0], *request[1])
    start = packing.common(tuple(prompt), whole)
    return whole[:start], (*whole[start:], *ending)


def _reply_tokens(rows: Sequence[Row]) -> float:
    """Mean number of tokens of the replies that are learnt."""
    lengths = [
        sum(share * len(continuation) for share, (_, continuation) in zip(row["targets"], row["requests"], strict=False))
        for row in rows
    ]
    return sum(lengths) / len(lengths)


def _system_place(task: HarnessTask, style: PromptStyle, lm: Any) -> str | None:
    """Where system prompt and description stand in the rows' prompts."""
    if not task.has_system(style):
        return None
    if not style.chat_template:
        return system_place.PLAIN
    return system_place.FOLDED if lm.folds_system else system_place.MESSAGE


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
    from trainers.training.loop import fit_choices

    base = base_ref(settings)
    lm: Any = pool.load(base)
    if lm.backend != "causal":
        raise UserError(f"{settings.model} is no causal language model; the lora trainer needs one.")
    style = style_of(settings)
    language_model = settings.objective == "language_model"
    rows = _rows(task, docs, labels, lm, style, end_of_reply(lm, style) if language_model else [])
    tokens = _reply_tokens(rows)

    def collate(batch: Sequence[Row]) -> dict[str, Any]:
        targets = torch.tensor([row["targets"] for row in batch])
        return {"requests": [row["requests"] for row in batch], "targets": targets, "learnt": targets}

    def logprobs(model: torch.nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        if language_model:
            return reply_logprobs(model, batch["requests"], batch["learnt"], lm.max_length, tokens)
        return choice_logprobs(model, batch["requests"], batch["learnt"], lm.max_length)

    def cut(model: torch.nn.Module, batch: dict[str, Any]) -> list[list[int]]:
        return packing.cut_rows(model, batch["requests"], lm.max_length)

    set_seed(seed)
    model = with_adapter(lm.language_model, settings)
    try:
        _check_runs(model, settings.model, rows[0]["requests"], lm.max_length)
        warnings = fit_choices(
            model,
            rows,
            collate=collate,
            choice_logprobs=logprobs,
            settings=settings,
            method=method,
            loss_args=loss_args,
            out=out,
            seed=seed,
            title=title,
            cut=cut,
            keep=Keep(keep, out, lambda folder: model.save_pretrained(str(folder))) if keep else None,
        )
        model.save_pretrained(str(out / "adapter"))
        Told(_system_place(task, style, lm), tuple(warnings)).save(out)
    finally:
        model.unload()
    return ModelRef("w2s-hf", {**base.args, "peft": str(out / "adapter")})
