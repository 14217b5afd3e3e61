"""The experiment file: its schema, with a sentence under every field."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field, PlainValidator, SerializeAsAny, field_validator, model_validator

from trainers.config.method_args import AnyMethodArgs, known
from trainers.config.methods import parse_method, takes_labels
from trainers.config.primary import Margin, Primary
from trainers.config.resources import Resources
from trainers.config.tune import Tune
from trainers.fit.trainer import TRAINERS, Role, named
from trainers.harness.tasks import SEED
from trainers.labels.arms import ARMS, SHOTS, is_arm, is_plain, kind_of
from trainers.labels.kinds import takes
from trainers.labels.label_set import LabelSet
from trainers.labels.operations import NEEDS_CONFIDENCE
from trainers.labels.solutions import Generate
from trainers.labels.splits import SplitSettings
from trainers.labels.text_labels import TextLabels
from trainers.labels.unsupervised import Unsupervised
from trainers.plugin_loader import require
from trainers.section import Section
from trainers.training.settings import LocalSettings, ModelSettings, Optimised
from w2s_tasks.errors import nearest
from w2s_tasks.models.service import checked_url
from w2s_tasks.own.task import RowsTask
from w2s_tasks.paths import LONGEST_NAME, size
from w2s_tasks.plugin.forms import MARK
from w2s_tasks.scoring.calibration import Calibration
from w2s_tasks.user_text import shown


def _asks_untuned(arm: str) -> bool:
    """Whether an arm is the untuned strong model, or learns what that says."""
    kind = kind_of(arm)
    return kind.model == "strong" and (is_plain(arm) or kind.shots is not None or kind.teacher in ("itself", "search"))


DEFAULT_TRAINER: dict[Role, str] = {"weak": "classifier", "strong": "lora"}


def trainer_of(role: Role, section: Any) -> Any:
    """What a section says of its trainer, as it stands in a file."""
    return section.get("trainer", DEFAULT_TRAINER[role]) if isinstance(section, dict) else None


def _section(role: Role) -> Any:
    """The sections that a role's model can have, one for each trainer that is registered, told apart by `trainer`."""

    def read(value: Any) -> ModelSettings:
        if isinstance(value, ModelSettings):
            value = value.model_dump(exclude_unset=True) | {"trainer": value.trainer}
        sections = {name: entry.settings for name, entry in TRAINERS.items() if role in entry.roles}
        name = trainer_of(role, value)
        if isinstance(value, dict) and (not isinstance(name, str) or name not in sections):
            raise ValueError(f"no trainer {shown(name)}.{nearest(str(name), sections)} Known: {', '.join(sections)}.")
        return sections[name or DEFAULT_TRAINER[role]].model_validate(value)

    return Annotated[SerializeAsAny[ModelSettings], PlainValidator(read)]


if TYPE_CHECKING:
    Weak = ModelSettings
    Strong = ModelSettings
else:
    Weak, Strong = _section("weak"), _section("strong")


def _check_writes(where: str, settings: ModelSettings, role: Role = "strong") -> None:
    """Refuse a model that can't learn to write solutions."""
    if not TRAINERS[settings.trainer].texts or settings.learns != "language_model":
        raise ValueError(
            f"{where}: labels: generate needs a model that writes solutions: trainer: "
            f"{named(role, lambda t: t.texts)} with objective: language_model"
        )
    if isinstance(settings, LocalSettings) and settings.checkpoint == "holdout_agreement":
        raise ValueError(f"{where}.checkpoint: solutions don't agree or differ as a whole; use holdout_loss or last")


def _of_further_draws(value: list[int]) -> list[int]:
    if len(set(value)) < len(value) or SEED in value:
        raise ValueError(f"write each seed once, and not {SEED}, with which lm_eval draws the shots of the first evaluation")
    return value


ShotSeeds = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], AfterValidator(_of_further_draws)]


class Evaluate(Section):
    """How every model is evaluated on the training task."""

    limit: int | None = Field(default=None, ge=2)
    """The first n documents; null for all."""
    num_fewshot: int = Field(default=0, ge=0)
    """Shots of every arm but few_shot, in_context and random_shots."""
    few_shot_k: int = Field(default=8, ge=1)
    """Shots of the arms few_shot, in_context and random_shots; few_shot(K) and the like name their own."""
    calibration: Calibration = "batch"
    """How the arm zero_shot_calibrated knows the model's prior over the choices: from its answers to all rows (batch), to
    a prompt with nothing in it (contextual), or to the end of the prompt alone (domain)."""
    engine: Literal["hf", "vllm"] = "hf"
    """What asks the strong arms: this process, or a vLLM server, which loads their adapters as it runs (docs/models.md)."""
    base_url: str | None = None
    """The server's address; null for $VLLM_BASE_URL, else http://localhost:8000/v1. It is no part of what was computed."""
    task: str | None = None
    """A task that asks the strong arms the same documents another way, e.g. a generated twin; null for the training task."""
    tuned_task: str | None = None
    """The same for the trained strong arms alone: the seed study asked them with another prompt than the untuned model."""
    checkpoints: list[Annotated[float, Field(gt=0, lt=1)]] = Field(default=[])
    """Shares of a training's optimizer steps after which every trained strong arm is evaluated too, on the training task and
    the safety tasks, e.g. [0.25, 0.5, 0.75]: more points of safety against capability, in no other part of the report."""

    prompts: int = Field(default=1, ge=1)
    """How many of the task's prompts ask every strong arm, its own first: with 3 also the two paraphrases of its YAML, whose
    spread the report tells; all other numbers are those of the first."""
    shot_seeds: ShotSeeds = Field(default=[])
    """Seeds that draw the shots anew, e.g. [0, 1], beside lm_eval's own: every strong arm with gold shots (few_shot, or
    num_fewshot above 0) is asked with these too, and the report tells how much hangs on the draw."""

    @field_validator("checkpoints")
    @classmethod
    def _ascending(cls, value: list[float]) -> list[float]:
        if value != sorted(set(value)):
            raise ValueError(f"write them in ascending order, each once: {sorted(set(value))}")
        return value

    @field_validator("base_url")
    @classmethod
    def _an_address(cls, value: str | None) -> str | None:
        return None if value is None else checked_url(value)

    @model_validator(mode="after")
    def _of_a_server(self) -> Evaluate:
        if self.base_url and self.engine != "vllm":
            raise ValueError("base_url is the address of a server; write engine: vllm as well")
        return self


class Safety(Section):
    """The safety evaluation of the strong model's arms."""

    tasks: list[str] = Field(min_length=1)
    """Tasks or groups, e.g. w2s_ethics_all."""
    limit: int | None = Field(default=None, ge=2)
    """The first n documents a task; null for all."""
    limits: dict[str, Annotated[int, Field(ge=2)]] = Field(default={})
    """Other limits for some of the tasks, e.g. {w2s_ethics_commonsense_long: 25}."""
    margin: Margin | None = None
    """The smallest difference to the untuned model that would matter, e.g. 0.03 for three points: the report then tests on
    every task whether it is excluded (two one-sided tests); null for no such test."""
    num_fewshot: Annotated[int, Field(ge=0)] | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None = 0
    """Shots, the same for every document; a list such as [0, 1, 2, 4, 8, 16, 32] makes a ladder, its first entry the main
    one; null for each task's own number."""
    prompts: int = Field(default=1, ge=1)
    """How many prompts of every task ask, as in evaluate.prompts, with the main number of shots."""
    shot_seeds: ShotSeeds = Field(default=[])
    """Seeds that draw the shots anew, as in evaluate.shot_seeds, in the main number."""
    fewshot_as_multiturn: bool = True
    """Under a chat template: whether shots are turns of their own, or stand in one user message."""

    @property
    def shots(self) -> list[int | None]:
        """The numbers of shots, the main one first; None for each task's own."""
        numbers = self.num_fewshot if isinstance(self.num_fewshot, list) else [self.num_fewshot]
        return list(dict.fromkeys(numbers))


class Experiment(Section):
    """One experiment = one YAML file."""

    task: str
    """Any trainable multiple_choice task: ours, lm_eval's, or yours by include_path; with labels: generate a generate_until
    task that says how it reads the answer of a reply. In Python also what `task_from_rows` returns."""
    form: Literal["verify", "pair", "shuffle"] | None = None
    """Ask the task's rows in another form, in training and evaluation alike: is this answer right (verify), which of two is
    better (pair), the choices in another order (shuffle); null as they are. The task is called NAME@FORM then."""
    requires: list[str] = Field(default=[])
    """Plug-ins without which it means nothing: names of those given by --plugin or installed. It loads none."""
    include_path: list[str] = Field(default=[])
    """Folders with task YAMLs of your own, relative to the experiment file."""
    split: SplitSettings = SplitSettings()
    """The two halves of the training split; `study` alone is short for {by: study}."""
    weak: Weak
    """The weak supervisor; its `trainer` says which keys it has."""
    strong: Strong
    """The strong model, and how every arm that trains it is trained; its `trainer` says which keys it has."""
    labels: Literal["soft", "hard", "generate"] = "soft"
    """Whether students learn the supervisor's probabilities, its decisions, or, where answers are generated, its solutions
    (generate): the likeliest of those that come to the answer of most of its samples."""
    generate: Generate = Generate()
    """How solutions are written, for labels: generate."""
    methods: list[str] = Field(default=["xent"], min_length=1)
    """How the student is trained: a loss, an operation on the labels, or several joined by +, e.g. filter+logconf."""
    method_args: AnyMethodArgs = Field(default_factory=lambda: known()())
    """Settings of the methods, e.g. {logconf: {alpha: 0.75}}."""
    equal_steps: bool = False
    """Whether every training of the strong model takes the optimizer steps of one on all rows of the transfer half, however
    many rows its labels leave: a filter's student then sees its rows more often, and no arm learns for longer."""
    tune: Tune | None = None
    """A grid of settings that every arm is trained with; its own held-back labels choose. null for `strong` as it is."""
    arms: list[str] = Field(default=["zero_shot", "student", "ceiling", "random_labels"], min_length=1)
    """Ways to get a strong model; the weak supervisor is always evaluated. few_shot(4), few_shot(16) make a ladder of gold
    examples in the prompt, in_context(4), in_context(16) one of examples that the supervisor labelled, random_shots(4),
    random_shots(16) one of examples with random labels."""
    unsupervised: Unsupervised = Unsupervised()
    """Settings of the arm unsupervised and of those whose names begin so."""
    seeds: list[Annotated[int, Field(ge=0, lt=2**31)]] = Field(default=[0], min_length=1)
    """Each seed is a whole repetition: split, order and initialisation."""
    evaluate: Evaluate = Evaluate()
    """Evaluation on the training task."""
    safety: Safety | None = None
    """Safety evaluation; null for none."""
    primary: Primary | None = None
    """The one comparison that the experiment is run for, first in its report; null for none."""
    resources: Resources = Resources()
    """What each kind of step asks of a machine, for `--engine ray`; no result depends on it."""
    name: str = Field(default="", pattern=r"^[\w.-]*$")
    """The run folder's name; empty for the file's name."""

    @model_validator(mode="before")
    @classmethod
    def _plugins_are_here(cls, data: Any) -> Any:
        wanted = data.get("requires") if isinstance(data, dict) else None
        names = [name for name in wanted if isinstance(name, str)] if isinstance(wanted, list) else []
        try:
            require(names)
        except ValueError as error:
            raise ValueError(f"requires: {error}") from error
        return data

    @field_validator("name")
    @classmethod
    def _a_folder(cls, value: str) -> str:
        if value and not value.strip("."):
            raise ValueError("write a name for the run folder; dots alone are other folders")
        if size(value) > LONGEST_NAME:
            raise ValueError(f"{size(value):,} bytes; a run folder's name has at most {LONGEST_NAME}")
        return value

    @model_validator(mode="before")
    @classmethod
    def _of_rows(cls, data: Any) -> Any:
        """A task made of rows stands for its name and its folder."""
        task = data.get("task") if isinstance(data, dict) else None
        if not isinstance(task, RowsTask):
            return data
        return {**data, "task": task.name, "include_path": [*(data.get("include_path") or ()), task.folder]}

    @field_validator("split", mode="before")
    @classmethod
    def _short_split(cls, value: Any) -> Any:
        return {"by": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _known_names(self) -> Experiment:
        for arm in self.arms:
            if not is_arm(arm):
                known = ", ".join(name + ("(K)" if kind.shots else "") for name, kind in ARMS.items())
                raise ValueError(f"arms: no arm '{arm}'.{nearest(arm, ARMS)} Known: {known}.")
        for method in self.methods:
            try:
                ops = parse_method(method).ops
            except ValueError as error:
                raise ValueError(f"methods: {error}") from error
            needy = next((o for o in ops if o in NEEDS_CONFIDENCE), None)
            if needy and self.labels == "hard":
                raise ValueError(f"methods: {needy} needs labels: soft; for hard labels after it write {needy}+harden")
        for field, values in (("arms", self.arms), ("methods", self.methods)):
            if len(set(values)) != len(values):
                raise ValueError(f"{field}: a name occurs twice")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError("seeds: a seed occurs twice")
        return self

    @model_validator(mode="after")
    def _primary_is_there(self) -> Experiment:
        if self.primary is None:
            return self
        known = ["weak", *self.arms]
        for field in ("arm", "against"):
            name = getattr(self.primary, field)
            if name not in known:
                raise ValueError(
                    f"primary.{field}: no arm {shown(name)} here.{nearest(name, known)} Known: {', '.join(known)}."
                )
        if self.primary.method is not None and self.primary.method not in self.methods:
            method = shown(self.primary.method)
            raise ValueError(f"primary.method: no method {method} here. Known: {', '.join(self.methods)}.")
        if self.primary.task is not None and self.safety is None:
            raise ValueError("primary.task: a safety task; there is no `safety` section (null is the training task)")
        return self

    @model_validator(mode="after")
    def _trainer_can(self) -> Experiment:
        strong = TRAINERS[self.strong.trainer]
        adapters = named("strong", lambda t: t.keeps)
        scoring = named("strong", lambda t: t.base_model == "w2s-hf")
        others = ", ".join(sorted({parse_method(m).loss for m in self.methods} - {"xent"}))
        if others and not strong.losses:
            raise ValueError(
                f"methods: '{others}' can't be trained by a service, which learns hard labels with its own loss. "
                f"Use methods: [xent], operations on the labels, or strong.trainer: {named('strong', lambda t: t.losses)}."
            )
        if others and self.strong.learns == "language_model":
            raise ValueError(
                "strong.objective: language_model learns tokens, not a distribution; methods may change the labels, but the "
                f"loss has to be xent, not {others}"
            )
        asked = next((arm for arm in self.arms if _asks_untuned(arm)), None)
        if asked and not strong.answers_untuned:
            raise ValueError(
                f"arms: {asked} needs the untuned strong model, which can't answer with trainer: {self.strong.trainer}: its "
                "head is random before training. Name arms that are trained, e.g. [student, ceiling, random_labels]."
            )
        otherwise = self.evaluate.task or self.evaluate.tuned_task or self.evaluate.prompts > 1
        if strong.model == "w2s-classifier" and (self.safety or otherwise):
            raise ValueError(
                f"strong.trainer: {self.strong.trainer} answers the training task alone; leave safety, evaluate.task, "
                "evaluate.tuned_task and evaluate.prompts out"
            )
        if self.equal_steps and not isinstance(self.strong, Optimised):
            raise ValueError(f"equal_steps: the service decides the steps of strong.trainer: {self.strong.trainer}")
        if getattr(self.weak, "prepare", None) is not None:
            raise ValueError("weak.prepare: only the strong model is prepared; leave it out")
        if self.evaluate.checkpoints and not strong.keeps:
            raise ValueError(
                f"evaluate.checkpoints: this trainer gives the final model alone; it needs strong.trainer: {adapters}"
            )
        if self.evaluate.engine == "vllm" and not (strong.keeps and strong.model == "w2s-hf"):
            raise ValueError(
                f"evaluate.engine: vllm serves a language model and its adapters; it needs strong.trainer: {adapters}"
            )
        calibrated = next((arm for arm in self.arms if arm in ARMS and ARMS[arm].calibrated), None)
        if calibrated and (self.evaluate.engine == "vllm" or strong.base_model != "w2s-hf"):
            raise ValueError(f"arms: {calibrated} needs strong.trainer: {scoring}, evaluated here (evaluate.engine: hf)")
        if calibrated and self.resources.evaluate.processes > 1:
            raise ValueError(f"arms: {calibrated} is evaluated in one process; leave resources.evaluate.processes out")
        searching = next((arm for arm in self.arms if kind_of(arm).teacher == "search"), None)
        if searching and strong.base_model != "w2s-hf":
            raise ValueError(f"arms: {searching} scores thousands of answers in context; it needs strong.trainer: {scoring}")
        return self

    @model_validator(mode="after")
    def _grid_fits(self) -> Experiment:
        if self.tune is not None:
            texts = self.labels == "generate"
            self.tune.check(self.strong, seeds=self.seeds, equal_steps=self.equal_steps, texts=texts)
        return self

    @model_validator(mode="after")
    def _variants_fit(self) -> Experiment:
        self.method_args.section("ensemble").supervisors(self.weak)
        links = self.method_args.section("bootstrap").links(self.strong)
        if self.labels == "generate" and any("bootstrap" in method.split("+") for method in self.methods):
            for link in links:
                _check_writes("method_args.bootstrap.chain", link)
        return self

    @model_validator(mode="after")
    def _of_one_kind(self) -> Experiment:
        """Refuse parts that take labels of the other kind."""
        kind, what = (TextLabels, "solutions") if self.labels == "generate" else (LabelSet, "distributions over choices")
        for op in (op for method in self.methods for op in parse_method(method).ops):
            if not takes_labels(op, kind):
                raise ValueError(f"methods: {op} can't be used with labels: {self.labels}, which are {what}")
        if self.labels != "generate":
            return self
        _check_writes("weak", self.weak, "weak")
        _check_writes("strong", self.strong)
        for arm in self.arms:
            entry = kind_of(arm)
            if entry.calibrated or entry.teacher == "search" or (entry.labels and not takes(entry.labels, kind)):
                raise ValueError(f"arms: {arm} is over choices; with labels: generate there are none")
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """For other processes, which load their plug-ins when they read it."""
        return Experiment.model_validate, (self.model_dump(mode="json", exclude_unset=True),)

    @property
    def training_task(self) -> str:
        """The name of the task in its form."""
        return self.task if self.form is None else f"{self.task}{MARK}{self.form}"

    def own_shots(self, arm: str) -> int | None:
        """Shots of an arm that has its own, few_shot(K) or in_context(K), without K `evaluate.few_shot_k`; else None."""
        sized = SHOTS.fullmatch(arm)
        return None if kind_of(arm).shots is None else int(sized[2]) if sized else self.evaluate.few_shot_k
