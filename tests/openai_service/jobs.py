"""Fine-tuning jobs: life cycle, events, checkpoints, result files; a job whose base model has weights really trains them."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent
from openai.types.fine_tuning.jobs import FineTuningJobCheckpoint

from .app import Answer, ApiError, Request, ServedModel, Service, route
from .files import Files

STATES = ("validating_files", "queued", "running", "running", "succeeded")
FINAL = ("succeeded", "failed", "cancelled")
FIELDS = ("step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy")
ROLES = ("system", "user", "assistant", "tool", "developer", "function")
MIN_EXAMPLES = 10

Point = dict[str, float | int | None]


@dataclass
class Job:
    """A job as the service keeps it: what it answers, what is left of its life, its events and checkpoints."""

    data: dict[str, Any]
    left: list[str]
    events: list[dict[str, Any]] = field(default_factory=list)
    checkpoints: list[dict[str, Any]] = field(default_factory=list)
    hidden: int = 0
    """How many more calls of `list` don't show it yet."""


@dataclass
class Jobs:
    """All jobs, and how the next ones will go. ``len(jobs.all)`` is what would have been paid."""

    all: dict[str, Job] = field(default_factory=dict)
    states: tuple[str, ...] = STATES
    """One state for each time a job is retrieved; any word is a state."""
    said: dict[str, str] = field(default_factory=dict)
    """Words that answers have for a state in place of the service's own."""
    error: dict[str, Any] | None = None
    """The error of a job that ends in `failed`."""
    refusal: ApiError | None = None
    """What `create` answers in place of a job."""
    base64_results: bool = False
    no_results: bool = False
    """Jobs leave no result file, as some providers do."""
    no_metadata: bool = False
    """Metadata is forgotten and not filtered by, as some providers do."""
    no_seed: bool = False
    """The seed is forgotten too."""
    hidden: int = 0
    """How many calls of `list` a new job stays out of."""
    epochs: int | None = None
    """What `auto` epochs become; by default the service's own rule."""
    tuned_by: dict[str, str] = field(default_factory=dict)
    """Fine-tuned model -> job."""

    def get(self, name: str) -> Job:
        """One job by id."""
        if name not in self.all:
            raise ApiError(404, f"Could not find fine tune: {name}", "fine_tune_not_found", param="fine_tune_id")
        return self.all[name]


def _event(service: Service, job: Job, message: str, level: str = "info", data: Mapping[str, Any] | None = None) -> None:
    job.events.append(
        {
            "id": service.new_id("ftevent"),
            "object": "fine_tuning.job.event",
            "created_at": int(time.time()),
            "level": level,
            "message": message,
            "data": dict(data or {}),
            "type": "metrics" if data else "message",
        }
    )


def _rows(service: Service, file: str) -> list[list[dict[str, Any]]]:
    content = service.part(Files).get(file).content.decode()
    return [json.loads(line)["messages"] for line in content.rstrip("\n").split("\n")]


def _problem(service: Service, file: str) -> dict[str, Any] | None:
    """What the service's validation of a training file finds."""
    content = service.part(Files).get(file).content.decode()
    lines = content.rstrip("\n").split("\n")
    error = {"code": "invalid_training_file", "param": "training_file"}
    for number, line in enumerate(lines, start=1):
        row = json.loads(line)
        messages = row.get("messages")
        if set(row) - {"messages", "tools", "parallel_tool_calls"} or not isinstance(messages, list) or not messages:
            return error | {"message": f"The job failed due to an invalid training file. Line {number}: no messages."}
        for m in messages:
            if m.get("role") not in ROLES or not isinstance(m.get("content"), str) or set(m) - {"role", "content", "weight"}:
                return error | {"message": f"Invalid file format. Example {number} has a message that is not valid."}
        if messages[-1]["role"] != "assistant":
            return error | {"message": f"Invalid file format. Example {number}: last message must be from the assistant."}
    if len(lines) < MIN_EXAMPLES:
        message = f"Training file has {len(lines)} example(s), but must have at least {MIN_EXAMPLES} examples."
        return {"code": "invalid_n_examples", "param": "training_file", "message": message}
    return None


def _settle_hyperparameters(jobs: Jobs, job: Job, rows: int) -> None:
    """Replace `auto` as the service does once it has seen the file."""
    values = job.data["method"]["supervised"]["hyperparameters"]
    if values["n_epochs"] == "auto":
        values["n_epochs"] = jobs.epochs or (min(25, -(-100 // rows)) if rows * 3 < 100 else max(1, min(3, 25_000 // rows)))
    if values["batch_size"] == "auto":
        values["batch_size"] = max(1, round(0.002 * rows))
    if values.get("learning_rate_multiplier") == "auto":
        values["learning_rate_multiplier"] = 1.8
    job.data["hyperparameters"] = dict(values)


def _finish(service: Service, job: Job) -> None:
    """Train (where the base model has weights), then name the model and write checkpoints and the result file."""
    jobs, data = service.part(Jobs), job.data
    base = service.models[data["model"]]
    suffix = (data["user_provided_suffix"] or "").lower()
    name = f"ft:{data['model']}:stand-in:{suffix}:{data['id'].rsplit('-', 1)[1]}"
    rows, held = _rows(service, data["training_file"]), []
    if data["validation_file"]:
        held = _rows(service, data["validation_file"])
    values, folder = data["hyperparameters"], None
    if base.folder and service.folder:
        from .training import train

        folder = service.folder / data["id"]
        points, tokens = train(base.folder, folder, rows, held, values, data["seed"])
    else:
        points = [{"step": s, "train_loss": 1 / s, "train_accuracy": 1 - 1 / (s + 1)} for s in range(1, 11)]
        tokens = sum(len(m["content"]) // 4 + 4 for row in rows for m in row) * values["n_epochs"]
    service.models[name] = ServedModel(name, folder, int(time.time()), "stand-in")
    jobs.tuned_by[name] = data["id"]
    for point in points:
        _event(service, job, f"Step {point['step']}/{len(points)}: training loss={point['train_loss']:.2f}", data=point)
    _checkpoints(service, job, name, points)
    if not jobs.no_results:
        data["result_files"] = [_result_file(service, jobs, points)]
    data |= {"fine_tuned_model": name, "trained_tokens": tokens, "finished_at": int(time.time())}
    _event(service, job, "The job has successfully completed")


def _checkpoints(service: Service, job: Job, name: str, points: list[Point]) -> None:
    for number, point in enumerate((points[len(points) // 2], points[-1])):
        metrics = {"step": point["step"], "train_loss": point["train_loss"]}
        job.checkpoints.insert(
            0,
            {
                "id": service.new_id("ftckpt"),
                "object": "fine_tuning.job.checkpoint",
                "created_at": int(time.time()),
                "fine_tuned_model_checkpoint": name if number else f"{name}:ckpt-step-{point['step']}",
                "fine_tuning_job_id": job.data["id"],
                "metrics": metrics,
                "step_number": point["step"],
            },
        )


def _result_file(service: Service, jobs: Jobs, points: list[Point]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(points)
    content = text.getvalue().encode()
    if jobs.base64_results:
        content = base64.b64encode(content)
    stored = service.part(Files).add(service, "step_metrics.csv", "fine-tune-results", content)
    return str(stored.data["id"])


def _advance(service: Service, job: Job) -> None:
    """One step of a job's life."""
    jobs, data = service.part(Jobs), job.data
    if data["status"] in FINAL or not job.left:
        return
    was, data["status"] = data["status"], job.left.pop(0)
    problem = _problem(service, data["training_file"]) if was == "validating_files" else None
    if problem:
        job.left, data["status"], data["error"] = [], "failed", problem
    elif was == "validating_files":
        _settle_hyperparameters(jobs, job, len(_rows(service, data["training_file"])))
    if data["status"] != was:
        _event(service, job, f"Status: {data['status']}")
    if data["status"] == "succeeded":
        _settle_hyperparameters(jobs, job, len(_rows(service, data["training_file"])))
        _finish(service, job)
    elif data["status"] == "failed":
        data["error"] = data["error"] or jobs.error or {"code": "server_error", "message": "The job failed.", "param": None}
        data["finished_at"] = int(time.time())
        _event(service, job, data["error"]["message"], "error")


def _public(service: Service, job: Job) -> dict[str, Any]:
    return service.speech.job({k: v for k, v in job.data.items() if k != "user_provided_suffix"})


def _answer(service: Service, job: Job) -> Answer:
    data, words = _public(service, job), service.part(Jobs).said
    data["status"] = words.get(data["status"], data["status"])
    return Answer.of(FineTuningJob, data, check=service.speech.checked and data["status"] in (*STATES, *FINAL))


def _check_create(service: Service, body: dict[str, Any]) -> None:
    if "hyperparameters" in body and "method" in body:
        raise ApiError(400, "Only one of 'hyperparameters' and 'method' may be given.", "invalid_value")
    model = service.models.get(body["model"])
    if model is None or model.id.startswith("text-"):
        message = f"The model `{body['model']}` is not available for fine-tuning or does not exist."
        raise ApiError(400, message, "model_not_available", param="model")
    for key in ("training_file", "validation_file"):
        if body.get(key) and service.part(Files).get(body[key]).data["purpose"] != "fine-tune":
            raise ApiError(400, f"File '{body[key]}' does not have purpose 'fine-tune'.", "invalid_file_purpose", param=key)
    if len(body.get("suffix") or "") > 64:
        raise ApiError(400, "'suffix' is too long: at most 64 characters.", "string_above_max_length", param="suffix")
    metadata = body.get("metadata") or {}
    if len(metadata) > 16 or any(len(k) > 64 or len(v) > 512 for k, v in metadata.items()):
        raise ApiError(400, "Invalid 'metadata': 16 pairs, keys of 64 and values of 512 characters.", param="metadata")


@route("POST", r"/v1/fine_tuning/jobs")
def create_job(service: Service, request: Request) -> Answer:
    """Start a job: this is what costs money."""
    with service.lock:
        body, values = service.speech.asked(service, request)
        jobs = service.part(Jobs)
        if jobs.refusal:
            raise jobs.refusal
        _check_create(service, body)
        job = Job(
            {
                "id": service.new_id("ftjob"),
                "object": "fine_tuning.job",
                "created_at": int(time.time()),
                "error": None,
                "fine_tuned_model": None,
                "finished_at": None,
                "hyperparameters": dict(values),
                "model": body["model"],
                "organization_id": "org-stand-in",
                "result_files": [],
                "seed": 0 if jobs.no_seed else body.get("seed") or 0,
                "status": jobs.states[0],
                "trained_tokens": None,
                "training_file": body["training_file"],
                "validation_file": body.get("validation_file"),
                "estimated_finish": None,
                "integrations": [],
                "metadata": None if jobs.no_metadata else body.get("metadata"),
                "method": {"type": "supervised", "supervised": {"hyperparameters": values}},
                "user_provided_suffix": body.get("suffix"),
            },
            list(jobs.states[1:]),
            hidden=jobs.hidden,
        )
        jobs.all[job.data["id"]] = job
        _event(service, job, "Created fine-tuning job")
        return _answer(service, job)


@route("GET", r"/v1/fine_tuning/jobs")
def list_jobs(service: Service, request: Request) -> Answer:
    """Newest first, by metadata."""
    wanted = {m[1]: v[-1] for k, v in request.query.items() if (m := re.fullmatch(r"metadata\[(.+)\]", k))}
    unknown = [k for k in request.query if k not in ("after", "limit") and not k.startswith("metadata[")]
    if unknown:
        raise ApiError(400, f"Unknown parameter: '{unknown[0]}'.", "unknown_parameter", param=unknown[0])
    with service.lock:
        jobs, found = service.part(Jobs), []
        for job in reversed(jobs.all.values()):
            has = job.data["metadata"] or {}
            if not jobs.no_metadata and any(has.get(k) != v for k, v in wanted.items()):
                continue
            if job.hidden:
                job.hidden -= 1
                continue
            found.append(_public(service, job))
        return Answer.page(FineTuningJob, found, request, check=service.speech.checked)


@route("GET", r"/v1/fine_tuning/jobs/([^/]+)")
def retrieve_job(service: Service, request: Request, name: str) -> Answer:
    """One job; its life goes on by one state each time."""
    with service.lock:
        job = service.part(Jobs).get(name)
        _advance(service, job)
        return _answer(service, job)


@route("POST", r"/v1/fine_tuning/jobs/([^/]+)/(cancel|pause|resume)")
def change_job(service: Service, request: Request, name: str, action: str) -> Answer:
    """Cancel, pause or resume."""
    with service.lock:
        job = service.part(Jobs).get(name)
        if job.data["status"] in FINAL:
            message = f"Job has already completed: {name}"
            raise ApiError(400, message, "invalid_fine_tune_status", param="fine_tuning_job_id")
        job.data["status"] = {"cancel": "cancelled", "pause": "paused", "resume": "queued"}[action]
        _event(service, job, f"Status: {job.data['status']}")
        return _answer(service, job)


@route("GET", r"/v1/fine_tuning/jobs/([^/]+)/events")
def list_events(service: Service, request: Request, name: str) -> Answer:
    """Newest first."""
    return Answer.page(FineTuningJobEvent, service.part(Jobs).get(name).events[::-1], request)


@route("GET", r"/v1/fine_tuning/jobs/([^/]+)/checkpoints")
def list_checkpoints(service: Service, request: Request, name: str) -> Answer:
    """Newest first."""
    return Answer.page(FineTuningJobCheckpoint, service.part(Jobs).get(name).checkpoints, request)


@route("POST", r"/v0/models")
def create_model(service: Service, request: Request) -> Answer:
    """Nebius: a trained model gets a name to answer by, made of a job's checkpoint."""
    body = json.loads(request.body)
    job, checkpoint = body["source"].split(":")
    if checkpoint not in {c["id"] for c in service.part(Jobs).get(job).checkpoints}:
        raise ApiError(404, f"No checkpoint {checkpoint}.", "not_found", param="source")
    name = f"{body['base_model']}-LoRa:{body['name']}-abcd"
    service.models[name] = ServedModel(name, service.models[service.part(Jobs).get(job).data["fine_tuned_model"]].folder)
    return Answer(json.dumps(body | {"name": name, "status": "active"}).encode())
