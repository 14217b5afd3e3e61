"""One fine-tuning job, submitted so that it can't be paid twice, and followed to its end.

A job is known by its run key: the hash of its files, model, hyperparameters and seed. The service keeps it as metadata, and
as the training file's name, by which the job is found where a provider forgets metadata. Before a job is created the intent
is on disk and the service's list has been asked for the key; the request that creates is never repeated blindly, because the
SDK's own repetition has no idempotency key and makes one job a request. A killed process, a lost answer, another run folder,
a newer version of this program: all find the first job.

Order: state on disk -> list -> model, budget -> upload (found again by its name) -> list -> intent on disk -> create -> the
id on disk.
"""

from __future__ import annotations

import datetime as dt
import functools
import hashlib
import itertools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainers.services.dialects import UNKNOWN, Dialect
from trainers.services.record import RUN_KEY, SETTLE, SETTLED, Record, in_turn
from trainers.services.service import check_model, explain, is_quota, listed, message_of, once, said_in, steady
from w2s_tasks.errors import UserError
from w2s_tasks.models.chat.states import Standing, standing
from w2s_tasks.models.service import Access, retry_after
from w2s_tasks.rows.assets import sha256_file

if TYPE_CHECKING:
    import openai
    from openai.types import FileObject
    from openai.types.fine_tuning import FineTuningJob

Note = Callable[[str], None]
CREATE_ATTEMPTS = 3
LONGEST_WAIT = 300.0
PROCESSING = 900.0
"""Seconds that a service may take to look through a file before it takes a job on it."""


@dataclass(frozen=True)
class JobSpec:
    """What is asked of the service. Specs with one run key are one job, whatever their suffix."""

    model: str
    training: Path
    validation: Path | None = None
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    """By the service's names; what is left out is the service's choice."""
    seed: int = 0
    suffix: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    """More fields of the request."""
    dialect: Dialect = UNKNOWN

    @property
    def run_key(self) -> str:
        """32 hex digits of the sha256 over all that the fine-tuned model depends on."""
        files = [sha256_file(p) if p else None for p in (self.training, self.validation)]
        parts = [self.model, files, self.hyperparameters, self.seed, *([self.extra] if self.extra else [])]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


@dataclass
class State(Record):
    """What is known about a submission, on disk after each change."""

    training_file: str | None = None
    validation_file: str | None = None
    intent: float | None = None
    """When a request to create was about to be sent whose answer is not known (Unix time); None where there is none."""
    job: str | None = None


def _now() -> float:
    return dt.datetime.now(dt.UTC).timestamp()


class Submission:
    """Finds the job of a spec, or creates it once."""

    def __init__(
        self,
        client: openai.OpenAI,
        access: Access,
        spec: JobSpec,
        path: Path,
        *,
        note: Note,
        approve: Callable[[], None] = lambda: None,
        ignore: Sequence[str] = (),
        settle: Sequence[float] = SETTLE,
    ) -> None:
        """Prepare; nothing is sent.

        Args:
            client: of the service.
            access: whose service.
            spec: the job.
            path: where the state is kept (JSON).
            note: takes lines for the user.
            approve: called before anything that leads to a new job; raises to stop it (a budget).
            ignore: ids of failed or cancelled jobs that a new one shall replace.
            settle: pauses between looks at the list after an unclear answer, in seconds.
        """
        self.client, self.access, self.spec, self.path = client, access, spec, path
        self.note, self.approve, self.ignore, self.settle = note, approve, tuple(ignore), settle
        self.key = spec.run_key
        self.created = False
        """Whether `submit` made a new job."""
        self.state = State.load(path, self.key, access.base_url)

    def _save(self, **changes: Any) -> None:
        self.state.keep(self.path, **changes)

    def submit(self) -> str:
        """The id of the job: the recorded one, one that the service lists under the run key, or a new one.

        Processes of one machine take turns.

        Raises:
            UserError: with the reason and what to do; no job was created then, or the next run finds it.
        """
        with in_turn(self.key):
            return self._submit()

    def _submit(self) -> str:
        if self.state.job and self.state.job not in self.ignore:
            return self.state.job
        self._save(job=None)
        found = self._find(patient=self.state.intent is not None)
        if found is None:
            warning = check_model(self.client, self.access, self.spec.model)
            if warning:
                self.note(warning)
            self.approve()
            training, validation = self.spec.training, self.spec.validation
            self._save(training_file=self._upload(training, self._name, self.state.training_file))
            if validation:
                name = f"validation-{self._name}"
                self._save(validation_file=self._upload(validation, name, self.state.validation_file))
            return self._create()
        self.note(f"found the job {found}, submitted before; nothing is sent again.")
        self._save(job=found, intent=None)
        return found

    # ---- files --------------------------------------------------------------------------------------------------

    @property
    def _name(self) -> str:
        """The training file's name at the service: a file a job, so that the job is known by it."""
        return f"w2s-{self.key}.jsonl"

    def _upload(self, path: Path, name: str, known: str | None) -> str:
        """The service's id of a file, once it has looked through it; one of this name is used again."""
        import openai

        what = f"uploading {path.name}"
        last: Exception = UserError("the service gave the file no id")
        for attempt in range(CREATE_ATTEMPTS):
            found = self._uploaded(name, path.stat().st_size, known)
            if found:
                return found
            try:
                with path.open("rb") as f:
                    file = once(self.client).files.create(file=(name, f), purpose="fine-tune")
                if getattr(file, "id", None):
                    return self._processed(file)
                last = UserError(said_in(file))
            except openai.APIStatusError as error:
                if error.status_code < 500 and (error.status_code not in (408, 409, 429) or is_quota(error)):
                    raise explain(error, what, self.access) from error
                last = error
            except (openai.APIError, ValueError) as error:
                last = error
            time.sleep(asked_pause(last, self.settle[min(attempt + 1, len(self.settle) - 1)]))
        found = self._uploaded(name, path.stat().st_size, known)
        if found:
            return found
        raise explain(last, what, self.access) from last

    def _named(self, name: str) -> list[FileObject]:
        files = steady(lambda: listed(self.client.files.list(purpose="fine-tune")))
        return [file for file in files if file.filename == name]

    def _uploaded(self, name: str, size: int, known: str | None) -> str | None:
        import openai

        try:
            for file in self._named(name):
                if file.bytes == size and standing(file.status) is not Standing.FAILED:
                    return self._processed(file)
        except openai.AuthenticationError as error:
            raise explain(error, "listing files", self.access) from error
        except (openai.APIError, ValueError):
            return known  # a second copy of a file costs nothing
        return None

    def _processed(self, file: FileObject) -> str:
        """The file's id, once the service has looked through it: Azure takes no job before.

        Raises:
            UserError: it was not accepted.
        """
        deadline = time.monotonic() + PROCESSING
        for pause in itertools.chain(self.settle, itertools.repeat(self.settle[-1])):
            place = standing(file.status)
            if place is Standing.FAILED:
                said = self.access.safe(str(getattr(file, "status_details", None) or file.status))
                raise UserError(f"{self.access.host} did not accept the file {file.filename} ({said}); no job was made.")
            if place is not Standing.GOING or time.monotonic() > deadline:
                break
            time.sleep(pause)
            file = steady(functools.partial(self.client.files.retrieve, file.id))
        return file.id

    # ---- the job ------------------------------------------------------------------------------------------------

    def _listed(self) -> list[FineTuningJob]:
        """The spec's jobs: those that bear its run key; of a service that forgets metadata, those of its training file."""
        wanted: dict[str, Any] = {"metadata": {RUN_KEY: self.key}} if self.spec.dialect.metadata else {}
        jobs = listed(self.client.fine_tuning.jobs.list(**wanted, limit=100))
        jobs = [job for job in jobs if job.id not in self.ignore and _run_key(job) in (self.key, None)]
        files = self._own_files() if any(_run_key(job) is None for job in jobs) else ()
        return [job for job in jobs if _run_key(job) == self.key or job.training_file in files]

    def _own_files(self) -> set[str]:
        import openai

        known = {self.state.training_file} if self.state.training_file else set()
        try:
            return known | {file.id for file in self._named(self._name)}
        except openai.APIStatusError as error:
            if error.status_code not in (404, 405, 501):  # a service without such a list
                raise
            return known

    def _find(self, *, patient: bool) -> str | None:
        """The id of this spec's job in the service's list; with `patient`, looked for until a new one must be there."""
        import openai

        old = self.state.intent is not None and _now() - self.state.intent > SETTLED
        for pause in self.settle if patient and not old else (0.0,):
            time.sleep(pause)
            try:
                found = steady(self._listed)
            except (openai.APIError, ValueError) as error:
                raise explain(error, "looking for the job among those submitted before", self.access) from error
            if found:
                return self._best(found)
        return None

    def _best(self, found: list[FineTuningJob]) -> str:
        def rank(job: FineTuningJob) -> tuple[int, float]:
            place = standing(job.status)
            return 0 if place is Standing.SUCCEEDED else 2 if place.ended else 1, job.created_at or 0

        best = min(found, key=rank)
        if len(found) > 1:
            others = ", ".join(j.id for j in found if j.id != best.id)
            self.note(f"warning: {self.access.host} has more than one job for these files: {best.id} is used, not {others}.")
        return best.id

    def _parameters(self) -> dict[str, Any]:
        spec = self.spec
        optional = {
            "validation_file": self.state.validation_file,
            "suffix": spec.suffix,
            "metadata": {RUN_KEY: self.key} if spec.dialect.metadata else None,
            "extra_body": spec.extra,
        }
        return {
            "model": spec.model,
            "training_file": self.state.training_file,
            "seed": spec.seed,
            **spec.dialect.request(spec.hyperparameters),
        } | {k: v for k, v in optional.items() if v}

    def _tell_forgotten(self, job: FineTuningJob) -> None:
        """One note where the new job does not give back what was asked for."""
        lost = []
        if self.spec.dialect.metadata and _run_key(job) != self.key:
            lost.append("metadata (the job is found again by its training file: leave that there)")
        if getattr(job, "seed", None) != self.spec.seed:
            lost.append("seed (what differs between seeds is chance that no seed repeats)")
        told = _hyperparameters(job)
        asked = [f"{name}: {value}" for name, value in self.spec.hyperparameters.items() if told.get(name) != value]
        if told and asked:
            lost.append(f"{', '.join(asked)} (the job trains with the service's own)")
        if lost:
            self.note(f"note: {self.access.host} keeps no {' and no '.join(lost)}.")

    def _create(self) -> str:
        """Create the job, once: each attempt begins with a look at the list, and a patient one after an unclear answer."""
        import openai

        what, unclear = "creating the job", False
        last: Exception | None = None
        for attempt in range(CREATE_ATTEMPTS + 1):
            found = self._find(patient=unclear)
            if found or attempt == CREATE_ATTEMPTS:
                break
            self._save(intent=_now())
            try:
                job = once(self.client).fine_tuning.jobs.create(**self._parameters())
                found = getattr(job, "id", None)
                if found:
                    self.created = True
                    self._tell_forgotten(job)
                    break
                last, unclear = UserError(said_in(job)), True
            except openai.RateLimitError as error:
                self._save(intent=None)
                if is_quota(error):
                    raise explain(error, what, self.access) from error
                last, unclear = error, False
                wait = asked_pause(error, self.settle[-1])
                said = self.access.safe(message_of(error))
                self.note(f"{self.access.host} takes no job now ({said}); again in {wait:.0f} s.")
                time.sleep(wait)
            except openai.APIStatusError as error:
                if error.status_code < 500 and error.status_code not in (408, 409):
                    self._save(intent=None)
                    raise explain(error, what, self.access) from error
                last, unclear = error, True
            except (openai.APIError, ValueError) as error:
                last, unclear = error, True
            if unclear:
                self.note(f"{self.access.host} gave no clear answer; looking whether the job was created ...")
        if found is None:
            raise explain(last or UserError("no answer"), what, self.access) from last
        self._save(job=found, intent=None)
        return found


def _run_key(job: FineTuningJob) -> str | None:
    return (getattr(job, "metadata", None) or {}).get(RUN_KEY)


def _hyperparameters(job: FineTuningJob) -> dict[str, Any]:
    """As the service gives them back, under the method or in the job itself."""
    data: dict[str, Any] = job.to_dict()
    supervised = (data.get("method") or {}).get("supervised") or {}
    return {**(supervised.get("hyperparameters") or {}), **(data.get("hyperparameters") or {})}


def asked_pause(error: Exception, default: float) -> float:
    """Seconds that a service asks to wait, at most five minutes."""
    response = getattr(error, "response", None)
    pause = None if response is None else retry_after(response.headers)
    return default if pause is None else min(LONGEST_WAIT, pause)
