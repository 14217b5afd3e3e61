"""What is known here about a piece of work at a service, on disk after each change: so that a second run finds it."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from filelock import FileLock

from trainers.store.stages import write_atomic
from w2s_tasks.rows.assets import cache_dir

RUN_KEY = "w2s_run_key"
"""The name under which a service keeps the key of a piece of work."""
SETTLE = (0.0, 1.0, 2.0, 4.0, 8.0, 15.0)
"""Seconds between looks at a service's list after an unclear answer: what is new may take a while to be listed."""
SETTLED = 600.0
"""After this many seconds it is listed; one look is enough."""


def in_turn(run_key: str) -> FileLock:
    """A lock under which processes of this machine take turns: two that ask a list at once would both find nothing."""
    folder = cache_dir() / "jobs"
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f"{run_key}.lock")


@dataclass
class Record:
    """The part that all have; a kind of work adds its own."""

    run_key: str
    base_url: str

    @classmethod
    def load(cls, path: Path, run_key: str, base_url: str) -> Self:
        """The record on disk, or a new one where there is none of this work."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            record = cls(**{f.name: data[f.name] for f in dataclasses.fields(cls)})
        except (OSError, ValueError, KeyError, TypeError):
            return cls(run_key, base_url)
        return record if (record.run_key, record.base_url) == (run_key, base_url) else cls(run_key, base_url)

    def keep(self, path: Path, **changes: Any) -> None:
        """Change it, here and on disk: whole or not at all."""
        for name, value in changes.items():
            setattr(self, name, value)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(dataclasses.asdict(self), indent=2))
