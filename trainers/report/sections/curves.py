"""Learning curves: training loss, and accuracy on held-back rows, by optimizer step."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from trainers.report.blocks import Block, Figure, Note, Table
from trainers.report.collected import CEILINGS, Collected, about
from trainers.report.entries import OfArm, OfModel
from trainers.report.figures import Drawing, clean, colour_of, legend_above, marker_of
from trainers.report.section import Report, Section, section
from trainers.report.sections.accuracy import Accuracy
from trainers.report.text import group_title
from trainers.steps.fit import Fit
from trainers.training.course import HeldBack, held_back_points, late_change

SLIGHT = 0.01
"""Share of a held-back loss; a smaller change over the last quarter of a training is none."""
Trend = Literal["falling", "level", "rising"]


@dataclass(frozen=True, kw_only=True)
class Curve(OfModel):
    """A training's course: points with step and loss, and held-back rows where there are any."""

    points: list[dict[str, float | None]]
    """Steps of the optimizer with loss (nats), learning rate, and accuracy on held-back rows."""


@dataclass(frozen=True, kw_only=True)
class Ending(OfArm):
    """How an arm's trainings ended, by the rows of its own labels that they held back."""

    rows: int
    """Held-back rows of a training, the fewest over its seeds."""
    loss: float
    """Their cross-entropy at the end, nats a row, mean over seeds."""
    change: float
    """By how much it changed over the last quarter of the training, nats a row, mean over seeds."""
    error: float | None
    """Standard error of that over seeds; null for one seed."""
    trend: Trend
    """falling or rising where the change is more than a hundredth of the loss and more than its standard error."""


def ending(group: tuple[str, str | None], courses: Mapping[int | None, Sequence[HeldBack]]) -> Ending | None:
    """The end of the trainings of an arm and method; None without two points at which held-back rows were scored.

    Args:
        group: arm and method.
        courses: those points, by seed.
    """
    known = {seed: points for seed, points in courses.items() if len(points) > 1}
    if not known:
        return None
    changes = [change for points in known.values() if (change := late_change(points)) is not None]
    loss, change = statistics.fmean(points[-1].loss for points in known.values()), statistics.fmean(changes)
    error = statistics.stdev(changes) / math.sqrt(len(changes)) if len(changes) > 1 else None
    clear = abs(change) > max(SLIGHT * loss, error or 0.0)
    return Ending(
        arm=group[0],
        method=group[1],
        seeds=list(known),
        rows=min(points[-1].rows for points in known.values()),
        loss=loss,
        change=change,
        error=error,
        trend="level" if not clear else "falling" if change < 0 else "rising",
    )


@section
@dataclass(frozen=True, kw_only=True)
class Curves(Section):
    """Of everything that was trained."""

    title = "Learning curves"
    link = "Curves"
    place = 60

    curves: list[Curve]
    endings: list[Ending]
    """Of the arms whose trainings scored held-back rows at two steps or more."""

    @classmethod
    def form(cls, collected: Collected) -> Curves:
        """From the trainings' curves.json."""
        run, curves = collected.run, []
        for step in run.layout.steps.values():
            if isinstance(step, Fit) and step.arm and (path := run.stages[step.name].file("curves.json")):
                curves.append(Curve(**about(step.arm), points=json.loads(path.read_text(encoding="utf-8"))))
        courses: dict[tuple[str, str | None], dict[int | None, Sequence[HeldBack]]] = {}
        for curve in curves:
            courses.setdefault(curve.group, {})[curve.seed] = held_back_points(curve.points)
        endings = [found for group, own in courses.items() if (found := ending(group, own)) is not None]
        return cls(curves=curves, endings=endings)

    def terminal(self, report: Report) -> Iterator[Block]:
        """Whether the ceiling is one."""
        yield from (Note(told, "verdict") for told in self.verdicts())

    def verdicts(self) -> Iterator[str]:
        """A sentence for every ceiling whose training ended too early or too late."""
        for end in self.endings:
            if end.arm in CEILINGS and end.trend != "level":
                change = f"({_changed(end)} nats over the last quarter)"
                yield f"{group_title(end.group)}: its held-back loss was {CONSEQUENCE[end.trend]} {change}."

    def page(self, report: Report) -> Iterator[Block]:
        """The figure, then how the trainings ended."""
        if self.curves:
            yield Figure(self.figure(report))
            yield Note(
                "Held-back rows are part of the transfer half; the losses are those of each arm's own labels, so "
                "their levels don't compare."
            )
        if self.endings:
            rows = [(group_title(e.group), f"{e.rows}", f"{e.loss:.3f}", _changed(e), e.trend) for e in self.endings]
            yield Table(
                ("arm", "held-back rows", "loss at the end", "change in the last quarter", "trend"), rows, left=("trend",)
            )
            yield Note(
                "Cross-entropy to the held-back rows of an arm's own labels, nats a row (± standard error over seeds). A "
                "learning rate that falls to 0 levels every curve in the end, so that only more epochs show whether more "
                "can be learnt (`tune: {strong.epochs: [...]}`)."
            )
            yield from self.terminal(report)

    def figures(self, report: Report) -> Mapping[str, Drawing | None]:
        """The learning curves."""
        return {"curves": self.figure(report) if self.curves else None}

    def figure(self, report: Report) -> Drawing | None:
        """Each arm's mean over seeds, its seeds behind it."""
        groups = list(dict.fromkeys(curve.group for curve in self.curves))
        arms = report.of(Accuracy).arm_means

        def draw(figure: Any) -> None:
            upper, lower = figure.subplots(2, 1)
            for group in groups:
                own = [curve.points for curve in self.curves if curve.group == group]
                look = {"color": colour_of(group, arms), "label": group_title(group)}
                _lines(upper, [_smooth(_course(points, "loss")) for points in own], look)
                held = [[(step, 100 * value) for step, value in _course(points, "eval_accuracy")] for points in own]
                _lines(lower, held, {**look, "marker": marker_of(group, arms), "markersize": 4})
            upper.set_ylabel("training loss, nats\n(mean of 5 steps)")
            lower.set_ylabel("accuracy on held-back\nrows (gold), %")
            for axes in (upper, lower):
                clean(axes)
                axes.set_xlabel("optimizer step")
            legend_above(figure, upper)

        return Drawing(draw, 4.6 + 0.11 * len(groups), "training loss and held-back accuracy by step")


CONSEQUENCE = {
    "falling": "still falling at the end: no ceiling yet",
    "rising": "rising at the end: it over-fits; fewer epochs, or checkpoint: holdout_loss, make a better ceiling",
}


def _changed(end: Ending) -> str:
    return f"{end.change:+.3f}" + ("" if end.error is None else f" ± {end.error:.3f}")


Course = list[tuple[float, float]]


def _course(points: Sequence[Mapping[str, float | None]], what: str) -> Course:
    return [(point["step"] or 0, value) for point in points if (value := point.get(what)) is not None]


def _lines(axes: Any, lines: Sequence[Course], look: Mapping[str, Any]) -> None:
    """The mean of several lines where they share steps, and the lines themselves thin behind it."""
    known = [dict(line) for line in lines if line]
    if not known:
        return
    if len(known) > 1:
        for line in known:
            axes.plot(list(line), list(line.values()), color=look["color"], linewidth=0.7, alpha=0.3)
    steps = sorted(set.intersection(*(set(line) for line in known)))
    axes.plot(steps, [sum(line[s] for line in known) / len(known) for s in steps], linewidth=1.6, **look)


def _smooth(points: Course, width: int = 5) -> Course:
    values = [value for _, value in points]
    windows = [values[max(0, i - width + 1) : i + 1] for i in range(len(values))]
    return [(step, sum(window) / len(window)) for (step, _), window in zip(points, windows, strict=True)]
