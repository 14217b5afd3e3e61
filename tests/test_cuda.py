"""On a GPU: packs score, train and reply as lm_eval's hf and as a CPU do, in the memory that was counted.

``W2S_TEST_DEVICE=cpu`` runs what is possible on a CPU, e.g. to see that these tests run; `scripts/gpu_check` runs them.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.models.huggingface import HFLM
from safetensors.torch import load_file
from test_packing import few_shot, gradients, instances, kinds_of, prompts, zero_shot
from tiny_models import tiny_config, tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from trainers.fit import lora
from trainers.fit.lora import Lora
from trainers.harness import evaluate as hn
from trainers.labels.gold import gold_labels
from trainers.training import loop
from w2s_tasks.models.packed_hf import W2SHF
from w2s_tasks.models.quantised import keep_differentiable
from w2s_tasks.packing import budget, masks, scoring

DEVICE = os.environ.get("W2S_TEST_DEVICE", "cuda")
ON_GPU = DEVICE.startswith("cuda")
pytestmark = pytest.mark.skipif(ON_GPU and not torch.cuda.is_available(), reason="needs a GPU of NVIDIA's or AMD's")
ARCHITECTURES = ["llama", "gpt2", "gpt_neox", "qwen3", "mistral", "gemma3"]
ONE_GPU = pytest.mark.skipif(not ON_GPU, reason="needs a GPU: W2S_TEST_DEVICE names none")
NO_BITS = importlib.util.find_spec("bitsandbytes") is None


def logliks(lm: HFLM, pairs: list[tuple[str, str]]) -> list[float]:
    return [loglik for loglik, _ in lm.loglikelihood(instances(pairs), disable_tqdm=True)]


# ---- scores and replies -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("documents", [few_shot, zero_shot])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_are_those_of_hf(causal_model: Callable[[str], Path], architecture: str, documents: Callable[[int], list]):
    lm = W2SHF(str(causal_model(architecture)), device=DEVICE, dtype="float32", token_budget=256)
    ours = logliks(lm, documents(24))
    assert (masks.DENSE if ON_GPU else masks.BRANCHES) in kinds_of(lm)
    theirs = logliks(HFLM(str(causal_model(architecture)), device=DEVICE, dtype="float32", batch_size=1), documents(24))
    assert ours == pytest.approx(theirs, abs=1e-3)
    assert ours == pytest.approx(logliks(W2SHF(str(causal_model(architecture)), device="cpu"), documents(24)), abs=1e-3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_bfloat16_is_no_further_from_float32_than_hf_is(causal_model: Callable[[str], Path], architecture: str):
    folder, pairs = str(causal_model(architecture)), few_shot(24)
    exact = torch.tensor(logliks(HFLM(folder, device=DEVICE, dtype="float32", batch_size=1), pairs))
    plain = torch.tensor(logliks(HFLM(folder, device=DEVICE, dtype="bfloat16", batch_size=1), pairs))
    packed = torch.tensor(logliks(W2SHF(folder, device=DEVICE, dtype="bfloat16"), pairs))
    rounding = (plain - exact).abs()
    assert float((packed - exact).abs().mean()) <= 1.5 * float(rounding.mean())
    assert float((packed - exact).abs().max()) <= 3 * float(rounding.max())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_replies_are_those_of_hf(causal_model: Callable[[str], Path], architecture: str):
    ours = W2SHF(str(causal_model(architecture)), device=DEVICE, dtype="float32").generate_until(
        prompts(6), disable_tqdm=True
    )
    theirs = HFLM(str(causal_model(architecture)), device=DEVICE, dtype="float32").generate_until(prompts(6))
    assert ours == theirs


# ---- training -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradients_are_the_plain_ones(causal_model: Callable[[str], Path], architecture: str):
    off = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0} if architecture == "gpt2" else {}
    model = AutoModelForCausalLM.from_pretrained(causal_model(architecture), **off).to(DEVICE).train()
    requests = W2SHF(str(causal_model(architecture)), device="cpu").encode(few_shot(6))
    packed = gradients(model, requests, pack=True)
    assert scoring.plan_for(model, requests, 256).groups
    plain = gradients(model, requests, pack=False)
    assert torch.allclose(packed[0], plain[0], atol=1e-3)
    for name, grad in plain[1].items():
        assert torch.allclose(packed[1][name], grad, atol=2e-3 * float(grad.abs().max()) + 1e-6), name


Train = Callable[..., tuple[list[float], Path]]


@pytest.fixture
def train(own_task: Path, causal_model: Callable[[str], Path], tmp_path: Path) -> Train:
    """A small LoRA training into a folder of some name: its losses, and the adapter's file."""
    task = hn.Harness([str(own_task)]).task("own_reviews")
    labels = gold_labels(task.train_ids[:96], [task.gold(doc) for doc in task.train_docs[:96]], 2)

    def run(name: str, *, device: str = DEVICE, **settings: Any) -> tuple[list[float], Path]:
        args = {"device": device, **settings.pop("model_args", {})}
        base = {"r": 8, "lr": 1e-2, "batch_size": 16, "epochs": 2, "holdout": 0.0}
        asked = Lora(**{"model": str(causal_model("llama")), "model_args": args, **base, **settings})
        out = tmp_path / name
        out.mkdir(exist_ok=True)
        lora.fit(task, task.train_docs[:96], labels, asked, out, pool=hn.ModelPool(), seed=3)
        curve = json.loads((out / "curves.json").read_text())
        return [point["loss"] for point in curve if "loss" in point], out / "adapter" / "adapter_model.safetensors"

    return run


@ONE_GPU
def test_a_training_is_that_of_a_cpu(train: Train):
    losses, _ = train("gpu")
    assert losses == pytest.approx(train("cpu", device="cpu", trainer_args={"use_cpu": True})[0], abs=5e-3)


def test_a_training_goes_on_after_a_kill(train: Train, monkeypatch: pytest.MonkeyPatch):
    losses, whole = train("whole")
    original = loop.Bar.on_step_end

    def stop(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 8:
            raise KeyboardInterrupt
        original(self, args, state, control, **kwargs)

    monkeypatch.setattr(loop.Bar, "on_step_end", stop)
    with pytest.raises(KeyboardInterrupt):
        train("cut")
    monkeypatch.undo()
    again, cut = train("cut")
    assert again == pytest.approx(losses, abs=1e-5)
    for name, weight in load_file(whole).items():
        assert torch.allclose(load_file(cut)[name], weight, atol=1e-4), name


def test_gradient_checkpointing_gives_the_same_losses_in_less_memory_and_is_undone(train: Train):
    def peak(name: str, **settings: Any) -> tuple[list[float], int]:
        if ON_GPU:
            torch.cuda.reset_peak_memory_stats()
        losses, _ = train(name, **settings)
        return losses, torch.cuda.max_memory_allocated() if ON_GPU else 0

    kept, room = peak("kept")
    again, less = peak("again", trainer_args={"gradient_checkpointing": True})
    assert again == pytest.approx(kept, abs=2e-3)
    assert not ON_GPU or less <= room


@pytest.mark.skipif(NO_BITS, reason="needs bitsandbytes: pip install 'w2s-harness[bitsandbytes]'")
def test_a_four_bit_base_is_scored_as_hf_scores_it_and_learns(train: Train, tokenizer_folder: Path, tmp_path: Path):
    folder, args = str(tmp_path / "base"), {"load_in_4bit": True, "bnb_4bit_compute_dtype": "float32"}
    tiny_model(AutoModelForCausalLM, tiny_config("llama"), scale=3).save_pretrained(folder)  # of widths that a CPU takes
    AutoTokenizer.from_pretrained(tokenizer_folder).save_pretrained(folder)
    ours = W2SHF(folder, device=DEVICE, dtype="float32", **args)
    config = BitsAndBytesConfig(**args)
    plain = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=config, dtype=torch.float32, device_map={"": DEVICE}
    )
    keep_differentiable(plain)  # the same kernels
    theirs = HFLM(plain, tokenizer=folder, batch_size=1)
    assert any("4bit" in type(module).__name__ for module in ours.model.modules())
    assert logliks(ours, few_shot(24)) == pytest.approx(logliks(theirs, few_shot(24)), abs=1e-3)
    embedded = ours.language_model.get_input_embeddings()(torch.tensor([[5, 6, 7]], device=DEVICE)).detach().requires_grad_()
    ours.language_model(inputs_embeds=embedded).logits.sum().backward()  # after it has answered
    assert embedded.grad is not None
    assert float(embedded.grad.abs().max()) > 0
    losses, adapter = train("four", model=folder, model_args=args, epochs=6)
    assert min(losses[-6:]) < 0.7 * losses[0]
    assert adapter.is_file()


# ---- memory, several GPUs -----------------------------------------------------------------------------------------------


@ONE_GPU
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_pass_needs_no_more_memory_than_was_counted(causal_model: Callable[[str], Path], architecture: str):
    lm = W2SHF(str(causal_model(architecture)), device=DEVICE, dtype="float32", token_budget=1024)
    logliks(lm, few_shot(4))  # trials, kernels
    with torch.no_grad():
        counted = 1024 * budget.token_bytes(lm.language_model)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    logliks(lm, few_shot(96))
    assert torch.cuda.max_memory_allocated() - before <= 1.2 * counted + 32 * 2**20  # the libraries' work space


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_run_an_experiment_to_the_numbers_of_one(experiment_file: Path, tmp_path: Path):
    found = []
    for count in (1, 2):
        runs = tmp_path / str(count)
        command = [sys.executable, "-m", "trainers.cli"]
        if count > 1:
            command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "-m", "trainers.cli"]
        command += ["run", str(experiment_file), "--runs-dir", str(runs), "--set", "arms=[zero_shot, student, ceiling]"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
        assert done.returncode == 0, done.stderr[-3000:]
        arms = json.loads((runs / "small" / "report.json").read_text())["arms"]
        found.append([arm["metrics"]["acc"] for arm in arms])
    assert found[1] == pytest.approx(found[0], abs=0.05)
