"""`w2s bench`: tasks, supervisors, methods and seeds as one sweep with one report over all tasks.

The experiments share a store, as the cells of a sweep do: what several need (a prepared strong model) is built once. Each
leaves its report in ``<run folder>/cells/<task>.<supervisor>/``; the bench's own is made of those alone. With a folder of
reports (``--reports``), experiments whose report is there are not run again, and those that finish leave theirs there: so a
bench is run in pieces, on several machines, and its result kept with the code.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainers.commands.run import Terms
from trainers.commands.sweep import Cell, Outcome, Sweep, outcomes_of
from trainers.config.bench import Bench, cell_name, load_bench
from trainers.config.experiment import Experiment
from trainers.flow.stamp import fingerprint
from trainers.report import bench as numbers
from trainers.report.bench_page import render
from trainers.store.remote import open_remote
from trainers.store.stages import write_atomic
from w2s_tasks.errors import UserError


@dataclass
class Pieces:
    """A bench that is laid out: its experiments as the cells of a sweep, and where finished ones are kept."""

    title: str
    bench: Bench
    sweep: Sweep
    reports: Path | None

    def kept(self, cell: Cell) -> Path | None:
        """A finished experiment's report in the folder of reports; None where it is not there.

        Raises:
            UserError: one of another configuration.
        """
        file = self.reports / f"{cell.name}.json" if self.reports else None
        if file is None or not file.is_file():
            return None
        found = Experiment.model_validate(_config(file))
        if fingerprint(found) != fingerprint(cell.config):
            raise UserError(
                f"{file}: this report is of another configuration of {cell.name}. Take it away to run that experiment again "
                "or give another folder."
            )
        return file

    def file_of(self, cell: Cell) -> Path | None:
        """A finished experiment's report, wherever it is."""
        own = self.sweep.folder_of(cell) / "report.json"
        done = self.sweep.outcome(cell)["status"] == "done" and own.is_file()
        return self.kept(cell) or (own if done else None)

    def left(self, cells: Sequence[Cell]) -> list[Cell]:
        """The experiments that are not in the folder of reports."""
        return [cell for cell in cells if self.kept(cell) is None]

    def run(self, cells: Sequence[Cell], terms: Terms) -> list[Outcome]:
        """Run experiments, and keep each one's report as soon as it is there."""
        outcomes, by_name = [], {cell.name: cell for cell in cells}
        for outcome in outcomes_of(self.sweep, cells, terms) if cells else ():
            outcomes.append(outcome)
            if outcome["status"] == "done":
                self._keep(by_name[outcome["cell"]])
        return outcomes

    def _keep(self, cell: Cell) -> None:
        if self.reports is not None:
            self.reports.mkdir(parents=True, exist_ok=True)
            text = (self.sweep.folder_of(cell) / "report.json").read_text(encoding="utf-8")
            write_atomic(self.reports / f"{cell.name}.json", numbers.portable(text, f"w2s bench {self.title}"))

    def parts(self) -> Iterator[numbers.Part]:
        """What the finished experiments say."""
        for cell in self.sweep.cells:
            if file := self.file_of(cell):
                yield numbers.read_finished(file, **cell.values)

    def report(self) -> tuple[numbers.BenchReport, Path]:
        """Write the bench's report of all that is finished; with a folder of reports bench.json goes there too."""
        parts = list(self.parts())
        found = numbers.form(self.title, self.bench, parts)
        path = numbers.write(found, self.sweep.folder, render(found, parts))
        if self.reports is not None and parts:
            write_atomic(self.reports / "bench.json", path.read_text(encoding="utf-8"))
        return found, path


def _config(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))["config"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: no report. Take it away to run that experiment again.") from error


def open_bench(
    name: str,
    assignments: Sequence[str],
    runs_dir: Path,
    *,
    reports: Path | None = None,
    max_cost: float | None = None,
    store: str | None = None,
) -> Pieces:
    """Lay out a bench over its folder, ``runs_dir/<bench>``.

    Args:
        name: a file, or a name that ships.
        assignments: ``--set`` of what all experiments have in common.
        runs_dir: where run folders are kept.
        reports: a folder of finished experiments' reports.
        max_cost: USD that services may cost in all.
        store: the URL of an object store behind the folder.

    Raises:
        UserError: as `load_bench`.
    """
    title, bench, experiments = load_bench(name, assignments)
    cells = [
        Cell(number, cell_name(*pair), dict(zip(("task", "supervisor"), pair, strict=True)), config)
        for number, (pair, config) in enumerate(experiments.items(), start=1)
    ]
    base = cells[0].config.model_copy(update={"name": title})
    sweep = Sweep(base, bench.model_dump(mode="json"), cells, runs_dir / title, max_cost, open_remote(store, title))
    sweep.pull()
    return Pieces(title, bench, sweep, reports)
