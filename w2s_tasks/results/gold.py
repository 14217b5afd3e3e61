"""The right choice of a logged row: lm_eval writes every target as text, be it a number, a truth value or a choice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from w2s_tasks.errors import UserError


def _named(text: str, row: Mapping[str, Any], delimiter: str) -> int | None:
    """The choice with that text; what was scored is the delimiter and the choice, under a chat template the choice alone."""
    scored = [str(arguments["arg_1"]) for arguments in row["arguments"].values()]
    return next((scored.index(t) for t in (delimiter + text, text) if t in scored), None)


def gold_of(config: Mapping[str, Any], row: Mapping[str, Any]) -> int:
    """Index of the right choice, by lm_eval's own rules: a column's text names a choice, rendered digits count them.

    Args:
        config: the task's settings as the result file has them.
        row: a line of the sample file.

    Raises:
        UserError: a label that is none of the choices.
    """
    column = config.get("doc_to_target")
    typed = isinstance(column, str) and column in row["doc"]
    value = row["doc"][column] if typed else row["target"]
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return int(value)
    text = str(value)
    if not typed and text.isdigit():
        return int(text)
    named = _named(text, row, str(config.get("target_delimiter", " ")))
    if named is None and not typed and text in ("True", "False"):
        named = int(text == "True")
    if named is None:
        raise UserError(f"document {row['doc_id']}: its label {text!r} is none of the choices.")
    return named
