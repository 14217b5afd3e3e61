"""What is done to labels before a trainer sees them: LabelSet -> LabelSet, seeded, without a model.

An arm of an experiment = one of `ARM_OPS` + a trainer; a method of the student may put some of `METHOD_OPS` in between (see
`trainers.methods`). Operations that need a model are in `trainers.relabel` and `trainers.unsupervised`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import numpy as np
from pydantic import Field

from trainers.labels import Array, LabelSet, gold_labels
from trainers.registry import Registry

LabelOp = Callable[..., LabelSet]
ARM_OPS: Registry[LabelOp] = Registry()
METHOD_OPS: Registry[LabelOp] = Registry()
WITHOUT_TEACHER: Registry[LabelOp] = Registry()
"""Of the arms those that need only the rows: they don't depend on the weak supervisor."""


# ---- arms -----------------------------------------------------------------------------------------------------------


@ARM_OPS.entry
def student(labels: LabelSet, rng: np.random.Generator) -> LabelSet:
    """The labels as they are."""
    return labels


@ARM_OPS.entry
@WITHOUT_TEACHER.entry
def ceiling(labels: LabelSet, rng: np.random.Generator) -> LabelSet:
    """The gold labels of the same rows."""
    return gold_labels(labels.row_id, labels.gold.tolist(), labels.soft.shape[1])


@ARM_OPS.entry
@WITHOUT_TEACHER.entry
def ceiling_full(labels: LabelSet, rng: np.random.Generator) -> LabelSet:
    """The gold labels of all rows, the weak supervisor's too."""
    return ceiling(labels, rng)


@ARM_OPS.entry
@WITHOUT_TEACHER.entry
def random_labels(labels: LabelSet, rng: np.random.Generator) -> LabelSet:
    """A uniformly random choice for each row: what training on this many examples does without any information."""
    choices = labels.soft.shape[1]
    return labels.with_soft(np.eye(choices)[rng.integers(choices, size=len(labels))])


@ARM_OPS.entry
def permuted_labels(labels: LabelSet, rng: np.random.Generator) -> LabelSet:
    """The weak labels dealt out to other rows: their marginal distribution without their information."""
    return labels.with_soft(labels.soft[rng.permutation(len(labels))])


@ARM_OPS.entry
def noise_matched(labels: LabelSet, rng: np.random.Generator) -> LabelSet:
    """The weak labels dealt out anew among the rows of each gold class: as wrong and as sure, but not systematically.

    That draws errors from the weak supervisor's confusion matrix without replacement: the matrix, and with it the accuracy
    and the class priors, stay exactly what they were; only which row of a class is mistaken is left to chance.
    """
    soft = labels.soft.copy()
    for gold in np.unique(labels.gold):
        rows = np.flatnonzero(labels.gold == gold)
        soft[rows] = labels.soft[rng.permutation(rows)]
    return labels.with_soft(soft)


# ---- methods --------------------------------------------------------------------------------------------------------


@METHOD_OPS.entry
def harden(labels: LabelSet, rng: np.random.Generator) -> LabelSet:
    """All weight on the most probable choice: cross-entropy with hard labels."""
    return labels.hardened()


def most_confident(labels: LabelSet, keep: float, by_class: bool) -> Array:
    """Which rows a confidence filter keeps: a mask, shape [rows].

    Args:
        labels: with soft labels; the confidence of a row is its largest probability. Ties go to the earlier row.
        keep: share of the rows, rounded up.
        by_class: take that share within each predicted class, so that the class shares stay.
    """
    confidence, hard = labels.soft.max(axis=1), labels.hard
    groups = [np.flatnonzero(hard == c) for c in np.unique(hard)] if by_class else [np.arange(len(labels))]
    mask = np.zeros(len(labels), dtype=bool)
    for rows in groups:
        order = rows[np.argsort(-confidence[rows], kind="stable")]
        mask[order[: int(np.ceil(keep * len(rows) - 1e-9))]] = True
    return mask


@METHOD_OPS.named("filter")
def confidence_filter(
    labels: LabelSet, rng: np.random.Generator, *, keep: Annotated[float, Field(gt=0, le=1)] = 0.5, by_class: bool = True
) -> LabelSet:
    """Only the rows of which the supervisor is surest.

    Args:
        labels: with soft labels.
        rng: not used.
        keep: share of the rows that is kept, the most confident first.
        by_class: keep that share of each labelled class, so that the class shares stay; false: of all rows together.
    """
    return labels.subset(most_confident(labels, keep, by_class))


@METHOD_OPS.entry
def balance(labels: LabelSet, rng: np.random.Generator) -> LabelSet:
    """As many rows of each labelled class as the rarest has: rows of the commoner ones are left out at random."""
    hard = labels.hard
    classes, counts = np.unique(hard, return_counts=True)
    mask = np.zeros(len(labels), dtype=bool)
    for c in classes:
        mask[rng.choice(np.flatnonzero(hard == c), size=counts.min(), replace=False)] = True
    return labels.subset(mask)


LABEL_OPS: Registry[LabelOp] = Registry(ARM_OPS | METHOD_OPS)
