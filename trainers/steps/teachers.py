"""Where a student's labels come from: what its method does with the weak supervisor's before it learns them.

A method's operations are read from left to right. Those that need no model change the source of labels; an ensemble, a chain
of students and two-stage relabelling add steps of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeVar

from pydantic import Field

from trainers.fit.trainer import TRAINERS, Code, answering_code, training_style, variant
from trainers.labels import relabel
from trainers.labels.ask import Asking
from trainers.labels.kinds import AnyLabels
from trainers.labels.label_set import LABELS, LabelSet
from trainers.labels.operations import NEEDS_CONFIDENCE
from trainers.labels.solutions import GREEDY, Solutions
from trainers.labels.text_labels import TextLabels
from trainers.registry import Registry
from trainers.section import Section
from trainers.steps.answers import Answers, ask_model
from trainers.steps.computed import Computed, Input
from trainers.steps.embeddings import WITH_STATES, Embeddings
from trainers.steps.fit import Fit, model_of
from trainers.steps.source import Labels, Source, Split, read_labels
from trainers.steps.step import Ground, Step
from trainers.training.settings import ModelSettings
from w2s_tasks.errors import UserError
from w2s_tasks.models.texts import Pooling
from w2s_tasks.user_text import shown

AnyStep = TypeVar("AnyStep", bound=Step)


class Add(Protocol):
    """Puts a step into a layout, unless one of its name is there; gives the one that is."""

    def __call__(self, step: AnyStep, /) -> AnyStep:
        """Add a step."""


@dataclass(frozen=True)
class Repetition:
    """One seed of an experiment, as far as all its arms share it."""

    split: Split
    weak: Fit
    labels: Answers
    """The weak supervisor's, of the transfer rows."""
    strong: ModelSettings
    how: Asking
    """What models are asked for."""
    add: Add


@dataclass(frozen=True)
class ModelOp:
    """An operation on labels that trains or asks a model, in steps of its own."""

    steps: Callable[[Repetition, Source, str, Any], Source]
    """Repetition, labels so far, what the method did up to here, settings: the labels afterwards."""
    settings: type[Section]
    kinds: tuple[type[AnyLabels], ...] = (LabelSet,)
    """The kinds of labels that it takes."""
    first: bool = False
    """Whether it takes no labels, so that it can only stand first."""
    sees_gold: bool = False
    """Whether its steps use gold labels of rows that the student learns; the report says so."""


MODEL_OPS: Registry[ModelOp] = Registry("operation with models", space="method")
"""By name."""


def model_op(name: str, settings: type[Section], **more: Any) -> Callable[[Any], Any]:
    """Register an operation by the function that lays out its steps; see `ModelOp`."""

    def register(steps: Callable[[Repetition, Source, str, Any], Source]) -> Any:
        MODEL_OPS.add(name, ModelOp(steps, settings, **more), steps)
        return steps

    return register


def labels_for(ops: Sequence[str], settings: Callable[[str], Section | None], repetition: Repetition) -> Source:
    """The labels after a method's operations; adds the steps that make them.

    Args:
        ops: the operations, from left to right.
        settings: of each.
        repetition: what they start from.
    """
    source, done = Source(split=repetition.split, made=repetition.labels), ""
    for op in ops:
        done, own = f"{done}+{op}" if done else op, settings(op)
        if op in MODEL_OPS:
            source = MODEL_OPS[op].steps(repetition, source, done, own)
        else:
            source = source.then(op, own.model_dump() if own else {})
    return source


def answers_of(repetition: Repetition, whose: str, settings: ModelSettings, fit: Fit | None) -> Answers:
    """A model's labels of the transfer rows, as the experiment asks for them."""
    split = repetition.split
    answers = Answers(task=split.task, whose=whose, split=split, settings=settings, fit=fit, how=repetition.how)
    return repetition.add(answers)


def embeddings_of(
    repetition: Repetition,
    settings: ModelSettings,
    fit: Fit | None = None,
    *,
    layer: int = -1,
    pooling: Pooling | None = None,
) -> Embeddings:
    """Hidden states of the transfer rows' prompts, for a method to stand on; `read_embeddings` reads them.

    Args:
        repetition: whose rows.
        settings: the section of the model: `repetition.strong`, or that of the weak supervisor, `repetition.weak.settings`.
        fit: the step that trained it; None for the untuned model.
        layer: behind which layer (`w2s_tasks.models.hidden.hidden_states`).
        pooling: the last token's, or the mean over a prompt's tokens; None for last, in encoders for the mean.

    Raises:
        UserError: a model whose hidden states are not on this machine.
    """
    entry = TRAINERS[settings.trainer]
    name = entry.base_model if fit is None else entry.model
    if name not in WITH_STATES:
        raise UserError(
            f"the hidden states of {settings.model} are not here: it answers as {name} (trainer: {settings.trainer}). Take "
            f"a model that runs on this machine ({' or '.join(WITH_STATES)})."
        )
    split = repetition.split
    step = Embeddings(task=split.task, split=split, settings=settings, fit=fit, layer=layer, pooling=pooling)
    return repetition.add(step)


def trained(repetition: Repetition, whose: str, settings: ModelSettings, source: Source, more: int = 0) -> Fit:
    """The training of a model that stands between the weak supervisor and a student."""
    task, seed = repetition.split.task, repetition.split.seed + more
    return repetition.add(Fit(task=task, whose=whose, settings=settings, source=source, seed=seed))


def computed(
    repetition: Repetition,
    whose: str,
    function: Callable[..., Any],
    *given: Input,
    gold: bool = False,
    share: float = 1.0,
    **settings: Any,
) -> Source:
    """Labels that a function makes of what other steps left.

    Args:
        repetition: of which seed.
        whose: what the labels are called; a step's name is its own in an experiment.
        function: called with a value for each of `given`, a random generator, and gold labels if asked for; gives labels.
        *given: a `Source` or a step of labels gives its labels, `embeddings_of` an array of the first labels' rows.
        gold: give the right choices of the first labels' rows too, shape [n]; say ``sees_gold=True`` to `model_op` then.
        share: about how many of the rows are left, for a plan.
        **settings: the function's keyword arguments.
    """
    made = Computed(
        task=repetition.split.task,
        whose=whose,
        split=repetition.split,
        function=function,
        given=given,
        settings=settings,
        gold=gold,
    )
    return Source(split=repetition.split, made=repetition.add(made), share=share)


EnsembleWeights = Literal["mean", "accuracy"] | list[Annotated[float, Field(ge=0)]]


class Ensemble(Section):
    """Several weak supervisors, whose probabilities are averaged."""

    members: list[dict[str, Any]] = Field(default=[{"seed": 1}, {"seed": 2}], min_length=1)
    """Supervisors beside `weak`: each is that section with these keys changed; `seed` is added to the experiment's."""
    weights: EnsembleWeights = "mean"
    """mean; accuracy: log-odds of each member's accuracy on the rows of the weak half that it held back; or one number for
    each, `weak` first."""

    def supervisors(self, weak: ModelSettings) -> list[tuple[ModelSettings, int]]:
        """The members beside `weak`, each with what is added to the seed.

        Raises:
            ValueError: a member that is no such section, or weights that are not one for each.
        """
        if isinstance(self.weights, list) and (len(self.weights) != 1 + len(self.members) or not sum(self.weights)):
            raise ValueError("method_args.ensemble.weights: one number for `weak` and one for each member, not all 0")
        found = []
        for member in self.members:
            seed = member.get("seed", 0)
            if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
                raise ValueError(f"method_args.ensemble.members: seed: a whole number from 0 is expected, got {shown(seed)}")
            changes = {key: value for key, value in member.items() if key != "seed"}
            found.append((variant(weak, changes, "method_args.ensemble.members"), seed))
        return found


@dataclass(frozen=True, eq=False, kw_only=True)
class Average(Labels):
    """The mean of several supervisors' labels."""

    fits: tuple[Fit, ...]
    answers: tuple[Answers, ...]
    weights: EnsembleWeights
    hard: bool

    @property
    def title(self) -> str:
        """By its seed."""
        return f"labels of the ensemble, seed {self.split.seed}"

    @property
    def inputs(self) -> tuple[Step, ...]:
        """The answers; and the trainings, where these say how much each counts."""
        return (*self.fits, *self.answers) if self.weights == "accuracy" else self.answers

    def recipe(self) -> dict[str, Any]:
        """How much each counts."""
        return {"ensemble": self.weights, "hard": self.hard}

    def build(self, ground: Ground, out: Path) -> None:
        """Average; the mean of decisions is a share of votes, of which the majority is the decision."""
        members = [LabelSet.load(ground.folder_of(a) / LABELS) for a in self.answers]
        weights = relabel.ensemble_weights(self.weights, [ground.folder_of(f) for f in self.fits])
        labels = relabel.average(members, weights)
        (labels.hardened() if self.hard else labels).save(out / LABELS)


@model_op("ensemble", Ensemble, first=True)
def _ensemble(repetition: Repetition, source: Source, done: str, args: Ensemble) -> Source:
    """Train and ask the further weak supervisors, then average: 2402.15505, 2406.03199, 2410.04571."""
    split = repetition.split
    fits, answers = [repetition.weak], [repetition.labels]
    for number, (settings, more) in enumerate(args.supervisors(repetition.weak.settings), start=1):
        whose = f"weak member {number}"
        fits.append(trained(repetition, whose, settings, Source(split=split, sides=("weak",)), more))
        answers.append(answers_of(repetition, whose, settings, fits[-1]))
    average = Average(
        task=split.task,
        whose="ensemble",
        split=split,
        fits=tuple(fits),
        answers=tuple(answers),
        weights=args.weights,
        hard=repetition.how.hard,
    )
    return Source(split=split, made=repetition.add(average))


class Bootstrap(Section):
    """A chain of students: weak -> the first -> ... -> strong."""

    chain: list[dict[str, Any]] = Field(default=[{}], min_length=1)
    """Models in between, smallest first: each is the `strong` section with these keys changed; {} is the strong model."""

    def links(self, strong: ModelSettings) -> list[ModelSettings]:
        """The models between weak and strong.

        Raises:
            ValueError: a link that is no such section.
        """
        return [variant(strong, link, "method_args.bootstrap.chain") for link in self.chain]


@model_op("bootstrap", Bootstrap, kinds=(LabelSet, TextLabels))
def _bootstrap(repetition: Repetition, source: Source, done: str, args: Bootstrap) -> Source:
    """Each model of the chain learns the labels of the one before and labels all rows: 2312.09390, section 4.3.1."""
    chain = args.links(repetition.strong)
    for number, settings in enumerate(chain, start=1):
        whose = f"{done}, link {number} of {len(chain)}"
        fit = trained(repetition, whose, settings, source)
        source = Source(split=repetition.split, made=answers_of(repetition, whose, settings, fit))
    return source


class Relabel(Section):
    """Two-stage training: filter, train, let the student label what was left out, train anew on both."""

    keep: float = Field(default=0.5, gt=0, lt=1)
    """Share of the rows in the first stage, the most confident weak labels."""
    add: float = Field(default=0.5, gt=0, le=1)
    """Share of the rows left out that come back in the second stage, those of which the first student is surest."""
    by_class: bool = True
    """Take both shares within each labelled class."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Relabelled(Labels):
    """The surest of the supervisor's labels, and of the other rows the surest that a first student gave."""

    source: Source
    first: Fit
    shares: Relabel
    how: Asking

    @property
    def title(self) -> str:
        """By its first student."""
        return f"labels of {self.first.model}"

    @property
    def inputs(self) -> tuple[Step, ...]:
        """The first student, and what it was taken from."""
        return (self.first, *self.source.inputs)

    @property
    def code(self) -> tuple[Code, ...]:
        """What answers, what asks it, and the operations before."""
        return *answering_code(self.first.settings), type(self.how).ask, *self.source.code

    def recipe(self) -> dict[str, Any]:
        """The shares, how the first student is asked, and the operations before."""
        asked = self.how.recipe(self.split.seed)
        return {"relabel": self.shares.model_dump(), "label_ops": self.source.ops, "seed": self.split.seed, **asked}

    def build(self, ground: Ground, out: Path) -> None:
        """Ask the first student for the rows that were left out."""
        labels: Any = read_labels(self.source, ground, self.split.seed)
        left = relabel.discarded(labels, self.shares.keep, self.shares.by_class)
        settings, ids = self.first.settings, list(left.row_id)
        again: Any = ask_model(self.how, self.first, settings, self.split, ids, ground, out)
        relabel.two_stage(labels, again, **self.shares.model_dump()).save(out / LABELS)


@NEEDS_CONFIDENCE.named("relabel")
@model_op("relabel", Relabel, kinds=(LabelSet, TextLabels))
def _relabel(repetition: Repetition, source: Source, done: str, args: Relabel) -> Source:
    """Filter, train a first student, let it label the rows left out: 2503.04249; see `relabel.two_stage`."""
    split = repetition.split
    surest = source.then("filter", {"keep": args.keep, "by_class": args.by_class})
    first = trained(repetition, f"{done}, first stage", repetition.strong, surest)
    made = Relabelled(task=split.task, whose=done, split=split, source=source, first=first, shares=args, how=repetition.how)
    return Source(split=split, made=repetition.add(made), share=args.keep + (1 - args.keep) * args.add)


class Agree(Section):
    """Keeps the solutions whose answers the strong model gives too, prompted with some of them."""

    shots: int = Field(default=4, ge=1)
    """The supervisor's solutions in each prompt: those of which it is surest."""
    take: Literal["weak", "strong"] = "weak"
    """Whose solutions of the rows that are kept are learnt."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Agreeing(Labels):
    """The solutions whose answers the untuned strong model gives too, with the supervisor's solutions in its prompt."""

    source: Source
    settings: ModelSettings
    agree: Agree

    @property
    def inputs(self) -> tuple[Step, ...]:
        """What it chooses from."""
        return self.source.inputs

    @property
    def base(self) -> ModelSettings | None:
        """The untuned strong model."""
        return self.settings

    @property
    def code(self) -> tuple[Code, ...]:
        """What answers, and the operations before."""
        return *answering_code(self.settings, tuned=False), *self.source.code

    def recipe(self) -> dict[str, Any]:
        """The shots and prompts, and the operations before."""
        return {
            "agree": self.agree.model_dump(),
            "label_ops": self.source.ops,
            "seed": self.split.seed,
            "args": self.settings.model_args,
            "renderer": self.task.renderer_hash(training_style(self.settings)),
        }

    def build(self, ground: Ground, out: Path) -> None:
        """Prompt the strong model, which answers once, greedily; then compare."""
        weak: Any = read_labels(self.source, ground, self.split.seed)
        lm = ground.pool.load(model_of(None, self.settings, self.task, ground))
        style = training_style(self.settings, self.agree.shots)
        requests = relabel.prompted(self.task, weak, self.agree.shots, style, lm)
        own = Solutions(GREEDY).vote(lm, self.task, requests, list(weak.row_id), self.split.seed, out)
        relabel.agreeing(weak, own, self.task.reader, self.agree.take).save(out / LABELS)


@model_op("agree", Agree, kinds=(TextLabels,))
def _agree(repetition: Repetition, source: Source, done: str, args: Agree) -> Source:
    """Keep the rows on which the weak majority and the strong model's in-context answer are one: 2407.13647, stage I."""
    split = repetition.split
    split.task.check_shots(training_style(repetition.strong, args.shots))
    made = Agreeing(task=split.task, whose=done, split=split, source=source, settings=repetition.strong, agree=args)
    return Source(split=split, made=repetition.add(made), share=source.share)
