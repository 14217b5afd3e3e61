"""What an arm does to the weak labels before a trainer sees them: LabelSet -> LabelSet, seeded.

An arm of an experiment = one of these operations + a trainer.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from trainers.labels import LabelSet, gold_labels

LabelOp = Callable[[LabelSet, np.random.Generator], LabelSet]


def student(labels: LabelSet, rng: np.random.Generator) -> LabelSet:
    """The weak labels as they are."""
    return labels


def ceiling(labels: LabelSet, rng: np.random.Generator) -> LabelSet:
    """The gold labels of the same rows."""
    return gold_labels(labels.row_id, labels.gold.tolist(), labels.soft.shape[1])


def random_labels(labels: LabelSet, rng: np.random.Generator) -> LabelSet:
    """A uniformly random choice for each row: what training on this many examples does without any information."""
    choices = labels.soft.shape[1]
    return labels.with_soft(np.eye(choices)[rng.integers(choices, size=len(labels))])


def permuted_labels(labels: LabelSet, rng: np.random.Generator) -> LabelSet:
    """The weak labels dealt out to other rows: their marginal distribution without their information."""
    return labels.with_soft(labels.soft[rng.permutation(len(labels))])


def noise_matched(labels: LabelSet, rng: np.random.Generator) -> LabelSet:
    """Gold labels with random errors drawn from the weak supervisor's confusion matrix: as wrong, but not systematically."""
    choices = labels.soft.shape[1]
    table = np.zeros((choices, choices))
    np.add.at(table, (labels.gold, labels.hard), 1)
    rates = np.divide(table, table.sum(1, keepdims=True), out=np.eye(choices), where=table.sum(1, keepdims=True) > 0)
    drawn = np.array([rng.choice(choices, p=rates[g]) for g in labels.gold], dtype=int)
    return labels.with_soft(np.eye(choices)[drawn])


WITHOUT_TEACHER = ("ceiling", "random_labels")
"""Operations that need only the rows: the arms that use them don't depend on the weak supervisor."""

LABEL_OPS: dict[str, LabelOp] = {
    "student": student,
    "ceiling": ceiling,
    "random_labels": random_labels,
    "permuted_labels": permuted_labels,
    "noise_matched": noise_matched,
}
