"""Learning curves: training loss, and accuracy on held-back rows, by optimizer step."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainers.report.blocks import Block, Figure, Note
from trainers.report.collected import Collected, about
from trainers.report.entries import OfModel
from trainers.report.figures import Drawing, clean, colour_of, legend_above, marker_of
from trainers.report.section import Report, Section, section
from trainers.report.sections.accuracy import Accuracy
from trainers.report.text import group_title
from trainers.steps.fit import Fit


@dataclass(frozen=True, kw_only=True)
class Curve(OfModel):
    """A training's course: points with step and loss, and held-back rows where there are any."""

    points: list[dict[str, float | None]]
    """Steps of the optimizer with loss (nats), learning rate, and accuracy on held-back rows."""


@section
@dataclass(frozen=True, kw_only=True)
class Curves(Section):
    """Of everything that was trained."""

    title = "Learning curves"
    link = "Curves"
    place = 60

    curves: list[Curve]

    @classmethod
    def form(cls, collected: Collected) -> Curves:
        """From the trainings' curves.json."""
        run, curves = collected.run, []
        for step in run.layout.steps.values():
            if isinstance(step, Fit) and step.arm and (path := run.stages[step.name].file("curves.json")):
                curves.append(Curve(**about(step.arm), points=json.loads(path.read_text(encoding="utf-8"))))
        return cls(curves=curves)

    def page(self, report: Report) -> Iterator[Block]:
        """The figure."""
        if self.curves:
            yield Figure(self.figure(report))
            yield Note(
                "Held-back rows are part of the transfer half; the losses are those of each arm's own labels, so "
                "their levels don't compare."
            )

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
