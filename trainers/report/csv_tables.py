"""The report's lists as CSV files, one flat row an entry, for spreadsheets and plots of one's own."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainers.report.section import Report
from trainers.store.stages import write_atomic

NUMBERS = re.compile(r"[-+\d.e ]+")
FORMULA = ("=", "+", "-", "@", "\t", "\r")
WHOSE = ("arm", "method", "seed")

Row = dict[str, Any]


def _flat(entry: Mapping[str, Any], head: str = "") -> Row:
    """Nested mappings as dotted columns; lists as one cell, but intervals as two; lists of entries left out."""
    row: Row = {}
    for key, value in entry.items():
        name = f"{head}{key}"
        if isinstance(value, Mapping):
            row |= _flat(value, f"{name}.")
        elif key.endswith("ci95") or (isinstance(value, tuple) and head.endswith("ci95.")):
            low, high = value if isinstance(value, Sequence) else (None, None)
            row |= {f"{name}.low": low, f"{name}.high": high}
        elif isinstance(value, list | tuple):
            if not _entries(value):
                row[name] = " ".join("" if x is None else str(x) for x in value)
        else:
            row[name] = value
    return row


def _entries(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(entry, Mapping) for entry in value)


def _tables(report: Mapping[str, Any]) -> Iterator[tuple[str, list[Row]]]:
    """Every list of entries by its key; entries that hold entries give a table of those too, or instead."""
    for name, value in report.items():
        if not _entries(value):
            continue
        rows = [_flat(entry) for entry in value]
        inner = {key for entry in value for key, part in entry.items() if _entries(part)}
        own = any(set(row) - set(WHOSE) for row in rows)
        if own:
            yield name, rows
        for key in inner:
            parts = [(row, entry[key]) for row, entry in zip(rows, value, strict=True)]
            yield f"{name}_{key}" if own else name, [row | _flat(part) for row, held in parts for part in held]


def _cell(value: Any) -> Any:
    # A text that begins like a formula is run by spreadsheets; documents are untrusted.
    formula = isinstance(value, str) and value.startswith(FORMULA) and not NUMBERS.fullmatch(value)
    return f"'{value}" if formula else value


def _csv(rows: Sequence[Row]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: _cell(v) for k, v in row.items()} for row in rows)
    return buffer.getvalue()


def write_tables(report: Report, folder: Path) -> None:
    """Write a CSV file for every list of the report that has entries; files of lists that have none any more go."""
    folder.mkdir(exist_ok=True)
    tables = dict(_tables(report.json()))
    for old in folder.glob("*.csv"):
        if old.stem not in tables:
            old.unlink()
    for name, rows in tables.items():
        write_atomic(folder / f"{name}.csv", _csv(rows))
