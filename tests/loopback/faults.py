"""Faults on demand: which request fails, how often, and how."""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal[
    "status",  # an error answer instead of the handler's: status, code, message, retry_after
    "reset",  # the connection is reset before the handler runs: nothing happened
    "lost",  # the handler runs, then the connection is closed without an answer
    "hang_before",  # waits for `release` (or the end of the service) before the handler, then drops the connection
    "hang_after",  # the handler runs, then waits for `release` before it drops the connection
    "slow",  # the handler's answer in small pieces over `seconds`
    "malformed",  # status 200 with half of the JSON
    "truncated",  # the connection closes in the middle of the body
    "html",  # status 502 with a proxy's page
    "stall",  # of work behind a promise: it is never done
    "fail",  # of work behind a promise: it ends in an error: code, message
    "body",  # an answer of the test's own: body (bytes, or a function of the request's body), status, content_type, headers
]


@dataclass
class Fault:
    """What happens to requests that match.

    ``on`` is a method and a regular expression for the whole path, e.g. ``POST /v1/fine_tuning/jobs``. The first ``skip``
    matching requests are spared, the next ``times`` fail; with ``share`` each of them fails with that probability only.
    """

    on: str
    kind: Kind
    times: int = 1
    skip: int = 0
    share: float | None = None
    status: int = 500
    code: str | None = None
    message: str = "The server had an error while processing your request."
    retry_after: str | None = None
    seconds: float = 0.2
    body: bytes | Callable[[bytes], bytes] = b""
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    hits: int = 0
    """How many requests met this fault."""
    reached: threading.Event = field(default_factory=threading.Event, repr=False)
    """Set when a request met it: for `hang_*`, the moment to kill the client."""
    release: threading.Event = field(default_factory=threading.Event, repr=False)

    def matches(self, method: str, path: str) -> bool:
        """Whether the fault is meant for this request."""
        wanted_method, _, pattern = self.on.partition(" ")
        return wanted_method in (method, "*") and re.fullmatch(pattern, path) is not None


class Faults:
    """All faults of a service; thread-safe, random ones from a seed."""

    def __init__(self, seed: int = 0) -> None:
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._random = random.Random(seed)

    def add(self, on: str, kind: Kind, **settings: object) -> Fault:
        """Register a fault and return it, so that a test can wait for it and count its hits."""
        fault = Fault(on, kind, **settings)  # type: ignore[arg-type]
        with self._lock:
            self._faults.append(fault)
        return fault

    def clear(self) -> None:
        """Forget all faults; hanging requests end."""
        with self._lock:
            for fault in self._faults:
                fault.release.set()
            self._faults.clear()

    def take(self, method: str, path: str) -> Fault | None:
        """The fault that this request meets, if any; it is used up by that."""
        with self._lock:
            for fault in self._faults:
                if not fault.matches(method, path) or fault.hits >= fault.times:
                    continue
                if fault.skip:
                    fault.skip -= 1
                    continue
                if fault.share is not None and self._random.random() >= fault.share:
                    continue
                fault.hits += 1
                return fault
        return None
