"""w2s-vllm scores as w2s-hf does: on a stand-in with real small models, and by `scripts/test --vllm` on vLLM itself."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vllm_server
import yaml
from chat_support import arguments, evaluate
from conftest import rows
from lm_eval.api.instance import Instance
from openai_service import Service
from openai_service.chat import Chat
from openai_service.vllm import VLLM

from trainers.config.reading import load
from trainers.flow.progress import Progress
from trainers.flow.run import open_run
from w2s_tasks.errors import UserError
from w2s_tasks.models.packed_hf import W2SHF
from w2s_tasks.models.ref import ModelRef
from w2s_tasks.models.vllm import on_server
from w2s_tasks.models.vllm.model import W2SVLLM

SHARED_CHOICES = (" negative", " positive", " positive and long", " neither of these")


def adapter(base: str, folder: Path, seed: int = 0, **settings: Any) -> Path:
    """A LoRA adapter of a base, its weights random and large enough to be seen."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], **settings)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    model.save_pretrained(folder)
    return folder


@dataclass
class Place:
    """A server with one base, and two of its adapters; `server` is the stand-in, None for vLLM itself."""

    base_url: str
    base: str
    adapters: tuple[Path, Path]
    key: str
    server: VLLM | None = None

    def args(self, store: Path, **more: Any) -> dict[str, Any]:
        """Model arguments, with answers kept in a folder."""
        args = {"pretrained": self.base, "base_url": self.base_url, "api_key_env": self.key, "backoff": 0.01}
        return {**args, "store": str(store), **more}


@pytest.fixture(scope="session")
def small(causal_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, tuple[Path, Path]]:
    """A tiny base and two adapters."""
    base, root = str(causal_model("llama")), tmp_path_factory.mktemp("adapters")
    return base, (adapter(base, root / "a", 1), adapter(base, root / "b", 2))


@pytest.fixture
def place(small: tuple[str, tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """The stand-in."""
    with VLLM(models={"base": Path(small[0])}) as server:
        monkeypatch.setenv("VLLM_API_KEY", server.key)
        yield Place(server.base_url, *small, key="VLLM_API_KEY", server=server)


@pytest.fixture(scope="session")
def real(smollm2: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """vLLM itself."""
    if vllm_server.PYTHON not in os.environ:
        pytest.skip("needs a vLLM of its own environment: scripts/test --vllm")
    root = tmp_path_factory.mktemp("vllm")
    adapters = adapter(smollm2, root / "a", 1), adapter(smollm2, root / "b", 2)
    with vllm_server.running(smollm2, root / "log.txt") as base_url:
        yield Place(base_url, smollm2, adapters, key="VLLM_API_KEY")


def _place(request: pytest.FixtureRequest) -> Place:
    found: Place = request.getfixturevalue(request.param)
    return found


@pytest.fixture(params=["place", pytest.param("real", marks=pytest.mark.vllm)])
def either(request: pytest.FixtureRequest) -> Place:
    """The stand-in, then vLLM."""
    return _place(request)


def questions(n: int = 6, shots: int = 3, choices: tuple[str, ...] = SHARED_CHOICES) -> list[Instance]:
    """Requests of multiple choice whose prompts begin with the same examples, and whose choices begin alike."""
    data = rows(n + shots, 5)
    head = "".join(f"Review: {r['text']}\nSentiment: positive\n\n" for r in data[:shots])
    prompts = [f"{head}Review: {r['text']}\nSentiment:" for r in data[shots:]]
    return [
        Instance("loglikelihood", {}, (prompt, choice), j, task_name="t", doc_id=i)
        for i, prompt in enumerate(prompts)
        for j, choice in enumerate(choices)
    ]


def logliks(lm: Any, requests: list[Instance]) -> list[tuple[float, bool]]:
    return [(float(x), bool(g)) for x, g in lm.loglikelihood(requests, disable_tqdm=True)]


def same(ours: list[tuple[float, bool]], theirs: list[tuple[float, bool]], tolerance: float = 1e-3) -> None:
    assert [x for x, _ in ours] == pytest.approx([x for x, _ in theirs], abs=tolerance)
    assert [g for _, g in ours] == [g for _, g in theirs]


def test_log_likelihoods_are_those_of_w2s_hf_with_and_without_adapters(either: Place, tmp_path: Path) -> None:
    there, here = W2SVLLM(**either.args(tmp_path)), W2SHF(either.base, device="cpu")
    requests, found = questions(), []
    for folder in (None, either.adapters[0], either.adapters[1], None):
        there.use_adapter(folder)
        here.use_adapter(folder)
        found.append(logliks(there, requests))
        same(found[-1], logliks(here, requests))
    assert abs(found[0][0][0] - found[1][0][0]) > 0.01
    assert abs(found[1][0][0] - found[2][0][0]) > 0.01
    assert found[0] == found[3]


def test_an_adapter_is_an_argument_too_and_prompts_of_nothing_or_of_spaces_count(either: Place, tmp_path: Path) -> None:
    pairs = [("Review: good ", "positive"), ("", " positive"), ("\n ", "negative film")]
    requests = [Instance("loglikelihood", {}, pair, 0, task_name="t", doc_id=i) for i, pair in enumerate(pairs)]
    there = W2SVLLM(**either.args(tmp_path, peft=str(either.adapters[0])))
    same(logliks(there, requests), logliks(W2SHF(either.base, peft=str(either.adapters[0]), device="cpu"), requests))


def test_replies_are_those_of_w2s_hf(either: Place, tmp_path: Path) -> None:
    prompts = [f"Review: {r['text']}\nSentiment:" for r in rows(4, 9)]
    settings: dict[str, Any] = {"until": ["\n\n"], "max_gen_toks": 8, "do_sample": False}
    requests = [Instance("generate_until", {}, (p, settings), 0, task_name="t", doc_id=i) for i, p in enumerate(prompts)]
    there = W2SVLLM(**either.args(tmp_path)).generate_until(requests, disable_tqdm=True)
    assert there == W2SHF(either.base, device="cpu").generate_until(requests, disable_tqdm=True)
    assert any(there)


def test_what_is_longer_than_model_or_server_is_cut_as_in_hf_and_told(
    either: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    requests = questions(2)
    with caplog.at_level(logging.WARNING, "w2s_tasks"):
        there = logliks(W2SVLLM(**either.args(tmp_path, max_length=24)), requests)
    same(there, logliks(W2SHF(either.base, device="cpu", max_length=24), requests))
    assert "8 of 8 requests are longer than 24 tokens" in caplog.text


def test_one_request_a_place_where_choices_go_on_and_a_shared_prompt_is_computed_once(place: Place, tmp_path: Path) -> None:
    assert place.server
    lm = W2SVLLM(**place.args(tmp_path, num_concurrent=1))
    assert lm.served  # the trial
    place.server.asked.clear()
    place.server.computed = 0
    requests = questions(6)
    logliks(lm, requests)
    asked = place.server.asked
    steps = {step for context, ids in lm.encode([r.args for r in requests]) for step in lm._steps(context, ids)}
    assert len(asked) == len({tuple(body["prompt"]) for body in asked}) == len({prompt for prompt, _ in steps})
    assert {t for body in asked for t in body["logprob_token_ids"]} == {token for _, token in steps}
    one = sorted(len(body["prompt"]) for body in asked)[0]
    assert place.server.computed < one + 16 * len(asked) + 6 * 40  # the examples once; then rests of blocks and documents
    assert {body["max_tokens"] for body in asked} == {1}


def test_a_second_run_asks_only_the_trial_and_other_adapters_anew(place: Place, tmp_path: Path) -> None:
    assert place.server
    requests = questions(3)
    first = logliks(W2SVLLM(**place.args(tmp_path, peft=str(place.adapters[0]))), requests)
    place.server.asked.clear()
    assert logliks(W2SVLLM(**place.args(tmp_path, peft=str(place.adapters[0]))), requests) == first
    assert len(place.server.asked) == 4
    other = logliks(W2SVLLM(**place.args(tmp_path, peft=str(place.adapters[1]))), requests)
    assert other != first
    assert len(place.server.asked) > 8


def test_a_served_adapter_is_named(place: Place, tmp_path: Path) -> None:
    assert place.server
    place.server.adapters["mine"] = place.adapters[0]
    named = W2SVLLM(**place.args(tmp_path, model="mine"))
    same(logliks(named, questions(2)), logliks(W2SHF(place.base, peft=str(place.adapters[0]), device="cpu"), questions(2)))
    with pytest.raises(UserError, match=r"no model 'mnie'\. Did you mean 'mine'"):
        W2SVLLM(**place.args(tmp_path, model="mnie"))


def test_without_pretrained_the_server_says_where_its_model_is(place: Place, tmp_path: Path) -> None:
    args = place.args(tmp_path)
    del args["pretrained"]
    same(logliks(W2SVLLM(**args), questions(2)), logliks(W2SHF(place.base, device="cpu"), questions(2)))


# ---- refused ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("stale", "two log-probabilities for one token after one prompt.*prefix cache"),
        ("raw_logits", "log-probabilities.*--logprobs-mode raw_logprobs"),
        ("old", "does not tell the log-probabilities of named tokens.*logprob_token_ids"),
    ],
)
def test_a_server_with_wrong_values_is_refused_before_a_task_is_asked(
    place: Place, tmp_path: Path, fault: str, said: str
) -> None:
    setattr(place.server, fault, True)
    with pytest.raises(UserError, match=said):
        logliks(W2SVLLM(**place.args(tmp_path)), questions(1))


def test_another_service_another_tokenizer_and_no_server_are_refused(
    place: Place, service: Service, causal_model: Callable[[str], Path], smollm2: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"is no vLLM server.*w2s-chat"):
        W2SVLLM(**place.args(tmp_path, base_url=service.base_url, api_key_env="OPENAI_API_KEY"))
    with pytest.raises(UserError, match="whose files are not those of"):
        W2SVLLM(**place.args(tmp_path, pretrained=str(causal_model("qwen2"))))
    with pytest.raises(UserError, match=r"nothing answers at http://127.0.0.1:9/v1.*VLLM_BASE_URL"):
        W2SVLLM(**place.args(tmp_path, base_url="http://127.0.0.1:9/v1"))
    with pytest.raises(UserError, match=r"key in \$NONE_SUCH was not accepted"):
        logliks(W2SVLLM(**place.args(tmp_path, api_key_env="NONE_SUCH")), questions(1))


def test_stored_answers_of_another_model_under_the_same_name_are_not_used(
    place: Place, small: tuple[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    assert place.server
    place.server.adapters["mine"] = place.adapters[0]
    logliks(W2SVLLM(**place.args(tmp_path, model="mine")), questions(1))
    place.server.adapters["mine"] = adapter(place.base, tmp_path / "wild", 3, init_lora_weights=False)
    with pytest.raises(UserError, match=r"another model under the name 'mine'.*store=FOLDER"):
        logliks(W2SVLLM(**place.args(tmp_path, model="mine")), questions(1))


def test_adapters_that_a_server_can_not_have_are_refused(place: Place, tmp_path: Path) -> None:
    assert place.server
    lm = W2SVLLM(**place.args(tmp_path))
    dora = adapter(place.base, tmp_path / "dora", use_dora=True)
    with pytest.raises(UserError, match=r"use_dora = True is not served by vLLM.*merge_and_unload"):
        lm.use_adapter(dora)
    place.server.runtime_lora = False
    with pytest.raises(UserError, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"):
        lm.use_adapter(place.adapters[0])
    with pytest.raises(UserError, match="give one of them"):
        W2SVLLM(**place.args(tmp_path, model="base", peft=str(place.adapters[0])))


def test_whole_texts_are_refused(place: Place, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="likelihood of a whole text"):
        W2SVLLM(**place.args(tmp_path)).loglikelihood_rolling(questions(1))


# ---- experiments --------------------------------------------------------------------------------------------------------


def test_the_same_weights_are_one_model_wherever_they_are_served(small: tuple[str, tuple[Path, Path]]) -> None:
    local = ModelRef("w2s-hf", {"pretrained": small[0], "peft": str(small[1][0]), "device": "cpu"})
    served = [on_server(local, url) for url in (None, "http://one:8000/v1", "http://two:8000/v1")]
    assert len({ref.identity() for ref in served}) == 1
    assert served[0].identity() != on_server(ModelRef("w2s-hf", {"pretrained": small[0]}), None).identity()
    with pytest.raises(UserError, match=r"model_args\.subfolder"):
        on_server(ModelRef("w2s-hf", {"pretrained": small[0], "subfolder": "x"}), None)


SMALL = ("split.limit={weak: 48, transfer: 32}", "evaluate.limit=12", "arms=[zero_shot, student]", "weak.epochs=1")


def test_an_experiment_evaluates_its_strong_arms_on_a_server(
    place: Place, experiment_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("W2S_CACHE", str(tmp_path / "cache"))
    flows = []
    for more in ((), ("evaluate.engine=vllm", f"evaluate.base_url={place.base_url}")):
        flow = open_run(load(str(experiment_file), [*SMALL, *more])[0], tmp_path / "runs")
        flow.build(Progress(quiet=True))
        flows.append(flow)
    local, served = flows
    for name, stage in served.stages.items():
        of_strong = name.startswith("evaluate/") and "weak" not in name
        assert (stage.path != local.stages[name].path) == of_strong, name
        if of_strong:
            found = [_results(flow.stages[name].path) for flow in flows]
            assert found[0] == pytest.approx(found[1], abs=1e-3)
    moved = open_run(load(str(experiment_file), [*SMALL, "evaluate.engine=vllm"])[0], tmp_path / "runs")
    assert {moved.key(step) for step in moved.layout.steps.values()} == {
        served.key(step) for step in served.layout.steps.values()
    }


def _results(folder: Path) -> list[float]:
    """The log-likelihoods in a stage's samples."""
    (path,) = folder.rglob("samples_*.jsonl")
    samples = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [float(r[0]) for s in sorted(samples, key=lambda s: s["doc_id"]) for r in s["filtered_resps"]]


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["evaluate.base_url=http://localhost:8000/v1"], "write engine: vllm as well"),
        (["evaluate.engine=vllm", "evaluate.base_url=localhost"], "base_url must be an address"),
        (["evaluate.engine=vllm", "strong.trainer=openai"], "it needs strong.trainer: lora|strong"),
        (["evaluate.engine=sglang"], "evaluate.engine"),
    ],
)
def test_impossible_engines_are_refused(experiment_file: Path, sets: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        load(str(experiment_file), sets)


# ---- w2s-chat -----------------------------------------------------------------------------------------------------------


def test_chat_names_the_choices_that_are_not_among_the_likeliest(
    place: Place, own_task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert place.server
    monkeypatch.setenv("OPENAI_API_KEY", place.server.key)
    place.server.part(Chat).max_top = 600
    args = {**arguments(place.server, tmp_path, model="base"), "mode": "first_token"}
    exact = evaluate("w2s-chat", args, ["own_reviews"], own_task, limit=6)
    asked = [body for body in place.server.asked if "messages" in body]
    report = exact["config"]["scoring"]["own_reviews"]
    assert report["floored"] == report["unlisted"] == 0
    assert report["second_requests"] == len(asked) - 6
    assert any("logprob_token_ids" in body for body in asked)
    everything = evaluate("w2s-chat", {**args, "top_logprobs": 600}, ["own_reviews"], own_task, limit=6)
    assert not any("logprob_token_ids" in b for b in place.server.asked[len(asked) :])
    wide = [float(r[0]) for s in everything["samples"]["own_reviews"] for r in s["filtered_resps"]]
    named = [float(r[0]) for s in exact["samples"]["own_reviews"] for r in s["filtered_resps"]]
    assert named == pytest.approx(
        wide, abs=2.0
    )  # a random model likes all other tokens that begin the choices, in quotes or cut short
    assert (np.array(named) <= np.array(wide) + 1e-6).all()


def test_chat_keeps_its_floors_where_names_are_passed_over(
    place: Place, own_task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert place.server
    monkeypatch.setenv("OPENAI_API_KEY", place.server.key)
    place.server.old = True
    args = {**arguments(place.server, tmp_path, model="base"), "mode": "first_token", "top_logprobs": 12}
    report = evaluate("w2s-chat", args, ["own_reviews"], own_task, limit=6)["config"]["scoring"]["own_reviews"]
    assert report["floored"] > 0
    assert sum("logprob_token_ids" in body for body in place.server.asked) == 1


@pytest.mark.vllm
def test_chat_names_unlisted_choices_on_vllm(real: Place, own_task: Path, tmp_path: Path) -> None:
    args = {"model": "base", "base_url": real.base_url, "store": str(tmp_path), "mode": "first_token", "top_logprobs": 1}
    report = evaluate("w2s-chat", args, ["own_reviews"], own_task, limit=4)["config"]["scoring"]["own_reviews"]
    assert report["floored"] == report["unlisted"] == 0
    assert report["second_requests"] > 0


def test_the_shipped_config_is_whole() -> None:
    from lm_eval.config.evaluate_config import EvaluatorConfig

    from w2s_tasks.plugin.eval_arguments import check_arguments
    from w2s_tasks.plugin.manager import W2STaskManager

    path = Path(__file__).parent.parent / "harness_configs" / "eval" / "vllm_log_likelihoods.yaml"
    text = path.read_text(encoding="utf-8")
    config = EvaluatorConfig(**yaml.safe_load(text))
    check_arguments(config.model, config.model_args)
    assert set(config.tasks) <= set(W2STaskManager().all_tasks)
    assert f"w2s eval --config harness_configs/eval/{path.name}" in text
