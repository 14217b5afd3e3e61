"""`w2s sweep`: many variants of one experiment over one store, so that a stage that several of them need is built once.

A cell is the experiment with one value of each grid key. Its report goes to ``<run folder>/cells/<cell>/``; the stages of
all cells, and of a plain `w2s run` of the same file, are in ``<run folder>/stages``. Several processes may work on one
sweep (``--shard i/n``, or the same command twice): a stage is built by one of them while the others wait for it.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import logging
import math
import re
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from filelock import FileLock
from pydantic_core import to_jsonable_python
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from trainers.commands.run import Terms
from trainers.config.experiment import Experiment
from trainers.config.reading import Given, read
from trainers.config.resources import StepResources
from trainers.flow import ray_engine
from trainers.flow.jobs import Job, jobs_of
from trainers.flow.layout import Layout
from trainers.flow.progress import Progress
from trainers.flow.run import Run
from trainers.flow.stamp import STAMPS, stamp
from trainers.flow.worker import Built
from trainers.harness.evaluate import Harness, ModelPool
from trainers.report.blocks import standard_output
from trainers.report.report import WRITTEN, write_report
from trainers.report.section import Report
from trainers.report.sections.accuracy import Accuracy, Gap
from trainers.report.sections.cost import Cost
from trainers.report.text import percent
from trainers.store import processes
from trainers.store.costs import Budget
from trainers.store.remote import Remote, open_remote
from trainers.store.stages import Store, recipe_key, write_atomic
from w2s_tasks.code_scope import all_code
from w2s_tasks.errors import UserError
from w2s_tasks.keys import refuse
from w2s_tasks.paths import cut
from w2s_tasks.user_text import parse_yaml, shown

log = logging.getLogger(__name__)

SCHEMA = 1
ONE_OF = {"method": "methods", "arm": "arms", "seed": "seeds"}
"""Grid keys for one entry of a list: method=logconf is methods=[logconf]."""
LONGEST_NAME = 80
"""Bytes of a cell's folder name, before its hash."""

Grid = dict[str, list[Any]]
Outcome = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One variant: its number, folder name, grid values and configuration."""

    number: int
    name: str
    values: dict[str, Any]
    config: Experiment

    @property
    def title(self) -> str:
        """For progress lines."""
        return " ".join(f"{k}={_text(v)}" for k, v in self.values.items())


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _shown(values: dict[str, Any]) -> list[str]:
    return [escape(_text(value)) for value in values.values()]


def parse_grid(entries: Sequence[str]) -> Grid:
    """Read ``--grid key=a,b``: the values are YAML, separated by commas outside of brackets.

    Raises:
        UserError: no ``=``, no value, a value or key twice, or what is not YAML.
    """
    grid: Grid = {}
    for entry in entries:
        key, equals, raw = entry.partition("=")
        key = key.strip()
        if not equals or not key or not raw.strip():
            raise UserError(f"--grid {entry}: write key=a,b, e.g. --grid method=xent,logconf --grid seed=0,1,2.")
        try:
            values = parse_yaml(f"[{raw}]", f"--grid {key}")
        except UserError as error:
            raise UserError(f"--grid {shown(entry)}: the values are not YAML, separated by commas ({error}).") from error
        if key in grid:
            raise UserError(f"--grid: '{key}' is given twice; put all its values into one --grid.")
        grid[key] = values
    check_grid(grid)
    return grid


def check_grid(grid: Mapping[str, Sequence[Any]]) -> None:
    """Refuse a grid whose values can't be told apart, or could not stand in a file.

    Raises:
        UserError: names the key.
    """
    for key, values in grid.items():
        if isinstance(values, str | bytes) or not isinstance(values, Sequence) or not values:
            raise UserError(f"--grid {key}: a list of values, got {shown(values)}.")
        try:
            json.dumps(values, allow_nan=False, sort_keys=True)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"--grid {key}: a value is no plain number, word, list or mapping ({error}); quote it."
            ) from error
        refuse(values, f"--grid {key}")
        refuse({key.rpartition(".")[2]: values}, f"--grid {key}")
        if len({json.dumps(v, sort_keys=True) for v in values}) != len(values):
            raise UserError(f"--grid {key}: a value occurs twice.")
    for short, long in ONE_OF.items():
        if short in grid and long in grid:
            raise UserError(f"--grid: '{short}' and '{long}' set the same key.")


def _cell_name(values: dict[str, Any]) -> str:
    """A folder name that tells the values; where that is not possible in plain characters, with a hash of them."""
    raw = ".".join(f"{key.split('.')[-1]}-{_text(value)}" for key, value in values.items())
    name = cut(re.sub(r"[^\w.-]+", "-", raw), LONGEST_NAME)
    digest = hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:6]
    return name if name == raw else f"{name}.{digest}"


def lay_out(config: Given, assignments: Sequence[str], grid: Grid) -> tuple[Experiment, list[Cell]]:
    """The experiment without the grid, and its cells: every combination, the last key changing fastest.

    Raises:
        UserError: as `trainers.config.reading.read`, naming the cell; no grid.
    """
    if not grid:
        raise UserError("a sweep needs at least one --grid key=a,b; for one variant use w2s run.")
    base = read(config, assignments)
    cells = []
    for number, chosen in enumerate(itertools.product(*grid.values()), start=1):
        values = dict(zip(grid, chosen, strict=True))
        sets = [f"{ONE_OF.get(k, k)}={json.dumps([v] if k in ONE_OF else v)}" for k, v in values.items()]
        try:
            found = read(config, [*assignments, *sets])
        except UserError as error:
            raise UserError(f"--grid, cell {' '.join(sets)}: {error}") from error
        name = _cell_name(values)
        cells.append(Cell(number, name, values, found.model_copy(update={"name": f"{base.name}.{name}"})))
    return base, cells


def of_shard(cells: Sequence[Cell], shard: str | None) -> list[Cell]:
    """The cells of one shard, ``i/n`` with i from 1 to n: every n-th cell.

    Raises:
        UserError: not of that form.
    """
    if shard is None:
        return list(cells)
    found = re.fullmatch(r"(\d+)/(\d+)", shard)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise UserError(f"--shard {shard}: write i/n with i from 1 to n, e.g. --shard 1/4.")
    i, n = int(found[1]), int(found[2])
    return [cell for cell in cells if (cell.number - 1) % n == i - 1]


@dataclass
class Sweep:
    """What the cells share: the store, the task index, the loaded model, and what is known about models by name."""

    base: Experiment
    grid: Grid
    cells: list[Cell]
    folder: Path
    max_cost: float | None = None
    """USD that services may cost in all cells together."""
    remote: Remote | None = None
    """The object store behind the folder."""
    store: Store = field(init=False)

    def __post_init__(self) -> None:
        self.store = Store(self.folder, remember=True, remote=self.remote)
        self._harnesses: dict[tuple[str, ...], Any] = {}
        self._identities: dict[str, str] = {}
        self._pool: Any = None
        self._lines: dict[str, tuple[tuple[int, int], str]] = {}
        """Cells as they stand in sweep.json, each with the time and inode of its file."""
        self._written, self._writing = -math.inf, 0.0
        """When sweep.json was last written, and how many seconds that took."""

    def folder_of(self, cell: Cell) -> Path:
        """Where a cell's report is."""
        return self.folder / "cells" / cell.name

    def run_of(self, cell: Cell) -> Run:
        """A cell's run over the shared store."""
        paths = tuple(cell.config.include_path)
        if paths not in self._harnesses:
            self._harnesses[paths] = Harness(cell.config.include_path)
        self._pool = self._pool or ModelPool(Budget(self.max_cost))
        harness, folder = self._harnesses[paths], self.folder_of(cell)
        layout = Layout.load(cell.config, harness)
        return Run(layout, folder, pool=self._pool, identities=self._identities, remote=self.remote)

    def outcome(self, cell: Cell) -> Outcome:
        """What is known of a cell: its cell.json, or that it is pending."""
        head = {"cell": cell.name, "values": cell.values}
        try:
            found: Outcome = json.loads((self.folder_of(cell) / "cell.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return head | {"status": "pending"}
        return head | found

    def run_cell(self, cell: Cell, progress: Progress) -> tuple[Outcome, bool]:
        """Bring one cell to its report; whether it was there already.

        A cell is finished where its report was made from the very stages, settings and program that it would be made from
        now; then neither its stages nor its rows are looked at again.

        Raises:
            UserError: as `Run.build`.
        """
        run, folder = self.run_of(cell), self.folder_of(cell)
        key = self._key(cell, run)
        if known := self._finished(cell, key):
            for step in run.layout.steps.values() if self.max_cost is not None else ():
                if there := self.store.find(step.kind, run.key(step)):
                    run.pool.budget.book_stage(there)
            return known, True
        folder.mkdir(parents=True, exist_ok=True)
        run.build(progress, self.store)
        report, _ = write_report(run)
        if self.remote is not None:
            self.remote.send_report(folder, WRITTEN, "cells", cell.name)
        outcome = {"status": "done", "key": key, **_summary(report), "report": f"cells/{cell.name}/report.json"}
        return self._keep(cell, outcome), False

    def _key(self, cell: Cell, run: Run) -> str:
        """Of all that a cell's report is made from; what its steps ask of a machine is no part of it."""
        stages = {name: run.key(step) for name, step in run.layout.steps.items()}
        config = cell.config.model_dump(exclude={"resources"})
        return recipe_key({"config": config, "stages": stages, "code": all_code()})

    def _finished(self, cell: Cell, key: str) -> Outcome | None:
        """A cell's outcome where its report was made of that key."""
        known = self.outcome(cell)
        return known if known.get("key") == key and (self.folder_of(cell) / "report.json").is_file() else None

    def jobs(self, cell: Cell) -> Iterator[Job]:
        """A job for every step of a cell, and one for its report; the last alone where that is there.

        Raises:
            UserError: what is wrong with the cell.
        """
        run = self.run_of(cell)
        there = self._finished(cell, self._key(cell, run)) is not None
        steps = [] if there else list(jobs_of(run, self.store))
        if not there:
            run.check_models()
        yield from steps
        names = tuple(step.name for step in steps)
        store = self.remote.objects.url if self.remote else None
        call = functools.partial(report_cell, str(self.folder.absolute()), cell, store, self.base.name)
        yield Job(f"cell {cell.name}", f"report of {cell.title}", names, call, lambda: there, StepResources(), light=True)

    def fail(self, cell: Cell, error: Exception) -> Outcome:
        """Note why a cell failed; what is no user's mistake leaves its traceback in error.txt."""
        folder = self.folder_of(cell)
        folder.mkdir(parents=True, exist_ok=True)
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        if not isinstance(error, UserError):
            write_atomic(folder / "error.txt", "".join(traceback.format_exception(error)))
            reason += f" (see {folder / 'error.txt'})"
        return self._keep(cell, {"status": "failed", "error": reason})

    def _keep(self, cell: Cell, outcome: Outcome) -> Outcome:
        write_atomic(self.folder_of(cell) / "cell.json", json.dumps(outcome, indent=2, allow_nan=False))
        if self.remote is not None and outcome["status"] == "done":
            self.remote.send_report(self.folder_of(cell), ["cell.json"], "cells", cell.name)
        return {"cell": cell.name, "values": cell.values} | outcome

    def pull(self, cell: Cell | None = None) -> None:
        """Bring what other machines reported to this folder, of one cell or of all."""
        if self.remote is not None:
            self.remote.pull(self.folder, f"cells/{cell.name}/" if cell else "cells/")

    def note_progress(self) -> None:
        """Write sweep.json again if that is due: not for every cell, for it takes longer the more there are."""
        if time.monotonic() - self._written > 20 * self._writing:
            self.write()

    def write(self) -> Path:
        """Write sweep.json: all cells of all shards, as far as they are, one line each."""
        path = self.folder / "sweep.json"
        start = time.monotonic()
        head = json.dumps({"schema": SCHEMA, "experiment": self.base.name, "grid": self.grid}, allow_nan=False)
        with FileLock(self.folder / ".lock-sweep"):
            cells = ",\n".join(self._line(cell) for cell in self.cells)
            write_atomic(path, f'{head[:-1]}, "cells": [\n{cells}\n]}}\n')
        self._written = time.monotonic()
        self._writing = self._written - start
        return path.resolve()

    def finish(self) -> None:
        """Write sweep.json with what other machines have finished meanwhile, and send it."""
        self.pull()
        path = self.write()
        if self.remote is not None:
            self.remote.send_report(self.folder, [path.name])

    def _line(self, cell: Cell) -> str:
        """A cell in sweep.json; what has not changed since it was read is not read again."""
        try:
            found = (self.folder_of(cell) / "cell.json").stat()
            state = (found.st_mtime_ns, found.st_ino)
        except OSError:
            state = (0, 0)
        known = self._lines.get(cell.name)
        if known is None or known[0] != state:
            outcome = {k: v for k, v in self.outcome(cell).items() if k != "key"}
            known = self._lines[cell.name] = state, json.dumps(outcome, allow_nan=False)
        return known[1]


def report_cell(folder: str, cell: Cell, store: str | None, experiment: str) -> Built:
    """Form a cell's report of its stages, in a worker of an engine."""
    start = time.monotonic()
    sweep = Sweep(cell.config, {}, [cell], Path(folder), remote=open_remote(store, experiment))
    if sweep.remote is not None:
        sweep.remote.pull(sweep.folder, STAMPS)
    _, there = sweep.run_cell(cell, Progress(quiet=True, new_only=True))
    return Built(time.monotonic() - start, there)


def _summary(report: Report) -> Outcome:
    """What sweep.json tells of a cell: every arm's accuracy, every PGR, the time of its stages."""
    accuracy = report.of(Accuracy)
    arms: list[Outcome] = [
        {"arm": a.arm, "method": a.method, "seed": a.seed, "n": a.n, "mode": a.mode}
        | {"acc": a.metrics["acc"], "stderr": a.stderr.get("acc")}
        for a in accuracy.arms
    ]
    gap = accuracy.gap
    summary: Outcome = {
        "pgr": gap.pgr if gap else None,
        "ci95": gap.ci95 if gap else None,
        "defined": gap is not None and gap.defined,
        "reason": gap.reason if gap else "no ceiling among the arms",
        "gap": gap,
        "arms": arms,
        "gaps": accuracy.gaps,
        "seconds": report.of(Cost).seconds["total"],
    }
    return cast(Outcome, to_jsonable_python(summary))


def open_sweep(
    config: Given,
    assignments: Sequence[str],
    grid: Grid,
    runs_dir: Path,
    max_cost: float | None = None,
    store: str | None = None,
) -> Sweep:
    """Lay out a sweep over its folder, ``runs_dir/<experiment>``; `store` is the URL of an object store behind it.

    Raises:
        UserError: as `lay_out`; several processes of one launch; a store that can't be reached or written.
    """
    if processes.count() > 1:
        raise UserError(
            "w2s sweep runs in one process: share its cells out with --shard i/n, or launch w2s run for one large cell."
        )
    base, cells = lay_out(config, assignments, grid)
    sweep = Sweep(base, grid, cells, runs_dir / base.name, max_cost, open_remote(store, base.name))
    sweep.pull()
    return sweep


def _stamp(sweep: Sweep) -> None:
    """Record when the primary endpoints of the cells were named, before the first of them has results."""
    endpoints = [cell.config.primary for cell in sweep.cells]
    if any(endpoints):
        stamp(sweep.base, sweep.folder, sweep.remote, grid=sweep.grid, endpoints=endpoints)


def run_cells(sweep: Sweep, cells: Sequence[Cell], progress: Progress) -> Iterator[Outcome]:
    """Run cells one after the other; one that fails does not stop the others."""
    _stamp(sweep)
    for place, cell in enumerate(cells, start=1):
        head = f"cell {place}/{len(cells)}: {cell.title}"
        progress.note(escape(head))
        try:
            outcome, there = sweep.run_cell(cell, progress)
        except Exception as error:  # whatever ends one cell must not end the others
            log.debug("%s failed", cell.name, exc_info=True)
            outcome, there = sweep.fail(cell, error), False
        if outcome["status"] == "failed":
            progress.note(escape(f"  failed: {outcome['error']}"))
        elif there:
            progress.note("  there already")
        if not there:
            sweep.note_progress()
        yield outcome
    sweep.finish()


def run_cells_on_ray(sweep: Sweep, cells: Sequence[Cell], progress: Progress, address: str | None) -> Iterator[Outcome]:
    """Run cells at once on a cluster; one that fails does not stop the others.

    Raises:
        UserError: no Ray, no cluster.
    """
    _stamp(sweep)
    by_job = {f"cell {cell.name}": cell for cell in cells}
    mistakes: list[Outcome] = []

    def jobs() -> Iterator[Job]:
        for cell in cells:
            try:
                yield from sweep.jobs(cell)
            except UserError as error:
                mistakes.append(sweep.fail(cell, error))

    with ray_engine.cluster(address) as where:
        progress.note(where)
        dispatch = ray_engine.Dispatch(None if progress.quiet else progress.begun)
        for number, outcome in enumerate(dispatch.outcomes(jobs()), start=1):
            cell = by_job.get(outcome.job.name)
            if cell is None or outcome.error is None:
                ray_engine.told(progress, number, outcome)
            if cell is not None:
                sweep.pull(cell)
                yield sweep.fail(cell, ray_engine.reason(outcome)) if outcome.error else sweep.outcome(cell)
                sweep.note_progress()
    yield from mistakes
    sweep.finish()


def outcomes_of(sweep: Sweep, cells: Sequence[Cell], terms: Terms) -> Iterator[Outcome]:
    """Run cells under terms, one after the other or on Ray, and write sweep.json; each outcome as soon as it is there."""
    with terms.held():
        progress = Progress(terms.quiet, new_only=True)
        on_ray = terms.engine == "ray"
        yield from run_cells_on_ray(sweep, cells, progress, terms.address) if on_ray else run_cells(sweep, cells, progress)
        sweep.write()


def run_sweep(sweep: Sweep, cells: Sequence[Cell], terms: Terms) -> list[Outcome]:
    """The same, all outcomes at the end."""
    return list(outcomes_of(sweep, cells, terms))


def _accuracy(outcome: Outcome, arm: str) -> str:
    """Mean accuracy of an arm over the seeds of a cell, of its first method."""
    found = [a for a in outcome.get("arms", []) if a["arm"] == arm]
    values = [a["acc"] for a in found if a["method"] == found[0]["method"]]
    return percent(sum(values) / len(values)) if values else "–"


def show_sweep(outcomes: Sequence[Outcome], console: Console | None = None) -> None:
    """Print one line a cell: its values, accuracies in per cent, and the PGR of its first student."""
    console = console or standard_output()
    table = Table(title="accuracy %, PGR of the first student with 95 % interval", title_justify="left")
    arms = ("weak", "zero_shot", "student", "ceiling")
    for column in (*outcomes[0]["values"], *arms, "PGR [95 %]", "seconds"):
        table.add_column(column, justify="left" if column in outcomes[0]["values"] else "right")
    for outcome in outcomes:
        done = outcome["status"] == "done"
        pgr = outcome["status"] if not done else str(Gap(**outcome["gap"])) if outcome["gap"] else "–"
        scores = [_accuracy(outcome, arm) for arm in arms]
        table.add_row(*_shown(outcome["values"]), *scores, pgr, f"{outcome['seconds']:.0f}" if done else "–")
    console.print(table)


def show_cells(cells: Sequence[Cell], console: Console | None = None) -> None:
    """Print the cells without running them."""
    console = console or standard_output()
    table = Table(title=f"{len(cells)} cells", title_justify="left")
    for column in ("#", *cells[0].values, "folder"):
        table.add_column(column)
    for cell in cells:
        table.add_row(str(cell.number), *_shown(cell.values), f"cells/{cell.name}")
    console.print(table)
