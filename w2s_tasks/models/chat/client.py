"""Opens the OpenAI SDK for an endpoint, with a key that is read from the environment and shown nowhere."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from w2s_tasks.errors import UserError, nearest
from w2s_tasks.models.chat.replies import RefusedError, refusal_of
from w2s_tasks.models.chat.wire import Endpoint

if TYPE_CHECKING:
    import openai

VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
NO_KEY = "none"
"""What a server that asks for no key is sent."""


def default_variable(api_version: str | None) -> str:
    """The environment variable that holds the key unless another is named."""
    return "AZURE_OPENAI_API_KEY" if api_version else "OPENAI_API_KEY"


def read_key(endpoint: Endpoint, variable: str) -> str:
    """The key of an endpoint; servers of one's own need none.

    Raises:
        UserError: no name of a variable (perhaps a key itself, so it is not repeated), or an empty variable where a key
            is needed.
    """
    if not VARIABLE.fullmatch(variable):
        raise UserError("api_key_env takes the NAME of an environment variable that holds the key, never the key.")
    key = os.environ.get(variable, "").strip()
    if not key and endpoint.is_openai:
        raise UserError(
            f"{endpoint.base_url} needs a key: put it into ${variable}, or name another variable: api_key_env=NAME."
        )
    if key and not key.isascii():
        raise UserError(f"${variable} holds characters that no key has; copy it again.")
    return key or NO_KEY


class Connection:
    """How to reach an endpoint: opens SDK clients and words its errors. Its repr shows no key."""

    def __init__(self, endpoint: Endpoint, variable: str, timeout: float) -> None:
        self.endpoint, self.variable, self.timeout = endpoint, variable, timeout
        self._key = read_key(endpoint, variable)

    def __repr__(self) -> str:
        return f"Connection({self.endpoint.base_url}, ${self.variable})"

    def _settings(self) -> dict[str, Any]:
        # Retries are ours: the SDK's would neither share one back-off nor be counted.
        settings: dict[str, Any] = {"api_key": self._key, "max_retries": 0, "timeout": self.timeout}
        if self.endpoint.api_version:
            return settings | {"azure_endpoint": self.endpoint.base_url, "api_version": self.endpoint.api_version}
        return settings | {"base_url": self.endpoint.base_url}

    def open_async(self) -> openai.AsyncOpenAI:
        """An asynchronous client; belongs to the running event loop."""
        import openai

        kind = openai.AsyncAzureOpenAI if self.endpoint.api_version else openai.AsyncOpenAI
        return kind(**self._settings())

    def open(self) -> openai.OpenAI:
        """A synchronous client."""
        import openai

        kind = openai.AzureOpenAI if self.endpoint.api_version else openai.OpenAI
        return kind(**self._settings())

    def without_key(self, text: str) -> str:
        """The text with the key cut out: services repeat it in their errors."""
        return text.replace(self._key, f"${self.variable}") if self._key != NO_KEY else text

    def refused(self, error: openai.APIStatusError) -> RefusedError:
        """What an error answer says."""
        found = refusal_of(error.status_code, error.response.content)
        return replace(found, message=self.without_key(found.message)[:500] + self.redirected(error.response))

    def redirected(self, response: Any) -> str:
        """A sentence where the endpoint sent the request elsewhere, which turns it into another one more often than not."""
        if not response.history:
            return ""
        return self.without_key(f" The request was redirected to {response.url.copy_with(query=None)}; is base_url right?")

    def explain(self, refusal: RefusedError) -> UserError:
        """The sentence for the user: what the endpoint refused, and what to do."""
        number = "in an answer with status 200" if refusal.status == 200 else str(refusal.status)
        where = f"{self.endpoint.base_url} refused the request ({number})"
        if refusal.status == 401:
            return UserError(f"{where}: it does not take the key in ${self.variable}. It says: {refusal.message}")
        if refusal.status == 403:
            return UserError(f"{where}: this key may not use '{self.endpoint.model}'. It says: {refusal.message}")
        if refusal.code == "insufficient_quota":
            return UserError(f"{where}: the account has no credit left. Add some and run again; finished answers are kept.")
        if refusal.status == 404:
            return UserError(f"{where}: {refusal.message} {self._models_there()}".rstrip())
        if "temperature" in f"{refusal.param} {refusal.message}":
            return UserError(
                f"{where}: {refusal.message} With send_temperature=false none is sent; the result file says so."
            )
        if refusal.code == "context_length_exceeded" or "context length" in refusal.message.lower():
            return UserError(f"{where}: a prompt is too long for the model: {refusal.message} Use fewer shots.")
        return UserError(f"{where}: {refusal.message}")

    def _models_there(self) -> str:
        """Which models the endpoint has, where it tells."""
        import openai

        try:
            with self.open() as client:
                names = [m.id for m in client.with_options(timeout=10).models.list().data]
        except (openai.OpenAIError, ValueError, TypeError):
            return "Check model= and base_url= (it usually ends in /v1)."
        shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        return f"It has: {shown or 'none'}.{nearest(self.endpoint.model, names)}"
