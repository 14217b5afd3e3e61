"""Scores of generated solutions: the final answer against the data's (see `w2s_tasks.rows.final_answers`).

Each item is laid out as in `w2s_tasks.scoring.generated`: right is class 1, a wrong answer class 0, none at all -1. ``acc``
takes the answer however the reply says it, ``acc_strict`` only in the form that was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from w2s_tasks.rows.final_answers import after_hashes, boxed, final_answer, last_number, same, value
from w2s_tasks.scoring.generated import NO_GROUP, UNPARSED, Answered, NoReply
from w2s_tasks.scoring.replies import reads

RIGHT = 1
METRICS = ("acc", "acc_strict", "unparsed", "unparsed_strict")  # each with its _stderr

Doc = dict[str, Any]
Reader = Callable[[str], str | None]


def _scored(doc: Doc, results: Sequence[str], readers: tuple[Reader, Reader], equal: Callable[[str, str], bool]) -> Doc:
    reply = results[0]
    if isinstance(reply, NoReply):
        return {}
    said = [reader(reply) for reader in readers]
    found, exact = (UNPARSED if answer is None else int(equal(doc["final"], answer)) for answer in said)
    item: Answered = (RIGHT, found, exact, NO_GROUP)
    return {key: item for name in METRICS for key in (name, f"{name}_stderr")}


def _number(reader: Reader) -> Reader:
    """What a reader finds, as a number: itself, or the last one in it ('18 eggs a day')."""

    def read(reply: str) -> str | None:
        said = reader(reply)
        return said if said is None or value(said) is not None else last_number(said)

    return read


said_number = _number(final_answer)
"""The number that a solution comes to, however it says so."""


def equal_numbers(one: str, other: str) -> bool:
    """Whether two answers are one number."""
    return value(one) is not None and value(one) == value(other)


@reads(said_number, equal_numbers)
def gsm8k(doc: Doc, results: Sequence[str]) -> Doc:
    """``process_results`` of GSM8K: numbers alone; strictly, behind ``####``."""
    return _scored(doc, results, (said_number, _number(after_hashes)), equal_numbers)


def _leading(reply: str) -> str | None:
    """The number that a reply begins with: '9' of '9 apples'."""
    first = reply.strip().split(" ", 1)[0]
    return first if value(first) is not None else None


def told_number(reply: str) -> str | None:
    """The number that a reply begins with ('20 16-ounce bottles'), unless it is worked out there; else as `said_number`."""
    return (None if "=" in reply else _leading(reply)) or said_number(reply)


@reads(told_number, equal_numbers)
def asdiv(doc: Doc, results: Sequence[str]) -> Doc:
    """``process_results`` of ASDiv: numbers alone; strictly, at the reply's beginning."""
    return _scored(doc, results, (told_number, _leading), equal_numbers)


@reads(final_answer, same)
def math(doc: Doc, results: Sequence[str]) -> Doc:
    r"""``process_results`` of MATH: numbers, then math-verify; strictly, in a ``\boxed{}``."""
    return _scored(doc, results, (final_answer, boxed), same)
