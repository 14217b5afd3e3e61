"""Tables as columns of plain Python values, from whatever a user has them in: a frame, a data set, a list of dicts, a file.

A missing cell is None, whatever it was before (NaN, NaT, pd.NA, an empty cell of a CSV). Rows count from 0 in all errors.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from w2s_tasks.errors import UserError, nearest
from w2s_tasks.user_text import one_line, parse_json, read_text, shown

Columns = dict[str, list[Any]]
"""Values by column, all columns of one length."""

WHOLE = re.compile(r"-?(?:0|[1-9][0-9]{0,17})")
DECIMAL = re.compile(r"-?[0-9]+\.[0-9]+")
SEPARATORS = {"a comma": ",", "a semicolon": ";", "a tab": "\t"}
KINDS = (".csv", ".tsv", ".jsonl", ".parquet")


def size(columns: Columns) -> int:
    """How many rows there are."""
    return len(next(iter(columns.values()), ()))


def row_of(columns: Columns, row: int) -> dict[str, Any]:
    """One row by column."""
    return {name: values[row] for name, values in columns.items()}


def taken(columns: Columns, rows: Iterable[int]) -> Columns:
    """Some of the rows, in the order in which they are named."""
    rows = list(rows)
    return {name: [values[row] for row in rows] for name, values in columns.items()}


def check_column(columns: Columns, name: str, what: str) -> None:
    """Refuse a name that is no column.

    Raises:
        UserError: with the columns that there are.
    """
    if name not in columns:
        known = ", ".join(map(repr, list(columns)[:20])) + (", ..." if len(columns) > 20 else "")
        raise UserError(f"{what}: no column {shown(name)}.{nearest(name, columns)} The columns: {known}.")


# ---- values -----------------------------------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    """A cell as a plain value: numpy's and pandas' own kinds turned into Python's, what is missing into None."""
    import numpy as np
    import pandas as pd

    if isinstance(value, np.ndarray):
        return [_plain(part) for part in value.tolist()]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    missing = value is pd.NA or value is pd.NaT or (isinstance(value, float) and value != value)
    return None if missing else value


def columns_of(rows: Any, where: str = "rows") -> Columns:
    """The columns of a pandas frame, a `datasets.Dataset` or a list of dicts.

    Args:
        rows: them.
        where: what they are called in errors.

    Raises:
        UserError: none of these, no rows, or column names that are no texts or stand twice.
    """
    import datasets
    import pandas as pd

    if isinstance(rows, datasets.Dataset):
        columns: Any = rows.with_format(None).to_dict()
    elif isinstance(rows, pd.DataFrame):
        names = [str(name) for name in rows.columns]
        twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
        if twice is not None:
            raise UserError(f"{where}: two columns are called {shown(twice)}; rename one of them.")
        columns = {name: rows.iloc[:, i].tolist() for i, name in enumerate(names)}
    elif isinstance(rows, Iterable) and not isinstance(rows, str | bytes | Mapping | datasets.IterableDataset):
        columns = _of_dicts(list(rows), where)
    else:
        raise UserError(
            f"{where}: a pandas frame, a datasets.Dataset or a list of dicts is expected, found {type(rows).__name__}."
        )
    odd = next((name for name in columns if not isinstance(name, str)), None)
    if odd is not None:
        raise UserError(f"{where}: the column name {shown(odd)} is no text; rename it.")
    if not size(columns):
        raise UserError(f"{where}: there are no rows.")
    return {name: [_plain(value) for value in values] for name, values in columns.items()}


def _of_dicts(rows: list[Any], where: str) -> Columns:
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise UserError(f"{where}: row {number} is no dict of columns, but {shown(row)}.")
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


# ---- files ------------------------------------------------------------------------------------------------------------


def read_table(path: Path) -> tuple[Columns, list[str]]:
    """The columns of a CSV, TSV, JSONL or parquet file, and what had to be guessed to read it.

    Raises:
        UserError: no such kind of file, not readable, no rows, or rows of another length than the header.
    """
    kind, notes = path.suffix.lower(), []
    if kind not in KINDS:
        raise UserError(f"{path}: a table is read from {', '.join(KINDS)}; save it as one of them.")
    if kind == ".parquet":
        return columns_of(_parquet_rows(path), str(path)), []
    text = read_text(path)
    if kind == ".jsonl":
        lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
        return columns_of([parse_json(line, f"{path}:{n}") for n, line in lines], str(path)), []
    header = text.partition("\n")[0]
    name = "a tab" if kind == ".tsv" else max(SEPARATORS, key=lambda s: header.count(SEPARATORS[s]))
    if kind == ".csv" and name != "a comma":
        notes.append(f"cells are parted by {name}: the first line has more of them than commas")
    return _of_csv(text, SEPARATORS[name], path), notes


def _parquet_rows(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path).read().to_pylist()
    except (OSError, pa.ArrowException, ValueError) as error:
        raise UserError(f"{path}: not readable as parquet ({one_line(error)}).") from error


def _of_csv(text: str, separator: str, path: Path) -> Columns:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        header = next(reader, [])
        rows = []
        for row in reader:
            if row and len(row) != len(header):
                raise UserError(
                    f"{path}:{reader.line_num}: {len(row)} cells, and the first line has {len(header)}; put a text with a "
                    "separator or a line break in it in double quotes."
                )
            rows += [row] if row else []
    except csv.Error as error:
        raise UserError(
            f"{path}:{reader.line_num}: not readable as a table ({one_line(error)}); is a quote open?"
        ) from error
    twice = next((name for name in header if header.count(name) > 1), None) if len(set(header)) < len(header) else None
    if twice is not None:
        raise UserError(f"{path}: two columns are called {shown(twice)}; rename one of them.")
    if not rows:
        raise UserError(f"{path}: there are no rows below the first line, which names the columns.")
    return {name: _typed(cells) for name, cells in zip(header, map(list, zip(*rows, strict=True)), strict=True)}


def _typed(cells: list[str]) -> list[Any]:
    """Cells as numbers where all of them are some, else as they are written; an empty one is missing."""
    filled = [cell for cell in cells if cell]
    for pattern, kind in ((WHOLE, int), (DECIMAL, float)):
        if filled and all(pattern.fullmatch(cell) for cell in filled):
            return [kind(cell) if cell else None for cell in cells]
    return [cell or None for cell in cells]
