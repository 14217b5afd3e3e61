"""How a task reads the answer in a generated reply: what makes solutions comparable without gold.

A task says it where its replies are scored, by a mark on its ``process_results``, ours as a user's own (`!function`):

    @reads(final_answer, same)
    def score(doc, results): ...

Sampled solutions are then put to the vote by their answers (self-consistency, Wang et al. 2022, arXiv 2203.11171). A
reader is given the reply and nothing of the row, so it can't see what is right.
"""

from __future__ import annotations

import contextlib
import functools
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from w2s_tasks.errors import UserError
from w2s_tasks.user_text import one_line, shown

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
        """The answer of a reply, without white space around it; None where there is none.

        Raises:
            UserError: the task's function fails on it.
        """
        with _told(self.read, reply):
            return (self.read(reply) or "").strip() or None

    def equal(self, one: str, other: str) -> bool:
        """Whether two answers are one.

        Raises:
            UserError: the task's function fails on them.
        """
        with _told(self.same, one, other):
            return bool(self.same(one, other))


@contextlib.contextmanager
def _told(function: Callable[..., Any], *texts: str) -> Iterator[None]:
    """What a model writes may be anything: a function that fails on it is named with it."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a user's function raises anything
        name = getattr(function, "__name__", type(function).__name__)
        raise UserError(
            f"{name}, by which the task reads answers, fails on {', '.join(map(shown, texts))}: {type(error).__name__}: "
            f"{one_line(error)}. It has to take whatever a model writes."
        ) from error


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
