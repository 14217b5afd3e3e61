"""When an experiment was what it is: a record, in its run folder, of every configuration that it was started with.

A primary endpoint says something if it was named before there were results. So each start of a run, or of a sweep, with
another configuration than the last leaves a line in ``stamps.json``: the time, the configuration's sha256, its primary
endpoint, and how many evaluations there were already, those that were deleted since included. The file is a record for
honest readers; nothing keeps a user from altering it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from trainers.config.experiment import Experiment
from trainers.config.primary import Primary
from trainers.steps.evaluation import Evaluation, SafetyEvaluation
from trainers.store.remote import Remote
from trainers.store.stages import write_atomic
from w2s_tasks.errors import UserError

STAMPS = "stamps.json"
EVALUATIONS = (f"{Evaluation.kind}-", f"{SafetyEvaluation.kind}-")
"""How the stages of evaluations begin."""
NO_RESULT: Any = {"resources": True, "name": True, "include_path": True, "evaluate": {"base_url"}}
"""Keys of an experiment on which no result depends, or that differ from machine to machine."""

Endpoint = dict[str, Any]


@dataclass(frozen=True)
class Stamp:
    """A start with a configuration that there was not before."""

    time: str
    """UTC, ISO 8601."""
    experiment: str
    """Hex sha256 of the configuration, and of a sweep's grid."""
    primary: list[Endpoint]
    """Its primary endpoints: none, one, or those of a sweep's cells."""
    evaluations: int
    """Evaluations that there were by then."""


@dataclass(frozen=True)
class Stamps:
    """What ``stamps.json`` holds, the first start first."""

    starts: tuple[Stamp, ...] = ()
    deleted: int = 0
    """Evaluations that were deleted."""


_STAMPS = TypeAdapter(Stamps)


def fingerprint(config: Experiment, grid: Mapping[str, Any] | None = None) -> str:
    """Hex sha256 of an experiment's configuration, without what no result depends on, and of a sweep's grid."""
    data = config.model_dump(mode="json", exclude=NO_RESULT)
    text = json.dumps([data, grid] if grid else data, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def read(folder: Path) -> Stamps:
    """The stamps of a run folder; none where it has no file of them.

    Raises:
        UserError: a file that is none of ours.
    """
    file = folder / STAMPS
    if not file.is_file():
        return Stamps()
    try:
        return _STAMPS.validate_json(file.read_bytes())
    except ValidationError as error:
        raise UserError(
            f"{file}: cut or altered, so nobody can tell when the endpoint was named. Take it away, and the next run "
            "begins a new one, which says that results were there."
        ) from error


def _write(folder: Path, stamps: Stamps) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / STAMPS, _STAMPS.dump_json(stamps, indent=2).decode())


def _evaluations(names: Iterable[str]) -> int:
    return sum(name.startswith(EVALUATIONS) for name in names)


def stamp(
    config: Experiment,
    folder: Path,
    remote: Remote | None = None,
    *,
    grid: Mapping[str, Any] | None = None,
    endpoints: Iterable[Primary | None] = (),
) -> None:
    """Record that a run or a sweep begins, unless it was begun with this configuration last time too.

    Args:
        config: the experiment's.
        folder: the run's, with its stages.
        remote: the object store behind it, which keeps the record too.
        grid: a sweep's.
        endpoints: those of a sweep's cells.
    """
    if remote is not None:
        remote.pull(folder, STAMPS)
    before, now = read(folder), fingerprint(config, grid)
    if before.starts and before.starts[-1].experiment == now:
        return
    there = {path.name for path in folder.glob("stages/*")} | set(remote.stages() if remote is not None else ())
    named = [endpoint.model_dump() for endpoint in (config.primary, *endpoints) if endpoint is not None]
    distinct = list({json.dumps(endpoint, sort_keys=True): endpoint for endpoint in named}.values())
    time = datetime.now(UTC).isoformat(timespec="seconds")
    start = Stamp(time, now, distinct, _evaluations(there) + before.deleted)
    _write(folder, replace(before, starts=(*before.starts, start)))
    if remote is not None:
        remote.send_report(folder, [STAMPS])


@contextlib.contextmanager
def kept(folder: Path) -> Iterator[None]:
    """Keep the record while a run folder is deleted, with how many evaluations went with it.

    Raises:
        UserError: as `read`.
    """
    before = read(folder)
    gone = _evaluations(path.name for path in folder.glob("stages/*"))
    yield
    if before.starts:
        _write(folder, replace(before, deleted=before.deleted + gone))
