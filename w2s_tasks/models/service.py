"""A service of OpenAI's protocol: its address, the NAME of the variable that holds its key, and one sentence for its errors.

Evaluation (`w2s_tasks.models.chat`) and fine-tuning (`trainers.services`) reach every service through an `Access`. The key
is read from the environment when a client is made, and cut out of whatever the service says.
"""

from __future__ import annotations

import contextlib
import email.utils
import os
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from w2s_tasks.errors import UserError
from w2s_tasks.models.chat.replies import RefusedError

if TYPE_CHECKING:
    import openai

OPENAI = "https://api.openai.com/v1"
OPENAI_DOMAIN = "openai.com"
AZURE_DOMAINS = ("openai.azure.com", "cognitiveservices.azure.com", "services.ai.azure.com", "openai.azure.us")
"""Where Azure's OpenAI resources are; a machine of one's own may be elsewhere below azure.com."""
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
KEYS = re.compile(r"\b(?:sk|rk|pk|tml)-[\w*.-]{6,}|Bearer \S+")
NO_KEY = "none"
"""What a server that asks for no key is sent."""
OUT_OF_MONEY = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})
"""Codes of an account out of money, which waiting does not mend, though some come with 429 like a passing limit."""


def checked_url(url: str) -> str:
    """An address without a slash at its end.

    Raises:
        ValueError: no http(s) address, or one that carries what belongs into the environment.
    """
    parts = urlsplit(url)
    try:
        complete = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
    except ValueError:  # no port where one should be
        complete = False
    if not complete:
        raise ValueError("base_url must be an address such as http://localhost:8000/v1 or https://api.openai.com/v1")
    if parts.username or parts.password or parts.query:
        raise ValueError("base_url must carry no user, password or query: it is written into result files")
    return url.rstrip("/")


def checked_variable(name: str) -> str:
    """The name of an environment variable.

    Raises:
        ValueError: no such name, perhaps a key itself, so it is not repeated.
    """
    if not VARIABLE.fullmatch(name):
        raise ValueError("api_key_env takes the NAME of an environment variable that holds the key, never the key")
    return name


def retry_after(headers: Any, now: float | None = None) -> float | None:
    """Seconds that a service asks to wait (``retry-after-ms``, ``Retry-After`` in seconds or as a date), or None."""
    for name, unit in (("retry-after-ms", 1000), ("retry-after", 1)):
        with contextlib.suppress(ValueError, TypeError):
            return max(0.0, float(headers.get(name)) / unit)
    with contextlib.suppress(ValueError, TypeError):
        date = email.utils.parsedate_to_datetime(headers.get("retry-after"))
        return max(0.0, date.timestamp() - (time.time() if now is None else now))
    return None


@dataclass(frozen=True)
class Access:
    """How to reach a service. Holds no key, so its repr shows none."""

    base_url: str = OPENAI
    api_key_env: str = "OPENAI_API_KEY"
    api_version: str | None = None
    """Of Azure's dated API; None elsewhere."""

    def is_below(self, *domains: str) -> bool:
        """Whether the host is one of these domains or below one: not one whose name only ends in the same letters."""
        host = (urlsplit(self.base_url).hostname or "").removesuffix(".")
        return any(f".{host}".endswith(f".{domain}") for domain in domains)

    @property
    def is_openai(self) -> bool:
        """Whether this is OpenAI's own service, whose dates apply."""
        return self.is_below(OPENAI_DOMAIN)

    @property
    def is_azure(self) -> bool:
        """Whether this is a resource of Azure's OpenAI service."""
        return self.is_below(*AZURE_DOMAINS)

    @property
    def host(self) -> str:
        """For messages."""
        return urlsplit(self.base_url).netloc or self.base_url

    def key(self) -> str:
        """The key; servers of one's own need none.

        Raises:
            UserError: no variable's name, an empty variable where a key is needed, or what can't be a key.
        """
        try:
            key = os.environ.get(checked_variable(self.api_key_env), "").strip()
        except ValueError as error:
            raise UserError(f"{error}.") from error
        if not key and (self.is_openai or self.is_azure):
            raise UserError(
                f"{self.base_url} needs a key: put it into ${self.api_key_env}, or name another variable: api_key_env=NAME."
            )
        if key and not key.isascii():
            raise UserError(f"${self.api_key_env} holds characters that no key has; copy it again.")
        return key or NO_KEY

    def _settings(self, timeout: float, retries: int) -> dict[str, Any]:
        settings: dict[str, Any] = {"api_key": self.key(), "max_retries": retries, "timeout": timeout}
        if self.api_version:
            return settings | {"azure_endpoint": self.base_url, "api_version": self.api_version}
        return settings | {"base_url": self.base_url}

    def open(self, *, timeout: float, retries: int = 0) -> openai.OpenAI:
        """A synchronous client of the SDK, which repeats failed requests so many times."""
        import openai

        kind = openai.AzureOpenAI if self.api_version else openai.OpenAI
        return kind(**self._settings(timeout, retries))

    def open_async(self, *, timeout: float) -> openai.AsyncOpenAI:
        """An asynchronous client, which repeats nothing; belongs to the running event loop."""
        import openai

        kind = openai.AsyncAzureOpenAI if self.api_version else openai.AsyncOpenAI
        return kind(**self._settings(timeout, 0))

    def safe(self, text: str) -> str:
        """A text of the service without its key, or anything else that looks like one."""
        key = os.environ.get(self.api_key_env, "").strip()
        return KEYS.sub("(key)", text.replace(key, f"${self.api_key_env}") if key else text)

    def explain(self, refusal: RefusedError, what: str = "") -> UserError:
        """One sentence for what every service may refuse, and what to do.

        Args:
            refusal: what it said.
            what: what was being done, e.g. "creating the job"; empty for a plain request.
        """
        said = self.safe(refusal.message)
        head = f"{self.base_url}{f', {what}' if what else ''}"
        if refusal.status == 401:
            return UserError(f"{head}: the key in ${self.api_key_env} was not accepted ({said}). Check it, and base_url.")
        if refusal.code in OUT_OF_MONEY:
            return UserError(
                f"{head}: the account's quota is used up ({said}). Add credit or raise its limit, then run again; what is "
                "finished is kept."
            )
        number = "in an answer with status 200" if refusal.status == 200 else f"with {refusal.status}"
        return UserError(f"{head}: the request was refused {number}: {said}")
