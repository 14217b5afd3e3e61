"""Checkpoints of a stage that is being built, in an object store, so that another machine goes on where this one ended."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from trainers.store.objects import S3
from trainers.store.transfer import object_name, receive, send
from w2s_tasks.errors import UserError
from w2s_tasks.rows.assets import sha256_file

log = logging.getLogger(__name__)

LOOK = 15.0
"""Seconds between two looks for something new."""
EVERY = 180.0
"""Seconds between two uploads of a training's checkpoints; small files, e.g. a service's job, go up at the next look."""
SENT = ".sent"
"""Names, in the folder of checkpoints, the version in the store that it came from or went to."""
WHOLE = "trainer_state.json"
"""What Trainer writes last into a checkpoint."""


class Snapshots:
    """What a stage's folder of checkpoints holds, in the store: one JSON that names files, and the files."""

    def __init__(self, objects: S3, name: str, folder: Path) -> None:
        """Nothing is read or sent yet.

        Args:
            objects: the store.
            name: of the stage there, with the experiment's.
            folder: where the stage's builder keeps checkpoints.
        """
        self.objects, self.folder = objects, folder
        experiment, _, stage = name.rpartition("/")
        self.index, self.files = f"{experiment}/checkpoints/{stage}.json", f"{experiment}/checkpoints/{stage}"
        self._end = threading.Event()
        self._known: dict[str, str] = {}
        self._digests: dict[tuple[str, int, int], str] = {}
        """By name, size and time, so that a look at what has not changed reads nothing."""
        self._large_sent = time.monotonic()

    def restore(self) -> None:
        """Bring the store's checkpoints here, unless this folder holds those or what came after them.

        One that can't be read whole is left: the builder begins with what it has.
        """
        found = self.objects.read(self.index)
        if found is None or self._sent() == found.version:
            return
        incoming = self.folder.with_name(f".{self.folder.name}.incoming")
        shutil.rmtree(incoming, ignore_errors=True)
        try:
            files: dict[str, str] = json.loads(found.data)
            receive(self.objects, self.files, files, incoming)
            (incoming / SENT).write_text(found.version, encoding="utf-8")
        except (UserError, OSError, ValueError, TypeError, AttributeError) as error:
            log.warning("%s/%s: no checkpoint could be taken from the store (%s)", self.objects.url, self.index, error)
            shutil.rmtree(incoming, ignore_errors=True)
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        incoming.replace(self.folder)
        self._known = files

    def _sent(self) -> str | None:
        path = self.folder / SENT
        return path.read_text(encoding="utf-8") if path.is_file() else None

    @contextlib.contextmanager
    def sending(self) -> Iterator[None]:
        """Send what is new while a stage is built; at an end that is no success, the last of it."""
        thread = threading.Thread(target=self._watch, name=f"checkpoints {self.index}", daemon=True)
        thread.start()
        try:
            yield
        except BaseException:
            self._stop(thread)
            self._try(large=True)
            raise
        self._stop(thread)

    def _stop(self, thread: threading.Thread) -> None:
        self._end.set()
        thread.join()

    def _watch(self) -> None:
        while not self._end.wait(LOOK):
            self._try(large=time.monotonic() - self._large_sent >= EVERY)

    def _try(self, *, large: bool) -> None:
        try:
            self.send(large=large)
        except (UserError, OSError) as error:  # a training does not end because a copy of it could not be made
            log.warning("checkpoints could not be sent: %s", error)

    def send(self, *, large: bool) -> None:
        """Send what is new.

        Args:
            large: a training's newest checkpoint too.
        """
        files = {n: self._digest(n) for n in self._names(large)}
        if not large:  # what is there of a training's checkpoints stays
            files |= {n: d for n, d in self._known.items() if _checkpoint(n)}
        if not files or files == self._known:
            return
        send(self.objects, self.folder, {n: d for n, d in files.items() if self._known.get(n) != d}, self.files)
        (self.folder / SENT).write_text(self.objects.write(self.index, json.dumps(files).encode()), encoding="utf-8")
        self._known = files
        if large:
            self._large_sent = time.monotonic()
            self._drop(files)

    def _names(self, large: bool) -> list[str]:
        """Files to send: loose ones; of a training's checkpoints, which are large, the newest that is whole."""
        whole = sorted(self.folder.glob(f"checkpoint-*/{WHOLE}"), key=lambda p: int(p.parent.name.split("-")[1]))
        newest = whole[-1].parent.name if whole and large else ""
        names = []
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            parts = name.split("/")
            if not path.is_file() or any(part.startswith(".") for part in parts):
                continue
            if not _checkpoint(name) or parts[0] == newest:
                names.append(name)
        return names

    def _digest(self, name: str) -> str:
        found = (self.folder / name).stat()
        key = (name, found.st_size, found.st_mtime_ns)
        if key not in self._digests:
            self._digests[key] = sha256_file(self.folder / name)
        return self._digests[key]

    def _drop(self, files: dict[str, str]) -> None:
        keep = {object_name(self.files, name, digest) for name, digest in files.items()}
        self.objects.delete([one.name for one in self.objects.listed(f"{self.files}/") if one.name not in keep])

    def forget(self) -> None:
        """Remove them: the stage is whole."""
        self.objects.delete([self.index, *(one.name for one in self.objects.listed(f"{self.files}/"))])


def _checkpoint(name: str) -> bool:
    return name.startswith("checkpoint-")
