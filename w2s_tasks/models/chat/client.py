"""Reaches the endpoint of one model, and words its refusals."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from w2s_tasks.errors import UserError, nearest
from w2s_tasks.models.chat.replies import RefusedError, refusal_of
from w2s_tasks.models.chat.wire import Endpoint
from w2s_tasks.models.service import Access

if TYPE_CHECKING:
    import openai


CHECK = "Check model= and base_url= (it usually ends in /v1)."


def default_variable(api_version: str | None) -> str:
    """The environment variable that holds the key unless another is named."""
    return "AZURE_OPENAI_API_KEY" if api_version else "OPENAI_API_KEY"


class Connection:
    """How to reach an endpoint. Its repr shows no key."""

    def __init__(self, endpoint: Endpoint, variable: str, timeout: float) -> None:
        self.endpoint, self.timeout = endpoint, timeout
        self.access = Access(endpoint.base_url, variable, endpoint.api_version)
        self.access.key()  # a missing one is told before anything is rendered

    def __repr__(self) -> str:
        return f"Connection({self.access})"

    def open_async(self) -> openai.AsyncOpenAI:
        """An asynchronous client. Retries are ours: the SDK's would neither share one back-off nor be counted."""
        return self.access.open_async(timeout=self.timeout)

    def open(self) -> openai.OpenAI:
        """A synchronous client."""
        return self.access.open(timeout=self.timeout)

    def refused(self, error: openai.APIStatusError) -> RefusedError:
        """What an error answer says."""
        found = refusal_of(error.status_code, error.response.content)
        return replace(found, message=self.access.safe(found.message)[:500] + self.redirected(error.response))

    def redirected(self, response: Any) -> str:
        """A sentence where the endpoint sent the request elsewhere, which turns it into another one more often than not."""
        if not response.history:
            return ""
        return self.access.safe(f" The request was redirected to {response.url.copy_with(query=None)}; is base_url right?")

    def explain(self, refusal: RefusedError) -> UserError:
        """The sentence for the user: what the endpoint refused, and what to do."""
        where = f"{self.endpoint.base_url} refused the request ({refusal.status})"
        said = refusal.message if refusal.message.endswith((".", "!", "?")) else f"{refusal.message}."
        if refusal.status == 403:
            return UserError(f"{where}: this key may not use '{self.endpoint.model}'. It says: {said}")
        if "unexpected endpoint" in said.lower():  # LM Studio's 404
            return UserError(f"{where}: {said} {CHECK}")
        if refusal.status == 404 or refusal.code == "model_not_found":
            return UserError(f"{where}: {said} {self._models_there()}".rstrip())
        if "temperature" in f"{refusal.param} {said}":
            return UserError(f"{where}: {said} With send_temperature=false none is sent; the result file says so.")
        if refusal.code == "context_length_exceeded" or re.search("context (?:length|size)", said, re.I):
            return UserError(f"{where}: a prompt is too long for the model: {said} Use fewer shots.")
        return self.access.explain(refusal)

    def _models_there(self) -> str:
        """Which models the endpoint has, where it tells."""
        import openai

        try:
            with self.open() as client:
                names = [m.id for m in client.with_options(timeout=10).models.list().data or ()]
        except (openai.OpenAIError, ValueError, TypeError, AttributeError):
            return CHECK
        shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        return f"It has: {shown or 'none'}.{nearest(self.endpoint.model, names)}"
