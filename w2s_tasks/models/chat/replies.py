"""What comes back from an OpenAI-compatible endpoint: an answer, no answer or an error, in the shapes that servers have.

Status 200 promises nothing: gateways put an error, a login page or a stream into it. `read_body` takes the bytes of a body
and returns a `Reply`, or raises what was said instead. A refused or filtered answer is a `Reply` without text: no answer.
"""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from w2s_tasks.models.chat.choices import UNTOLD, Position

Kind = Literal["chat", "completions"]
FILTERED_CODES = frozenset(
    ["content_filter", "content_policy_violation", "responsibleaipolicyviolation", "data_inspection_failed"]
)
FILTERED = re.compile(r"content management policy|content[ _]filter|(?:input|request|prompt) was (?:flagged|blocked)", re.I)
"""Errors that a prompt's content makes: an answer that is withheld, not a failure of the endpoint."""
WITHHELD = frozenset(
    {"content_filter", "content_filtered"}  # OpenAI, Azure
    | {"safety", "recitation", "prohibited_content", "blocklist", "spii"}  # Gemini
    | {"refusal", "sensitive", "guardrail_intervened"}  # Anthropic, Zhipu and Bedrock behind gateways
)
"""Reasons for the end of an answer that withhold it, whatever text came before."""
SHOWN = 300
CUT = frozenset({"length", "max_tokens", "model_length"})
"""Reasons for the end of an answer that could have gone on; the last two are Gemini's and Mistral's."""
OUT_OF_RANGE = 0.01
"""How far above 0 a log-probability may round."""


@dataclass(frozen=True)
class Usage:
    """Tokens of one answer, as the endpoint counts them; `cached` is part of `prompt`."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0


@dataclass(frozen=True)
class Reply:
    """One answer: its text, why it ended, its positions where log-probabilities came, and what it took.

    ``refusal`` holds the words (or the reason) of an answer that was refused or withheld; its text is None then. ``thought``
    holds what the server says that the model thought before its text; None for nothing. The positions are those of both.
    """

    text: str | None
    finish: str | None
    positions: tuple[Position, ...] | None
    usage: Usage
    model: str
    refusal: str | None = None
    thought: str | None = None

    @property
    def is_cut(self) -> bool:
        """Whether it ended because it may hold no more tokens."""
        return str(self.finish).casefold() in CUT

    @classmethod
    def withheld(cls, reason: str) -> Reply:
        """The answer of an endpoint that filtered the prompt."""
        return cls(None, "content_filter", (), Usage(), "", reason)


class BadReplyError(Exception):
    """A body that is not the answer of such an endpoint; its message holds what the body says."""


@dataclass
class RefusedError(Exception):
    """An error in the service's own words; `status` is 200 where an error came as if it were an answer and has no number."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None

    @property
    def filtered(self) -> bool:
        """Whether the prompt's content was refused, rather than the request."""
        return str(self.code).casefold() in FILTERED_CODES or bool(FILTERED.search(self.message))


# --- bodies ---------------------------------------------------------------------------------------------------------------


def words(body: bytes) -> str:
    """What a body says to a reader, in one line: a page's text, or the beginning of anything else."""
    text = body.decode("utf-8", "replace")
    if text.lstrip()[:1] == "<":
        text = re.sub(r"<(script|style)\b.*?</\1\s*>", " ", text, flags=re.I | re.S)
        text = html.unescape(re.sub(r"<[^>]*>", " ", text))
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= SHOWN else f"{line[:SHOWN]}..."


def _json(body: bytes) -> Any:
    """The JSON of a body.

    Raises:
        BadReplyError: it is something else; says what.
    """
    if not body.strip():
        raise BadReplyError("an empty body")
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        pass
    start = body.lstrip()[:16].lower()
    if start.startswith((b"data:", b"event:", b": ")):
        raise BadReplyError(f"a stream of events, though none was asked for: {words(body)}")
    kind = "an HTML page, no JSON" if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<")) else "no JSON"
    raise BadReplyError(f"{kind}: {words(body)}")


def read_body(kind: Kind, body: bytes) -> Reply:
    """Read the body of an answer with a status of success.

    Raises:
        RefusedError: it holds an error.
        BadReplyError: it is no answer.
    """
    data = _json(body)
    error = error_in(data)
    if error is not None:
        raise error
    return read_reply(kind, data)


def refusal_of(status: int, body: bytes) -> RefusedError:
    """The error in an answer whose status says that it is one."""
    try:
        found = error_in(_json(body), anything=True)
    except BadReplyError:
        found = None
    return replace(found, status=status) if found else RefusedError(status, words(body) or "(no words)")


# --- errors ---------------------------------------------------------------------------------------------------------------

_NUMBERS = (
    (r"rate_?limit|too_many|throttl|insufficient_quota", 429),
    (r"insufficient_(?:credit|funds|balance)|payment|billing", 402),
    (r"api_?key|unauthor|authentication", 401),
    (r"permission|forbidden", 403),
    (r"not_found", 404),
    (r"invalid|unsupported|bad_?request|context_length|content", 400),
    (r"overload|unavailable|server_error|internal|timeout", 503),
)
"""Statuses that an error's code or type stands for, where it comes without a number."""


def _first(data: Mapping[str, Any], *names: str) -> Any:
    return next((data[n] for n in names if data.get(n)), None)


def _message(error: Any) -> str:
    if isinstance(error, Mapping) and isinstance(error.get("loc"), list) and error.get("msg"):  # as FastAPI names a field
        return ": ".join([*(str(part) for part in error["loc"] if part != "body"), str(error["msg"])])
    if isinstance(error, Mapping):
        error = _first(error, "message", "msg", "detail", "error", "reason", "title", "code", "type") or dict(error)
    if isinstance(error, Mapping):
        error = _first(error, "message", "msg") or json.dumps(error, ensure_ascii=False, default=str)
    if isinstance(error, Sequence) and not isinstance(error, str):
        error = "; ".join(_message(e) for e in error[:3])
    return " ".join(str(error).split())


def _status(error: Mapping[str, Any]) -> int:
    for name in ("code", "status", "status_code"):
        with_number = re.fullmatch(r"[45]\d\d", str(error.get(name)))
        if with_number:
            return int(with_number[0])
    named = " ".join(str(error.get(n)) for n in ("code", "type", "status")).casefold()
    return next((status for pattern, status in _NUMBERS if re.search(pattern, named)), 200)


def error_in(data: Any, *, anything: bool = False) -> RefusedError | None:
    """The error that a body holds, or None: under ``error`` or ``errors``, in its choice, or as the body itself.

    `anything`: the body is known to be an error, so that any object is one.
    """
    if isinstance(data, list) and data and isinstance(data[0], Mapping):  # as Gemini wraps its errors
        data = data[0]
    if not isinstance(data, Mapping):
        return RefusedError(200, _message(data)) if anything and data else None
    error = _first(data, "error", "errors")
    choices = data.get("choices")
    if error is None and isinstance(choices, list) and choices and isinstance(choices[0], Mapping):
        error = _first(choices[0], "error")
    if error is None and choices is None and (anything or _first(data, "message", "detail", "msg", "code") is not None):
        error = data
    while isinstance(error, list) and error:
        error = error[0]
    if error is None or (isinstance(error, Mapping) and not any(v not in (None, "", {}, []) for v in error.values())):
        return None
    if not isinstance(error, Mapping):
        return RefusedError(_status(data), _message(error))
    inner = error.get("innererror") or error.get("inner_error")
    code = inner.get("code") if isinstance(inner, Mapping) and inner.get("code") else error.get("code")
    return RefusedError(_status(error), _message(error), _text(error.get("param")), _text(code))


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


# --- answers --------------------------------------------------------------------------------------------------------------

_NAMED_BYTES = re.compile(r"<0x([0-9A-Fa-f]{2})>|bytes:((?:\\x[0-9A-Fa-f]{2})+)")
_MARKS = str.maketrans({"Ġ": " ", "▁": " ", "Ċ": "\n"})


def token_text(token: Any, data: Any = None) -> str:
    r"""A token as the text that it stands for.

    A token that is part of a character comes with its ``bytes`` (its name is an escape or a replacement sign then), or is
    named by them, as <0xE5> or bytes:\xe5. Those bytes stay in the text as surrogates until `choices` joins them to their
    character. Marks that some vocabularies write for a blank become one.
    """
    if isinstance(data, list) and data and all(isinstance(b, int) and 0 <= b < 256 for b in data):
        return bytes(data).decode("utf-8", "surrogateescape")
    named = _NAMED_BYTES.fullmatch(str(token))
    if named:
        return bytes.fromhex((named[1] or named[2]).replace("\\x", "")).decode("utf-8", "surrogateescape")
    return str(token).translate(_MARKS)


def _logprob(value: Any) -> float:
    """A log-probability; NaN for anything else."""
    number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    return number if number <= OUT_OF_RANGE else math.nan


def _position(token: str, logprob: Any, top: list[tuple[str, Any]]) -> Position | None:
    """A position; None without the log-probability of its own token."""
    listed = tuple((t, x) for t, value in top if not math.isnan(x := _logprob(value)))
    own = _logprob(logprob)
    if math.isnan(own) or own <= UNTOLD:
        own = max((x for t, x in listed if t == token), default=math.nan)
    return None if math.isnan(own) else Position(token, own, listed)


def _chat_position(p: Any) -> Position | None:
    top = p.get("top_logprobs") or [] if isinstance(p, Mapping) else []
    if isinstance(top, Mapping):
        top = [{"token": t, "logprob": x} for t, x in top.items()]
    # Some servers (mlx_lm's) give a token by its number alone, which tells no text.
    own, *listed = [isinstance(t, Mapping) and isinstance(t.get("token"), str) and t for t in (p, *top)]
    found = [(token_text(t["token"], t.get("bytes")), t.get("logprob")) for t in listed if t]
    return _position(token_text(own["token"], own.get("bytes")), own.get("logprob"), found) if own else None


def _legacy_position(token: Any, logprob: Any, top: Any) -> Position | None:
    if not isinstance(token, str):
        return None
    listed = [(token_text(t), x) for t, x in top.items()] if isinstance(top, Mapping) else []
    return _position(token_text(token), logprob, listed)


def _positions(choice: Mapping[str, Any]) -> tuple[Position, ...] | None:
    """What an answer tells of its tokens' log-probabilities, in the shape of either kind of endpoint; None for nothing."""
    data = choice.get("logprobs")
    if isinstance(data, list):
        data = {"content": data}
    if not isinstance(data, Mapping):
        return None
    found: list[Position | None] = []
    if isinstance(data.get("content"), list):
        found = [_chat_position(p) for p in data["content"]]
    elif isinstance(data.get("tokens"), list):
        tokens, n = data["tokens"], len(data["tokens"])
        own, tops = (data.get(name) or [None] * n for name in ("token_logprobs", "top_logprobs"))
        found = [_legacy_position(*row) for row in zip(tokens, own, tops, strict=True)]
    whole = [p for p in found if p is not None]
    return tuple(whole) if whole and len(whole) == len(found) else None


def _written(content: Any) -> tuple[str | None, str]:
    """Text and refusal of a message's content: text, or a list of parts."""
    if content is None or isinstance(content, str):
        return content, ""
    if not isinstance(content, list):
        raise BadReplyError(f"the text is {type(content).__name__}")
    parts = [{"text": p} if isinstance(p, str) else p for p in content]
    if not all(isinstance(p, Mapping) for p in parts):
        raise BadReplyError("the text is a list of something else than parts")
    shown = [p for p in parts if p.get("type", "text") in ("text", "output_text")]
    refusal = " ".join(str(p.get("refusal")) for p in parts if p.get("refusal"))
    return "".join(str(p.get("text") or "") for p in shown) or None, refusal


_OPENED = re.compile(r"\s*(?:<(?:seed:)?think(?:ing)?>|\[THINK\]|<\|channel\|>)(?:analysis)?(?:<\|message\|>)?")
_CLOSED = re.compile(
    r"</(?:seed:)?think(?:ing)?>|\[/THINK\]|(?:<\|end\|>)?(?:<\|start\|>assistant)?<\|channel\|>final<\|message\|>"
)
"""How models mark their thoughts in a text; the first mark may stand in the prompt."""


def _apart(text: str | None, positions: Sequence[Position] | None) -> tuple[str | None, str | None]:
    """A text without the thoughts that it begins with, and those thoughts."""
    shown = text or (positions[0].token if positions else "")  # a server may hide the first mark
    opened = _OPENED.match(shown)
    closed = _CLOSED.search(text or "")
    if text and closed:
        return text[closed.end() :].lstrip(), text[opened.end() if opened else 0 : closed.start()].strip()
    return ("", shown[opened.end() :].strip()) if opened else (text, None)


def _count(value: Any) -> int:
    try:
        return max(0, int(float(value)))
    except (TypeError, ValueError, OverflowError):
        return 0


def _usage(data: Mapping[str, Any]) -> Usage:
    usage = data.get("usage")
    if not isinstance(usage, Mapping):
        return Usage()
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, Mapping) else 0
    return Usage(_count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens")), _count(cached))


def _whole_characters(text: str | None) -> str | None:
    """The text without halves of characters, which no file takes."""
    return None if text is None else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def read_reply(kind: Kind, data: Any) -> Reply:
    """Read the body of an answer.

    Raises:
        BadReplyError: it lacks what such an answer must have.
    """
    try:
        if not data["choices"]:
            raise BadReplyError(f"no choices in it: {words(json.dumps(data, default=str).encode())}")
        choice = data["choices"][0]
        message = choice.get("message")
        if message is None and "delta" in choice:
            raise BadReplyError("a piece of a stream, though none was asked for")
        message = message if isinstance(message, Mapping) else {"content": choice["text"]}
        text, refused = _written(message.get("content"))
        logprobs = choice.get("logprobs")
        finish = _text(choice.get("finish_reason"))
        refusal = str(message.get("refusal") or refused or "")
        if not refusal and isinstance(logprobs, Mapping) and logprobs.get("refusal"):
            refusal = text or "(no words)"
        if not refusal and str(finish).casefold() in WITHHELD:
            refusal = f"({finish})"
        positions = _positions(choice)
        text, thought = _apart(text, positions) if kind == "chat" else (text, None)  # plain text is the caller's, as it is
        thought = _whole_characters(thought or _text(_first(message, "reasoning_content", "reasoning")) or thought)
        reply = Reply(_whole_characters(text), finish, positions, _usage(data), str(data.get("model") or ""))
        return replace(reply, text=None, positions=(), refusal=refusal) if refusal else replace(reply, thought=thought)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise BadReplyError(f"{type(error).__name__}: {error}") from error
