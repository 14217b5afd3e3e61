"""The fine-tuning service as a trainer sees it: the client, its dates, and one plain sentence for each of its errors.

Works with OpenAI and with providers of the same API (``base_url``). The key is read from the environment when the client is
made and is in no message: what a service answers passes through `safe` first.
"""

from __future__ import annotations

import datetime as dt
import functools
import os
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from w2s_tasks.errors import UserError
from w2s_tasks.models.chat.wire import is_below

if TYPE_CHECKING:
    import openai

T = TypeVar("T")

OPENAI_URL = "https://api.openai.com/v1"
LAST_JOBS = dt.date(2027, 1, 6)
"""From this day OpenAI takes no new fine-tuning jobs from anyone."""
CLOSED_TO_NEW = dt.date(2026, 5, 7)
"""Since this day organisations that had never fine-tuned can't begin."""
ALTERNATIVES = (
    "Alternatives: `trainer: lora` on open weights (no service), or a provider of the same API by `base_url`: Azure OpenAI, "
    "Together, Fireworks."
)
READ_RETRIES = 5
TIMEOUT = 120.0
KEYS = re.compile(r"\b(?:sk|rk|pk)-[\w*.-]{6,}|Bearer \S+")


@dataclass(frozen=True)
class Endpoint:
    """Where the service is, and the NAME of the environment variable that holds its key."""

    base_url: str = OPENAI_URL
    api_key_env: str = "OPENAI_API_KEY"

    @property
    def host(self) -> str:
        """For messages."""
        return urlsplit(self.base_url).netloc or self.base_url

    @property
    def is_openai(self) -> bool:
        """Whether this is OpenAI's own service, whose dates apply."""
        return is_below(self.base_url, "openai.com")

    def client(self) -> openai.OpenAI:
        """A client that repeats what only reads; what costs money is sent with `once`.

        Raises:
            UserError: the variable is not set.
        """
        import openai

        key = os.environ.get(self.api_key_env)
        if not key:
            raise UserError(f"no key for {self.host}: set the environment variable {self.api_key_env}.")
        return openai.OpenAI(base_url=self.base_url, api_key=key, max_retries=READ_RETRIES, timeout=TIMEOUT)

    def safe(self, text: str) -> str:
        """A message of the service without anything that looks like a key."""
        key = os.environ.get(self.api_key_env)
        return KEYS.sub("(key)", text.replace(key, "(key)") if key else text)


def once(client: openai.OpenAI) -> openai.OpenAI:
    """The same client without automatic repetition: the SDK would send a request that creates a job up to three times."""
    return client.with_options(max_retries=0)


def steady(call: Callable[[], T], attempts: int = 4, pause: float = 0.5) -> T:
    """Repeat a reading call whose answer was not of its kind; the SDK itself repeats lost connections, 429 and 5xx.

    Raises:
        ValueError: the last answer was not either.
    """
    for attempt in range(attempts):
        try:
            return call()
        except (ValueError, TypeError, AttributeError) as error:  # json's error, or the SDK's own on another shape
            if attempt == attempts - 1:
                raise ValueError(f"the answer can't be read ({type(error).__name__}: {error})") from error
            time.sleep(pause * 2**attempt)
    raise AssertionError("unreachable")


def listed(pages: Iterable[T]) -> list[T]:
    """All items of a list that comes in pages; a provider without pages answers the first one for ever."""
    found: dict[str, T] = {}
    for item in pages:
        name = str(getattr(item, "id", None))
        if name in found:
            break
        found[name] = item
    return list(found.values())


def said_in(answer: object) -> str:
    """What stands in an answer of another kind than was asked for: its error, or its beginning."""
    error = getattr(answer, "error", None)
    text = getattr(error, "message", None) or error or getattr(answer, "message", None) or getattr(answer, "detail", None)
    return " ".join(str(text or answer).split())[:300]


def message_of(error: Exception) -> str:
    """The service's own words, without the SDK's wrapping."""
    body: Any = getattr(error, "body", None)
    inner = body.get("error", body) if isinstance(body, dict) else None
    text = inner.get("message") if isinstance(inner, dict) else None
    return " ".join(str(text or getattr(error, "message", None) or error).split())[:500]


def is_quota(error: Exception) -> bool:
    """Whether the account is out of money, which waiting does not mend (a 429 like any other by its number)."""
    code = getattr(error, "code", None)
    return code in ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active")


def explain(error: Exception, what: str, endpoint: Endpoint) -> UserError:
    """One sentence for an error of the SDK, and what to do.

    Args:
        error: what the SDK raised.
        what: what was being done, e.g. "creating the job".
        endpoint: whose service.
    """
    import openai

    said = endpoint.safe(message_of(error))
    head = f"{endpoint.host}, {what}"
    code = getattr(error, "code", None)
    if isinstance(error, openai.AuthenticationError):
        return UserError(f"{head}: the key in {endpoint.api_key_env} was not accepted ({said}). Check it, and base_url.")
    if isinstance(error, openai.PermissionDeniedError) or code in ("model_not_available", "training_not_available"):
        return UserError(f"{head}: not permitted ({said}). {_closing(endpoint)}{ALTERNATIVES}")
    if is_quota(error):
        return UserError(f"{head}: the account's quota is used up ({said}). Add credit or raise its limit, then run again.")
    if isinstance(error, openai.RateLimitError):
        return UserError(f"{head}: too many requests or jobs at once ({said}). Wait a while, then run again.")
    if isinstance(error, openai.NotFoundError):
        return UserError(f"{head}: not found ({said}). Check strong.model and base_url.")
    if isinstance(error, openai.APIStatusError) and error.status_code < 500:
        return UserError(f"{head}: refused with {error.status_code} ({said}).")
    if isinstance(error, openai.APIConnectionError):
        return UserError(f"{head}: not reachable ({said}). Check the network and base_url, then run again.")
    return UserError(f"{head}: the service failed ({said}). Run again later; what was sent is found again.")


def _closing(endpoint: Endpoint) -> str:
    if not endpoint.is_openai:
        return ""
    return (
        f"OpenAI is closing its fine-tuning service: closed to organisations that never used it since {CLOSED_TO_NEW}, to "
        f"those without recent use since 2026-07-02, and to all from {LAST_JOBS}. "
    )


def closing_note(endpoint: Endpoint, today: dt.date | None = None) -> str | None:
    """What a user of OpenAI's own service should know before a job is made; None for other providers."""
    today = today or dt.datetime.now(dt.UTC).date()
    if not endpoint.is_openai or today < CLOSED_TO_NEW:
        return None
    return f"note: {_closing(endpoint)}{ALTERNATIVES}"


@functools.lru_cache(maxsize=8)
def _date(text: str) -> dt.date | None:
    try:
        return dt.datetime.fromisoformat(text).date()
    except ValueError:
        return None


def check_model(client: openai.OpenAI, endpoint: Endpoint, model: str, today: dt.date | None = None) -> str | None:
    """Ask for the base model before anything is sent.

    Returns:
        A note where the model will shut down on a known date, or where the service can't be asked.

    Raises:
        UserError: the model is not there, not permitted, or retired.
    """
    import openai

    try:
        found = steady(lambda: client.models.retrieve(model))
    except openai.NotFoundError as error:
        if getattr(error, "code", None) == "model_not_found" or endpoint.is_openai:
            raise UserError(
                f"{endpoint.host} has no model '{model}', or this key may not use it ({endpoint.safe(message_of(error))}). "
                f"Check strong.model; a model may be retired. {ALTERNATIVES}"
            ) from error
        return f"note: {endpoint.host} does not tell about its models; '{model}' was not checked."
    except (openai.APIError, ValueError) as error:
        raise explain(error, f"asking for the model '{model}'", endpoint) from error
    text = getattr(found, "shutdown_date", None)
    date = _date(str(text)) if text else None
    today = today or dt.datetime.now(dt.UTC).date()
    if date and date <= today:
        raise UserError(f"{model} was retired on {date} by {endpoint.host}; nothing was sent. {ALTERNATIVES}")
    if date:
        return f"note: {endpoint.host} will shut {model} down on {date}; its fine-tuned models usually go with it."
    return None
