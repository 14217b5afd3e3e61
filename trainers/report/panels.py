"""Accuracy between weak supervisor and ceiling, PGR below, as in figure 3 of Burns et al. (2023): by method or by run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainers.labels.arms import ARMS
from trainers.report.entries import Interval
from trainers.report.figures import Drawing, clean, legend_above

LEVELS = ("weak", "zero_shot", "ceiling")


@dataclass(frozen=True)
class Point:
    """A student."""

    title: str
    acc: float
    ci95: Interval
    pgr: float | None
    """None where it is undefined."""
    pgr_ci95: Interval | None
    colour: str
    marker: str


@dataclass(frozen=True)
class Column:
    """A place on the x axis."""

    label: str
    size: int | None
    """Parameters of the strong model."""
    levels: Mapping[str, float]
    """Accuracy of `LEVELS`, as far as they are there."""
    points: Sequence[Point]


def recovered_panels(columns: Sequence[Column], what: str) -> Drawing | None:
    """The figure; None with fewer than two columns.

    Args:
        columns: places on the x axis, which is the strong model's size where all sizes are known.
        what: the name of that axis where it is no size.
    """
    if len(columns) < 2:
        return None
    sized = all(c.size is not None for c in columns)
    ordered = sorted(columns, key=lambda c: c.size or 0) if sized else list(columns)
    places = [(c.size or 0) / 1e6 for c in ordered] if sized else list(map(float, range(len(ordered))))
    # A column between two others keeps its points apart without leaving it.
    titles = list(dict.fromkeys(p.title for c in ordered for p in c.points))

    def shift(place: float, title: str) -> float:
        offset = (titles.index(title) - (len(titles) - 1) / 2) * 0.12 if len(ordered[0].points) > 1 else 0.0
        return place * 2 ** (offset / 4) if sized else place + offset

    def draw(figure: Any) -> None:
        upper, lower = figure.subplots(2, 1, sharex=True)
        for level in LEVELS:
            if any(level in c.levels for c in ordered):
                values = [100 * c.levels.get(level, float("nan")) for c in ordered]
                look = {"color": ARMS[level].colour, "label": level, "linewidth": 1.3, "marker": "_", "markersize": 9}
                upper.plot(places, values, "--", **look)
        for place, column in zip(places, ordered, strict=True):
            for point in column.points:
                _draw_point(upper, lower, shift(place, point.title), point)
        for y, name in ((0, "weak"), (1, "ceiling")):
            lower.axhline(y, color=ARMS[name].colour, linestyle=":", linewidth=1)
        upper.set_ylabel("accuracy, %")
        lower.set_ylabel("PGR (0 weak, 1 ceiling)")
        if sized:
            lower.set_xscale("log")
            lower.set_xticks(places, [f"{p:,.3g}" for p in places])
            lower.minorticks_off()
            lower.set_xlabel("parameters of the strong model, millions")
        else:
            _name_columns(lower, [c.label for c in ordered], what)
        for axes in (upper, lower):
            clean(axes)
        legend_above(figure, upper, 3)

    return Drawing(draw, 5.2, f"accuracy and PGR by {what if not sized else 'size of the strong model'}")


def _name_columns(axes: Any, labels: Sequence[str], what: str) -> None:
    crowded = max(map(len, labels)) * len(labels) > 44
    turn = {"rotation": 35, "ha": "right"} if crowded else {}
    axes.set_xticks(range(len(labels)), labels, **turn)
    axes.set_xlim(-0.5, len(labels) - 0.5)
    axes.set_xlabel(what)


def _draw_point(upper: Any, lower: Any, x: float, point: Point) -> None:
    look = {"color": point.colour}
    upper.plot([x, x], [100 * (v or 0) for v in point.ci95], linewidth=2, **look)
    upper.plot(x, 100 * point.acc, point.marker, label=point.title, markersize=7, **look)
    if point.pgr is None or point.pgr_ci95 is None:
        lower.annotate("undefined", (x, 0.5), rotation=90, ha="center", va="center", fontsize=9, color=point.colour)
        return
    ends = [point.pgr if end is None else end for end in point.pgr_ci95]
    lower.plot([x, x], ends, linewidth=2, **look)
    lower.plot(x, point.pgr, point.marker, markersize=7, **look)
