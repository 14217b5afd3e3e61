"""Claims in an object store: who builds a stage, told to all machines that share nothing else.

A claim is an object that only one machine can create. Its owner writes it anew every `BEAT` seconds; one that was not
written for `STALE` seconds is another's to take over, and only one of those that try succeeds. A claim saves work and no
more: stages are found by what they are made of, so that two builders of one stage waste time and damage nothing.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import threading
from dataclasses import dataclass, field
from types import TracebackType

from trainers.store.objects import S3
from w2s_tasks.errors import UserError

log = logging.getLogger(__name__)

BEAT = 30.0
STALE = 90.0


@dataclass
class Claim:
    """One that is held, as a context; given back at its end."""

    objects: S3
    name: str
    version: str
    body: dict[str, str | int]
    lost: bool = False
    """Whether another machine has taken it over."""
    _end: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Claim:
        self._thread = threading.Thread(target=self._live, name=f"claim {self.name}", daemon=True)
        self._thread.start()
        return self

    def _live(self) -> None:
        while not self._end.wait(BEAT):
            self.body["beats"] = int(self.body["beats"]) + 1
            try:
                version = self.objects.replace(self.name, _bytes(self.body), self.version)
            except UserError as error:  # the next beat may get through
                log.warning("%s", error)
                continue
            if version is None:
                self.lost = True
                log.warning("%s was taken over by another machine: this one did not answer for a while.", self.name)
                return
            self.version = version

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end.set()
        if self._thread is not None:
            self._thread.join()
        if self.lost:
            return
        try:
            self.objects.delete([self.name])
        except UserError as problem:  # it goes stale by itself
            log.warning("%s", problem)


def _bytes(body: dict[str, str | int]) -> bytes:
    return json.dumps(body).encode()


def take(objects: S3, name: str) -> Claim | str:
    """Claim a name; where another machine holds it, who that is."""
    body: dict[str, str | int] = {"by": f"{socket.gethostname()}:{os.getpid()}", "is": secrets.token_hex(8), "beats": 0}
    version = objects.create(name, _bytes(body))
    while version is None:
        held = objects.read(name)
        if held is None:  # given back a moment ago
            version = objects.create(name, _bytes(body))
        elif held.age < STALE:
            return _owner(held.data)
        else:
            log.warning("%s: nothing heard of %s for %.0f s; taken over", name, _owner(held.data), held.age)
            version = objects.replace(name, _bytes(body), held.version)
    return Claim(objects, name, version, body)


def _owner(data: bytes) -> str:
    try:
        return str(json.loads(data)["by"])
    except (ValueError, KeyError, TypeError):
        return "another machine"
