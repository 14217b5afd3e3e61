"""Every finished answer, on disk as soon as it is there: a killed run goes on, and nothing is paid for twice.

One JSONL file for each address and model, append-only. The key of an answer is the hash of the address, the path and the
whole request (which holds the model), so that two models, prompts or settings never share one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from w2s_tasks.errors import UserError
from w2s_tasks.models.chat.choices import Position
from w2s_tasks.models.chat.replies import Reply, Usage
from w2s_tasks.rows import assets

log = logging.getLogger(__name__)


def store_path(base_url: str, model: str, folder: str | Path | None = None) -> Path:
    """Where the answers of one model at one address are kept: in `folder`, by default in the cache's ``answers``."""
    root = Path(folder).expanduser() if folder else assets.cache_dir() / "answers"
    slug = re.sub(r"[^\w.-]+", "-", model).strip("-.")[:60]
    digest = hashlib.sha256(f"{base_url}\n{model}".encode()).hexdigest()
    return root / f"{slug}-{digest[:12]}.jsonl"


def _to_json(reply: Reply) -> dict[str, Any]:
    data = asdict(reply)
    if reply.positions is not None:
        data["positions"] = [[p.token, p.logprob, [list(t) for t in p.top]] for p in reply.positions]
    return data


def _from_json(data: Mapping[str, Any]) -> Reply:
    positions = data["positions"]
    if positions is not None:
        positions = tuple(Position(t, float(x), tuple((a, float(b)) for a, b in top)) for t, x, top in positions)
    said = (data.get(name) for name in ("refusal", "thought"))
    return Reply(data["text"], data["finish"], positions, Usage(**data["usage"]), data["model"], *said)


class AnswerStore:
    """The answers in one file; a context manager that keeps it open."""

    def __init__(self, path: Path) -> None:
        """Read what is there.

        Raises:
            UserError: the file can't be read or its folder not be made.
        """
        self.path = path
        self._answers: dict[str, Reply] = {}
        self._file: int | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            for key, reply in self._read() if path.exists() else ():
                self._answers[key] = reply
        except OSError as error:
            raise UserError(f"the answer store {path} can't be used: {error}. store=FOLDER moves it.") from error

    def _read(self) -> Iterator[tuple[str, Reply]]:
        bad = 0
        with self.path.open("rb") as f:
            for line in f:
                try:
                    data = json.loads(line)
                    yield data["key"], _from_json(data)
                except (ValueError, KeyError, TypeError):
                    bad += 1
        if bad:
            # A line that was being written when its process was killed; its answer is asked again.
            log.info("%s: %d unreadable lines are left out", self.path, bad)

    def __enter__(self) -> AnswerStore:
        # One write() call a line on a file opened for appending: several processes can share it.
        self._file = os.open(self.path, os.O_APPEND | os.O_CREAT | os.O_RDWR, 0o600)
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            os.write(self._file, b"\n")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._file is not None:
            os.fsync(self._file)
            os.close(self._file)
            self._file = None

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str) -> Reply | None:
        """The answer of a key, if it is there."""
        return self._answers.get(key)

    def add(self, key: str, reply: Reply) -> None:
        """Keep an answer, on disk before this returns. The store must be open."""
        if self._file is None:
            raise RuntimeError("the answer store is not open")
        line = json.dumps({"key": key, **_to_json(reply)}, ensure_ascii=False, separators=(",", ":"))
        data = line.encode("utf-8", "surrogatepass") + b"\n"
        while data:
            data = data[os.write(self._file, data) :]
        self._answers[key] = reply
