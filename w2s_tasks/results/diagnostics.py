"""How a student stands to its weak supervisor: agreement, shared and copied errors, blind spots, calibration.

Agreement needs no label: a student that disagrees more with its supervisor gained more (misfit: arXiv 2405.15116,
2501.19105). The others are computed on evaluation rows, whose gold labels no student saw.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from w2s_tasks.results.read import TaskScores
from w2s_tasks.results.stats import Difference, accuracy_interval, paired_difference
from w2s_tasks.scoring.metrics import clustered_stderr

Array = npt.NDArray[Any]

CONFIDENT = 0.9
UNSURE = 0.75
BINS = 10


@dataclass(frozen=True)
class Share:
    """A share of n rows with its 95 % interval; None where there are no such rows."""

    value: float | None
    """Share from 0 to 1; null where there is nothing to take it of."""
    low: float | None
    """Lower end of its 95 % interval."""
    high: float | None
    """Upper end of its 95 % interval."""
    n: int
    """What it is a share of, a count."""


def share(chosen: Array, cluster: Array | None = None, among: Array | None = None) -> Share:
    """The share of true entries.

    Args:
        chosen: true or false for each row, shape [n].
        cluster: each row's group where rows come in groups, shape [n].
        among: the rows that count; None for all, shape [n].
    """
    if among is not None:
        chosen, cluster = chosen[among], None if cluster is None else cluster[among]
    if not len(chosen):
        return Share(None, None, None, 0)
    return Share(float(chosen.mean()), *accuracy_interval(chosen.astype(float), cluster), len(chosen))


def probabilities(scores: TaskScores) -> Array | None:
    """Probabilities over the choices, [n, choices], from the log-likelihoods; None for generated text and ranked pairs."""
    if scores.logliks is None:
        return None
    weights = np.exp(scores.logliks - scores.logliks.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def capa(first: Array, second: Array, gold: Array, sizes: Array | None = None) -> float | None:
    """Chance-adjusted probabilistic agreement, kappa_p (arXiv 2502.04313, section 2): how far two models err alike.

    (c_obs - c_exp) / (1 - c_exp) with c_obs the mean over rows of the products of their probabilities, and c_exp what two
    independent models of these accuracies reach, errors spread evenly over the wrong options: 1 for equal and certain
    models, 0 for independent ones, negative where they differ more than by chance.

    Args:
        first: probabilities over the choices, shape [n, choices].
        second: the same for the other model.
        gold: right choices, shape [n].
        sizes: choices of each row where they differ, shape [n].

    Returns:
        None where both are always right with certainty, so that there are no errors to compare.
    """
    rows = np.arange(len(gold))
    wrong = 1 / (first.shape[1] - 1) if sizes is None else float((1 / (sizes - 1)).mean())
    right, other = float(first[rows, gold].mean()), float(second[rows, gold].mean())
    observed = float((first * second).sum(axis=1).mean())
    expected = right * other + (1 - right) * (1 - other) * wrong
    return (observed - expected) / (1 - expected) if expected < 1 - 1e-12 else None


@dataclass(frozen=True)
class Calibration:
    """Expected calibration error over equally filled bins, and Brier score with its standard error."""

    ece: float
    """Expected calibration error, 0 to 1."""
    brier: float
    """Brier score summed over the choices, 0 to 2; 0 is best."""
    brier_stderr: float
    """Its standard error."""
    n: int
    """Questions."""


def calibration(probability: Array, gold: Array, cluster: Array | None = None, bins: int = BINS) -> Calibration:
    """ECE (Guo et al. 2017, arXiv 1706.04599, eq. 3, with bins of equal size) and Brier's score (1950, summed over choices).

    Args:
        probability: over the choices, shape [n, choices].
        gold: right choices, shape [n].
        cluster: each row's group where rows come in groups, shape [n].
        bins: of confidence; fewer where there are fewer rows.
    """
    confidence, right = probability.max(axis=1), probability.argmax(axis=1) == gold
    order = np.argsort(confidence, kind="stable")
    n = len(gold)
    ece = sum(
        len(part) / n * abs(float(confidence[part].mean()) - float(right[part].mean()))
        for part in np.array_split(order, min(bins, n))
    )
    squares = ((probability - np.eye(probability.shape[1])[gold]) ** 2).sum(axis=1)
    stderr = clustered_stderr(squares, np.arange(n) if cluster is None else cluster)
    return Calibration(float(ece), float(squares.mean()), stderr, n)


@dataclass(frozen=True)
class Diagnosis:
    """A model against the weak supervisor of its seed.

    ``overrides``: rows answered otherwise than the supervisor, ``right_overrides`` the share of those that are right where
    the supervisor was wrong. ``copied`` is the share of the supervisor's errors that the model gives too,
    ``copied_by_ceiling`` the ceiling's share of the same rows, ``copying`` their paired difference: what was learnt from the
    labels, not from the questions' difficulty. ``blind_spots``: wrong with at least `CONFIDENT` where the supervisor gave
    its choice less than `UNSURE`, among all rows.
    """

    agreement: Share
    """Answers that are the supervisor's"""
    capa: float | None
    """CAPA, agreement in errors beyond chance: 1 the same, 0 independent."""
    overrides: int
    """Questions that are answered otherwise than the supervisor."""
    right_overrides: Share
    """Overrides that are right where the supervisor was wrong"""
    copied: Share
    """The supervisor's errors that the model makes too"""
    copied_by_ceiling: Share | None
    """The supervisor's errors that the ceiling makes too"""
    copying: Difference | None
    """Errors copied, minus the ceiling's"""
    blind_spots: Share | None
    """Questions on which the model is sure and wrong, and the supervisor was unsure"""
    calibration: Calibration | None
    """How far confidence is from accuracy"""


def diagnose(model: TaskScores, weak: TaskScores, ceiling: TaskScores | None) -> Diagnosis | None:
    """Compare a model with the weak supervisor on the same rows; None where rows are ranked pairs.

    Args:
        model: the student, or any other arm.
        weak: the supervisor whose labels it learnt, or would have.
        ceiling: the model that learnt gold labels, for the errors it makes by itself.
    """
    if model.predicted is None or weak.predicted is None or model.gold is None:
        return None
    gold, other = model.gold, model.predicted != weak.predicted
    wrong = weak.predicted != gold
    cluster = model.cluster
    by_ceiling = copying = None
    if ceiling is not None and ceiling.predicted is not None and wrong.any():
        own = ceiling.predicted == weak.predicted
        by_ceiling = share(own, cluster, wrong)
        pair = ((~other)[wrong].astype(float), own[wrong].astype(float))
        copying = paired_difference(*pair, None if cluster is None else cluster[wrong])
    mine, theirs = probabilities(model), probabilities(weak)
    blind = None
    if mine is not None and theirs is not None:
        blind = share((model.predicted != gold) & (mine.max(axis=1) >= CONFIDENT) & (theirs.max(axis=1) < UNSURE), cluster)
    return Diagnosis(
        share(~other, cluster),
        capa(mine, theirs, gold, model.sizes) if mine is not None and theirs is not None else None,
        int(other.sum()),
        share(model.predicted == gold, cluster, other),
        share(~other, cluster, wrong),
        by_ceiling,
        copying,
        blind,
        calibration(mine, gold, cluster) if mine is not None else None,
    )


def confusion(scores: TaskScores) -> Array | None:
    """Counts [right class, predicted class], with a column for unparsed replies if there are any; None without classes."""
    if scores.predicted is None or scores.gold is None or not scores.classes:
        return None
    choices = scores.choices
    columns = choices + int((scores.predicted < 0).any())
    table = np.zeros((choices, columns), dtype=int)
    np.add.at(table, (scores.gold, np.where(scores.predicted < 0, choices, scores.predicted)), 1)
    return table
