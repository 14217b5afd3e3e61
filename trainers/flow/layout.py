"""An experiment from its first row to its last evaluation. Read this file first: it is the whole loop.

    task -> split -> weak.fit -> labels -> for each arm, method and seed: label operations -> fit -> lm_eval -> report

A `Layout` needs the configuration and the tasks, and loads nothing: `w2s plan` shows it, a `Run` builds it. What each step
depends on and does is in `trainers.steps`; what a method does before its student learns is in `trainers.steps.teachers`; the
report is made of the evaluations by `trainers.report`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from trainers.config.experiment import Evaluate, Experiment, Safety
from trainers.config.methods import parse_method
from trainers.config.primary import Primary
from trainers.fit.language_model import LanguageModel
from trainers.fit.prepare import drawn
from trainers.fit.trainer import TRAINERS, training_style
from trainers.flow.trial import try_computed, try_parts
from trainers.harness.evaluate import Harness
from trainers.harness.tasks import HarnessTask, UnloadedTask
from trainers.labels.arms import entry_of, is_plain, kind_of
from trainers.labels.ask import OverChoices
from trainers.labels.solutions import Solutions
from trainers.steps.answers import Answers, Search, SearchPart
from trainers.steps.arm import Arm
from trainers.steps.evaluation import Evaluation, InContext, SafetyEvaluation
from trainers.steps.fit import Fit
from trainers.steps.prepared import Prepared
from trainers.steps.source import Labels, Source, Split
from trainers.steps.step import Step
from trainers.steps.teachers import AnyStep, Repetition, answers_of, labels_for
from trainers.steps.tuned import trials, tuned
from trainers.training.settings import ModelSettings
from w2s_tasks.errors import UserError, nearest
from w2s_tasks.user_text import shown


@dataclass(frozen=True)
class Tasks:
    """The tasks of an experiment."""

    harness: Harness
    training: HarnessTask
    asked: Mapping[str, HarnessTask]
    """By name, those that ask the training task's documents another way."""
    safety: list[HarnessTask]
    first: list[HarnessTask]
    """Those that the strong model is prepared on."""

    @property
    def all(self) -> list[HarnessTask]:
        """The training task and all others."""
        return [self.training, *self.asked.values(), *self.safety]

    @classmethod
    def load(cls, config: Experiment, harness: Harness) -> Tasks:
        """Load them, and refuse what can't be trained on or asked before anything is trained.

        Raises:
            UserError: a task that does not fit its place. MissingDataError: its data is not here.
        """
        training = harness.task(config.training_task)
        training.check_trainable()
        _check_choices(config, training)
        try_parts(config, training)
        safety = harness.load(config.safety.tasks) if config.safety else []
        names = [task.name for task in safety]
        for name in config.safety.limits if config.safety else ():
            if name not in names:
                raise UserError(f"safety.limits: no task '{name}' here.{nearest(name, names)} Known: {', '.join(names)}.")
        asked = {n: harness.task(n) for n in (config.evaluate.task, config.evaluate.tuned_task) if n}
        found = cls(harness, training, asked, safety, harness.load(names_first(config)) if names_first(config) else [])
        for task in found.first:
            drawn(task, rows=1)
        for task in found.all:
            task.check_evaluable()
        return found

    @classmethod
    def named(cls, config: Experiment, harness: Harness) -> Tasks:
        """The same by name alone, for a plan where the data is not here."""
        asked = {n: UnloadedTask(n) for n in (config.evaluate.task, config.evaluate.tuned_task) if n}
        safety = harness.names(config.safety.tasks) if config.safety else []
        first: list[HarnessTask] = [UnloadedTask(name) for name in names_first(config)]
        return cls(harness, UnloadedTask(config.training_task), asked, [UnloadedTask(name) for name in safety], first)


def names_first(config: Experiment) -> list[str]:
    """The tasks that the strong model is prepared on."""
    prepare = config.strong.prepare if isinstance(config.strong, LanguageModel) else None
    return prepare.tasks if prepare else []


def _check_choices(config: Experiment, task: HarnessTask) -> None:
    """Refuse labels of another kind than the task's, and an arm that needs classes where rows have choices of their own.

    Raises:
        UserError: names it.
    """
    if task.generates != (config.labels == "generate"):
        raise UserError(
            f"labels: generate is for tasks whose answers are generated; '{task.name}' is multiple_choice. Use soft or hard."
            if config.labels == "generate"
            else f"labels: the output_type of '{task.name}' is generate_until: its labels are solutions, labels: generate."
        )
    searching = next((arm for arm in config.arms if kind_of(arm).teacher == "search"), None)
    if searching and not task.classes:
        raise UserError(f"arms: {searching} needs classes, but the rows of '{task.name}' have choices of their own.")


class Layout:
    """The steps of an experiment, in the order in which they are built."""

    def __init__(self, config: Experiment, tasks: Tasks) -> None:
        self.config, self.tasks, self.task = config, tasks, tasks.training
        self.steps: dict[str, Step] = {}
        """By name."""
        self.evaluations: dict[Arm, Evaluation] = {}
        """Every model on the training task, those at checkpoints included."""
        self.strong = self._prepared(config.strong)
        """The strong model's section, with the step that prepares it."""
        self.weak_labels: dict[int, Answers] = {}
        """The weak supervisor's labels, by seed."""
        self.deciding: dict[str, tuple[tuple[Fit, ...], ...]] = {}
        """By arm, the trainings under each setting of the grid for each seed that decides for all (`tune.seeds`)."""
        for name in config.arms:
            if is_plain(name) and Arm(name).kind.model == "strong":
                self._evaluate(Arm(name), None)
        self._lay_out_trained()
        if config.primary is not None:
            self._check_primary(config.primary)

    @classmethod
    def load(cls, config: Experiment, harness: Harness | None = None) -> Layout:
        """The layout over the experiment's tasks, as `Tasks.load` checks them; `harness` is an index to share."""
        found = cls(config, Tasks.load(config, harness or Harness(config.include_path)))
        try_computed(found.steps.values(), found.task)
        return found

    def _check_primary(self, primary: Primary) -> None:
        """Refuse an endpoint that no evaluation will answer, before anything is built.

        Raises:
            UserError: names the task, the arm or the measure.
        """
        task, names = primary.task or self.task.name, [one.name for one in self.tasks.safety]
        if task not in (self.task.name, *names):
            raise UserError(f"primary.task: no task {shown(task)} here.{nearest(task, names)} Known: {', '.join(names)}.")
        steps = [s for s in self.steps.values() if isinstance(s, Evaluation) and s.arm.at is None and s.headline]
        if task == self.task.name:
            steps = [step for step in steps if not isinstance(step, SafetyEvaluation)]
        else:
            steps = [step for step in steps if isinstance(step, SafetyEvaluation) and step.main]
        method = primary.method_of(self.config.methods)
        for name, own in ((primary.arm, method), (primary.against, None)):
            if not any(step.arm.name == name and own in (None, step.arm.method) for step in steps):
                raise UserError(f"primary: {name} is not evaluated on {task}; name an arm that is, or another task.")
        asked = next(t for step in steps for t in step.limits if task in (t.name, self.task.name))
        if primary.measure == "auroc" and not isinstance(asked, UnloadedTask) and not asked.has_classes:
            raise UserError(
                f"primary.measure: {asked.name} has no AUROC, for its answers are no fixed classes; use accuracy."
            )

    def _prepared(self, settings: ModelSettings) -> ModelSettings:
        """The strong model's settings; where it learns tasks first, with the step that does it."""
        if not isinstance(settings, LanguageModel) or settings.prepare is None:
            return settings
        plain = settings.model_copy(update={"prepare": None})
        step = Prepared(task=self.task, settings=plain, prepare=settings.prepare, tasks=tuple(self.tasks.first))
        return settings.starting(self._add(step))

    def _lay_out_trained(self) -> None:
        """All seeds; where some decide the settings for all, these come first, and their trainings before any is chosen."""
        config, tune = self.config, self.config.tune
        first = tune.deciding(config.seeds) if tune else []
        decided = [taught for seed in first for taught in self._repeat(seed)]
        for arm, source in decided:
            if tune and not arm.kind.shots:
                own = self._tried(trials(self._training(arm, source), tune.settings(self.strong), tune.keys))
                self.deciding[arm.label] = (*self.deciding.get(arm.label, ()), own)
        others = (taught for seed in config.seeds if seed not in first for taught in self._repeat(seed))
        for arm, source in itertools.chain(decided, others):
            if arm.kind.shots:
                self._evaluate(arm, None, source)
                continue
            fit = self._fit(arm, source)
            for at in (None, *config.evaluate.checkpoints):
                self._evaluate(replace(arm, at=at), fit)

    def _repeat(self, seed: int) -> Iterator[tuple[Arm, Source]]:
        """One seed: a split, a weak supervisor and its labels, then every arm that learns some, with what it learns."""
        config, task = self.config, self.task
        how = Solutions(config.generate) if config.labels == "generate" else OverChoices(hard=config.labels == "hard")
        split = self._add(Split(task=task, settings=config.split, seed=seed))
        supervisor = Arm("weak", "xent", seed)
        weak = self._fit(supervisor, Source(split=split, sides=("weak",)))
        labels = self._add(Answers(task=task, whose="weak", split=split, settings=config.weak, fit=weak, how=how))
        self.weak_labels[seed] = labels
        self._evaluate(supervisor, weak)
        if "weak_untrained" in config.arms:
            self._evaluate(Arm("weak_untrained", None, seed), None)
        repetition = Repetition(split, weak, labels, self.strong, how, self._add)
        for arm in self._taught_arms(seed):
            yield arm, self._source(arm, repetition)

    def _taught_arms(self, seed: int) -> Iterator[Arm]:
        for name in self.config.arms:
            if is_plain(name):
                continue
            kind = kind_of(name)
            methods = self.config.methods if kind.teacher == "method" else [None if kind.shots else "xent"]
            yield from (Arm(name, method, seed) for method in methods)

    def _source(self, arm: Arm, repetition: Repetition) -> Source:
        """What an arm's model learns, or is shown."""
        split, strong = repetition.split, self.strong
        match arm.kind.teacher:
            case "method":
                return labels_for(parse_method(arm.method or "xent").ops, self.config.method_args.section, repetition)
            case "weak":
                source = Source(split=split, made=repetition.labels)
                return source.then(arm.name) if arm.kind.labels else source
            case "itself":
                if arm.kind.labels is None:
                    return Source(split=split, made=answers_of(repetition, arm.name, strong, None))
                # An operation needs the probabilities; decisions are made after it.
                made = Source(split=split, made=answers_of(replace(repetition, how=OverChoices()), arm.name, strong, None))
                return made.then(arm.name).then("harden") if repetition.how.hard else made.then(arm.name)
            case "search":
                return Source(split=split, made=self._found(arm, split))
            case "all gold":
                return Source(split=split, sides=("weak", "transfer")).then(arm.name)
            case _:
                return Source(split=split).then(entry_of(arm.name))

    def _found(self, arm: Arm, split: Split) -> Labels:
        """What an arm takes of the labels of a search."""
        settings, of = self.config.unsupervised, arm.kind.search
        about: dict[str, Any] = {"task": self.task, "split": split}
        if of == "unsearched":
            return self._add(Search(**about, settings=self.strong, search=settings.unsearched, whose=arm.name))
        search = self._add(Search(**about, settings=self.strong, search=settings))
        return self._add(SearchPart(**about, whose=arm.name, search=search, part=of)) if of else search

    def _fit(self, arm: Arm, source: Source) -> Fit:
        """An arm's training; of the strong model with the settings that are chosen for it, where there is a grid."""
        fit, tune = self._training(arm, source), self.config.tune
        if tune is None or arm.kind.model != "strong":
            return self._add(fit)
        first = self.deciding.get(arm.label, ())
        tried = next((fits for fits in first if fits[0].source.split is source.split), None)
        own = tried or trials(fit, tune.settings(self.strong), tune.keys)
        if not first:
            first = (self._tried(own),)
        return self._add(tuned(fit, tune.keys, own, first, tune.by))

    def _tried(self, fits: tuple[Fit, ...]) -> tuple[Fit, ...]:
        return tuple(self._add(fit) for fit in fits)

    def _training(self, arm: Arm, source: Source) -> Fit:
        loss = parse_method(arm.method or "xent").loss
        return Fit(
            task=self.task,
            whose=arm.label,
            settings=self._settings(arm),
            source=source,
            seed=source.split.seed,
            loss=loss,
            loss_args=self.config.method_args.of(loss),
            arm=arm,
            keep=tuple(self.config.evaluate.checkpoints) if arm.kind.model == "strong" else (),
            equal_steps=self.config.equal_steps and arm.kind.model == "strong",
        )

    def _evaluate(self, arm: Arm, fit: Fit | None, shown: Source | None = None) -> None:
        """The arm's evaluations: on the training task, with `shown` in its prompt; on the safety tasks, which no classifier
        can answer.
        """
        config, settings = self.config, self._settings(arm)
        asked = {self._asked(arm): config.evaluate.limit}
        own = config.own_shots(arm.name)
        shots = own or config.evaluate.num_fewshot
        of_arm: dict[str, Any] = {"arm": arm, "settings": settings, "fit": fit, "harness": self.tasks.harness}
        if arm.kind.model == "strong":
            of_arm |= {"calibration": config.evaluate.calibration} if arm.kind.calibrated else {}
            of_arm |= {"engine": config.evaluate.engine, "base_url": config.evaluate.base_url}
        style = training_style(settings, shots)
        of_task: dict[str, Any] = {"task": self.task, **of_arm, "limits": asked, "style": style}
        evaluation = InContext(**of_task, shown=shown) if shown else Evaluation(**of_task)
        self.evaluations[arm] = self._asking(evaluation)
        if arm.kind.model == "strong":
            self._otherwise(evaluation, config.evaluate)
        safety = config.safety
        # An arm with shots of its own, or calibrated, is the untuned model again.
        if safety is None or TRAINERS[settings.trainer].model == "w2s-classifier" or own or arm.kind.calibrated:
            return
        limits = {task: safety.limits.get(task.name, safety.limit) for task in self.tasks.safety}
        for number in safety.shots[: None if arm.at is None else 1]:  # the ladder is for the end of training
            style = replace(training_style(settings, number), multiturn=safety.fewshot_as_multiturn)
            main = number == safety.shots[0]
            asking = self._asking(SafetyEvaluation(task=self.task, **of_arm, limits=limits, style=style, main=main))
            if main:
                self._otherwise(asking, safety)

    def _otherwise(self, step: Evaluation, how: Evaluate | Safety) -> None:
        """Further evaluations of a model at the end of its training: by the tasks' other prompts, with other shots."""
        if step.arm.at is not None:
            return
        for prompt in range(2, how.prompts + 1):
            self._asking(step.by(prompt))
        for seed in how.shot_seeds:
            # Shots that the supervisor labelled are drawn anew for every seed of the experiment.
            if not isinstance(step, InContext) and any(task.shots(step.style) for task in step.limits):
                self._asking(replace(step, shot_seed=seed))

    def _asking(self, step: Evaluation) -> Evaluation:
        for task in step.limits:
            task.check_shots(step.style)
        return self._add(step)

    def _asked(self, arm: Arm) -> HarnessTask:
        """The task that evaluates an arm: the training task, or one that asks the same documents another way."""
        evaluate = self.config.evaluate
        name = evaluate.task if is_plain(arm.name) else evaluate.tuned_task or evaluate.task
        # Replies have no log-likelihoods; and labels of rows are shown as the training task shows them.
        other = name and arm.kind.model == "strong" and not (arm.kind.calibrated or arm.kind.shots in ("weak", "random"))
        return self.tasks.asked[name] if name and other else self.task

    def _settings(self, arm: Arm) -> ModelSettings:
        return self.strong if arm.kind.model == "strong" else self.config.weak

    def _add(self, step: AnyStep) -> AnyStep:
        """Put a step in, unless one of its name is there; give the one that is."""
        return cast(AnyStep, self.steps.setdefault(step.name, step))  # a name is of one class

    def arms(self) -> list[Arm]:
        """All arms at the end of training; the weak supervisor first, then as the config lists them."""
        order = ["weak", "weak_untrained", *(a for a in self.config.arms if Arm(a).kind.model == "strong")]
        return sorted((a for a in self.evaluations if a.at is None), key=lambda a: (order.index(a.name), a.seed or 0))
