"""A Tinker service, reached through its SDK within deadlines of ours, and one sentence for whatever goes wrong.

The SDK repeats failed requests silently: five minutes each time it sends one, an hour where an account has no money, without
end while it waits for a result. So every call runs in a thread that is given up after `timeout` seconds, and what the SDK
logged last is part of the sentence.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import importlib.metadata
import inspect
import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeVar

from w2s_tasks.errors import UserError
from w2s_tasks.models.service import NO_KEY, Access, checked_url
from w2s_tasks.user_text import one_line

T = TypeVar("T")

TINKER = "https://tinker.thinkingmachines.dev/services/tinker-prod"
"""Thinking Machines' own service."""
ADDRESS = "TINKER_BASE_URL"
KEY = "TINKER_API_KEY"
KEY_STARTS = ("tml-", "eyJ")
"""What the SDK takes for a key: one of an account, or a signed token."""
OPENING = 60.0
"""Seconds in which a service has to answer at all."""


def resolved_url(base_url: str | None) -> str:
    """The address that is meant: the argument, ``$TINKER_BASE_URL``, Thinking Machines' own.

    Raises:
        UserError: no http(s) address.
    """
    try:
        return checked_url(base_url or os.environ.get(ADDRESS) or TINKER)
    except ValueError as error:
        raise UserError(f"{error}.") from error


def sdk() -> ModuleType:
    """The SDK, which reports nothing about its use unless ``$TINKER_TELEMETRY`` asks for it.

    Raises:
        UserError: it is not installed.
    """
    os.environ.setdefault("TINKER_TELEMETRY", "0")
    try:
        import tinker
    except ImportError as error:
        raise UserError(f"Tinker's SDK is needed: pip install 'w2s-harness[tinker]' ({error}).") from error
    return tinker


def known(call: Callable[..., T], **arguments: Any) -> T:
    """Call with those of the keyword arguments that this version of the SDK has."""
    taken = inspect.signature(call).parameters
    return call(**{name: value for name, value in arguments.items() if name in taken})


class LostError(UserError):
    """A session, a model in it or a request in it failed or is gone, which another session may mend."""


class GoneError(LostError):
    """What was asked for is not there."""


class ForeignError(UserError):
    """Server and SDK do not understand each other."""


HEARTBEAT = "Session heartbeat"


class _LastWarning(logging.Handler):
    """Keeps what the SDK said last while it repeated something.

    Heartbeats are left out: they may be another session's, which a model that is still in memory holds open.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.text: str | None = None

    def emit(self, record: logging.LogRecord) -> None:
        said = record.getMessage()
        self.text = self.text if said.startswith(HEARTBEAT) else said


@functools.cache
def _last_warning() -> _LastWarning:
    handler = _LastWarning()
    logging.getLogger("tinker").addHandler(handler)
    return handler


@dataclass(frozen=True)
class Service:
    """How to reach a service. Holds no key, so its repr shows none."""

    base_url: str
    api_key_env: str = KEY
    timeout: float = 600.0
    """Seconds that one answer may take."""

    @property
    def access(self) -> Access:
        """For the key, and for texts without it."""
        return Access(self.base_url, self.api_key_env)

    def key(self) -> str:
        """The key, which a server of one's own may not need.

        Raises:
            UserError: none for Thinking Machines' own service, or what can't be one.
        """
        key = self.access.key()
        if key == NO_KEY and self.base_url != TINKER:
            return f"tml-{NO_KEY}"  # the SDK asks for one all the same
        if not key.startswith(KEY_STARTS):
            what = "needs a key" if key == NO_KEY else f"takes no key like that in ${self.api_key_env}: one starts with tml-"
            raise UserError(
                f"{self.base_url} {what}. Put it into ${self.api_key_env}, or name another variable: api_key_env=NAME."
            )
        return key

    def client(self) -> Any:
        """A ``ServiceClient``, whose session begins with the first model; nothing is sent.

        Raises:
            UserError: no SDK, no key.
        """
        return sdk().ServiceClient(base_url=self.base_url, api_key=self.key())

    @contextlib.contextmanager
    def session(self) -> Iterator[Any]:
        """A client as `client` gives it, whose session is ended behind.

        Raises:
            UserError: as there.
        """
        client = self.client()
        try:
            yield client
        except BaseException:
            close(client, "errored")
            raise
        close(client, "success")

    def rest(self) -> Any:
        """The SDK's client for what is there: runs, checkpoints, models.

        Raises:
            UserError: no SDK, no key, no answer.
        """

        def make() -> Any:
            # The SDK's own constructor makes all threads of a process wait for one that can't reach its service.
            client = self.client()
            if not hasattr(client, "create_rest_client"):
                return sdk().RestClient(base_url=self.base_url, api_key=self.key())
            with warnings.catch_warnings(action="ignore", category=FutureWarning):
                return client.create_rest_client()

        return self.within("looking whether it answers", make, OPENING)

    def models(self) -> dict[str, int | None]:
        """The models that the service has, and how many tokens each takes.

        Raises:
            UserError: no SDK, no key, no answer.
        """
        rest = self.rest()
        ask = getattr(rest, "get_server_capabilities", None) or self.client().get_server_capabilities
        found = self.within("asking for its models", lambda: result_of(ask), OPENING)
        return {m.model_name: getattr(m, "max_context_length", None) for m in found.supported_models if m.model_name}

    def within(self, what: str, call: Callable[[], T], seconds: float | None = None) -> T:
        """What a blocking call of the SDK gives.

        Args:
            what: is being done, for the sentence.
            call: makes the requests and waits.
            seconds: to wait at most; `timeout` by default.

        Raises:
            UserError: it failed, or took too long; what to do.
        """
        patience = min(seconds or self.timeout, self.timeout)
        said = _last_warning()
        said.text = None
        found: concurrent.futures.Future[T] = concurrent.futures.Future()
        # No pool: its threads would be waited for when the process ends.
        threading.Thread(target=_settle, args=(found, call), daemon=True, name="w2s-tinker").start()
        try:
            return found.result(patience)
        except UserError:
            raise
        except TimeoutError as error:
            if found.done():
                raise self.explain(error, what) from error
            words = f" Its SDK said last: {self.access.safe(one_line(said.text))}" if said.text else ""
            raise UserError(
                f"{self.access.host}, {what}: no answer within {patience:g} s.{words} What is finished is kept; run again, "
                "or allow more with `timeout`."
            ) from error
        except Exception as error:
            raise self.explain(error, what) from error

    def explain(self, error: Exception, what: str) -> UserError:
        """One sentence for an error of the SDK, and what to do."""
        head, said = f"{self.access.host}, {what}", self.access.safe(one_line(error))
        status = getattr(error, "status_code", None) or getattr(error.__cause__, "status_code", None)
        name = type(error).__name__
        if status in (404, 410):
            return GoneError(
                f"{head}: not there ({said}). Check strong.model, model_path and base_url; what is finished is kept."
            )
        if (status or 0) >= 500 or name == "RuntimeError" or _failed_there(error):
            return LostError(f"{head}: the service failed ({name}: {said}). What is finished is kept; run again.")
        if status == 401:
            return UserError(f"{head}: the key in ${self.api_key_env} was not accepted ({said}). Check it, and base_url.")
        if status in (402, 403):
            return UserError(f"{head}: not permitted ({said}). Check the account, its money and its models.")
        if name == "APIConnectionError" or name == "APITimeoutError":
            return UserError(f"{head}: not reachable ({said}). Check the network and base_url, then run again.")
        if status in (400, 422) or name in ("APIResponseValidationError", "ValueError", "ValidationError"):
            return ForeignError(
                f"{head}: server and SDK do not understand each other ({said}). This SDK is tinker "
                f"{importlib.metadata.version('tinker')}; another server may speak another version's protocol."
            )
        return UserError(f"{head}: the service refused ({name}: {said}).")


def _failed_there(error: Exception) -> bool:
    """Whether the service says that it failed, and not that the request was wrong."""
    return type(error).__name__ == "RequestFailedError" and str(getattr(error, "category", "")) != "user"


def close(client: Any, status: str = "success") -> None:
    """End a client's session, else the SDK would go on to tell the service that it is alive; nothing waits for it."""
    if hasattr(client, "close"):  # from SDK 0.38 on
        with contextlib.suppress(Exception):
            client.close(status)


def result_of(call: Callable[[], Any]) -> Any:
    """What a call of the SDK gives: from 0.38 on a future of it, before that itself."""
    found = call()
    return found.result() if hasattr(found, "result") else found


def _settle(future: concurrent.futures.Future[T], call: Callable[[], T]) -> None:
    try:
        future.set_result(call())
    except BaseException as error:  # noqa: BLE001 - it is raised again where it is waited for
        with contextlib.suppress(concurrent.futures.InvalidStateError):
            future.set_exception(error)
