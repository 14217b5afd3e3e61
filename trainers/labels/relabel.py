"""Labels that come from several models: ensembles of weak supervisors, and rows that a student labels anew.

The models have been trained and have answered by the time these functions are called; `trainers.flow` has the stages.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from lm_eval.api.model import LM

from trainers.harness.tasks import HarnessTask, PromptStyle, rendering
from trainers.labels.kinds import AnyLabels
from trainers.labels.label_set import LabelSet
from trainers.labels.operations import most_confident
from trainers.labels.text_labels import TextLabels
from w2s_tasks.errors import UserError
from w2s_tasks.scoring.replies import AnswerReader

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


def discarded(labels: AnyLabels, keep: float, by_class: bool) -> AnyLabels:
    """What `label_ops.confidence_filter` leaves out."""
    return labels.subset(~most_confident(labels, keep, by_class))


Surest = TypeVar("Surest", LabelSet, TextLabels)


def two_stage(labels: Surest, student: Surest, *, keep: float, add: float, by_class: bool) -> Surest:
    """The training set of the second stage of Shi et al. 2025 (2503.04249): kept weak labels and the student's new ones.

    The supervisor's surest rows keep its labels (set A, on which the first student was trained). The others were labelled
    anew by that student, and those of which it is surest come back with its labels (set B). Certainty is self-consistency of
    sampled answers, as in the paper, where labels are solutions; over fixed choices it is the probability.

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
    return kept.join(student.subset(most_confident(student, add, by_class)))


def prompted(task: HarnessTask, weak: TextLabels, shots: int, style: PromptStyle, lm: LM) -> list[Any]:
    """Each row's prompt with its settings of generation, behind solutions of other rows: those that are surest.

    A row that is among them itself is shown the next one in its place.

    Args:
        task: renders rows and solutions.
        weak: the solutions.
        shots: how many of them a prompt holds; fewer where there are no more rows.
        style: how to prompt, with that number of shots.
        lm: whose chat template.
    """
    surest = np.lexsort(-weak.confidence.T[::-1])[: shots + 1].tolist()
    docs = task.docs_of(weak.row_id)

    def behind(rows: list[int]) -> HarnessTask:
        return task.with_shots([docs[i] for i in rows], [weak.solution[i] for i in rows])

    common = behind(surest[:shots])
    own = {row: behind([i for i in surest if i != row]) for row in surest[:shots]}
    found = []
    for row, doc in enumerate(rendering(docs)):
        (request,) = own.get(row, common).requests([doc], style, lm)
        found.append(request.args)
    return found


def agreeing(weak: TextLabels, strong: TextLabels, reader: AnswerReader, take: Literal["weak", "strong"]) -> TextLabels:
    """The rows on which the supervisor and the strong model, prompted with its solutions, come to the same answer.

    Stage I of Yang et al. 2024 (2407.13647): of the weak data and the strong model's in-context data (weak ICL) those rows
    are kept whose final answers are the same. The paper trains on the supervisor's solutions of these, on the strong
    model's, or on both.

    Args:
        weak: the supervisor's solutions.
        strong: the strong model's; rows without one are left out.
        reader: how two answers are compared.
        take: whose solutions are learnt.

    Raises:
        UserError: they agree on no row.
    """
    place = {i: row for row, i in enumerate(strong.row_id)}
    same = [
        i in place and reader.equal(said, strong.answer[place[i]]) for i, said in zip(weak.row_id, weak.answer, strict=True)
    ]
    kept = weak.subset(np.array(same, dtype=bool))
    if not len(kept):
        raise UserError(
            f"agree: on none of {len(weak)} rows does the strong model, prompted with the supervisor's solutions, come to "
            "its answer; there is nothing to learn. Use more shots (method_args.agree.shots), or another method."
        )
    return kept if take == "weak" else strong.take([place[i] for i in kept.row_id])
