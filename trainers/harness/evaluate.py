"""Tasks and models of lm_eval, in process: the one renderer for training, labelling and evaluation.

`Harness` finds and loads tasks. `evaluate` runs lm_eval itself and leaves its result files.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lm_eval
import lm_eval.api.model
import lm_eval.api.task
import lm_eval.evaluator as evaluator
from lm_eval.api.task import ConfigurableTask

from trainers.harness.pool import ModelPool
from trainers.harness.tasks import SEED, HarnessTask, PromptStyle, reason
from trainers.store import processes
from w2s_tasks import TASK_PATH, register
from w2s_tasks.errors import UserError
from w2s_tasks.models.ref import ModelRef
from w2s_tasks.plugin import environment
from w2s_tasks.plugin.forms import parted
from w2s_tasks.plugin.manager import W2STaskManager
from w2s_tasks.plugin.saving import Tracker
from w2s_tasks.plugin.task_settings import differing, refuse_two
from w2s_tasks.results.read import read_evaluation
from w2s_tasks.sandbox import consent
from w2s_tasks.user_text import shown

__all__ = ["Harness", "HarnessTask", "ModelPool", "PromptStyle", "evaluate"]


class Harness:
    """The task index of a run, and its loaded tasks."""

    def __init__(self, include_path: Sequence[str] = ()) -> None:
        register()
        self.include_path = list(include_path)
        self._manager = W2STaskManager(include_path=self.include_path)
        self._members: dict[str, list[HarnessTask]] = {}
        """The tasks of every name that was asked for, each with the settings that it has there."""

    def load(self, names: Sequence[str]) -> list[HarnessTask]:
        """Load tasks and groups by name; groups become their tasks, with the settings that the groups give them.

        Raises:
            UserError: an unknown name, a task whose data or YAML is at fault, or two of one name with different settings.
        """
        found: dict[str, HarnessTask] = {}
        for name in names:
            if name not in self._members:
                self._members[name] = [self._view(task) for task in self._load(name).values()]
            for task in self._members[name]:
                refuse_two(found.setdefault(task.name, task).task, task.task)
        return list(found.values())

    def _view(self, task: ConfigurableTask) -> HarnessTask:
        """The view of a task, the same for all names that it was loaded by with the same settings."""
        known = (view for views in self._members.values() for view in views if view.name == task.task_name)
        return next((view for view in known if not differing(view.task, task)), None) or HarnessTask(task)

    def task(self, name: str) -> HarnessTask:
        """Load one task.

        Raises:
            UserError: as `load`, and where the name is a group.
        """
        tasks = self.load([name])
        if len(tasks) != 1 or tasks[0].name != name:
            raise UserError(f"'{name}' is a group; name one of its tasks: {', '.join(t.name for t in tasks)}.")
        return tasks[0]

    def names(self, names: Sequence[str]) -> list[str]:
        """The tasks that names and groups stand for, by the YAML files alone: no data is read."""
        found: dict[str, None] = {}
        for name in names:
            entry = self._manager.task_index.get(name)
            members = (entry.cfg or {}).get("task") if entry else None
            if isinstance(members, list):
                found.update(dict.fromkeys(self.names([m if isinstance(m, str) else str(m.get("task")) for m in members])))
            else:
                found[name] = None
        return list(found)

    def _load(self, name: str) -> dict[str, ConfigurableTask]:
        try:
            tasks: dict[str, ConfigurableTask] = self._manager.load([name])["tasks"]
        except UserError:
            raise
        except Exception as error:  # lm_eval raises what a task's YAML, functions and data raise: anything
            raise UserError(f"the task '{name}'{self._place(name)} can't be loaded: {reason(error)}") from error
        return tasks

    def _place(self, name: str) -> str:
        """Where a task's YAML is, and which data files it names."""
        entry = self._manager.task_index.get(parted(name).task)
        if entry is None or entry.yaml_path is None:
            return ""
        files = ((entry.cfg or {}).get("dataset_kwargs") or {}).get("data_files")
        return f" ({entry.yaml_path}{f'; its rows: {shown(files)}' if files else ''})"

    def folder_of(self, name: str) -> Path | None:
        """The folder that lm_eval's ``--include_path`` has to name for a task; None for lm_eval's own."""
        entry = self._manager.task_index.get(parted(name).task)
        if entry is None or entry.yaml_path is None:
            return None
        place = Path(entry.yaml_path).resolve()
        folders = [*(Path(path).absolute() for path in self.include_path), TASK_PATH]
        return next((folder for folder in folders if place.is_relative_to(folder.resolve())), None)

    @property
    def manager(self) -> W2STaskManager:
        """The task manager, for lm_eval."""
        return self._manager


@contextlib.contextmanager
def _lm_eval_quiet() -> Iterator[None]:
    """Keep lm_eval's own lines and bars off the terminal; ask for the environment once a process, not once a run."""
    logger = logging.getLogger("lm_eval")
    level, original = logger.level, environment.use(evaluator)
    bars = [(module, module.tqdm) for module in (lm_eval.api.task, lm_eval.api.model)]
    for module, bar in bars:
        module.tqdm = functools.partial(bar, disable=True)
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        environment.restore(evaluator, original)
        for module, bar in bars:
            module.tqdm = bar


@contextlib.contextmanager
def _shots_as_ever(tasks: Iterable[HarnessTask]) -> Iterator[None]:
    """Leave the tasks' samplers, which an evaluation shares with them, with the seed that they had."""
    try:
        yield
    finally:
        for task in tasks:
            task.task.set_fewshot_seed(seed=SEED)


def evaluate(
    harness: Harness,
    pool: ModelPool,
    ref: ModelRef,
    limits: Mapping[HarnessTask, int | None],
    out: Path,
    *,
    style: PromptStyle,
    shot_seed: int = SEED,
) -> None:
    """Evaluate a model through lm_eval and leave its result and sample files, which are read as well, below `out`.

    Args and raises: as `ask`; the files that lm_eval wrote are not whole.
    """
    results = ask(harness, pool, ref, limits, out, style=style, shot_seed=shot_seed)
    if results is not None:
        read_evaluation(out, {task.name: task.eval_rows(limit) for task, limit in limits.items()})


def ask(
    harness: Harness,
    pool: ModelPool,
    ref: ModelRef,
    limits: Mapping[HarnessTask, int | None],
    out: Path,
    *,
    style: PromptStyle,
    shot_seed: int = SEED,
) -> dict[str, Any] | None:
    """Evaluate a model through lm_eval and leave its result and sample files below `out`.

    Args:
        harness: the task index.
        pool: where the model is loaded.
        ref: the model.
        limits: for each task, with the settings that it was loaded with, its first n documents; None for all.
        out: the folder to fill.
        style: how to prompt.
        shot_seed: draws the shots.

    Returns:
        lm_eval's results; None in further processes of a launch.

    Raises:
        UserError: a file could not be written.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    lm = pool.load(ref)
    # lm_eval takes one limit for all tasks, or the rows of each.
    same = len(set(limits.values())) == 1
    chosen = {task.name: list(range(task.eval_rows(limit))) for task, limit in limits.items()}
    tracker = Tracker(output_path=str(out))
    with _lm_eval_quiet(), pool.booked(lm, out), _shots_as_ever(limits):
        results = lm_eval.simple_evaluate(
            model=lm,
            model_args=dict(ref.args),
            tasks=[task.as_loaded() for task in limits],
            num_fewshot=style.num_fewshot,
            limit=next(iter(limits.values())) if same else None,
            samples=None if same else chosen,
            fewshot_random_seed=shot_seed,
            log_samples=True,
            evaluation_tracker=tracker,
            system_instruction=style.system_prompt,
            apply_chat_template=style.chat_template,
            fewshot_as_multiturn=style.chat_template and style.multiturn,
            task_manager=harness.manager,
            confirm_run_unsafe_code=consent.given(),
        )
        if not processes.is_main():
            return None  # the main process gathered the answers
        results["config"]["model"] = ref.model
        samples = results.pop("samples")
        tracker.save_results_aggregated(results=results, samples=samples)
        for task in results["configs"]:
            tracker.save_results_samples(task_name=task, samples=samples[task])
    tracker.check()
    return dict(results)
