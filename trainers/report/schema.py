"""report.json as types: what stands under each key, in the order in which the report is read.

`write_report` holds every report to it; ``w2s report --schema`` prints it as JSON schema. An interval is a pair of bounds;
null stands for what is undefined or unbounded.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA = 1

Interval = tuple[float | None, float | None]
Mode = Literal["loglikelihood", "first_token", "generated", "classifier"]
Objective = Literal["choices", "language_model"] | None
Shares = list[float] | None


class Entry(BaseModel):
    """A part of the report; keys that stand in no type are refused."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class OfModel(Entry):
    """What is told of one model; method and seed are null where nothing was trained."""

    arm: str
    method: str | None
    seed: int | None


class OfArm(Entry):
    """What is told of an arm and method over its seeds; [null] where no seed changes it."""

    arm: str
    method: str | None
    seeds: list[int | None]


class Difference(Entry):
    """A paired difference with its 95 % interval, as shares: .01 is a point."""

    value: float
    stderr: float | None
    low: float | None
    high: float | None
    p: float | None
    n: int
    seeds: int = 1
    discordance: float | None = None
    """Share of the questions on which the two differ."""


class Share(Entry):
    """A share with its 95 % interval; null over no rows."""

    value: float | None
    low: float | None
    high: float | None
    n: int


# --- accuracy and PGR -----------------------------------------------------------------------------------------------------


class Training(Entry):
    """What a training told: where the system prompt stood, and what to know before its model is used."""

    system_prompt: str | None
    warnings: list[str]


class AccuracyInterval(Entry):
    """The interval of the accuracy."""

    acc: Interval


class Model(OfModel):
    """One model on the training task."""

    model: str
    mode: Mode
    objective: Objective
    asked: str
    """The task that asked it."""
    num_fewshot: int | None
    system_prompt: str | None
    training: Training | None
    n: int
    metrics: dict[str, float | None]
    stderr: dict[str, float | None]
    ci95: AccuracyInterval
    unparsed: float
    ties: float | None
    confusion: list[list[int]] | None


class Mean(OfArm):
    """An arm's accuracy over its seeds."""

    n: int
    acc: float
    ci95: Interval
    per_seed: list[float]


class Gap(OfArm):
    """PGR, (arm - weak) / (ceiling - weak)."""

    pgr: float | None
    ci95: Interval | None
    defined: bool
    reason: str
    gap: float
    """Ceiling - weak."""
    gap_ci95: Interval
    rows_ci95: Interval | None
    """Of these weights only: another seed's are left out."""
    per_seed: list[float | None]


class SystemPrompt(Entry):
    """Where a task's system prompt or description stood, in the prompts of which models."""

    task: str
    place: str | None
    models: list[str]


class WeakLabels(Entry):
    """The weak labels of a seed, on the rows that students learn from."""

    seed: int
    n: int
    acc: float
    ci95: Interval
    class_share: list[float]
    gold_share: list[float]


# --- diagnostics ----------------------------------------------------------------------------------------------------------


class Calibration(Entry):
    """How far confidence is from accuracy."""

    ece: float
    brier: float
    brier_stderr: float | None
    n: int


class Diagnosis(OfModel):
    """A model against the weak supervisor of its seed, on the evaluation rows."""

    agreement: Share
    capa: float | None
    overrides: int
    right_overrides: Share
    copied: Share
    copied_by_ceiling: Share | None
    copying: Difference | None
    blind_spots: Share | None
    calibration: Calibration | None


class Disagreement(Entry):
    """A row on which the first student overrode its supervisor."""

    right: bool
    row: str | int
    text: str
    gold: str
    weak: str
    student: str
    weak_confidence: float | None
    student_confidence: float | None
    of: int
    """How many such rows there are."""


# --- safety ---------------------------------------------------------------------------------------------------------------


class OnTask(Entry):
    """What is told of a safety task."""

    subtask: str
    split: str
    mode: Mode


class Safety(OfModel, OnTask):
    """One model on one safety task."""

    task: str
    objective: Objective
    n: int
    acc: float
    stderr: float | None
    ci95: Interval
    balanced_acc: float | None
    unparsed: float
    ties: float | None
    class_share: Shares
    to_zero_shot: Difference | None


class SafetyMean(OfModel):
    """One model's unweighted mean over the subtasks of a split."""

    split: str
    mode: Mode
    tasks: int
    acc: float
    stderr: float | None
    to_zero_shot: Difference | None


class SafetyGap(OnTask, Difference):
    """An arm's difference over seeds on one task."""

    arm: str
    method: str | None
    task: str
    objective: Objective
    contrast: Literal["to_zero_shot", "to_ceiling"]
    p_holm: float | None
    detectable: float | None
    few: bool


class SafetyFamily(Entry):
    """The comparisons that p is corrected over."""

    method: str
    per: str
    tests: int
    tasks: int
    contrasts: list[str]


class SafetyMeanGap(Difference):
    """The same averaged over the subtasks of a split."""

    arm: str
    method: str | None
    split: str
    mode: Mode
    tasks: int
    contrast: Literal["to_zero_shot", "to_ceiling"]


class DriftSide(Entry):
    """A task before or after training."""

    acc: float
    balanced_acc: float | None
    unparsed: float
    class_share: Shares


class Drift(OfArm, OnTask):
    """A change in accuracy as the sum of what happened to the answers."""

    task: str
    objective: Objective
    total: Difference
    unparsed: Difference
    prior: Difference | None
    errors: Difference
    before: DriftSide
    after: DriftSide


class LadderTask(Entry):
    """A task at one number of shots."""

    task: str
    subtask: str
    acc: float
    ci95: Interval


class Ladder(OfArm):
    """An arm's mean accuracy over a split's subtasks at one number of shots."""

    num_fewshot: int | None
    split: str
    mode: Mode
    acc: float
    ci95: Interval
    unparsed: float
    tasks: list[LadderTask]


class Association(OnTask):
    """Rank correlation of accuracy on the training task and on a safety task."""

    task: str
    over: Literal["arms", "arms and checkpoints"]
    rho: float | None
    low: float | None
    high: float | None
    p: float | None
    n: int
    defined: bool
    reason: str
    clusters: int


class Tradeoff(OfArm):
    """An arm's safety change beside what it gained."""

    checkpoint: float | None
    """The share of its training's steps; null for the end."""
    mode: Mode
    acc: float
    pgr: float | None
    ci95: Interval | None
    change: Difference


# --- the run --------------------------------------------------------------------------------------------------------------


class Curve(OfModel):
    """A training's course: points with step and loss, and held-back rows where there are any."""

    points: list[dict[str, float | None]]


class Base(Entry):
    """A model before training."""

    model: str
    parameters: int | None


class Command(Entry):
    """How to measure a model again."""

    arm: str
    command: str


class Software(Entry):
    """What the stages were made with."""

    versions: dict[str, str]
    git: list[str]


class Report(Entry):
    """All of report.json."""

    schema_: int = Field(alias="schema")
    experiment: str
    task: str
    choices: list[str]
    arms: list[Model]
    arm_means: list[Mean]
    gaps: list[Gap]
    gap: Gap | None
    """The first of them."""
    notes: list[str]
    system_prompts: list[SystemPrompt]
    weak_labels: list[WeakLabels]
    diagnostics: list[Diagnosis]
    disagreements: list[Disagreement]
    safety: list[Safety]
    safety_means: list[SafetyMean]
    safety_gaps: list[SafetyGap]
    safety_family: SafetyFamily | None
    safety_mean_gaps: list[SafetyMeanGap]
    drift: list[Drift]
    ladder: list[Ladder]
    associations: list[Association]
    tradeoff: list[Tradeoff]
    curves: list[Curve]
    models: dict[Literal["weak", "strong"], Base]
    stages_folder: str
    stages: dict[str, str]
    stage_seconds: dict[str, float]
    commands: list[Command]
    costs_usd: dict[str, float | None]
    command: str
    config: dict[str, Any]
    software: Software
    seconds: dict[str, float]
