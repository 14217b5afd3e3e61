"""The one error that a user is meant to read: what was wrong, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator


class UserError(Exception):
    """A mistake in a config, a file or the environment; the command line prints it without a traceback and exits with 2."""


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error, what caused it, what caused that, and so on; each once."""
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and not any(cause is one for one in seen):
        seen.append(cause)
        yield cause
        cause = cause.__cause__ or cause.__context__


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ``' Did you mean X?'`` for the closest known word, or an empty string where none is close."""
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean '{match[0]}'?" if match else ""
