"""Scores of tasks that ask which of two candidates, A and B, is better: accuracy, and how far the place decides.

Judges prefer a place whatever stands there (Wang et al. 2024, arXiv 2305.17926). ``first`` is the share of answers A, where
.5 is the ideal. Where every pair is asked in both orders (rows of one ``w2s_pair``), ``consistent`` is the share of pairs
answered right in both, and ``position_bias`` the share given the same letter in both, which can't be right twice.
Errors are clustered by ``w2s_group``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from w2s_tasks.scoring import generated
from w2s_tasks.scoring.metrics import BROKEN, NO_ANSWER, Aggregation, Results, clustered_binary, clustered_stderr

Array = npt.NDArray[Any]
Chosen = tuple[int, int]
"""(cluster, letter: 0 = A, 1 = B, `NO_ANSWER` or `BROKEN`)"""
Asked = tuple[int, int, int, int]
"""(cluster, pair, right letter, chosen letter)"""
Units = tuple[Array, Array]
"""Value and cluster of each unit."""


def candidates(doc: dict[str, Any], results: Results) -> dict[str, Any]:
    """``process_results``: `metrics.clustered_binary`, `first`, and with w2s_pair what both orders tell."""
    scores = clustered_binary(doc, results)
    gold, chosen, group = scores["precision"]
    first: Chosen = group, chosen
    scores |= dict.fromkeys(("first", "first_stderr"), first)
    if "w2s_pair" in doc:
        asked: Asked = group, int(doc["w2s_pair"]), gold, chosen
        both = ("consistent", "position_bias")
        scores |= {key: asked for name in both for key in (name, f"{name}_stderr")}
    return scores


def _first(items: Sequence[Chosen]) -> Units:
    """1 for each row answered A, 0 for B; a row without an answer is left out."""
    rows = np.asarray(items, dtype=int)
    cluster, chosen = rows[rows[:, 1] != NO_ANSWER].T
    return np.where(chosen == BROKEN, math.nan, chosen == 0), cluster


def _whole_pairs(items: Sequence[Asked]) -> Array:
    """(cluster, letter chosen where A is right, letter chosen where B is) of every pair asked in both orders, [pairs, 3].

    A row limit may cut the last pair: it is left out.
    """
    letters: dict[int, dict[int, Chosen]] = {}
    for group, pair, gold, chosen in items:
        letters.setdefault(pair, {})[gold] = group, chosen
    whole = [(*orders[0], orders[1][1]) for orders in letters.values() if len(orders) == 2]
    return np.array(whole, dtype=int).reshape(-1, 3)


def _consistent(items: Sequence[Asked]) -> Units:
    """1 for each pair that is answered right in both orders, else 0."""
    cluster, where_a, where_b = _whole_pairs(items).T
    broken = (where_a == BROKEN) | (where_b == BROKEN)
    return np.where(broken, math.nan, (where_a == 0) & (where_b == 1)), cluster


def _same_letter(items: Sequence[Asked]) -> Units:
    """1 for each pair given the same letter in both orders, 0 for other letters; pairs that lack an answer are left out."""
    pairs = _whole_pairs(items)
    cluster, where_a, where_b = pairs[(pairs[:, 1:] != NO_ANSWER).all(axis=1)].T
    broken = (where_a == BROKEN) | (where_b == BROKEN)
    return np.where(broken, math.nan, where_a == where_b), cluster


def _share(units: Callable[[Sequence[Any]], Units]) -> tuple[Aggregation, Aggregation]:
    """The mean over units, and its clustered standard error; NaN where there are none."""

    def share(items: Sequence[Any]) -> float:
        values, _ = units(items)
        return float(values.mean()) if len(values) else math.nan

    return share, lambda items: clustered_stderr(*units(items))


first, first_stderr = _share(_first)
"""Share of answers A; .5 is the ideal where sides are drawn."""
consistent, consistent_stderr = _share(_consistent)
"""Share of pairs answered right in both orders."""
position_bias, position_bias_stderr = _share(_same_letter)
"""Share of pairs given the same letter in both orders."""


# --- generated text ------------------------------------------------------------------------------------------------------

LETTERS = ("A", "B")
WORDS = ("lettera", "letterb")
"""What the letters are to the parsers, to which 'a' is an article."""
BEGUN = re.compile(r"\b(?i:reply|response)\s+[AB]\s*:")
"""How the prompt begins a reply: repeated, it is no answer."""
NAMED = re.compile(r"\b(?i:reply|response|answer|option)\s+([ABb])\b")
BETTER = re.compile(
    r"\b([AB]) is (?:clearly |slightly |much )?(?:the )?(?:better|best|safer|preferable)"
    r"(?: one| choice| reply| response)?(?: (?:than|to) [AB])?(?=[\s.,;:!]|$)"
)
TOGETHER = re.compile(r"\b(?:A (?:and|or|nor) B|B (?:and|or|nor) A)\b")
LETTER = re.compile(r"(?<![\w'-])([AB])(?![\w'-])")


def _spelt(reply: str) -> str:
    """A reply in the parsers' words: a letter as a word of its own, 'Reply A is better' as what states it."""
    text = BEGUN.sub("", re.sub(r"[*_`]", "", reply))
    text = TOGETHER.sub("them", NAMED.sub(lambda named: named[1].upper(), text))
    return LETTER.sub(lambda letter: WORDS[LETTERS.index(letter[1])], BETTER.sub(r"the better is \1", text))


def letter(doc: dict[str, Any], results: Sequence[str], parsers: generated.Parsers = generated.BOTH) -> dict[str, Any]:
    """``process_results`` of generated text: the letter of the better candidate, rows in groups; no exact match."""
    reply, (lenient, strict) = results[0], parsers
    if isinstance(reply, generated.NoReply):
        return {}
    exact = strict(reply, LETTERS)
    chosen = lenient(_spelt(reply), WORDS) if exact is None else exact, exact
    found, alone = (generated.UNPARSED if i is None else i for i in chosen)
    item: generated.Answered = (int(doc["label"]), found, alone, int(doc["w2s_group"]))
    return {key: item for name in generated.BINARY for key in (name, f"{name}_stderr")}
