"""Labels that come from several models: ensembles of weak supervisors, and rows that a student labels anew.

The models have been trained and have answered by the time these functions are called; `trainers.flow` has the stages.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from trainers.labels.label_set import LabelSet
from trainers.labels.operations import most_confident
from w2s_tasks.errors import UserError

LARGEST_LOG_ODDS = 5.0
"""A supervisor that was right on every held-back row is not given an infinite weight."""


def held_out_accuracy(fitted: Path) -> tuple[float, int]:
    """Accuracy against gold of a weak supervisor on the rows of the weak half that its training held back, and their number.

    Args:
        fitted: the folder of its fit stage, with ``curves.json``.

    Raises:
        UserError: no rows were held back.
    """
    points = json.loads((fitted / "curves.json").read_text(encoding="utf-8"))
    held = [p for p in points if "eval_accuracy" in p]
    if not held:
        raise UserError("method_args.ensemble.weights: accuracy needs held-back rows in the weak half; raise weak.holdout.")
    return float(held[-1]["eval_accuracy"]), int(held[-1]["eval_rows"])


def log_odds_weight(accuracy: float, rows: int) -> float:
    """The weight of a voter of this accuracy: log(a / (1 - a)), at least 0, with a = (right + 1/2) / (rows + 1).

    The optimal weights of independent voters (Nitzan and Paroush 1982); the smoothing keeps few rows from deciding all.

    Args:
        accuracy: share of the rows that it got right.
        rows: how many there were.
    """
    smooth = (accuracy * rows + 0.5) / (rows + 1)
    return min(LARGEST_LOG_ODDS, max(0.0, math.log(smooth / (1 - smooth))))


def ensemble_weights(rule: Literal["mean", "accuracy"] | list[float], fitted: Sequence[Path]) -> list[float]:
    """The weights of an ensemble's members, which sum to 1.

    Args:
        rule: equal weights, `log_odds_weight` of each, or the given numbers.
        fitted: the fit stages' folders, in the members' order.
    """
    if rule == "mean":
        raw = [1.0] * len(fitted)
    elif rule == "accuracy":
        raw = [log_odds_weight(*held_out_accuracy(folder)) for folder in fitted]
        raw = raw if sum(raw) > 0 else [1.0] * len(fitted)  # nobody beats a coin: all count alike
    else:
        raw = [float(w) for w in rule]
    return [w / sum(raw) for w in raw]


def average(members: Sequence[LabelSet], weights: Sequence[float]) -> LabelSet:
    """The weighted mean of several supervisors' probabilities (a linear opinion pool), row by row.

    Args:
        members: label sets of the same rows in the same order.
        weights: one a member, sum 1.

    Raises:
        UserError: label sets of different rows.
    """
    first = members[0]
    if any(m.row_id != first.row_id for m in members):
        raise UserError("ensemble: the members' label sets hold different rows.")
    stacked = np.stack([m.soft for m in members])
    return first.with_soft(np.tensordot(np.asarray(weights), stacked, axes=1))


def discarded(labels: LabelSet, keep: float, by_class: bool) -> LabelSet:
    """What `label_ops.confidence_filter` leaves out."""
    return labels.subset(~most_confident(labels, keep, by_class))


def two_stage(labels: LabelSet, student: LabelSet, *, keep: float, add: float, by_class: bool) -> LabelSet:
    """The training set of the second stage of Shi et al. 2025 (2503.04249): kept weak labels and the student's new ones.

    The supervisor's surest rows keep its labels (set A, on which the first student was trained). The others were labelled
    anew by that student, and those of which it is surest come back with its labels (set B). The paper measures certainty by
    self-consistency of sampled answers; over fixed choices it is the probability.

    Args:
        labels: the supervisor's labels of all rows.
        student: the first student's labels of the rows of `discarded`; those that it refused are not among them.
        keep: share of the rows in set A.
        add: share of the others in set B.
        by_class: take both shares within each labelled class.

    Raises:
        UserError: `student` labels other rows.
    """
    kept = labels.subset(most_confident(labels, keep, by_class))
    if not set(student.row_id) <= set(discarded(labels, keep, by_class).row_id):
        raise UserError("relabel: the first student did not label the rows that the filter left out.")
    back = student.subset(most_confident(student, add, by_class))
    return LabelSet.of((*kept.row_id, *back.row_id), [*kept.lists, *back.lists])
