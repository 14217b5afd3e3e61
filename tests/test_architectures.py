"""Every causal architecture that can be built tiny: packed scores and LoRA's training are the plain ones, or refused."""

from __future__ import annotations

import contextlib
import random
import signal
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

import pytest
import torch
import transformers as tf
from tiny_models import VOCABULARY, WINDOW, causal_models, tiny_config, tiny_model

from trainers.fit import language_model, lora
from trainers.fit.lora import Lora
from w2s_tasks import packing
from w2s_tasks.errors import UserError

QUICK = ["llama", "gpt2", "gpt_neo", "qwen3", "mistral", "gemma3_text", "gemma3n_text", "gemma4_unified", "phi3", "mixtral"]
CHOICES = 2
MAX_LENGTH = 256
SECONDS = 180
NOT_BUILT: dict[str, str] = {
    "blt": "its patches come from a second model of 190 million parameters that can't be made small",
    "dbrx": "its default configuration has no rope_theta, which its layers ask for",
    "dots3_note": "its default configuration names layers that a smaller one lacks",
    "gemma3n": "needs timm",
    "gemma4_assistant": "continues another model's states; reads no text alone",
    "gemma4_unified_assistant": "continues another model's states; reads no text alone",
    "kimi_linear": "its recurrence takes minutes in plain PyTorch",
    "longcat_flash": "its sizes of heads don't go together when they are small",
    "musicgen": "writes sound; its text decoder can't be loaded from its configuration",
    "musicgen_melody": "writes sound; its text decoder can't be loaded from its configuration",
    "qwen4_exp": "its default configuration leaves sizes open",
    "qwen4_exp_text": "its default configuration leaves sizes open",
    "reformer": "its axial positions don't go together with texts of odd lengths",
    "zamba": "its shared layers can't be tied in so few layers",
}
"""Kinds that can't be built or run here, with the reason."""


@contextlib.contextmanager
def within(seconds: int) -> Iterator[None]:
    """Ends what takes longer, so that one architecture does not hold up the others."""

    def end(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def requests() -> list[packing.Request]:
    """Two shared shots longer than any window, three documents, two choices each, one of several tokens."""
    rng = random.Random(1)

    def tokens(n: int) -> tuple[int, ...]:
        return tuple(rng.randrange(10, VOCABULARY) for _ in range(n))

    shots = tokens(WINDOW + 9)
    documents = [(*shots, *tokens(n)) for n in (3, 11, 6)]
    return [(document, tokens(n)) for document in documents for n in (1, 3)]


def plain(model: torch.nn.Module, asked: Sequence[packing.Request]) -> torch.Tensor:
    """Scores row by row as lm_eval's `hf` has them, by transformers and PEFT alone."""
    found = []
    for context, continuation in asked:
        read = [*context, *continuation][:-1]  # a model that sees both ways would see the last token, too
        logprobs = model(input_ids=torch.tensor([read]), use_cache=False).logits[0].float().log_softmax(-1)
        chosen = logprobs[len(context) - 1 :]
        found.append(chosen[torch.arange(len(continuation)), torch.tensor(continuation)].sum())
    return torch.stack(found)


def trained(model: Any, logprobs: torch.Tensor) -> tuple[float, dict[str, torch.Tensor]]:
    """The cross-entropy to soft labels, and its gradients by every weight that LoRA trains."""
    model.zero_grad()
    targets = torch.tensor([[0.9, 0.1], [0.3, 0.7], [0.5, 0.5]])
    loss = -(targets * logprobs).sum(-1).mean()
    loss.backward()
    return float(loss), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def check_scores(model: Any) -> None:
    asked = requests()
    with torch.inference_mode():
        expected = plain(model, asked)
        found = packing.score(model, asked, max_length=MAX_LENGTH)
    spread = float(expected.max() - expected.min())
    assert spread > 1e-3
    assert found.loglik.tolist() == pytest.approx(expected.tolist(), abs=min(1e-3, spread / 20))


def check_training(model: Any) -> None:
    asked = requests()
    try:
        tuned = lora.with_adapter(model, Lora(model="x", r=4)).eval()
    except UserError:
        return
    torch.manual_seed(1)
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    try:
        expected = trained(tuned, plain(tuned, asked).view(-1, CHOICES).log_softmax(-1))
    except (RuntimeError, AttributeError) as error:
        pytest.skip(f"its scores are the plain ones; PEFT itself can't train all its linear layers: {str(error)[:200]}")
    rows = [asked[i : i + CHOICES] for i in range(0, len(asked), CHOICES)]
    found = trained(tuned, language_model.choice_logprobs(tuned, rows, torch.zeros(len(rows), CHOICES), MAX_LENGTH))
    assert found[0] == pytest.approx(expected[0], abs=1e-4)
    assert found[1].keys() == expected[1].keys()
    largest = max(float(grad.abs().max()) for grad in expected[1].values())
    assert largest > 0
    for name, grad in expected[1].items():
        assert torch.allclose(found[1][name], grad, rtol=1e-2, atol=1e-3 * largest), name


def check(kind: str) -> None:
    with within(SECONDS):
        model = tiny_model(tf.AutoModelForCausalLM, tiny_config(kind), scale=2)
        check_scores(model)
        check_training(model)


@pytest.mark.parametrize("kind", QUICK)
def test_scores_and_training_are_the_plain_ones(kind: str):
    check(kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in causal_models() if kind not in (*NOT_BUILT, *QUICK)])
def test_scores_and_training_of_every_architecture_are_the_plain_ones(kind: str):
    check(kind)


def test_layers_that_peft_cannot_run_are_refused_in_one_line():
    """Phi-3.5-MoE's router is a linear layer that gives three tensors."""
    model = tiny_model(tf.AutoModelForCausalLM, tiny_config("phimoe"))
    asked = requests()
    tuned = lora.with_adapter(model, Lora(model="x", r=4))
    with pytest.raises(UserError, match=r"strong\.target_modules: phimoe does not run with LoRA on these layers"):
        lora._check_runs(tuned, "phimoe", asked[:CHOICES], MAX_LENGTH)
    tuned.unload()
    tuned = lora.with_adapter(model, Lora(model="x", r=4, target_modules=["q_proj", "v_proj"]))
    lora._check_runs(tuned, "phimoe", asked[:CHOICES], MAX_LENGTH)
