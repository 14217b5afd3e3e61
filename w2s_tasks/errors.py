"""The one error that a user is meant to read: what was wrong, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator


class UserError(Exception):
    """A mistake in a config, a file or the environment; the command line prints it without a traceback and exits with 2."""


class MissingDataError(UserError):
    """Data that is not on this machine, where a plan can still be made without it."""


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error, what caused it, what caused that, and so on; each once."""
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and not any(cause is one for one in seen):
        seen.append(cause)
        yield cause
        cause = cause.__cause__ or cause.__context__


def nearest(word: str, known: Iterable[str], most: int = 1) -> str:
    """Return ``' Did you mean X?'`` for the closest known words, at most so many, or an empty string where none is close."""
    matches = difflib.get_close_matches(word, list(known), n=most, cutoff=0.6)
    return f" Did you mean {' or '.join(map(repr, matches))}?" if matches else ""
