"""Scores of generated solutions: the final answer against the data's (see `w2s_tasks.rows.final_answers`).

Each item is laid out as in `w2s_tasks.scoring.generated`: right is class 1, a wrong answer class 0, none at all -1. ``acc``
takes the answer however the reply says it, ``acc_strict`` only in the form that was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from w2s_tasks.rows.final_answers import after_hashes, boxed, final_answer, last_number, same, value
from w2s_tasks.scoring.generated import NO_GROUP, UNPARSED, Answered, NoReply

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


def gsm8k(doc: Doc, results: Sequence[str]) -> Doc:
    """``process_results`` of GSM8K: numbers alone; strictly, behind ``####``."""
    return _scored(
        doc, results, (_number(final_answer), _number(after_hashes)), lambda one, other: value(one) == value(other)
    )


def math(doc: Doc, results: Sequence[str]) -> Doc:
    r"""``process_results`` of MATH: numbers, then math-verify; strictly, in a ``\boxed{}``."""
    return _scored(doc, results, (final_answer, boxed), same)
