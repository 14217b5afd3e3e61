"""What rows of a user's must be before they are a task: texts, choices and labels, each refused with its row and column."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from w2s_tasks.errors import UserError
from w2s_tasks.own.tables import Columns, check_column, row_of, size
from w2s_tasks.rows.readable import place_of
from w2s_tasks.user_text import one_line, shown

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
LONGEST = 100
"""Characters of a task's name, which stands in the names of lm_eval's files."""
RESERVED = "w2s_"
"""How columns begin that mean something to this suite's scores."""


def check_name(name: str) -> None:
    """Refuse a name that no task can have.

    Raises:
        UserError: with the letters that it may be made of.
    """
    if not isinstance(name, str) or not NAME.fullmatch(name) or len(name) > LONGEST:
        raise UserError(
            f"name: {shown(name)} can't be a task's name: letters, digits, _, . and - only, at most {LONGEST} of them, and "
            "no . or - in front."
        )


@functools.cache
def _our_names() -> frozenset[str]:
    from w2s_tasks.plugin.manager import W2STaskManager

    return frozenset(W2STaskManager(include_defaults=False).task_index)


def check_free(name: str) -> None:
    """Refuse a name that a task of this suite or of lm_eval has.

    Raises:
        UserError: with whose it is.
    """
    from w2s_tasks.plugin.stock_names import stock_has

    if name in _our_names():
        raise UserError(f"name: {name!r} is a task, group or tag of this suite; choose another name.")
    if stock_has(name):
        raise UserError(f"name: {name!r} is a task, group or tag of lm_eval's own; choose another name.")


def check_text(value: Any, where: str) -> None:
    """Refuse what is no text that a file can hold.

    Raises:
        UserError: with `where`.
    """
    if not isinstance(value, str):
        kind = "there is nothing" if value is None else f"{shown(value)} is no text"
        raise UserError(f"{where}: {kind}; fill it in, turn it into text, or take the row out.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: {shown(value)} holds half a character, which no file can; write the whole one."
        ) from error


# ---- prompts ----------------------------------------------------------------------------------------------------------


def prompts(columns: Columns, text: str, label: str, where: str) -> list[str]:
    """The prompt of each row, as lm_eval will render it.

    Args:
        columns: the rows.
        text: a column, taken as it is, or a template of columns.
        label: the column of the label, which no prompt may show.
        where: what the rows are called in errors.

    Raises:
        UserError: an unknown column, a cell that is missing or no text, a prompt that is empty, a number to lm_eval, or
            ends in white space, behind which no choice can stand.
    """
    if text in columns:
        for row, value in enumerate(columns[text]):
            check_text(value, f"{where}: row {row}, column {text!r}")
        found: list[str] = columns[text]
        remedy = "" if not re.fullmatch(r"[^\W\d]\w*", text) else f"; text='{{{{{text}|trim}}}}' takes it away"
    else:
        found, remedy = _rendered(columns, text, label, where), "; take it out of the template, or trim the column"
    for row, prompt in enumerate(found):
        place = f"{where}: row {row}, text {shown(text)}"
        if not prompt.strip():
            raise UserError(f"{place}: the prompt is empty; fill it in, or take the row out.")
        if prompt != prompt.rstrip():
            raise UserError(f"{place}: the prompt ends in white space, and a choice is put behind it with a space{remedy}.")
        if text not in columns and prompt.isdigit():
            raise UserError(f"{place}: lm_eval takes the prompt {prompt!r} for a number; put a word into the template.")
    return found


def _rendered(columns: Columns, text: str, label: str, where: str) -> list[str]:
    from jinja2 import TemplateError, meta
    from lm_eval.utils import env

    if not isinstance(text, str) or ("{{" not in text and "{%" not in text):
        check_column(columns, text, "text: a column, or a template with {{column}}")
    try:
        named = meta.find_undeclared_variables(env.parse(text)) - env.globals.keys()
        template = env.from_string(text)
    except TemplateError as error:
        raise UserError(f"text: {shown(text)} is no template that Jinja reads: {one_line(error)}.") from error
    for name in sorted(named):
        check_column(columns, name, f"text {shown(text)}")
        for row, value in enumerate(columns[name]):
            if value is None or isinstance(value, str):
                check_text(value, f"{where}: row {row}, column {name!r}")
    if label in named:
        raise UserError(f"text {shown(text)} shows the column {label!r}, which is the answer; take it out.")
    if not named:
        raise UserError(f"text {shown(text)} names no column, so that all rows would be asked the same.")
    found = []
    for row in range(size(columns)):
        try:
            found.append(template.render(**row_of(columns, row)))
        except Exception as error:  # a template's filters raise anything
            place = f"{where}: row {row}, text {shown(text)}"
            raise UserError(f"{place} can't be rendered: {type(error).__name__}: {one_line(error)}.") from error
    return found


# ---- choices and labels -----------------------------------------------------------------------------------------------


def check_choices(choices: Any, where: str) -> None:
    """Refuse choices that are not two or more different texts.

    Raises:
        UserError: with `where`.
    """
    if not isinstance(choices, list | tuple):
        raise UserError(f"{where}: a list of texts is expected, found {shown(choices)}.")
    for number, choice in enumerate(choices):
        check_text(choice, f"{where}: choice {number} of {shown(list(choices))}")
        if choice != choice.strip() or not choice:
            raise UserError(f"{where}: choice {number}, {choice!r}, is empty or begins or ends in white space; strip it.")
    if len(choices) < 2:
        raise UserError(f"{where}: {len(choices)} choices, {shown(list(choices))}, so there is nothing to choose from.")
    twice = next((choice for choice, n in Counter(choices).items() if n > 1), None)
    if twice is not None:
        raise UserError(f"{where}: the choice {shown(twice)} stands there twice.")


def plain_choices(choices: Any) -> list[Any]:
    """The choices of all rows as a list of plain values, from a tuple, an array or a pandas index.

    Raises:
        UserError: there is nothing to go through.
    """
    if not isinstance(choices, Iterable):
        raise UserError(
            f"choices: a list of texts, or a column with a list in each row, is expected, found {shown(choices)}."
        )
    return [str(choice) if isinstance(choice, str) else choice for choice in choices]


def choices_of(columns: Columns, choices: Sequence[str] | str, where: str) -> list[list[str]]:
    """The choices of each row.

    Args:
        columns: the rows.
        choices: those of all rows, or the column that has each row's own.
        where: what the rows are called in errors.

    Raises:
        UserError: as `check_choices`, and where there is no such column.
    """
    if not isinstance(choices, str):
        check_choices(choices, "choices")
        return [list(choices)] * size(columns)
    check_column(columns, choices, "choices: a list of texts, or a column with a list in each row")
    for row, own in enumerate(columns[choices]):
        check_choices(own, f"{where}: row {row}, column {choices!r}")
    return columns[choices]


def _place(value: Any, choices: Sequence[str]) -> int | None:
    """The place of the choice that a label means, by its text or as a number from 0; None where it means none."""
    place = place_of(value, lambda: choices)
    return place if place is not None and 0 <= place < len(choices) else None


def _of_two_minds(values: Sequence[Any], choices: Sequence[Sequence[str]]) -> int | None:
    """The first row whose number counts to another choice than the one whose text it is; None where there is none.

    Only where the text of every label is a choice: labels 0 to 4 of the choices "1" to "5" can but count them.
    """
    first = None
    for row, (value, own) in enumerate(zip(values, choices, strict=True)):
        text = str(value).casefold() if isinstance(value, bool) else str(value)
        texts = [choice.casefold() for choice in own] if isinstance(value, bool) else list(own)
        if isinstance(value, str) or text not in texts:
            return None
        if first is None and texts.index(text) != _place(value, own):
            first = row
    return first


def places(columns: Columns, label: str, choices: Sequence[Sequence[str]], where: str) -> list[int]:
    """The place of each row's right choice, counted from 0.

    Args:
        columns: the rows.
        label: the column that has it, as a number from 0 or as the choice's text.
        choices: of each row.
        where: what the rows are called in errors.

    Raises:
        UserError: a label that is none of the choices, or that means another one by its number than by its text.
    """
    check_column(columns, label, "label")
    values = columns[label]
    odd = _of_two_minds(values, choices)
    if odd is not None:
        raise UserError(
            f"{where}: row {odd}, column {label!r}: {values[odd]!r} is the text of one of the choices "
            f"{shown(list(choices[odd]))} and the number of another, counted from 0. Turn the column into text if it is the "
            "text; else call the choices otherwise."
        )
    found = [_place(value, own) for value, own in zip(values, choices, strict=True)]
    for row, place in enumerate(found):
        if place is None:
            value, known = values[row], shown(list(choices[row]))
            said = "there is no label" if value is None else f"{shown(value)} is no label"
            hint = " (a text of digits is no number)" if isinstance(value, str) and value.isdigit() else ""
            raise UserError(
                f"{where}: row {row}, column {label!r}: {said}{hint}: it is the text of one of the choices {known}, or its "
                f"number from 0 to {len(choices[row]) - 1}. Mend it, or take the row out."
            )
    return [place for place in found if place is not None]


def check_one_answer(labels: Sequence[int], own_choices: bool, choices: Sequence[str], where: str) -> None:
    """Refuse rows that all have the same right answer: there is nothing to learn and nothing to tell apart.

    Raises:
        UserError: with what to do.
    """
    if len(set(labels)) > 1:
        return
    if own_choices:
        raise UserError(
            f"{where}: in all {len(labels)} rows choice {labels[0]} is the right one, so that its place tells the answer. "
            "Shuffle the choices: shuffle=True (`--shuffle`) puts them in the order of `form: shuffle`, drawn by row."
        )
    raise UserError(
        f"{where}: all {len(labels)} rows have the label {choices[labels[0]]!r}; rows of another one are needed."
    )
