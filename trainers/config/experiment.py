"""The experiment file: its schema, with a sentence under every field, and errors that name file, line and key."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, Discriminator, Field, Tag, ValidationError, field_validator, model_validator

from trainers.config.method_args import MethodArgs, Unsupervised
from trainers.config.methods import NEEDS_CONFIDENCE, parse_method
from trainers.fit.openai_settings import OpenAIStrong
from trainers.labels.arms import ARMS
from trainers.section import SECRET_PLACES, Section, changed, no_secrets
from trainers.training.trainer_args import check_trainer_args
from w2s_tasks.errors import UserError, nearest
from w2s_tasks.paths import LONGEST_NAME, cut, size
from w2s_tasks.user_text import LONGEST, SHOWN, parse_yaml, read_text, shown

MOST_ERRORS = 20
"""Lines of an error about an experiment file."""
SHOTS = re.compile(r"few_shot\(([1-9][0-9]*)\)")


def is_plain(arm: str) -> bool:
    """Whether an arm is a model that no label of this experiment trains: untuned, prompted, or the supervisor itself."""
    return SHOTS.fullmatch(arm) is not None or (arm in ARMS and ARMS[arm].teacher is None)


class Limit(Section):
    """How many rows of each half are used; null for all."""

    weak: int | None = Field(default=None, ge=8)
    """Rows with gold labels that the weak supervisor learns from."""
    transfer: int | None = Field(default=None, ge=8)
    """Rows that the weak supervisor labels, and that student, ceiling and controls learn from."""


class Split(Section):
    """How the training split is cut into a weak half and a transfer half."""

    by: Literal["source", "row", "study"] = "source"
    """source: no sentence on both sides; row: rows at random; study: train[:50%] and train[50%:], unshuffled."""
    weak: float = Field(default=0.5, gt=0, lt=1)
    """Share of the sources (or rows) in the weak half."""
    limit: Limit = Limit()
    """Row limits of both halves."""
    seed: int = 0
    """Seed of the split; an experiment's seed is added to it."""

    @model_validator(mode="after")
    def _study_is_fixed(self) -> Self:
        if self.by == "study" and (self.weak != 0.5 or self.seed):
            raise ValueError("by: study is train[:50%] and train[50%:]; it would ignore `weak` and `seed`")
        return self


SET_BY_RUNS = {
    "pretrained": "write the model as `model`",
    "peft": "each arm has the adapter that it trained; a model that is tuned already has to be merged and saved first",
    "delta": "a model that is tuned already has to be merged and saved first",
    "text": "write it as `text` of the section",
    "untrained_head": "it is what the arm weak_untrained has",
}
"""Arguments of the lm_eval models that no `model_args` may change."""


class Trainable(Section):
    """What every trainer takes."""

    model: str
    """A folder, a hub id, or pypi:NAME."""
    epochs: float = Field(default=1, gt=0)
    """Passes over the labels."""
    batch_size: int = Field(default=32, ge=1)
    """Rows an optimizer step, over all processes and gradient_accumulation_steps."""
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps over which the learning rate rises."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's weight decay."""
    schedule: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    """How the learning rate falls."""
    holdout: float = Field(default=0.05, ge=0, lt=0.5)
    """Share of the labels held back (at most 200 rows) for the evaluation curve, and for `checkpoint`."""
    checkpoint: Literal["last", "holdout_loss", "holdout_agreement"] = "last"
    """Which of about five checkpoints is taken: the last; or, without gold labels, that with the lowest cross-entropy to
    (holdout_loss), or the highest agreement with (holdout_agreement), the held-back rows of the labels trained on."""
    model_args: dict[str, Any] = Field(default={})
    """More arguments for the lm_eval model, e.g. device or dtype."""
    trainer_args: dict[str, Any] = Field(default={})
    """More fields of transformers' TrainingArguments, e.g. report_to: those that the training loop acts on."""

    @field_validator("model_args", "trainer_args")
    @classmethod
    def _no_secrets(cls, value: dict[str, Any]) -> dict[str, Any]:
        return no_secrets(value)

    @field_validator("model_args")
    @classmethod
    def _not_ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        if taken := next((key for key in SET_BY_RUNS if key in value), None):
            raise ValueError(f"'{taken}' is set by the run itself: {SET_BY_RUNS[taken]}")
        return value

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> Self:
        if self.schedule == "constant" and self.warmup not in (0, type(self).model_fields["warmup"].default):
            raise ValueError("schedule: constant would ignore `warmup`; constant_with_warmup has one")
        if self.checkpoint != "last" and not self.holdout:
            raise ValueError(f"checkpoint: {self.checkpoint} is chosen by held-back rows; set holdout above 0")
        return self

    @field_validator("trainer_args")
    @classmethod
    def _honoured(cls, value: dict[str, Any]) -> dict[str, Any]:
        return check_trainer_args(value)

    def recipe(self) -> dict[str, Any]:
        """The settings that the trained model depends on."""
        return self.model_dump()


OF_CLASSIFIER, OF_LORA = ("text", "max_length"), ("r", "alpha", "chat_template")
"""Fields of `weak` that only one of its trainers uses."""


class Weak(Trainable):
    """The weak supervisor."""

    trainer: Literal["classifier", "lora"] = "classifier"
    """classifier: an encoder with a classification head; lora: a small causal language model."""
    lr: float = Field(default=5e-5, gt=0)
    """Peak learning rate."""
    text: str | list[str] | None = None
    """What a classifier reads: a column, a template with {{, two columns, or null for the task's prompt."""
    max_length: int | None = Field(default=None, ge=8)
    """Tokens a row that a classifier reads; null for its window."""
    labels: Literal["soft", "hard"] = "soft"
    """Whether students learn the supervisor's probabilities or its decisions."""
    r: int = Field(default=16, ge=1)
    """LoRA rank, for trainer: lora."""
    alpha: float | None = None
    """LoRA scale; null for 2 r."""
    chat_template: bool = False
    """Whether a lora supervisor is prompted through its chat template."""

    @model_validator(mode="after")
    def _used(self) -> Self:
        for key in OF_CLASSIFIER if self.trainer == "lora" else OF_LORA:
            if getattr(self, key) != type(self).model_fields[key].default:
                other = "classifier" if self.trainer == "lora" else "lora"
                raise ValueError(f"'{key}' is for trainer: {other}; trainer: {self.trainer} would ignore it")
        return self


class Strong(Trainable):
    """The strong model, and how every arm that trains it is trained."""

    trainer: Literal["lora"] = "lora"
    """lora: PEFT LoRA on a causal language model."""
    objective: Literal["choices", "language_model"] = "choices"
    """choices: a distribution over the task's choices; language_model: the target's tokens and the end of the reply, as
    fine-tuning services train. Only the second teaches the format of a reply."""
    lr: float = Field(default=2e-4, gt=0)
    """Peak learning rate."""
    r: int = Field(default=16, ge=1)
    """LoRA rank."""
    alpha: float | None = None
    """LoRA scale; null for 2 r."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """LoRA dropout."""
    target_modules: str | list[str] = "all-linear"
    """Which layers get an adapter, as PEFT names them."""
    chat_template: bool = False
    """Whether prompts go through the model's chat template, in training and in evaluation."""
    system_prompt: str | None = None
    """A system message before every prompt, in training and in evaluation."""


STRONG: dict[str, type[Section]] = {"lora": Strong, "openai": OpenAIStrong}
"""The sections that `strong` can be, by trainer."""
AnyTrainable = Weak | Strong | OpenAIStrong


def _trainer_of(value: Any) -> str:
    found = value.get("trainer", "lora") if isinstance(value, dict) else getattr(value, "trainer", "lora")
    return found if isinstance(found, str) and found in STRONG else "lora"


class Evaluate(Section):
    """How every model is evaluated on the training task."""

    limit: int | None = Field(default=None, ge=2)
    """The first n documents; null for all."""
    num_fewshot: int = Field(default=0, ge=0)
    """Shots of every arm but few_shot."""
    few_shot_k: int = Field(default=8, ge=1)
    """Shots of the arm few_shot; few_shot(K) names its own."""
    task: str | None = None
    """A task that asks the strong arms the same documents another way, e.g. a generated twin; null for the training task."""
    tuned_task: str | None = None
    """The same for the trained strong arms alone: the seed study asked them with another prompt than the untuned model."""
    checkpoints: list[Annotated[float, Field(gt=0, lt=1)]] = Field(default=[])
    """Shares of a training's optimizer steps after which every trained strong arm is evaluated too, on the training task and
    the safety tasks, e.g. [0.25, 0.5, 0.75]: more points of safety against capability, in no other part of the report."""

    @field_validator("checkpoints")
    @classmethod
    def _ascending(cls, value: list[float]) -> list[float]:
        if value != sorted(set(value)):
            raise ValueError(f"write them in ascending order, each once: {sorted(set(value))}")
        return value


class Safety(Section):
    """The safety evaluation of the strong model's arms."""

    tasks: list[str] = Field(min_length=1)
    """Tasks or groups, e.g. w2s_ethics_all."""
    limit: int | None = Field(default=None, ge=2)
    """The first n documents a task; null for all."""
    limits: dict[str, Annotated[int, Field(ge=2)]] = Field(default={})
    """Other limits for some of the tasks, e.g. {w2s_ethics_commonsense_long: 25}."""
    num_fewshot: Annotated[int, Field(ge=0)] | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None = 0
    """Shots, the same for every document; a list such as [0, 1, 2, 4, 8, 16, 32] makes a ladder, its first entry the main
    one; null for each task's own number."""
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
    """Any trainable multiple_choice task: ours, lm_eval's, or yours by include_path."""
    include_path: list[str] = Field(default=[])
    """Folders with task YAMLs of your own, relative to the experiment file."""
    split: Split = Split()
    """The two halves of the training split; `study` alone is short for {by: study}."""
    weak: Weak
    """The weak supervisor."""
    strong: Annotated[Annotated[Strong, Tag("lora")] | Annotated[OpenAIStrong, Tag("openai")], Discriminator(_trainer_of)]
    """The strong model; its `trainer` says which keys it has."""
    methods: list[str] = Field(default=["xent"], min_length=1)
    """How the student is trained: a loss, an operation on the labels, or several joined by +, e.g. filter+logconf."""
    method_args: MethodArgs = MethodArgs()
    """Settings of the methods, e.g. {logconf: {alpha: 0.75}}."""
    arms: list[str] = Field(default=["zero_shot", "student", "ceiling", "random_labels"], min_length=1)
    """Ways to get a strong model; the weak supervisor is always evaluated. few_shot(4), few_shot(16) make a ladder."""
    unsupervised: Unsupervised = Unsupervised()
    """Settings of the arm unsupervised."""
    seeds: list[Annotated[int, Field(ge=0, lt=2**31)]] = Field(default=[0], min_length=1)
    """Each seed is a whole repetition: split, order and initialisation."""
    evaluate: Evaluate = Evaluate()
    """Evaluation on the training task."""
    safety: Safety | None = None
    """Safety evaluation; null for none."""
    name: str = Field(default="", pattern=r"^[\w.-]*$")
    """The run folder's name; empty for the file's name."""

    @field_validator("name")
    @classmethod
    def _a_folder(cls, value: str) -> str:
        if value and not value.strip("."):
            raise ValueError("write a name for the run folder; dots alone are other folders")
        if size(value) > LONGEST_NAME:
            raise ValueError(f"{size(value):,} bytes; a run folder's name has at most {LONGEST_NAME}")
        return value

    @field_validator("strong", mode="before")
    @classmethod
    def _known_trainer(cls, value: Any) -> Any:
        name = value.get("trainer", "lora") if isinstance(value, dict) else "lora"
        if str(name) not in STRONG:
            raise ValueError(f"no trainer {shown(name)}.{nearest(str(name), STRONG)} Known: {', '.join(STRONG)}.")
        return value

    @field_validator("split", mode="before")
    @classmethod
    def _short_split(cls, value: Any) -> Any:
        return {"by": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _known_names(self) -> Experiment:
        for arm in self.arms:
            if arm not in ARMS and not is_plain(arm):
                raise ValueError(f"arms: no arm '{arm}'.{nearest(arm, ARMS)} Known: {', '.join(ARMS)}, few_shot(K).")
        for method in self.methods:
            try:
                ops = parse_method(method).ops
            except ValueError as error:
                raise ValueError(f"methods: {error}") from error
            needy = next((o for o in ops if o in NEEDS_CONFIDENCE), None)
            if needy and self.weak.labels == "hard":
                raise ValueError(f"methods: {needy} needs weak.labels: soft; for hard labels after it write {needy}+harden")
        for field, values in (("arms", self.arms), ("methods", self.methods)):
            if len(set(values)) != len(values):
                raise ValueError(f"{field}: a name occurs twice")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError("seeds: a seed occurs twice")
        losses = {parse_method(m).loss for m in self.methods}
        others = ", ".join(sorted(losses - {"xent"}))
        if self.strong.trainer == "openai" and others:
            raise ValueError(
                f"methods: '{others}' can't be trained by a service, which learns hard labels with its own loss. "
                "Use methods: [xent], operations on the labels, or strong.trainer: lora."
            )
        if self.strong.trainer == "openai" and self.evaluate.checkpoints:
            raise ValueError("evaluate.checkpoints: a service gives the final model alone; it needs strong.trainer: lora")
        if self.strong.trainer == "openai" and "unsupervised" in self.arms:
            raise ValueError("arms: unsupervised scores thousands of answers in context; it needs strong.trainer: lora")
        if self.strong.trainer == "lora" and self.strong.objective == "language_model" and others:
            raise ValueError(
                "strong.objective: language_model learns tokens, not a distribution; methods may change the labels, but the "
                f"loss has to be xent, not {others}"
            )
        if self.strong.system_prompt and not self.strong.chat_template:
            raise ValueError("strong.system_prompt needs strong.chat_template: true")
        return self

    @model_validator(mode="after")
    def _method_args_fit(self) -> Experiment:
        weights = self.method_args.ensemble.weights
        if isinstance(weights, list) and (len(weights) != 1 + len(self.method_args.ensemble.members) or not sum(weights)):
            raise ValueError("method_args.ensemble.weights: one number for `weak` and one for each member, not all 0")
        _ = self.ensemble_members, self.bootstrap_chain
        return self

    @property
    def ensemble_members(self) -> list[tuple[Weak, int]]:
        """The further weak supervisors of the method ensemble, each with what is added to the seed."""
        members = [dict(m) for m in self.method_args.ensemble.members]
        seeds = [m.pop("seed", 0) for m in members]
        for seed in seeds:
            if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
                raise ValueError(f"method_args.ensemble.members: seed: a whole number from 0 is expected, got {shown(seed)}")
        return [(changed(self.weak, m, "method_args.ensemble.members"), s) for m, s in zip(members, seeds, strict=True)]

    @property
    def bootstrap_chain(self) -> list[Strong | OpenAIStrong]:
        """The models between weak and strong of the method bootstrap."""
        return [changed(self.strong, link, "method_args.bootstrap.chain") for link in self.method_args.bootstrap.chain]

    def few_shot_k(self, arm: str) -> int | None:
        """Shots of an arm few_shot or few_shot(K); None for every other arm."""
        found = SHOTS.fullmatch(arm)
        return int(found[1]) if found else self.evaluate.few_shot_k if arm == "few_shot" else None


def _line_of(text: str, path: tuple[str | int, ...]) -> int | None:
    """The line of a key in YAML text, as far as the path can be followed."""
    node, line = yaml.compose(text, Loader=yaml.SafeLoader), None
    for part in path:
        if isinstance(node, yaml.MappingNode):
            pair = next(((k, v) for k, v in node.value if k.value == str(part)), None)
            if pair is None:
                return line
            line, node = pair[0].start_mark.line + 1, pair[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            return line
    return line


def _known_keys(path: tuple[str | int, ...]) -> list[str]:
    model: type[BaseModel] = Experiment
    for part in path:
        if str(part) in STRONG:
            model = STRONG[str(part)]
            continue
        if str(part) not in model.model_fields:
            return list(model.model_fields)
        annotation = model.model_fields[str(part)].annotation
        options = [a for a in (annotation, *getattr(annotation, "__args__", ())) if isinstance(a, type)]
        model = next((a for a in options if issubclass(a, BaseModel)), model)
    return list(model.model_fields)


def _explain(error: ValidationError, where: str, text: str) -> str:
    lines = []
    for item in error.errors():
        loc = tuple(item["loc"])
        path = tuple(p for i, p in enumerate(loc) if not (i == 1 and loc[0] == "strong" and p in STRONG))
        key = cut(".".join(map(str, path)), SHOWN) or "(file)"
        line = _line_of(text, path)
        place = f"{where}:{line}" if line else where
        if item["type"] == "extra_forbidden":
            known = _known_keys(loc[:-1])
            message = f"unknown key.{nearest(str(path[-1]), known)} Known here: {', '.join(known)}."
        elif item["type"] == "missing":
            message = "this key is missing."
        else:
            message = item["msg"].removeprefix("Value error, ")
            value = item.get("input")
            simple = path and path[-1] not in SECRET_PLACES and isinstance(value, str | int | float | bool)
            message += f" (got {shown(value)})" if simple else ""
        lines.append(f"{place}: {key}: {message}")
    more = [f"{where}: and {len(lines) - MOST_ERRORS:,} more errors"] if len(lines) > MOST_ERRORS else []
    return "\n".join([*lines[:MOST_ERRORS], *more])


def set_value(data: dict[str, Any], assignment: str) -> None:
    """Apply one ``--set a.b=value``; the value is read as YAML.

    Raises:
        UserError: no ``=``, or a path through something that is no section.
    """
    path, equals, raw = assignment.partition("=")
    *parents, last = path.strip().split(".")
    if not equals or not all((*parents, last)):
        raise UserError(f"--set {cut(assignment, SHOWN)}: write key=value, e.g. --set strong.lr=1e-3.")
    node: Any = data
    for parent in parents:
        if isinstance(node.get(parent), str) and parent == "split":
            node[parent] = {"by": node[parent]}
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise UserError(f"--set {cut(assignment, SHOWN)}: '{cut(parent, SHOWN)}' is no section of the config.")
    node[last] = parse_yaml(raw, f"--set {cut(path, SHOWN)}")


def parse(text: str, where: str, overrides: list[str] | None = None) -> Experiment:
    """Read an experiment from YAML text.

    Raises:
        UserError: not YAML, an unknown or missing key, or a value that does not fit; with file, line and key.
    """
    data = parse_yaml(text, where)
    if not isinstance(data, dict):
        raise UserError(f"{where}: an experiment is a mapping of keys; see harness_configs/experiments/quickstart.yaml.")
    for assignment in overrides or []:
        set_value(data, assignment)
    try:
        return Experiment.model_validate(data)
    except ValidationError as error:
        raise UserError(_explain(error, where, text)) from error


def shipped() -> dict[str, Path]:
    """The experiments that ship with the package, by name."""
    folder = Path(__file__).parents[2] / "harness_configs" / "experiments"
    return {p.stem: p for p in sorted(folder.glob("*.yaml"))}


def find_config(name: str) -> Path:
    """A config by path, or by the name of one that ships.

    Raises:
        UserError: neither exists.
    """
    path = Path(name)
    if path.is_file():
        return path
    known = shipped()
    stem = path.stem if path.suffix in (".yaml", ".yml") else name
    if stem in known:
        return known[stem]
    raise UserError(
        f"no config file '{name}', and none of that name ships.{nearest(stem, known)} Shipped: {', '.join(known)}."
    )


def load(name: str, overrides: list[str] | None = None) -> tuple[Experiment, Path]:
    """Read an experiment file by path or shipped name, with ``--set`` overrides; folders become absolute."""
    path = find_config(name)
    text = read_text(path, most=LONGEST)
    config = parse(text, str(path), overrides)
    folders = [str((path.parent / p).resolve()) for p in config.include_path]
    name = config.name or path.stem
    if not name.strip(".") or size(name) > LONGEST_NAME:
        raise UserError(f"{path}: its name can't name a run folder; put `name: my_experiment` into it.")
    return config.model_copy(update={"include_path": folders, "name": name}), path
