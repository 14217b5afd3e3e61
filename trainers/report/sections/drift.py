"""Format drift apart from ethics drift: a change in accuracy as the sum of what happened to the answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trainers.report.blocks import Aside, Block, Cell, Figure, Note, Row, Table
from trainers.report.collected import Collected
from trainers.report.entries import Objective, OfArm, OfTask
from trainers.report.figures import NEUTRAL, Drawing, clean, legend_above
from trainers.report.section import Report, Section, section
from trainers.report.sections.discrimination import Auroc
from trainers.report.sections.safety import Safety, pairs
from trainers.report.text import Named, fraction, group_title, on_split, percent, points, points_interval
from w2s_tasks.results import drift
from w2s_tasks.results.stats import Difference

PARTS = {"unparsed": "#999999", "prior": "#e69f00", "errors": "#0072b2"}
PART_NAMES = {"unparsed": "no longer parses", "prior": "class shares shifted", "errors": "other answers given"}


@dataclass(frozen=True, kw_only=True)
class ArmDrift(drift.Drift, OfTask, OfArm):
    """An arm's change on one task and its parts; ``prior`` is null where answers have no classes (ranked pairs)."""

    objective: Objective
    """What the arm's training optimised: choices or language_model."""


@section
@dataclass(frozen=True, kw_only=True)
class Drift(Section):
    """Changes of accuracy, split."""

    title = "Format drift apart from ethics drift"
    link = "Drift"
    place = 40

    drift: list[ArmDrift]

    @classmethod
    def form(cls, collected: Collected) -> Drift:
        """Every group against the untuned model, on every safety task."""
        entries = []
        for group, own, reference in pairs(collected, "to_zero_shot"):
            for task, scores in own[0].items() if own else ():
                if all(task in one for one in reference):
                    split = drift.drift([r[task] for r in reference], [o[task] for o in own])
                    arm = group.arms[0]
                    about = {**group.about, **collected.on_task(arm, scores), "objective": collected.objective(arm)}
                    entries.append(ArmDrift(**about, **vars(split)))
        return cls(drift=entries)

    def page(self, report: Report) -> Iterator[Block]:
        """The mean over tasks drawn, every task on request."""
        if not self.drift:
            return
        yield Figure(
            self.figure(report),
            "The change in accuracy to the untuned model is the sum of three parts: answers that parse only before "
            "or after; a shift of the class shares; and exchanges that leave the shares alone.",
        )
        columns = ("arm", "task", "split", "scored by", "objective", "change", "unparsed", "class shift", "other answers")
        shares = ("class shares before → after, %", "balanced accuracy, %", "AUROC")
        areas = {(e.task, e.group): e.auroc for e in report.of(Auroc).discrimination}
        rows = [(*_row(entry), _areas(entry, areas)) for entry in self.drift]
        yield Aside("by task", [Table((*columns, *shares), rows, left=("task",))])
        yield Note(
            "Points, with 95 % intervals. A log-likelihood score always has an answer, so nothing is unparsed "
            "there. The objective is what training optimised: a loss over the choices alone never teaches a format "
            "of text. What each part can show: unparsed answers are format, not judgement; a shift of the shares is "
            "a preference, and hides what a model that collapsed to one class still knows, or no longer knows; "
            "exchanges are answers that got worse, or better, at the model's own threshold. AUROC sees what the "
            "shift hides: where it is lower after than before, questions are told apart worse at every threshold."
        )

    def figures(self, report: Report) -> Mapping[str, Drawing | None]:
        """The parts of each change."""
        return {"drift": self.figure(report)}

    def figure(self, report: Report) -> Drawing | None:
        """The change in accuracy to the untuned model, a mean over the subtasks, split into its three parts."""
        tasks = report.of(Safety).tasks()
        averaged = [e for e in self.drift if tasks[e.task].ideal is None]
        rows = list(dict.fromkeys((e.group, e.split, e.mode) for e in averaged))
        if not rows:
            return None

        def mean(row: Any, part: str) -> float:
            chosen = [getattr(e, part) for e in averaged if (e.group, e.split, e.mode) == row]
            return 100 * sum(c.value if c is not None else 0.0 for c in chosen) / len(chosen)

        def draw(figure: Any) -> None:
            axes = figure.subplots()
            clean(axes)
            axes.axvline(0, color=NEUTRAL, linewidth=1)
            for y, row in enumerate(reversed(rows)):
                ends: dict[bool, float] = {True: 0.0, False: 0.0}
                for part, colour in PARTS.items():
                    value = mean(row, part)
                    axes.barh(y, value, left=ends[value >= 0], height=0.6, color=colour, label=PART_NAMES[part])
                    ends[value >= 0] += value
                axes.plot(mean(row, "total"), y, "D", color="#000000", markersize=5, label="change in accuracy")
            names = [f"{group_title(group)}, {on_split(split, mode)}" for group, split, mode in rows]
            axes.set_yticks(range(len(rows)), names[::-1])
            axes.set_xlabel("change in accuracy, points\n(to the untuned model, mean over subtasks)")
            axes.margins(x=0.1)
            legend_above(figure, axes)

        return Drawing(draw, 1.5 + 0.34 * len(rows), "change in accuracy split into three parts")


def _row(entry: ArmDrift) -> Row:
    parts = [_change(part) for part in (entry.total, entry.unparsed, entry.prior, entry.errors)]
    shares, balanced = (
        (entry.before.class_share, entry.after.class_share),
        (entry.before.balanced_acc, entry.after.balanced_acc),
    )
    told = "–" if None in shares else " → ".join("/".join(f"{100 * x:.0f}" for x in share or ()) for share in shares)
    accuracies = "–" if None in balanced else " → ".join(percent(value) for value in balanced)
    return (
        *(group_title(entry.group), entry.subtask, entry.split, entry.mode, entry.objective or "–"),
        *parts,
        told,
        accuracies,
    )


def _areas(entry: ArmDrift, areas: Mapping[tuple[str, Named], float]) -> str:
    values = (areas.get((entry.task, ("zero_shot", None))), areas.get((entry.task, entry.group)))
    return "–" if None in values else " → ".join(map(fraction, values))


def _change(part: Difference | None) -> Cell | str:
    return "–" if part is None else Cell(points(part.value), points_interval(part.low, part.high))
