"""Labelled rows as examples in a prompt: the weak supervisor teaches without training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trainers.labels.kinds import AnyLabels
from trainers.labels.label_set import Array, LabelSet
from w2s_tasks.errors import UserError


def drawn(labels: AnyLabels, k: int, rng: np.random.Generator) -> Array:
    """The rows that are shown, their numbers, shape [k].

    Blocks of one row a labelled class, in random order, so that an even number is balanced over two classes by their labels,
    as gold shots are (`w2s_tasks.rows.fewshot`); any rows where there are no classes.

    Raises:
        UserError: there are fewer rows.
    """
    if len(labels) < k:
        raise UserError(f"{k} shots: only {len(labels)} rows have a label; ask for fewer shots, or raise split.limit.")
    groups = [rng.permutation(rows) for rows in labels.groups(by_class=True)]
    longest = max(map(len, groups))
    blocks = [rng.permutation([rows[i] for rows in groups if i < len(rows)]) for i in range(longest)]
    return np.concatenate(blocks)[:k]


def answers(labels: AnyLabels, rows: Sequence[int]) -> list[int] | list[str]:
    """What is shown as the answers of some rows: the number of the most probable choice, or the solution."""
    if isinstance(labels, LabelSet):
        return [int(choice) for choice in labels.hard[list(rows)]]
    return [labels.solution[i] for i in rows]
