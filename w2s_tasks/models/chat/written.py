"""A choice that the model wrote out: JSON under a schema, whole or cut, or words.

A server that takes a schema may still ignore it (transformers' does), and a small model may fill the answer up to its limit
with line ends, which JSON allows between its parts.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Sequence

from w2s_tasks.models.chat.replies import Reply
from w2s_tasks.scoring.answers import lenient

_STRING = re.compile(r'"((?:[^"\\]|\\.)*)("?)', re.S)
_ANSWER = re.compile(rf'"answer"\s*:\s*{_STRING.pattern}', re.S)


def _answer_in(text: str) -> tuple[str, bool] | None:
    """What a JSON answer says, and whether it says it to the end: an object may be cut, or stand among other words."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return str(json.JSONDecoder().raw_decode(text, text.index("{"))[0]["answer"]), True
    said = _STRING.fullmatch(text) or _ANSWER.search(text)
    try:
        return (json.loads(f'"{said[1]}"', strict=False), bool(said[2])) if said else None
    except ValueError:
        return None


def parse_choice(text: str | None, choices: Sequence[str]) -> int | None:
    """The choice that a constrained answer names, or None: JSON with ``answer``, or free text read leniently.

    An answer that is cut inside its string is the one choice that begins so: a schema let no other be written.
    """
    plain = [c.strip() for c in choices]
    reply = (text or "").strip()
    if "{" in reply or reply.startswith('"'):
        found = _answer_in(reply)
        if found is None:
            return None if reply.startswith("{") else lenient(reply, plain)
        reply, whole = found
        if not whole:
            begun = [i for i, c in enumerate(plain) if reply.strip() and c.startswith(reply.strip())]
            return begun[0] if len(begun) == 1 else None
    exact = [i for i, c in enumerate(plain) if c == reply.strip()]
    return exact[0] if len(exact) == 1 else lenient(reply, plain)


def ignores_schema(reply: Reply) -> bool:
    """Whether an answer to a request with a schema shows that the server passed it over: text, and no JSON in it."""
    text = (reply.text or "").strip()
    return bool(text) and "{" not in text


def ended_early(reply: Reply) -> bool:
    """Whether an answer under a schema was cut before it said anything: not one that is a thought, or that holds nothing."""
    return reply.is_cut and reply.thought is None and bool(reply.text)
