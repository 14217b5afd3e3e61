"""The stand-in of Tinker itself, through the real SDK: it trains as PEFT does, keeps what it should, fails as asked."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

tinker = pytest.importorskip("tinker")

from loopback.models import load_model  # noqa: E402
from peft import PeftModel  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from tinker import types  # noqa: E402
from tinker_service import ALPHA, Service, read_work  # noqa: E402
from tinker_service.process import running  # noqa: E402

TEXTS = ([5, 9, 30, 31, 77, 40], [5, 9, 88, 31, 12], [5, 300, 301, 7, 7, 9, 450, 3])
ADAM = types.AdamParams(learning_rate=1e-2)


def datum(tokens: Sequence[int], weights: Sequence[float] | None = None) -> Any:
    """A text whose every token after the first is learnt."""
    inputs: Any = {"target_tokens": list(tokens[1:]), "weights": list(weights or [1.0] * (len(tokens) - 1))}
    return types.Datum(model_input=types.ModelInput.from_ints(list(tokens[:-1])), loss_fn_inputs=inputs)


DATA = [datum(text) for text in TEXTS]


@pytest.fixture
def client(tinker_service: Service) -> Any:
    """The SDK's client of the stand-in."""
    made = tinker.ServiceClient()
    yield made
    tinker_service.faults.clear()
    tinker_service.futures.clear()
    made.holder.close()


def rest(service: Service) -> Any:
    """The SDK's client for everything else; by an address, since without one the SDK keeps its first for ever."""
    return tinker.RestClient(base_url=service.base_url, api_key=service.key)


def post(service: Service, call: str, body: dict[str, Any]) -> int:
    """The status of a request without the SDK and its patience."""
    headers = {"X-API-Key": service.key}
    request = urllib.request.Request(f"{service.base_url}/api/v1/{call}", json.dumps(body).encode(), headers)  # noqa: S310
    try:
        with urllib.request.urlopen(request) as answer:  # noqa: S310 - loopback
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def trained(client: Any, steps: int = 3, **settings: Any) -> Any:
    """A run after some steps."""
    run = client.create_lora_training_client("tiny/base", rank=4, seed=1, **settings).result()
    for _ in range(steps):
        step(run)
    return run


def step(run: Any) -> float:
    """One step on all texts; the loss before it."""
    passed, stepped = run.forward_backward(DATA, "cross_entropy"), run.optim_step(ADAM)
    stepped.result()
    return float(passed.result().metrics["loss:sum"])


def exported(service: Service, run: Any, folder: Path, name: str = "out") -> Path:
    """A run's adapter, downloaded as PEFT reads it."""
    service.names = "peft"
    urls = rest(service).get_external_weights_urls(run.save_weights_external(name).result().path).result().urls
    folder.mkdir()
    for file, url in urls.items():
        with urllib.request.urlopen(url) as answer:  # noqa: S310 - loopback
            (folder / file).write_bytes(answer.read())
    return folder


def logprobs(model: Any, tokens: Sequence[int]) -> list[float]:
    """What transformers says of each token after the first."""
    with torch.no_grad():
        scores = model(torch.tensor([list(tokens)])).logits[0, :-1].log_softmax(-1)
    return scores.gather(-1, torch.tensor(tokens[1:])[:, None])[:, 0].tolist()


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_a_step_is_the_step_of_torch_and_peft(
    client: Any, tinker_service: Service, tmp_path: Path, causal_model: Callable[[str], Path], architecture: str
):
    tinker_service.models["tiny/base"] = causal_model(architecture)
    run = trained(client, steps=0, train_unembed=True)
    start = exported(tinker_service, run, tmp_path / "start", "start")
    passed = run.forward_backward(DATA[:2], "cross_entropy").result()
    run.forward_backward([datum(TEXTS[2], [0.5] * 7)], "cross_entropy").result()
    params = types.AdamParams(learning_rate=3e-3, beta1=0.8, beta2=0.97, eps=1e-9, weight_decay=0.1, grad_clip_norm=0.5)
    run.optim_step(params).result()
    after = load_file(exported(tinker_service, run, tmp_path / "after", "after") / "adapter_model.safetensors")

    model = PeftModel.from_pretrained(load_model(tinker_service.models["tiny/base"]), start, is_trainable=True)
    model.eval()
    losses = []
    for tokens, weight in zip(TEXTS, (1.0, 1.0, 0.5), strict=True):
        scores = model(torch.tensor([tokens])).logits[0, :-1].log_softmax(-1)
        losses.append(-weight * scores.gather(-1, torch.tensor(tokens[1:])[:, None]).sum())
    torch.stack(losses).sum().backward()
    assert passed.metrics["loss:sum"] == pytest.approx((losses[0] + losses[1]).item(), rel=1e-5)
    learnt = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    torch.nn.utils.clip_grad_norm_(learnt.values(), 0.5)
    torch.optim.AdamW(learnt.values(), lr=3e-3, betas=(0.8, 0.97), eps=1e-9, weight_decay=0.1).step()
    assert {name.replace(".default", "") for name in learnt} == set(after)
    for name, weight in learnt.items():
        torch.testing.assert_close(after[name.replace(".default", "")], weight.detach(), atol=2e-5, rtol=1e-4)


def test_training_lowers_the_loss_and_log_probabilities_are_those_of_transformers(
    client: Any, tinker_service: Service, tmp_path: Path
):
    run = trained(client, steps=0)
    losses = [step(run) for _ in range(4)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] / 2
    sampler = client.create_sampling_client(run.save_weights_for_sampler("w").result().path).result()
    model = PeftModel.from_pretrained(
        load_model(tinker_service.models["tiny/base"]), exported(tinker_service, run, tmp_path / "peft")
    ).eval()
    for tokens in TEXTS:
        found = sampler.compute_logprobs(types.ModelInput.from_ints(tokens)).result()
        assert found[0] is None
        assert found[1:] == pytest.approx(logprobs(model, tokens), abs=1e-5)
    passed = run.forward(DATA, "cross_entropy").result()
    assert passed.loss_fn_outputs[1]["logprobs"].tolist() == pytest.approx(logprobs(model, TEXTS[1]), abs=1e-5)
    assert sampler.get_base_model() == "tiny/base"
    base = client.create_sampling_client(base_model="tiny/base").result()
    own = logprobs(load_model(tinker_service.models["tiny/base"]), TEXTS[0])
    assert base.compute_logprobs(types.ModelInput.from_ints(TEXTS[0])).result()[1:] == pytest.approx(own, abs=1e-5)


def test_a_custom_loss_is_one_forward_and_one_backward_with_its_gradient(
    client: Any, tinker_service: Service, tmp_path: Path
):
    soft = torch.tensor([0.3, 0.7])

    def loss(data: list[Any], logprobs: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        found = torch.stack([lp.sum() for lp in logprobs[:2]])
        return -(soft * found.log_softmax(-1)).sum(), {"rows:sum": 2.0}

    run = trained(client, steps=0)
    before = exported(tinker_service, run, tmp_path / "before", "before")
    result = run.forward_backward_custom(DATA[:2], loss).result()
    run.optim_step(ADAM).result()
    after = load_file(exported(tinker_service, run, tmp_path / "after", "after") / "adapter_model.safetensors")

    model = PeftModel.from_pretrained(load_model(tinker_service.models["tiny/base"]), before, is_trainable=True).eval()
    found = []
    for tokens in TEXTS[:2]:
        scores = model(torch.tensor([tokens])).logits[0, :-1].log_softmax(-1)
        found.append(scores.gather(-1, torch.tensor(tokens[1:])[:, None])[:, 0])
    wanted, _ = loss([], found)
    wanted.backward()
    assert result.metrics["loss:sum"] == pytest.approx(wanted.item(), rel=1e-4)
    assert result.metrics["rows:sum"] == 2.0
    start = load_file(before / "adapter_model.safetensors")
    name = "base_model.model.lm_head.lora_B.weight"
    gradient = dict(model.named_parameters())[name.replace("lora_B", "lora_B.default")].grad
    assert gradient is not None
    clear = gradient.abs() > 1e-5
    assert clear.float().mean() > 0.5
    moved = (after[name] - start[name])[clear]
    torch.testing.assert_close(moved, -ADAM.learning_rate * gradient[clear].sign(), atol=1e-6, rtol=0)  # Adam's first step
    assert tinker_service.tokens(run.model_id) == {"train": 9, "prefill": 9, "sample": 0}


def test_targets_may_be_several_a_place_and_sparse(client: Any):
    run = trained(client, steps=1)
    targets = torch.tensor([[7, 0, 0, 0], [8, 9, 0, 0], [3, 0, 0, 0], [5, 0, 0, 0], [6, 0, 0, 0]])
    weights = torch.where(targets > 0, 0.5, 0.0)
    several = types.Datum(
        model_input=types.ModelInput.from_ints(list(TEXTS[0][:-1])),
        loss_fn_inputs={"target_tokens": targets, "weights": weights},
    )
    assert several.loss_fn_inputs["target_tokens"].sparse_crow_indices is not None
    passed = run.forward([several, DATA[0]], "cross_entropy").result()
    (found, flat) = (output["logprobs"] for output in passed.loss_fn_outputs)
    assert (found.shape, flat.shape) == ([5, 4], [5])
    expected = -(weights * found.to_torch()).sum() - flat.to_torch().sum()
    assert passed.metrics["loss:sum"] == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("compressed", [False, True])
def test_chunks_that_arrive_out_of_order_are_one_pass(client: Any, tinker_service: Service, compressed: bool):
    whole = trained(client)
    tinker_service.config = types.ClientConfigResponse(fwdbwd_max_chunk_len=1, proto_compress_fwdbwd=compressed)
    parts = trained(tinker.ServiceClient())
    assert tinker_service.done("forward_backward", whole.model_id) == 3
    assert tinker_service.done("forward_backward", parts.model_id) == 9
    one, many = (run.forward(DATA, "cross_entropy").result() for run in (whole, parts))
    assert many.metrics["loss:sum"] == pytest.approx(one.metrics["loss:sum"], rel=1e-4)
    sent = {r.headers.get("content-encoding") for r in tinker_service.log if r.path.endswith("forward_backward")}
    assert sent == ({None, "zstd"} if compressed else {None})


def test_a_run_that_goes_on_from_its_state_is_the_run_that_never_stopped(
    client: Any, tinker_service: Service, tmp_path: Path
):
    straight = trained(client, steps=4)
    paused = trained(client, steps=2, user_metadata={"key": "k"})
    state = paused.save_state("half", user_metadata={"step": "2"}).result().path
    resumed = client.create_training_client_from_state_with_optimizer(state, user_metadata={"key": "k"}).result()
    forgetful = client.create_training_client_from_state(state).result()
    for run in (resumed, forgetful):
        step(run)
        step(run)
    files = [
        load_file(exported(tinker_service, run, tmp_path / name, name) / "adapter_model.safetensors")
        for name, run in (("straight", straight), ("resumed", resumed), ("forgetful", forgetful))
    ]
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])
    assert not all(torch.equal(files[0][name], files[2][name]) for name in files[0])
    assert resumed.get_info().lora_rank == 4
    assert rest(tinker_service).get_training_run(resumed.model_id).result().user_metadata == {"key": "k"}


def test_samples(client: Any, tinker_service: Service):
    model = load_model(tinker_service.models["tiny/base"]).eval()
    sampler = client.create_sampling_client(base_model="tiny/base").result()
    prompt = types.ModelInput.from_ints(TEXTS[0])

    def sample(number: int = 1, **settings: Any) -> Any:
        return sampler.sample(prompt, number, types.SamplingParams(**settings)).result().sequences

    greedy = sample(max_tokens=6, temperature=0, stop=[])[0]
    written = model.generate(torch.tensor([TEXTS[0]]), max_new_tokens=6, do_sample=False, eos_token_id=None)[0]
    assert greedy.tokens == written[len(TEXTS[0]) :].tolist()
    assert greedy.stop_reason == "length"
    assert greedy.logprobs == pytest.approx(logprobs(model, written.tolist())[len(TEXTS[0]) - 1 :], abs=1e-5)
    first, second = sample(2, max_tokens=8, seed=3, stop=[])
    again = sample(2, max_tokens=8, seed=3, stop=[])
    assert [first.tokens, second.tokens] == [one.tokens for one in again]
    assert first.tokens != second.tokens
    assert sample(max_tokens=8, seed=3, top_k=1, stop=[])[0].tokens[:6] == greedy.tokens
    stopped = sample(max_tokens=6, temperature=0, stop=[greedy.tokens[2]])[0]
    assert (stopped.tokens, stopped.stop_reason) == (greedy.tokens[: greedy.tokens.index(greedy.tokens[2]) + 1], "stop")
    word = sampler_text(tinker_service, greedy.tokens[:2])
    assert sample(max_tokens=6, temperature=0, stop=word)[0].stop_reason == "stop"


def sampler_text(service: Service, tokens: Sequence[int]) -> str:
    """What some tokens say."""
    return str(service.base("tiny/base").tokenizer.decode(tokens))


@pytest.mark.parametrize("polled", [False, True])
def test_a_prompt_is_scored_as_a_whole_at_its_end_and_for_chosen_tokens(client: Any, tinker_service: Service, polled: bool):
    tinker_service.config = types.ClientConfigResponse(sample_use_retrieve_futures=polled)
    run = trained(client, steps=1)
    sampler = run.save_weights_and_get_sampling_client().result()
    tokens = list(TEXTS[2])
    prompt = types.ModelInput.from_ints(tokens)
    whole = sampler.compute_logprobs(prompt).result()
    assert sampler.compute_logprobs(prompt, 3).result() == [None] * 5 + whole[-3:]
    chosen = torch.full((7, 6), -1, dtype=torch.int64)
    chosen[6, 2], chosen[2, 0] = tokens[7], tokens[3]
    for target in (types.TensorData.from_torch(chosen), types.TensorData.from_torch_sparse(chosen, pad_value=-1)):
        asked = {"include_prompt_logprobs": True, "topk_prompt_logprobs": 3, "topk_sample_logprobs": 2}
        done = sampler.sample(prompt, 1, types.SamplingParams(max_tokens=1), target_prompt_logprobs=target, **asked).result()
        found = done.target_prompt_logprobs
        assert (found.sparse_crow_indices is None) == (target.sparse_crow_indices is None)
        assert [found.to_torch()[6, 2].item(), found.to_torch()[2, 0].item()] == pytest.approx(
            [whole[7], whole[3]], abs=1e-6
        )
        assert done.topk_prompt_logprobs[0] is None
        assert [len(place) for place in done.topk_prompt_logprobs[1:]] == [3] * 7
        assert len(done.sequences[0].topk_logprobs[0]) == 2
    assert (tinker_service.count("POST", "/api/v1/retrieve_futures") > 0) == polled


def test_checkpoints_have_names_lives_and_owners(client: Any, tinker_service: Service, tmp_path: Path):
    run, other = trained(client, steps=1), trained(client, steps=0)
    kept = run.save_state("a", user_metadata={"step": "1"}).result().path
    assert run.save_state("a", overwrite=True, ttl_seconds=3600).result().path == kept
    sampled = run.save_weights_for_sampler("a", ttl_seconds=7200, user_metadata={"x": "y"}).result().path
    everything = rest(tinker_service)
    listed = everything.list_checkpoints(run.model_id).result().checkpoints
    assert [(c.checkpoint_id, c.checkpoint_type) for c in listed] == [
        ("weights/a", "training"),
        ("sampler_weights/a", "sampler"),
    ]
    assert [c.user_metadata for c in listed] == [None, {"x": "y"}]
    assert all(c.size_bytes > 1000 and c.expires_at for c in listed)
    page = everything.list_training_runs(limit=1, offset=1).result()
    assert [r.training_run_id for r in page.training_runs] == [run.model_id]
    assert page.cursor.total_count == 2
    assert page.training_runs[0].last_checkpoint.tinker_path == kept
    assert everything.get_weights_info_by_tinker_path(kept).result().lora_rank == 4
    for wrong, missing in ((sampled, 400), (kept.replace("/a", "/b"), 404)):
        with pytest.raises(tinker.APIStatusError) as refused:
            client.create_training_client_from_state(wrong).result()
        assert refused.value.status_code == missing
    tinker_service.later = timedelta(hours=1.5)
    assert [c.tinker_path for c in everything.list_user_checkpoints().result().checkpoints] == [sampled]
    everything.delete_checkpoint_from_tinker_path(sampled).result()
    assert everything.list_user_checkpoints().result().checkpoints == []
    assert other.get_info().model_data.model_name == "tiny/base"


def test_exported_weights_have_the_services_names_or_pefts(client: Any, tinker_service: Service, tmp_path: Path):
    run = trained(client, steps=1, train_attn=False)
    peft = load_file(exported(tinker_service, run, tmp_path / "peft", "peft") / "adapter_model.safetensors")
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text("utf-8"))
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (
        4,
        ALPHA,
        ["down_proj", "gate_proj", "lm_head", "up_proj"],
    )
    tinker_service.names = "tinker"
    urls = rest(tinker_service).get_external_weights_urls(run.save_weights_external("own").result().path).result().urls
    own = tmp_path / "own.safetensors"
    urllib.request.urlretrieve(urls["adapter_model.safetensors"], own)  # noqa: S310 - loopback
    renamed = {name.replace("model.unembed_tokens", "lm_head"): weight for name, weight in load_file(own).items()}
    assert "base_model.model.model.unembed_tokens.lora_A.weight" in load_file(own)
    assert all(torch.equal(weight, renamed[name]) for name, weight in peft.items())
    tinker_service.later = timedelta(hours=2)
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(urls["adapter_config.json"])  # noqa: S310 - loopback


@pytest.mark.parametrize("kind", ["status", "reset", "lost"])
def test_a_request_whose_answer_is_lost_is_done_once(client: Any, tinker_service: Service, kind: Any):
    run = trained(client, steps=1)
    fault = tinker_service.faults.add("POST /api/v1/optim_step", kind, status=503)
    run.forward_backward(DATA, "cross_entropy").result()
    run.optim_step(ADAM).result()
    assert fault.hits == 1
    assert tinker_service.done("optim_step") == 2
    assert tinker_service.count("POST", "/api/v1/optim_step") == 3


def test_errors_that_no_repetition_mends_come_out_at_once(client: Any, tinker_service: Service):
    run = trained(client, steps=1)
    before = time.monotonic()
    for status, error in ((401, tinker.AuthenticationError), (422, tinker.UnprocessableEntityError)):
        tinker_service.faults.add("POST /api/v1/save_weights", "status", status=status, message="no")
        with pytest.raises(error, match="no"):
            run.save_state(f"s{status}").result()
        run = trained(client, steps=0)
    tinker_service.faults.add(
        "POST /api/v1/create_sampling_session", "body", status=200, body=b'{"sampler": "of another age"}'
    )
    with pytest.raises(tinker.APIResponseValidationError):
        client.create_sampling_client(base_model="tiny/base").result()
    with pytest.raises(tinker.BadRequestError, match="not supported"):
        client.create_lora_training_client("another/base").result()
    assert time.monotonic() - before < 5


def test_a_name_that_is_taken_is_a_conflict(client: Any, tinker_service: Service):
    run = trained(client, steps=0)
    run.save_state("a").result()

    def save(number: int) -> int:
        return post(tinker_service, "save_weights", {"model_id": run.model_id, "path": "a", "seq_id": number})

    assert save(1) == 200
    assert save(2) == 409
    tinker_service.idempotent_saves = False
    assert save(1) == 409
    assert tinker_service.done("save") == 1


def test_promises_that_fail_and_one_that_is_never_kept(client: Any, tinker_service: Service):
    run = trained(client, steps=1)
    for code in ("user", "server"):
        tinker_service.futures.add("FUTURE forward_backward", "fail", code=code, message="out of luck")
        with pytest.raises(tinker.RequestFailedError, match="out of luck") as failed:
            run.forward_backward(DATA, "cross_entropy").result()
        assert failed.value.category == code
    wrong = types.Datum(model_input=types.ModelInput.from_ints([1, 2]), loss_fn_inputs={"target_tokens": [2, 3]})
    long = datum([1] * 400)
    for data, words in ((wrong, "weights"), (long, "context")):
        with pytest.raises(tinker.RequestFailedError, match=words):
            run.forward_backward([data], "cross_entropy").result()
    assert tinker_service.jobs.errors == []
    fault = tinker_service.futures.add("FUTURE optim_step", "stall")
    stepped, saved = run.optim_step(ADAM), run.save_state("after")
    assert fault.reached.wait(5)
    for future in (stepped, saved):
        with pytest.raises(TimeoutError):
            future.result(timeout=0.2)
    assert tinker_service.done("optim_step") == 1
    assert tinker_service.done("save") == 0


def test_a_session_that_is_lost_takes_its_runs_along(client: Any, tinker_service: Service):
    run = trained(client, steps=1)
    state = run.save_state("a").result().path
    fault = tinker_service.futures.add("FUTURE optim_step", "stall")
    waiting = run.optim_step(ADAM)
    assert fault.reached.wait(5)
    tinker_service.lose_sessions()
    with pytest.raises(Exception, match="expired") as broken:
        waiting.result(timeout=5)
    assert isinstance(broken.value.__cause__, tinker.APIStatusError)
    with pytest.raises(tinker.APIStatusError, match="no longer active") as gone:
        run.forward_backward(DATA, "cross_entropy").result()
    assert gone.value.status_code == 410
    again = tinker.ServiceClient().create_training_client_from_state_with_optimizer(state).result()
    assert step(again) > 0
    assert {r.training_run_id for r in rest(tinker_service).list_training_runs().result().training_runs} == {
        run.model_id,
        again.model_id,
    }


def test_a_killed_service_keeps_what_was_saved(tinker_service: Service, tmp_path: Path):
    folder = tmp_path / "other"
    with running(tinker_service.models, folder) as (address, process):
        run = trained(tinker.ServiceClient(base_url=address, api_key=tinker_service.key), steps=2)
        state = run.save_state("a").result().path
        run.forward_backward(DATA, "cross_entropy").result()
        process.kill()
    assert [work.what for work in read_work(folder)] == [
        "create",
        *["forward_backward", "optim_step"] * 2,
        "save",
        "forward_backward",
    ]
    with Service(tinker_service.models, folder) as service:
        session = run.model_id.partition(":")[0]
        assert post(service, "session_heartbeat", {"session_id": session}) == 410
        assert post(service, "session_heartbeat", {"session_id": "never"}) == 404
        client = tinker.ServiceClient(base_url=service.base_url, api_key=service.key)
        step(client.create_training_client_from_state_with_optimizer(state).result())
        assert service.done("optim_step") == 3
