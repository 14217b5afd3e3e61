"""A service on loopback: connections, the log of requests, the faults that they meet. A subclass says what it answers."""

from __future__ import annotations

import contextlib
import http.server
import itertools
import re
import socket
import struct
import threading
import time
import urllib.parse
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from .faults import Fault, Faults


@dataclass
class Request:
    """One request, read; its path without percent signs."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: Mapping[str, str]
    body: bytes

    def one(self, name: str, default: str | None = None) -> str | None:
        """A query parameter."""
        return self.query.get(name, [default])[-1] if name in self.query else default


@dataclass
class Answer:
    """What goes back."""

    body: bytes
    status: int = 200
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Logged:
    """One request in a service's log; ``status`` is 0 where no answer was sent."""

    method: str
    path: str
    status: int
    fault: str | None
    headers: Mapping[str, str] = field(repr=False, default_factory=dict)


Handler = Callable[..., Answer]


class Routes:
    """Handlers by method and path; to call it registers one."""

    def __init__(self) -> None:
        self._known: list[tuple[str, re.Pattern[str], Handler]] = []

    def __call__(self, method: str, pattern: str) -> Callable[[Handler], Handler]:
        """Register a handler for a method and a regular expression of the whole path; its groups are arguments."""

        def register(handler: Handler) -> Handler:
            self._known.append((method, re.compile(pattern), handler))
            return handler

        return register

    def find(self, method: str, path: str) -> tuple[Handler | None, tuple[str, ...], set[str]]:
        """The handler and the groups of its path; without a handler, the methods that this path has."""
        methods = set()
        for known, pattern, handler in self._known:
            if match := pattern.fullmatch(path):
                if known == method:
                    return handler, match.groups(), set()
                methods.add(known)
        return None, (), methods


class Loopback(ABC):
    """A running service; a context manager."""

    def __init__(self, port: int = 0) -> None:
        self.faults = Faults()
        self.log: list[Logged] = []
        self.lock = threading.RLock()
        self.closed = False
        self._numbers = itertools.count(1)
        self._server = _Server(("127.0.0.1", port), _Connection)
        self._server.service = self
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def address(self) -> str:
        """``http://`` with host and port."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True
        self.faults.clear()
        self._server.shutdown()
        self._server.server_close()

    def new_id(self, prefix: str) -> str:
        """An identifier: prefix-000001 and on."""
        return f"{prefix}-{next(self._numbers):06d}"

    def count(self, method: str, pattern: str) -> int:
        """How many requests of this kind arrived."""
        return sum(r.method == method and re.fullmatch(pattern, r.path) is not None for r in self.log)

    @abstractmethod
    def handle(self, request: Request) -> Answer:
        """Do what a request asks for; an error is an answer too."""

    @abstractmethod
    def failure(self, fault: Fault) -> Answer:
        """The answer of a fault of kind `status`, in the service's own form."""


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 512
    service: Loopback


class _Connection(http.server.BaseHTTPRequestHandler):
    """One connection; keep-alive, one request after the other."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on stderr."""

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError, ValueError):
            super().handle()

    def finish(self) -> None:
        with contextlib.suppress(ConnectionError, ValueError, OSError):
            super().finish()

    def _drop(self, *, reset: bool) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            if reset:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.rfile.close()
                self.connection.close()
            else:
                self.connection.shutdown(socket.SHUT_RDWR)

    def _send(self, answer: Answer, body: bytes | None = None, pieces: int = 1, seconds: float = 0.0) -> None:
        """Send an answer; ``body`` may be shorter than announced."""
        data = answer.body if body is None else body
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        self.send_header("x-request-id", self.server.service.new_id("req"))
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()
        size = max(1, -(-len(data) // pieces))
        for start in range(0, len(data), size):
            self.wfile.write(data[start : start + size])
            self.wfile.flush()
            if pieces > 1:
                time.sleep(seconds / pieces)

    def _instead(self, fault: Fault, request: Request) -> Answer | None:
        """What a fault answers without the service's help; None where it needs that or answers nothing."""
        if fault.kind == "status":
            return self.server.service.failure(fault)
        if fault.kind == "html":
            return Answer(b"<html><body>502 Bad Gateway</body></html>", 502, "text/html")
        if fault.kind == "body":
            data = fault.body if isinstance(fault.body, bytes) else fault.body(request.body)
            return Answer(data, fault.status, fault.content_type, fault.headers)
        return None

    def _fault(self, fault: Fault, request: Request) -> int:
        """Fail as asked; returns the status that the client saw, 0 for none."""
        if answer := self._instead(fault, request):
            self._send(answer)
            fault.reached.set()
            return answer.status
        if fault.kind in ("reset", "hang_before"):
            fault.reached.set()
            if fault.kind == "hang_before":
                fault.release.wait(60)
            self._drop(reset=True)
            return 0
        answer = self.server.service.handle(request)
        fault.reached.set()
        if fault.kind == "hang_after":
            fault.release.wait(60)
        if fault.kind == "slow":
            self._send(answer, pieces=8, seconds=fault.seconds)
        elif fault.kind == "malformed":
            self._send(Answer(answer.body[: len(answer.body) // 2], answer.status, answer.content_type))
        elif fault.kind == "truncated":
            self._send(answer, answer.body[: len(answer.body) // 2])
            self._drop(reset=False)
        else:
            self._drop(reset=False)
            return 0
        return answer.status

    def _serve(self) -> None:
        service = self.server.service
        if service.closed:  # a client may hold its connection longer than the service lives
            self._drop(reset=True)
            return
        url = urllib.parse.urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {k.lower(): v for k, v in self.headers.items()}
        query = urllib.parse.parse_qs(url.query, keep_blank_values=True)
        request = Request(self.command, urllib.parse.unquote(url.path), query, headers, body)
        fault = service.faults.take(request.method, request.path)
        if fault:
            status = self._fault(fault, request)
        else:
            answer = service.handle(request)
            status = answer.status
            self._send(answer)
        service.log.append(Logged(request.method, request.path, status, fault.kind if fault else None, headers))

    do_GET = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815 - the base class's names
