"""One step of an experiment in a process of its own, or in several: what an engine calls on whatever machine it has.

The step is laid out again from the experiment's configuration and finds its inputs in the store, so that nothing but text
travels. Layouts, tasks and the loaded model stay in the process for the next step.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path

from trainers.config.experiment import Experiment
from trainers.flow.layout import Layout
from trainers.flow.run import Run
from trainers.harness.evaluate import Harness
from trainers.harness.pool import ModelPool
from trainers.steps.step import Step
from trainers.store import processes
from trainers.store.remote import open_remote
from trainers.store.stages import Store
from w2s_tasks.errors import UserError

KEPT = 4
"""Layouts that a process keeps; a sweep's cells come one after the other."""
MISTAKE = "W2S_MISTAKE"
"""Names the file in which processes that were launched leave a user's mistake."""


@dataclass(frozen=True)
class Plan:
    """An experiment as it travels: plain text."""

    config: str
    """The experiment as JSON."""
    folder: str
    """The run folder."""
    root: str
    """What the stages' folder is in."""
    store: str | None = None
    """The URL of an object store behind it."""
    experiment: str = ""
    """Whose stages they are there."""


@dataclass(frozen=True)
class Built:
    """What a step's building tells; the stage itself is in the store."""

    seconds: float
    reused: bool
    node: str = ""
    """The machine's address, where an engine knows it."""


@functools.cache
def _pool() -> ModelPool:
    return ModelPool()


@functools.lru_cache(maxsize=KEPT)
def _harness(include_path: tuple[str, ...]) -> Harness:
    return Harness(include_path)


@functools.lru_cache(maxsize=KEPT)
def _run(plan: Plan) -> Run:
    config = Experiment.model_validate_json(plan.config)
    return Run(Layout.load(config, _harness(tuple(config.include_path))), Path(plan.folder), pool=_pool())


def build_step(plan: Plan, name: str, count: int = 1) -> Built:
    """Build one step of an experiment.

    Args:
        plan: the experiment.
        name: of the step in its layout.
        count: processes that build it together; 1 for this one.

    Raises:
        UserError: as the step's own `build`; an input that is not there whole.
    """
    if count > 1:
        _launch(plan, name, count)
    run, store = _run(plan), Store(Path(plan.root), remote=open_remote(plan.store, plan.experiment))
    step = run.layout.steps[name]
    for one in _ancestors(step):
        found = store.find(one.kind, run.key(one))
        if found is None:
            raise UserError(f"{name}: its input '{one.name}' is not whole in {store.root}; the same command builds it anew.")
        run.stages[one.name] = found
    stage = run.stage(step, store)
    return Built(stage.seconds, stage.reused and count == 1)


def _ancestors(step: Step) -> Iterator[Step]:
    for one in step.needs:
        yield one
        yield from _ancestors(one)


def _launch(plan: Plan, name: str, count: int) -> None:
    """Build a step in several processes of this machine, one a GPU where there are GPUs.

    Raises:
        UserError: as the step's own `build`.
        RuntimeError: the processes ended otherwise.
    """
    import torch

    with tempfile.TemporaryDirectory() as folder:
        mistake = Path(folder) / "mistake.txt"
        # torch's own launcher: accelerate's starts a single process where there is no GPU, whatever number it is given.
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
        command += ["-m", "trainers.flow.worker", json.dumps(astuple(plan)), name]
        environment = (
            os.environ | {MISTAKE: str(mistake)} | ({} if torch.cuda.is_available() else {"ACCELERATE_USE_CPU": "true"})
        )
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if mistake.is_file():
            raise UserError(mistake.read_text(encoding="utf-8"))
        if done.returncode:
            raise RuntimeError(f"{name}: {count} processes ended with {done.returncode}.\n{done.stderr[-4000:]}")


def main() -> None:
    """What each of those processes does."""
    import torch
    from accelerate import PartialState

    PartialState(cpu=not torch.cuda.is_available())  # connects them; without GPUs only where it is told so
    plan, name = Plan(*json.loads(sys.argv[1])), sys.argv[2]
    try:
        build_step(plan, name)
    except UserError as error:
        if processes.is_main():
            Path(os.environ[MISTAKE]).write_text(str(error), encoding="utf-8")
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
