"""The OpenAI trainer: a service fine-tunes a model on a task's labels, through the API that OpenAI and others offer.

The rows are the task's own, rendered as its evaluation renders them for a chat model; the target is the text of the label's
most probable choice, because the service learns text with its own cross-entropy. The result is the fine-tuned model's name,
which `w2s-chat` evaluates. OpenAI itself takes no new jobs from 2027-01-06 on; see `trainers.services.service`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainers.fit.openai_settings import OpenAIStrong
from trainers.harness.pool import ModelPool
from trainers.harness.tasks import HarnessTask, PromptStyle
from trainers.labels.label_set import LabelSet
from trainers.services.chat_rows import Counts, chat_rows, check_rows, to_jsonl
from trainers.services.follow import as_lines, collect, follow
from trainers.services.job import JobSpec, Note, Submission
from trainers.services.service import Endpoint, closing_note
from trainers.store import processes
from trainers.store.costs import TrainingEstimate, dollars, training_estimate, write_cost
from trainers.store.stages import CHECKPOINTS, write_atomic
from trainers.training.told import Told
from w2s_tasks.errors import UserError
from w2s_tasks.models.chat.states import standing
from w2s_tasks.models.ref import ModelRef
from w2s_tasks.scoring import system_place

if TYPE_CHECKING:
    import openai
    from openai.types.fine_tuning import FineTuningJob

STATE = "openai.json"


def base_ref(settings: OpenAIStrong, choices: Sequence[str] = ()) -> ModelRef:
    """The model before training, as `w2s-chat` takes it, whatever the choices."""
    return _ref(settings, settings.model)


def _ref(settings: OpenAIStrong, model: str) -> ModelRef:
    where = {"model": model, "base_url": settings.base_url, "api_key_env": settings.api_key_env}
    return ModelRef("w2s-chat", where | settings.model_args)


def style_of(settings: OpenAIStrong, num_fewshot: int | None = 0) -> PromptStyle:
    """The prompt style of training and evaluation: messages, with the system prompt where there is one."""
    return PromptStyle(num_fewshot, True, settings.system_prompt)


def prepare(
    task: HarnessTask, docs: Sequence[dict[str, Any]], choices: Sequence[int], settings: OpenAIStrong, seed: int = 0
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


def fit(
    task: HarnessTask,
    docs: Sequence[dict[str, Any]],
    labels: LabelSet,
    settings: OpenAIStrong,
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
    train, held, counts = prepare(task, docs, labels.hard.tolist(), settings, seed)
    (out / "train.jsonl").write_text(to_jsonl(train), encoding="utf-8")
    if held:
        (out / "validation.jsonl").write_text(to_jsonl(held), encoding="utf-8")
    estimate = training_estimate(counts, settings)
    for line in (estimate.line(), *counts.notes()):
        pool.note(f"{title}: {line}")
    job, outcome = run_job(
        _spec(settings, out, seed, bool(held)),
        Endpoint(settings.base_url, settings.api_key_env),
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
    pool.note(f"{title}: {job.fine_tuned_model}, {billed}, about {dollars(usd)}")
    return _ref(settings, str(job.fine_tuned_model))


def _spec(settings: OpenAIStrong, out: Path, seed: int, has_validation: bool) -> JobSpec:
    names = ("n_epochs", "batch_size", "learning_rate_multiplier")
    values = {n: getattr(settings, n) for n in names if getattr(settings, n) != "auto"}
    validation = out / "validation.jsonl" if has_validation else None
    return JobSpec(settings.model, out / "train.jsonl", validation, values, seed, settings.suffix)


def run_job(
    spec: JobSpec,
    endpoint: Endpoint,
    state: Path,
    settings: OpenAIStrong,
    estimate: TrainingEstimate,
    pool: ModelPool,
    title: str,
) -> tuple[FineTuningJob, Any]:
    """Submit or find the job, follow it to its end, fetch what it leaves."""
    client = endpoint.client()

    def note(text: str) -> None:
        pool.note(f"{title}: {text}")

    def approve() -> None:
        if settings.max_cost is not None and (estimate.usd is None or estimate.usd > settings.max_cost):
            raise UserError(
                f"{title} would cost about {dollars(estimate.usd)}, more than strong.max_cost {dollars(settings.max_cost)}. "
                "Nothing was sent. Raise it, or use fewer rows (split.limit.transfer)."
            )
        pool.budget.check(estimate.usd, title)
        closing = closing_note(endpoint)
        if closing:
            pool.note(closing)

    submission = Submission(client, endpoint, spec, state, note=note, approve=approve, ignore=settings.replace)
    job_id = submission.submit()
    watch = _guard(client, settings, estimate, pool, title) if submission.created else lambda job: None
    job = follow(
        client,
        endpoint,
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
    client: openai.OpenAI, settings: OpenAIStrong, estimate: TrainingEstimate, pool: ModelPool, title: str
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
