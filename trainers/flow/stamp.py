"""When an experiment was what it is: a record, in its run folder, of every configuration that it was started with.

A primary endpoint says something if it was named before there were results. So each start of a run with another
configuration than the last leaves a line in ``stamps.json``: the time, the configuration's sha256, its primary endpoint, and
how many evaluations were there already. The file is a record for honest readers; nothing keeps a user from altering it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from trainers.config.experiment import Experiment
from trainers.steps.evaluation import Evaluation, SafetyEvaluation
from trainers.store.remote import Remote
from trainers.store.stages import write_atomic
from w2s_tasks.errors import UserError

STAMPS = "stamps.json"
EVALUATIONS = (f"{Evaluation.kind}-", f"{SafetyEvaluation.kind}-")
"""How the stages of evaluations begin."""
NO_RESULT = {"resources", "name"}
"""Keys of an experiment on which no result depends."""


@dataclass(frozen=True)
class Stamp:
    """A start of a run with a configuration that it did not have before."""

    time: str
    """UTC, ISO 8601."""
    experiment: str
    """Hex sha256 of the configuration."""
    primary: dict[str, Any] | None
    evaluations: int
    """Evaluations that were there by then."""


_STAMPS = TypeAdapter(list[Stamp])


def fingerprint(config: Experiment) -> str:
    """Hex sha256 of an experiment's configuration, without what no result depends on."""
    text = json.dumps(config.model_dump(mode="json", exclude=NO_RESULT), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def read(folder: Path) -> list[Stamp]:
    """The stamps of a run folder, the first one first; none where it has no file of them.

    Raises:
        UserError: a file that is none of ours.
    """
    file = folder / STAMPS
    if not file.is_file():
        return []
    try:
        return _STAMPS.validate_json(file.read_bytes())
    except ValidationError as error:
        raise UserError(
            f"{file}: cut or altered, so nobody can tell when the endpoint was named. Take it away, and the next run "
            "begins a new one, which says that results were there."
        ) from error


def stamp(config: Experiment, folder: Path, stages: Path, remote: Remote | None = None) -> None:
    """Record that a run begins, unless it was begun with this configuration last time too.

    Args:
        config: the experiment's.
        folder: the run's.
        stages: the folder of its stages.
        remote: the object store behind them, which keeps the record too.
    """
    if remote is not None:
        remote.pull(folder, STAMPS)
    stamps, now = read(folder), fingerprint(config)
    if stamps and stamps[-1].experiment == now:
        return
    there = {path.name for path in stages.glob("*")} | set(remote.stages() if remote is not None else ())
    evaluations = sum(name.startswith(EVALUATIONS) for name in there)
    primary = config.primary.model_dump() if config.primary else None
    stamps.append(Stamp(datetime.now(UTC).isoformat(timespec="seconds"), now, primary, evaluations))
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / STAMPS, _STAMPS.dump_json(stamps, indent=2).decode())
    if remote is not None:
        remote.send_report(folder, [STAMPS])
