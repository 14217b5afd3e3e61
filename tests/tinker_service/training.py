"""Training: runs, passes, steps, and the checkpoints that they leave."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from loopback import Answer, Request
from safetensors.torch import save_file
from tinker import types

from .app import Service, What, Work, answer, body_of, read, route
from .jobs import Job
from .models import ALPHA, Adapter, Base, Trained
from .sessions import Sampler
from .store import Run, name_of, until
from .wire import ApiError, UserFault, passes_done, read_passes, rows_of


def promise(job: Job, run_id: str | None = None) -> Answer:
    """What a request for work is answered with."""
    return answer(types.UntypedAPIFuture(request_id=job.request_id, model_id=run_id))


def _begin(
    service: Service,
    session_id: str,
    number: int,
    base_model: str,
    lora: types.LoraConfig,
    metadata: dict[str, str] | None,
    make: Callable[[Base], Trained],
) -> str:
    """Put a new run into memory and on disk; its id."""
    run_id = f"{session_id}:train:{number}"
    service.sessions.live(session_id).runs[run_id] = make(service.base(base_model))
    now = service.now()
    service.store.put(
        Run(
            run_id=run_id,
            session_id=session_id,
            base_model=base_model,
            lora=lora,
            user_metadata=metadata,
            created=now,
            last_request=now,
        )
    )
    return run_id


def _adam_only(config: types.OptimizerConfig | None) -> None:
    if config is not None and not isinstance(config, types.AdamOptimizerConfig):
        raise ApiError(400, f"the stand-in has no optimizer {config.type!r}, only adamw")


@route("POST", r"/api/v1/create_model")
def create_model(service: Service, request: Request) -> Answer:
    """A new run."""
    asked = read(types.CreateModelRequest, request)
    service.sessions.live(asked.session_id)
    _adam_only(asked.optimizer_config)
    if asked.base_model not in service.models:
        raise ApiError(400, f"Base model {asked.base_model} is not supported")
    lora = asked.lora_config or types.LoraConfig(rank=32)

    def run() -> Answer:
        run_id = _begin(
            service,
            asked.session_id,
            asked.model_seq_id,
            asked.base_model,
            lora,
            asked.user_metadata,
            lambda base: Trained(base, Adapter.new(base, lora)),
        )
        service.did(Work("create", run_id))
        return answer(types.CreateModelResponse(model_id=run_id))

    run_id = f"{asked.session_id}:train:{asked.model_seq_id}"
    return promise(service.jobs.in_order(run_id, 0, "create_model", run), run_id)


@route("POST", r"/api/v1/load_weights")
def load_weights(service: Service, request: Request) -> Answer:
    """A new run that goes on from a checkpoint."""
    asked = read(types.LoadWeightsRequest, request)
    if asked.session_id is None or asked.model_seq_id is None:
        raise ApiError(400, "the stand-in loads weights into new runs alone: session_id and model_seq_id")
    service.sessions.live(asked.session_id)
    _adam_only(asked.optimizer_config)
    run_id = f"{asked.session_id}:train:{asked.model_seq_id}"
    source, files = service.store.named(asked.path, "training", service.now())

    def run() -> Answer:
        _begin(
            service,
            run_id.partition(":")[0],
            int(run_id.rpartition(":")[2]),
            asked.base_model or source.base_model,
            source.lora,
            asked.user_metadata,
            lambda base: Trained.load(base, files, optimizer=asked.optimizer),
        )
        service.did(Work("load", run_id))
        return answer(types.LoadWeightsResponse(path=asked.path, model_id=run_id))

    return promise(service.jobs.in_order(run_id, 0, "load_weights", run), run_id)


@route("POST", r"/api/v1/get_info")
def get_info(service: Service, request: Request) -> Answer:
    """What a run is."""
    run_id = read(types.GetInfoRequest, request).model_id
    service.sessions.live(run_id)
    run = service.store.run(run_id)
    data = types.ModelData(arch="unknown", model_name=run.base_model, tokenizer_id=str(service.models[run.base_model]))
    return answer(
        types.GetInfoResponse(
            model_data=data, model_id=run_id, is_lora=True, lora_rank=run.lora.rank, model_name=run.base_model
        )
    )


def _promised(service: Service, run_id: str, number: int | None, kind: str, work: Callable[[Trained], Answer]) -> Answer:
    """Promise work on a run."""
    session = service.sessions.live(run_id)
    if not service.jobs.knows(run_id):
        raise ApiError(404, f"Model {run_id} not found")
    if not number:
        raise ApiError(422, "seq_id must be 1 or more")

    def run() -> Answer:
        if run_id not in session.runs:
            raise UserFault(f"Model {run_id} was not created")
        done = work(session.runs[run_id])
        service.store.put(service.store.run(run_id).model_copy(update={"last_request": service.now()}))
        return done

    return promise(service.jobs.in_order(run_id, number, kind, run), run_id)


@route("POST", r"/api/v1/forward_backward")
def forward_backward(service: Service, request: Request) -> Answer:
    """A forward pass, with gradients that are added to those so far or without."""
    asked = read_passes(body_of(request))
    kind: What = "forward" if asked.forward_only else "forward_backward"

    def work(run: Trained) -> Answer:
        rows = rows_of(asked)
        found = run.base.passes(run.adapter, rows, backward=not asked.forward_only)
        tokens = sum(len(row.tokens) for row in rows)
        service.did(Work(kind, asked.model_id, **{"prefill" if asked.forward_only else "train": tokens}))
        return passes_done(rows, found)

    return _promised(service, asked.model_id, asked.seq_id, kind, work)


@route("POST", r"/api/v1/optim_step")
def optim_step(service: Service, request: Request) -> Answer:
    """One step of Adam."""
    asked = read(types.OptimStepRequest, request)
    params = asked.optim_params
    if not isinstance(params, types.AdamParams):
        raise ApiError(400, "the run's optimizer is adamw: adam_params are missing")

    def work(run: Trained) -> Answer:
        run.step(params)
        service.did(Work("optim_step", asked.model_id))
        return answer(types.OptimStepResponse(metrics={}))

    return _promised(service, asked.model_id, asked.seq_id, "optim_step", work)


def _save(
    service: Service,
    asked: types.SaveWeightsRequest | types.SaveWeightsForSamplerRequest | types.SaveWeightsExternalRequest,
    folder: str,
    write: Callable[[Trained, Path], None],
    response: Callable[[str], Answer],
) -> Answer:
    """Promise a checkpoint. A name that is taken is refused at once, unless the request is one that was sent before."""
    name = name_of(asked.path)
    until(service.now(), asked.ttl_seconds)
    checkpoint_id, run_id = f"{folder}/{name}", asked.model_id
    metadata = getattr(asked, "user_metadata", None)
    service.sessions.live(run_id)
    taken = any(c.checkpoint_id == checkpoint_id for c in service.store.checkpoints(run_id, service.now()))
    repeated = service.idempotent_saves and service.jobs.find(f"{run_id}:{asked.seq_id}")
    if taken and not getattr(asked, "overwrite", False) and not repeated:
        detail = f"Checkpoint '{name}' already exists for model {run_id} in {folder}. "
        raise ApiError(409, detail + "Please choose a different name to avoid overwriting.")

    def work(run: Trained) -> Answer:
        saved = service.store.save(
            run_id, checkpoint_id, lambda files: write(run, files), service.now(), asked.ttl_seconds, metadata
        )
        service.adapters.pop(saved.tinker_path, None)
        service.did(Work("save", run_id))
        return response(saved.tinker_path)

    return _promised(service, run_id, asked.seq_id, asked.type, work)


@route("POST", r"/api/v1/save_weights")
def save_weights(service: Service, request: Request) -> Answer:
    """A checkpoint to go on from."""
    asked = read(types.SaveWeightsRequest, request)
    return _save(service, asked, "weights", Trained.save, lambda path: answer(types.SaveWeightsResponse(path=path)))


@route("POST", r"/api/v1/save_weights_for_sampler")
def save_weights_for_sampler(service: Service, request: Request) -> Answer:
    """A checkpoint to sample from, or a sampling session of the weights as they are."""
    asked = read(types.SaveWeightsForSamplerRequest, request)
    done = types.SaveWeightsForSamplerResponseInternal
    if asked.path is not None:
        return _save(
            service,
            asked,
            "sampler_weights",
            lambda run, files: run.adapter.save(files),
            lambda path: answer(done(path=path)),
        )
    session = service.sessions.live(asked.model_id)
    sampler_id = f"{session.record.session_id}:sample:{asked.sampling_session_seq_id}"

    def work(run: Trained) -> Answer:
        base_model = service.store.run(asked.model_id).base_model
        session.samplers[sampler_id] = Sampler(base_model, None, run.adapter.copy())
        service.did(Work("save", asked.model_id))
        return answer(done(sampling_session_id=sampler_id))

    return _promised(service, asked.model_id, asked.seq_id, asked.type, work)


@route("POST", r"/api/v1/save_weights_external")
def save_weights_external(service: Service, request: Request) -> Answer:
    """The adapter as files to download."""
    asked = read(types.SaveWeightsExternalRequest, request)
    if asked.age_encryption_recipients:
        raise ApiError(400, "the stand-in encrypts nothing")
    done = types.SaveWeightsExternalResponseInternal
    return _save(
        service,
        asked,
        "external_weights",
        lambda run, files: _export(service, asked.model_id, run.adapter, files),
        lambda path: answer(done(path=path)),
    )


def _export(service: Service, run_id: str, adapter: Adapter, files: Path) -> None:
    """Write an adapter as others read it."""
    base_model = service.store.run(run_id).base_model
    head = service.base(base_model).head
    tensors, modules = {}, set()
    for name, (a, b) in adapter.matrices.items():
        called = "model.unembed_tokens" if name == head and service.names == "tinker" else name
        modules.add(name.rpartition(".")[2])
        tensors[f"base_model.model.{called}.lora_A.weight"] = a.detach().contiguous()
        tensors[f"base_model.model.{called}.lora_B.weight"] = b.detach().contiguous()
    save_file(tensors, files / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": adapter.rank,
        "lora_alpha": ALPHA,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": "all-linear" if service.names == "tinker" else sorted(modules),
    }
    (files / "adapter_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
