"""A multiple-choice document without an answer: refused, withheld, or answered with something that is none of its choices.

A model says so by the log-likelihood minus infinity for every choice. lm_eval takes the largest of them, which is the first
where all are equal, and so would count a refusal as right wherever the first choice is. `count_as_wrong` mends that for
every task that lm_eval scores itself; this suite's own scores (`metrics`) know it by `is_none`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

LOGLIK = -math.inf
"""The log-likelihood of every choice of a document that has no answer."""


def is_none(logliks: Iterable[float]) -> bool:
    """Whether the log-likelihoods of a document's choices say that it has no answer."""
    return all(x == LOGLIK for x in logliks)


def count_as_wrong() -> None:
    """Let lm_eval count a multiple-choice document without an answer as wrong; calling it again changes nothing."""
    from lm_eval.api.task import ConfigurableTask

    original = ConfigurableTask.process_results
    if not hasattr(original, "knows_no_answer"):
        process = _knowing(original)
        process.knows_no_answer = True  # type: ignore[attr-defined]
        ConfigurableTask.process_results = process


def _knowing(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def process_results(self: Any, doc: dict[str, Any], results: Any) -> Any:
        own = getattr(self.config.process_results, "__module__", "").startswith("w2s_tasks.")
        if self.OUTPUT_TYPE == "multiple_choice" and not own and is_none([loglik for loglik, _ in results]):
            results = _a_wrong_choice(self, doc, len(results))
        return original(self, doc, results)

    return process_results


def _a_wrong_choice(task: Any, doc: dict[str, Any], n: int) -> list[tuple[float, bool]]:
    """Results that name a choice which is not right, so that every score of the task counts them as wrong."""
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    choices = task.doc_to_choice(doc)
    right = {
        choices.index(g) if isinstance(g, str) and g in choices else g for g in (gold if isinstance(gold, list) else [gold])
    }
    wrong = next((i for i in range(n) if i not in right), 0)
    return [(0.0 if i == wrong else LOGLIK, False) for i in range(n)]
