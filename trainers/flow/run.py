"""A layout over a store: the keys of its steps, and building what is missing."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from trainers.config.experiment import Experiment
from trainers.fit.trainer import TRAINERS, Code, untuned
from trainers.flow.layout import Layout
from trainers.flow.progress import Progress
from trainers.harness.pool import ModelPool
from trainers.plugin_loader import used_by
from trainers.steps.arm import Arm
from trainers.steps.evaluation import evaluated_model
from trainers.steps.step import Step
from trainers.store import processes
from trainers.store.costs import Budget
from trainers.store.remote import Remote, open_remote
from trainers.store.stages import Stage, Store, recipe_key
from w2s_tasks.code_scope import code_hash, reached
from w2s_tasks.errors import UserError
from w2s_tasks.models.ref import ModelRef
from w2s_tasks.plugin.eval_arguments import check_arguments
from w2s_tasks.sandbox import consent


def _code(step: Step) -> list[Code]:
    return [step.build, *step.code]


class Run:
    """A layout and the stages of its steps.

    A step's key is the hash of its recipe, the code that it stands on, the model it loads and the keys of its inputs. So all
    keys are known before anything is built, and what is there is not done again.
    """

    def __init__(
        self,
        layout: Layout,
        folder: Path,
        *,
        pool: ModelPool | None = None,
        identities: dict[str, str] | None = None,
        remote: Remote | None = None,
    ) -> None:
        """Nothing is built or read yet.

        Args:
            layout: the steps.
            folder: where the report goes, and the stages unless `build` is given a store.
            pool: loaded models to share between runs.
            identities: model identities to share between runs, filled as they are found.
            remote: the object store behind the folder.
        """
        self.layout, self.folder, self.remote = layout, folder, remote
        self.pool = pool or ModelPool()
        self.stages: dict[str, Stage] = {}
        """Those of the steps that are built, by the steps' names."""
        self._keys: dict[str, str] = {}
        self._identities = identities if identities is not None else {}

    def recipe(self, step: Step) -> dict[str, Any]:
        """All that a step's result depends on; its hash is the stage's key."""
        return {
            "kind": step.kind,
            "code": code_hash(_code(step)),
            "settings": step.recipe(),
            "inputs": [self.key(i) for i in step.needs],
            "model": step.base.identity(self._identities) if step.base and not step.start else None,
        }

    def stage(self, step: Step, store: Store) -> Stage:
        """The stage of a step, built where it is not there; its inputs are."""
        plugins = [{"name": p.name, "version": p.version, "sha256": p.sha256} for p in used_by(reached(_code(step)))]
        stage = store.build(step.kind, self.recipe(step), functools.partial(step.build, self), {"plugins": plugins})
        self.stages[step.name] = stage
        return stage

    def key(self, step: Step) -> str:
        """The stage key of a step."""
        if step.name not in self._keys:
            self._keys[step.name] = recipe_key(self.recipe(step))
        return self._keys[step.name]

    def folder_of(self, step: Step) -> Path:
        """The folder of a step that is built."""
        return self.stages[step.name].path

    def model_of(self, arm: Arm) -> ModelRef:
        """The model that an arm led to, once it is built."""
        return evaluated_model(self.layout.evaluations[arm], self)

    def build(self, progress: Progress, store: Store | None = None) -> None:
        """Build every step that is not there; afterwards `stages` holds them all.

        Args:
            progress: says what is under way.
            store: where the stages are; by default the run folder's own.

        Raises:
            UserError: with what to do; what was finished stays.
        """
        store = store or Store(self.folder, remote=self.remote)
        self.pool.note = progress.note
        self.check_models()
        steps = list(self.layout.steps.values())
        for number, step in enumerate(steps, start=1):
            there = store.find(step.kind, self.key(step)) if progress.new_only else None
            if there:
                self.pool.budget.book_stage(there)
                self.stages[step.name] = there
                continue
            with progress.step(number, len(steps), step.title) as shown:
                stage = self.stage(step, store)
                self.pool.budget.book_stage(stage)
                shown.done(stage.seconds, stage.reused)

    def check_models(self) -> None:
        """Refuse, before any is trained, what a model or its training would not take, and programs nobody agreed to."""
        unsafe = next((task.name for task in self.layout.tasks.all if task.is_unsafe), None)
        if unsafe and not consent.given():
            raise UserError(
                f"the task '{unsafe}' runs programs that a model writes, in a sandbox. Say that you want it: "
                f"{consent.OPTION}."
            )
        calibrated = next((arm for arm in self.layout.arms() if arm.kind.calibrated), None)
        if calibrated and processes.count() > 1:
            raise UserError(f"{calibrated.name} is evaluated in one process: run it without accelerate launch.")
        for section in ("weak", "strong"):
            settings = getattr(self.layout.config, section)
            ref = untuned(settings, self.layout.task)
            check_arguments(ref.model, ref.args, f"{section}.model_args")
            if check := TRAINERS[settings.trainer].check:
                check(settings)


def open_run(config: Experiment, runs_dir: Path, max_cost: float | None = None, store: str | None = None) -> Run:
    """The run of an experiment over its run folder.

    Args:
        config: the experiment.
        runs_dir: where run folders are.
        max_cost: what services may cost in all, in USD.
        store: the URL of an object store behind the folder.

    Raises:
        UserError: as `Layout.load`; a store that can't be reached or written.
    """
    remote = open_remote(store, config.name)
    return Run(Layout.load(config), runs_dir / config.name, pool=ModelPool(Budget(max_cost)), remote=remote)
