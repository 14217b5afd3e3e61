"""How a task reads the answer in a generated reply: what makes solutions comparable without gold.

A task says it where its replies are scored, by a mark on its ``process_results``, ours as a user's own (`!function`):

    @reads(final_answer, same)
    def score(doc, results): ...

Sampled solutions are then put to the vote by their answers (self-consistency, Wang et al. 2022, arXiv 2203.11171). A
reader is given the reply and nothing of the row, so it can't see what is right.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

Score = TypeVar("Score", bound=Callable[..., Any])
MARK = "w2s_reader"


@dataclass(frozen=True)
class AnswerReader:
    """How answers are found and compared."""

    read: Callable[[str], str | None]
    """A reply to its answer; None, or nothing, where it gives none."""
    same: Callable[[str, str], bool] = operator.eq
    """Whether two answers are one."""

    def of(self, reply: str) -> str | None:
        """The answer of a reply, without white space around it; None where there is none."""
        return (self.read(reply) or "").strip() or None


def reads(read: Callable[[str], str | None], same: Callable[[str, str], bool] = operator.eq) -> Callable[[Score], Score]:
    """Mark a ``process_results`` with how the replies that it scores are read; see `AnswerReader`."""

    def mark(score: Score) -> Score:
        setattr(score, MARK, AnswerReader(read, same))
        return score

    return mark


def reader_of(score: Any) -> AnswerReader | None:
    """How the replies that a ``process_results`` scores are read; None where it does not say."""
    while isinstance(score, functools.partial):
        score = score.func
    found = getattr(score, MARK, None)
    return found if isinstance(found, AnswerReader) else None
