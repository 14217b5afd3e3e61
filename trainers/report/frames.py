"""The report's lists as tables, one flat row an entry: what CSV files and pandas frames are both made of.

Every column has a sentence with its unit, from the docstring under the entry's field.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cache
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Union, cast, get_args, get_origin, get_type_hints

from trainers.report.entries import Interval
from trainers.report.section import Report

if TYPE_CHECKING:
    import pandas as pd

WHOSE = {"arm", "method", "seed"}
"""Columns that alone make no table."""
ENDS = {"low": "Lower end.", "high": "Upper end."}

Row = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """What a type of entries gives: its own columns, and lists of further entries in it."""

    about: str
    columns: dict[str, str]
    """Name to sentence."""
    inner: dict[str, Shape]


@dataclass(frozen=True)
class Table:
    """A list of the report, flat."""

    about: str
    rows: list[Row]
    described: dict[str, str] = field(repr=False)
    """A sentence for every column that the entries' type has; what only the rows know has the table's own."""

    @property
    def columns(self) -> dict[str, str]:
        """All columns with their sentences: those of the type, then what only the rows know (lm_eval's metrics)."""
        found = dict.fromkeys(key for row in self.rows for key in row) if self.rows else self.described
        return {name: self._sentence(name) for name in found}

    def _sentence(self, column: str) -> str:
        name = column
        while name not in self.described and "." in name:
            name = name.rpartition(".")[0]
        return self.described.get(name, self.about)

    def frame(self) -> pd.DataFrame:
        """As a frame; ``attrs["columns"]`` has each column's sentence, ``attrs["about"]`` what a row is."""
        import pandas as pd

        columns = self.columns
        frame = pd.DataFrame({name: _series([row.get(name) for row in self.rows]) for name in columns})
        frame.attrs |= {"about": self.about, "columns": columns}
        return frame


def _series(values: Sequence[Any]) -> pd.Series[Any]:
    """Values as a column in which what is undefined is missing, and whole numbers stay whole."""
    import pandas as pd

    known = [value for value in values if value is not None]
    missing = len(known) < len(values)
    if known and all(isinstance(value, bool) for value in known):
        return pd.Series(values, dtype="boolean" if missing else "bool")
    if known and all(isinstance(value, int) for value in known):
        return pd.Series(values, dtype="Int64" if missing else "int64")
    if values and all(isinstance(value, int | float) for value in known):
        return pd.Series(values, dtype="float64")
    return pd.Series([tuple(value) if isinstance(value, list) else value for value in values], dtype="object")


def tables(report: Report) -> dict[str, Table]:
    """Every list of entries by its key, empty ones too; entries that hold entries give a table of those too, or instead."""
    found: dict[str, Table] = {}
    values = report.json()
    for section in report.sections:
        for name, shape in _lists(section).items():
            found.update(_tables(name, shape, values[name]))
    return found


def _lists(section: type[Any]) -> dict[str, Shape]:
    """The lists of entries among a section's keys."""
    hints = get_type_hints(section)
    shapes = {one.name: _shape_of_list(hints[one.name]) for one in fields(section)}
    return {name: shape for name, shape in shapes.items() if shape is not None}


def _tables(name: str, shape: Shape, entries: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Table]]:
    rows = [_flat(entry, shape) for entry in entries]
    own = bool(set(shape.columns) - WHOSE)
    if own:
        yield name, Table(shape.about, rows, shape.columns)
    for key, inner in shape.inner.items():
        held = [row | _flat(part, inner) for row, entry in zip(rows, entries, strict=True) for part in entry[key]]
        yield f"{name}_{key}" if own else name, Table(inner.about, held, shape.columns | inner.columns)


def _flat(entry: Mapping[str, Any], shape: Shape, head: str = "") -> Row:
    """Nested mappings as dotted columns, intervals as two; a part that is not there leaves all of its columns empty."""
    row: Row = {}
    for key, value in entry.items():
        name = f"{head}{key}"
        within = [column for column in shape.columns if column.startswith(f"{name}.")]
        if name in shape.inner:
            continue
        if isinstance(value, Mapping):
            row |= _flat(value, shape, f"{name}.")
        elif within and value is None:
            row |= dict.fromkeys(within)
        elif within:
            row |= dict(zip(within, value, strict=True))
        else:
            row[name] = value
    return row


# ---- what the types say --------------------------------------------------------------------------------------------------


def _shape_of_list(hint: Any) -> Shape | None:
    """Of a list of entries; None for any other type."""
    if get_origin(hint) is not list:
        return None
    (item,) = get_args(hint)
    if is_dataclass(item):
        return _shape(cast(Any, item))
    return Shape("", {}, {}) if get_origin(item) is dict else None


@cache
def _shape(kind: type[Any]) -> Shape:
    """The columns that entries of a type give."""
    columns, inner = dict[str, str](), dict[str, Shape]()
    hints, told = get_type_hints(kind), _sentences(kind)
    for one in fields(kind):
        sentence, hint = told.get(one.name, ""), _bare(hints[one.name])
        if (listed := _shape_of_list(hint)) is not None:
            inner[one.name] = replace(listed, about=listed.about or sentence)
        elif is_dataclass(hint):
            parts = _shape(cast(Any, hint))
            columns |= {f"{one.name}.{k}": f"{sentence.removesuffix('.')}: {v}" for k, v in parts.columns.items()}
        elif _is_interval(hint):
            columns |= {f"{one.name}.{end}": f"{sentence} {which}" for end, which in ENDS.items()}
        else:
            columns[one.name] = sentence
    return Shape(inspect.cleandoc(kind.__doc__ or ""), columns, inner)


def _bare(hint: Any) -> Any:
    """A type without its `| None`."""
    if get_origin(hint) not in (Union, UnionType):
        return hint
    rest = [option for option in get_args(hint) if option is not NoneType]
    return rest[0] if len(rest) == 1 else hint


def _is_interval(hint: Any) -> bool:
    return hint in (Interval, tuple[float, float])


def _sentences(kind: type[Any]) -> dict[str, str]:
    """The docstrings under a class's fields, inherited ones included, each on one line."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not is_dataclass(base):
            continue
        try:
            (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        except (OSError, TypeError, SyntaxError, ValueError):  # a class that was made without a file
            continue
        body = getattr(tree, "body", [])
        for line, below in itertools.pairwise(body):
            match line, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[name] = " ".join(text.split())
    return found
