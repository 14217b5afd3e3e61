"""Requests as an OpenAI-compatible endpoint takes them; no network here.

Endpoints differ in what they accept. A `Dialect` holds what is known of one; `adapted` learns from a refusal.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from w2s_tasks.errors import UserError
from w2s_tasks.models.chat.replies import Kind, RefusedError
from w2s_tasks.models.service import OPENAI, Access, checked_url

PATHS: dict[str, str] = {"chat": "/chat/completions", "completions": "/completions"}
Prompt = str | Sequence[int]
"""Text, or tokens where the endpoint is of completions."""
MAX_STOPS = 4


class Conversation(str):
    """A prompt that is a list of messages: its text is their JSON, so that lm_eval can log and hash it."""

    __slots__ = ()

    @classmethod
    def of(cls, messages: Sequence[Mapping[str, Any]]) -> Conversation:
        """Wrap messages (``role``, ``content``)."""
        return cls(json.dumps(list(messages), ensure_ascii=False))

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The messages."""
        return json.loads(self)


@dataclass(frozen=True)
class Endpoint:
    """Where a model is: address, model name, kind of endpoint. This is its identity; a key is no part of it."""

    base_url: str
    model: str
    kind: Kind = "chat"
    api_version: str | None = None

    @property
    def is_openai(self) -> bool:
        """Whether OpenAI's own models are behind it: at its own service, or at Azure's."""
        access = Access(self.base_url)
        return access.is_openai or access.is_azure


@dataclass(frozen=True)
class Request:
    """One request: path and body. `repeat` tells apart samples of the same prompt."""

    path: str
    body: Mapping[str, Any]
    repeat: int = 0

    def key(self, endpoint: Endpoint) -> str:
        """Hash of all that decides the answer."""
        parts = [endpoint.base_url, endpoint.api_version, self.path, self.body, self.repeat]
        return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode("utf-8", "replace")).hexdigest()


@dataclass(frozen=True)
class Dialect:
    """What an endpoint is known to accept."""

    limit: str = "max_tokens"
    """The name of the field for the most tokens to write."""
    top: int = 20
    """Log-probabilities a position; 0 where there are none."""
    stop: bool = True
    schema: Literal["object", "string", ""] = "object"
    """JSON schemas as `response_format`: of an object that holds the answer, of the answer alone (which leaves no room for
    blanks, but is no schema to OpenAI), or none."""
    temperature: bool = True


def default_top(endpoint: Endpoint) -> int:
    """How many log-probabilities to ask for: the most that OpenAI gives at a position."""
    return 5 if endpoint.is_openai and endpoint.kind == "completions" else 20


def resolve_base_url(given: str | None, *, azure: bool = False) -> str:
    """The address to ask; a full path of a method is cut back.

    Without `given` it is ``$OPENAI_BASE_URL`` or OpenAI's own; for Azure's dated API ``$AZURE_OPENAI_ENDPOINT``.

    Raises:
        UserError: no http(s) address, or one that carries a password or a query.
    """
    usual = os.environ.get("AZURE_OPENAI_ENDPOINT", "") if azure else os.environ.get("OPENAI_BASE_URL") or OPENAI
    url = (given or usual).strip().rstrip("/")
    for path in PATHS.values():
        url = url.removesuffix(path)
    try:
        return checked_url(url)
    except ValueError as error:
        raise UserError(f"{error}.") from error


def _prompt(kind: Kind, context: Prompt) -> dict[str, Any]:
    if kind == "completions" and not isinstance(context, str):
        return {"prompt": list(context)}
    if kind == "completions":
        if isinstance(context, Conversation):
            raise UserError(
                "endpoint=completions takes plain prompts: leave out --apply_chat_template, or use endpoint=chat."
            )
        return {"prompt": str(context)}
    if isinstance(context, Conversation):
        return {"messages": context.messages}
    return {"messages": [{"role": "user", "content": str(context)}]}


@dataclass(frozen=True)
class Writer:
    """Writes requests for one endpoint in its dialect. `extra` goes into every body; `temperature` False sends none."""

    endpoint: Endpoint
    dialect: Dialect
    extra: Mapping[str, Any] = field(default_factory=dict)

    def _request(
        self, context: Prompt, tokens: int, temperature: float, more: Mapping[str, Any], repeat: int = 0
    ) -> Request:
        body = {"model": self.endpoint.model, **_prompt(self.endpoint.kind, context), self.dialect.limit: tokens}
        if self.dialect.temperature:
            body["temperature"] = temperature
        return Request(PATHS[self.endpoint.kind], {**body, **more, **self.extra}, repeat)

    def first_token(self, context: Prompt, tokens: int = 1, named: Sequence[int] = ()) -> Request:
        """The next `tokens` tokens, greedily, with the likeliest ones at each position, or with those that are named."""
        chat, top = self.endpoint.kind == "chat", len(named) or self.dialect.top
        more: dict[str, Any] = {"logprobs": True, "top_logprobs": top} if chat else {"logprobs": top}
        return self._request(context, tokens, 0.0, {**more, **({"logprob_token_ids": list(named)} if named else {})})

    def choice(self, context: str, choices: Sequence[str], tokens: int) -> Request:
        """One of the choices as text: by a JSON schema where the endpoint takes one, else by an instruction."""
        if self.dialect.schema and self.endpoint.kind == "chat":
            return self._request(context, tokens, 0.0, {"response_format": _choice_schema(choices, self.dialect.schema)})
        listed = ", ".join(f'"{c.strip()}"' for c in choices)
        note = f"\n\nReply with exactly one of these and nothing else: {listed}."
        if not isinstance(context, Conversation):
            return self._request(f"{context}{note}", tokens, 0.0, {})
        messages = context.messages
        messages[-1] = {**messages[-1], "content": f"{messages[-1]['content']}{note}"}
        return self._request(Conversation.of(messages), tokens, 0.0, {})

    def named(self, context: Sequence[int], tokens: Sequence[int]) -> Request:
        """The log-probabilities of these tokens at the place after a prompt of tokens, and the likeliest one: vLLM's.

        They are those before temperature and penalties; a penalty of the model's own configuration would choose another
        token as the likeliest.
        """
        more = {"logprobs": 1, "logprob_token_ids": list(tokens), "return_tokens_as_token_ids": True}
        return self._request(context, 1, 0.0, {**more, "repetition_penalty": 1.0})

    def text(self, context: Prompt, settings: Mapping[str, Any], default_tokens: int, repeat: int = 0) -> Request:
        """Free text under a task's ``generation_kwargs``: temperature exactly as there, 0 where it does not sample."""
        rest = dict(settings)
        tokens = [rest.pop(k, None) for k in ("max_gen_toks", "max_tokens", "max_completion_tokens", "max_new_tokens")]
        samples = bool(rest.pop("do_sample", "temperature" in rest))
        temperature = rest.pop("temperature", 1.0 if samples else 0.0)
        stop = stops(rest.pop("until", None))
        more = {"stop": stop[:MAX_STOPS]} if stop and self.dialect.stop else {}
        limit = next((int(t) for t in tokens if t is not None), default_tokens)
        return self._request(context, limit, float(temperature), {**more, **rest}, repeat if temperature else 0)


def stops(until: str | Sequence[str] | None) -> list[str]:
    """A task's stop strings, without empty ones."""
    listed = [until] if isinstance(until, str) else list(until or ())
    return [s for s in listed if s]


def cut(text: str, until: Sequence[str]) -> str:
    """The text up to the first stop string: endpoints take four at most, some none."""
    return text[: min((i for i in (text.find(s) for s in until) if i >= 0), default=len(text))]


def _choice_schema(choices: Sequence[str], form: str) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string", "enum": [c.strip() for c in choices]}
    if form == "object":
        schema = {"type": form, "properties": {"answer": schema}, "required": ["answer"], "additionalProperties": False}
    return {"type": "json_schema", "json_schema": {"name": "choice", "strict": True, "schema": schema}}


# --- refusals -------------------------------------------------------------------------------------------------------------


def adapted(dialect: Dialect, refusal: RefusedError) -> Dialect | None:
    """The dialect that avoids this refusal, or None where there is none to try. Never changes what is asked for."""
    if refusal.status in (401, 403, 404, 429):
        return None
    text = f"{refusal.param or ''} {refusal.message}".lower()
    if "max_completion_tokens" in text:
        return replace(dialect, limit="max_tokens" if dialect.limit == "max_completion_tokens" else "max_completion_tokens")
    if re.search("logprobs|top_n_tokens", text) and dialect.top:  # the second is TGI's
        allowed = [int(n) for n in re.findall(r"\b\d+\b", refusal.message) if 0 < int(n) < dialect.top]
        return replace(dialect, top=max(allowed, default=0))
    if re.search("response_format|json_schema|grammar|guided|structured", text):
        return replace(dialect, schema="") if dialect.schema else None
    if re.search(r"\bstop\b", text) and dialect.stop:
        return replace(dialect, stop=False)
    return None
