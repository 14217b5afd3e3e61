"""One model on some tasks, outside an experiment: lm_eval's results, and accuracies with intervals as a frame."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval.api.registry import model_registry

from trainers.harness.evaluate import Harness, ModelPool, PromptStyle, ask
from trainers.report.frames import Row, Table
from trainers.store.costs import Budget
from w2s_tasks import register
from w2s_tasks.errors import UserError, nearest
from w2s_tasks.keys import refuse
from w2s_tasks.models.ref import ModelRef
from w2s_tasks.own.task import RowsTask
from w2s_tasks.plugin.eval_arguments import mapping
from w2s_tasks.plugin.saving import check_output
from w2s_tasks.results.read import TaskScores, read_evaluation
from w2s_tasks.results.stats import accuracy_interval
from w2s_tasks.sandbox import consent
from w2s_tasks.user_text import shown

if TYPE_CHECKING:
    import pandas as pd

ACCURACIES = {
    "task": "The task's name.",
    "n": "Questions.",
    "acc": "Share of questions that are answered rightly, 0 to 1.",
    "stderr": "Its standard error.",
    "ci95.low": "Lower end of its 95 % interval.",
    "ci95.high": "Upper end of its 95 % interval.",
    "unparsed": "Share of the questions without an answer that could be read, 0 to 1.",
    "ties": "Share of the questions whose likeliest choices are equally likely, 0 to 1.",
}
METRICS = {
    "task": "The task's name.",
    "metric": "lm_eval's name of it.",
    "filter": "What lm_eval did to the answers before.",
    "value": "In the metric's own unit; accuracies from 0 to 1.",
    "stderr": "Its standard error; missing where lm_eval gives none.",
    "n": "Documents.",
}


@dataclass(frozen=True)
class Measured:
    """What came of an evaluation."""

    results: dict[str, Any] = field(repr=False)
    """lm_eval's own results: what results_*.json holds."""
    scores: dict[str, TaskScores] | str = field(repr=False)
    """Every answer by task, or why the answers can't be read."""

    @property
    def accuracies(self) -> pd.DataFrame:
        """A row a task: accuracy with its 95 % interval over questions, clustered where questions come in groups.

        Raises:
            UserError: a task whose answers this suite does not know how to read; `metrics` has what lm_eval says.
        """
        if isinstance(self.scores, str):
            raise UserError(f"no accuracies by question: {self.scores} Look at metrics.")
        return Table("A task.", [_accuracy(one) for one in self.scores.values()], ACCURACIES).frame()

    @property
    def metrics(self) -> pd.DataFrame:
        """A row a task and metric, as lm_eval has them."""
        return Table("A metric of a task.", list(_metrics(self.results)), METRICS).frame()

    def _repr_html_(self) -> str:
        frame = self.metrics if isinstance(self.scores, str) else self.accuracies
        return str(frame.to_html(escape=True, index=False))


def _accuracy(scores: TaskScores) -> Row:
    low, high = accuracy_interval(scores.correct, scores.cluster)
    return {
        "task": scores.task,
        "n": scores.n,
        "acc": float(scores.correct.mean()),
        "stderr": scores.stderr.get("acc"),
        "ci95.low": low,
        "ci95.high": high,
        "unparsed": scores.unparsed,
        "ties": scores.ties,
    }


def _metrics(results: Mapping[str, Any]) -> Iterator[Row]:
    for task, entry in results["results"].items():
        for key, value in entry.items():
            metric, comma, name = key.partition(",")
            if comma and not metric.endswith("_stderr") and isinstance(value, int | float):
                error = entry.get(f"{metric}_stderr,{name}")
                known = float(error) if isinstance(error, int | float) else None
                n = results["n-samples"].get(task, {}).get("effective")
                yield dict(zip(METRICS, (task, metric, name, float(value), known, n), strict=True))


def measure(
    model: str | ModelRef,
    tasks: Sequence[str | RowsTask],
    *,
    model_args: str | Mapping[str, Any] | None,
    num_fewshot: int | None,
    limit: int | None,
    chat_template: bool,
    system_prompt: str | None,
    include_path: Sequence[str],
    out: Path | None,
    max_cost: float | None,
) -> Measured:
    """Evaluate a model; see `trainers.api.evaluate`.

    Raises:
        UserError: an unknown model, argument or task; no task; a folder that can't be written.
    """
    if not tasks:
        raise UserError("no tasks; name some, e.g. w2s_sst2 (`w2s tasks` lists ours).")
    if limit is not None and limit < 1:
        raise UserError(f"limit {limit}: a number of documents from 1 on, or None for all.")
    if num_fewshot is not None and num_fewshot < 0:
        raise UserError(f"num_fewshot {num_fewshot}: a number of solved questions from 0 on.")
    ref = _ref(model, model_args)
    own = [task for task in tasks if isinstance(task, RowsTask)]
    harness = Harness([*include_path, *dict.fromkeys(task.folder for task in own)])
    loaded = harness.load([task.name if isinstance(task, RowsTask) else task for task in tasks])
    unsafe = next((task.name for task in loaded if task.is_unsafe), None)
    if unsafe and not consent.given():
        raise UserError(f"the task '{unsafe}' runs programs that a model writes: confirm_run_unsafe_code=True.")
    style = PromptStyle(num_fewshot, chat_template, system_prompt)
    with _folder(out) as folder:
        found = ask(harness, ModelPool(Budget(max_cost)), ref, dict.fromkeys(loaded, limit), folder, style=style)
        assert found is not None  # noqa: S101 - this is the only process
        try:
            return Measured(found, read_evaluation(folder))
        except UserError as error:
            return Measured(found, str(error))


def _ref(model: str | ModelRef, model_args: str | Mapping[str, Any] | None) -> ModelRef:
    args = mapping(model_args, "model_args")
    if isinstance(model, ModelRef):
        if args:
            raise UserError("model_args: this model has its own already; leave them out, or give its name.")
        return model
    register()
    if model not in model_registry:
        raise UserError(f"no model {shown(model)} in lm_eval.{nearest(str(model), list(model_registry))}")
    refuse(args, "model_args")
    return ModelRef(model, args)


@contextlib.contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    """Where lm_eval writes; a temporary folder where nothing is to be kept."""
    if out is not None:
        check_output(str(out), "output_path")
        yield out
        return
    with tempfile.TemporaryDirectory(prefix="w2s-") as folder:
        yield Path(folder)
