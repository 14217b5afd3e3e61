"""The OpenAI trainer: a service fine-tunes a model on a task's labels, through the API that OpenAI and others offer.

The rows are the task's own, rendered as its evaluation renders them for a chat model; the target is the text of the label's
most probable choice, because the service learns text with its own cross-entropy. The result is the fine-tuned model's name,
which `w2s-chat` evaluates. Which services speak this API, and how: `trainers.services.dialects`; what ends, and when:
`w2s_tasks.models.ends`.
"""

from __future__ import annotations

import datetime as dt
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from trainers.fit.trainer import trainer
from trainers.harness.pool import ModelPool
from trainers.harness.tasks import HarnessTask, PromptStyle
from trainers.labels.label_set import LabelSet
from trainers.section import no_secrets
from trainers.services.chat_rows import Counts, chat_rows, check_rows, to_jsonl
from trainers.services.dialects import Dialect, Trained, dialect_of
from trainers.services.estimate import TrainingEstimate, training_estimate
from trainers.services.follow import Outcome, as_lines, collect, follow
from trainers.services.job import JobSpec, Note, Submission
from trainers.services.service import closing_note, reading_client
from trainers.store import processes
from trainers.store.costs import dollars, write_cost
from trainers.store.stages import CHECKPOINTS, write_atomic
from trainers.training.settings import ModelSettings
from trainers.training.told import Told
from w2s_tasks.errors import UserError
from w2s_tasks.models.chat.states import standing
from w2s_tasks.models.ref import ModelRef
from w2s_tasks.models.service import OPENAI, Access, checked_url, checked_variable
from w2s_tasks.scoring import system_place

if TYPE_CHECKING:
    import openai
    from openai.types.fine_tuning import FineTuningJob

STATE = "openai.json"
OWN = ("n_epochs", "batch_size", "learning_rate_multiplier")
"""Hyperparameters that are settings of their own."""


class OpenAI(ModelSettings):
    """A strong model that is fine-tuned by OpenAI's service, or by a provider of its protocol."""

    trainer: Literal["openai"] = "openai"
    """openai: supervised fine-tuning through the API; the service learns the hard label's text."""
    model: str
    """The service's name of the base model, e.g. gpt-4o-mini-2024-07-18."""
    base_url: str = OPENAI
    """The service's address; that of Nebius Token Factory or of an Azure resource for those."""
    dialect: Literal["openai", "nebius", "azure"] | None = None
    """Whose dialect the address speaks, for a gateway; otherwise its host decides."""
    api_version: str | None = None
    """Of Azure's dated API, e.g. 2024-10-21; none for its newer address (.../openai/v1) and elsewhere."""
    api_key_env: str = "OPENAI_API_KEY"
    """The NAME of the environment variable that holds the key; never the key."""
    n_epochs: int | Literal["auto"] = "auto"
    """Passes over the labels; auto is the service's choice."""
    batch_size: int | Literal["auto"] = "auto"
    """Rows a step; auto is the service's choice."""
    learning_rate_multiplier: float | Literal["auto"] = "auto"
    """Factor of the service's own learning rate; auto is its choice."""
    hyperparameters: dict[str, bool | int | float] = Field(default={})
    """More hyperparameters of the service's, as it names them, e.g. learning_rate, lora or lora_r at Nebius."""
    extra_body: dict[str, Any] = Field(default={})
    """More fields of the request for a job, e.g. trainingType at Azure; null leaves out one that is sent by default."""
    suffix: str | None = Field(default=None, min_length=1, max_length=64)
    """A word in the fine-tuned model's name."""
    system_prompt: str | None = None
    """A system message before every prompt, in training and in evaluation; a task's description comes after it."""
    target: Literal["plain", "quoted"] = "plain"
    """What the model learns to reply: the choice's text, or (as the seed study had it) the text in double quotes."""
    holdout: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of the labels held back as the service's validation file, for the curve; at most 200 rows."""
    poll_seconds: float = Field(default=30.0, gt=0)
    """Seconds between looks at a running job."""
    max_hours: float = Field(default=72.0, gt=0)
    """Hours to wait for a job; it goes on at the service, and the same command waits on."""
    max_cost: float | None = Field(default=None, ge=0)
    """USD that one job may be estimated to cost; `w2s run --max-cost` limits the whole experiment."""
    replace: list[str] = Field(default=[])
    """Ids of failed or cancelled jobs in whose place a new one is submitted."""
    deployments: dict[str, str] = Field(default={})
    """Where models must be deployed before they answer (Azure, Nebius): the name that answers, by the id of the job that
    trained it; by `model` for the base model."""
    model_args: dict[str, Any] = Field(default={})
    """More arguments for w2s-chat in evaluation, e.g. batch or num_concurrent."""

    @property
    def learns(self) -> Literal["choices", "language_model"]:
        """The service's loss: cross-entropy of the reply's tokens."""
        return "language_model"

    def identity(self, known: dict[str, str]) -> str:
        """The service and its name of the model."""
        return f"{self.base_url}#{self.model}"

    def recipe(self) -> dict[str, Any]:
        """The settings that the trained model depends on; how it is waited and paid for is none of them."""
        return self.model_dump(exclude={"suffix", "poll_seconds", "max_hours", "max_cost", "replace", "deployments"})

    @property
    def access(self) -> Access:
        """How to reach the service."""
        return Access(self.base_url, self.api_key_env, self.api_version)

    @property
    def spoken(self) -> Dialect:
        """The service's dialect."""
        return dialect_of(self.access, self.dialect)

    @property
    def sent(self) -> dict[str, Any]:
        """The hyperparameters of the request."""
        own = {name: value for name in OWN if (value := getattr(self, name)) != "auto"}
        return {**self.spoken.defaults, **own, **self.hyperparameters}

    @field_validator("n_epochs", "batch_size", "learning_rate_multiplier", mode="before")
    @classmethod
    def _number_or_auto(cls, value: Any, info: ValidationInfo) -> Any:
        whole, most = (
            info.field_name != "learning_rate_multiplier",
            {"n_epochs": 50, "batch_size": 256}.get(info.field_name or "", 1e3),
        )
        number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        if value != "auto" and not (number and 0 < value <= most):
            raise ValueError(f"write auto or a {'whole ' if whole else ''}number above 0, at most {most:g}")
        return value

    @field_validator("model_args", "hyperparameters", "extra_body")
    @classmethod
    def _not_keys(cls, value: dict[str, Any]) -> dict[str, Any]:
        taken = [k for k in ("model", "base_url", "api_key_env", "api_version", "suffix", *OWN) if k in value]
        if taken:
            raise ValueError(f"'{taken[0]}' is a key of strong itself")
        return no_secrets(value)

    @model_validator(mode="after")
    def _known_to_the_service(self) -> Self:
        self.spoken.check(self.sent)
        return self

    @field_validator("api_version", mode="before")
    @classmethod
    def _no_date(cls, value: Any) -> Any:
        """YAML takes such a version for a date."""
        return value.isoformat() if isinstance(value, dt.date) else value

    @field_validator("api_key_env")
    @classmethod
    def _a_name(cls, value: str) -> str:
        return checked_variable(value)

    @field_validator("base_url")
    @classmethod
    def _an_address(cls, value: str) -> str:
        return checked_url(value)


def base_ref(settings: OpenAI, task: HarnessTask | None = None) -> ModelRef:
    """The model before training, as `w2s-chat` takes it, whatever the task."""
    return _ref(settings, settings.deployments.get(settings.model, settings.model))


def _ref(settings: OpenAI, model: str) -> ModelRef:
    where = {"model": model, "base_url": settings.base_url, "api_key_env": settings.api_key_env}
    where |= {"api_version": settings.api_version} if settings.api_version else {}
    return ModelRef("w2s-chat", where | settings.model_args)


def style_of(settings: OpenAI, num_fewshot: int | None = 0) -> PromptStyle:
    """The prompt style of training and evaluation: messages, with the system prompt where there is one."""
    return PromptStyle(num_fewshot, True, settings.system_prompt)


def prepare(
    task: HarnessTask, docs: Sequence[dict[str, Any]], choices: Sequence[int], settings: OpenAI, seed: int = 0
) -> tuple[list[Any], list[Any], Counts]:
    """Training rows, validation rows and the training rows' counts, checked as the service does; nothing is sent.

    Raises:
        UserError: rows that the service would refuse.
    """
    from trainers.training.loop import hold_out

    rows = chat_rows(task, docs, choices, style_of(settings), settings.target)
    # Without a holdout the rows keep their order: the file is the same for every seed, and the study's own.
    train, held = hold_out(rows, settings.holdout, seed) if settings.holdout else (rows, [])
    return train, held, check_rows(train, settings.model)


@trainer(
    "openai",
    settings=OpenAI,
    untuned=base_ref,
    style=style_of,
    model="w2s-chat",
    roles=("strong",),
    losses=False,
    paid=True,
)
def fit(
    task: HarnessTask,
    docs: Sequence[dict[str, Any]],
    labels: LabelSet,
    settings: OpenAI,
    out: Path,
    *,
    pool: ModelPool,
    method: str = "xent",
    loss_args: Mapping[str, Any] | None = None,
    seed: int = 0,
    title: str = "strong",
) -> ModelRef:
    """Fine-tune through the service; goes on with the job of a killed run, and never submits the same job twice.

    Args:
        task: renders prompts and choices.
        docs: the documents of the label set, in its order.
        labels: what to learn; of a soft label the most probable choice.
        settings: service, model and hyperparameters.
        out: the folder to fill: ``train.jsonl``, ``job.json``, ``events.jsonl``, ``curves.json``, ``cost.json``,
            ``training.json``.
        pool: holds the experiment's budget and takes lines for the user.
        method: only ``xent``.
        loss_args: unused; ``xent`` has none.
        seed: of the job, and of the rows held back.
        title: of the progress line.

    Raises:
        UserError: another method, rows or a key that the service would not take, a budget that does not suffice, a job that
            failed, was cancelled or blocked; always with what to do.
    """
    if method != "xent":
        raise UserError(
            f"the method '{method}' can't be trained by a service, which learns hard labels with its own loss: use xent, or "
            "trainer: lora."
        )
    if processes.count() > 1:
        raise UserError("trainer: openai sends its work to a service; run it in one process, without accelerate launch.")
    if labels.weight is not None:
        raise UserError("a service counts every row alike: a method that weighs rows needs strong.trainer: lora.")
    train, held, counts = prepare(task, docs, labels.hard.tolist(), settings, seed)
    (out / "train.jsonl").write_text(to_jsonl(train), encoding="utf-8")
    if held:
        (out / "validation.jsonl").write_text(to_jsonl(held), encoding="utf-8")
    estimate = training_estimate(counts, settings.model, settings.n_epochs, settings.spoken.epochs)
    for line in (estimate.line(), *counts.notes()):
        pool.note(f"{title}: {line}")
    job, outcome = run_job(
        _spec(settings, out, seed, bool(held)),
        settings.access,
        out / CHECKPOINTS / STATE,
        settings,
        estimate,
        pool,
        title,
    )
    write_atomic(out / "job.json", json.dumps(outcome.job | {"checkpoints": outcome.checkpoints}, indent=2, default=str))
    write_atomic(out / "events.jsonl", as_lines(outcome.events))
    write_atomic(out / "curves.json", json.dumps(outcome.curve))
    Told(system_place.MESSAGE if task.has_system(style_of(settings)) else None).save(out)
    usd = estimate.cost(job.trained_tokens) if job.trained_tokens else estimate.usd
    write_cost(out, usd, job.trained_tokens)
    billed = f"{job.trained_tokens:,} trained tokens" if job.trained_tokens else "trained tokens not told"
    pool.note(f"{title}: {job.fine_tuned_model or job.id}, {billed}, about {dollars(usd)}")
    return _ref(settings, _answering(settings, job, outcome))


def _spec(settings: OpenAI, out: Path, seed: int, has_validation: bool) -> JobSpec:
    dialect, validation = settings.spoken, out / "validation.jsonl" if has_validation else None
    extra = {name: value for name, value in {**dialect.extra, **settings.extra_body}.items() if value is not None}
    train = out / "train.jsonl"
    return JobSpec(settings.model, train, validation, settings.sent, seed, settings.suffix, extra, dialect)


def _answering(settings: OpenAI, job: FineTuningJob, outcome: Outcome) -> str:
    """The name under which a trained model answers.

    Raises:
        UserError: it has none yet: how to deploy it, and how to go on.
    """
    if name := settings.deployments.get(job.id) or settings.deployments.get(job.fine_tuned_model or ""):
        return name
    dialect, host = settings.spoken, settings.access.host
    if dialect.deploy:
        checkpoint = next((str(found["id"]) for found in outcome.checkpoints if found.get("id")), None)
        command = dialect.deploy(Trained(job.id, settings.model, job.fine_tuned_model, checkpoint), settings.access)
        named = shlex.quote(f"strong.deployments.{job.id}=NAME")
        raise UserError(
            f"{host}: the job {job.id} is done, but at {dialect.service} its model answers only once it is deployed:\n"
            f"  {command}\nThen run again with --set {named} (or write it in the config), NAME being what the deployment "
            "answers by. Nothing is trained or paid for again."
        )
    if not job.fine_tuned_model:
        raise UserError(f"{host}: the job {job.id} {job.status} but names no model; look at it on the service's pages.")
    return job.fine_tuned_model


def run_job(
    spec: JobSpec,
    access: Access,
    state: Path,
    settings: OpenAI,
    estimate: TrainingEstimate,
    pool: ModelPool,
    title: str,
) -> tuple[FineTuningJob, Outcome]:
    """Submit or find the job, follow it to its end, fetch what it leaves."""
    client = reading_client(access)

    def note(text: str) -> None:
        pool.note(f"{title}: {text}")

    def approve() -> None:
        pool.budget.check(estimate.usd, title, settings.max_cost)
        closing = closing_note(access, settings.model)
        if closing:
            pool.note(closing)

    submission = Submission(client, access, spec, state, note=note, approve=approve, ignore=settings.replace)
    job_id = submission.submit()
    watch = _guard(client, settings, estimate, pool, title) if submission.created else lambda job: None
    job = follow(
        client,
        access,
        job_id,
        interval=settings.poll_seconds,
        title=title,
        note=pool.note,
        watch=watch,
        patience=settings.max_hours * 3600,
    )
    pool.budget.book(estimate.cost(job.trained_tokens) if job.trained_tokens else estimate.usd)
    return job, collect(client, job, note=note)


def _guard(
    client: openai.OpenAI, settings: OpenAI, estimate: TrainingEstimate, pool: ModelPool, title: str
) -> Callable[[FineTuningJob], None]:
    """Cancels a job of this process whose epochs, once the service has chosen them, would pass a limit."""
    limits = [x for x in (settings.max_cost, pool.budget.left) if x is not None]

    def watch(job: FineTuningJob) -> None:
        epochs = getattr(job.hyperparameters, "n_epochs", None)
        if not limits or not isinstance(epochs, int) or standing(job.status).ended:
            return
        usd = estimate.cost(estimate.tokens * epochs)
        if usd is not None and usd > min(limits):
            client.fine_tuning.jobs.cancel(job.id)
            raise UserError(
                f"{title}: the service chose {epochs} epochs for {job.id}, about {dollars(usd)}; the limit is "
                f"{dollars(min(limits))}, so the job was cancelled. Set strong.n_epochs, which also makes it another job."
            )

    return watch


__all__ = ["Note", "base_ref", "fit", "prepare", "style_of"]
