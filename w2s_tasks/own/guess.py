"""What the columns of a table are: `w2s tasks new` looks, says why in a line each, and asks nobody.

A guess is made where one column alone fits; else an error names the option that decides.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from w2s_tasks.errors import UserError
from w2s_tasks.own.parts import ALIASES, SPLITS
from w2s_tasks.own.tables import Columns, check_column
from w2s_tasks.user_text import shown

TEXTS = (
    "text",
    "sentence",
    "question",
    "prompt",
    "input",
    "review",
    "comment",
    "content",
    "message",
    "document",
    "statement",
    "query",
    "premise",
    "tweet",
)
LABELS = (
    "label",
    "labels",
    "gold",
    "gold_label",
    "answer",
    "answerkey",
    "target",
    "class",
    "category",
    "sentiment",
    "correct",
    "correct_answer",
    "y",
)
"""How the columns of texts and labels are often called."""
SPLIT_NAMES = ("split", "fold", "partition", "subset")
OPTION = re.compile(
    r"(?P<stem>|option|opt|op|choice|answer|ans|ending|candidate|response|sol)[ _-]?(?P<mark>[a-h]|[0-9])", re.IGNORECASE
)
MOST_CLASSES = 20
"""Different labels from which on a column is no label."""
ROWS_A_CLASS = 4
"""Rows of each label, on average, that a column without a label's name must have to be one."""


@dataclass(frozen=True)
class Told:
    """What a user said of the table; None or empty for what is to be guessed."""

    text: str | None = None
    label: str | None = None
    choices: Sequence[str] = ()
    options: Sequence[str] = ()
    """The columns that hold each row's own choices: one with lists, or several with a text each."""
    split: str | None = None
    group: str | None = None


@dataclass
class Guess:
    """What the columns are, and why."""

    columns: Columns
    text: str = ""
    label: str = ""
    choices: Sequence[str] | str = ()
    split: str | None = None
    notes: list[str] = field(default_factory=list)


def guess(columns: Columns, told: Told, where: str) -> Guess:
    """The parts of a task in a table.

    Raises:
        UserError: a column that is not there, or a part that more than one column could be, with the option that says it.
    """
    for option, names in (
        ("--label", [told.label]),
        ("--split", [told.split]),
        ("--group", [told.group]),
        ("--options", told.options),
    ):
        for name in names:
            if name is not None:
                check_column(columns, name, option)
    found = Guess(columns)
    found.split = told.split or _split(found)
    used = {found.split, told.group}
    options = list(told.options) or _options(found, used, told)
    used |= set(options)
    found.label = told.label or _label(found, used, bool(options), where)
    used |= {found.label}
    text = told.text or _text(found, used, where)
    if options:
        _join(found, options, where)
    else:
        _name_classes(found, told.choices, where)
    found.text = _prompt(found, text, bool(options))
    return found


def _is_text(values: Sequence[Any]) -> bool:
    return any(isinstance(v, str) for v in values) and all(v is None or isinstance(v, str) for v in values)


def _split(found: Guess) -> str | None:
    known = {*SPLITS, *ALIASES}
    for name, values in found.columns.items():
        if name.casefold() in SPLIT_NAMES and all(str(value).strip().lower() in known for value in values):
            found.notes.append(f"split: the column {name!r}, whose cells name splits (--split)")
            return name
    return None


# ---- choices of each row's own ----------------------------------------------------------------------------------------


def _options(found: Guess, used: Iterable[str | None], told: Told) -> list[str]:
    """The columns that hold each row's own choices; none where all rows have the same."""
    if told.choices:
        return []
    lists = [n for n, values in found.columns.items() if n not in used and all(isinstance(v, list) for v in values)]
    if len(lists) > 1:
        raise UserError(
            f"more than one column holds lists: {', '.join(map(repr, lists))}; say which are the choices: --options."
        )
    if lists:
        found.notes.append(f"choices: the column {lists[0]!r}, the only one with a list in each row (--options)")
        return lists
    stems: dict[str, list[str]] = {}
    for name, values in found.columns.items():
        match = OPTION.fullmatch(name)
        if match and name not in used and name != told.label and not all(value is None for value in values):
            stems.setdefault(match["stem"].casefold(), []).append(name)
    for names in stems.values():
        marks = [_mark(name) for name in names]
        if len(names) > 1 and marks == [chr(ord(marks[0]) + i) for i in range(len(marks))] and marks[0] in "a01":
            found.notes.append(
                f"choices: the columns {', '.join(map(repr, names))}, each row's own, by their names (--options)"
            )
            return names
    return []


def _mark(name: str) -> str:
    """The letter or digit that an option's column ends in."""
    match = OPTION.fullmatch(name)
    return match["mark"].casefold() if match else name


def _join(found: Guess, options: Sequence[str], where: str) -> None:
    """Put the choices of a row into one list, and say which of them the label names."""
    columns, label = found.columns, found.label
    if len(options) == 1:
        found.choices = options[0]
        return
    if "choices" in columns and "choices" not in options:
        raise UserError(f"{where}: the choices of a row become a column 'choices', and there is one already; rename it.")
    rows = zip(*(columns[name] for name in options), strict=True)
    # Texts that look like numbers are texts here.
    joined = [[str(v) if isinstance(v, int | float) else v for v in own] for own in rows]
    found.choices = "choices"
    marks = {_mark(name): place for place, name in enumerate(options)}
    names = {name.casefold(): place for place, name in enumerate(options)}
    labels = [str(value).strip().casefold() for value in columns[label]]
    new = {name: values for name, values in columns.items() if name not in options} | {"choices": joined}
    if set(labels) <= marks.keys() and not set(labels) <= set(map(str, range(len(options)))):
        found.notes.append(f"label: the cells of {label!r} are the marks of the choices: {', '.join(marks)}")
        new[label] = [own[marks[value]] for own, value in zip(joined, labels, strict=True)]
    elif set(labels) <= names.keys():
        found.notes.append(f"label: the cells of {label!r} are the names of the columns with the choices")
        new[label] = [own[names[value]] for own, value in zip(joined, labels, strict=True)]
    found.columns = new


# ---- the label --------------------------------------------------------------------------------------------------------


def _label(found: Guess, used: Iterable[str | None], own_choices: bool, where: str) -> str:
    named = [name for name in found.columns if name.casefold() in LABELS and name not in used]
    if len(named) == 1:
        found.notes.append(f"label: the column {named[0]!r}, by its name (--label)")
        return named[0]
    few = [] if own_choices else [n for n, values in found.columns.items() if n not in used and _few(values)]
    if not named and len(few) == 1:
        found.notes.append(f"label: the column {few[0]!r}, the only one with few different values (--label)")
        return few[0]
    could = named or few
    seen = (
        f"it could be {', '.join(map(repr, could[:10]))}"
        if could
        else f"the columns: {', '.join(map(repr, list(found.columns)[:20]))}"
    )
    raise UserError(f"{where}: which column is the label? Say it with --label COLUMN; {seen}.")


def _few(values: Sequence[Any]) -> bool:
    """Whether a column holds few different values, each of them often."""
    if not all(isinstance(value, str | int) for value in values):
        return False
    n = len(set(values))
    return 2 <= n <= MOST_CLASSES and len(values) >= ROWS_A_CLASS * n


def _name_classes(found: Guess, choices: Sequence[str], where: str) -> None:
    """What the labels are called: as the user says, or as they are written."""
    label = found.label
    values = found.columns[label]
    if choices:
        found.choices = list(choices)
        if all(str(value) in choices for value in values):
            found.columns = {**found.columns, label: [str(value) for value in values]}
        return
    row = next((row for row, value in enumerate(values) if value is None), None)
    if row is not None:
        raise UserError(f"{where}: row {row}, column {label!r}: there is no label; fill it in, or take the row out.")
    distinct = list(dict.fromkeys(values))
    if all(isinstance(value, bool) for value in values):
        found.choices = ["no", "yes"]
        found.notes.append(f"choices: no and yes, for {label!r} says false or true (--choices)")
    elif all(isinstance(value, str) for value in values):
        if len(distinct) > MOST_CLASSES:
            raise UserError(
                f"{where}: the column {label!r} has {len(distinct)} different texts, too many for choices. Which column "
                "is the label (--label), or which columns hold each row's own choices (--options)?"
            )
        found.choices = sorted(distinct)
        found.notes.append(f"choices: {', '.join(map(shown, found.choices))}, what {label!r} holds, sorted (--choices)")
    elif len(distinct) > MOST_CLASSES:
        raise UserError(
            f"{where}: the column {label!r} has {len(distinct)} different values; say which is the label: --label."
        )
    else:
        numbers = sorted(distinct, key=str)
        example = "no,yes" if len(distinct) == 2 else ",".join(f"name{i}" for i in range(len(distinct)))
        raise UserError(
            f"{where}: the column {label!r} holds {', '.join(map(str, numbers))}: say what they are called, number 0 "
            f"first: --choices {example}. To take them as they are written: --choices {','.join(map(str, numbers))}."
        )


# ---- the text ---------------------------------------------------------------------------------------------------------


def _text(found: Guess, used: Iterable[str | None], where: str) -> str:
    texts = [name for name, values in found.columns.items() if name not in used and _is_text(values)]
    named = [name for name in texts if name.casefold() in TEXTS]
    if len(named) == 1:
        found.notes.append(f"text: the column {named[0]!r}, by its name (--text)")
        return named[0]
    wordy = [n for n in texts if _wordy(found.columns[n])]
    if not named and len(wordy) == 1:
        found.notes.append(f"text: the column {wordy[0]!r}, the only one of different texts of several words (--text)")
        return wordy[0]
    could = named or wordy or texts
    seen = f"it could be {', '.join(map(repr, could[:10]))}" if could else "no column holds texts"
    raise UserError(
        f"{where}: which column is asked about? Say it with --text COLUMN, or with a template of several: --text "
        f"'{{{{passage}}}}\\nQuestion: {{{{question}}}}\\nAnswer:'; {seen}."
    )


def _wordy(values: Sequence[Any]) -> bool:
    texts = [value for value in values if value]
    return len(set(texts)) > len(texts) / 2 and sum(len(text.split()) for text in texts) >= 3 * len(texts)


def _prompt(found: Guess, text: str, own_choices: bool) -> str:
    """The prompt: a column with a word for the answer behind it, or the user's own template."""
    if text not in found.columns:
        return text.replace("\\n", "\n")  # as a shell passes it
    word = "Answer" if own_choices or not found.label.isidentifier() else found.label.replace("_", " ").capitalize()
    if not _can_be_named(text):
        found.notes.append(f"prompt: the column {text!r} alone, for a template can't name it (--text)")
        return text
    found.notes.append(f"prompt: {text!r} and '{word}:' below it (--text TEMPLATE)")
    return f"{{{{{text}}}}}\n{word}:"


def _can_be_named(column: str) -> bool:
    """Whether a template can name a column."""
    from jinja2 import Environment, TemplateError, meta

    if not column.isidentifier():
        return False
    try:
        env = Environment(autoescape=True)  # parsed, never rendered
        return column not in env.globals and meta.find_undeclared_variables(env.parse(f"{{{{{column}}}}}")) == {column}
    except TemplateError:
        return False


def name_of(path: Path) -> str:
    """A task's name from that of a file."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", path.stem).strip("_.-")
