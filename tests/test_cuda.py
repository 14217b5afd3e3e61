"""On a GPU: packs score, train and reply as lm_eval's hf and as a CPU do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lm_eval.models.huggingface import HFLM
from test_packing import few_shot, gradients, instances, kinds_of, prompts, zero_shot
from transformers import AutoModelForCausalLM

from w2s_tasks.models.packed_hf import W2SHF
from w2s_tasks.packing import masks, scoring

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU of NVIDIA's or AMD's")
ARCHITECTURES = ["llama", "gpt2", "gpt_neox", "qwen3", "mistral", "gemma3"]


def logliks(lm: HFLM, pairs: list[tuple[str, str]]) -> list[float]:
    return [loglik for loglik, _ in lm.loglikelihood(instances(pairs), disable_tqdm=True)]


@pytest.mark.parametrize("documents", [few_shot, zero_shot])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_are_those_of_hf(causal_model: Callable[[str], Path], architecture: str, documents: Callable[[int], list]):
    lm = W2SHF(str(causal_model(architecture)), device="cuda", dtype="float32", token_budget=256)
    ours = logliks(lm, documents(24))
    assert masks.DENSE in kinds_of(lm)
    theirs = logliks(HFLM(str(causal_model(architecture)), device="cuda", dtype="float32", batch_size=1), documents(24))
    assert ours == pytest.approx(theirs, abs=1e-3)
    assert ours == pytest.approx(logliks(W2SHF(str(causal_model(architecture)), device="cpu"), documents(24)), abs=1e-3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradients_are_the_plain_ones(causal_model: Callable[[str], Path], architecture: str):
    off = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0} if architecture == "gpt2" else {}
    model = AutoModelForCausalLM.from_pretrained(causal_model(architecture), **off).to("cuda").train()
    requests = W2SHF(str(causal_model(architecture)), device="cpu").encode(few_shot(6))
    packed = gradients(model, requests, pack=True)
    assert scoring.plan_for(model, requests, 256).groups
    plain = gradients(model, requests, pack=False)
    assert torch.allclose(packed[0], plain[0], atol=1e-3)
    for name, grad in plain[1].items():
        assert torch.allclose(packed[1][name], grad, atol=2e-3 * float(grad.abs().max()) + 1e-6), name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_replies_are_those_of_hf(causal_model: Callable[[str], Path], architecture: str):
    ours = W2SHF(str(causal_model(architecture)), device="cuda", dtype="float32").generate_until(
        prompts(6), disable_tqdm=True
    )
    theirs = HFLM(str(causal_model(architecture)), device="cuda", dtype="float32").generate_until(prompts(6))
    assert ours == theirs
