"""HTTP, keys, routing and checking; what the service does is in the other modules."""

from __future__ import annotations

import functools
import json
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import loopback
import openai.types
import pydantic
from loopback import Fault, Loopback, Routes

from .dialects import Speech

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


class Request(loopback.Request):
    """One request, read."""

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


class Answer(loopback.Answer):
    """What goes back."""

    @classmethod
    def of(cls, kind: type[pydantic.BaseModel], data: Mapping[str, Any], *, check: bool = True) -> Answer:
        """JSON of one of the SDK's types; ``check=False`` only where a fault is meant."""
        if check:
            checked(kind, data)
        return cls(json.dumps(data).encode())

    @classmethod
    def page(
        cls, kind: type[pydantic.BaseModel], items: Sequence[Mapping[str, Any]], request: Request, *, check: bool = True
    ) -> Answer:
        """One page of a list: ``after`` is the id of the last item seen, ``limit`` the size."""
        for item in items if check else ():
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


route = Routes()


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


class Service(Loopback):
    """The running service; a context manager."""

    def __init__(
        self,
        models: Mapping[str, Path | None] | None = None,
        *,
        key: str = "sk-test-0123456789",
        folder: Path | None = None,
        speaks: Speech | None = None,
    ) -> None:
        super().__init__()
        self.key = key
        self.speech = speaks or Speech()
        """Whose dialect it speaks."""
        self.folder = folder
        """Where fine-tuned weights go; without it a fine-tuned model has none."""
        self.models = {name: ServedModel(name, path) for name, path in (models or {}).items()}
        self._parts: dict[type, Any] = {}

    @property
    def base_url(self) -> str:
        """What the SDK takes as base_url."""
        return f"{self.address}/v1"

    def part(self, kind: type[T]) -> T:
        """The state of one part of the service, made on first use."""
        with self.lock:
            if kind not in self._parts:
                self._parts[kind] = kind()
            return typing.cast("T", self._parts[kind])

    def handle(self, request: loopback.Request) -> Answer:
        """Check the key and call the handler; errors become answers."""
        try:
            request = self.speech.incoming(request)
            if request.headers.get("authorization") != f"Bearer {self.key}":
                raise ApiError(401, "Incorrect API key provided.", "invalid_api_key")
            handler, groups, methods = route.find(request.method, request.path)
            if handler:
                return typing.cast("Answer", handler(self, Request(**vars(request)), *groups))
            if methods:
                raise ApiError(405, f"Not allowed to {request.method} on {request.path}.", "method_not_supported")
            raise ApiError(404, f"Invalid URL ({request.method} {request.path})", "unknown_url")
        except ApiError as error:
            return Answer(json.dumps(error.body).encode(), error.status)

    def failure(self, fault: Fault) -> Answer:
        """An error as the service words it."""
        kind = "insufficient_quota" if fault.code == "insufficient_quota" else "server_error"
        body = {"error": {"message": fault.message, "type": kind, "param": None, "code": fault.code}}
        headers = {"Retry-After": fault.retry_after} if fault.retry_after else {}
        return Answer(json.dumps(body).encode(), fault.status, headers=headers)


@route("GET", r"/v1/models")
def list_models(service: Service, request: Request) -> Answer:
    """All models."""
    return Answer.page(openai.types.Model, [m.to_dict() for m in service.models.values()], request)


@route("GET", r"/v1/models/(.+)")
def retrieve_model(service: Service, request: Request, name: str) -> Answer:
    """One model, with its shutdown date where one is set."""
    model = service.models.get(name)
    if model is None:
        raise ApiError(404, f"The model '{name}' does not exist or you do not have access to it.", "model_not_found")
    return Answer.of(openai.types.Model, model.to_dict())
