"""Dialogues of a human and an assistant: from the forms in which data sets hold them to turns, and from turns to a prompt.

A set holds a dialogue as one text, each turn begun by an empty line and ``Human:`` or ``Assistant:`` (Bai et al. 2022), or
as a list of messages with role and content.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

Turn = tuple[str, str]
"""(speaker, text)"""

HUMAN, ASSISTANT = "Human", "Assistant"
ROLES = {"user": HUMAN, "human": HUMAN, "assistant": ASSISTANT}
MARK = re.compile(rf"(?:\A\s*|\n\n)({HUMAN}|{ASSISTANT}):")
"""What begins a turn; the same word within a line is text."""
INSIDE = re.compile(rf"^\s*(?:{HUMAN}|{ASSISTANT}):", re.MULTILINE)
"""What looks like a turn's beginning inside of one."""
BLANK_LINES = re.compile(r"\s*\n\s*\n\s*")
CUT = "[...]"
"""Stands where the beginning of a dialogue is left out."""


def without_blank_lines(text: str) -> str:
    """A turn's text without blank lines, which separate few-shot examples, nor white space around it."""
    return BLANK_LINES.sub("\n", text.strip())


def turns_of(cell: Any) -> list[Turn] | None:
    """The turns of a cell's dialogue, texts without blank lines or white space around them; None where it holds none."""
    if isinstance(cell, str):
        before, *parts = MARK.split(cell)
        return (
            None
            if before.strip() or not parts
            else list(zip(parts[::2], map(without_blank_lines, parts[1::2]), strict=True))
        )
    if isinstance(cell, Sequence) and cell and all(isinstance(message, Mapping) for message in cell):
        said = [(ROLES.get(str(message.get("role"))), message.get("content")) for message in cell]
        turns = [(speaker, without_blank_lines(text)) for speaker, text in said if speaker and isinstance(text, str)]
        return turns if len(turns) == len(said) else None
    return None


def is_asked(turns: Sequence[Turn]) -> bool:
    """Whether human and assistant speak in turn, each says something, and the human has the first word and the last."""
    speakers = [speaker for speaker, _ in turns]
    return speakers == [HUMAN, ASSISTANT] * (len(turns) // 2) + [HUMAN] and all(text for _, text in turns)


def _last_words(text: str, n: int) -> str:
    """The end of a text from its n-th last word on."""
    return text[list(re.finditer(r"\S+", text))[-n].start() :]


def rendered(turns: Sequence[Turn], last_turns: int | None = None, max_words: int | None = None) -> str:
    """A dialogue as a prompt shows it, a turn a line; what is left out of its beginning is marked.

    Args:
        turns: of the dialogue, one or more.
        last_turns: so many are kept at most.
        max_words: words of their texts at most: whole turns are dropped, the oldest first. The last turn stays; where it
            alone has more words, their beginning is dropped.
    """
    kept = list(turns[-last_turns:] if last_turns else turns)
    if max_words:
        sizes = [len(text.split()) for _, text in kept]
        while len(kept) > 1 and sum(sizes) > max_words:
            kept.pop(0)
            sizes.pop(0)
        if sizes[0] > max_words:
            kept[0] = kept[0][0], f"{CUT} {_last_words(kept[0][1], max_words)}"
    lines = [f"{speaker}: {text}" for speaker, text in kept]
    return "\n".join(lines if len(kept) == len(turns) else [CUT, *lines])
