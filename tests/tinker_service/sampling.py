"""Sampling sessions, samples, and the log-probabilities of prompts."""

from __future__ import annotations

import secrets

import numpy as np
import torch
from loopback import Answer, Request
from tinker import types
from tinker.proto import tinker_public_pb2 as pb

from .app import Service, Work, answer, read, route
from .models import Adapter, Written
from .sessions import Sampler
from .wire import PROTO, ApiError, UserFault, targeted, top

Rows = torch.Tensor


@route("POST", r"/api/v1/create_sampling_session")
def create_sampling_session(service: Service, request: Request) -> Answer:
    """A sampler of a base model or of saved weights."""
    asked = read(types.CreateSamplingSessionRequest, request)
    session = service.sessions.live(asked.session_id)
    base_model = asked.base_model
    if asked.model_path is not None:
        base_model = service.store.named(asked.model_path, "sampler", service.now())[0].base_model
    if base_model not in service.models:
        raise ApiError(400, f"Base model {base_model} is not supported")
    sampler_id = f"{asked.session_id}:sample:{asked.sampling_session_seq_id}"
    session.samplers.setdefault(sampler_id, Sampler(base_model, asked.model_path))
    return answer(types.CreateSamplingSessionResponse(sampling_session_id=sampler_id))


def _sampler(service: Service, sampler_id: str) -> Sampler:
    sampler = service.sessions.live(sampler_id).samplers.get(sampler_id)
    if sampler is None:
        raise ApiError(404, f"Sampler {sampler_id} not found")
    return sampler


@route("POST", r"/api/v1/join_sampling_session")
def join_sampling_session(service: Service, request: Request) -> Answer:
    """A number for another client of a sampler."""
    sampler = _sampler(service, read(types.JoinSamplingSessionRequest, request).sampling_session_id)
    sampler.clients += 1
    return answer(types.JoinSamplingSessionResponse(client_counter=sampler.clients))


@route("GET", r"/api/v1/samplers/([^/]+)")
def get_sampler(service: Service, request: Request, sampler_id: str) -> Answer:
    """What a sampler samples from."""
    sampler = _sampler(service, sampler_id)
    return answer(
        types.GetSamplerResponse(sampler_id=sampler_id, base_model=sampler.base_model, model_path=sampler.model_path)
    )


def _adapter(service: Service, sampler: Sampler) -> Adapter | None:
    """The adapter of a sampler; called by the worker alone."""
    path = sampler.model_path
    if path is None:
        return sampler.adapter
    if path not in service.adapters:
        service.adapters[path] = Adapter.load(service.store.named(path, "sampler", service.now())[1])
    return service.adapters[path]


@route("POST", r"/api/v1/asample")
def asample(service: Service, request: Request) -> Answer:
    """Samples after a prompt, the log-probabilities of the prompt, or both."""
    asked = read(types.SampleRequest, request)
    if asked.sampling_session_id is None or asked.seq_id is None:
        raise ApiError(422, "sampling_session_id and seq_id are missing")
    if asked.prompt_alt_tokens_k or asked.record_stability_info:
        raise ApiError(400, "the stand-in has no prompt_alt_tokens_k and no stability information")
    sampler = _sampler(service, asked.sampling_session_id)
    request_id = f"{asked.sampling_session_id}:{asked.seq_id}"
    job = service.jobs.at_once(request_id, "sample", lambda: _sample(service, sampler, asked))
    names = [f"{request_id}:{n}" for n in range(asked.num_samples)]
    return answer(types.UntypedAPIFuture(request_id=job.request_id, sample_sequence_ids=names))


def _sample(service: Service, sampler: Sampler, asked: types.SampleRequest) -> Answer:
    base, adapter = service.base(sampler.base_model), _adapter(service, sampler)
    tokens = _tokens(asked.prompt)
    limit = asked.sampling_params.max_tokens or base.context - len(tokens)
    if limit < 1:
        raise UserFault("nothing to sample")
    base.check(len(tokens) + limit)
    params = asked.sampling_params.model_copy(update={"max_tokens": limit})
    seed = secrets.randbits(32) if params.seed is None else params.seed
    read_ = base.read(adapter, tokens)
    written = [base.write(adapter, read_, params, seed + n) for n in range(asked.num_samples)]
    done = pb.SampleResponse(sequences=[_sequence(one, asked.topk_sample_logprobs) for one in written])
    _score(done, asked, tokens, read_[0])
    sampled = sum(len(one.tokens) for one in written)
    service.did(Work("sample", sampler.model_path or sampler.base_model, prefill=len(tokens), sample=sampled))
    return Answer(done.SerializeToString(), content_type=PROTO)


def _tokens(prompt: types.ModelInput) -> list[int]:
    try:
        tokens = prompt.to_ints()
    except ValueError:
        raise UserFault("the stand-in reads text alone") from None
    if not tokens:
        raise UserFault("the prompt is empty")
    return tokens


def _sequence(one: Written, k: int) -> pb.SampledSequence:
    return pb.SampledSequence(
        stop_reason=pb.STOP_REASON_STOP if one.stopped else pb.STOP_REASON_LENGTH,
        tokens=np.array(one.tokens, np.int32).tobytes(),
        logprobs=one.logprobs.numpy().astype(np.float32).tobytes(),
        topk_sampled_logprobs=top(one.scores, k) if k else None,
    )


def _score(done: pb.SampleResponse, asked: types.SampleRequest, tokens: list[int], rows: Rows) -> None:
    """Add what was asked of the prompt; `rows` are the log-probabilities of what follows each of its tokens."""
    if len(tokens) < 2 and (asked.prompt_logprobs_last_n or asked.target_prompt_logprobs):
        raise UserFault("the first token of a prompt has no log-probability")
    before = rows[:-1]
    last = asked.prompt_logprobs_last_n or len(tokens) - 1
    if not 0 <= last < len(tokens):
        raise UserFault(f"prompt_logprobs_last_n={last} for a prompt of {len(tokens)} tokens")
    skipped = len(tokens) - last
    if asked.prompt_logprobs:
        own = before.gather(-1, torch.tensor(tokens[1:], dtype=torch.int64)[:, None])[:, 0].numpy()
        values = np.concatenate([np.full(skipped, np.nan), own[skipped - 1 :]])
        done.prompt_logprobs = values.astype(np.float32).tobytes()
    if asked.topk_prompt_logprobs:
        done.topk_prompt_logprobs.CopyFrom(top(before[skipped - 1 :], asked.topk_prompt_logprobs, skipped))
    if asked.target_prompt_logprobs is not None:
        done.target_prompt_logprobs.CopyFrom(targeted(before, asked.target_prompt_logprobs))
