"""One experiment from its settings to its report: what `w2s run` and `trainers.run` are both made of."""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from trainers.config.experiment import Experiment
from trainers.flow import ray_engine
from trainers.flow.progress import Progress
from trainers.flow.run import Run, open_run
from trainers.flow.stamp import kept, stamp
from trainers.quiet import quieted
from trainers.report.report import WRITTEN, write_report
from trainers.report.section import Report
from trainers.store import processes, stopping
from trainers.store.stages import busy
from w2s_tasks.errors import UserError
from w2s_tasks.paths import check_folder
from w2s_tasks.sandbox import consent
from w2s_tasks.user_text import shown

Engine = Literal["local", "ray"]
IfExists = Literal["resume", "delete", "fail"]


@dataclass(frozen=True, kw_only=True)
class Terms:
    """Where and how something is run; no number depends on it."""

    runs_dir: Path
    max_cost: float | None = None
    """USD that services may cost in all."""
    engine: Engine = "local"
    address: str | None = None
    """A Ray cluster."""
    store: str | None = None
    """The URL of an object store behind the run folder."""
    unsafe: bool = False
    """Whether programs that models write may run."""
    quiet: bool = False

    def check(self) -> None:
        """Refuse what does not go together.

        Raises:
            UserError: with what to do.
        """
        if self.engine not in get_args(Engine):
            raise UserError(f"engine {shown(self.engine)}: {' or '.join(get_args(Engine))}.")
        if self.max_cost is not None and not 0 <= self.max_cost < math.inf:
            raise UserError(f"max_cost {self.max_cost}: an amount of USD from 0 on.")
        if self.engine == "local" and self.address:
            raise UserError("--address names a Ray cluster; it needs --engine ray.")
        if self.engine == "ray" and self.max_cost is not None:
            raise UserError("--max-cost counts what one process spends, so several can't keep to it. Use --engine local.")
        if self.engine == "ray" and processes.count() > 1:
            raise UserError(
                "--engine ray starts its own processes; leave accelerate launch out (resources: {fit: {processes: 2}})."
            )

    @contextlib.contextmanager
    def held(self) -> Iterator[Progress]:
        """While something is run under them: libraries are quiet, consent is given, a signal loses no work."""
        with quieted(), consent.during(self.unsafe), stopping.on_signals():
            yield Progress(self.quiet)


def carry_out(experiment: Experiment, terms: Terms, if_exists: IfExists = "resume") -> tuple[Run, Report | None]:
    """Build what is missing of an experiment and write its report; the report is None in further processes of a launch.

    Raises:
        UserError: with what to do; what was finished stays.
        KeyboardInterrupt: Ctrl-C, or SIGTERM (`stopping.Terminated`); what was finished stays, a training up to its step.
    """
    terms.check()
    if processes.is_main():
        if terms.store and if_exists == "delete":
            raise UserError("--if-exists delete: what is in the store would come back; delete it there (w2s store gc).")
        prepare(terms.runs_dir / experiment.name, if_exists)
    with terms.held() as progress:
        opened = open_run(experiment, terms.runs_dir, terms.max_cost, terms.store)
        if processes.is_main():
            stamp(experiment, opened.folder, opened.remote)
        on_ray = terms.engine == "ray"
        if on_ray:
            ray_engine.build(opened, progress, terms.address)
        opened.build(Progress(terms.quiet or on_ray))
        if not processes.is_main():
            return opened, None
        report, _ = write_report(opened)
        if opened.remote is not None:
            opened.remote.send_report(opened.folder, WRITTEN)
    return opened, report


def prepare(folder: Path, if_exists: IfExists) -> None:
    """Look at a run folder before anything is built in it.

    Raises:
        UserError: it can't be written, is there where it should not be, or holds what is not to be deleted.
    """
    check_folder(folder, "--runs-dir")
    if if_exists not in get_args(IfExists):
        raise UserError(f"if_exists {shown(if_exists)}: {', '.join(get_args(IfExists))}.")
    if folder.exists() and if_exists == "fail":
        raise UserError(f"{folder} exists. Go on with --if-exists resume, or start anew with --if-exists delete.")
    if folder.exists() and if_exists == "delete":
        _delete(folder)


def _delete(folder: Path) -> None:
    if folder.is_symlink():
        raise UserError(f"{folder} is a link; not deleted. Delete what it points to, or choose another --runs-dir.")
    at_work = busy(folder)
    if at_work:
        raise UserError(f"another process is building {at_work} in {folder}; not deleted. Wait for it, or end it.")
    known = {"stages", *WRITTEN}
    if (folder / "sweep.json").exists():
        raise UserError(f"{folder} holds a sweep that shares its stages; not deleted. Choose another --runs-dir.")
    foreign = [p.name for p in folder.iterdir() if p.name not in known and not p.name.startswith(".")]
    if foreign:
        raise UserError(
            f"{folder} holds {foreign[0]}, which is not ours; not deleted. Move it, or choose another --runs-dir."
        )
    with kept(folder):
        shutil.rmtree(folder)
