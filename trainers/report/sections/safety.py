"""Accuracy on the safety tasks, with paired differences over seeds to the untuned model and to the ceiling."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from trainers.labels.arms import kind_of
from trainers.report.blocks import Block, Cell, Figure, Note, Row, Table
from trainers.report.collected import Collected, Evaluations, Group, about, matched, parts_of
from trainers.report.collected import Scores as ByTask
from trainers.report.entries import Entry, Interval, Mode, Objective, OfArm, OfModel, OfTask
from trainers.report.figures import NEUTRAL, Drawing, clean, colour_of, legend_above, marker_of
from trainers.report.section import Report, Section, section
from trainers.report.sections.accuracy import Accuracy
from trainers.report.text import Named, group_title, on_split, percent
from trainers.steps.arm import Arm
from w2s_tasks.results.read import TaskScores
from w2s_tasks.results.safety import Change, adjusted, changes, exact_match, mean_change
from w2s_tasks.results.stats import Difference, accuracy_interval

Contrast = Literal["to_zero_shot", "to_ceiling"]
CONTRASTS: dict[Contrast, str] = {"to_zero_shot": "zero_shot", "to_ceiling": "ceiling"}
"""Differences that the report gives, and the arm that each is taken to."""
ALL = "all"
"""Both splits together."""
INK = "#1a1a1a"  # on coloured cells, light and dark pages alike
SCALE = ("#e58a6b", "#fbe7c6", "#fffdf0", "#cfe3ee", "#7fb2d6")  # light enough for dark figures at both ends


@dataclass(frozen=True, kw_only=True)
class OnTask(OfTask, OfModel):
    """One model on one safety task."""

    task: str
    """The task's name in lm_eval."""
    objective: Objective
    """What the model's training optimised: choices or language_model; null where nothing was trained."""
    n: int
    """Questions."""
    acc: float
    """Share of questions that are answered rightly, 0 to 1."""
    stderr: float | None
    """Its standard error."""
    ci95: Interval
    """Its 95 % interval."""
    balanced_acc: float | None
    """Mean of the classes' accuracies, 0 to 1; null where answers have no classes."""
    unparsed: float
    """Share of the questions without an answer that could be read, 0 to 1."""
    ties: float | None
    """Share of the questions whose likeliest choices are equally likely, 0 to 1."""
    class_share: list[float] | None
    """What is missing to 1 did not parse."""
    ideal: float | None
    """The best value of a share of which more is not better; such a task is in no mean. Null elsewhere."""
    to_zero_shot: Difference | None
    """Minus the untuned model"""


@dataclass(frozen=True, kw_only=True)
class OverTasks(OfModel):
    """One model's unweighted mean over the subtasks of a split."""

    split: str
    """Which rows: test, hard."""
    mode: Mode
    """How answers were scored."""
    tasks: int
    """Tasks in the mean."""
    acc: float
    """Unweighted mean of the tasks' accuracies, 0 to 1."""
    stderr: float | None
    """Its standard error."""
    to_zero_shot: Difference | None
    """Minus the untuned model"""


@dataclass(frozen=True, kw_only=True)
class SafetyGap(Difference, OfTask, OfArm):
    """An arm's difference over seeds on one task."""

    task: str
    """The task's name in lm_eval."""
    objective: Objective
    """What the arm's training optimised: choices or language_model."""
    contrast: Contrast
    """To what the difference is taken: to_zero_shot or to_ceiling."""
    p_holm: float | None
    """p after Holm's correction over the arm's comparisons."""
    detectable: float | None
    """The smallest difference that these questions show with 80 % power at the 5 % level; null where none would."""
    p_equal: float | None
    """Of a difference of `safety.margin` or more, Holm-adjusted over the tasks; null where that was not asked."""
    few: bool
    """Whether the models differ on so few questions that the interval is wider than 95 % asks."""

    @property
    def significant(self) -> bool:
        """Whether p < .05 after the correction."""
        return self.p_holm is not None and self.p_holm < 0.05

    @property
    def equal(self) -> bool:
        """Whether a difference as large as the margin is excluded."""
        return self.p_equal is not None and self.p_equal < 0.05


@dataclass(frozen=True, kw_only=True)
class SafetyMeanGap(Difference, OfArm):
    """The same averaged over the subtasks of a split, or of all."""

    split: str
    """Which rows: test, hard, or all."""
    mode: Mode
    """How answers were scored."""
    tasks: int
    """Tasks in the mean."""
    contrast: Contrast
    """To what the difference is taken: to_zero_shot or to_ceiling."""


@dataclass(frozen=True, kw_only=True)
class ExactMatch(OfTask, OfArm):
    """An arm's share of groups whose every row is right, a mean over seeds: the benchmark's own score where it has groups.

    Its differences stand beside those of accuracy and are in no family of tests.
    """

    task: str
    """The task's name in lm_eval."""
    n: int
    """Groups."""
    em: float
    """Share of groups whose every row is right, 0 to 1, a mean over seeds."""
    to_zero_shot: Difference | None
    """Minus the untuned model"""


@dataclass(frozen=True, kw_only=True)
class SafetyFamily(Entry):
    """The comparisons that p is corrected over: tasks times contrasts, for each arm and method.

    The arms are different questions, and a control more takes nothing from the student.
    """

    method: str
    per: str
    tests: int
    tasks: int
    contrasts: list[Contrast]


@section
@dataclass(frozen=True, kw_only=True)
class Safety(Section):
    """Accuracy and differences on the safety tasks."""

    title = "Safety"
    place = 30

    safety: list[OnTask]
    safety_means: list[OverTasks]
    safety_gaps: list[SafetyGap]
    safety_family: SafetyFamily | None
    safety_mean_gaps: list[SafetyMeanGap]
    safety_exact: list[ExactMatch]
    safety_still: list[str]
    """Tasks on which no arm has other questions right than the untuned model: nothing shows there."""
    safety_moving_gaps: list[SafetyMeanGap]
    """`safety_mean_gaps` to the untuned model over the other tasks alone; empty where all tasks move, or none."""

    @classmethod
    def form(cls, collected: Collected) -> Safety:
        """From the evaluations on the safety tasks with the main number of shots."""
        gaps, family = _gaps(collected)
        still = _still(gaps)
        return cls(
            safety=_on_tasks(collected),
            safety_means=_over_tasks(collected),
            safety_gaps=gaps,
            safety_family=family,
            safety_mean_gaps=mean_gaps(collected),
            safety_exact=list(_exact(collected)),
            safety_still=still,
            safety_moving_gaps=mean_gaps(collected, ("to_zero_shot",), still) if still else [],
        )

    def heading(self, report: Report) -> str:
        """The hand-written rows are no benchmark, and are never called one."""
        return (
            "ETHICS probe (hand-written, not the benchmark)" if any("probe" in e.task for e in self.safety) else self.title
        )

    def terminal(self, report: Report) -> Iterator[Block]:
        """The table, what its stars stand for, and how many tasks nothing moved on."""
        if self.safety:
            yield self._table(report)
            yield Note(self._family_note(report))

    def page(self, report: Report) -> Iterator[Block]:
        """Heat map, forest plots, table."""
        if not self.safety:
            return
        yield Figure(
            self.heat_map(), "Accuracy in %, mean over seeds. On a balanced task 50 is chance, or one answer to everything."
        )
        yield Figure(self.forest(report, "to_zero_shot"))
        yield Figure(
            self.forest(report, "to_ceiling", ("student",)),
            "Against the ceiling, which had the same rows with gold labels: what remains is due to the weak labels, not to "
            "the training task.",
        )
        yield self._table(report, page=True)
        yield Note(self._page_note(report))
        if any(entry.mode == "generated" for entry in self.safety):
            learnt = sorted({entry.objective for entry in self.safety if entry.objective})
            format_note = " A loss over the choices alone never teaches a format of text." if "choices" in learnt else ""
            yield Note(
                f"Training objective of the arms whose generated text is scored here: {', '.join(learnt) or 'none'}."
                + format_note
            )

    def _family_note(self, report: Report) -> str:
        family = self.safety_family
        if not family:
            return ""
        return (
            f"* p < .05 after Holm over the {family.tests} comparisons of an arm. Detectable: the smallest difference, in "
            f"points, that this test finds alone among those {family.tests} with 80 % power. {self._told_equal(report)}"
            f"{self._told_still()}"
        ).rstrip()

    def _told_equal(self, report: Report) -> str:
        """On how many tasks each arm is shown to be as the untuned model, within the margin of the configuration."""
        margin = (report.head.config.get("safety") or {}).get("margin")
        tested = [gap for gap in self.safety_gaps if gap.p_equal is not None]
        if margin is None or not tested:
            return ""
        tasks = len({gap.task for gap in tested})
        counts = [
            f"{group_title(group)} on {sum(gap.equal for gap in tested if gap.group == group)}"
            for group in dict.fromkeys(gap.group for gap in tested)
        ]
        unmoved = f", {len(self.safety_still)} of which no arm moves" if self.safety_still else ""
        return (
            f"= within {100 * margin:g} points of the untuned model, shown (two one-sided tests, Holm over the {tasks} "
            f"tasks{unmoved}): {'; '.join(counts)} of {tasks}. "
        )

    def _told_still(self) -> str:
        """How many tasks no arm moved at all: nothing could be lost there, so they say nothing for or against safety."""
        if not self.safety_still:
            return ""
        still, tasks, moving = len(self.safety_still), len(self.tasks()), len(self._moving())
        told = f"In {still} of {tasks} tasks no arm has other questions right than the untuned model"
        return f"{told}; “moving” is the mean over the other {moving}, chosen by the outcome." if moving else f"{told}."

    def _moving(self) -> list[str]:
        """The tasks of `safety_moving_gaps`: some arm moves there, and more is better."""
        return [task for task, one in self.tasks().items() if task not in self.safety_still and one.ideal is None]

    def _page_note(self, report: Report) -> str:
        modes = self._modes()
        text = "Accuracy in %" + (f" (scored by {modes[0]})" if len(modes) == 1 else "")
        text += ", and the difference to the untuned model in points ± its standard error; means are unweighted."
        if family := self.safety_family:
            which = "to the untuned model and to the ceiling" if len(family.contrasts) > 1 else "to one reference"
            text += (
                f" * p < .05 after Holm's correction over the {family.tests} comparisons of the arm ({family.tasks} tasks, "
                f"{which}). † the models differ on fewer than 12 questions: the interval is wider than 95 % asks."
            )
        if any(entry.ideal is not None for entry in self.safety):
            text += " Of a task with an ideal more is not better: it is in no mean."
        if self.safety_exact:
            text += " Exact: all rows of a group right, the benchmark's own score; in no family of tests."
        return f"{text} {self._told_equal(report)}{self._told_still()}".rstrip() + (
            " “Detectable” is the smallest difference, in points, that these questions show with 80 % power at the "
            "5 % level, for the arm that differs most. A smaller effect may be there unseen. Rows that come in "
            "groups count as clusters."
        )

    def _modes(self) -> list[str]:
        return list(dict.fromkeys(str(entry.mode) for entry in self.safety))

    def groups(self) -> list[Named]:
        """The arms that were asked."""
        return list(dict.fromkeys(entry.group for entry in self.safety))

    def tasks(self) -> dict[str, OnTask]:
        """An entry of each task, in their order."""
        first: dict[str, OnTask] = {}
        for entry in self.safety:
            first.setdefault(entry.task, entry)
        return first

    def accuracy(self, task: str, group: Named) -> float | None:
        """A group's accuracy on a task, a mean over seeds."""
        return _mean([entry.acc for entry in self.safety if entry.task == task and entry.group == group])

    def gap(self, task: str, group: Named) -> SafetyGap | None:
        """Its difference to the untuned model."""
        return next((g for g in self.safety_gaps if (g.task, g.group, g.contrast) == (task, group, "to_zero_shot")), None)

    def _table(self, report: Report, *, page: bool = False) -> Table:
        """A row a task and mean; for a terminal the way of scoring stands with the task's name."""
        groups, by_mode = self.groups(), page and len(self._modes()) > 1

        def row(name: str, split: str, mode: str, n: str, cells: Sequence[Cell | str], detectable: str) -> Row:
            head = (name, split, mode) if by_mode else (name if page else on_split(name, mode), split)
            return (*head, n, *cells, detectable)

        rows = []
        for task, first in self.tasks().items():
            gaps = [self.gap(task, group) for group in groups]
            cells = [_cell(self.accuracy(task, g), gap, page) for g, gap in zip(groups, gaps, strict=True)]
            known = [gap.detectable for gap in gaps if gap and gap.detectable is not None]
            detectable = f"{100 * max(known):.{1 if page else 0}f}" if known else "none"
            ideal = "" if first.ideal is None else f" (ideal {100 * first.ideal:g})"
            rows.append(row(first.subtask + ideal, first.split, first.mode, str(first.n), cells, detectable))
            exact = {e.group: e for e in self.safety_exact if e.task == task}
            if exact:
                cells = [_cell(exact[g].em, exact[g].to_zero_shot, page) for g in groups]
                n = str(next(iter(exact.values())).n)
                rows.append(row(f"{first.subtask}, exact", first.split, first.mode, n, cells, ""))
        cut = len(rows)
        for split, mode in dict.fromkeys((entry.split, entry.mode) for entry in self.safety_means):
            cells = [self._mean_cell(split, mode, group, page) for group in groups]
            rows.append(row("mean", split, mode, "", cells, ""))
            if any((gap.split, gap.mode) == (split, mode) for gap in self.safety_moving_gaps):
                cells = [self._moving_cell(split, mode, group, page) for group in groups]
                rows.append(row("mean, moving", split, mode, "", cells, ""))
        scored = ["scored by"] if by_mode else []
        columns = ("task", "split", *scored, "n", *map(group_title, groups), "detectable")
        what = "safety" if self.heading(report) == self.title else self.heading(report)
        title = f"{what}: accuracy % (difference to zero_shot ± standard error)"
        return Table(columns, rows, title=title, left=("split",), style="wrap stack", cut=cut)

    def _mean_cell(self, split: str, mode: str, group: Named, page: bool) -> Cell | str:
        acc = _mean([e.acc for e in self.safety_means if (e.split, e.mode, e.group) == (split, mode, group)])
        wanted = (split, mode, group, "to_zero_shot")
        gap = next((g for g in self.safety_mean_gaps if (g.split, g.mode, g.group, g.contrast) == wanted), None)
        return _cell(acc, gap, page)

    def _moving_cell(self, split: str, mode: str, group: Named, page: bool) -> Cell | str:
        chosen = [e for e in self.safety if (e.split, e.mode) == (split, mode) and e.task in self._moving()]
        gaps = (g for g in self.safety_moving_gaps if (g.split, g.mode, g.group) == (split, mode, group))
        return _cell(_mean([entry.acc for entry in chosen if entry.group == group]), next(gaps, None), page)

    def figures(self, report: Report) -> Mapping[str, Drawing | None]:
        """Heat map and forest plots."""
        return {
            "safety": self.heat_map() if self.safety else None,
            "safety_gaps": self.forest(report, "to_zero_shot"),
            "safety_to_ceiling": self.forest(report, "to_ceiling", ("student",)),
        }

    def heat_map(self) -> Drawing | None:
        """Accuracy of every arm (mean over seeds) on every safety task and split."""
        tasks, groups = _text_last(self.tasks()), self.groups()
        values = [[self.accuracy(task, group) for group in groups] for task in tasks]

        def draw(figure: Any) -> None:
            from matplotlib.colors import LinearSegmentedColormap

            colours = LinearSegmentedColormap.from_list("accuracy", SCALE)
            axes = figure.subplots()
            axes.patch.set_alpha(0)
            cells = [[float("nan") if v is None else 100 * v for v in row] for row in values]
            shown = axes.imshow(cells, cmap=colours, vmin=0, vmax=100, aspect="auto")
            for y, row in enumerate(values):
                for x, value in enumerate(row):
                    if value is not None:
                        axes.text(x, y, f"{100 * value:.0f}", ha="center", va="center", fontsize=9, color=INK)
            axes.set_xticks(range(len(groups)), [group_title(g) for g in groups], rotation=40, ha="right")
            axes.set_yticks(range(len(tasks)), list(tasks.values()))
            axes.set_xlabel("arm")
            axes.tick_params(length=0)
            for side in axes.spines.values():
                side.set_visible(False)
            figure.colorbar(shown, ax=axes, label="accuracy, %", shrink=0.8, aspect=30)

        return Drawing(draw, 1.7 + 0.3 * len(tasks), "accuracy on safety tasks by arm")

    def forest(self, report: Report, contrast: Contrast, only: Sequence[str] = ()) -> Drawing | None:
        """Differences to the untuned model, or to the ceiling, on every safety task with 95 % intervals.

        Args:
            report: the report.
            contrast: to_zero_shot or to_ceiling.
            only: arms to show; all where empty.
        """
        entries = [g for g in self.safety_gaps if g.contrast == contrast and (not only or g.arm in only)]
        if not entries:
            return None
        shown = {entry.task for entry in entries}
        names = {task: name for task, name in _text_last(self.tasks()).items() if task in shown}
        tasks, groups = list(names), list(dict.fromkeys(entry.group for entry in entries))
        arms = report.of(Accuracy).arm_means

        def draw(figure: Any) -> None:
            axes = figure.subplots()
            clean(axes)
            axes.axvline(0, color=NEUTRAL, linewidth=1)
            for row in range(0, len(tasks), 2):
                axes.axhspan(len(tasks) - 1.5 - row, len(tasks) - 0.5 - row, color=NEUTRAL, alpha=0.1, linewidth=0)
            for entry in entries:
                k = groups.index(entry.group)
                y = len(tasks) - 1 - tasks.index(entry.task) - 0.8 * (k - (len(groups) - 1) / 2) / len(groups)
                colour = colour_of(entry.group, arms)
                axes.plot([100 * entry.low, 100 * entry.high], [y, y], color=colour, linewidth=1.3)
                look = {"color": colour, "markerfacecolor": colour if entry.significant else "none", "markeredgewidth": 1.2}
                name = group_title(entry.group)
                axes.plot(100 * entry.value, y, marker_of(entry.group, arms), markersize=5, label=name, **look)
            axes.set_ylim(-0.5, len(tasks) - 0.5)
            axes.set_yticks(range(len(tasks)), [names[t] for t in reversed(tasks)])
            other = "untuned model's" if contrast == "to_zero_shot" else "ceiling's"
            axes.set_xlabel(f"accuracy minus the {other}, points\n(95 % interval; filled: p < .05 after Holm)")
            legend_above(figure, axes)

        height = 1.5 + len(tasks) * (0.16 + 0.08 * len(groups))
        return Drawing(draw, height, f"differences on safety tasks {contrast.replace('_', ' ')}")


def _text_last(tasks: dict[str, OnTask]) -> dict[str, str]:
    """Names of tasks for an axis; those of generated text come last."""
    ordered = sorted(tasks.values(), key=lambda entry: entry.mode == "generated")
    return {entry.task: f"{entry.subtask}, {on_split(entry.split, entry.mode)}" for entry in ordered}


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _cell(acc: float | None, gap: Difference | None, page: bool) -> Cell | str:
    if acc is None or gap is None:
        return percent(acc)
    star = ("*" if gap.significant else "") + ("=" if gap.equal else "") if isinstance(gap, SafetyGap) else ""
    if not page:
        return f"{percent(acc)} ({100 * gap.value:+.1f}±{100 * gap.stderr:.1f}){star}"
    few = "†" if isinstance(gap, SafetyGap) and gap.few else ""
    return Cell(percent(acc), f"({100 * gap.value:+.1f} ± {100 * gap.stderr:.1f}{star}{few})")


def class_share(scores: TaskScores) -> list[float] | None:
    """Share of the rows for which each class was chosen; None where answers have no classes."""
    if scores.predicted is None or not scores.classes:
        return None
    return [float((scores.predicted == c).mean()) for c in range(scores.choices)]


def _untuned(evaluations: Evaluations) -> ByTask:
    return next((scores for arm, scores in evaluations.items() if arm.name == "zero_shot"), {})


def _on_tasks(collected: Collected) -> list[OnTask]:
    """Every model on every safety task, with its paired difference to the untuned model."""
    reference, entries = _untuned(collected.safety), []
    for arm in (a for a in collected.arms() if a in collected.safety):
        own = collected.safety[arm]
        differences = {c.task: c.difference for c in changes([own], [reference])} if arm.name != "zero_shot" else {}
        for task, scores in own.items():
            entries.append(
                OnTask(
                    **about(arm),
                    **collected.on_task(arm, scores),
                    task=task,
                    objective=collected.objective(arm),
                    n=scores.n,
                    acc=float(scores.correct.mean()),
                    stderr=scores.stderr.get("acc"),
                    ci95=accuracy_interval(scores.correct, scores.cluster),
                    balanced_acc=scores.metrics.get("balanced_acc"),
                    unparsed=scores.unparsed,
                    ties=scores.ties,
                    class_share=class_share(scores),
                    ideal=scores.ideal,
                    to_zero_shot=differences.get(task),
                )
            )
    return entries


def _over_tasks(collected: Collected) -> list[OverTasks]:
    """Unweighted mean over the subtasks for each model and split, and its difference to the untuned model."""
    reference, entries = _untuned(collected.safety), []
    for arm in (a for a in collected.arms() if a in collected.safety):
        own = collected.safety[arm]
        for split, _, tasks in parts_of(own):
            part = [own[t] for t in tasks]
            errors = [s.stderr.get("acc", float("nan")) for s in part]
            stderr = float(np.sqrt(np.square(errors).sum()) / len(errors))
            entries.append(
                OverTasks(
                    **about(arm),
                    split=split,
                    mode=collected.mode(arm, part[0]),
                    tasks=len(part),
                    acc=float(np.mean([s.correct.mean() for s in part])),
                    stderr=stderr if np.isfinite(stderr) else None,
                    to_zero_shot=mean_change([own], [reference], tasks) if arm.name != "zero_shot" else None,
                )
            )
    return entries


def pairs(collected: Collected, contrast: Contrast) -> list[tuple[Group, list[ByTask], list[ByTask]]]:
    """Every group with the evaluations of its reference, seed by seed."""
    reference = collected.group(collected.safety, CONTRASTS[contrast])
    if reference is None:
        return []
    others = (CONTRASTS[contrast], "zero_shot")
    groups = [g for g in collected.groups(collected.safety) if g.name not in others and kind_of(g.name).model == "strong"]
    return [(g, *matched(g, reference, lambda a: collected.safety[a])) for g in groups]


def _still(gaps: Sequence[SafetyGap]) -> list[str]:
    """Tasks on which no group differs from the untuned model on any question."""
    own = [gap for gap in gaps if gap.contrast == "to_zero_shot"]
    return [task for task in dict.fromkeys(g.task for g in own) if not any(g.discordance for g in own if g.task == task)]


def _exact(collected: Collected) -> Iterator[ExactMatch]:
    """Exact match of every group on the tasks that have it, with the paired difference over the rows' groups."""
    untuned = collected.group(collected.safety, "zero_shot")
    for group in collected.groups(collected.safety):
        for task in collected.safety[group.arms[0]]:

            def read(arm: Arm, task: str = task) -> ByTask:
                found = exact_match(collected.safety[arm][task])
                return {} if found is None else {task: found}

            own = [read(arm) for arm in group.arms]
            if not own[0]:
                continue
            compared = untuned is not None and group.name != "zero_shot" and kind_of(group.name).model == "strong"
            differences = changes(*matched(group, untuned, read)) if untuned is not None and compared else []
            yield ExactMatch(
                **group.about,
                **collected.on_task(group.arms[0], collected.safety[group.arms[0]][task]),
                task=task,
                n=own[0][task].n,
                em=float(np.mean([one[task].correct.mean() for one in own])),
                to_zero_shot=differences[0].difference if differences else None,
            )


def _gap(collected: Collected, group: Group, contrast: Contrast, change: Change) -> SafetyGap:
    arm = group.arms[0]
    return SafetyGap(
        **group.about,
        **collected.on_task(arm, collected.safety[arm][change.task]),
        **vars(change.difference),
        task=change.task,
        objective=collected.objective(arm),
        contrast=contrast,
        p_holm=change.p_holm,
        detectable=change.detectable,
        p_equal=change.p_equal,
        few=change.few,
    )


def _gaps(collected: Collected) -> tuple[list[SafetyGap], SafetyFamily | None]:
    """Each group minus the untuned model and minus the ceiling on each task over seeds, and what Holm's family is."""
    by_group: dict[Group, list[tuple[Contrast, Change]]] = {}
    for contrast in CONTRASTS:
        for group, own, reference in pairs(collected, contrast):
            margin = collected.config.safety.margin if collected.config.safety and contrast == "to_zero_shot" else None
            by_group.setdefault(group, []).extend((contrast, c) for c in changes(own, reference, margin))
    gaps = []
    for group, named in by_group.items():
        family = adjusted([change for _, change in named])
        gaps += [_gap(collected, group, c, change) for (c, _), change in zip(named, family, strict=True)]
    if not gaps:
        return [], None
    return gaps, SafetyFamily(
        method="Holm",
        per="arm and method",
        tests=max(len(named) for named in by_group.values()),
        tasks=len({g.task for g in gaps}),
        contrasts=[c for c in CONTRASTS if any(g.contrast == c for g in gaps)],
    )


def mean_gaps(
    collected: Collected, contrasts: Iterable[Contrast] = tuple(CONTRASTS), without: Collection[str] = ()
) -> list[SafetyMeanGap]:
    """The same differences averaged over the subtasks of each split, and over all.

    Args:
        collected: the evaluations.
        contrasts: to which references.
        without: tasks that are left out.
    """
    entries = []
    for contrast in contrasts:
        for group, own, reference in pairs(collected, contrast):
            parts = parts_of({t: s for t, s in own[0].items() if t not in without}) if own else []
            whole = [(ALL, mode, [t for _, m, tasks in parts if m == mode for t in tasks]) for mode in (False, True)]
            for split, _, tasks in [*parts, *whole]:
                mean = mean_change(own, reference, tasks)
                if mean is not None:
                    mode = collected.mode(group.arms[0], own[0][tasks[0]])
                    rest: dict[str, Any] = {"split": split, "mode": mode, "tasks": len(tasks), "contrast": contrast}
                    entries.append(SafetyMeanGap(**group.about, **vars(mean), **rest))
    return entries
