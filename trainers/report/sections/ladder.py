"""Learning the format from shots: safety accuracy by the number of shots before each question."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainers.report.blocks import Block, Cell, Figure, Note, Table
from trainers.report.collected import Collected, parts_of
from trainers.report.collected import Scores as ByTask
from trainers.report.entries import Entry, Interval, Mode, OfArm
from trainers.report.figures import Drawing, clean, colour_of, legend_above, marker_of
from trainers.report.section import Report, Section, section
from trainers.report.sections.accuracy import Accuracy
from trainers.report.text import group_title, on_split, percent
from w2s_tasks.results.over_tasks import mean_level
from w2s_tasks.results.safety import stacked, subtask_of
from w2s_tasks.results.stats import mean_accuracy


@dataclass(frozen=True, kw_only=True)
class RungTask(Entry):
    """A task at one number of shots."""

    task: str
    """The task's name in lm_eval."""
    subtask: str
    """Its short name."""
    acc: float
    """Its accuracy, 0 to 1, a mean over seeds."""
    ci95: Interval
    """Its 95 % interval."""


@dataclass(frozen=True, kw_only=True)
class Rung(OfArm):
    """An arm's mean accuracy over a split's subtasks at one number of shots."""

    num_fewshot: int | None
    """Solved questions in each prompt; null for the task's own number."""
    split: str
    """Which rows: test, hard."""
    mode: Mode
    """How answers were scored."""
    acc: float
    """Mean accuracy over the subtasks, 0 to 1."""
    ci95: Interval
    """Its 95 % interval."""
    unparsed: float
    """Share of the questions without an answer that could be read, 0 to 1."""
    tasks: list[RungTask]
    """Each of the subtasks."""


@section
@dataclass(frozen=True, kw_only=True)
class Ladder(Section):
    """Empty with one number of shots."""

    title = "Learning the format from shots"
    link = "Shots"
    place = 70

    ladder: list[Rung]

    @classmethod
    def form(cls, collected: Collected) -> Ladder:
        """From the safety evaluations with every number of shots."""
        entries = []
        for shots, evaluations in collected.ladder.items() if len(collected.ladder) > 1 else ():
            for group in collected.groups(evaluations):
                per_seed = [evaluations[a] for a in group.arms]
                for split, _, tasks in parts_of(per_seed[0]):
                    mode = collected.mode(group.arms[0], per_seed[0][tasks[0]])
                    about = {**group.about, "num_fewshot": shots, "split": split, "mode": mode}
                    entries.append(Rung(**about, **_rung(per_seed, tasks)))
        return cls(ladder=entries)

    def page(self, report: Report) -> Iterator[Block]:
        """Figure and table."""
        if not self.ladder:
            return
        yield Figure(
            self.figure(report),
            "Mean accuracy over the subtasks, bars are 95 % intervals. An arm that catches up with shots had lost "
            "the format, not the judgement.",
        )
        shots = self._shots()
        rows = []
        for group, split, mode in dict.fromkeys((e.group, e.split, e.mode) for e in self.ladder):
            line = {e.num_fewshot: e for e in self.ladder if (e.group, e.split, e.mode) == (group, split, mode)}
            rows.append((group_title(group), split, mode, *(_cell(line.get(number)) for number in shots)))
        yield Table(("arm", "split", "scored by", *(f"{number} shots" for number in shots)), rows, left=("split",))
        yield Note("Accuracy in % ± half of the 95 % interval.")

    def _shots(self) -> list[int | None]:
        return sorted({e.num_fewshot for e in self.ladder}, key=lambda number: number or 0)

    def figures(self, report: Report) -> Mapping[str, Drawing | None]:
        """Accuracy by number of shots."""
        return {"shots": self.figure(report) if self.ladder else None}

    def figure(self, report: Report) -> Drawing | None:
        """Mean accuracy on the safety tasks by number of shots; below it the unparsed share where text was generated."""
        of_panel = list(dict.fromkeys((e.split, e.mode) for e in self.ladder))
        shots, groups = self._shots(), list(dict.fromkeys(e.group for e in self.ladder))
        unparsed = [key for key in of_panel if any(e.unparsed for e in self.ladder if (e.split, e.mode) == key)]
        wanted = [*((key, "acc") for key in of_panel), *((key, "unparsed") for key in unparsed)]

        def draw(figure: Any) -> None:
            panels = figure.subplots(len(wanted), 1, sharex=True, squeeze=False)[:, 0]
            for axes, (key, what) in zip(panels, wanted, strict=True):
                for k, group in enumerate(groups):
                    line = [e for e in self.ladder if e.group == group and (e.split, e.mode) == key]
                    # a little apart, so that the bars of all arms are seen
                    shift = 0.5 * (k - (len(groups) - 1) / 2) / len(groups)
                    _line(axes, line, [shots.index(e.num_fewshot) + shift for e in line], report, what)
                axes.set_ylabel(f"{'accuracy' if what == 'acc' else 'unparsed'}\n{on_split(*key)}, %")
                clean(axes)
            panels[-1].set_xticks(range(len(shots)), [str(number) for number in shots])
            panels[-1].set_xlabel("shots before each question (num_fewshot)")
            legend_above(figure, panels[0])

        return Drawing(draw, 1.2 + 2.0 * len(wanted) + 0.1 * len(groups), "safety accuracy by number of shots")


def _cell(rung: Rung | None) -> Cell | str:
    if rung is None:
        return "–"
    half = 50 * ((rung.ci95[1] or 0) - (rung.ci95[0] or 0))
    unparsed = f", {percent(rung.unparsed)} unparsed" if rung.unparsed else ""
    return Cell(percent(rung.acc), f"± {half:.1f}{unparsed}")


def _line(axes: Any, line: Sequence[Rung], places: Sequence[float], report: Report, what: str) -> None:
    if not line:
        return
    arms, group = report.of(Accuracy).arm_means, line[0].group
    values = [100 * getattr(e, what) for e in line]
    look = {"marker": marker_of(group, arms), "markersize": 5, "color": colour_of(group, arms), "linewidth": 1.3}
    if what == "acc":
        below = [value - 100 * (e.ci95[0] or 0) for e, value in zip(line, values, strict=True)]
        above = [100 * (e.ci95[1] or 0) - value for e, value in zip(line, values, strict=True)]
        axes.errorbar(places, values, yerr=[below, above], elinewidth=0.8, label=group_title(group), **look)
    else:
        axes.plot(places, values, label=group_title(group), **look)


def _rung(per_seed: Sequence[ByTask], tasks: Sequence[str]) -> dict[str, Any]:
    tables = []
    for task in tasks:
        scores = [s[task] for s in per_seed]
        tables.append((stacked(scores, scores[0], len(scores)), scores[0].cluster))
    acc, low, high = mean_level(tables)
    by_task = []
    for task, table in zip(tasks, tables, strict=True):
        mean, *ends = mean_accuracy(*table)
        by_task.append(RungTask(task=task, subtask=subtask_of(task), acc=mean, ci95=(ends[0], ends[1])))
    unparsed = float(np.mean([s[t].unparsed for s in per_seed for t in tasks]))
    return {"acc": acc, "ci95": (low, high), "unparsed": unparsed, "tasks": by_task}
