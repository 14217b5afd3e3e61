"""Discrimination: AUROC of every arm on the training task and the safety tasks, PGR of it, and calibrated accuracy.

Accuracy asks for the right answer at the model's own threshold; AUROC asks whether the right choice is likelier where it is
right, at any threshold. A model that gives every row one answer can still tell them apart: here it shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainers.labels.arms import kind_of
from trainers.report.blocks import Block, Cell, Figure, Note, Table
from trainers.report.collected import Collected, Evaluations, Group, matched
from trainers.report.entries import Interval, OfArm
from trainers.report.figures import NEUTRAL, Drawing, clean, colour_of, legend_above, marker_of
from trainers.report.section import Report, Section, section
from trainers.report.sections.accuracy import Accuracy, Gap, recovered
from trainers.report.text import Named, fraction, fractions, group_title, percent, percents
from trainers.steps.arm import Arm
from w2s_tasks.results.calibrated import calibrated, mass
from w2s_tasks.results.discrimination import Discrimination, auroc_difference, auroc_table, discrimination
from w2s_tasks.results.read import TaskScores
from w2s_tasks.results.stats import Difference, mean_accuracy


@dataclass(frozen=True, kw_only=True)
class OnTask(Discrimination, OfArm):
    """An arm on one task; the interval of ``auroc`` is 95 %."""

    task: str
    """The task's name in lm_eval."""
    to_zero_shot: Difference | None
    """AUROC minus the untuned model's"""
    calibrated: float | None
    """Accuracy after batch calibration: without the model's prior over the classes, known from these rows alone; null where
    answers are decisions, which have no probabilities."""
    calibrated_ci95: Interval | None
    """Its 95 % interval."""
    mass: float | None
    """Mean probability of all choices together, where text is scored."""
    ties: float
    """Share of the questions whose likeliest choices are equally likely, 0 to 1."""


@section
@dataclass(frozen=True, kw_only=True)
class Auroc(Section):
    """AUROC by arm and task."""

    title = "Discrimination (AUROC)"
    link = "AUROC"
    place = 38

    discrimination: list[OnTask]
    auroc_gaps: list[Gap]
    """PGR of AUROC on the training task, as `gaps` has it of accuracy."""

    @classmethod
    def form(cls, collected: Collected) -> Auroc:
        """From the choices' log-likelihoods, where answers have classes."""
        entries = [*_entries(collected, collected.training), *_entries(collected, collected.safety)]
        return cls(discrimination=entries, auroc_gaps=recovered(collected, measure=auroc_table))

    def page(self, report: Report) -> Iterator[Block]:
        """Figure, then a line a task."""
        if not self.discrimination:
            return
        yield Figure(
            self.figure(report),
            "AUROC with 95 % intervals: how often the model leans more to the right choice on a row where it is "
            "right than on one where it is not. .5 is chance, whatever the model prefers to answer.",
        )
        groups = list(dict.fromkeys(entry.group for entry in self.discrimination))
        rows = [(task, *(self._cell(task, group) for group in groups)) for task in self._tasks()]
        yield Table(("task", *map(group_title, groups)), rows, style="wrap stack")
        gaps = [f"{group_title(found.group)} {found}" for found in self.auroc_gaps]
        told = f" PGR of AUROC on {report.head.task}: {'; '.join(gaps)}." if gaps else ""
        yield Note(
            "AUROC [95 % interval], and d′ with the criterion c of the answers that were given (c below 0: the "
            "second choice is preferred). Accuracy lost without AUROC lost is a shifted preference; AUROC lost is "
            "knowledge that no threshold brings back. Neither tells why. “cal.” is accuracy in % after batch "
            "calibration: each choice's mean probability over these rows is divided out, which sees no label and takes "
            "the classes to be about equally frequent (arXiv 2309.17249); between it and plain accuracy lies what the "
            "model's preference costs. “mass” is the probability of all choices together, in %; “ties” are rows where "
            f"their order decides.{told}"
        )

    def _tasks(self) -> list[str]:
        return list(dict.fromkeys(entry.task for entry in self.discrimination))

    def _cell(self, task: str, group: Named) -> Cell | str:
        entry = next((e for e in self.discrimination if (e.task, e.group) == (task, group)), None)
        if entry is None:
            return "–"
        lines = [fractions((entry.low, entry.high))]
        if entry.d_prime is not None:
            lines.append(f"d′ {fraction(entry.d_prime)}, c {fraction(entry.criterion)}")
        if entry.calibrated_ci95 is not None:
            lines.append(f"cal. {percent(entry.calibrated)} {percents(entry.calibrated_ci95)}")
        if entry.mass is not None:
            lines.append(f"mass {percent(entry.mass)}" + (f", ties {percent(entry.ties)}" if entry.ties else ""))
        return Cell(fraction(entry.auroc), "\n".join(lines))

    def figures(self, report: Report) -> Mapping[str, Drawing | None]:
        """AUROC by task and arm."""
        return {"auroc": self.figure(report) if self.discrimination else None}

    def figure(self, report: Report) -> Drawing | None:
        """A dot with its interval for every arm on every task."""
        tasks, groups = self._tasks(), list(dict.fromkeys(entry.group for entry in self.discrimination))
        arms = report.of(Accuracy).arm_means

        def draw(figure: Any) -> None:
            axes = figure.subplots()
            clean(axes)
            axes.axvline(0.5, color=NEUTRAL, linewidth=1)
            for entry in self.discrimination:
                apart = 0.8 * (groups.index(entry.group) - (len(groups) - 1) / 2) / len(groups)
                y = len(tasks) - 1 - tasks.index(entry.task) - apart
                look = {"color": colour_of(entry.group, arms)}
                axes.plot([entry.low, entry.high], [y, y], linewidth=1.3, **look)
                marker = marker_of(entry.group, arms)
                axes.plot(entry.auroc, y, marker, markersize=5, label=group_title(entry.group), **look)
            axes.set_yticks(range(len(tasks)), tasks[::-1])
            axes.set_xlabel("AUROC (95 % interval)")
            legend_above(figure, axes)

        return Drawing(draw, 1.5 + len(tasks) * (0.2 + 0.08 * len(groups)), "AUROC by task and arm")


def _entries(collected: Collected, evaluations: Evaluations) -> Iterator[OnTask]:
    """Every group on every task of these evaluations, with its difference to the untuned model."""
    reference = collected.group(evaluations, "zero_shot")
    for group in collected.groups(evaluations):
        for task in evaluations[group.arms[0]]:

            def read(arm: Any, task: str = task) -> TaskScores:
                return evaluations[arm][task]

            found = discrimination([read(arm) for arm in group.arms])
            if found is None:
                continue
            change = None
            if reference is not None and group.name != "zero_shot" and kind_of(group.name).model == "strong":
                change = auroc_difference(*matched(group, reference, read))
            yield OnTask(**group.about, **vars(found), task=task, to_zero_shot=change, **_calibrated(group, read))


def _calibrated(group: Group, read: Callable[[Arm], TaskScores]) -> dict[str, Any]:
    """Accuracy after calibration over seeds, and how the model spreads its probability."""
    scores, kind = [read(arm) for arm in group.arms], group.arms[0].kind
    answers = [one for one in map(calibrated, scores) if one is not None]
    value, ci95 = None, None
    if len(answers) == len(scores):
        value, *ci95 = mean_accuracy(np.stack([one.correct for one in answers]), scores[0].cluster)
    # A calibrated model's scores are no probabilities, and a classifier's are of its classes alone.
    masses = [one for one in map(mass, scores) if one is not None] if kind.model == "strong" and not kind.calibrated else []
    return {
        "calibrated": value,
        "calibrated_ci95": ci95,
        "mass": float(np.mean(masses)) if masses else None,
        "ties": float(np.mean([one.ties for one in scores])),
    }
