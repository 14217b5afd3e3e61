"""Following a fine-tuning job: a live line while it runs, its end in one sentence, its metrics as a learning curve."""

from __future__ import annotations

import base64
import binascii
import csv
import functools
import io
import json
import math
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from trainers.services.job import LONGEST_WAIT, Note, asked_pause
from trainers.services.service import ALTERNATIVES, explain, is_quota, listed, said_in, steady
from w2s_tasks.errors import UserError
from w2s_tasks.models.chat.states import Standing, standing
from w2s_tasks.models.service import Access

if TYPE_CHECKING:
    import openai
    from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent

STEP = re.compile(r"[Ss]tep (\d+)/(\d+)")
MODERATION = re.compile(r"moderation|usage polic|unsafe|content_policy|safety eval", re.IGNORECASE)
FIRST_EVENTS = 20
PATIENCE = 72 * 3600.0
"""Seconds that a job is waited for where the caller says nothing else."""
PUZZLED = 60
"""Looks in a row that tell no state which this program knows (half an hour by default), after which it asks the user."""

Point = dict[str, float]


class _Line:
    """One live line on a terminal; elsewhere (a log file) a line a change of state."""

    def __init__(self, title: str, note: Note) -> None:
        self.title, self.note, self.status = title, note, ""
        self.bar: Any = tqdm(desc=title, unit="step", leave=False, disable=None, file=sys.stderr)

    def show(self, job: FineTuningJob, events: Iterable[FineTuningJobEvent]) -> None:
        """Status, steps, last loss, expected end."""
        facts: list[str] = [job.status]
        for event in events:
            message = str(getattr(event, "message", None) or "")
            step = STEP.search(message)
            if step:
                self.bar.total = int(step[2])
                self.bar.update(int(step[1]) - self.bar.n)
                facts.append(message.split(": ", 1)[-1][:60])
                break
        if isinstance(job.estimated_finish, int | float):
            left = max(0, round((job.estimated_finish - time.time()) / 60))
            facts.append(f"about {left} min left")
        self.bar.set_postfix_str(", ".join(facts))
        if job.status != self.status:
            if standing(job.status) is Standing.UNKNOWN:
                self.note(f"{self.title}: {job.id} is '{job.status}', a state that this program does not know; looking on.")
            elif self.bar.disable:
                self.note(f"{self.title}: {job.id} is {job.status}")
        self.status = job.status

    def say(self, text: str) -> None:
        """A fact that is no state of the job."""
        if self.bar.disable:
            self.note(f"{self.title}: {text}")
        else:
            self.bar.set_postfix_str(text)

    def close(self) -> None:
        """Remove the line."""
        self.bar.close()


def follow(
    client: openai.OpenAI,
    access: Access,
    job_id: str,
    *,
    interval: float,
    title: str,
    note: Note,
    watch: Callable[[FineTuningJob], None] = lambda job: None,
    patience: float = PATIENCE,
) -> FineTuningJob:
    """Wait until the job has ended well; Ctrl-C leaves it running.

    A service that is out of reach meanwhile is waited for. A state that `standing` does not know, or an answer that is no
    job, is told and looked at `PUZZLED` times; then the user decides.

    Args:
        client: of the service.
        access: whose service.
        job_id: which job.
        interval: seconds between looks.
        title: of the live line.
        note: takes lines where there is no terminal.
        watch: called with the job each time; raises to stop (a budget).
        patience: seconds after which waiting ends, whatever the service says.

    Raises:
        UserError: the job failed, was cancelled or blocked, the service refuses to tell about it, or says nothing that this
            program understands, or `patience` is over.
    """
    line = _Line(title, note)
    pause, puzzled, word, deadline = interval, 0, "", time.monotonic() + patience
    try:
        while True:
            try:
                job = _look(client, job_id)
                place = standing(job.status)
                line.show(job, () if place.ended else _latest(client, job_id))
                watch(job)
                pause, word = interval, f"the state '{job.status}'"
                puzzled = puzzled + 1 if place is Standing.UNKNOWN else 0
                if place.ended:
                    break
            except ValueError as error:
                puzzled, word = puzzled + 1, f"no job ({access.safe(str(error))})"
                line.say(f"the service answers with {word}; looking again")
            except _openai().APIError as error:
                if _is_refusal(error):
                    raise explain(error, f"asking for the job {job_id}", access) from error
                pause = min(LONGEST_WAIT, max(interval, pause * 2), asked_pause(error, math.inf))
                word = "no answer"
                line.say(f"the service does not answer; again in {pause:.0f} s")
            if puzzled >= PUZZLED:
                raise UserError(
                    f"{access.host} answered {puzzled} times with {word} when asked for the job {job_id}: not known here "
                    "as running, nor as an end. Look at it on the service's pages; the same command goes on following it."
                )
            if time.monotonic() + pause > deadline:
                raise UserError(
                    f"{access.host}: the job {job_id} has not ended within {patience / 3600:g} hours (strong.max_hours); "
                    f"the last answer was {word}. It was not cancelled: the same command goes on waiting for it."
                )
            time.sleep(pause)
    finally:
        line.close()
    if place is not Standing.SUCCEEDED:
        raise _ended_badly(job, place, access)
    return job


def _look(client: openai.OpenAI, job_id: str) -> FineTuningJob:
    """The job as it stands; ValueError, with the service's words, where the answer is no job."""
    try:
        job = client.fine_tuning.jobs.retrieve(job_id)
    except (TypeError, AttributeError) as error:  # the SDK's own, on an answer of another shape
        raise ValueError(f"{type(error).__name__}: {error}") from error
    if not isinstance(getattr(job, "status", None), str):
        raise ValueError(said_in(job))
    return job


def _openai() -> Any:
    import openai

    return openai


def _is_refusal(error: Exception) -> bool:
    status = getattr(error, "status_code", None)
    return status is not None and status < 500 and (status not in (408, 409, 429) or is_quota(error))


def _latest(client: openai.OpenAI, job_id: str) -> list[FineTuningJobEvent]:
    """The newest events; they only decorate, so that a failure to get them is no failure."""
    try:
        return list(client.with_options(max_retries=0).fine_tuning.jobs.list_events(job_id, limit=FIRST_EVENTS).data or [])
    except (_openai().APIError, ValueError, TypeError, AttributeError):
        return []


def _ended_badly(job: FineTuningJob, place: Standing, access: Access) -> UserError:
    again = (
        "Running again finds this job and stops here; to submit a new one in its place add "
        f"--set {shlex.quote(f'strong.replace=[{job.id}]')} (with `w2s finetune`: --set 'replace=[...]')."
    )
    if place is Standing.CANCELLED:
        return UserError(f"{access.host}: the job {job.id} was cancelled, on the service's side or by you. {again}")
    error = job.error
    code, said = str(getattr(error, "code", None) or ""), str(getattr(error, "message", None) or "")
    said = access.safe(" ".join(said.split())) or "no reason given"
    if MODERATION.search(f"{code} {said}"):
        return UserError(
            f"{access.host}: the service's moderation blocked the job {job.id} ({said}). The rows hold text that it takes "
            f"for unsafe (ETHICS texts can). Train on another task or leave such rows out. {ALTERNATIVES}"
        )
    if "quota" in f"{code} {said}".lower() or "billing" in code.lower():
        return UserError(f"{access.host}: the job {job.id} stopped at the account's quota ({said}). Add credit. {again}")
    return UserError(f"{access.host}: the job {job.id} ended as '{job.status}' ({code or 'no code'}: {said}). {again}")


# ---- what is left of a job -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What a finished job leaves: its data, all events, checkpoints, and the learning curve."""

    job: dict[str, Any]
    events: list[dict[str, Any]]
    checkpoints: list[dict[str, Any]]
    curve: list[Point]


def collect(client: openai.OpenAI, job: FineTuningJob, *, note: Note) -> Outcome:
    """Fetch events, checkpoints and metrics; a provider that keeps none of these leaves an empty list and a note."""

    def fetched(what: str, call: Callable[[], list[Any]]) -> list[dict[str, Any]]:
        try:
            return [item.to_dict() for item in steady(call)]
        except (_openai().APIError, ValueError) as error:
            note(f"note: no {what} of {job.id} to be had ({type(error).__name__}).")
            return []

    jobs = client.fine_tuning.jobs
    events = fetched("events", lambda: listed(jobs.list_events(job.id, limit=100)))
    checkpoints = fetched("checkpoints", lambda: listed(jobs.checkpoints.list(job.id, limit=100)))
    curve = curve_of_csv(_result(client, job)) or curve_of_events(events)
    if not curve:
        note(f"note: {job.id} left no metrics; the report has no learning curve for it.")
    epochs = getattr(job.hyperparameters, "n_epochs", None)
    return Outcome(job.to_dict(), events[::-1], checkpoints, with_epochs(curve, epochs if isinstance(epochs, int) else None))


def _result(client: openai.OpenAI, job: FineTuningJob) -> str:
    """The text of the job's result file; empty where there is none."""
    for file in job.result_files or []:
        try:
            return _text(steady(functools.partial(_whole, client, file)))
        except (_openai().APIError, ValueError):
            continue
    return ""


def _whole(client: openai.OpenAI, file: str) -> bytes:
    content = client.files.content(file).read()
    size = client.files.retrieve(file).bytes
    if size and len(content) != size:
        raise ValueError(f"{file}: {len(content)} of {size} bytes")
    return content


def _text(content: bytes) -> str:
    """The CSV, which some results hold as base64."""
    if not content.lstrip().startswith(b"step"):
        try:
            content = base64.b64decode(content, validate=False)
        except binascii.Error:
            return ""
    return content.decode("utf-8", "replace")


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _point(values: Mapping[str, Any]) -> Point:
    """One step's metrics under the names that local training writes (see trainers/training/loop.py)."""
    step = _number(values.get("step"))
    if step is None:
        return {}
    names = {
        "loss": ("train_loss",),
        "accuracy": ("train_accuracy", "train_mean_token_accuracy"),
        "eval_loss": ("full_valid_loss", "valid_loss"),
        "eval_token_accuracy": ("full_valid_mean_token_accuracy", "valid_mean_token_accuracy"),
    }
    point: Point = {"step": int(step)}
    for name, sources in names.items():
        found = next((n for s in sources if (n := _number(values.get(s))) is not None), None)
        if found is not None:
            point[name] = found
    return point if len(point) > 1 else {}


def curve_of_csv(text: str) -> list[Point]:
    """The learning curve in a result file: ``step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy``."""
    return [p for row in csv.DictReader(io.StringIO(text)) if (p := _point(row))]


def curve_of_events(events: Iterable[Mapping[str, Any]]) -> list[Point]:
    """The same from a job's metric events, where there is no result file."""
    found = [p for e in events if isinstance(e.get("data"), Mapping) and (p := _point(e["data"]))]
    return sorted(found, key=lambda p: p["step"])


def with_epochs(curve: list[Point], epochs: int | None) -> list[Point]:
    """Add the epoch to each step, where their number is known."""
    if not curve or not epochs:
        return curve
    last = curve[-1]["step"]
    return [{**p, "epoch": p["step"] / last * epochs} for p in curve]


def as_lines(items: Iterable[Mapping[str, Any]]) -> str:
    """JSONL."""
    return "".join(json.dumps(item, ensure_ascii=False, default=str) + "\n" for item in items)
