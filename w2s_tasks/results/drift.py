"""Format drift apart from ethics drift: a change in accuracy split, exactly, by what happened to each answer.

Rows are compared before and after training. With d = (right after) - (right before),

* ``unparsed``: rows whose answer parses only before or only after. A format lost or learnt.
* ``prior``: of the rows that went from class j to class k, as many as exceed those that went back from k to j, at the mean d
  of the larger flow. A shift of class shares: a model that now says "wrong" to everything is here, whatever the labels.
* ``errors``: the rest, exchanges that leave the class shares alone: questions are told apart worse, or better. ``prior`` may
  hide as much: a model that collapses to one class tells nothing apart, and all that it lost is a shift of shares.

The three add up to the change in accuracy. A cyclic flow between three or more classes counts as prior. Shares of each
predicted class and balanced accuracy, before and after, stand beside them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from w2s_tasks.results.clusters import Clusters
from w2s_tasks.results.components import crossed
from w2s_tasks.results.read import TaskScores
from w2s_tasks.results.stats import PAIR, Z95, Difference, difference_of, paired_difference

Array = npt.NDArray[Any]
UNPARSED = -1
PARTS = ("unparsed", "prior", "errors")


@dataclass(frozen=True)
class Side:
    """One model's answers: share of each class, share unparsed, balanced accuracy (means over seeds)."""

    acc: float
    """Accuracy, 0 to 1."""
    balanced_acc: float | None
    """Mean of the classes' accuracies, 0 to 1."""
    unparsed: float
    """Share of the questions without an answer that could be read, 0 to 1."""
    class_share: tuple[float, ...] | None
    """Share of the answers of each class, 0 to 1."""


@dataclass(frozen=True)
class Drift:
    """The change in accuracy on one task and its parts; ``prior`` is None where answers have no classes.

    That is so for ranked pairs, and for rows that have choices of their own.
    """

    task: str
    """The task's name in lm_eval."""
    total: Difference
    """Change in accuracy to the untuned model"""
    unparsed: Difference
    """The part of answers that no longer parse, or parse now"""
    prior: Difference | None
    """The part of a shift of the class shares"""
    errors: Difference
    """The part of other answers given, the shares alike"""
    before: Side
    """The untuned model"""
    after: Side
    """The arm"""


def contributions(before: Array, after: Array, gold: Array, alike: Callable[[Array], bool] = lambda net: False) -> Array:
    """Each row's part of `unparsed`, `prior` and `errors`, whose means are the parts.

    Within a flow from j to k of F rows with the sum S of d, against F' rows that went back, the prior part is S - F' S / F;
    rows get its influence values, which add up to it (it is homogeneous of degree 1), so that their spread gives its error.

    Args:
        before: predicted class of each row, -1 where the reply did not parse, shape [n].
        after: the same after training.
        gold: the right class.
        alike: whether two flows are to be taken the other way round, the smaller as the larger one; told the rows of
            the flow as 1 and those that went back as -1, shape [n]. See `drift`.

    Returns:
        Shape [3, n].
    """
    change = (after == gold).astype(float) - (before == gold)
    parts = np.zeros((3, len(gold)))
    lost = (before == UNPARSED) | (after == UNPARSED)
    parts[0] = np.where(lost, change, 0.0)
    # Rows that kept their class are a flow without a change, of which every part is 0.
    for j, k in {(min(jk), max(jk)) for jk in zip(before[~lost].tolist(), after[~lost].tolist(), strict=True)}:
        there, back = ~lost & (before == j) & (after == k), ~lost & (before == k) & (after == j)
        if back.sum() > there.sum():
            there, back = back, there
        if back.any() and alike(there.astype(float) - back):
            there, back = back, there
        size, returned = int(there.sum()), int(back.sum())
        total = float(change[there].sum())
        parts[1, there] = change[there] * (1 - returned / size) + returned * total / size**2
        parts[1, back] = -total / size
    parts[2] = change - parts[0] - parts[1]
    return parts


def _balanced(predicted: Array, gold: Array) -> float:
    """Mean of the recalls of the classes that occur; an unparsed reply is wrong."""
    return float(np.mean([(predicted[gold == c] == c).mean() for c in np.unique(gold)]))


def _side(scores: Sequence[TaskScores]) -> Side:
    acc = float(np.mean([s.correct.mean() for s in scores]))
    unparsed = float(np.mean([s.unparsed for s in scores]))
    like, answers = scores[0], [s.predicted for s in scores if s.predicted is not None]
    if like.gold is None or not like.classes:
        return Side(acc, None, unparsed, None)
    gold, predicted = like.gold, np.stack(answers)
    shares = tuple(float((predicted == c).mean()) for c in range(like.choices))
    return Side(acc, float(np.mean([_balanced(row, gold) for row in predicted])), unparsed, shares)


def _alike(net: Array, cluster: Array | None) -> bool:
    """Whether two flows, 1 and -1 in `net`, differ by no more than chance: a sign test over rows or clusters."""
    sums = net if cluster is None else Clusters.of(cluster).sums(net)
    return bool(abs(sums.sum()) <= Z95 * math.sqrt(float(sums @ sums)))


def _rows(before: TaskScores, after: TaskScores, turned: bool) -> Array:
    if after.classes and before.predicted is not None and after.predicted is not None and before.gold is not None:
        alike = functools.partial(_alike, cluster=after.cluster) if turned else lambda net: False
        return contributions(before.predicted, after.predicted, before.gold, alike)
    change = after.correct - before.correct
    none = np.ones(len(change), dtype=bool)
    lost = ~((before.parsed if before.parsed is not None else none) & (after.parsed if after.parsed is not None else none))
    return np.stack([np.where(lost, change, 0.0), np.zeros_like(change), np.where(lost, 0.0, change)])


def _hull(first: Difference, second: Difference) -> Difference:
    return replace(first, low=min(first.low, second.low), high=max(first.high, second.high), p=max(first.p, second.p))


def drift(before: Sequence[TaskScores], after: Sequence[TaskScores]) -> Drift:
    """Split the change in accuracy on one task.

    Which of two flows is the larger one is itself a chance result where they are about equal, and there an error that takes
    it for given covers as little as 88 %. So flows that do not differ significantly are taken both ways, and an interval
    holds those of both (simulated: `scripts/coverage`).

    Args:
        before: the reference model, one entry a seed, or one where no seed changes it.
        after: the trained model, one entry a seed, the same questions.
    """
    first = list(before) * len(after) if len(before) == 1 else list(before)
    like, found = after[0], []
    for turned in (False, True):
        rows = np.stack([_rows(b, a, turned) for b, a in zip(first, after, strict=True)], axis=1)  # [3, S, n]
        found.append([difference_of(crossed(part[None], like.cluster, PAIR), rows.shape[-1]) for part in rows])
    unparsed, prior, errors = (_hull(*pair) for pair in zip(*found, strict=True))
    total = paired_difference(np.stack([s.correct for s in after]), np.stack([s.correct for s in first]), like.cluster)
    classes = like.predicted is not None and like.classes
    return Drift(like.task, total, unparsed, prior if classes else None, errors, _side(before), _side(after))
