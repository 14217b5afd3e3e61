"""Documents and scores of the tasks `preference_pairs_...`: which of two replies to one dialogue is better."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt


if TYPE_CHECKING:
    import datasets


Array = npt.NDArray[Any]
Turn = tuple[str, str]
Units = tuple[Array, Array]
"""Value and prompt of each unit: a row or a pair."""

HUMAN, ASSISTANT = "Human", "Assistant"
MARK = re.compile(rf"(?:\A\s*|\n\n)({HUMAN}|{ASSISTANT}):")
"""What begins a turn; the same word within a line is text."""
INSIDE = re.compile(rf"^\s*(?:{HUMAN}|{ASSISTANT}):", re.MULTILINE)
"""What looks like a turn's beginning inside of one."""
CUT = "[...]"
MAX_WORDS = 256
"""Words of a dialogue that are shown before the replies; it is cut at its beginning."""
SILENT, BROKEN = -1, -2
"""Instead of a letter: no answer; NaN."""


def _turns(text: str) -> list[Turn]:
    before, *parts = MARK.split(text)
    texts = (re.sub(r"\s*\n\s*\n\s*", "\n", text.strip()) for text in parts[1::2])
    found = zip(parts[::2], texts, strict=True)
    return [] if before.strip() else list(found)


def _parted(doc: dict[str, Any]) -> tuple[list[Turn], str, str] | None:
    """The dialogue that both texts share and the better and the worse reply; None where they are no such pair."""
    first, second = _turns(doc["chosen"]), _turns(doc["rejected"])
    if not first or not second or first[:-1] != second[:-1]:
        return None
    context, (speaker, better), (other, worse) = first[:-1], first[-1], second[-1]
    in_turn = [HUMAN, ASSISTANT] * (len(context) // 2) + [HUMAN]
    if [name for name, _ in context] != in_turn or not all(text for _, text in context):
        return None
    if {speaker, other} != {ASSISTANT} or not better or not worse or better == worse:
        return None
    if INSIDE.search(better) or INSIDE.search(worse):
        return None
    return context, better, worse


def _lines(turns: Sequence[Turn]) -> str:
    return "\n".join(f"{speaker}: {text}" for speaker, text in turns)


def _shown(turns: Sequence[Turn]) -> str:
    """The last turns of a dialogue, at most `MAX_WORDS` words; what is left out is marked."""
    kept = list(turns)
    while len(kept) > 1 and sum(len(text.split()) for _, text in kept) > MAX_WORDS:
        kept.pop(0)
    speaker, text = kept[0]
    words = list(re.finditer(r"\S+", text))
    if len(words) > MAX_WORDS:
        kept[0] = speaker, f"{CUT} {text[words[-MAX_WORDS].start() :]}"
    return _lines(kept) if len(kept) == len(turns) else f"{CUT}\n{_lines(kept)}"


def _row(context: list[Turn], better: str, worse: str) -> dict[str, Any]:
    """A pair on the sides that its texts decide."""
    seed = "\x1f".join(("0", "pair", _lines(context), better, worse))
    label = int(random.Random(seed).random() < 0.5)
    a, b = (worse, better) if label else (better, worse)
    prompt = " ".join(context[0][1].casefold().split())
    return {
        "context": _shown(context),
        "a": a,
        "b": b,
        "label": label,
        "prompt": prompt,
    }


def one_order(docs: datasets.Dataset) -> datasets.Dataset:
    """Each pair once."""
    import datasets

    parted = (_parted(doc) for doc in docs)
    return datasets.Dataset.from_list([_row(*pair) for pair in parted if pair])


def both_orders(docs: datasets.Dataset) -> datasets.Dataset:
    """Each pair as A/B and as B/A, one after the other."""
    import datasets

    rows = []
    for number, row in enumerate(one_order(docs)):
        mirror = {"a": row["b"], "b": row["a"], "label": 1 - row["label"]}
        rows += [{**row, "pair": number}, {**row, **mirror, "pair": number}]
    return datasets.Dataset.from_list(rows)


def _letter(results: Sequence[tuple[float, bool]]) -> int:
    logliks = np.array([loglik for loglik, _ in results])
    if np.isnan(logliks).any():
        return BROKEN
    return SILENT if (logliks == -math.inf).all() else int(logliks.argmax())


def process_results(
    doc: dict[str, Any], results: Sequence[tuple[float, bool]]
) -> dict[str, Any]:
    """`acc` and `first` of every row; with both orders `consistent` and `position_bias` of every pair."""
    letter = _letter(results)
    right = math.nan if letter == BROKEN else float(letter == doc["label"])
    items: dict[str, Any] = {
        "acc": (doc["prompt"], right),
        "first": (doc["prompt"], letter),
    }
    if "pair" in doc:
        both = (doc["prompt"], doc["pair"], doc["label"], letter)
        items |= {"consistent": both, "position_bias": both}
    return {
        key: item for name, item in items.items() for key in (name, f"{name}_stderr")
    }


def _rows(items: Sequence[tuple[str, float]]) -> Units:
    return np.array([value for _, value in items], dtype=float), np.array(
        [prompt for prompt, _ in items]
    )


def _first(items: Sequence[tuple[str, int]]) -> Units:
    """1 for each row answered A, else 0; rows without an answer are left out."""
    said = [(prompt, letter) for prompt, letter in items if letter != SILENT]
    return _rows(
        [(p, math.nan if letter == BROKEN else letter == 0) for p, letter in said]
    )


def _pairs(items: Sequence[tuple[str, int, int, int]]) -> list[tuple[str, int, int]]:
    """Prompt, letter where A is right, and letter where B is; pairs that a limit cut are left out."""
    found: dict[int, dict[int, tuple[str, int]]] = {}
    for prompt, pair, label, letter in items:
        found.setdefault(pair, {})[label] = prompt, letter
    return [(*two[0], two[1][1]) for two in found.values() if len(two) == 2]


def _consistent(items: Sequence[tuple[str, int, int, int]]) -> Units:
    """1 for each pair that is answered right in both orders, else 0."""
    return _rows(
        [
            (p, math.nan if BROKEN in (a, b) else (a, b) == (0, 1))
            for p, a, b in _pairs(items)
        ]
    )


def _same_letter(items: Sequence[tuple[str, int, int, int]]) -> Units:
    """1 for each pair given the same letter in both orders; pairs that lack an answer are left out."""
    said = [(p, a, b) for p, a, b in _pairs(items) if SILENT not in (a, b)]
    return _rows([(p, math.nan if BROKEN in (a, b) else a == b) for p, a, b in said])


Score = Callable[[Sequence[Any]], float]


def _share(units: Callable[[Sequence[Any]], Units]) -> tuple[Score, Score]:
    """The mean over units, and its standard error, clustered by prompt (CR2)."""

    def share(items: Sequence[Any]) -> float:
        values, _ = units(items)
        return float(values.mean()) if len(values) else math.nan

    def stderr(items: Sequence[Any]) -> float:
        values, prompts = units(items)
        _, index, sizes = np.unique(prompts, return_inverse=True, return_counts=True)
        if len(sizes) < 2:
            return math.nan
        sums = np.bincount(index, weights=values - values.mean())
        spread = (sums**2 / (1 - sizes / len(values))).sum()
        return float(math.sqrt(spread) / len(values))

    return share, stderr


acc, acc_stderr = _share(_rows)
first, first_stderr = _share(_first)
consistent, consistent_stderr = _share(_consistent)
position_bias, position_bias_stderr = _share(_same_letter)
