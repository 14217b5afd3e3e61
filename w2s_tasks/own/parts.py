"""Which rows are for training and which for evaluation: as a user gives them, or by a share drawn here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from w2s_tasks.errors import UserError, nearest
from w2s_tasks.own.tables import Columns, check_column, columns_of, size
from w2s_tasks.rows.families import connected
from w2s_tasks.rows.sources import digest
from w2s_tasks.user_text import shown

SPLITS = ("train", "validation", "test")
"""Splits as the task calls them; it is evaluated on test, and on validation where there is no test."""
ALIASES = {"dev": "validation", "val": "validation", "valid": "validation", "training": "train"}


def by_name(rows: Any, where: str = "rows") -> tuple[Columns, list[str] | None]:
    """Rows of one table or of a dict of splits, the splits behind one another, and the split of each row.

    Raises:
        UserError: as `columns_of`; splits of other names; columns that not all splits have.
    """
    if not isinstance(rows, Mapping):
        return columns_of(rows, where), None
    if not rows:
        raise UserError(f"{where}: there are no rows.")
    tables = {_split(name, where): columns_of(part, f"{where}[{name!r}]") for name, part in rows.items()}
    if len(tables) < len(rows):
        raise UserError(f"{where}: two splits mean the same: {', '.join(map(repr, rows))}.")
    names = list(next(iter(tables.values())))
    for split, table in tables.items():
        if set(table) != set(names):
            odd = sorted(set(table) ^ set(names))
            raise UserError(f"{where}: not all splits have the column {odd[0]!r} (see {split}); give all of them the same.")
    columns = {name: [value for table in tables.values() for value in table[name]] for name in names}
    return columns, [split for split, table in tables.items() for _ in range(size(table))]


def _split(name: Any, where: str) -> str:
    known = ALIASES.get(str(name).strip().lower(), str(name).strip().lower())
    if known not in SPLITS:
        raise UserError(f"{where}: no split {shown(name)}.{nearest(str(name), SPLITS)} Known: {', '.join(SPLITS)}.")
    return known


def by_column(columns: Columns, split: str, where: str) -> list[str]:
    """The split of each row by a column that names it.

    Raises:
        UserError: no such column, or other names than `SPLITS`, with the row.
    """
    check_column(columns, split, "split")
    return [_split(value, f"{where}: row {row}, column {split!r}") for row, value in enumerate(columns[split])]


def by_share(kinds: Sequence[Sequence[str]], share: float, seed: int) -> list[str]:
    """The split of each row: about a share to test, the rest to train; all to test where the share is 1.

    Rows that have a text in common stand on one side. Which side hangs on their texts and the seed alone.

    Args:
        kinds: for each kind of text (the prompt, the group) that of each row.
        share: of the rows that are tested on, above 0 and at most 1.
        seed: of the draw.

    Raises:
        UserError: all rows belong together, so that nothing is left for one side.
    """
    n = len(kinds[0])
    seen: dict[tuple[int, str], int] = {}
    family = connected(
        n, [(seen.setdefault((k, t), row), row) for k, kind in enumerate(kinds) for row, t in enumerate(kind)]
    )
    members: dict[int, list[int]] = {}
    for row, first in enumerate(family):
        members.setdefault(first, []).append(row)
    splits, tested = ["train"] * n, 0
    for rows in sorted(
        members.values(), key=lambda rows: digest("\x1f".join((str(seed), *(kind[rows[0]] for kind in kinds))))
    ):
        if tested and tested + len(rows) / 2 > share * n:
            break
        for row in rows:
            splits[row] = "test"
        tested += len(rows)
    if tested == n and share < 1:
        raise UserError(
            f"test: {n} rows in {len(members)} groups of rows that belong together leave none to train on; give the splits "
            "yourself."
        )
    return splits
