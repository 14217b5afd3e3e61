"""What a method of the student does to labels before a trainer sees them: labels -> labels, seeded, without a model.

A new operation is a new function with `@label_op` above it; its keyword arguments are its settings in an experiment file
(`method_args`), and the type of its labels says which kinds it takes: `LabelSet`, `TextLabels`, or `AnyLabels`.
Operations that need a model are in `trainers.labels.relabel` and `trainers.labels.unsupervised`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from trainers.labels.kinds import AnyLabels
from trainers.labels.label_set import Array, LabelSet
from trainers.registry import Registry
from w2s_tasks.errors import UserError
from w2s_tasks.scoring.calibration import batch_calibrated

LabelOp = Callable[..., Any]
"""Labels of a kind to labels of that kind."""
METHOD_OPS: Registry[LabelOp] = Registry("label operation", space="method")
label_op = METHOD_OPS.entry
"""Registers an operation under its function's name; a decorator."""
NEEDS_CONFIDENCE: Registry[Any] = Registry("mark of an operation")
"""Operations that rank rows by the supervisor's probability, so that hard labels are of no use to them."""
needs_confidence = NEEDS_CONFIDENCE.entry
"""Marks such an operation; a decorator."""
NEEDS_GOLD: Registry[Any] = Registry("mark of an operation")
"""Operations that are given the rows' gold labels, shape [n], as a third argument; the report says so of their students."""
needs_gold = NEEDS_GOLD.entry
"""Marks such an operation; a decorator."""


@label_op
def harden(labels: LabelSet, rng: np.random.Generator) -> LabelSet:
    """All weight on the most probable choice: cross-entropy with hard labels."""
    return labels.hardened()


def most_confident(labels: AnyLabels, keep: float, by_class: bool) -> Array:
    """Which rows a confidence filter keeps: a mask, shape [rows].

    Args:
        labels: with soft labels, whose confidence is a row's largest probability; or solutions, whose confidence is
            self-consistency, then log-probability. Ties go to the earlier row.
        keep: share of the rows, rounded up.
        by_class: take that share within each predicted class, so that the class shares stay; of all rows together where
            they have different numbers of choices, or texts, which are no classes.
    """
    mask = np.zeros(len(labels), dtype=bool)
    for rows in labels.groups(by_class):
        order = rows[np.lexsort(-labels.confidence[rows].T[::-1])]
        mask[order[: int(np.ceil(keep * len(rows) - 1e-9))]] = True
    return mask


@NEEDS_CONFIDENCE.named("filter")
@METHOD_OPS.named("filter")
def confidence_filter(
    labels: AnyLabels, rng: np.random.Generator, *, keep: Annotated[float, Field(gt=0, le=1)] = 0.5, by_class: bool = True
) -> AnyLabels:
    """Only the rows of which the supervisor is surest.

    Args:
        labels: with soft labels, or solutions.
        rng: not used.
        keep: share of the rows that is kept, the most confident first.
        by_class: keep that share of each labelled class, so that the class shares stay; false: of all rows together.
    """
    return labels.subset(most_confident(labels, keep, by_class))


@NEEDS_CONFIDENCE.named("calibrate")
@label_op
def calibrate(labels: LabelSet, rng: np.random.Generator) -> LabelSet:
    """The labels with the labeller's preference for some classes taken out: each is divided by its mean over the rows.

    Batch calibration (Zhou et al. 2023, arXiv 2309.17249); it takes classes to be about equally frequent.

    Raises:
        UserError: rows have different numbers of choices.
    """
    _need_classes(labels, "calibrate")
    with np.errstate(divide="ignore"):
        return labels.with_soft(np.exp(batch_calibrated(np.log(labels.soft))))


@label_op
def balance(labels: LabelSet, rng: np.random.Generator) -> LabelSet:
    """As many rows of each labelled class as the rarest has: rows of the commoner ones are left out at random.

    Raises:
        UserError: rows have different numbers of choices.
    """
    _need_classes(labels, "balance")
    hard = labels.hard
    classes, counts = np.unique(hard, return_counts=True)
    mask = np.zeros(len(labels), dtype=bool)
    for c in classes:
        mask[rng.choice(np.flatnonzero(hard == c), size=counts.min(), replace=False)] = True
    return labels.subset(mask)


@needs_gold
@label_op
def gold(
    labels: LabelSet,
    rng: np.random.Generator,
    gold: Array,
    *,
    rows: Annotated[int, Field(ge=1)] = 64,
    how: Literal["random", "uncertain"] = "random",
) -> LabelSet:
    """A budget of gold labels: some rows get theirs in place of the supervisor's.

    Args:
        labels: of all rows.
        rng: draws them.
        gold: the right choice of each row, shape [n].
        rows: how many; all where there are no more.
        how: random; uncertain: those of which the supervisor is least sure (its largest probability is smallest).
    """
    if how == "uncertain":
        chosen = np.argsort(labels.confidence[:, 0], kind="stable")[:rows]
    else:
        chosen = rng.permutation(len(labels))[:rows]
    soft = labels.soft.copy()
    soft[chosen] = np.eye(soft.shape[1])[gold[chosen]]
    return labels.with_soft(soft)


def _need_classes(labels: LabelSet, name: str) -> None:
    if labels.sizes is not None:
        raise UserError(f"methods: {name} needs classes, but the rows of this task have choices of their own.")
