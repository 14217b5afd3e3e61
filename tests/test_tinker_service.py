"""The stand-in of Tinker itself, through the real SDK: it trains as PEFT does, keeps what it should, fails as asked."""

from __future__ import annotations

import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

tinker = pytest.importorskip("tinker")

from loopback.models import load_model  # noqa: E402
from peft import PeftModel  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from tinker import types  # noqa: E402
from tinker_service import Service  # noqa: E402

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


def test_a_step_is_the_step_of_torch_and_peft(client: Any, tinker_service: Service, tmp_path: Path):
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
