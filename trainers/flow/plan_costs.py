"""What the stages of an experiment will send to a service: tokens and USD, counted offline from the task's own prompts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from trainers.config.experiment import is_plain
from trainers.fit.openai_settings import OpenAIStrong
from trainers.fit.trainer import training_style
from trainers.flow.experiment import Flow
from trainers.flow.steps import Step
from trainers.harness.tasks import HarnessTask, PromptStyle
from trainers.services import chat_rows as cr
from w2s_tasks.models import prices

SAMPLE = 1000
"""Rows of a set that are counted, evenly spread; the rest is taken to be like them."""

Spent = tuple[int, float | None]
"""Tokens, and USD where a price is known."""


def _spread(n: int, most: int = SAMPLE) -> list[int]:
    """At most so many indices, evenly spread."""
    return [i * n // min(n, most) for i in range(min(n, most))]


class Counter:
    """Counts the tokens of a flow's stages; no weights, no network."""

    def __init__(self, flow: Flow) -> None:
        self.flow, self.table = flow, prices.table()
        self._means: dict[Any, float] = {}

    def spent(self, step: Step) -> Spent | None:
        """What a stage sends to a service; None where it sends nothing."""
        strong = self.flow.config.strong
        if isinstance(step.base, OpenAIStrong):
            if step.kind == "fit":
                return self._training(step.base, step.rows())
            if step.kind == "labels":
                mean = self._prompt_tokens(self.flow.task, self._train_docs(), training_style(step.base))
                return self._asking(step.base, mean * step.rows(), step.rows(), tuned=False)
        if step.kind in ("evaluate", "safety") and step.arm and isinstance(strong, OpenAIStrong):
            return None if step.arm.kind.model == "weak" else self._evaluation(step, strong)
        return None

    def _train_docs(self) -> list[dict[str, Any]]:
        docs = self.flow.task.train_docs
        return [docs[i] for i in _spread(len(docs))]

    def _training(self, settings: OpenAIStrong, rows: int) -> Spent:
        key = ("training", settings.system_prompt, settings.target)
        if key not in self._means:
            task, docs = self.flow.task, self._train_docs()
            style = training_style(settings)
            tokens = [cr.row_tokens(cr.chat_row(task, d, max(0, task.gold(d)), style, settings.target)) for d in docs]
            self._means[key] = sum(tokens) / len(tokens)
        kept = rows - min(200, int(rows * settings.holdout))
        epochs = cr.auto_epochs(kept) if isinstance(settings.n_epochs, str) else settings.n_epochs
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

    def _evaluation(self, step: Step, settings: OpenAIStrong) -> Spent:
        flow, arm = self.flow, step.arm
        assert arm is not None  # noqa: S101 - for the type checker
        safety = flow.config.safety
        if step.kind == "evaluate":
            limits = {flow.asked(arm): flow.config.evaluate.limit}
        else:
            limits = {t: safety.limits.get(t.name, safety.limit) for t in flow.safety_tasks} if safety else {}
        style, read, written = PromptStyle(**step.settings["style"]), 0.0, 0
        for task, limit in limits.items():
            n, docs = task.eval_rows(limit), task.task.eval_docs
            read += n * self._prompt_tokens(task, [docs[i] for i in _spread(n, 100)], style)
            generation = task.task.config.generation_kwargs or {}
            generated = task.task.OUTPUT_TYPE == "generate_until"
            written += n * (int(generation.get("max_gen_toks", 256)) if generated else 1)
        return self._asking(settings, read, written, tuned=not is_plain(arm.name))

    def _asking(self, settings: OpenAIStrong, read: float, written: int, *, tuned: bool) -> Spent:
        """Tokens read and at most written, and their cost."""
        price = self.table.tokens(f"ft:{settings.model}:" if tuned else settings.model)
        batch = bool(settings.model_args.get("batch", False))
        return round(read) + written, price.cost(round(read), written, batch=batch) if price else None
