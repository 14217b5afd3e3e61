"""Sessions: what is alive in them, and which are over."""

from __future__ import annotations

import threading
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydantic

from .models import Adapter, Trained
from .wire import ApiError


class Record(pydantic.BaseModel):
    """What a session was begun with."""

    session_id: str
    user_metadata: dict[str, Any] | None
    display_name: str | None
    project_id: str | None


@dataclass
class Sampler:
    """A sampling session."""

    base_model: str
    model_path: str | None
    adapter: Adapter | None = None
    """Of weights that were saved for this session alone."""
    clients: int = 0


@dataclass
class Session:
    """One session: its runs in memory and its samplers by their ids."""

    record: Record
    over: int | None = None
    """The status that its requests are answered with once it is over."""
    runs: dict[str, Trained] = field(default_factory=dict)
    samplers: dict[str, Sampler] = field(default_factory=dict)


class Sessions:
    """All sessions. Those of an earlier service over the folder are known and over."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "sessions"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        records = [Record.model_validate_json(file.read_text("utf-8")) for file in self._folder.glob("*.json")]
        self._all = {record.session_id: Session(record, over=410) for record in records}

    def new(self, user_metadata: dict[str, Any] | None, display_name: str | None, project_id: str | None) -> Session:
        """Begin one."""
        record = Record(
            session_id=str(uuid.uuid4()), user_metadata=user_metadata, display_name=display_name, project_id=project_id
        )
        (self._folder / f"{record.session_id}.json").write_text(record.model_dump_json(), encoding="utf-8")
        with self._lock:
            session = self._all[record.session_id] = Session(record)
        return session

    def known(self) -> list[str]:
        """The ids of all."""
        return list(self._all)

    def some_live(self) -> bool:
        """Whether a session is not over."""
        return any(session.over is None for session in self._all.values())

    def find(self, session_id: str) -> Session:
        """One, over or not.

        Raises:
            ApiError: 404 where there never was one.
        """
        if session_id not in self._all:
            raise ApiError(404, f"Session {session_id} not found")
        return self._all[session_id]

    def live(self, identifier: str) -> Session:
        """The session of its own id or of one of a run, a sampler or a promise in it.

        Raises:
            ApiError: 404 where there never was one, and its own status where it is over.
        """
        session = self.find(identifier.partition(":")[0])
        if session.over:
            raise ApiError(session.over, f"Session {session.record.session_id} is no longer active")
        return session

    def end(self, status: int) -> None:
        """All are over, and what was in them is gone."""
        for session in self._all.values():
            session.over = session.over or status
            session.runs.clear()
            session.samplers.clear()
