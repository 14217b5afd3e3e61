"""AUROC: how well a model tells the classes apart, whatever it prefers to answer.

A model that gives every row the same answer is right on a balanced half, and may still find the right choice likelier on
the rows where it is right. The area under the ROC curve sees that: it is the probability that a row of the class scores
higher than one that is not of it (ties count half), for every threshold at once.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from w2s_tasks.scoring.no_answer import is_none

Array = npt.NDArray[Any]


def placements(score: Array, positive: Array) -> Array:
    """The share of the other class that each row is on the right side of, ties counting half.

    Args:
        score: of each row, shape [n].
        positive: whether the row is of the class, shape [n]; some must be and some not.

    Returns:
        Shape [n]; over the rows of either class the mean is AUROC (DeLong et al. 1988's structural components).
    """
    positive = np.asarray(positive, dtype=bool)
    shares = np.empty(len(score))
    for side, sign in ((positive, 1.0), (~positive, -1.0)):
        others = np.sort(sign * score[~side])
        below, up_to = (np.searchsorted(others, sign * score[side], edge) for edge in ("left", "right"))
        shares[side] = (below + up_to) / (2 * len(others))
    return shares


def auroc_rows(score: Array, positive: Array) -> Array:
    """A value for each row whose mean is AUROC, and whose spread gives DeLong's error.

    AUROC is a mean over pairs of rows; to first order it is a mean over rows of these, so that clusters, seeds and paired
    differences are treated as those of any other mean over rows.

    Returns:
        Shape [n]: squares of the deviations from their mean sum to n² times DeLong's variance. NaN where a class is empty.
    """
    positive = np.asarray(positive, dtype=bool)
    n, sides = len(score), [int(positive.sum()), int((~positive).sum())]
    if min(sides) == 0:
        return np.full(n, math.nan)
    shares = placements(score, positive)
    area = shares[positive].mean()
    weights = [n / size * math.sqrt(size / max(1, size - 1)) for size in sides]
    return np.asarray(area + np.where(positive, *weights) * (shares - area))


def class_scores(logliks: Array, gold: Array) -> Array:
    """How strongly each row's answer leans to each class: with two choices the margin, else the log-probability.

    A row without an answer leans away from its right class.

    Args:
        logliks: of the choices, shape [n, choices].
        gold: right choices, shape [n].
    """
    with np.errstate(invalid="ignore"):
        if logliks.shape[1] == 2:
            margin = logliks[:, 1] - logliks[:, 0]
            scores = np.stack([-margin, margin], axis=1)
        else:
            top = logliks.max(axis=1, keepdims=True)
            scores = logliks - top - np.log(np.exp(logliks - top).sum(axis=1, keepdims=True))
    silent = np.array([is_none(row) for row in logliks])
    right = np.arange(logliks.shape[1]) == gold[:, None]
    return np.where(silent[:, None], np.where(right, -math.inf, math.inf), scores)


def macro_auroc_rows(logliks: Array, gold: Array) -> Array:
    """`auroc_rows` of the choices' log-likelihoods; with more than two choices the mean of one class against the rest.

    Args:
        logliks: shape [n, choices].
        gold: right choices, shape [n].

    Returns:
        Shape [n]; NaN where all rows are of one class.
    """
    scores, choices = class_scores(logliks, gold), range(logliks.shape[1])
    if len(choices) == 2:
        return auroc_rows(scores[:, 1], gold == 1)
    kinds = [auroc_rows(scores[:, c], gold == c) for c in choices if 0 < (gold == c).sum() < len(gold)]
    return np.mean(kinds, axis=0) if kinds else np.full(len(gold), math.nan)
