"""A sweep's cells for Python and notebooks: the tables of all their reports, each row with the cell's values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainers.report.frames import Row, Table
from trainers.report.results import Results, load_report
from w2s_tasks.errors import UserError, nearest

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = {
    "cell": "The cell's folder below cells/.",
    "status": "done or failed.",
    "pgr": "PGR of its first student: 0 as the weak supervisor, 1 as the ceiling; missing where undefined.",
    "ci95.low": "Lower end of Fieller's 95 % interval; missing where undefined or unbounded.",
    "ci95.high": "Upper end.",
    "reason": "Why PGR is undefined, or what its interval holds for.",
    "seconds": "That its stages took when they were made.",
    "error": "Why it failed.",
}


class Swept:
    """What came of a sweep. Tables of the reports are attributes: ``swept.gaps`` has those of all finished cells."""

    def __init__(self, outcomes: Sequence[dict[str, Any]], folder: Path) -> None:
        """Nothing is read yet.

        Args:
            outcomes: of the cells, as sweep.json has them.
            folder: the sweep's.
        """
        self._outcomes, self.folder = list(outcomes), folder

    @property
    def cells(self) -> pd.DataFrame:
        """A row a cell: its values, how it ended, PGR of its first student, seconds."""
        return Table("A cell.", [_row(outcome) for outcome in self._outcomes], COLUMNS).frame()

    def __iter__(self) -> Iterator[str]:
        """Names of the cells that are finished."""
        return (outcome["cell"] for outcome in self._outcomes if outcome["status"] == "done")

    def __getitem__(self, cell: str) -> Results:
        """A finished cell's report.

        Raises:
            KeyError: no such cell, or it failed.
        """
        done = list(self)
        if cell not in done:
            raise KeyError(f"no finished cell '{cell}'.{nearest(cell, done)}")
        return load_report(self.folder / "cells" / cell)

    def table(self, name: str) -> pd.DataFrame:
        """A table of all finished cells, the cell and its values in columns before; see `Results`.

        Raises:
            UserError: no cell is finished. AttributeError: no such table.
        """
        import pandas as pd

        frames = []
        for outcome in self._outcomes:
            if outcome["status"] == "done":
                frame = getattr(self[outcome["cell"]], name)
                for key, value in reversed([("cell", outcome["cell"]), *_values(outcome).items()]):
                    frame.insert(0, key, [value] * len(frame))
                frames.append(frame)
        if not frames:
            raise UserError(f"no cell of {self.folder} is finished; look at cells.error.")
        return pd.concat(frames, ignore_index=True)

    def __getattr__(self, name: str) -> pd.DataFrame:
        if name.startswith("_"):
            raise AttributeError(name)
        return self.table(name)

    def __repr__(self) -> str:
        done = len(list(self))
        return f"<Swept: {done} of {len(self._outcomes)} cells finished in {self.folder}>"

    def _repr_html_(self) -> str:
        return str(self.cells.to_html(escape=True, index=False))


def _row(outcome: dict[str, Any]) -> Row:
    low, high = outcome.get("ci95") or (None, None)
    told = {name: outcome.get(name) for name in COLUMNS} | {"ci95.low": low, "ci95.high": high}
    return {"cell": told.pop("cell"), **_values(outcome), **told}


def _values(outcome: dict[str, Any]) -> Row:
    """Of the grid; tables have columns of such names themselves (method, seed)."""
    return {f"grid.{key}": value for key, value in outcome["values"].items()}
