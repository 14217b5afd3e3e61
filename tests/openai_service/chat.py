"""Answers from a real small model, with log-probabilities: chat completions and completions."""

from __future__ import annotations

import functools
import hashlib
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openai.types import Completion, completion_create_params
from openai.types.chat import ChatCompletion
from openai.types.chat import completion_create_params as chat_create_params

from .app import Answer, ApiError, Request, Service, route

MAX_TOP, MAX_COMPLETION_TOP, MAX_STOPS = 20, 5, 4


@dataclass
class Chat:
    """How the next answers will be, and what was asked. ``asked`` is what would have been paid."""

    logprobs: bool = True
    """False: the model gives none, as reasoning models do."""
    max_top: int = MAX_TOP
    only_max_completion_tokens: bool = False
    only_default_temperature: bool = False
    no_stop: bool = False
    filtered: str | None = None
    """A prompt that holds this text is refused by the content filter."""
    reasoning: bool = False
    """Answers stay empty when they may take fewer than 100 tokens."""
    echo: bool = False
    """Whether prompts are scored (``echo`` with ``logprobs``), as servers of one's own do and the service does not."""
    asked: list[dict[str, Any]] = field(default_factory=list)
    """The body of every answered request."""


@dataclass(frozen=True)
class Written:
    """What the model wrote: token by token, each with its log-probability and all others at its place."""

    tokens: tuple[str, ...]
    logprobs: tuple[float, ...]
    tops: tuple[tuple[tuple[str, float], ...], ...]
    prompt_tokens: int
    finish: str
    text: str


class Brain:
    """A model folder, loaded once."""

    def __init__(self, folder: Path) -> None:
        import torch
        from loopback.models import load_model
        from transformers import AutoTokenizer

        self.torch = torch
        self.model = load_model(folder).eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.lock = threading.Lock()

    def chat_prompt(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The messages under the model's own template."""
        return str(self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))

    def write(self, prompt: str, limit: int, temperature: float, stop: Sequence[str], top: int, seed: str) -> Written:
        """Generate up to `limit` tokens."""
        torch = self.torch
        ids = self.tokenizer(prompt, return_tensors="pt").input_ids
        generator = torch.Generator().manual_seed(int(hashlib.sha256(seed.encode()).hexdigest()[:8], 16))
        n, text, tokens, logprobs, tops, finish = ids.shape[1], "", [], [], [], "length"
        with self.lock, torch.inference_mode():
            for _ in range(limit):
                scores = self.model(ids).logits[0, -1].float().log_softmax(-1)
                chosen = scores.argmax() if not temperature else None
                if chosen is None:
                    chosen = torch.multinomial((scores / temperature).softmax(-1), 1, generator=generator)[0]
                if int(chosen) == self.tokenizer.eos_token_id:
                    finish = "stop"
                    break
                best = scores.topk(max(top, 1))
                tops.append(tuple((self.tokenizer.decode([int(i)]), float(x)) for x, i in zip(*best, strict=True))[:top])
                tokens.append(self.tokenizer.decode([int(chosen)]))
                logprobs.append(float(scores[chosen]))
                text += tokens[-1]
                ids = torch.cat([ids, chosen.view(1, 1)], dim=1)
                if any(s in text for s in stop):
                    finish, text = "stop", text[: min(text.index(s) for s in stop if s in text)]
                    break
        return Written(tuple(tokens), tuple(logprobs), tuple(tops), n, finish, text)

    def read(self, prompt: str, top: int) -> Written:
        """Score a prompt's own tokens, and write one more."""
        torch = self.torch
        ids = self.tokenizer(prompt, return_tensors="pt").input_ids
        with self.lock, torch.inference_mode():
            scores = self.model(ids).logits[0].float().log_softmax(-1)
        targets = [*ids[0, 1:].tolist(), int(scores[-1].argmax())]
        best = scores.topk(max(top, 1), dim=-1)
        tops = tuple(
            tuple((self.tokenizer.decode([int(i)]), float(x)) for x, i in zip(values, indices, strict=True))
            for values, indices in zip(*best, strict=True)
        )
        logprobs = tuple(float(scores[place, token]) for place, token in enumerate(targets))
        tokens = tuple(self.tokenizer.decode([token]) for token in targets)
        return Written(tokens, logprobs, tops, ids.shape[1], "length", prompt + tokens[-1])


@functools.cache
def brain(folder: Path) -> Brain:
    """The model of a folder."""
    return Brain(folder)


def _refuse(state: Chat, body: Mapping[str, Any]) -> None:
    """Limits of the model that the service names when they are overstepped."""

    def unsupported(name: str, instead: str = "") -> ApiError:
        message = f"Unsupported parameter: '{name}' is not supported with this model.{instead}"
        return ApiError(400, message, "unsupported_parameter", param=name)

    if "max_tokens" in body and state.only_max_completion_tokens:
        raise unsupported("max_tokens", " Use 'max_completion_tokens' instead.")
    if (body.get("logprobs") or body.get("top_logprobs")) and not state.logprobs:
        raise unsupported("logprobs")
    if body.get("temperature", 1) != 1 and state.only_default_temperature:
        message = (
            "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) value is supported."
        )
        raise ApiError(400, message, "unsupported_value", param="temperature")
    if "stop" in body and state.no_stop:
        raise unsupported("stop")
    if len(body.get("stop") or []) > MAX_STOPS:
        raise ApiError(400, "Invalid 'stop': array too long. Expected an array with maximum length 4.", param="stop")
    if body.get("n", 1) != 1 or body.get("stream"):
        raise ApiError(400, "The stand-in gives one answer at a time.")


def _brain(service: Service, body: Mapping[str, Any]) -> Brain:
    model = service.models.get(body["model"])
    if model is None:
        message = f"The model `{body['model']}` does not exist or you do not have access to it."
        raise ApiError(404, message, "model_not_found")
    if model.folder is None:
        raise ApiError(500, f"No weights behind {model.id}: a mistake in the test.")
    return brain(model.folder)


def _stop(body: Mapping[str, Any]) -> list[str]:
    stop = body.get("stop") or []
    return [stop] if isinstance(stop, str) else list(stop)


def _usage(written: Written) -> dict[str, Any]:
    n = len(written.tokens)
    return {"prompt_tokens": written.prompt_tokens, "completion_tokens": n, "total_tokens": written.prompt_tokens + n}


def chat_completion(service: Service, body: dict[str, Any]) -> dict[str, Any]:
    """The answer to one chat request, as the service words it."""
    state = service.part(Chat)
    _refuse(state, body)
    if not 0 <= (top := body.get("top_logprobs", 0)) <= state.max_top:
        raise ApiError(
            400, f"Invalid value for 'top_logprobs': must be less than or equal to {state.max_top}.", param="top_logprobs"
        )
    if top and not body.get("logprobs"):
        raise ApiError(400, "'top_logprobs' needs 'logprobs' set to true.", param="top_logprobs")
    model = _brain(service, body)
    prompt = model.chat_prompt(body["messages"])
    if state.filtered and state.filtered in prompt:
        raise ApiError(400, "The response was filtered.", "content_filter", param="prompt")
    limit = body.get("max_completion_tokens") or body.get("max_tokens") or 256
    written = model.write(
        prompt, limit, body.get("temperature", 1.0), _stop(body), top, f"{body.get('seed')}{len(state.asked)}"
    )
    if state.reasoning and limit < 100:
        written = Written((), (), (), written.prompt_tokens, "length", "")
    content = [
        {
            "token": token,
            "logprob": logprob,
            "bytes": list(token.encode()),
            "top_logprobs": [{"token": t, "logprob": x, "bytes": list(t.encode())} for t, x in tops],
        }
        for token, logprob, tops in zip(written.tokens, written.logprobs, written.tops, strict=True)
    ]
    message = {"role": "assistant", "content": written.text, "refusal": None}
    return {
        "id": service.new_id("chatcmpl"),
        "object": "chat.completion",
        "created": int(time.time()),
        "model": body["model"],
        "choices": [
            {
                "index": 0,
                "message": message,
                "logprobs": {"content": content, "refusal": None} if body.get("logprobs") else None,
                "finish_reason": written.finish,
            }
        ],
        "usage": _usage(written),
    }


def completion(service: Service, body: dict[str, Any]) -> dict[str, Any]:
    """The answer to one request for plain text."""
    state = service.part(Chat)
    _refuse(state, body)
    top = body.get("logprobs") or 0
    if top > MAX_COMPLETION_TOP:
        raise ApiError(400, f"Invalid value for 'logprobs': must be at most {MAX_COMPLETION_TOP}.", param="logprobs")
    model = _brain(service, body)
    if body.get("echo"):
        return _echoed(service, body, model, top)
    written = model.write(
        body["prompt"], body.get("max_tokens") or 16, body.get("temperature", 1.0), _stop(body), top, str(body.get("seed"))
    )
    logprobs = {
        "tokens": list(written.tokens),
        "token_logprobs": list(written.logprobs),
        "top_logprobs": [dict(tops) for tops in written.tops],
        "text_offset": [len("".join(written.tokens[:i])) for i in range(len(written.tokens))],
    }
    return _completion(service, body, written, logprobs if top else None)


def _echoed(service: Service, body: dict[str, Any], model: Brain, top: int) -> dict[str, Any]:
    """The prompt with the log-probabilities of its tokens (the first has none), and one token more."""
    if not service.part(Chat).echo or body.get("max_tokens") != 1:
        raise ApiError(400, "This model does not support 'echo' with 'logprobs'.", param="echo")
    read = model.read(body["prompt"], top)
    first = model.tokenizer(body["prompt"]).input_ids[0]
    logprobs = {
        "tokens": [model.tokenizer.decode([first]), *read.tokens],
        "token_logprobs": [None, *read.logprobs],
        "top_logprobs": [None, *(dict(tops) for tops in read.tops)],
        "text_offset": [0] * (len(read.tokens) + 1),
    }
    return _completion(service, body, Written(read.tokens[-1:], (), (), read.prompt_tokens, "length", read.text), logprobs)


def _completion(service: Service, body: dict[str, Any], written: Written, logprobs: dict[str, Any] | None) -> dict[str, Any]:
    choice = {"index": 0, "text": written.text, "logprobs": logprobs, "finish_reason": written.finish}
    return {
        "id": service.new_id("cmpl"),
        "object": "text_completion",
        "created": int(time.time()),
        "model": body["model"],
        "choices": [choice],
        "usage": _usage(written),
    }


KINDS: dict[str, tuple[Any, Any, Any]] = {
    "/v1/chat/completions": (chat_create_params.CompletionCreateParamsNonStreaming, ChatCompletion, chat_completion),
    "/v1/completions": (completion_create_params.CompletionCreateParamsNonStreaming, Completion, completion),
}


def answer(service: Service, request: Request) -> Answer:
    """Check, answer and count one request."""
    params, kind, write = KINDS[request.path]
    body = request.json(params)
    data = write(service, body)
    with service.lock:
        service.part(Chat).asked.append(body)
    # An echoed prompt has no log-probability at its first token, which the SDK's types leave out.
    return Answer.of(kind, data, check=not body.get("echo"))


@route("POST", r"/v1/chat/completions")
def create_chat_completion(service: Service, request: Request) -> Answer:
    """Messages in, a message out."""
    return answer(service, request)


@route("POST", r"/v1/completions")
def create_completion(service: Service, request: Request) -> Answer:
    """Text in, text out."""
    return answer(service, request)
