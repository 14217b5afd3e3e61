"""The evaluations of a finished run, by arm, task, seed and shots: what every section of the report is formed from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, cast

from trainers.config.experiment import Experiment
from trainers.flow.run import Run
from trainers.report.entries import Mode, Objective
from trainers.steps.arm import Arm
from trainers.steps.evaluation import Evaluation, SafetyEvaluation
from w2s_tasks.plugin.forms import parted
from w2s_tasks.results.read import TaskScores, read_evaluation
from w2s_tasks.results.safety import split_of, subtask_of

MODES = {"w2s-hf": "loglikelihood", "w2s-classifier": "classifier", "w2s-chat": "first_token", "w2s-tinker": "loglikelihood"}

CEILINGS = ("ceiling", "ceiling_full")
"""The arms that learn gold labels as they are."""

Scores = dict[str, TaskScores]
Evaluations = dict[Arm, Scores]


@dataclass(frozen=True)
class Group:
    """One arm and method over its seeds."""

    name: str
    method: str | None
    arms: tuple[Arm, ...]

    @property
    def seeds(self) -> list[int | None]:
        """Its seeds; [None] where no seed changes it."""
        return [arm.seed for arm in self.arms]

    @property
    def about(self) -> dict[str, Any]:
        """How the report names it."""
        return {"arm": self.name, "method": self.method, "seeds": self.seeds}


@dataclass(frozen=True)
class Collected:
    """All evaluations: on the training task, on the safety tasks, and on those with other numbers of shots."""

    run: Run
    training: Evaluations
    safety: Evaluations
    ladder: dict[int | None, Evaluations]
    """Safety evaluations by number of shots, the main one included; None for each task's own number."""
    checkpoints: dict[float, Collected] = field(default_factory=dict)
    """The trained arms as they were after a share of their steps; `safety` with the untuned model, their reference."""
    prompts: dict[int, Evaluations] = field(default_factory=dict)
    """Evaluations on the training task by its further prompts, by their numbers from 2 on."""
    safety_prompts: dict[int, Evaluations] = field(default_factory=dict)
    """The same on the safety tasks, under the tasks' own names."""
    draws: dict[int, Evaluations] = field(default_factory=dict)
    """Evaluations on the training task with other shots, by the seeds that drew them."""
    safety_draws: dict[int, Evaluations] = field(default_factory=dict)
    """The same on the safety tasks."""
    formed: dict[type[Any], Any] = field(default_factory=dict)
    """Sections that are formed of them already."""

    @property
    def config(self) -> Experiment:
        """The experiment."""
        return self.run.layout.config

    @property
    def task(self) -> str:
        """The training task's name."""
        return self.run.layout.task.name

    def arms(self) -> list[Arm]:
        """All arms at the end of training, in the order of the report."""
        return self.run.layout.arms()

    @property
    def ceiling(self) -> str:
        """The arm that PGR measures against: on the student's rows; on all rows where only that is there."""
        arms = self.config.arms
        return "ceiling_full" if "ceiling_full" in arms and "ceiling" not in arms else "ceiling"

    def groups(self, evaluations: Evaluations) -> list[Group]:
        """Arms of the same name and method, in the order of the report."""
        found: dict[tuple[str, str | None], list[Arm]] = {}
        for arm in self.arms():
            if arm in evaluations:
                found.setdefault((arm.name, arm.method), []).append(arm)
        return [Group(*key, tuple(sorted(arms, key=lambda a: a.seed or 0))) for key, arms in found.items()]

    def group(self, evaluations: Evaluations, name: str) -> Group | None:
        """The first group of that arm."""
        return next((g for g in self.groups(evaluations) if g.name == name), None)

    def objective(self, arm: Arm) -> Objective:
        """What the arm's training optimised; a loss over the choices alone never teaches a format of text."""
        return self.run.layout.evaluations[arm].settings.learns if arm.method else None

    def mode(self, arm: Arm, scores: TaskScores) -> Mode:
        """How answers were scored."""
        mode = "generated" if scores.generated else scores.mode or MODES.get(self.run.model_of(arm).model, "loglikelihood")
        return cast(Mode, mode)

    def on_task(self, arm: Arm, scores: TaskScores) -> dict[str, Any]:
        """How the report names a safety task (`trainers.report.entries.OfTask`)."""
        return {"subtask": subtask_of(scores.task), "split": split_of(scores.task), "mode": self.mode(arm, scores)}


def about(arm: Arm) -> dict[str, Any]:
    """How the report names a model."""
    return {"arm": arm.name, "method": arm.method, "seed": arm.seed}


def matched(first: Group, second: Group, read: Callable[[Arm], Any]) -> tuple[list[Any], list[Any]]:
    """Two groups' values seed by seed; a group that no seed changes stays a single value."""
    if None in first.seeds or None in second.seeds:
        return [read(a) for a in first.arms], [read(a) for a in second.arms]
    by_seed = {a.seed: a for a in second.arms}
    both = [(a, by_seed[a.seed]) for a in first.arms if a.seed in by_seed]
    return [read(a) for a, _ in both], [read(b) for _, b in both]


def parts_of(scores: Scores) -> list[tuple[str, bool, list[str]]]:
    """Tasks that may be averaged: by split (test, hard) and by whether text was generated.

    A share of which more is not better is in no mean.
    """
    found: dict[tuple[str, bool], list[str]] = {}
    for task, one in scores.items():
        if one.ideal is not None:
            continue
        found.setdefault((split_of(task), one.generated), []).append(task)
    return [(*key, tasks) for key, tasks in sorted(found.items(), key=lambda item: (item[0][1], item[0][0] == "hard"))]


def collect(run: Run) -> Collected:
    """Read lm_eval's files of every evaluation stage.

    Raises:
        UserError: a file that is missing or not whole.
    """
    layout = run.layout
    found = Collected(run, {}, {}, {})
    ladder: dict[int | None, Evaluations] = {}
    for step in layout.steps.values():
        if not isinstance(step, Evaluation):
            continue
        scores = read_evaluation(run.folder_of(step), step.asked)
        arm, then, in_safety = replace(step.arm, at=None), found, isinstance(step, SafetyEvaluation)
        if not in_safety:  # a task that asks the training task's documents another way stands in for it
            scores = {layout.task.name: next(iter(scores.values()))}
        if step.arm.at is not None:
            then = found.checkpoints.setdefault(step.arm.at, Collected(run, {}, {}, {}))
        if step.prompt > 1:
            by_prompt = found.safety_prompts if in_safety else found.prompts
            by_prompt.setdefault(step.prompt, {})[arm] = {
                parted(name).own_prompt if in_safety else name: one for name, one in scores.items()
            }
        elif not step.headline:
            (found.safety_draws if in_safety else found.draws).setdefault(step.shot_seed, {})[arm] = scores
        elif not in_safety:
            then.training[arm] = scores
        elif then is found:
            ladder.setdefault(step.style.num_fewshot, {})[arm] = scores
        else:
            then.safety[arm] = scores
    return _ordered(found, ladder)


def _ordered(found: Collected, ladder: dict[int | None, Evaluations]) -> Collected:
    """With the ladder of shots, its main rung as the safety evaluations, and checkpoints beside the untuned model."""
    safety = found.config.safety
    main = ladder.get(safety.shots[0], {}) if safety else {}
    for then in found.checkpoints.values():
        then.safety.update({arm: scores for arm, scores in main.items() if arm.name == "zero_shot"})
    by_shots = dict(sorted(ladder.items(), key=lambda item: item[0] or 0))
    return replace(found, safety=main, ladder=by_shots, checkpoints=dict(sorted(found.checkpoints.items())))
