"""lm_eval on one model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from trainers.fit.trainer import Code, model_code, untuned
from trainers.harness.evaluate import Harness, evaluate
from trainers.harness.tasks import SEED, HarnessTask, PromptStyle
from trainers.labels import shots
from trainers.steps.arm import Arm
from trainers.steps.fit import Asking, model_of
from trainers.steps.source import Source, read_labels
from trainers.steps.step import Ground, Step
from trainers.training.kept import adapter_at
from w2s_tasks.models.ref import VLLM_MODEL, ModelRef
from w2s_tasks.models.vllm import on_server
from w2s_tasks.scoring.calibration import Calibration


@dataclass(frozen=True, eq=False, kw_only=True)
class Evaluation(Asking):
    """lm_eval on one model: the training task, or one that asks its documents another way."""

    kind: ClassVar[str] = "evaluate"
    arm: Arm
    harness: Harness
    limits: Mapping[HarnessTask, int | None]
    """The tasks, each with how many of its documents are asked; None for all."""
    style: PromptStyle
    calibration: Calibration | None = None
    """The prior that is taken out of its log-likelihoods."""
    engine: str = "hf"
    """What asks a language model: this process, or a server of vLLM's."""
    base_url: str | None = None
    """The server's."""
    prompt: int = 1
    """Which of the tasks' prompts asks, counted from 1; `limits` names the tasks in it."""
    shot_seed: int = SEED
    """What draws the shots of the tasks' training rows."""

    @property
    def name(self) -> str:
        """By its model; with a further prompt or other shots by those too."""
        return f"evaluate{self._otherwise}/{self.arm.title}"

    @property
    def title(self) -> str:
        """By its model."""
        return f"evaluate {self.arm.title}{self._told_otherwise}"

    @property
    def headline(self) -> bool:
        """Whether it asks by the tasks' own prompts and with the usual shots."""
        return self.prompt == 1 and self.shot_seed == SEED

    @property
    def _otherwise(self) -> str:
        prompt = "" if self.prompt == 1 else f"@prompt{self.prompt}"
        return prompt if self.shot_seed == SEED else f"{prompt}@shots{self.shot_seed}"

    @property
    def _told_otherwise(self) -> str:
        prompt = "" if self.prompt == 1 else f", prompt {self.prompt}"
        return prompt if self.shot_seed == SEED else f"{prompt}, shots by seed {self.shot_seed}"

    def by(self, prompt: int) -> Self:
        """The same with another of the tasks' prompts.

        Raises:
            UserError: a task has no prompt of that number.
        """
        return replace(self, prompt=prompt, limits={task.asked_by(prompt): limit for task, limit in self.limits.items()})

    def recipe(self) -> dict[str, Any]:
        """Documents, prompts, and the model where no training says which."""
        shots = self.shot_seed
        return {
            "tasks": {t.name: [t.renderer_hash(self.style, shots), t.eval_hash(n)] for t, n in self.limits.items()},
            "style": vars(self.style),
            "untrained": None if self.fit else vars(untuned(self.settings, self.task)),
            **({} if self.arm.at is None else {"at": self.arm.at}),
            **({} if self.engine == "hf" else {"engine": self.engine}),
            **({"calibration": self.calibration} if self.calibration else {}),
            **({} if shots == SEED else {"shot_seed": shots}),
        }

    @property
    def code(self) -> tuple[Code, ...]:
        """What answers."""
        return super().code if self.engine == "hf" else model_code(VLLM_MODEL)

    def rows(self) -> int:
        """The documents."""
        return sum(self.asked.values())

    @property
    def asked(self) -> dict[str, int]:
        """How many documents of each task it asks."""
        return {task.name: task.eval_rows(limit) for task, limit in self.limits.items()}

    def questions(self, ground: Ground) -> Mapping[HarnessTask, int | None]:
        """The tasks as they are asked, with their limits."""
        return self.limits

    def build(self, ground: Ground, out: Path) -> None:
        """Leave lm_eval's own files."""
        model, questions = evaluated_model(self, ground), self.questions(ground)
        evaluate(self.harness, ground.pool, model, questions, out, style=self.style, shot_seed=self.shot_seed)


@dataclass(frozen=True, eq=False, kw_only=True)
class InContext(Evaluation):
    """lm_eval on an untuned model, with rows in its prompt that another one labelled."""

    shown: Source
    """The labels."""

    @property
    def inputs(self) -> tuple[Step, ...]:
        """Where the labels come from."""
        return self.shown.inputs

    @property
    def code(self) -> tuple[Code, ...]:
        """What answers, and what makes shots of labels."""
        return *super().code, *self.shown.code, HarnessTask.with_shots

    def recipe(self) -> dict[str, Any]:
        """The labels and the draw too."""
        return {**super().recipe(), **self.shown.recipe(), "seed": self.shown.split.seed}

    def questions(self, ground: Ground) -> Mapping[HarnessTask, int | None]:
        """The task with the same shots before every document."""
        seed, k = self.shown.split.seed, self.style.num_fewshot or 0
        labels = read_labels(self.shown, ground, seed)
        rows = shots.drawn(labels, k, np.random.default_rng(seed)).tolist()
        docs = self.task.docs_of([labels.row_id[row] for row in rows])
        return {task.with_shots(docs, shots.answers(labels, rows)): limit for task, limit in self.limits.items()}


@dataclass(frozen=True, eq=False, kw_only=True)
class SafetyEvaluation(Evaluation):
    """lm_eval on the safety tasks, with one number of shots."""

    kind: ClassVar[str] = "safety"
    main: bool = True
    """False for a rung of the ladder of shots beside the main one."""

    @property
    def name(self) -> str:
        """By its model; a further rung by its shots too."""
        return f"safety{'' if self.main else f'@{self.style.num_fewshot}'}{self._otherwise}/{self.arm.title}"

    @property
    def title(self) -> str:
        """By its model."""
        return f"safety of {self.arm.title}{'' if self.main else f', {self.style.num_fewshot} shots'}{self._told_otherwise}"


def evaluated_model(step: Evaluation, ground: Ground) -> ModelRef:
    """The model that an evaluation asks, once its training is there; the untuned one where there is none."""
    ref = model_of(step.fit, step.settings, step.task, ground)
    if step.fit is not None and step.arm.at is not None:
        ref = replace(ref, args={**ref.args, "peft": str(adapter_at(ground.folder_of(step.fit), step.arm.at))})
    if step.calibration:
        ref = replace(ref, args={**ref.args, "calibrate": step.calibration})
    return ref if step.engine == "hf" else on_server(ref, step.base_url)
