"""What a step will send to a Tinker service: tokens by the base's own tokenizer, estimated where it is not here."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from typing import Any

from trainers.fit.language_model import end_of_reply
from trainers.fit.tinker import Tinker, adapter_gigabytes, base_ref
from trainers.fit.tinker_steps import evaluation_steps
from trainers.fit.trainer import training_style
from trainers.harness.tasks import HarnessTask, PromptStyle
from trainers.services.chat_rows import AsJson, count_tokens
from trainers.steps.evaluation import Evaluation
from trainers.training.settings import held_back
from w2s_tasks.errors import UserError
from w2s_tasks.models import prices

log = logging.getLogger(__name__)

Spent = tuple[int, float | None]


class TinkerCounter:
    """Counts for one section of an experiment; nothing is sent."""

    def __init__(self, settings: Tinker) -> None:
        self.settings, self.table = settings, prices.table()
        self._means: dict[Any, float] = {}

    @functools.cached_property
    def _lm(self) -> Any:
        """The model's tokenizer as `w2s-tinker` has it; None where it can't be had."""
        from w2s_tasks.models.tinker.model import W2STinker

        try:
            return W2STinker(**base_ref(self.settings).args)
        except UserError as error:
            log.warning("tokens are estimated by another tokenizer: %s", error)
            return None

    def training(self, task: HarnessTask, docs: Sequence[Any], rows: int) -> Spent:
        """A training on so many rows.

        Args:
            task: the training task.
            docs: some of its rows.
            rows: of the label set.
        """
        settings = self.settings
        held = held_back(rows, settings.holdout)
        replies = settings.objective == "language_model"
        mean = self._mean(task, docs, training_style(settings), one=replies)
        steps = settings.steps(rows)
        trained = round(mean * (rows - held) * steps / settings.an_epoch(rows - held))
        scored = round(self._mean(task, docs, training_style(settings)) * held * len(evaluation_steps(steps)))
        read = scored + (0 if replies else trained)
        return trained, self.table.trained(settings.model, trained, read)

    def evaluation(self, step: Evaluation, spread: Any) -> Spent:
        """An evaluation of the base or of a model that was trained on it.

        Args:
            step: which tasks it asks.
            spread: number of rows and of those to look at, to indices.
        """
        read, written = 0.0, 0
        for task, limit in step.limits.items():
            n, docs = task.eval_rows(limit), task.task.eval_docs
            generated = task.task.OUTPUT_TYPE == "generate_until"
            mean = self._mean(task, [docs[i] for i in spread(n, 100)], step.style)
            read += n * mean
            settings = task.task.config.generation_kwargs or {}
            written += n * (int(settings.get("max_gen_toks", 256)) if generated else self._choices(task))
        return self.asking(read, written)

    def answers(self, task: HarnessTask, docs: Sequence[Any], rows: int) -> Spent:
        """Labels of so many rows."""
        mean = self._mean(task, docs, training_style(self.settings))
        return self.asking(mean * rows, self._choices(task) * rows)

    def asking(self, read: float, written: int) -> Spent:
        """Tokens read and written, and what they cost where none is read from the service's cache."""
        price = self.table.tokens(self.settings.model)
        return round(read) + written, price.cost(round(read), written) if price else None

    def _choices(self, task: HarnessTask) -> int:
        """Requests of a document, each of which writes a token that nobody reads."""
        return len(task.pairs(task.task.eval_docs[0], PromptStyle()))

    def _mean(self, task: HarnessTask, docs: Sequence[Any], style: PromptStyle, *, one: bool = False) -> float:
        """Mean tokens of all requests of a document, or of `one` with the end of its reply."""
        key = (task.name, style, len(docs), one)
        if key not in self._means:
            pairs = [task.pairs(doc, style, self._lm or AsJson()) for doc in docs]
            sizes = [self._tokens(own[:1] if one else own) for own in pairs]
            ending = len(end_of_reply(self._lm, style)) if one and self._lm else int(one)
            self._means[key] = sum(sizes) / max(1, len(sizes)) + ending
        return self._means[key]

    def _tokens(self, pairs: Sequence[tuple[str, Any]]) -> int:
        """Tokens before the last one of each."""
        if self._lm is None:
            return sum(count_tokens(c + (t if isinstance(t, str) else "")) for c, t in pairs)
        if not all(isinstance(text, str) for _, text in pairs):
            return sum(len(tokens) for tokens in self._lm.tokenize([context for context, _ in pairs]))
        return sum(len(context) + len(continuation) - 1 for context, continuation in self._lm.encode(list(pairs)))


def storage_line(settings: Tinker, models: int) -> str:
    """What it costs to keep trained models at the service."""
    price = prices.table().storage(settings.model)
    if price is None:
        return ""
    size = adapter_gigabytes(settings)
    kept = "until they are deleted there" if settings.keep_days is None else f"for {settings.keep_days:g} days"
    if size is None:
        return f" {models} adapters are kept there {kept}, at ${price:g} a GB and month."
    return (
        f" {models} adapters of about {size:.2g} GB are kept there {kept}: ${models * size * price:.2f} a month at "
        f"${price:g} a GB."
    )
