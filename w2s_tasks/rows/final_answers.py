r"""The final answer of a worked solution, and whether two answers are the same.

Numbers are compared exactly, as people write them (``1,000``, ``\$5``, ``50\%``, ``\frac12``, ``3 apples``): currency, per
cent and units are no part of the value. Only what is no number is left to math-verify (Hugging Face; extra ``tasks``).
"""

from __future__ import annotations

import importlib.util
import logging
import re
import threading
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from w2s_tasks.errors import UserError

LONGEST = 400
"""Characters of an answer that math-verify is asked about."""
SECONDS = 5
"""What it may take over one answer, where signals can stop it."""
HASHES = re.compile(r"####[ \t]*([^\n]*)")
CUE = re.compile(r"\b(?:answer|result)\b(?:\s+is|\s*:|\s*=)+\s*:?\s*([^\n]+)", re.IGNORECASE)
SENTENCE_END = re.compile(r"\.(?:\s|$)|\*\*")
NUMBER = re.compile(r"(?<![\w.])-?\$?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+)?(?:/\d+)?")
UNPRINTED = re.compile(
    r"(?<=,)\s*\\!\s*|\\left\b|\\right\b|\\[,!;:]|\\displaystyle\b|\{,\}|\^\{?\\circ\}?|\\%|%|\\?\$|\\text\s*\{\s*\}"
)
UNIT = re.compile(
    r"\\(?:text|mbox|textrm|mathrm)\s*\{[^{}]*\}(?:\^\d)?"
    r"|(?<=\s)(?!(?:pi|sqrt|ln|log|sin|cos|tan)\b)(?:a\s+)?[a-zA-Z]{2,}[a-zA-Z./ ]*$"
)
"""A word of two letters or more: one letter may be a factor (``3 i``, ``5 x``)."""
FRAC = r"\\[dt]?frac\s*\{?\s*(\d+)\s*\}?\s*\{?\s*(\d+)\s*\}?"
VALUE = re.compile(rf"([+-]?)(?:(\d[\d,]*\.?\d*|\.\d+)(?:/(\d+))?|{FRAC})\.?")
THOUSANDS = re.compile(r"\d{1,3}(,\d{3})+(\.\d+)?")
MIXED = re.compile(rf"([+-]?)(\d+)(?:\s+(\d+)/(\d+)|\s*{FRAC})")
TOWER = re.compile(r"\^\s*\{[^{}]*\^|\^\s*\w+\s*\^|\^\s*\{?\s*-?\d{4,}|\d{4,}\s*!|!\s*!")
"""Powers and factorials that take for ever to work out."""


# ---- where a solution states its answer --------------------------------------------------------------------------------


def after_hashes(text: str) -> str | None:
    """What stands behind the last ``####``, GSM8K's own mark; None without one."""
    found = [m[1].strip() for m in HASHES.finditer(text) if m[1].strip()]
    return found[-1] if found else None


def boxed(text: str) -> str | None:
    r"""What is in the last ``\boxed{...}`` (or ``\fbox``, or ``\boxed 5``), braces inside included; None without one."""
    found = list(_boxes(text))
    return found[-1] if found else None


def _boxes(text: str) -> Iterator[str]:
    for start in re.finditer(r"\\(?:boxed|fbox)\s*", text):
        rest = text[start.end() :]
        if not rest.startswith("{"):
            yield from re.findall(r"^[^\s${}\\.,]+", rest)
            continue
        depth = 0
        for i, sign in enumerate(rest):
            depth += {"{": 1, "}": -1}.get(sign, 0) if rest[i - 1 : i] != "\\" else 0
            if depth == 0:
                yield rest[1:i].strip()
                break


def final_answer(text: str) -> str | None:
    """The answer that a solution comes to, however it says so; None where it says none.

    In this order: a box or ``####``, whichever comes last; what follows the last "the answer is"; the last number.
    """
    box, hashes = boxed(text), after_hashes(text)
    if box is not None and hashes is not None:
        return hashes if text.rindex("####") > max(text.rfind("\\boxed"), text.rfind("\\fbox")) else box
    if box is not None or hashes is not None:
        return hashes if box is None else box or None
    cued = [said for m in CUE.finditer(text) if (said := SENTENCE_END.split(m[1].strip(" *"))[0].strip(" *$:"))]
    if cued:
        return cued[-1]
    return last_number(text)


def last_number(text: str) -> str | None:
    """The last number of a text; None where there is none."""
    found = [m[0].strip() for m in NUMBER.finditer(text) if any(sign.isdigit() for sign in m[0])]
    return found[-1] if found else None


# ---- whether two are the same ------------------------------------------------------------------------------------------


def value(answer: str) -> Fraction | None:
    r"""The exact value of a number: ``-1,000``, ``\$5.50``, ``\frac{1}{2}``, ``3 apples``, ``2 1/2``; else None."""
    if len(answer) > LONGEST:
        return None
    text = re.sub(r"\\ |~", " ", answer.replace("−", "-").replace("–", "-").replace("²", "^2"))
    text = re.sub(r"^\s*[a-zA-Z]\s*=\s*", "", UNPRINTED.sub("", text))
    text = re.sub(r"\s*([-+/])\s*", r"\1", UNIT.sub("", text.strip().rstrip(". "))).strip()
    mixed, found = MIXED.fullmatch(text), VALUE.fullmatch(text)
    if mixed is not None:
        top, bottom = mixed[3] or mixed[5], mixed[4] or mixed[6]
        sign, whole = mixed[1], int(mixed[2])
    elif found is not None and not ("," in (found[2] or "") and not THOUSANDS.fullmatch(found[2])):
        top, bottom = (found[4], found[5]) if found[4] else (found[2].replace(",", ""), found[3] or "1")
        sign, whole = found[1], 0
    else:
        return None
    return (-1 if sign == "-" else 1) * (whole + Fraction(top) / int(bottom)) if int(bottom) else None


def same(one: str, other: str) -> bool:
    """Whether two final answers are the same: as exact numbers, as text without spaces, or to math-verify.

    Raises:
        UserError: math-verify is needed and not installed.
    """
    first, second = value(one), value(other)
    if first is not None and second is not None:
        return first == second
    return _plain(one) == _plain(other) or _verified(one, other)


def _plain(answer: str) -> str:
    """Without white space but between digits."""
    text = " ".join(re.sub(r"\\[,!;]", "", re.sub(r"\\ |~", " ", answer)).split())
    return re.sub(r"(?<!\d) | (?!\d)", "", text).rstrip(".")


def require() -> None:
    """Refuse where math-verify is missing, before anything is generated.

    Raises:
        UserError: with the command that installs it.
    """
    if importlib.util.find_spec("math_verify") is None:
        raise UserError(
            "answers in LaTeX are compared with math-verify, which is not installed: pip install 'w2s-harness[tasks]'."
        )


def _verified(one: str, other: str) -> bool:
    """Whether math-verify finds two expressions equal.

    It stops itself by a signal, which Python allows in the main thread alone; elsewhere it runs without, and nowhere is it
    given what takes for ever.
    """
    if max(len(one), len(other)) > LONGEST or TOWER.search(one) or TOWER.search(other):
        return False
    require()
    import math_verify

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    seconds = SECONDS if threading.current_thread() is threading.main_thread() else None
    sides: list[Any] = [math_verify.parse(f"${text}$", parsing_timeout=seconds) for text in (one, other)]
    return bool(math_verify.verify(*sides, timeout_seconds=seconds))
