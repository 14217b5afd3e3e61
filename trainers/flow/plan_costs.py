"""What the stages of an experiment will send to a service: tokens and USD, counted offline from the task's own prompts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from trainers.fit.openai import OpenAI
from trainers.fit.tinker import Tinker
from trainers.fit.trainer import training_style
from trainers.flow.layout import Layout
from trainers.flow.tinker_costs import TinkerCounter
from trainers.harness.tasks import HarnessTask, PromptStyle
from trainers.services import chat_rows as cr
from trainers.steps.answers import Answers
from trainers.steps.evaluation import Evaluation
from trainers.steps.fit import Fit
from trainers.steps.step import Step
from trainers.steps.tuned import Tuned
from trainers.training.settings import held_back
from w2s_tasks.models import prices

SAMPLE = 1000
"""Rows of a set that are counted, evenly spread; the rest is taken to be like them."""

Spent = tuple[int, float | None]
"""Tokens, and USD where a price is known."""


def _spread(n: int, most: int = SAMPLE) -> list[int]:
    """At most so many indices, evenly spread."""
    return [i * n // min(n, most) for i in range(min(n, most))]


class Counter:
    """Counts the tokens of a layout's steps; no weights, no network."""

    def __init__(self, layout: Layout) -> None:
        self.task, self.table = layout.task, prices.table()
        self._means: dict[Any, float] = {}
        self._tinker: dict[str, TinkerCounter] = {}

    def spent(self, step: Step) -> Spent | None:
        """What a step sends to a service; None where it sends nothing."""
        match step:
            case Tuned():  # a grid's training that is there already, or one more of them: the dearest
                spent = [] if step.decides else [found for fit in step.own if (found := self.spent(fit))]
                return max(spent, default=None, key=lambda found: found[0])
            case Fit(settings=Tinker() as settings):
                return self._at_tinker(settings).training(self.task, self._train_docs(), step.rows())
            case Answers(settings=Tinker() as settings):
                return self._at_tinker(settings).answers(self.task, self._train_docs(), step.rows())
            case Evaluation(settings=Tinker() as settings):
                return self._at_tinker(settings).evaluation(step, _spread)
            case Fit(settings=OpenAI() as settings):
                return self._training(settings, step.rows())
            case Answers(settings=OpenAI() as settings):
                mean = self._prompt_tokens(self.task, self._train_docs(), training_style(settings))
                return self._asking(settings, mean * step.rows(), step.rows(), tuned=step.fit is not None)
            case Evaluation(settings=OpenAI() as settings):
                return self._evaluation(step, settings)
        return None

    def _at_tinker(self, settings: Tinker) -> TinkerCounter:
        key = settings.model_dump_json()
        if key not in self._tinker:
            self._tinker[key] = TinkerCounter(settings)
        return self._tinker[key]

    def _train_docs(self) -> list[dict[str, Any]]:
        docs = self.task.train_docs
        return [docs[i] for i in _spread(len(docs))]

    def _training(self, settings: OpenAI, rows: int) -> Spent:
        key = ("training", settings.system_prompt, settings.target)
        if key not in self._means:
            task, docs = self.task, self._train_docs()
            style = training_style(settings)
            tokens = [cr.row_tokens(cr.chat_row(task, d, max(0, task.gold(d)), style, settings.target)) for d in docs]
            self._means[key] = sum(tokens) / len(tokens)
        kept = rows - held_back(rows, settings.holdout)
        usual = settings.spoken.epochs or cr.auto_epochs(kept)
        epochs = usual if isinstance(settings.n_epochs, str) else settings.n_epochs
        trained = round(self._means[key] * kept) * epochs
        price = self.table.training(settings.model)
        return trained, None if price is None else trained / 1e6 * price

    def _prompt_tokens(self, task: HarnessTask, docs: Sequence[Any], style: PromptStyle) -> float:
        """Mean tokens of a prompt."""
        key = (task.name, style, len(docs))
        if key not in self._means:
            contexts = [json.loads(task.pairs(d, style, cr.AsJson())[0][0]) for d in docs]
            self._means[key] = sum(cr.row_tokens({"messages": messages}) for messages in contexts) / max(1, len(docs))
        return self._means[key]

    def _evaluation(self, step: Evaluation, settings: OpenAI) -> Spent:
        read, written = 0.0, 0
        for task, limit in step.limits.items():
            n, docs = task.eval_rows(limit), task.task.eval_docs
            read += n * self._prompt_tokens(task, [docs[i] for i in _spread(n, 100)], step.style)
            generation = task.task.config.generation_kwargs or {}
            generated = task.task.OUTPUT_TYPE == "generate_until"
            written += n * (int(generation.get("max_gen_toks", 256)) if generated else 1)
        return self._asking(settings, read, written, tuned=step.fit is not None)

    def _asking(self, settings: OpenAI, read: float, written: int, *, tuned: bool) -> Spent:
        """Tokens read and at most written, and their cost."""
        price = self.table.tokens(f"ft:{settings.model}:" if tuned else settings.model)
        batch = bool(settings.model_args.get("batch", False))
        return round(read) + written, price.cost(round(read), written, batch=batch) if price else None
