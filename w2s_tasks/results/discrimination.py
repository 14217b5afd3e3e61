"""Discrimination: AUROC with its interval and paired differences, and d' with the criterion of the answers given.

AUROC counts every threshold, accuracy only the model's own. A model that moved to one class loses accuracy and keeps its
AUROC where it still knows the difference; so the two beside each other tell a shifted preference from lost knowledge.

Over seeds and clusters AUROC is treated as the mean over rows of `scoring.discrimination.auroc_rows`, whose spread is
DeLong's (DeLong, DeLong & Clarke-Pearson 1988, Biometrics 44), and with clusters Obuchowski's (1997, Biometrics 53).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import expit, logit
from scipy.stats import norm

from w2s_tasks.results.clusters import SHARE_UNIT, Clusters
from w2s_tasks.results.components import Components, crossed
from w2s_tasks.results.read import TaskScores
from w2s_tasks.results.stats import PAIR, Difference, difference_of
from w2s_tasks.scoring.discrimination import macro_auroc_rows
from w2s_tasks.scoring.metrics import NO_ANSWER, table_score
from w2s_tasks.scoring.no_answer import LOGLIK

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Discrimination:
    """How well a model tells classes apart, a mean over seeds; ``d_prime`` and ``criterion`` with two classes only.

    ``criterion``: 0 where both classes are answered alike readily, below 0 where the second one is preferred.
    """

    auroc: float
    """Area under the ROC curve, 0 to 1; .5 is chance."""
    low: float
    """Lower end of its 95 % interval."""
    high: float
    """Upper end of its 95 % interval."""
    n: int
    """Questions."""
    d_prime: float | None
    """d', the distance of two classes in standard deviations; null with more classes."""
    criterion: float | None
    """c, in standard deviations: below 0 the second class is preferred."""


def auroc_table(scores: Sequence[TaskScores]) -> Array | None:
    """Rows whose mean is AUROC, one series a seed, shape [seeds, n]; None where answers have no classes or only one occurs.

    Args:
        scores: one entry a seed, of the same questions.
    """
    tables = []
    for one in scores:
        if one.logliks is None or one.gold is None or not one.classes:
            return None
        silent = np.zeros(one.n, dtype=bool) if one.parsed is None else ~one.parsed
        # A row without an answer leans away from its right class, as in lm_eval's own scores (`scoring.metrics`).
        tables.append(macro_auroc_rows(np.where(silent[:, None], LOGLIK, one.logliks), one.gold))
    return np.stack(tables) if tables and not np.isnan(tables).any() else None


def discrimination(scores: Sequence[TaskScores]) -> Discrimination | None:
    """A model on one task.

    Args:
        scores: one entry a seed, of the same questions.
    """
    table, like = auroc_table(scores), scores[0]
    if table is None or like.gold is None:
        return None
    low, high = auroc_interval(table, like.gold, like.cluster)
    of_two = (one.predicted for one in scores if one.predicted is not None and one.choices == 2)
    told = [sensitivity(predicted, like.gold) for predicted in of_two]
    d_prime, criterion = np.mean(told, axis=0).tolist() if told else (None, None)
    return Discrimination(float(table.mean()), low, high, len(like.gold), d_prime, criterion)


def auroc_interval(table: Array, gold: Array, cluster: Array | None = None) -> tuple[float, float]:
    """95 % interval of AUROC: the hull of two, of which one does well where the other does not (simulated).

    Newcombe's (2006, Statistics in Medicine 25, method 5) is an interval even at 1, but takes both classes' scores to be
    spread alike; DeLong's on the logit scale, over seeds and clusters, does not, but is too short near 1.

    Args:
        table: of `auroc_table`, shape [seeds, n].
        gold: right choices, shape [n]; with several classes the rarest one against the rest decides.
        cluster: each row's group where rows come in groups, shape [n].
    """
    area = min(1.0, max(0.0, float(table.mean())))
    parts = crossed(table[None], cluster)
    effect = 1.0
    if cluster is not None:
        effect = float(Clusters.of(cluster).effect(table.mean(axis=0)[None] - area, SHARE_UNIT).item())
    rare = float(min(count for count in np.bincount(gold) if count))
    score = newcombe(area, rare / effect, (len(gold) - rare) / effect)
    if not 0 < area < 1:
        return score
    half = float(parts.half_width(np.ones(1))) / (area * (1 - area))
    wald = [float(expit(logit(area) + sign * half)) for sign in (-1, 1)]
    return min(score[0], wald[0]), max(score[1], wald[1])


def newcombe(area: float, first: float, second: float, level: float = 0.95) -> tuple[float, float]:
    """Newcombe's interval of an AUROC.

    Args:
        area: the estimate, between 0 and 1.
        first: rows of the one class; need not be whole.
        second: rows of the other.
        level: of the interval.
    """
    z, more = norm.ppf(0.5 + level / 2), (first + second) / 2 - 1

    def beyond(bound: float) -> float:
        spread = 1 + more * (1 - bound) / (2 - bound) + more * bound / (1 + bound)
        return float(abs(bound - area) - z * math.sqrt(max(0.0, bound * (1 - bound) * spread / (first * second))))

    edge = 1e-9
    low = float(brentq(beyond, 0, area - edge)) if area > 2 * edge else 0.0
    high = float(brentq(beyond, area + edge, 1)) if area < 1 - 2 * edge else 1.0
    return low, high


def auroc_components(first: Sequence[TaskScores], second: Sequence[TaskScores]) -> Components | None:
    """Components of AUROC of one model minus another's on the same questions; None where one has none.

    Args:
        first: one entry a seed.
        second: the same; one entry where no seed changes it.
    """
    own, other = auroc_table(first), auroc_table(second)
    return None if own is None or other is None else crossed((own - other)[None], first[0].cluster, PAIR)


def auroc_difference(first: Sequence[TaskScores], second: Sequence[TaskScores]) -> Difference | None:
    """The difference itself, paired over seeds and rows; see `auroc_components`."""
    parts = auroc_components(first, second)
    return None if parts is None else difference_of(parts, first[0].n)


def sensitivity(predicted: Array, gold: Array) -> tuple[float, float]:
    """d' and the criterion c of answers to a two-choice task; class 1 is the signal (Macmillan & Creelman 2005, ch. 2).

    Half a row is added to each cell (Hautus 1995, log-linear rule), so that a class that is always answered has a value.

    Args:
        predicted: answers, shape [n]; what is neither 0 nor 1 counts as the wrong one.
        gold: right choices, shape [n].
    """
    chosen = np.where((predicted == 0) | (predicted == 1), predicted, NO_ANSWER)
    return table_score("d_prime", gold, chosen), table_score("criterion", gold, chosen)
