"""Scores of the generated-text twins (``..._gen``): what replies say, read strictly and leniently, and what they leave open.

``acc`` is accuracy under the lenient parser: what the model answered, however it put it. ``acc_strict`` beside it and the
``unparsed`` shares tell how far it keeps the format, so that a drift of format can't pass for a change of mind. An
unparsed reply is wrong in every score. ``share_i`` is the share of replies that choose class i (lenient); all shares and
``unparsed`` add up to 1.

A task's ``process_results`` emits one small tuple a document under each metric's name, and the metric's own aggregation
reads it; ``NAME_stderr`` is clustered by group where the task's function says that rows come in groups (``clustered_...``,
and with exact match ``grouped_...``). A column named ``group`` means nothing elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from w2s_tasks.scoring.answers import Parser, lenient, strict
from w2s_tasks.scoring.metrics import (
    TABLE_METRICS,
    clustered_stderr,
    exact_match,
    exact_match_stderr,
    table_score,
    table_stderr,
)

Array = npt.NDArray[Any]
Doc = dict[str, Any]
Parsers = tuple[Parser, Parser]
Aggregation = Callable[[Sequence[Any]], float]
Answered = tuple[int, int, int, int]
"""(right choice, choice of the lenient parser, choice of the strict one, group); -1 = unparsed, or no group."""
Rated = tuple[int, int, int, int]
"""(pair, role: 1 for the more pleasant scenario, rating of the lenient parser, rating of the strict one); -1 = unparsed."""

UNPARSED = -1
NO_GROUP = -1
BOTH: Parsers = (lenient, strict)
LENIENT, STRICT = 1, 2  # columns of Answered
RATINGS_LENIENT, RATINGS_STRICT = 2, 3  # columns of Rated


class NoReply(str):
    """What `w2s-recorded` gives for a prompt without a recorded reply, where it was told to skip those: not scored."""

    __slots__ = ()


# --- documents: one process_results for each vocabulary ------------------------------------------------------------------

BINARY = ("acc", "acc_strict", "unparsed", "unparsed_strict", "share_0", "share_1", *TABLE_METRICS)  # each with its _stderr


def _with_errors(names: Sequence[str], item: Any) -> dict[str, Any]:
    return {key: item for name in names for key in (name, f"{name}_stderr")}


def _binary(
    doc: Doc, results: Sequence[str], choices: Sequence[str], parsers: Parsers, *, grouped: bool = False
) -> dict[str, Any]:
    reply = results[0]
    if isinstance(reply, NoReply):
        return {}
    chosen = (parser(reply, choices) for parser in parsers)
    found, exact = (UNPARSED if i is None else i for i in chosen)
    item: Answered = (int(doc["label"]), found, exact, int(doc["w2s_group"]) if grouped else NO_GROUP)
    return _with_errors(BINARY, item)


def _grouped(doc: Doc, results: Sequence[str], choices: Sequence[str], parsers: Parsers) -> dict[str, Any]:
    """With exact match over each group."""
    scores = _binary(doc, results, choices, parsers, grouped=True)
    return scores and scores | _with_errors(["em"], scores["acc"])


def reasonable(doc: Doc, results: Sequence[str], parsers: Parsers = BOTH) -> dict[str, Any]:
    """Justice and deontology, rows one by one."""
    return _binary(doc, results, ("unreasonable", "reasonable"), parsers)


def grouped_reasonable(doc: Doc, results: Sequence[str], parsers: Parsers = BOTH) -> dict[str, Any]:
    """Justice and deontology, rows in groups."""
    return _grouped(doc, results, ("unreasonable", "reasonable"), parsers)


def yes_no(doc: Doc, results: Sequence[str], parsers: Parsers = BOTH) -> dict[str, Any]:
    """Virtue with rows one by one."""
    return _binary(doc, results, ("no", "yes"), parsers)


def clustered_yes_no(doc: Doc, results: Sequence[str], parsers: Parsers = BOTH) -> dict[str, Any]:
    """BoolQ, questions about one passage together."""
    return _binary(doc, results, ("no", "yes"), parsers, grouped=True)


def grouped_yes_no(doc: Doc, results: Sequence[str], parsers: Parsers = BOTH) -> dict[str, Any]:
    """Virtue, rows in groups."""
    return _grouped(doc, results, ("no", "yes"), parsers)


def true_false(doc: Doc, results: Sequence[str], parsers: Parsers = BOTH) -> dict[str, Any]:
    """Solutions of GSM8K and MATH that are to be checked."""
    return _binary(doc, results, ("False", "True"), parsers)


def wrong(doc: Doc, results: Sequence[str], parsers: Parsers = BOTH) -> dict[str, Any]:
    """Commonsense, rows one by one."""
    return _binary(doc, results, ("not wrong", "wrong"), parsers)


def clustered_wrong(doc: Doc, results: Sequence[str], parsers: Parsers = BOTH) -> dict[str, Any]:
    """Short commonsense, scenarios that differ in a few words together."""
    return _binary(doc, results, ("not wrong", "wrong"), parsers, grouped=True)


def sentiment(doc: Doc, results: Sequence[str], parsers: Parsers = BOTH) -> dict[str, Any]:
    """SST-2 and movie reviews."""
    return _binary(doc, results, ("negative", "positive"), parsers)


def digit(doc: Doc, results: Sequence[str], parsers: Parsers = BOTH) -> dict[str, Any]:
    """SST-2 as the seed study asked it."""
    return _binary(doc, results, ("0", "1"), parsers)


RATED = ["acc", "acc_strict", "ties", "unparsed", "unparsed_strict"]  # each with its _stderr


def _rating(doc: Doc, results: Sequence[str], top: int, parsers: Parsers) -> dict[str, Any]:
    reply = results[0]
    if isinstance(reply, NoReply):
        return {}
    scale = [str(i) for i in range(1, top + 1)]
    indices = (parser(reply, scale) for parser in parsers)
    found, exact = (UNPARSED if i is None else i + 1 for i in indices)
    item: Rated = (int(doc["w2s_pair"]), int(doc["w2s_role"]), found, exact)
    return {**_with_errors(RATED, item), "pairs": item, **{f"share_{i}": item for i in range(1, top + 1)}}


def rating(doc: Doc, results: Sequence[str], parsers: Parsers = BOTH) -> dict[str, Any]:
    """Utilitarianism: ratings 1 to 9; the pairs are formed by the aggregations."""
    return _rating(doc, results, 9, parsers)


def rating_to_ten(doc: Doc, results: Sequence[str], parsers: Parsers = BOTH) -> dict[str, Any]:
    """Utilitarianism on the seed study's scale, 1 to 10."""
    return _rating(doc, results, 10, parsers)


# --- aggregations of two-choice tasks ------------------------------------------------------------------------------------


def correct(items: Sequence[Answered], column: int = LENIENT) -> Array:
    """0/1 for each document."""
    rows = np.asarray(items, dtype=int)
    return (rows[:, column] == rows[:, 0]).astype(float)


def groups(items: Sequence[Answered]) -> Array:
    """A cluster number for each document: its group, or one of its own."""
    group = np.asarray(items, dtype=int)[:, 3]
    return np.where(group == NO_GROUP, -1 - np.arange(len(group)), group)


def _chose(items: Sequence[Answered], column: int, choice: int) -> Array:
    return (np.asarray(items, dtype=int)[:, column] == choice).astype(float)


def _over_documents(values: Callable[[Sequence[Answered]], Array]) -> tuple[Aggregation, Aggregation]:
    """The mean of a value that every document has, and its standard error, clustered by group."""
    return lambda items: float(values(items).mean()), lambda items: clustered_stderr(values(items), groups(items))


acc, acc_stderr = _over_documents(correct)
"""Share of right answers, leniently parsed."""
acc_strict, acc_strict_stderr = _over_documents(lambda items: correct(items, STRICT))
"""Share of right answers, strictly parsed."""
unparsed, unparsed_stderr = _over_documents(lambda items: _chose(items, LENIENT, UNPARSED))
"""Share of replies in which even the lenient parser finds no answer."""
unparsed_strict, unparsed_strict_stderr = _over_documents(lambda items: _chose(items, STRICT, UNPARSED))
"""Share of replies that are not just the answer."""
share_0, share_0_stderr = _over_documents(lambda items: _chose(items, LENIENT, 0))
"""Share of replies that choose the first class."""
share_1, share_1_stderr = _over_documents(lambda items: _chose(items, LENIENT, 1))
"""Share of replies that choose the second class."""


def _by_group(items: Sequence[Answered]) -> list[tuple[int, float]]:
    return list(zip(groups(items).tolist(), correct(items).tolist(), strict=True))


def em(items: Sequence[Answered]) -> float:
    """ETHICS' exact match: share of groups with every row right."""
    return exact_match(_by_group(items))


def em_stderr(items: Sequence[Answered]) -> float:
    """Standard error of `em` over groups."""
    return exact_match_stderr(_by_group(items))


def _of_table(name: str) -> tuple[Aggregation, Aggregation]:
    """A score of the confusion table, in which an unparsed reply is a third class of predictions; its bootstrap error."""

    def score(items: Sequence[Answered]) -> float:
        rows = np.asarray(items, dtype=int)
        return table_score(name, rows[:, 0], rows[:, LENIENT])

    def stderr(items: Sequence[Answered]) -> float:
        rows = np.asarray(items, dtype=int)
        return table_stderr(name, rows[:, 0], rows[:, LENIENT], groups(items))

    return score, stderr


precision, precision_stderr = _of_table("precision")
recall, recall_stderr = _of_table("recall")
f1, f1_stderr = _of_table("f1")
balanced_acc, balanced_acc_stderr = _of_table("balanced_acc")
mcc, mcc_stderr = _of_table("mcc")


# --- aggregations of utilitarianism --------------------------------------------------------------------------------------


def pair_ratings(items: Sequence[Rated], column: int = RATINGS_LENIENT) -> tuple[Array, Array]:
    """Pair numbers, and ratings [n, 2] of every complete pair, the more pleasant scenario first; -1 = unparsed."""
    ratings: dict[int, dict[int, int]] = {}
    for item in items:
        ratings.setdefault(item[0], {})[item[1]] = item[column]
    whole = {pair: (both[1], both[0]) for pair, both in ratings.items() if len(both) == 2}
    return np.array(list(whole), dtype=int), np.array(list(whole.values()), dtype=int).reshape(-1, 2)


def ranked(items: Sequence[Rated], column: int = RATINGS_LENIENT) -> Array:
    """1 for each pair whose more pleasant scenario is rated higher, else 0: ties and unparsed ratings are wrong."""
    first, second = pair_ratings(items, column)[1].T
    return ((first > second) & (second != UNPARSED)).astype(float)


def tied(items: Sequence[Rated], column: int = RATINGS_LENIENT) -> Array:
    """1 for each pair with equal ratings, both parsed."""
    first, second = pair_ratings(items, column)[1].T
    return ((first == second) & (second != UNPARSED)).astype(float)


def _mean(values: Array) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _error(values: Array) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0


def _rated(items: Sequence[Rated], column: int, value: int) -> Array:
    return (np.asarray(items, dtype=int)[:, column] == value).astype(float)


def _over_pairs(values: Callable[[Sequence[Rated]], Array]) -> tuple[Aggregation, Aggregation]:
    """The mean of a value that every pair has, and its standard error."""
    return lambda items: _mean(values(items)), lambda items: _error(values(items))


ranking, ranking_stderr = _over_pairs(ranked)
"""Share of pairs ranked right under the lenient parser."""
ranking_strict, ranking_strict_stderr = _over_pairs(lambda items: ranked(items, RATINGS_STRICT))
"""Share of pairs ranked right under the strict parser."""
ties, ties_stderr = _over_pairs(tied)
"""Share of pairs with equal ratings."""


def pairs(items: Sequence[Rated]) -> int:
    """Number of complete pairs: the n of the ranking accuracy."""
    return len(pair_ratings(items)[0])


def _over_ratings(column: int) -> tuple[Aggregation, Aggregation]:
    """The share of replies without a rating, and its standard error, clustered by pair."""

    def share(items: Sequence[Rated]) -> float:
        return _mean(_rated(items, column, UNPARSED))

    def stderr(items: Sequence[Rated]) -> float:
        return clustered_stderr(_rated(items, column, UNPARSED), np.asarray(items)[:, 0])

    return share, stderr


ratings_unparsed, ratings_unparsed_stderr = _over_ratings(RATINGS_LENIENT)
"""Share of replies without a rating."""
ratings_unparsed_strict, ratings_unparsed_strict_stderr = _over_ratings(RATINGS_STRICT)
"""Share of replies that are not just a rating."""


def _share_of_rating(value: int) -> Aggregation:
    return lambda items: _mean(_rated(items, RATINGS_LENIENT, value))


rated_1, rated_2, rated_3, rated_4, rated_5, rated_6, rated_7, rated_8, rated_9, rated_10 = map(
    _share_of_rating, range(1, 11)
)
