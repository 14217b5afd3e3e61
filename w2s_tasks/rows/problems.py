"""What lm_eval makes of a task's rows: missing cells in prompts, and labels that it reads otherwise than they were meant.

A label counts the choices from 0 where it is a number or a truth value, or digits that a template rendered; any other text
names one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jinja2.meta
from lm_eval.api.task import ConfigurableTask
from lm_eval.utils import env

from w2s_tasks.rows.readable import NONE, WHOLE
from w2s_tasks.user_text import shown

Doc = Mapping[str, Any]
PLAIN = re.compile(r"\{\{-?\s*(\w+)\s*-?\}\}")
"""A template that renders one column as it is."""


def targets(task: ConfigurableTask, docs: Iterable[Doc]) -> Iterator[Any]:
    """The targets of documents; a template is rendered once for all rows that are alike in the columns it names."""
    template = task.config.doc_to_target
    if not isinstance(template, str) or template in task.features:
        yield from map(task.doc_to_target, docs)
        return
    columns = sorted(jinja2.meta.find_undeclared_variables(env.parse(template)))
    known: dict[str, Any] = {}
    for doc in docs:
        key = repr([doc.get(column) for column in columns])
        if key not in known:
            known[key] = task.doc_to_target(doc)
        yield known[key]


def row_problem(task: ConfigurableTask, docs: Sequence[Doc], split: str) -> str | None:
    """Why the rows of a split would not be asked as they are meant, with the row and the remedy; None where they would."""
    return missing_cell(task, docs, split) or odd_choices(task, docs, split) or counted_labels(task, docs, split)


# ---- missing cells ----------------------------------------------------------------------------------------------------


def _spoils(render: Callable[[Doc], Any], doc: Doc, column: str) -> bool:
    """Whether a missing cell is rendered as None, or can't be rendered, where an empty text would do."""
    try:
        filled = str(render({**doc, column: ""}))
    except Exception:  # noqa: BLE001 - what an empty text breaks is told when the row is rendered
        return False
    try:
        return str(render(doc)).count("None") > filled.count("None")
    except Exception:  # noqa: BLE001 - a template or function that can't take None raises anything
        return True


def missing_cell(task: ConfigurableTask, docs: Iterable[Doc], split: str) -> str | None:
    """The first row whose missing cell would be the word None in its prompt, its choices or its label."""
    parts: dict[str, Callable[[Doc], Any]] = {"prompt": task.doc_to_text, "label": task.doc_to_target}
    if isinstance(task.config.doc_to_choice, str) or callable(task.config.doc_to_choice):
        parts["choices"] = task.doc_to_choice
    for row, doc in enumerate(docs):
        for column in (name for name, value in doc.items() if value is None):
            part = next((part for part, render in parts.items() if _spoils(render, doc, column)), None)
            if part:
                remedy = "fill it in, or take the row out of the data"
                if task.config.dataset_path == "csv":
                    remedy = (
                        "an empty cell, `null`, `n/a` and the like are read as missing. Take the row out, or put "
                        "`keep_default_na: false` under dataset_kwargs: cells are then read as they are written (and a "
                        "column of numbers with an empty cell as text)"
                    )
                return (
                    f"row {row} of its {split} split has nothing in the column '{column}', which its {part} needs: {remedy}"
                )
    return None


# ---- choices ----------------------------------------------------------------------------------------------------------


def odd_choices(task: ConfigurableTask, docs: Iterable[Doc], split: str) -> str | None:
    """Rows whose choices are not texts, or too few to choose from."""
    if task.OUTPUT_TYPE != "multiple_choice" or isinstance(task.config.doc_to_choice, list | dict):
        return None
    for row, doc in enumerate(docs):
        choices = task.doc_to_choice(doc)
        if not isinstance(choices, list) or not all(isinstance(c, str) and c for c in choices):
            return f"row {row} of its {split} split has the choices {shown(choices)}; they must be a list of texts"
        if len(choices) < 2:
            return f"row {row} of its {split} split has {len(choices)} choices, so there is nothing to choose from"
    return None


# ---- labels -----------------------------------------------------------------------------------------------------------


def _own_text(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _place_of_text(value: Any, choices: Sequence[str]) -> int:
    """Where a label's own text stands among the choices; a truth value's in capitals or not."""
    folded = [choice.casefold() if isinstance(value, bool) else choice for choice in choices]
    own = _own_text(value).casefold() if isinstance(value, bool) else _own_text(value)
    return folded.index(own) if own in folded else NONE


def _label_column(task: ConfigurableTask) -> tuple[str, bool] | None:
    """The column that is the label as it stands, and whether a template renders it."""
    setting = task.config.doc_to_target
    if not isinstance(setting, str):
        return None
    if setting in task.features:
        return setting, False
    plain = PLAIN.fullmatch(setting.strip())
    whole = next((c for c in task.features if setting == WHOLE.format(column=c)), None)
    return (whole, False) if whole else (plain[1], True) if plain and plain[1] in task.features else None


def by_text(column: str, value: Any, choices: Sequence[str]) -> str:
    """The setting that takes a label for the choice of its text, whatever its type."""
    text = f"{column}|int|string" if isinstance(value, float) else f"{column}|string"
    if isinstance(value, bool):
        text += "|lower"
        choices = [choice.lower() for choice in choices]
    return f'`doc_to_target: "{{{{ {list(choices)!r}.index({text}) }}}}"`'


def counted_labels(task: ConfigurableTask, docs: Iterable[Doc], split: str) -> str | None:
    """The first label that lm_eval counts by though its text is a choice at another place.

    Only where the text of every label is a choice: labels 0 to 4 of the choices "1" to "5" can but count them.
    """
    found = _label_column(task)
    ranking = (task.config.metadata or {}).get("trainable") is False
    if found is None or task.OUTPUT_TYPE != "multiple_choice" or task.multiple_input or task.multiple_target or ranking:
        return None
    column, rendered = found
    first = None
    for row, doc in enumerate(docs):
        value, choices = doc[column], task.doc_to_choice(doc)
        digits = rendered and _own_text(value).isdigit()
        place = _place_of_text(value, choices)
        if place == NONE or not (digits or (not rendered and isinstance(value, int | float))):
            return None
        counted = int(value)
        if place != counted and first is None:
            told = choices[counted] if 0 <= counted < len(choices) else "none"
            first = (
                f"row {row} of its {split} split has the label {value!r}, which lm_eval takes as a place among the choices, "
                f"counted from 0: {told!r} is right there, not {choices[place]!r}. If the label is the choice's text, write "
                f"{by_text(column, value, choices)}; if it is the place, say so with "
                f'`doc_to_target: "{{{{ {column}|int }}}}"`'
            )
    return first


def label_remedy(task: ConfigurableTask, doc: Doc, choices: Sequence[str]) -> str:
    """What to do about a label that is none of the choices, as a sentence; empty where only the data can be mended."""
    found = _label_column(task)
    if found is None:
        return ""
    column, rendered = found
    value = doc[column]
    if _place_of_text(value, choices) != NONE:
        return f" If the label is the choice's text, write {by_text(column, value, choices)}."
    if isinstance(value, str) and value.isdigit() and not rendered:
        return f' The label is text; to count the choices by its digits, write `doc_to_target: "{{{{ {column}|int }}}}"`.'
    return ""
