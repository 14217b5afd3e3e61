"""Tokenize many strings that begin alike without tokenizing their common beginning again for each.

A byte-level BPE tokenizer cuts a text into words by a regular expression that reads from left to right, and merges inside
words only. So where a word ends inside a common beginning, and the text goes on alike for a while, the tokens before and
after that place do not depend on each other. That it is so is checked on both ends of every group; a tokenizer of another
kind, or a group that fails, is tokenized whole.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from w2s_tasks.packing.tree import common

SHORTEST = 256
"""Characters of a common beginning that are worth the trouble."""
BEYOND = 64
"""Characters that a group shares after the cut: more than any word's end looks ahead."""


def cuts_words(tokenizer: Any) -> bool:
    """Whether a tokenizer is known to cut a text into words before it merges: byte-level BPE on the text as it is."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return False
    described = json.loads(backend.to_str())
    normalizer = (described.get("normalizer") or {"type": None})["type"]
    first = described.get("pre_tokenizer") or {}
    kinds = {part["type"] for part in first.get("pretokenizers", [first]) if part}
    return normalizer in (None, "NFC") and "ByteLevel" in kinds and (described.get("model") or {}).get("type") == "BPE"


def groups(strings: Sequence[str]) -> list[list[str]]:
    """Sorted strings in stretches that begin alike; one ends where its common beginning would shrink below half."""
    out: list[list[str]] = []
    shared = 0
    for text in sorted(strings):
        alike = common(out[-1][0], text) if out else 0
        if out and alike >= SHORTEST and (len(out[-1]) == 1 or 2 * alike >= shared):
            shared = alike if len(out[-1]) == 1 else min(shared, alike)
            out[-1].append(text)
        else:
            out.append([text])
            shared = len(text)
    return out


def _cut(tokenizer: Any, text: str, shared: int) -> int:
    """The last end of a word that lies far enough inside the common beginning; 0 for none."""
    words = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text[:shared])
    return max((start for _, (start, _) in words if start <= shared - BEYOND), default=0)


def _encode_group(tokenizer: Any, group: Sequence[str], settings: dict[str, Any]) -> list[list[int]] | None:
    """A group's tokens by way of its common beginning; None where that does not give the tokens of the whole strings."""
    shared = common(group[0], group[-1])
    cut = _cut(tokenizer, group[0], shared)
    if cut < SHORTEST:
        return None
    rests: list[list[int]] = tokenizer([text[cut:] for text in group], add_special_tokens=False)["input_ids"]
    wholes: list[list[int]] = tokenizer([group[0], group[-1]], **settings)["input_ids"]
    head = wholes[0][: len(wholes[0]) - len(rests[0])]
    if head + rests[0] != wholes[0] or head + rests[-1] != wholes[1]:
        return None
    return [head + rest for rest in rests]


def encode_all(tokenizer: Any, strings: Sequence[str], settings: dict[str, Any]) -> list[list[int]]:
    """The tokens of every string, as ``tokenizer(strings, **settings)`` gives them.

    Args:
        tokenizer: of transformers.
        strings: any; equal ones are encoded once.
        settings: for the tokenizer's call, e.g. ``add_special_tokens``.
    """
    distinct = list(dict.fromkeys(strings))
    known: dict[str, list[int]] = {}
    for group in groups(distinct) if len(distinct) > 2 and cuts_words(tokenizer) else []:
        found = _encode_group(tokenizer, group, settings) if len(group) > 2 else None
        if found:
            known.update(zip(group, found, strict=True))
    rest = [text for text in distinct if text not in known]
    if rest:
        known.update(zip(rest, tokenizer(rest, **settings)["input_ids"], strict=True))
    return [known[text] for text in strings]
