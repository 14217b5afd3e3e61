"""Jobs of the tests of the engine `ray`: of a module, so that every node can import them."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path

from trainers.config.resources import StepResources
from trainers.flow.jobs import Job
from trainers.flow.worker import Built
from w2s_tasks.errors import UserError


def job(folder: Path, name: str, *inputs: str, mistake: str = "", seconds: float = 0.0) -> Job:
    """A job that leaves a file of its name; with a mistake it fails, with seconds its first attempt takes so long."""
    call = partial(_write, folder, name, inputs, mistake, seconds)
    return Job(name, f"write {name}", inputs, call, (folder / name).exists, StepResources(cpus=1))


def attempts(folder: Path, name: str) -> list[str]:
    """The processes that began a job."""
    return [path.name for path in sorted(folder.glob(f"{name}.attempt.*"))]


def _write(folder: Path, name: str, inputs: tuple[str, ...], mistake: str, seconds: float) -> Built:
    missing = [one for one in inputs if not (folder / one).exists()]
    assert not missing, f"{name} began before {missing}"
    first = not attempts(folder, name)
    (folder / f"{name}.attempt.{os.getpid()}").touch()
    if first:
        time.sleep(seconds)
    if mistake:
        raise UserError(mistake)
    (folder / name).write_text("done", encoding="utf-8")
    return Built(seconds, reused=False)
