"""Runs and their checkpoints, as files: ``runs/RUN/run.json`` and ``runs/RUN/weights/NAME/``."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pydantic
from tinker import types

from .wire import ApiError

HOUR, TEN_YEARS = 3600, 10 * 365 * 24 * 3600
RECORD, FILES = "checkpoint.json", "files"
KINDS: dict[str, types.CheckpointType] = {
    "weights": "training",
    "sampler_weights": "sampler",
    "external_weights": "external",
}


class Run(pydantic.BaseModel):
    """One training run."""

    run_id: str
    session_id: str
    base_model: str
    lora: types.LoraConfig
    user_metadata: dict[str, str] | None
    created: datetime
    last_request: datetime


class Store:
    """The folder of all runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def put(self, run: Run) -> None:
        """Write a run down."""
        folder = self.folder / "runs" / run.run_id
        folder.mkdir(parents=True, exist_ok=True)
        new = folder / "run.json.new"
        new.write_text(run.model_dump_json(), encoding="utf-8")
        new.replace(folder / "run.json")

    def run(self, run_id: str) -> Run:
        """A run.

        Raises:
            ApiError: 404 where there is none.
        """
        file = self.folder / "runs" / run_id / "run.json"
        if not file.is_file():
            raise ApiError(404, f"Training run {run_id} not found")
        return Run.model_validate_json(file.read_text("utf-8"))

    def runs(self) -> list[Run]:
        """All runs, the newest first."""
        found = [self.run(file.parent.name) for file in self.folder.glob("runs/*/run.json")]
        return sorted(found, key=lambda run: run.created, reverse=True)

    def checkpoints(self, run_id: str, now: datetime) -> list[types.Checkpoint]:
        """A run's checkpoints that have not expired, the oldest first."""
        records = (self.folder / "runs" / run_id).glob(f"*/*/{RECORD}")
        found = [types.Checkpoint.model_validate_json(record.read_text("utf-8")) for record in records]
        living = [c for c in found if c.expires_at is None or c.expires_at > now]
        return sorted(living, key=lambda checkpoint: checkpoint.time)

    def checkpoint(self, run_id: str, checkpoint_id: str, now: datetime) -> types.Checkpoint:
        """One of them.

        Raises:
            ApiError: 404 where there is none.
        """
        found = [c for c in self.checkpoints(run_id, now) if c.checkpoint_id == checkpoint_id]
        if not found:
            raise ApiError(404, f"Checkpoint {checkpoint_id} of training run {run_id} not found")
        return found[0]

    def named(self, path: str, kind: types.CheckpointType, now: datetime) -> tuple[Run, Path]:
        """The run and the files of a tinker path of a kind.

        Raises:
            ApiError: 400 for a path of another kind or of none, 404 where nothing is there.
        """
        try:
            parsed = types.ParsedCheckpointTinkerPath.from_tinker_path(path)
        except ValueError:
            raise ApiError(400, f"Path is invalid: {path}") from None
        if parsed.checkpoint_type != kind:
            raise ApiError(400, f"Path is invalid: {path} is no {kind} checkpoint")
        self.checkpoint(parsed.training_run_id, parsed.checkpoint_id, now)
        return self.run(parsed.training_run_id), self.files(parsed.training_run_id, parsed.checkpoint_id)

    def files(self, run_id: str, checkpoint_id: str) -> Path:
        """The folder of a checkpoint's files."""
        return self.folder / "runs" / run_id / checkpoint_id / FILES

    def save(
        self,
        run_id: str,
        checkpoint_id: str,
        write: Callable[[Path], None],
        now: datetime,
        ttl: int | None,
        metadata: dict[str, str] | None,
    ) -> types.Checkpoint:
        """Write a checkpoint, over any of its name; its record comes last, so that half of one is none."""
        self.delete(run_id, checkpoint_id)
        files = self.files(run_id, checkpoint_id)
        files.mkdir(parents=True)
        write(files)
        checkpoint = types.Checkpoint(
            checkpoint_id=checkpoint_id,
            checkpoint_type=KINDS[checkpoint_id.partition("/")[0]],
            time=now,
            tinker_path=f"tinker://{run_id}/{checkpoint_id}",
            size_bytes=sum(file.stat().st_size for file in files.iterdir()),
            user_metadata=metadata,
            expires_at=until(now, ttl),
        )
        self.update(run_id, checkpoint)
        return checkpoint

    def update(self, run_id: str, checkpoint: types.Checkpoint) -> None:
        """Write a checkpoint's record anew."""
        record = self.files(run_id, checkpoint.checkpoint_id).parent / RECORD
        record.write_text(checkpoint.model_dump_json(), encoding="utf-8")

    def delete(self, run_id: str, checkpoint_id: str) -> None:
        """Remove a checkpoint."""
        shutil.rmtree(self.files(run_id, checkpoint_id).parent, ignore_errors=True)


def until(now: datetime, ttl: int | None) -> datetime | None:
    """When something ends that lives for some seconds.

    Raises:
        ApiError: 422 for less than an hour or more than ten years.
    """
    if ttl is not None and not HOUR <= ttl <= TEN_YEARS:
        raise ApiError(422, f"ttl_seconds must be between {HOUR} and {TEN_YEARS}")
    return None if ttl is None else now + timedelta(seconds=ttl)


def name_of(path: str | None) -> str:
    """A checkpoint's name.

    Raises:
        ApiError: 400 for one that can't be part of a tinker path.
    """
    if not path or not re.fullmatch(r"[A-Za-z0-9_.-]+", path) or path.strip(".") == "":
        raise ApiError(400, f"{path!r} is no name of a checkpoint: letters, digits, and . _ - are")
    return path
