"""HTTP, keys, routing and checking; what the service does is in the other modules."""

from __future__ import annotations

import contextlib
import functools
import http.server
import itertools
import json
import re
import socket
import struct
import threading
import time
import typing
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import openai.types
import pydantic

from .faults import Fault, Faults

T = TypeVar("T")


class ApiError(Exception):
    """An error answer in the service's form."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        kind: str = "invalid_request_error",
        param: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.retry_after = status, None
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


# Both are slow to make, and every request needs them.
_hints = functools.cache(typing.get_type_hints)
_adapter: Callable[[Any], pydantic.TypeAdapter[Any]] = functools.cache(pydantic.TypeAdapter)


def _unknown_fields(kind: Any, value: Any, path: str = "") -> list[str]:
    """Fields of a request that the SDK's typed dictionaries don't have, at any depth."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Required, typing.NotRequired, typing.Annotated):
        return _unknown_fields(arguments[0], value, path)
    if typing.is_typeddict(kind) or hasattr(kind, "__required_keys__"):
        if not isinstance(value, Mapping):
            return []
        hints = _hints(kind)
        found = [f"{path}{key}" for key in value if key not in hints]
        return found + [f for key in value if key in hints for f in _unknown_fields(hints[key], value[key], f"{path}{key}.")]
    if isinstance(value, list) and arguments:
        return [f for item in value for f in _unknown_fields(arguments[0], item, path)]
    if isinstance(value, Mapping) and arguments and origin not in (dict, Mapping):
        # A union: a value is fine where one alternative knows all of its fields.
        options = [_unknown_fields(a, value, path) for a in arguments if a is not type(None)]
        return min(options, key=len, default=[])
    return []


@dataclass
class Request:
    """One request, read."""

    service: Service
    method: str
    path: str
    query: dict[str, list[str]]
    headers: Mapping[str, str]
    body: bytes

    def one(self, name: str, default: str | None = None) -> str | None:
        """A query parameter."""
        return self.query.get(name, [default])[-1] if name in self.query else default

    def json(self, params: Any) -> dict[str, Any]:
        """The body, checked against a parameter type of the SDK (``...CreateParams``).

        Raises:
            ApiError: 400 as the service says it: no JSON, a field that it does not know, a value of the wrong type.
        """
        try:
            body = json.loads(self.body)
        except ValueError:
            raise ApiError(400, "We could not parse the JSON body of your request.") from None
        unknown = _unknown_fields(params, body)
        if unknown:
            raise ApiError(400, f"Unknown parameter: '{unknown[0]}'.", "unknown_parameter", param=unknown[0])
        try:
            # Iterables are checked lazily by pydantic, so the checked copy is not what is returned.
            _adapter(params).validate_python(body)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            param = ".".join(map(str, first["loc"]))
            raise ApiError(400, f"Invalid value for '{param}': {first['msg']}.", "invalid_type", param=param) from None
        return typing.cast("dict[str, Any]", body)


@dataclass
class Answer:
    """What goes back."""

    body: bytes
    status: int = 200
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, kind: type[pydantic.BaseModel], data: Mapping[str, Any], *, check: bool = True) -> Answer:
        """JSON of one of the SDK's types; ``check=False`` only where a fault is meant."""
        if check:
            checked(kind, data)
        return cls(json.dumps(data).encode())

    @classmethod
    def page(cls, kind: type[pydantic.BaseModel], items: Sequence[Mapping[str, Any]], request: Request) -> Answer:
        """One page of a list: ``after`` is the id of the last item seen, ``limit`` the size."""
        for item in items:
            checked(kind, item)
        after, limit = request.one("after"), int(request.one("limit") or 20)
        ids = [item["id"] for item in items]
        if after is not None and after not in ids:
            raise ApiError(404, f"No such object: {after}", "not_found", param="after")
        start = ids.index(after) + 1 if after else 0
        part = list(items[start : start + limit])
        data = {
            "object": "list",
            "data": part,
            "has_more": start + limit < len(items),
            "first_id": part[0]["id"] if part else None,
            "last_id": part[-1]["id"] if part else None,
        }
        return cls(json.dumps(data).encode())


def checked(kind: type[pydantic.BaseModel], data: Mapping[str, Any]) -> None:
    """Refuse an answer that the SDK's type does not describe: a mistake of the stand-in, not of its client."""
    kind.model_validate(data)
    unknown = set(data) - {f.alias or name for name, f in kind.model_fields.items()}
    assert not unknown, f"{kind.__name__} has no {unknown}"


Handler = Callable[..., Answer]
ROUTES: list[tuple[str, re.Pattern[str], Handler]] = []


def route(method: str, pattern: str) -> Callable[[Handler], Handler]:
    """Register a handler for a method and a regular expression of the whole path; its groups are arguments."""

    def register(handler: Handler) -> Handler:
        ROUTES.append((method, re.compile(pattern), handler))
        return handler

    return register


@dataclass
class ServedModel:
    """A model that the service offers; ``folder`` holds real weights, None where a test needs no answers from it."""

    id: str
    folder: Path | None = None
    created: int = 1_700_000_000
    owned_by: str = "system"
    shutdown_date: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As `models.retrieve` answers."""
        data = {"id": self.id, "created": self.created, "object": "model", "owned_by": self.owned_by}
        return data | ({"shutdown_date": self.shutdown_date} if self.shutdown_date else {})


@dataclass(frozen=True)
class Logged:
    """One request in the service's log; ``status`` is 0 where no answer was sent."""

    method: str
    path: str
    status: int
    fault: str | None
    headers: Mapping[str, str] = field(repr=False, default_factory=dict)


class Service:
    """The running service; a context manager."""

    def __init__(
        self, models: Mapping[str, Path | None] | None = None, *, key: str = "sk-test-0123456789", folder: Path | None = None
    ) -> None:
        self.key = key
        self.folder = folder
        """Where fine-tuned weights go; without it a fine-tuned model has none."""
        self.models = {name: ServedModel(name, path) for name, path in (models or {}).items()}
        self.faults = Faults()
        self.log: list[Logged] = []
        self.lock = threading.RLock()
        self._parts: dict[type, Any] = {}
        self._numbers = itertools.count(1)
        self._server = _Server(("127.0.0.1", 0), _Connection)
        self._server.service = self
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def base_url(self) -> str:
        """What the SDK takes as base_url."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> Service:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.faults.clear()
        self._server.shutdown()
        self._server.server_close()

    def part(self, kind: type[T]) -> T:
        """The state of one part of the service, made on first use."""
        with self.lock:
            if kind not in self._parts:
                self._parts[kind] = kind()
            return typing.cast("T", self._parts[kind])

    def new_id(self, prefix: str) -> str:
        """An identifier: prefix-000001 and on."""
        return f"{prefix}-{next(self._numbers):06d}"

    def count(self, method: str, pattern: str) -> int:
        """How many requests of this kind arrived."""
        return sum(r.method == method and re.fullmatch(pattern, r.path) is not None for r in self.log)

    def handle(self, request: Request) -> Answer:
        """Check the key and call the handler; errors become answers."""
        try:
            if request.headers.get("authorization") != f"Bearer {self.key}":
                raise ApiError(401, "Incorrect API key provided.", "invalid_api_key")
            methods = set()
            for method, pattern, handler in ROUTES:
                match = pattern.fullmatch(request.path)
                if match and method == request.method:
                    return handler(self, request, *match.groups())
                methods |= {method} if match else set()
            if methods:
                raise ApiError(405, f"Not allowed to {request.method} on {request.path}.", "method_not_supported")
            raise ApiError(404, f"Invalid URL ({request.method} {request.path})", "unknown_url")
        except ApiError as error:
            return Answer(json.dumps(error.body).encode(), error.status)


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 512
    service: Service


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

    def _fault(self, fault: Fault, request: Request) -> int:
        """Fail as asked; returns the status that the client saw, 0 for none."""
        handle = self.server.service.handle
        if fault.kind == "status":
            kind = "insufficient_quota" if fault.code == "insufficient_quota" else "server_error"
            body = {"error": {"message": fault.message, "type": kind, "param": None, "code": fault.code}}
            headers = {"Retry-After": fault.retry_after} if fault.retry_after else {}
            self._send(Answer(json.dumps(body).encode(), fault.status, headers=headers))
            fault.reached.set()
            return fault.status
        if fault.kind == "html":
            self._send(Answer(b"<html><body>502 Bad Gateway</body></html>", 502, "text/html"))
            fault.reached.set()
            return 502
        if fault.kind == "body":
            data = fault.body if isinstance(fault.body, bytes) else fault.body(request.body)
            self._send(Answer(data, fault.status, fault.content_type, fault.headers))
            fault.reached.set()
            return fault.status
        if fault.kind in ("reset", "hang_before"):
            fault.reached.set()
            if fault.kind == "hang_before":
                fault.release.wait(60)
            self._drop(reset=True)
            return 0
        answer = handle(request)
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
        url = urllib.parse.urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {k.lower(): v for k, v in self.headers.items()}
        query = urllib.parse.parse_qs(url.query, keep_blank_values=True)
        request = Request(service, self.command, url.path, query, headers, body)
        fault = service.faults.take(request.method, request.path)
        if fault:
            status = self._fault(fault, request)
        else:
            answer = service.handle(request)
            status = answer.status
            self._send(answer)
        service.log.append(Logged(request.method, request.path, status, fault.kind if fault else None, headers))

    do_GET = do_POST = do_DELETE = _serve  # noqa: N815 - the base class's names


@route("GET", r"/v1/models")
def list_models(service: Service, request: Request) -> Answer:
    """All models."""
    return Answer.page(openai.types.Model, [m.to_dict() for m in service.models.values()], request)


@route("GET", r"/v1/models/(.+)")
def retrieve_model(service: Service, request: Request, name: str) -> Answer:
    """One model, with its shutdown date where one is set."""
    model = service.models.get(urllib.parse.unquote(name))
    if model is None:
        raise ApiError(404, f"The model '{name}' does not exist or you do not have access to it.", "model_not_found")
    return Answer.of(openai.types.Model, model.to_dict())
