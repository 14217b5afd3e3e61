"""The report's tables as CSV files, for spreadsheets and plots of one's own."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any

from trainers.report.frames import Table, tables
from trainers.report.section import Report
from trainers.store.stages import write_atomic

NUMBERS = re.compile(r"[-+\d.e ]+")
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def _cell(value: Any) -> Any:
    if isinstance(value, list | tuple):
        value = " ".join("" if x is None else str(x) for x in value)
    # A text that begins like a formula is run by spreadsheets; documents are untrusted.
    formula = isinstance(value, str) and value.startswith(FORMULA) and not NUMBERS.fullmatch(value)
    return f"'{value}" if formula else value


def _csv(table: Table) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(table.columns), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: _cell(v) for k, v in row.items()} for row in table.rows)
    return buffer.getvalue()


def write_tables(report: Report, folder: Path) -> None:
    """Write a CSV file for every list of the report that has entries; files of lists that have none any more go."""
    folder.mkdir(exist_ok=True)
    held = {name: table for name, table in tables(report).items() if table.rows}
    for old in folder.glob("*.csv"):
        if old.stem not in held:
            old.unlink()
    for name, table in held.items():
        write_atomic(folder / f"{name}.csv", _csv(table))
