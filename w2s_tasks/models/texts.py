"""What a sequence classifier reads of a document: its prompt, columns or a template, and each of its answers."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from jinja2 import StrictUndefined, Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from lm_eval.utils import regex_replace

from w2s_tasks.errors import UserError, nearest
from w2s_tasks.user_text import one_line, shown

TextSpec = str | Sequence[str] | None
"""A column, a template with ``{{``, two columns, or None for the task's prompt."""
Pooling = Literal["last", "mean"]
"""Which hidden state stands for a text: its last token's, or the mean over its tokens."""
Text = tuple[str, ...]
"""One text, or a pair of texts."""


@functools.lru_cache(maxsize=16)
def _compiled(template: str) -> Template:
    """A template, compiled once for all documents."""
    # As lm_eval's own, but sandboxed: a checkpoint's config.json brings a template along, and whoever wrote that is unknown.
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters["regex_replace"] = regex_replace
    return environment.from_string(template)


def _rendered(template: str, doc: Mapping[str, Any]) -> str:
    try:
        return _compiled(template).render(**doc)
    except (TemplateError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"text: the template {shown(template)} can't be filled in: {type(error).__name__}: {one_line(error)}. "
            f"The documents have: {', '.join(doc)}."
        ) from error


def reads_prompt(spec: TextSpec) -> bool:
    """Whether an encoder with this setting reads the task's prompt, and not what it names of a document."""
    return spec is None or spec == "prompt"


def document_text(spec: TextSpec, doc: Mapping[str, Any], prompt: str) -> Text:
    """What the encoder reads of a document: one text, or a pair of texts.

    Args:
        spec: a column's name, a template with ``{{``, two columns' names, or None for the task's prompt.
        doc: the document.
        prompt: the prompt that the task renders for it.

    Raises:
        UserError: a column that the documents don't have.
    """
    if reads_prompt(spec):
        return (prompt,)
    if isinstance(spec, str) and "{{" in spec:
        return (_rendered(spec, doc),)
    columns = [spec] if isinstance(spec, str) else list(spec or ())
    return tuple(_cell("text", column, doc) for column in columns)


def _cell(setting: str, column: str, doc: Mapping[str, Any]) -> str:
    if column not in doc:
        raise UserError(
            f"{setting}: no column '{column}' in this task's documents.{nearest(column, doc)} Has: {', '.join(doc)}."
        )
    return str(doc[column]).strip()


def answer_texts(answers: Sequence[str] | None, doc: Mapping[str, Any], choices: Sequence[str]) -> list[str]:
    """What a model that scores answers one by one reads for each choice: the choice itself, or the column that it names.

    Args:
        answers: for each choice the column that holds its text, where the choices are names such as A and B.
        doc: the document.
        choices: the task's choices of it.

    Raises:
        UserError: a column that the documents don't have, or not one for each choice.
    """
    if answers is None:
        return [choice.strip() for choice in choices]
    if len(answers) != len(choices):
        raise UserError(f"answers: {len(answers)} columns ({', '.join(answers)}) for {len(choices)} choices.")
    return [_cell("answers", column, doc) for column in answers]
