"""A finished run for Python and notebooks: the tables of its report as pandas frames, its figures as matplotlib's."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from trainers.report import comparison
from trainers.report.blocks import html
from trainers.report.collected import Collected, collect
from trainers.report.figures import Drawing
from trainers.report.frames import Table, tables
from trainers.report.questions import question_table
from trainers.report.report import here, read_report, reopened, runs_of
from trainers.report.section import Report
from trainers.report.sections.accuracy import Accuracy
from w2s_tasks.errors import UserError, nearest
from w2s_tasks.models.ref import ModelRef
from w2s_tasks.user_text import shown

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

QUESTIONS = "questions"


class Results:
    """A run's report. Every table of it is an attribute, as a frame with one row an arm, seed, task ..., as said below.

    `columns` tells what stands in a column and in which unit; ``tables/*.csv`` in the run folder hold the same. Shares are
    between 0 and 1: .01 is a point. What is undefined is a missing value. A frame is the caller's own copy.
    """

    arms: pd.DataFrame
    """A row a model: accuracy on the training task with its interval."""
    arm_means: pd.DataFrame
    """A row an arm and method: accuracy over seeds with its interval."""
    gaps: pd.DataFrame
    """A row an arm and method: PGR with its interval, missing where undefined, and the reason beside it."""
    gains: pd.DataFrame
    """A row an arm and method: what it gained over the weak supervisor and over the untuned model."""
    method_pairs: pd.DataFrame
    """A row a pair of the student's methods, compared question by question and seed by seed."""
    weak_labels: pd.DataFrame
    """A row a seed: how good the labels are that students learn from."""
    own_labels: pd.DataFrame
    """A row a seed and arm without a teacher, and part of its search: how good its labels are."""
    safety: pd.DataFrame
    """A row a model and safety task: accuracy, and the difference to the untuned model."""
    safety_gaps: pd.DataFrame
    """A row an arm, method, safety task and contrast: the difference over seeds, corrected."""
    safety_mean_gaps: pd.DataFrame
    """The same over the tasks of a split, or all."""
    tradeoff: pd.DataFrame
    """A row an arm and method: safety change beside accuracy."""
    discrimination: pd.DataFrame
    """A row an arm, method and task: AUROC."""
    drift: pd.DataFrame
    """A row an arm, method and safety task: the change of accuracy in parts."""
    diagnostics: pd.DataFrame
    """A row a model: how it stands to its supervisor."""
    curves: pd.DataFrame
    """A row an optimizer step of a training."""
    endings: pd.DataFrame
    """A row an arm and method: whether its held-back loss was still falling at the end of training."""
    tuned: pd.DataFrame
    """A row an arm and method, or a seed of it: which setting of a grid was chosen."""
    disagreements: pd.DataFrame
    """Questions on which the student overrode its supervisor."""
    commands: pd.DataFrame
    """How to measure each model again."""

    def __init__(self, report: Report, folder: Path) -> None:
        """Nothing is read yet.

        Args:
            report: what report.json holds.
            folder: where that is.
        """
        self.report, self.folder = report, folder

    @functools.cached_property
    def tables(self) -> Mapping[str, Table]:
        """All tables of the report by name."""
        return tables(self.report)

    def __getattr__(self, name: str) -> pd.DataFrame:
        if name.startswith("_"):
            raise AttributeError(name)
        return self._table(name).frame()

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self.tables})

    def _table(self, name: str) -> Table:
        if name == QUESTIONS:
            return self._questions
        if name not in self.tables:
            raise AttributeError(
                f"no table '{name}' in this report.{nearest(name, self.tables)} Known: {', '.join(self.tables)}."
            )
        return self.tables[name]

    @property
    def questions(self) -> pd.DataFrame:
        """A row a model and question: what was asked, what it answered, whether that is right; read from the run's stages.

        Raises:
            UserError: the stages are not here.
        """
        return self._questions.frame()

    @functools.cached_property
    def _questions(self) -> Table:
        return question_table(self._collected)

    @functools.cached_property
    def _collected(self) -> Collected:
        return collect(reopened(self.folder))

    def columns(self, table: str) -> dict[str, str]:
        """What stands in each column of a table, with its unit.

        Raises:
            AttributeError: no such table.
        """
        return self._table(table).columns

    @property
    def verdict(self) -> str:
        """The result in one sentence."""
        return self.report.of(Accuracy).verdict

    @property
    def plot(self) -> Plots:
        """The report's figures: ``report.plot.accuracy()``."""
        return Plots(self.report)

    @property
    def page(self) -> Path:
        """The report as a page, report.html."""
        return self.folder / "report.html"

    def model(self, arm: str, method: str | None = None, seed: int | None = None) -> ModelRef:
        """A model of the run, for `trainers.evaluate`; the first that fits.

        Args:
            arm: weak, student, ceiling ...
            method: of the student; any where None.
            seed: the repetition; any where None.

        Raises:
            UserError: none fits, or the stages are not here.
        """
        run = self._collected.run
        for one in self._collected.arms():
            if one.name == arm and method in (None, one.method) and seed in (None, one.seed):
                return run.model_of(one)
        known = ", ".join(dict.fromkeys(one.title for one in self._collected.arms()))
        raise UserError(f"no model of arm {shown(arm)}, method {shown(method)}, seed {shown(seed)}. Known: {known}.")

    def compare(self, *others: Results) -> Comparison:
        """This run beside others."""
        return Comparison([self, *others])

    def __repr__(self) -> str:
        return f"<Results of {self.report.head.experiment} on {self.report.head.task}: {self.verdict}>"

    def _repr_html_(self) -> str:
        """What a notebook shows: what the terminal does of accuracy and gaps; all text is escaped."""
        section = self.report.of(Accuracy)
        return str(html(section.terminal(self.report)))

    def __getstate__(self) -> dict[str, object]:
        return {"report": self.report, "folder": self.folder}


class Plots:
    """Figures of a report by name, as matplotlib figures; ``savefig`` writes one, a notebook shows it.

    Each is called without arguments and raises UserError where matplotlib is missing, or there is nothing to draw.
    """

    accuracy: Callable[[], Figure]
    """Accuracy of every arm with its interval."""
    pgr: Callable[[], Figure]
    """PGR of every arm with its interval."""
    methods: Callable[[], Figure]
    """Accuracy of each method between weak supervisor and ceiling, PGR below."""
    safety: Callable[[], Figure]
    """Accuracy on every safety task."""
    safety_gaps: Callable[[], Figure]
    """Differences to the untuned model on every safety task."""
    safety_to_ceiling: Callable[[], Figure]
    """The student's differences to the ceiling."""
    tradeoff: Callable[[], Figure]
    """Safety change against accuracy."""
    curves: Callable[[], Figure]
    """Training loss and accuracy on held-back rows."""
    auroc: Callable[[], Figure]
    """AUROC of every arm and task."""
    drift: Callable[[], Figure]
    """The change of accuracy on the safety tasks in its parts."""
    shots: Callable[[], Figure]
    """Safety accuracy by number of shots."""

    def __init__(self, report: Report) -> None:
        self._drawings: dict[str, Drawing | None] = {}
        for section in report.sections.values():
            self._drawings.update(section.figures(report))

    def __getattr__(self, name: str) -> Callable[[], Figure]:
        if name.startswith("_"):
            raise AttributeError(name)
        if name not in self._drawings:
            known = ", ".join(self._drawings)
            raise AttributeError(f"no figure '{name}' in this report.{nearest(name, self._drawings)} Known: {known}.")
        return functools.partial(self._figure, name)

    def _figure(self, name: str) -> Figure:
        drawing = self._drawings[name]
        if drawing is None:
            raise UserError(f"plot.{name}: this run has nothing to draw there.")
        return drawing.figure()

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._drawings})


class Comparison:
    """Several runs side by side, as ``w2s report A B`` has them; not paired, where they are on other rows or tasks."""

    def __init__(self, runs: list[Results]) -> None:
        self.runs = runs
        self._reports = [run.report for run in runs]

    @property
    def arm_means(self) -> pd.DataFrame:
        """`Results.arm_means` of all runs, with a column for the run."""
        return self._joined("arm_means")

    @property
    def gaps(self) -> pd.DataFrame:
        """`Results.gaps` of all runs, with a column for the run."""
        return self._joined("gaps")

    def _joined(self, table: str) -> pd.DataFrame:
        import pandas as pd

        frames = []
        for run in self.runs:
            frame = cast("pd.DataFrame", getattr(run, table))
            frame.insert(0, "run", run.report.head.experiment)
            frames.append(frame)
        return pd.concat(frames, ignore_index=True)

    def plot(self) -> Figure:
        """Accuracy and PGR by size of the strong model, or by run.

        Raises:
            UserError: one run alone, or no matplotlib.
        """
        drawing = comparison.recovered_panels(comparison.columns(self._reports), "run")
        if drawing is None:
            raise UserError("a comparison needs two runs or more.")
        return drawing.figure()

    def __repr__(self) -> str:
        return f"<Comparison of {', '.join(run.report.head.experiment for run in self.runs)}>"

    def _repr_html_(self) -> str:
        return str(html([comparison.table(self._reports)]))


def load_report(place: str | Path) -> Results:
    """A finished run's report.

    Args:
        place: a run folder, a report.json, or the URL of a run in an object store.

    Raises:
        UserError: no report there, one of another version, or several (a sweep's folder).
    """
    folders = runs_of([here(str(place))])
    if len(folders) > 1:
        names = ", ".join(folder.name for folder in folders[:5])
        raise UserError(f"{place} holds the reports of a sweep; name one cell's folder: cells/{names} ...")
    report = read_report(folders[0])
    return Results(report, folders[0] if folders[0].is_dir() else folders[0].parent)
