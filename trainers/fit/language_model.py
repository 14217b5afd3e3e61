"""What trainers of a causal language model share: settings, prompts, rows, and one training of a model that is given.

The prompt is the task's own, rendered and tokenized as lm_eval does for evaluation; the score of a choice is the
log-likelihood of its whole continuation, as lm_eval scores it; the target is the label's distribution over the choices.
With ``objective: language_model`` the choices are not normalised over each other: the loss is the cross-entropy of the
target's tokens and of the end of the reply, as fine-tuning services train.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from pydantic import Field, model_validator

from trainers.harness.tasks import HarnessTask, PromptStyle
from trainers.labels.kinds import AnyLabels
from trainers.section import Section
from trainers.training.losses import ABSENT
from trainers.training.rows import Row, by_row, collated, label_columns, normalised
from trainers.training.settings import LocalSettings, ModelSettings
from trainers.training.told import Told
from w2s_tasks import packing
from w2s_tasks.errors import UserError
from w2s_tasks.models.loading import base_config, base_tokenizer
from w2s_tasks.models.ref import ModelRef
from w2s_tasks.scoring import system_place

if TYPE_CHECKING:
    from trainers.training.kept import Keep


QUANTISED = ("load_in_4bit", "load_in_8bit", "quantization_config", "gptqmodel", "autogptq")


class Prepare(Section):
    """What the strong model learns first."""

    tasks: list[str] = Field(min_length=1)
    """Tasks whose gold labels it learns, e.g. [w2s_ethics_commonsense]."""
    rows: int = Field(default=1600, ge=1)
    """Training rows of each task, drawn at random; all where there are no more."""
    epochs: float = Field(default=1, gt=0)
    """Passes over them."""
    lr: float = Field(default=5e-4, gt=0)
    """Peak learning rate of the adapter that learns them."""


class Prompted(ModelSettings):
    """A causal language model that learns a task's choices or its replies, wherever it is."""

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


class LanguageModel(Prompted, LocalSettings):
    """A causal language model that learns a task here."""

    prepare: Prepare | None = None
    """Tasks that the strong model learns first, merged into its base: every arm starts from there; null for none."""

    @model_validator(mode="after")
    def _can_be_merged(self) -> Self:
        asked = next((name for name in QUANTISED if self.model_args.get(name)), None)
        if self.prepare and asked:
            raise ValueError(f"prepare merges an adapter into the weights, which model_args.{asked} quantises")
        return self


def base_ref(settings: LocalSettings, task: HarnessTask | None = None) -> ModelRef:
    """The model before training, whatever the task."""
    return ModelRef("w2s-hf", {"pretrained": settings.model, **settings.model_args})


def check_base(settings: LanguageModel) -> None:
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


def style_of(settings: Prompted, num_fewshot: int | None = 0) -> PromptStyle:
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
    run = replies_run(targets, sizes, every=not torch.is_grad_enabled())
    scores = packing.score(model, [flat[i] for i in run], max_length=max_length)
    return reply_table(scores.loglik, run, targets, sizes, tokens)


def replies_run(targets: torch.Tensor, sizes: Sequence[int], *, every: bool) -> list[int]:
    """Which of a batch's replies, one row's after the other's, are run: those with weight in the loss, or every one."""
    weights = [weight for row, size in zip(targets.tolist(), sizes, strict=True) for weight in row[:size]]
    return [i for i, weight in enumerate(weights) if weight > 0 or every]


def reply_table(
    loglik: torch.Tensor, run: Sequence[int], targets: torch.Tensor, sizes: Sequence[int], tokens: float
) -> torch.Tensor:
    """What `reply_logprobs` gives, of the log-likelihoods of the replies that were run, shape [replies run]."""
    every = torch.zeros(sum(sizes), device=loglik.device)
    every = every.index_put((torch.tensor(run, device=loglik.device),), loglik / tokens)
    return by_row(every, targets, sizes, ABSENT)


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


def _system_place(task: HarnessTask, style: PromptStyle, lm: Any) -> str | None:
    """Where system prompt and description stand in the rows' prompts."""
    if not task.has_system(style):
        return None
    if not style.chat_template:
        return system_place.PLAIN
    return system_place.FOLDED if lm.folds_system else system_place.MESSAGE


@dataclass(frozen=True)
class Learning:
    """What a language model learns of a task: its rows, and how their choices are scored."""

    lm: Any
    """The loaded `w2s-hf` model."""
    rows: list[Row]
    language_model: bool
    """Whether whole replies are learnt, not a distribution over the choices."""
    system_place: str | None
    """Where system prompt and description stand."""

    @functools.cached_property
    def reply_tokens(self) -> float:
        """Mean number of tokens of the replies that are learnt."""
        lengths = [
            sum(share * len(continuation) for share, (_, continuation) in zip(row["targets"], row["requests"], strict=False))
            for row in self.rows
        ]
        return sum(lengths) / len(lengths)

    @classmethod
    def of(
        cls, task: HarnessTask, docs: Sequence[dict[str, Any]], labels: AnyLabels, settings: Prompted, lm: Any
    ) -> Learning:
        """The rows of a label set.

        Args:
            task: renders prompts and choices.
            docs: of the label set, in its order.
            labels: choices, soft or hard, or solutions, which need ``objective: language_model``.
            settings: whose objective and prompts.
            lm: the loaded model.

        Raises:
            UserError: no causal model, or labels of other choices than the rows have.
        """
        if lm.backend != "causal":
            raise UserError(f"{settings.model} is no causal language model; the {settings.trainer} trainer needs one.")
        style = style_of(settings)
        language_model = settings.objective == "language_model"
        rows = _rows(task, docs, labels, lm, style, end_of_reply(lm, style) if language_model else [])
        return cls(lm, rows, language_model, _system_place(task, style, lm))

    def train(
        self, model: torch.nn.Module, settings: LanguageModel, out: Path, *, keep: Keep | None = None, **training: Any
    ) -> None:
        """Train a model in place; leaves ``curves.json`` and ``training.json`` in `out`.

        Args:
            model: the loaded model or one made of it, e.g. with adapters.
            settings: epochs, batch size and the rest.
            out: the stage's work folder.
            keep: writes the model at certain steps too.
            **training: method, loss_args, seed, title: see `trainers.training.loop.fit_choices`.

        Raises:
            UserError: what the training ends with.
        """
        from trainers.training.loop import fit_choices

        tokens, max_length = self.reply_tokens, self.lm.max_length

        def logprobs(model: torch.nn.Module, batch: dict[str, Any]) -> torch.Tensor:
            if self.language_model:
                return reply_logprobs(model, batch["requests"], batch["learnt"], max_length, tokens)
            return choice_logprobs(model, batch["requests"], batch["learnt"], max_length)

        def cut(model: torch.nn.Module, batch: dict[str, Any]) -> list[list[int]]:
            return packing.cut_rows(model, batch["requests"], max_length)

        warnings = fit_choices(
            model,
            self.rows,
            collate=functools.partial(collated, "requests"),
            choice_logprobs=logprobs,
            settings=settings,
            out=out,
            cut=cut,
            keep=keep,
            **training,
        )
        Told(self.system_place, tuple(warnings)).save(out)
