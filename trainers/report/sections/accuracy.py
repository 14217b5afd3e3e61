"""Accuracy of every model on the training task, over seeds, and PGR: how much of the gap each arm recovered."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trainers.config.methods import parse_method
from trainers.labels.arms import ARMS, kind_of
from trainers.report.blocks import Aside, Block, Cell, Figure, Note, Row, Table
from trainers.report.collected import Collected, Group, about
from trainers.report.entries import Entry, Interval, Mode, Objective, OfArm, OfModel
from trainers.report.figures import Drawing, clean, colour_of, installed, marker_of
from trainers.report.panels import LEVELS, Column, Point, recovered_panels
from trainers.report.section import Report, Section, section
from trainers.report.sections.setup import Setup
from trainers.report.text import fraction, fractions, group_title, percent, percents, points, points_interval
from trainers.steps.arm import Arm
from trainers.training.told import Told
from w2s_tasks.results import gap
from w2s_tasks.results.diagnostics import confusion
from w2s_tasks.results.read import TaskScores
from w2s_tasks.results.safety import aligned, stacked
from w2s_tasks.results.stats import accuracy_interval, mean_accuracy

Array = npt.NDArray[Any]

SCORES = ("acc", "precision", "recall", "f1", "balanced_acc", "mcc", "em")


@dataclass(frozen=True, kw_only=True)
class AccuracyInterval(Entry):
    """The interval of the accuracy."""

    acc: Interval
    """95 % interval, shares from 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Scores(Entry):
    """Metrics of lm_eval's with standard errors, and the accuracy's interval."""

    n: int
    """Questions."""
    metrics: dict[str, float | None]
    """lm_eval's metrics by name; acc is the share of questions that are answered rightly, 0 to 1."""
    stderr: dict[str, float | None]
    """Their standard errors, in the same unit."""
    ci95: AccuracyInterval
    """Of the accuracy."""

    @classmethod
    def told(cls, scores: TaskScores) -> dict[str, Any]:
        """The fields of a task's scores."""
        return {
            "n": scores.n,
            "metrics": {k: scores.metrics[k] for k in SCORES if k in scores.metrics} | {"acc": float(scores.correct.mean())},
            "stderr": {k: scores.stderr[k] for k in SCORES if k in scores.stderr},
            "ci95": AccuracyInterval(acc=accuracy_interval(scores.correct, scores.cluster)),
        }


@dataclass(frozen=True, kw_only=True)
class Model(Scores, OfModel):
    """One model on the training task."""

    model: str
    """The model before training: a name, folder or hub id."""
    mode: Mode
    """How answers were scored: loglikelihood, first_token, generated, classifier."""
    objective: Objective
    """What its training optimised: choices or language_model; null where nothing was trained."""
    asked: str
    """The task that asked it."""
    num_fewshot: int | None
    """Solved questions in each prompt; null for the task's own number."""
    system_prompt: str | None
    """Where system prompt and description stood in the prompt; null where there was neither."""
    training: Told | None
    """How its training rows were prompted, and what the training warned of."""
    sees_gold: bool
    """Whether its method was given gold labels of rows that it learns."""
    unparsed: float
    """Share of the questions without an answer that could be read, 0 to 1."""
    ties: float | None
    """Share of the questions whose likeliest choices are equally likely, 0 to 1."""
    confusion: list[list[int]] | None
    """Questions by right class (rows) and answer (columns, the last one unparsed where any is)."""


@dataclass(frozen=True, kw_only=True)
class Mean(OfArm):
    """An arm's accuracy over its seeds."""

    n: int
    """Questions."""
    acc: float
    """Share of questions that are answered rightly, 0 to 1, a mean over seeds."""
    ci95: Interval
    """Its 95 % interval, over seeds and questions."""
    per_seed: list[float]
    """The accuracy of each seed, 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Gap(gap.Gap, OfArm):
    """An arm's PGR, (arm - weak) / (ceiling - weak), with a 95 % interval, and the gap that it stands on.

    ``rows_ci95`` is of these weights only: it leaves out what another seed would change.
    """

    def __str__(self) -> str:
        """PGR with interval, or that it is undefined."""
        return f"{self.pgr:.2f} {fractions(self.ci95)}" if self.defined else "undefined"


@section
@dataclass(frozen=True, kw_only=True)
class Accuracy(Section):
    """Accuracy and PGR on the training task."""

    title = "Accuracy and PGR"
    place = 20

    arms: list[Model]
    arm_means: list[Mean]
    gaps: list[Gap]
    gap: Gap | None
    """The first of them."""

    @classmethod
    def form(cls, collected: Collected) -> Accuracy:
        """From the evaluations on the training task."""
        gaps = recovered(collected)
        return cls(
            arms=[_model(collected, arm) for arm in collected.arms()],
            arm_means=_means(collected),
            gaps=gaps,
            gap=gaps[0] if gaps else None,
        )

    @property
    def several(self) -> bool:
        """Whether any arm was trained more than once."""
        return any(len(mean.per_seed) > 1 for mean in self.arm_means)

    def mean(self, group: tuple[str, str | None]) -> Mean | None:
        """An arm's accuracy over its seeds."""
        return next((mean for mean in self.arm_means if mean.group == group), None)

    def gap_of(self, group: tuple[str, str | None]) -> Gap | None:
        """An arm's PGR."""
        return next((found for found in self.gaps if found.group == group), None)

    def title_of(self, model: OfModel) -> str:
        """A model's name, with its seed where there are several."""
        seeds = {m.seed for m in self.arms if m.seed is not None}
        return group_title(model.group) + (f", seed {model.seed}" if model.seed is not None and len(seeds) > 1 else "")

    @property
    def verdict(self) -> str:
        """The result in one sentence."""
        gap = self.gap
        if gap is None:
            return "No ceiling among the arms, so there is no gap to recover."
        if not gap.defined or gap.ci95 is None:
            return f"PGR is undefined: {gap.reason}."
        students = [one for one in self.gaps if one.arm == gap.arm]
        if len(students) > 1:
            told = "; ".join(f"{one} by {one.method}" for one in students)
            whole = f"The {gap.arm} recovered of the gap between weak supervisor and ceiling: {told}"
            return f"{whole} (95 % intervals; {gap.reason})."
        low, high = ("unbounded" if x is None else f"{x:.2f}" for x in gap.ci95)
        return (
            f"The {gap.arm} ({gap.method}) recovered {gap.pgr:.2f} of the gap between weak supervisor and ceiling, "
            f"95 % interval {low} to {high} ({gap.reason})."
        )

    def heading(self, report: Report) -> str:
        """With the task."""
        return f"{self.title} on {report.head.task}"

    def terminal(self, report: Report) -> Iterator[Block]:
        """Every arm, the verdict, what to know before models are compared, and how good the labels are."""
        yield self._means_table(report) if self.several else self._models_table(report)
        yield Note(self.verdict)
        yield from self._gold_notes()
        setup = report.of(Setup)
        yield from (Note(f"Note: {note}") for note in setup.notes)
        labels = setup.weak_labels[0]
        yield Note(f"Weak labels: {percent(labels.acc)} % right on the {labels.n} rows that students learn from.")

    def page(self, report: Report) -> Iterator[Block]:
        """Figures, then every arm, or every arm over its seeds and every model."""
        if not installed():
            yield Note("Figures need matplotlib: pip install 'w2s-harness[report]', then w2s report on this run.")
        yield Figure(
            recovered_panels(self._by_method(), "method of the student"),
            "Accuracy of each method between weak supervisor and ceiling; below, the share of the gap that it recovered "
            "(after Burns et al. 2023, figure 3). Bars are 95 % intervals.",
        )
        yield Figure(self._dots(report))
        models = self._models_table(report, page=True)
        if self.several:
            yield self._means_table(report, page=True)
            yield Aside("every model", [models])
        else:
            yield models
        yield from self._gold_notes()
        yield Note(self._note())

    def _gold_notes(self) -> Iterator[Note]:
        given = dict.fromkeys(group_title(model.group) for model in self.arms if model.sees_gold)
        if given:
            yield Note(f"Given gold labels of some of the rows that they learn: {'; '.join(given)}.")

    def _note(self) -> str:
        text = (
            "± is one standard error. PGR = (arm − weak) / (ceiling − weak), paired by question, with Fieller's "
            "interval; it is undefined where the ceiling is not significantly above the weak supervisor, and never "
            "clipped. The untuned model and the controls have one too: what they recover needs no teacher."
        )
        if self.gap:
            interval = points_interval(*self.gap.gap_ci95)
            text += f" Ceiling − weak: {points(self.gap.gap)} points, 95 % interval {interval}; {self.gap.reason}."
        if self.several:
            text += (
                " “These weights only” resamples the questions and keeps the trained models: it leaves out what "
                "another seed would change."
            )
        return text

    def _means_table(self, report: Report, *, page: bool = False) -> Table:
        rows: list[Row] = []
        for mean in self.arm_means:
            gap, seeds = self.gap_of(mean.group), str(len(mean.per_seed))
            accuracy = Cell(percent(mean.acc), percents(mean.ci95))
            each = " ".join(percent(x) for x in mean.per_seed)
            row: Row = (group_title(mean.group), seeds, str(mean.n), accuracy, each, str(gap) if gap else "")
            if page:
                known = (fractions(gap.rows_ci95), " ".join(map(fraction, gap.per_seed))) if gap else ("", "")
                row = (*row, *known)
            rows.append(row)
        columns = ("arm", "seeds", "n", "accuracy", "each seed", "PGR [95 %]")
        title = f"{report.head.experiment}: {report.head.task} (means over seeds, %, 95 % intervals)"
        more = ("these weights only", "PGR of each seed") if page else ()
        return Table((*columns, *more), rows, title=title, style="wrap")

    def _models_table(self, report: Report, *, page: bool = False) -> Table:
        rows: list[Row] = []
        for model in self.arms:
            gap = self.gap_of(model.group)
            scores = [percent(model.metrics.get(k), model.stderr.get(k)) for k in ("acc", "precision", "recall", "f1")]
            shots = [str(model.num_fewshot)] if page else []
            pgr = [] if page and self.several else [str(gap) if gap else ""]
            rows.append((self.title_of(model), model.mode, *shots, str(model.n), *scores, *pgr))
        shots, pgr = ["shots"] if page else [], [] if page and self.several else ["PGR [95 %]"]
        columns = ("arm", "mode", *shots, "n", "accuracy", "precision", "recall", "F1", *pgr)
        title = f"{report.head.experiment}: {report.head.task} (% ± standard error)"
        return Table(columns, rows, title=title, left=("mode",))

    def levels(self) -> dict[str, float]:
        """Accuracies of what students stand between."""
        return {mean.arm: mean.acc for mean in self.arm_means if mean.arm in LEVELS}

    def students(self) -> dict[str, Point]:
        """Every student in a figure, by method."""
        points = {}
        for mean in self.arm_means:
            if mean.arm == "student":
                gap = self.gap_of(mean.group)
                defined = gap is not None and gap.defined
                points[str(mean.method)] = Point(
                    title=group_title(mean.group),
                    acc=mean.acc,
                    ci95=mean.ci95,
                    pgr=gap.pgr if gap and defined else None,
                    pgr_ci95=gap.ci95 if gap and defined else None,
                    colour=colour_of(mean.group, self.arm_means),
                    marker=marker_of(mean.group, self.arm_means),
                )
        return points

    def figures(self, report: Report) -> Mapping[str, Drawing | None]:
        """Accuracy and PGR of every arm, and the methods between weak supervisor and ceiling."""
        return {
            "accuracy": self._dots(report),
            "pgr": self._gap_dots(report) if self.gaps else None,
            "methods": recovered_panels(self._by_method(), "method of the student"),
        }

    def _by_method(self) -> list[Column]:
        levels = self.levels()
        return [Column(method, None, levels, [point]) for method, point in self.students().items()]

    def _gap_dots(self, report: Report) -> Drawing:
        """PGR of every arm with its 95 % interval; an end that is unbounded is left out, and so is what is undefined."""
        gaps, means = self.gaps, self.arm_means

        def draw(figure: Any) -> None:
            axes = figure.subplots()
            clean(axes)
            for x, name in ((0, "weak"), (1, "ceiling")):
                axes.axvline(x, color=ARMS[name].colour, linestyle=":", linewidth=1)
            for y, one in enumerate(reversed(gaps)):
                colour = colour_of(one.group, means)
                if one.pgr is None or one.ci95 is None:
                    _undefined(axes, y, colour)
                    continue
                ends = [one.pgr if end is None else end for end in one.ci95]
                axes.plot(ends, [y, y], color=colour, linewidth=2, solid_capstyle="butt")
                axes.plot(one.pgr, y, marker_of(one.group, means), color=colour, markersize=7)
            axes.set_yticks(range(len(gaps)), [group_title(one.group) for one in reversed(gaps)])
            axes.set_xlabel(f"PGR on {report.head.task} (0 weak, 1 ceiling)\n(bars: 95 % interval)")
            axes.set_ylim(-0.6, len(gaps) - 0.4)

        return Drawing(draw, 1.0 + 0.36 * len(gaps), f"PGR of {len(gaps)} arms with intervals")

    def _dots(self, report: Report) -> Drawing:
        """Accuracy of every arm with its 95 % interval and its seeds, weak supervisor and ceiling as guides."""
        means = self.arm_means

        def draw(figure: Any) -> None:
            axes = figure.subplots()
            clean(axes)
            for mean in means:
                if mean.arm in ("weak", "ceiling"):
                    axes.axvline(100 * mean.acc, color=ARMS[mean.arm].colour, linestyle=":", linewidth=1)
            for y, mean in enumerate(reversed(means)):
                _dot(axes, y, mean, colour_of(mean.group, means), marker_of(mean.group, means))
            axes.set_yticks(range(len(means)), [group_title(mean.group) for mean in reversed(means)])
            marks = f"bars: 95 % interval{'; ticks: seeds' if self.several else ''}; n = {means[0].n}"
            axes.set_xlabel(f"accuracy on {report.head.task}, %\n({marks})")
            axes.margins(y=0.12)

        return Drawing(draw, 1.0 + 0.36 * len(means), f"accuracy of {len(means)} arms with intervals")


def _undefined(axes: Any, y: int, colour: str) -> None:
    axes.annotate("undefined", (0.5, y), ha="center", va="center", fontsize=9, color=colour)


def _dot(axes: Any, y: int, mean: Mean, colour: str, marker: str) -> None:
    axes.plot([100 * (x or 0) for x in mean.ci95], [y, y], color=colour, linewidth=2, solid_capstyle="butt")
    axes.plot(100 * mean.acc, y, marker, color=colour, markersize=7)
    if len(mean.per_seed) > 1:
        ticks = [100 * x for x in mean.per_seed]
        axes.plot(ticks, [y - 0.28] * len(ticks), "|", color=colour, markersize=6)


def _model(collected: Collected, arm: Arm) -> Model:
    run = collected.run
    scores, asked = collected.training[arm][collected.task], run.layout.evaluations[arm]
    table = confusion(scores)
    return Model(
        **about(arm),
        model=asked.settings.model,
        mode=collected.mode(arm, scores),
        objective=collected.objective(arm),
        asked=scores.task,
        num_fewshot=asked.style.num_fewshot,
        system_prompt=scores.system_prompt,
        training=Told.load(run.stages[asked.fit.name]) if asked.fit else None,
        sees_gold=parse_method(arm.method or "xent").sees_gold,
        **Scores.told(scores),
        unparsed=scores.unparsed,
        ties=scores.ties,
        confusion=None if table is None else table.tolist(),
    )


def scores_of(collected: Collected, group: Group) -> list[TaskScores]:
    """A group's scores on the training task, one entry a seed."""
    return [collected.training[arm][collected.task] for arm in group.arms]


def _means(collected: Collected) -> list[Mean]:
    """Every arm and method over its seeds: accuracy with an interval that includes their spread."""
    means = []
    for group in collected.groups(collected.training):
        scores = scores_of(collected, group)
        acc, *ends = mean_accuracy(stacked(scores, scores[0], len(scores)), scores[0].cluster)
        per_seed = [float(s.correct.mean()) for s in scores]
        means.append(Mean(**group.about, n=scores[0].n, acc=acc, ci95=(ends[0], ends[1]), per_seed=per_seed))
    return means


Measure = Callable[[Sequence[TaskScores]], Array | None]
"""A model's scores, one entry a seed, to a value of each row, [seeds, n], whose mean is the measure; None where none is."""


def correctness(scores: Sequence[TaskScores]) -> Array:
    """The rows whose mean is accuracy."""
    return stacked(scores, scores[0], len(scores))


def series(scores: Sequence[TaskScores], like: TaskScores, seeds: int, measure: Measure = correctness) -> Array | None:
    """A value of each row and seed, [seeds, n], whose mean is the measure; of a model that no seed changes, repeated.

    Args:
        scores: one entry a seed.
        like: whose questions they have to be of, in the same order.
        seeds: how many.
        measure: of what; None where there is none of these scores.
    """
    for one in scores:
        aligned(one, like)
    values = measure(scores)
    return None if values is None else np.broadcast_to(values, (seeds, values.shape[1]))


def recovered(collected: Collected, end: Collected | None = None, measure: Measure = correctness) -> list[Gap]:
    """PGR of every student, then of the untuned model and the controls, which tell how much of it needs no teacher.

    Args:
        collected: whose PGR.
        end: whose supervisor and ceiling it is measured against; None for those of `collected`.
        measure: of what.
    """
    end = end or collected
    weak, ceiling = (end.group(end.training, name) for name in ("weak", collected.ceiling))
    if weak is None or ceiling is None:
        return []
    groups = [
        g for g in collected.groups(collected.training) if g.name != collected.ceiling and kind_of(g.name).model == "strong"
    ]
    like, seeds = scores_of(end, ceiling)[0], list(collected.config.seeds)
    gaps = []
    for group in sorted(groups, key=lambda g: g.name != "student"):
        models = (scores_of(end, weak), scores_of(collected, group), scores_of(end, ceiling))
        rows = [values for m in models if (values := series(m, like, len(seeds), measure)) is not None]
        if len(rows) == len(models):
            found = gap.recovered(*rows, cluster=like.cluster)
            gaps.append(Gap(**group.about | {"seeds": seeds}, **vars(found)))
    return gaps


def capability(collected: Collected, group: Group) -> float:
    """A group's accuracy on the training task."""
    return float(np.mean([scores.correct.mean() for scores in scores_of(collected, group)]))
