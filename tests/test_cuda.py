"""On a GPU: packs through compiled FlexAttention score, train and reply as lm_eval's hf and as a CPU do."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lm_eval.models.huggingface import HFLM
from test_packing import few_shot, gradients, instances, kinds_of, prompts, zero_shot
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from w2s_tasks.models.packed_hf import W2SHF
from w2s_tasks.packing import masks, scoring, trial

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU of NVIDIA's or AMD's")
ARCHITECTURES = ["llama", "gpt2", "gpt_neox", "qwen3", "mistral", "gemma3"]


def logliks(lm: HFLM, pairs: list[tuple[str, str]]) -> list[float]:
    return [loglik for loglik, _ in lm.loglikelihood(instances(pairs), disable_tqdm=True)]


@pytest.mark.parametrize("documents", [few_shot, zero_shot])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_are_those_of_hf(causal_model: Callable[[str], Path], architecture: str, documents: Callable[[int], list]):
    lm = W2SHF(str(causal_model(architecture)), device="cuda", dtype="float32", token_budget=256)
    ours = logliks(lm, documents(24))
    assert kinds_of(lm) & {masks.BLOCKS, masks.DENSE}
    theirs = logliks(HFLM(str(causal_model(architecture)), device="cuda", dtype="float32", batch_size=1), documents(24))
    assert ours == pytest.approx(theirs, abs=1e-3)
    assert ours == pytest.approx(logliks(W2SHF(str(causal_model(architecture)), device="cpu"), documents(24)), abs=1e-3)


@pytest.fixture
def even_model(tokenizer_folder: Path, tmp_path: Path) -> Path:
    """A model whose heads have a size that FlexAttention's kernels take; the other small ones have 12."""
    config = LlamaConfig(vocab_size=600, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4)
    model = AutoModelForCausalLM.from_config(config)
    for p in model.parameters():
        p.data.mul_(3)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tokenizer_folder).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_llama_goes_through_flex_attention(even_model: Path, dtype: str, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, logger="w2s_tasks.packing")
    lm = W2SHF(str(even_model), device="cuda", dtype=dtype, token_budget=256)
    ours = logliks(lm, few_shot(24))
    assert kinds_of(lm) == {masks.BLOCKS}, caplog.text
    right = logliks(HFLM(str(even_model), device="cuda", dtype="float32", batch_size=1), few_shot(24))
    assert ours == pytest.approx(right, abs=1e-3 if dtype == "float32" else 0.5)
    model = AutoModelForCausalLM.from_pretrained(even_model, dtype=getattr(torch, dtype)).to("cuda").train()
    gradients(model, lm.encode(few_shot(6)), pack=True)
    assert {tried.kind for tried in trial.known(model).ways.values()} == {masks.BLOCKS}, caplog.text


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
