"""The fine-tuning service as a trainer sees it: its answers of other shapes, a sentence for its errors.

Works with OpenAI and with the providers of its protocol (`trainers.services.dialects`), which `w2s_tasks.models.service`
reaches.
"""

from __future__ import annotations

import datetime as dt
import functools
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from w2s_tasks.errors import UserError
from w2s_tasks.models import ends
from w2s_tasks.models.chat.replies import RefusedError
from w2s_tasks.models.service import OUT_OF_MONEY, Access

if TYPE_CHECKING:
    import openai

T = TypeVar("T")

ALTERNATIVES = (
    "Alternatives: open weights, trained here (`trainer: lora`) or at a service (`trainer: tinker`); or by `base_url` "
    "another service of OpenAI's protocol: Nebius Token Factory, Azure OpenAI. (Together, Fireworks and Mistral have paths "
    "and SDKs of their own, which are not supported.)"
)
READ_RETRIES = 5
TIMEOUT = 120.0


def reading_client(access: Access) -> openai.OpenAI:
    """A client that repeats what only reads; what costs money is sent with `once`.

    Raises:
        UserError: there is no key.
    """
    return access.open(timeout=TIMEOUT, retries=READ_RETRIES)


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
    return getattr(error, "code", None) in OUT_OF_MONEY


def explain(error: Exception, what: str, access: Access) -> UserError:
    """One sentence for an error of the SDK, and what to do.

    Args:
        error: what the SDK raised.
        what: what was being done, e.g. "creating the job".
        access: whose service.
    """
    import openai

    said, code = access.safe(message_of(error)), getattr(error, "code", None)
    head = f"{access.host}, {what}"
    if isinstance(error, openai.PermissionDeniedError) or code in ("model_not_available", "training_not_available"):
        return UserError(f"{head}: not permitted ({said}). {_closing(access)}{ALTERNATIVES}")
    if isinstance(error, openai.RateLimitError) and not is_quota(error):
        return UserError(f"{head}: too many requests or jobs at once ({said}). Wait a while, then run again.")
    if isinstance(error, openai.NotFoundError):
        return UserError(f"{head}: not found ({said}). Check strong.model and base_url.")
    if isinstance(error, openai.APIStatusError) and (error.status_code < 500 or is_quota(error)):
        return access.explain(RefusedError(error.status_code, said, code=code), what)
    if isinstance(error, openai.APIConnectionError):
        return UserError(f"{head}: not reachable ({said}). Check the network and base_url, then run again.")
    return UserError(f"{head}: the service failed ({said}). Run again later; what was sent is found again.")


def _closing(access: Access, model: str | None = None, today: dt.date | None = None) -> str:
    found = ends.ends_at(access.base_url, model)
    return "".join(f"{end.line(today or ends.today())}. " for end in found)


def closing_note(access: Access, model: str | None = None, today: dt.date | None = None) -> str | None:
    """What ends at a service, as a user should know before a job is made; None where no end is known.

    Args:
        access: whose service.
        model: the base model, whose end is told too.
        today: from which the days are counted.
    """
    closing = _closing(access, model, today)
    return f"note: {closing}{ALTERNATIVES}" if closing else None


@functools.lru_cache(maxsize=8)
def _date(text: str) -> dt.date | None:
    try:
        return dt.datetime.fromisoformat(text).date()
    except ValueError:
        return None


def check_model(client: openai.OpenAI, access: Access, model: str, today: dt.date | None = None) -> str | None:
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
        if getattr(error, "code", None) == "model_not_found" or access.is_openai:
            raise UserError(
                f"{access.host} has no model '{model}', or this key may not use it ({access.safe(message_of(error))}). "
                f"Check strong.model; a model may be retired. {ALTERNATIVES}"
            ) from error
        return f"note: {access.host} does not tell about its models; '{model}' was not checked."
    except (openai.APIError, ValueError) as error:
        raise explain(error, f"asking for the model '{model}'", access) from error
    text = getattr(found, "shutdown_date", None)
    date = _date(str(text)) if text else None
    if date and date <= (today or ends.today()):
        raise UserError(f"{model} was retired on {date} by {access.host}; nothing was sent. {ALTERNATIVES}")
    if date:
        return f"note: {access.host} will shut {model} down on {date}; its fine-tuned models usually go with it."
    return None
