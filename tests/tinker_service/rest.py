"""Everything that is no work: configuration, sessions, promises, runs and their checkpoints, downloads."""

from __future__ import annotations

import json
import secrets
from datetime import timedelta
from pathlib import Path

from loopback import Answer, Request
from tinker import types

from .app import Service, answer, read, route
from .store import Run, until
from .wire import ApiError

POLL = 20.0
"""How long a question for a result waits, in seconds, before it is answered that there is none yet."""
VALID = timedelta(hours=1)
"""How long the address of a download lives."""


@route("GET", r"/api/v1/healthz")
def healthz(service: Service, request: Request) -> Answer:
    """It lives."""
    return answer(types.HealthResponse(status="ok"))


@route("POST", r"/api/v1/client/config")
def client_config(service: Service, request: Request) -> Answer:
    """How the SDK should behave."""
    read(types.ClientConfigRequest, request)
    return answer(service.config)


@route("POST", r"/api/v1/client/dynamic_config")
def client_dynamic_config(service: Service, request: Request) -> Answer:
    """The same, for now."""
    read(types.ClientConfigRequest, request)
    return answer(types.ClientDynamicConfigResponse())


@route("POST", r"/api/v1/telemetry")
def telemetry(service: Service, request: Request) -> Answer:
    """Taken and forgotten."""
    return answer(types.TelemetryResponse(status="accepted"))


@route("GET", r"/api/v1/get_server_capabilities")
def get_server_capabilities(service: Service, request: Request) -> Answer:
    """The base models."""
    models = [
        types.SupportedModel(model_name=name, max_context_length=_context(folder), trainable=True, sampleable=True)
        for name, folder in service.models.items()
    ]
    return answer(types.GetServerCapabilitiesResponse(supported_models=models))


def _context(folder: Path) -> int | None:
    found: int | None = json.loads((folder / "config.json").read_text("utf-8")).get("max_position_embeddings")
    return found


@route("POST", r"/api/v1/create_session")
def create_session(service: Service, request: Request) -> Answer:
    """A new session."""
    asked = read(types.CreateSessionRequest, request)
    session = service.sessions.new(asked.user_metadata, asked.display_name, asked.project_id)
    return answer(types.CreateSessionResponse(session_id=session.record.session_id))


@route("POST", r"/api/v1/session_heartbeat")
def session_heartbeat(service: Service, request: Request) -> Answer:
    """It is still wanted."""
    service.sessions.live(read(types.SessionHeartbeatRequest, request).session_id)
    return answer(types.SessionHeartbeatResponse())


@route("POST", r"/api/v1/sessions/([^/]+)/finish")
def finish_session(service: Service, request: Request, session_id: str) -> Answer:
    """It is over."""
    session = service.sessions.find(session_id)
    session.over = session.over or 410
    return Answer(b"{}")


@route("GET", r"/api/v1/sessions")
def list_sessions(service: Service, request: Request) -> Answer:
    """A page of all sessions."""
    start, limit = _page(request, 20)
    return answer(types.ListSessionsResponse(sessions=service.sessions.known()[start : start + limit]))


@route("GET", r"/api/v1/sessions/([^/]+)")
def get_session(service: Service, request: Request, session_id: str) -> Answer:
    """What is in a session."""
    session = service.sessions.find(session_id)
    runs = [run.run_id for run in service.store.runs() if run.session_id == session_id]
    return answer(
        types.GetSessionResponse(
            training_run_ids=runs,
            sampler_ids=list(session.samplers),
            user_metadata=session.record.user_metadata,
            display_name=session.record.display_name,
        )
    )


@route("POST", r"/api/v1/retrieve_future")
def retrieve_future(service: Service, request: Request) -> Answer:
    """The result of promised work, or that there is none yet."""
    request_id = read(types.FutureRetrieveRequest, request).request_id
    service.sessions.live(request_id)
    job = service.jobs.find(request_id)
    if job is None:
        raise ApiError(404, f"Request {request_id} not found")
    job.done.wait(POLL)
    service.sessions.live(request_id)
    if job.result is None:
        return answer({"type": "try_again", "request_id": request_id, "queue_state": "active"})
    return job.result


@route("POST", r"/api/v1/retrieve_futures")
def retrieve_futures(service: Service, request: Request) -> Answer:
    """Which samples of a sampler's client are finished; the cursor counts them."""
    asked = read(types.FuturesRetrieveRequest, request)
    target = asked.target
    service.sessions.live(target.sampling_session_id)
    seconds = POLL if asked.timeout is None else min(asked.timeout, POLL)
    jobs = service.jobs.finished(f"{target.sampling_session_id}:", asked.prev_cursor, seconds)
    found = [
        types.FutureFailed(request_id=job.request_id)
        if job.failed
        else types.FutureFinished(request_id=job.request_id, response_payload_uncompressed_size=len(job.result.body))
        for job in jobs
        if job.result and int(job.request_id.rpartition(":")[2]) // 1_000_000_000 == target.cloned_sampler_id
    ]
    return answer(types.FuturesRetrieveResponse(completions=found, cursor=asked.prev_cursor + len(jobs)))


def _page(request: Request, limit: int) -> tuple[int, int]:
    return int(request.one("offset") or 0), int(request.one("limit") or limit)


def _cursor(request: Request, limit: int, total: int) -> types.Cursor:
    start, limit = _page(request, limit)
    return types.Cursor(offset=start, limit=limit, total_count=total)


def _entry(service: Service, run: Run) -> types.TrainingRun:
    """A run as it is listed."""
    last = {c.checkpoint_type: c for c in service.store.checkpoints(run.run_id, service.now())}
    return types.TrainingRun(
        training_run_id=run.run_id,
        base_model=run.base_model,
        model_owner="tester",
        is_lora=True,
        lora_rank=run.lora.rank,
        last_request_time=run.last_request,
        last_checkpoint=last.get("training"),
        last_sampler_checkpoint=last.get("sampler"),
        user_metadata=run.user_metadata if service.keeps_metadata else None,
    )


@route("GET", r"/api/v1/training_runs")
def list_training_runs(service: Service, request: Request) -> Answer:
    """A page of all runs, the newest first."""
    runs = service.store.runs()
    start, limit = _page(request, 20)
    entries = [_entry(service, run) for run in runs[start : start + limit]]
    return answer(types.TrainingRunsResponse(training_runs=entries, cursor=_cursor(request, 20, len(runs))))


@route("GET", r"/api/v1/training_runs/([^/]+)")
def get_training_run(service: Service, request: Request, run_id: str) -> Answer:
    """One run."""
    return answer(_entry(service, service.store.run(run_id)))


@route("GET", r"/api/v1/training_runs/([^/]+)/checkpoints")
def list_checkpoints(service: Service, request: Request, run_id: str) -> Answer:
    """A run's checkpoints."""
    service.store.run(run_id)
    return answer(types.CheckpointsListResponse(checkpoints=service.store.checkpoints(run_id, service.now())))


@route("GET", r"/api/v1/checkpoints")
def list_user_checkpoints(service: Service, request: Request) -> Answer:
    """A page of all checkpoints, the newest first."""
    found = [c for run in service.store.runs() for c in service.store.checkpoints(run.run_id, service.now())]
    found.sort(key=lambda checkpoint: checkpoint.time, reverse=True)
    start, limit = _page(request, 100)
    page = found[start : start + limit]
    return answer(types.CheckpointsListResponse(checkpoints=page, cursor=_cursor(request, 100, len(found))))


@route("DELETE", r"/api/v1/training_runs/([^/]+)/checkpoints/([^/]+/[^/]+)")
def delete_checkpoint(service: Service, request: Request, run_id: str, checkpoint_id: str) -> Answer:
    """Remove a checkpoint."""
    service.store.checkpoint(run_id, checkpoint_id, service.now())
    service.store.delete(run_id, checkpoint_id)
    return Answer(b"", 204)


@route("PUT", r"/api/v1/training_runs/([^/]+)/checkpoints/([^/]+/[^/]+)/ttl")
def set_ttl(service: Service, request: Request, run_id: str, checkpoint_id: str) -> Answer:
    """How long a checkpoint lives from now on."""
    checkpoint = service.store.checkpoint(run_id, checkpoint_id, service.now())
    ends = until(service.now(), json.loads(request.body).get("ttl_seconds"))
    service.store.update(run_id, checkpoint.model_copy(update={"expires_at": ends}))
    return Answer(b"", 204)


@route("POST", r"/api/v1/weights_info")
def weights_info(service: Service, request: Request) -> Answer:
    """What a checkpoint was made of."""
    try:
        path = types.ParsedCheckpointTinkerPath.from_tinker_path(json.loads(request.body)["tinker_path"])
    except ValueError as error:
        raise ApiError(400, str(error)) from None
    service.store.checkpoint(path.training_run_id, path.checkpoint_id, service.now())
    run = service.store.run(path.training_run_id)
    lora = run.lora
    return answer(
        types.WeightsInfoResponse(
            base_model=run.base_model,
            is_lora=True,
            lora_rank=lora.rank,
            train_unembed=lora.train_unembed,
            train_mlp=lora.train_mlp,
            train_attn=lora.train_attn,
        )
    )


@route("GET", r"/api/v1/training_runs/([^/]+)/checkpoints/(external_weights/[^/]+)/external_weights_urls")
def external_weights_urls(service: Service, request: Request, run_id: str, checkpoint_id: str) -> Answer:
    """An address of each file of exported weights; who has it needs no key."""
    service.store.checkpoint(run_id, checkpoint_id, service.now())
    urls = {}
    for file in sorted(service.store.files(run_id, checkpoint_id).iterdir()):
        token = secrets.token_urlsafe(16)
        service.downloads[token] = (file, service.now() + VALID)
        urls[file.name] = f"{service.address}/download/{token}"
    return answer(types.ExternalWeightsUrlsResponse(urls=urls, expires=service.now() + VALID))


@route("GET", r"/download/([^/]+)")
def download(service: Service, request: Request, token: str) -> Answer:
    """A file."""
    file, ends = service.downloads.get(token, (Path(), service.now()))
    if ends <= service.now() or not file.is_file():
        raise ApiError(403, "The address has expired")
    return Answer(file.read_bytes(), content_type="application/octet-stream")
