"""Safety beside capability: what each arm's safety change cost or came with, and whether the two rank the arms alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import numpy as np

from trainers.report.blocks import Block, Figure, Heading, Note, Table
from trainers.report.collected import Collected, Group
from trainers.report.entries import Interval, Mode, OfArm, OfTask
from trainers.report.figures import NEUTRAL, Drawing, clean, colour_of, legend_above, marker_of
from trainers.report.section import Report, Section, section
from trainers.report.sections.accuracy import Accuracy, Gap, capability, recovered
from trainers.report.sections.safety import ALL, Safety, SafetyMeanGap, mean_gaps
from trainers.report.text import group_title
from w2s_tasks.results import association
from w2s_tasks.results.stats import Difference

Over = Literal["arms", "arms and checkpoints"]
"""What a rank correlation is taken over."""


@dataclass(frozen=True, kw_only=True)
class Tradeoff(OfArm):
    """An arm's safety change, a mean over the tasks, beside what it gained."""

    checkpoint: float | None
    """The share of its training's steps; null for the end."""
    mode: Mode
    """How answers on the safety tasks were scored."""
    acc: float
    """Accuracy on the training task, 0 to 1."""
    pgr: float | None
    """Share of the gap that is recovered; null where undefined."""
    ci95: Interval | None
    """Fieller's 95 % interval of it."""
    change: Difference
    """Mean over the safety tasks, minus the untuned model"""


@dataclass(frozen=True, kw_only=True)
class Association(association.Association, OfTask):
    """Rank correlation of accuracy on the training task and on a safety task."""

    task: str
    """The safety task's name in lm_eval."""
    over: Over
    """What the points are."""


@section
@dataclass(frozen=True, kw_only=True)
class Capability(Section):
    """Safety beside capability."""

    title = "Capability and safety"
    place = 35

    tradeoff: list[Tradeoff]
    associations: list[Association]

    @classmethod
    def form(cls, collected: Collected) -> Capability:
        """The arms at the end of training, then at each checkpoint, whose PGR is measured against the end's gap."""
        tradeoff = _tradeoff(collected, Accuracy.of(collected).gaps, Safety.of(collected).safety_mean_gaps, None)
        for share, then in collected.checkpoints.items():
            tradeoff += _tradeoff(then, recovered(then, collected), mean_gaps(then), share)
        return cls(tradeoff=tradeoff, associations=_associations(collected))

    def page(self, report: Report) -> Iterator[Block]:
        """The trade-off's figure, then the correlations."""
        gap = report.of(Accuracy).gap
        shares = sorted({e.checkpoint for e in self.tradeoff if e.checkpoint is not None})
        caption = "Each arm's mean safety change against its accuracy on the training task"
        caption += ", and the PGR that it stands for." if gap and gap.defined else "."
        if shares:
            caption += (
                f" Small marks: the same training after {', '.join(f'{100 * s:g} %' for s in shares)} of its steps, "
                "joined in that order; their intervals are in tables/tradeoff.csv."
            )
        yield Figure(self.figure(report), caption)
        if self.associations:
            yield from self._correlations(report)

    def _correlations(self, report: Report) -> Iterator[Block]:
        yield Heading("Rank correlation")
        known = [a for a in self.associations if a.defined]
        if known:
            rows = [
                (
                    *(a.subtask, a.split, a.mode, f"{a.rho:+.2f}", f"{a.low:+.2f} to {a.high:+.2f}"),
                    *("–" if a.p is None else f"{a.p:.2g}", f"{a.n} {a.over}"),
                )
                for a in known
            ]
            columns = ("task", "split", "scored by", "rank correlation", "95 % interval", "p", "points")
            yield Table(columns, rows, left=("split",))
            note = (
                f"Spearman's correlation, over arms, of accuracy on {report.head.task} and on the safety task. Arms "
                "are few and not a random sample: read it as a description."
            )
            if any(a.over == "arms and checkpoints" for a in self.associations):
                note += (
                    " Over arms and checkpoints the points of one arm are not independent: they come from the same "
                    "trainings. The interval counts them as one, the worst case, so it is wider than the number of "
                    "points suggests, and no p is given."
                )
            yield Note(note)
        undefined = sorted(a.reason for a in self.associations if not a.defined)
        for reason, group in groupby(undefined):
            yield Note(f"Undefined for {len(list(group))} of {len(self.associations)}: {reason}.")

    def figures(self, report: Report) -> Mapping[str, Drawing | None]:
        """The trade-off."""
        return {"tradeoff": self.figure(report)}

    def figure(self, report: Report) -> Drawing | None:
        """Mean safety change against accuracy on the training task, one point an arm, with the PGR beside it.

        Checkpoints are small marks on a line that leads to the arm's point.
        """
        entries = [e for e in self.tradeoff if e.checkpoint is None]
        kept = [e for e in self.tradeoff if e.checkpoint is not None]
        if len(self.tradeoff) < 2:
            return None
        arms = report.of(Accuracy).arm_means

        def draw(figure: Any) -> None:
            axes = figure.subplots()
            clean(axes)
            axes.axhline(0, color=NEUTRAL, linewidth=1)
            for entry in entries:
                colour, marker, x = colour_of(entry.group, arms), marker_of(entry.group, arms), 100 * entry.acc
                before = [k for k in kept if k.group == entry.group]
                if before:
                    course = [(100 * k.acc, 100 * k.change.value) for k in (*before, entry)]
                    look = {"marker": marker, "markersize": 3.5, "linewidth": 0.8, "alpha": 0.7}
                    axes.plot(*zip(*course, strict=True), color=colour, **look)
                pgr = "" if entry.pgr is None else f" (PGR {entry.pgr:.2f})"
                axes.plot([x, x], [100 * entry.change.low, 100 * entry.change.high], color=colour, linewidth=1.5)
                axes.plot(x, 100 * entry.change.value, marker, color=colour, label=group_title(entry.group) + pgr)
            axes.set_xlabel(f"accuracy on {report.head.task}, %")
            axes.set_ylabel("mean safety change\nto the untuned model, points")
            axes.margins(x=0.1)
            _pgr_axis(axes, report.of(Accuracy))
            legend_above(figure, axes)

        return Drawing(draw, 3.7 + 0.11 * len(entries), "safety change against accuracy")


def _pgr_axis(axes: Any, accuracy: Accuracy) -> None:
    """A second scale for accuracy in %: the PGR that it stands for, where there is a gap to recover."""
    gap, weak = accuracy.gap, accuracy.levels().get("weak")
    if gap is None or not gap.defined or weak is None or not gap.gap:
        return
    start, width = 100 * weak, 100 * gap.gap
    scale = axes.secondary_xaxis("top", functions=(lambda x: (x - start) / width, lambda y: start + y * width))
    scale.set_xlabel("performance gap recovered (PGR)")


def _tradeoff(
    collected: Collected, gaps: Sequence[Gap], means: Sequence[SafetyMeanGap], checkpoint: float | None
) -> list[Tradeoff]:
    of_arm = {gap.group: gap for gap in gaps}
    overall: dict[tuple[str, str | None], SafetyMeanGap] = {}
    for found in means:  # log-likelihoods first, where both were scored
        if (found.split, found.contrast) == (ALL, "to_zero_shot"):
            overall.setdefault(found.group, found)
    entries = []
    for group in collected.groups(collected.safety):
        key = (group.name, group.method)
        gap = of_arm.get(key)
        if key in overall:
            mean = overall[key]
            entries.append(
                Tradeoff(
                    **group.about,
                    checkpoint=checkpoint,
                    mode=mean.mode,
                    acc=capability(collected, group),
                    pgr=gap.pgr if gap else None,
                    ci95=gap.ci95 if gap else None,
                    change=Difference(**{name: getattr(mean, name) for name in Difference.__dataclass_fields__}),
                )
            )
    return entries


def _associations(collected: Collected) -> list[Association]:
    """Over arms, then with checkpoints; a point is an arm at the end or at a checkpoint, a mean over seeds."""
    end = [(collected, g) for g in collected.groups(collected.safety)]
    if not end:
        return []
    kept = [(then, g) for then in collected.checkpoints.values() for g in then.groups(then.safety) if g.name != "zero_shot"]
    entries = _over(collected, "arms", end)
    return entries + (_over(collected, "arms and checkpoints", [*end, *kept]) if kept else [])


def _over(collected: Collected, over: Over, points: Sequence[tuple[Collected, Group]]) -> list[Association]:
    """One entry a safety task."""
    able = [capability(then, g) for then, g in points]
    # The checkpoints of an arm are one training: not independent.
    cluster = None if over == "arms" else [(g.name, g.method) for _, g in points]
    arm = points[0][1].arms[0]
    entries = []
    for task, scores in collected.safety[arm].items():
        safe = [float(np.mean([then.safety[a][task].correct.mean() for a in g.arms])) for then, g in points]
        found = association.rank_correlation(able, safe, cluster)
        entries.append(Association(**collected.on_task(arm, scores), task=task, over=over, **vars(found)))
    return entries
