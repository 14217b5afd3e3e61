"""Packed rows give the scores, gradients and replies of plain passes, with fewer tokens."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from w2s_tasks import packing
from w2s_tasks.models.packed_hf import W2SHF
from w2s_tasks.packing import masks, scoring, trial
from w2s_tasks.packing.plan import cut_batches, tree_size
from w2s_tasks.packing.tree import Pass, common, lay_out

ARCHITECTURES = ["llama", "gpt2", "gpt_neox", "qwen2", "qwen3", "mistral", "gemma3"]
SHOTS = "Review: the film was lovely\nSentiment: positive\n\nReview: a dull story\nSentiment: negative\n\n"
WORDS = ["cold", "warm", "kind actor", "false"]


def few_shot(n: int) -> list[tuple[str, str]]:
    """n documents behind two shots, three choices each; every four documents share a stem."""
    texts = [f"Review: the plot {i // 4} and the {WORDS[i % 4]} scene\nSentiment:" for i in range(n)]
    return [(SHOTS + text, choice) for text in texts for choice in (" negative", " positive", " not quite positive")]


def zero_shot(n: int) -> list[tuple[str, str]]:
    """The same documents without shots: their stems are all that they share."""
    return [(context.removeprefix(SHOTS), choice) for context, choice in few_shot(n)]


def instances(pairs: list[tuple[str, str]]) -> list[Instance]:
    return [Instance("loglikelihood", {}, pair, i, metadata=("t", i, 1)) for i, pair in enumerate(pairs)]


def prompts(n: int, limit: int = 12) -> list[Instance]:
    wanted = {"until": ["\n\n"], "max_gen_toks": limit, "do_sample": False}
    contexts = [context for context, _ in few_shot(n)[::3]]
    return [Instance("generate_until", {}, (c, dict(wanted)), i, metadata=("t", i, 1)) for i, c in enumerate(contexts)]


def shapes_of(model: torch.nn.Module, run: Callable[[], object]) -> list[tuple[int, ...]]:
    """The shapes of all inputs that a model gets while `run` runs."""
    seen: list[tuple[int, ...]] = []
    hook = model.register_forward_pre_hook(lambda m, a, kw: seen.append(tuple(kw["input_ids"].shape)), with_kwargs=True)
    run()
    hook.remove()
    return seen


def kinds_of(lm: W2SHF) -> set[str]:
    """The kinds of masks that served the trials of a model so far."""
    return {tried.kind for tried in trial.known(lm.language_model).ways.values()}


def ignore_masks(lm: W2SHF) -> Callable[..., Any]:
    """Let a model's forward pass drop every mask that it is given; the one that it had."""
    model: Any = lm.language_model
    original: Callable[..., Any] = model.forward

    def forward(*args: Any, attention_mask: Any = None, **kwargs: Any) -> Any:
        return original(*args, **kwargs)

    forward.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]
    model.forward = forward
    return original


# ---- the plan -------------------------------------------------------------------------------------------------------

SEQUENCES = st.lists(st.lists(st.integers(0, 3), min_size=2, max_size=12), min_size=1, max_size=12)


def _passes(sequences: list[list[int]]) -> list[Pass]:
    return packing.plan_passes([(tuple(s), (9,)) for s in sequences], max_length=64)


@given(SEQUENCES)
def test_a_row_holds_every_sequence_as_the_path_to_its_last_token(sequences: list[list[int]]):
    passes = sorted(_passes(sequences), key=lambda p: p.tokens)
    layout = lay_out(passes)
    seen = masks.tree_sight(layout, 0, torch.device("cpu"))
    for item, tail in zip(passes, layout.tails, strict=True):
        path = seen[tail[-1]].nonzero().flatten().tolist()
        assert tuple(layout.tokens[i] for i in path) == item.tokens
        assert [layout.positions[i] for i in path] == list(range(len(item.tokens)))
    assert len(layout.tokens) == len({p.tokens[: i + 1] for p in passes for i in range(len(p.tokens))}) == tree_size(passes)


@given(SEQUENCES, st.integers(3, 30))
@settings(max_examples=200)
def test_a_plan_runs_every_pass_once_and_never_more_tokens_than_plain(sequences: list[list[int]], budget: int):
    passes = _passes(sequences)
    plan = packing.make_plan(passes, in_pack=budget, in_batch=10_000)
    planned = [p for g in plan.groups for pack in g.packs for p in pack] + [p for b in plan.batches for p in b]
    assert sorted(p.tokens for p in planned) == sorted(p.tokens for p in passes)
    for group in plan.groups:
        for pack in group.packs:
            assert all(p.tokens[: len(group.trunk)] == group.trunk for p in pack)
            assert all(len(group.trunk) <= len(p.tokens) - p.own for p in pack)
            assert len(pack) == 1 or tree_size(pack, len(group.trunk)) <= budget
    packed = sum(len(p.tokens) for g in plan.groups for pack in g.packs for p in pack)
    assert packing.Plan(plan.groups).tokens <= packed


@given(st.lists(st.integers(0, 1)), st.lists(st.integers(0, 1)))
def test_common_is_the_length_of_the_common_beginning(a: list[int], b: list[int]):
    expected = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    assert common(tuple(a), tuple(b)) == expected


def test_one_token_choices_share_one_forward_pass():
    requests = [((1, 2, 3), (4,)), ((1, 2, 3), (5,)), ((1, 2, 3), (4, 6))]
    passes = packing.plan_passes(requests, max_length=16)
    assert [p.tokens for p in passes] == [(1, 2, 3), (1, 2, 3, 4)]


def test_a_batch_never_passes_the_token_budget():
    passes = packing.plan_passes([(tuple(range(n)), (1,)) for n in range(1, 60)], max_length=64)
    cut = cut_batches(passes, budget=100)
    assert sum(len(b) for b in cut) == len(passes)
    assert all(len(b[0].tokens) * len(b) <= 100 for b in cut)


def test_each_task_of_a_call_gets_its_own_trunk():
    def requests(prefix: tuple[int, ...], n: int) -> list[packing.Request]:
        return [((*prefix, 100 + i), (7,)) for i in range(n)]

    long, short = tuple(range(1, 51)), (*range(1, 11), *range(60, 90))
    passes = packing.plan_passes(requests(long, 9) + requests(short, 9) + [((200, 201, 202), (7,))], 256)
    plan = packing.make_plan(passes, in_pack=3, in_batch=64)
    assert sorted((len(g.trunk), len(g.packs)) for g in plan.groups) == [(40, 3), (50, 3)]
    assert [len(b) for b in plan.batches] == [1]
    whole = packing.make_plan(passes, in_pack=3, in_batch=64, trunks=False)
    assert not any(g.trunk for g in whole.groups)


# ---- scores ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("documents", [few_shot, zero_shot])
def test_packed_passes_score_as_lm_evals_hf(causal_model, architecture: str, documents: Callable[[int], Any]):
    folder = str(causal_model(architecture))
    lm = W2SHF(folder, device="cpu", token_budget=64)
    ours = lm.loglikelihood(instances(documents(12)), disable_tqdm=True)
    assert kinds_of(lm) == {masks.BRANCHES}
    theirs = HFLM(folder, device="cpu", dtype="float32", batch_size=1).loglikelihood(
        instances(documents(12)), disable_tqdm=True
    )
    assert [a[0] for a in ours] == pytest.approx([a[0] for a in theirs], abs=1e-4)
    assert [a[1] for a in ours] == [a[1] for a in theirs]


def adapter(base: Path, out: Path) -> Path:
    """A LoRA adapter with random weights on both sides."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(5)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=4, target_modules="all-linear"))
    for name, p in model.named_parameters():
        if "lora_B" in name:
            p.data.normal_(std=0.2)
    model.save_pretrained(out)
    return out


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_passes_score_through_an_adapter(causal_model, tmp_path: Path, architecture: str):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = causal_model(architecture)
    peft = str(adapter(folder, tmp_path / "adapter"))
    ours = W2SHF(str(folder), peft=peft, device="cpu", token_budget=64).loglikelihood(instances(few_shot(8)))
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), peft)
    theirs = HFLM(adapted, tokenizer=str(folder), device="cpu").loglikelihood(instances(few_shot(8)))
    base = W2SHF(str(folder), device="cpu").loglikelihood(instances(few_shot(8)))
    assert [a[0] for a in ours] == pytest.approx([a[0] for a in theirs], abs=1e-4)
    assert [a[0] for a in ours] != pytest.approx([a[0] for a in base], abs=1e-2)


def test_a_trunk_runs_once_and_nothing_is_padded(causal_model):
    lm = W2SHF(str(causal_model("llama")), device="cpu")
    requests = lm.encode(few_shot(24))
    with torch.inference_mode():
        packing.score(lm.language_model, requests, max_length=256, budget=64)  # the architecture is tried once
        plan = scoring.plan_for(lm.language_model, requests, 256, 64)
        seen = shapes_of(lm.language_model, lambda: packing.score(lm.language_model, requests, max_length=256, budget=64))
    assert sum(rows * tokens for rows, tokens in seen) == plan.tokens
    (group,) = plan.groups
    assert len(group.trunk) > 20
    assert len(group.packs) > 2
    # Four documents share a stem and the three choices one context, so the tree is smaller than its leaves' own tokens.
    assert plan.tokens - len(group.trunk) < 0.5 * sum(len(c) - len(group.trunk) for c, _ in requests)


def test_what_shares_too_little_for_a_dense_mask_is_batched_by_length(causal_model, monkeypatch: pytest.MonkeyPatch):
    lm = W2SHF(str(causal_model("llama")), device="cpu")
    requests = [((i, *range(20, 20 + i % 7)), (5,)) for i in range(30, 60)]
    packed = scoring.plan_for(lm.language_model, requests, 256)
    assert packed.groups
    assert not packed.batches
    assert packed.tokens == sum(len(context) for context, _ in requests)
    monkeypatch.setattr(masks, "kinds_for", lambda model, device: (masks.DENSE,))
    batched = scoring.plan_for(lm.language_model, requests, 256)
    assert not batched.groups
    assert batched.tokens > packed.tokens


def test_a_model_that_ignores_the_mask_falls_back_to_plain_batches(causal_model, caplog: pytest.LogCaptureFixture):
    lm = W2SHF(str(causal_model("llama")), device="cpu")
    original = ignore_masks(lm)
    with caplog.at_level(logging.INFO, logger="w2s_tasks.packing"):
        ours = lm.loglikelihood(instances(few_shot(12)), disable_tqdm=True)
        replies = lm.generate_until(prompts(3), disable_tqdm=True)
    assert "batched instead" in caplog.text
    lm.language_model.forward = original
    theirs = HFLM(str(causal_model("llama")), device="cpu", dtype="float32")
    assert [a[0] for a in ours] == pytest.approx([a[0] for a in theirs.loglikelihood(instances(few_shot(12)))], abs=1e-4)
    assert replies == theirs.generate_until(prompts(3))


def test_a_model_with_other_layers_is_never_packed(causal_model, caplog: pytest.LogCaptureFixture):
    lm = W2SHF(str(causal_model("llama")), device="cpu")
    lm.language_model.config.layer_types = ["linear_attention", "full_attention"]  # type: ignore[union-attr]
    requests = lm.encode(few_shot(12))
    with caplog.at_level(logging.INFO, logger="w2s_tasks.packing"), torch.inference_mode():
        assert not scoring.plan_for(lm.language_model, requests, 256).groups
    assert "linear_attention" in caplog.text


def test_requests_without_tokens_are_errors(causal_model):
    lm = W2SHF(str(causal_model("llama")), device="cpu")
    for bad in [((1, 2), ()), ((), (1, 2)), ((1,), tuple(range(40)))]:
        with pytest.raises(ValueError, match="request 1"):
            packing.score(lm.language_model, [((1, 2), (3,)), bad], max_length=32)


def test_when_memory_runs_out_the_rest_goes_on_with_half_the_tokens(
    causal_model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    lm = W2SHF(str(causal_model("llama")), device="cpu", token_budget=512)
    expected = lm.loglikelihood(instances(few_shot(80)), disable_tqdm=True)
    model: Any = lm.language_model
    original = model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if kwargs["input_ids"].numel() > 200:
            raise torch.OutOfMemoryError("no room")
        return original(*args, **kwargs)

    forward.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]
    monkeypatch.setattr(model, "forward", forward)
    with caplog.at_level(logging.INFO, logger="w2s_tasks.packing"):
        found = lm.loglikelihood(instances(few_shot(80)), disable_tqdm=True)
    assert "going on with 128 tokens" in caplog.text
    assert [a[0] for a in found] == pytest.approx([a[0] for a in expected], abs=1e-4)
    monkeypatch.setattr(lm, "token_budget", 100)
    monkeypatch.setattr(model, "forward", lambda *a, **k: (_ for _ in ()).throw(torch.OutOfMemoryError("no room")))
    with pytest.raises(torch.OutOfMemoryError):
        lm.loglikelihood(instances(few_shot(8)), disable_tqdm=True)


# ---- gradients ------------------------------------------------------------------------------------------------------


def gradients(model: torch.nn.Module, requests: list[packing.Request], pack: bool) -> tuple[torch.Tensor, dict[str, Any]]:
    model.zero_grad()
    if pack:
        loglik = packing.score(model, requests, max_length=256).loglik
    else:
        parts = [packing.score(model, [r], max_length=256).loglik for r in requests]
        loglik = torch.cat(parts)
    weights = torch.linspace(-1, 1, len(requests), device=loglik.device)
    (loglik * weights).sum().backward()
    return loglik.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_gradients_are_the_plain_ones(causal_model, architecture: str):
    from transformers import AutoModelForCausalLM

    lm = W2SHF(str(causal_model(architecture)), device="cpu")
    requests = lm.encode(few_shot(6))
    off = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0} if architecture == "gpt2" else {}
    model = AutoModelForCausalLM.from_pretrained(causal_model(architecture), **off).train()
    packed = gradients(model, requests, pack=True)
    assert scoring.plan_for(model, requests, 256).groups, "nothing was packed"
    plain = gradients(model, requests, pack=False)
    assert torch.allclose(packed[0], plain[0], atol=1e-4)
    assert packed[1].keys() == plain[1].keys()
    for name, grad in plain[1].items():
        assert torch.allclose(packed[1][name], grad, atol=1e-3 * float(grad.abs().max()) + 1e-6), name


def test_gradient_checkpointing_changes_no_gradient(causal_model):
    from transformers import AutoModelForCausalLM

    requests = W2SHF(str(causal_model("llama")), device="cpu").encode(few_shot(6))
    model = AutoModelForCausalLM.from_pretrained(causal_model("llama")).train()
    plain = gradients(model, requests, pack=True)[1]
    model.gradient_checkpointing_enable()
    again = gradients(model, requests, pack=True)[1]
    # Not the same attention function, so equal to rounding: of numbers as large as the gradient's largest.
    assert all(torch.allclose(again[name], grad, atol=1e-5 * float(grad.abs().max())) for name, grad in plain.items())


def test_with_dropout_on_rows_are_batched_and_that_is_said_once(causal_model, caplog: pytest.LogCaptureFixture):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    lm = W2SHF(str(causal_model("llama")), device="cpu")
    requests = lm.encode(few_shot(6))
    base = AutoModelForCausalLM.from_pretrained(causal_model("llama"))
    model = get_peft_model(base, LoraConfig(lora_dropout=0.1, target_modules="all-linear")).train()
    with caplog.at_level(logging.INFO, logger="w2s_tasks.packing"):
        assert not scoring.plan_for(model, requests, 256).groups
        assert not scoring.plan_for(model, requests, 256).groups
    assert caplog.text.count("dropout is on") == 1
    assert scoring.plan_for(model.eval(), requests, 256).groups


# ---- generated text -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_decoding_replies_as_lm_evals_hf(causal_model, architecture: str):
    folder = str(causal_model(architecture))
    lm = W2SHF(folder, device="cpu", token_budget=48)
    ours = lm.generate_until(prompts(9), disable_tqdm=True)
    assert kinds_of(lm) == {masks.DENSE}
    assert ours == HFLM(folder, device="cpu", dtype="float32", batch_size=1).generate_until(prompts(9), disable_tqdm=True)
    assert len(set(ours)) > 1


def test_prompts_of_one_pack_are_decoded_together_and_single_ones_too(causal_model):
    folder = str(causal_model("llama"))
    lm, theirs = W2SHF(folder, device="cpu"), HFLM(folder, device="cpu", dtype="float32", batch_size=1)
    single = prompts(1, limit=6)
    assert lm.generate_until(single) == theirs.generate_until(single)
    assert kinds_of(lm) == {masks.DENSE}
    texts = ["a story", "dull", "Review: the film", "the plot was cold and the actor false", "Sentiment:"]
    wanted = {"until": ["\n\n"], "max_gen_toks": 6}
    apart = [Instance("generate_until", {}, (t, dict(wanted)), i, metadata=("t", i, 1)) for i, t in enumerate(texts)]
    seen = shapes_of(lm.language_model, lambda: lm.generate_until(apart))
    assert len(seen) <= 6, "prompts that share nothing still step together"
    assert lm.generate_until(apart) == theirs.generate_until(apart)


def test_a_reply_ends_at_the_stop_string_and_at_the_end_of_the_window(causal_model):
    folder = str(causal_model("llama"))
    lm, theirs = W2SHF(folder, device="cpu"), HFLM(folder, device="cpu", dtype="float32", batch_size=1)
    (reply,) = lm.generate_until(prompts(1, limit=8), disable_tqdm=True)
    stop = reply[len(reply) // 2]
    context = few_shot(1)[0][0]
    short = Instance("generate_until", {}, (context, {"until": [stop], "max_gen_toks": 8}), 0, metadata=("t", 0, 1))
    assert lm.generate_until([short]) == [reply.split(stop)[0]]
    long = Instance("generate_until", {}, (context * 9, {"until": [], "max_gen_toks": 20}), 0, metadata=("t", 0, 1))
    assert lm.generate_until([long]) == theirs.generate_until([long])


def test_a_repetition_penalty_of_the_model_is_kept(causal_model):
    folder = str(causal_model("qwen2"))
    lm, theirs = W2SHF(folder, device="cpu"), HFLM(folder, device="cpu", dtype="float32", batch_size=1)
    before = lm.generate_until(prompts(4))
    for model in (lm, theirs):
        model._model.generation_config.repetition_penalty = 1.3
    ours = lm.generate_until(prompts(4))
    assert ours == theirs.generate_until(prompts(4))
    assert ours != before


def test_sampling_goes_lm_evals_own_way(causal_model, caplog: pytest.LogCaptureFixture):
    lm = W2SHF(str(causal_model("llama")), device="cpu")
    wanted = {"until": ["\n"], "max_gen_toks": 4, "do_sample": True, "temperature": 1.5}
    with caplog.at_level(logging.INFO, logger="w2s_tasks"):
        replies = lm.generate_until([Instance("generate_until", {}, ("Review:", wanted), 0, metadata=("t", 0, 1))])
    assert len(replies) == 1
    assert "lm_eval's own way" in caplog.text


def test_greedy_is_reported_for_the_models_own_continuation(causal_model):
    lm = W2SHF(str(causal_model("llama")), device="cpu")
    context = lm.tok_encode("Review: the film")
    with torch.no_grad():
        out = lm.language_model.generate(torch.tensor([context]), max_new_tokens=3, do_sample=False, pad_token_id=0)
    own = out[0, len(context) :].tolist()
    scores = packing.score(lm.language_model, [(context, own), (context, [*own[:-1], (own[-1] + 1) % 600])], max_length=256)
    assert scores.greedy.tolist() == [True, False]
