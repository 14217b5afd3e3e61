"""The report's tables as CSV files, one flat row an entry, for spreadsheets and plots of one's own."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from trainers.store.stages import write_atomic

TABLES = (
    "arms",
    "arm_means",
    "gaps",
    "weak_labels",
    "diagnostics",
    "disagreements",
    "safety",
    "safety_means",
    "safety_gaps",
    "safety_mean_gaps",
    "drift",
    "ladder",
    "associations",
    "tradeoff",
)
NUMBERS = re.compile(r"[-+\d.e ]+")
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def _flat(entry: Mapping[str, Any], head: str = "") -> dict[str, Any]:
    """Nested mappings as dotted columns; lists as one cell, but intervals as two."""
    row: dict[str, Any] = {}
    for key, value in entry.items():
        name = f"{head}{key}"
        if isinstance(value, Mapping):
            row |= _flat(value, f"{name}.")
        elif key.endswith("ci95") or (isinstance(value, list) and head.endswith("ci95.")):
            low, high = value if isinstance(value, list) and len(value) == 2 else (None, None)
            row |= {f"{name}.low": low, f"{name}.high": high}
        elif isinstance(value, list):
            row[name] = " ".join("" if x is None else str(x) for x in value)
        else:
            row[name] = value
    return row


def _cell(value: Any) -> Any:
    # A text that begins like a formula is run by spreadsheets; documents are untrusted.
    formula = isinstance(value, str) and value.startswith(FORMULA) and not NUMBERS.fullmatch(value)
    return f"'{value}" if formula else value


def _csv(rows: list[dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: _cell(v) for k, v in row.items()} for row in rows)
    return buffer.getvalue()


def _curves(curves: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{k: c[k] for k in ("arm", "method", "seed")} | point for c in curves for point in c["points"]]


def write_tables(report: Mapping[str, Any], folder: Path) -> None:
    """Write a CSV file for every table of the report that has rows; files of tables that have none any more go."""
    folder.mkdir(exist_ok=True)
    tables = {name: [_flat(entry) for entry in report.get(name) or []] for name in TABLES}
    for row in tables["ladder"]:
        row.pop("tasks", None)
    tables["ladder_tasks"] = [
        {k: e[k] for k in ("arm", "method", "num_fewshot", "split")} | task
        for e in report.get("ladder") or []
        for task in e["tasks"]
    ]
    tables["curves"] = _curves(report.get("curves") or [])
    for name, rows in tables.items():
        file = folder / f"{name}.csv"
        if rows:
            write_atomic(file, _csv(rows))
        else:
            file.unlink(missing_ok=True)
