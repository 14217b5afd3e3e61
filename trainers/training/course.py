"""What a training's curve (curves.json) says of the rows that it held back: what its model is worth, and how it ended."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Checkpoint = Literal["last", "holdout_loss", "holdout_agreement"]
Points = Sequence[Mapping[str, float | None]]
LAST_PART = 0.25
"""Share of a training's steps over which its end is judged."""


@dataclass(frozen=True)
class HeldBack:
    """A model on the rows that its training held back."""

    step: int
    """The optimizer step after which it was scored; of the last point at most four before the end."""
    rows: int
    loss: float
    """Cross-entropy to the rows' own labels, nats a row."""
    agreement: float | None
    """Share of the rows whose likeliest choice it gives; None for texts."""


def read_points(path: Path) -> Points:
    """The points of a curves.json."""
    points: Points = json.loads(path.read_text(encoding="utf-8"))
    return points


def held_back_points(points: Points) -> list[HeldBack]:
    """Those at which rows that were held back were scored, one a step; of accuracy against gold nothing is read."""
    found: dict[int, HeldBack] = {}
    for point in points:
        loss, step = point.get("eval_loss"), int(point["step"] or 0)
        if loss is not None:
            found[step] = HeldBack(step, int(point.get("eval_rows") or 0), loss, point.get("eval_agreement"))
    return list(found.values())


def kept(points: Sequence[HeldBack], checkpoint: Checkpoint = "last") -> HeldBack | None:
    """The point whose model a training leaves under a setting of `checkpoint`; None without any."""
    if not points:
        return None
    if checkpoint == "holdout_loss":
        return min(points, key=lambda point: point.loss)
    if checkpoint == "holdout_agreement":
        return max(points, key=lambda point: point.agreement or 0.0)
    return points[-1]


def late_change(points: Sequence[HeldBack]) -> float | None:
    """By how much the held-back loss changes over the last quarter of a training, nats a row; None of fewer than two points.

    The slope of a line through the points of that quarter, or through the last two, by least squares.
    """
    if len(points) < 2:
        return None
    last = points[-1].step
    early = sum(point.step < (1 - LAST_PART) * last for point in points)
    late = points[min(early, len(points) - 2) :]
    slope: float = statistics.linear_regression([p.step for p in late], [p.loss for p in late]).slope
    return slope * LAST_PART * last
