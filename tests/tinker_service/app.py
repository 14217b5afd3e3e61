"""The service's frame: keys, routes, what was really done, and the parts that the other modules use."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar

import pydantic
import zstandard
from loopback import Answer, Fault, Faults, Loopback, Request, Routes
from tinker import types

from .jobs import Jobs
from .models import Adapter, Base
from .sessions import Sessions
from .store import Store
from .wire import ApiError

M = TypeVar("M", bound=pydantic.BaseModel)

route = Routes()
What = Literal["create", "load", "forward", "forward_backward", "optim_step", "save", "sample"]


@dataclass(frozen=True)
class Work:
    """One piece of work that was done, with the tokens that it is billed for."""

    what: What
    run: str
    """The training run; of a sample, its sampler's model path or base model."""
    train: int = 0
    prefill: int = 0
    sample: int = 0


class Service(Loopback):
    """The running service; a context manager.

    Args:
        models: The folder of each base model by its name.
        folder: Where runs, checkpoints and the list of what was done are kept; a later service over it knows them.
        key: The one API key.
        port: A free one by default.
    """

    def __init__(self, models: Mapping[str, Path], folder: Path, *, key: str = "tml-test-0123456789", port: int = 0) -> None:
        super().__init__(port)
        self.key = key
        self.models = dict(models)
        self.store = Store(folder)
        self.sessions = Sessions(folder)
        self.futures = Faults()
        """Faults of the work behind promises: ``add("FUTURE optim_step", "stall")``, or ``"fail"`` with a code."""
        self.jobs = Jobs(self.futures)
        self.config = types.ClientConfigResponse()
        """What the SDK is told when it starts: the sizes of chunks, how long it pauses at 402, and so on."""
        self.idempotent_saves = True
        """False: a save that is sent twice meets its own checkpoint and answers 409, as users of the service have seen."""
        self.keeps_metadata = True
        """False: lists of runs are without what the user gave them, as SkyRL's server has it."""
        self.names: Literal["tinker", "peft"] = "tinker"
        """How the tensors of exported weights are called."""
        self.later = timedelta()
        """What is added to the time of day, so that checkpoints expire."""
        self.adapters: dict[str, Adapter] = {}
        """Loaded sampler weights by path."""
        self.downloads: dict[str, tuple[Path, datetime]] = {}
        """The file of each address that was given out, and until when."""
        self._bases: dict[str, Base] = {}
        self._done = folder / "done.jsonl"
        self._writing = threading.Lock()

    @property
    def base_url(self) -> str:
        """What the SDK takes as base_url."""
        return self.address

    def __exit__(self, *_: object) -> None:
        self.futures.clear()
        super().__exit__()
        self.jobs.forget()

    def now(self) -> datetime:
        """The time of day, as this service has it."""
        return datetime.now(UTC) + self.later

    def base(self, name: str) -> Base:
        """A base model, loaded once; called by the worker alone."""
        if name not in self._bases:
            self._bases[name] = Base(self.models[name])
        return self._bases[name]

    def did(self, work: Work) -> None:
        """Note a piece of work that was done."""
        with self._writing, self._done.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(work)) + "\n")

    @property
    def work(self) -> list[Work]:
        """All that was really done over this folder, in order."""
        return read_work(self.store.folder)

    def done(self, what: What, run: str | None = None) -> int:
        """How often a kind of work was really done, in one run or in all."""
        return sum(work.what == what and run in (None, work.run) for work in self.work)

    def tokens(self, run: str | None = None) -> dict[str, int]:
        """The tokens billed, in one run or in all: train, prefill and sample."""
        chosen = [work for work in self.work if run in (None, work.run)]
        return {kind: sum(getattr(work, kind) for work in chosen) for kind in ("train", "prefill", "sample")}

    def lose_sessions(self, status: int = 410) -> None:
        """End all sessions, and with them what was not saved; their requests are answered with this status from now on."""
        self.sessions.end(status)
        self.jobs.forget()

    def handle(self, request: Request) -> Answer:
        """Check the key and call the handler; errors become answers."""
        try:
            if not request.path.startswith("/download/") and request.headers.get("x-api-key") != self.key:
                raise ApiError(401, "Invalid API key")
            handler, groups, methods = route.find(request.method, request.path)
            if handler:
                return handler(self, request, *groups)
            raise ApiError(405, "Method Not Allowed") if methods else ApiError(404, "Not Found")
        except ApiError as error:
            return Answer(json.dumps({"detail": error.detail}).encode(), error.status)

    def failure(self, fault: Fault) -> Answer:
        """An error as the service words it."""
        headers = {"Retry-After": fault.retry_after} if fault.retry_after else {}
        return Answer(json.dumps({"detail": fault.message}).encode(), fault.status, headers=headers)


def read_work(folder: Path) -> list[Work]:
    """What a service over a folder has done, whether it still runs or not."""
    file = folder / "done.jsonl"
    return [Work(**json.loads(line)) for line in file.read_text("utf-8").splitlines()] if file.exists() else []


def body_of(request: Request) -> bytes:
    """The body, decompressed where it is compressed."""
    if request.headers.get("content-encoding") == "zstd":
        return zstandard.ZstdDecompressor().decompress(request.body)
    return request.body


def read(kind: type[M], request: Request) -> M:
    """The body as one of the SDK's requests.

    Raises:
        ApiError: 422 for anything that this generation of the protocol does not have.
    """
    try:
        return kind.model_validate_json(body_of(request))
    except pydantic.ValidationError as error:
        raise ApiError(422, json.loads(error.json(include_url=False))) from None


def answer(value: pydantic.BaseModel | Mapping[str, Any]) -> Answer:
    """JSON of one of the SDK's responses."""
    text = value.model_dump_json() if isinstance(value, pydantic.BaseModel) else json.dumps(value)
    return Answer(text.encode())
