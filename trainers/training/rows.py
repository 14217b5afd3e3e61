"""Training rows with their labels, and scores as a table, where rows may have different numbers of choices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from trainers.labels.kinds import AnyLabels
from trainers.training.losses import ABSENT

Row = dict[str, Any]
"""What a trainer needs of a row, with ``targets``, ``gold`` where it has choices, and, where rows differ in them, the number
of its ``choices`` and its ``weight`` in the loss."""


def label_columns(labels: AnyLabels, gold: Sequence[int] | None) -> list[Row]:
    """The part of training rows that every trainer has: see `Row`.

    Args:
        labels: what is learnt.
        gold: the right choice of each row, for the curve alone; None for texts, of which there is no other to choose.
    """
    rows: list[Row] = [{"targets": target} for target in labels.soft.tolist()]
    for row, right in zip(rows, gold or (), strict=gold is not None):
        row["gold"] = right
    for name, values in (("choices", labels.sizes), ("weight", labels.weight)):
        for row, value in zip(rows, () if values is None else values.tolist(), strict=values is not None):
            row[name] = value
    return rows


def collated(key: str, rows: Sequence[Row]) -> dict[str, Any]:
    """A batch of rows: what is under `key`, which the model reads, and the label distributions twice.

    ``targets`` are for the loss, ``learnt`` for the trainer's own function.
    """
    targets = torch.tensor([row["targets"] for row in rows])
    return {key: [row[key] for row in rows], "targets": targets, "learnt": targets}


Collate = Callable[[Sequence[Row]], dict[str, Any]]


def weighted(collate: Collate, rows: Sequence[Row]) -> dict[str, Any]:
    """A batch with its rows' weights in the loss, where rows have them."""
    batch = collate(rows)
    return batch | {"weight": torch.tensor([row["weight"] for row in rows])} if "weight" in rows[0] else batch


def by_row(scores: torch.Tensor, targets: torch.Tensor, sizes: Sequence[int], fill: float) -> torch.Tensor:
    """Scores of all choices, one row's after the other's, as a table.

    Args:
        scores: shape [sum of sizes].
        targets: label distributions, shape [rows, choices]; the table gets their shape.
        sizes: choices of each row.
        fill: what stands behind a row's last choice.
    """
    present = torch.arange(targets.shape[1]) < torch.tensor(sizes)[:, None]
    table = torch.full(targets.shape, fill, dtype=scores.dtype, device=scores.device)
    return table.masked_scatter(present.to(scores.device), scores)


def normalised(scores: torch.Tensor, targets: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """Log-probabilities over each row's own choices, of scores as in `by_row`; shape [rows, choices]."""
    logprobs = by_row(scores, targets, sizes, -torch.inf).log_softmax(dim=-1)
    return logprobs.masked_fill(logprobs == -torch.inf, ABSENT)
