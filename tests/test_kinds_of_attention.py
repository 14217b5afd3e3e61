"""Whatever a model's layers see, and wherever its positions come from: w2s-hf answers and trains as the plain model does."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from test_packing import few_shot, instances, zero_shot

from w2s_tasks import packing
from w2s_tasks.models.packed_hf import W2SHF
from w2s_tasks.packing import scoring, trial
from w2s_tasks.packing.regimes import positions_of

SIZE: dict[str, Any] = {
    "vocab_size": 600,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GROUPED: dict[str, Any] = {**SIZE, "num_key_value_heads": 2}
OLD: dict[str, Any] = {"vocab_size": 600, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
SHORT, LONG = [1.0] * 4, [1.0, 5.0, 9.0, 13.0]
MIXED = ["sliding_attention", "full_attention"] * 2


def local(window: int, positions: int = 512) -> tf.PretrainedConfig:
    """GPT-Neo: every second layer sees so many places of the row back, whatever the positions say."""
    sizes = {"vocab_size": 600, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 48}
    ends = {"bos_token_id": 1, "eos_token_id": 2}
    no_dropout = {"resid_dropout": 0.0, "embed_dropout": 0.0, "attention_dropout": 0.0}
    return tf.GPTNeoConfig(
        **sizes,
        **ends,
        **no_dropout,
        window_size=window,
        attention_types=[[["global", "local"], 1]],
        max_position_embeddings=positions,
    )


def rope(kind: str, **settings: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": 10_000.0, **settings}


def longrope(switch: int) -> dict[str, Any]:
    factors = {"short_factor": SHORT, "long_factor": LONG, "factor": 8.0}
    return rope("longrope", original_max_position_embeddings=switch, **factors)


CONFIGS: dict[str, Callable[[], tf.PretrainedConfig]] = {
    "gpt_neo": lambda: local(12),
    "mistral": lambda: tf.MistralConfig(**GROUPED, sliding_window=12),
    "qwen2": lambda: tf.Qwen2Config(**GROUPED, use_sliding_window=True, sliding_window=12, max_window_layers=2),
    "gemma2": lambda: tf.Gemma2Config(**GROUPED, head_dim=8, sliding_window=12, layer_types=MIXED),
    "cohere2": lambda: tf.Cohere2Config(**GROUPED, sliding_window=12, layer_types=MIXED),
    "phi3": lambda: tf.Phi3Config(**GROUPED, sliding_window=12),
    "llama4": lambda: tf.Llama4TextConfig(
        **GROUPED, head_dim=8, attention_chunk_size=12, num_local_experts=2, intermediate_size_mlp=48
    ),
    "falcon": lambda: tf.FalconConfig(**SIZE, alibi=True, new_decoder_architecture=False),
    "bloom": lambda: tf.BloomConfig(vocab_size=600, hidden_size=32, n_layer=2, n_head=4, eos_token_id=2),
    "mpt": lambda: tf.MptConfig(vocab_size=600, d_model=32, n_layers=2, n_heads=4, max_seq_len=512),
    "gptj": lambda: tf.GPTJConfig(**OLD, **NO_DROPOUT, n_embd=32, n_positions=512, rotary_dim=8),
    "opt": lambda: tf.OPTConfig(
        vocab_size=600,
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        word_embed_proj_dim=32,
        dropout=0.0,
    ),
    "mamba": lambda: tf.MambaConfig(vocab_size=600, hidden_size=32, state_size=8, num_hidden_layers=2),
    "recurrent_gemma": lambda: tf.RecurrentGemmaConfig(**GROUPED, lru_width=32, attention_window_size=12),
    "lfm2": lambda: tf.Lfm2Config(**GROUPED, layer_types=["conv", "full_attention"] * 2),
    "bert": lambda: tf.BertConfig(**SIZE, is_decoder=True, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
    "longrope": lambda: tf.Phi3Config(**GROUPED, sliding_window=None, rope_parameters=longrope(64)),
}
Make = Callable[[Any], Path]


@pytest.fixture(scope="module")
def make(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A folder with a random model of a configuration, or of one of `CONFIGS`."""
    made: dict[str, Path] = {}

    def folder_of(wanted: str | tf.PretrainedConfig) -> Path:
        name = wanted if isinstance(wanted, str) else repr(wanted)
        if name not in made:
            torch.manual_seed(0)
            folder = tmp_path_factory.mktemp("model")
            model = tf.AutoModelForCausalLM.from_config(CONFIGS[wanted]() if isinstance(wanted, str) else wanted)
            for p in model.parameters():
                if p.dim() > 1:
                    p.data.mul_(3)  # so that what a layer sees makes a difference
            model.save_pretrained(folder)
            tf.AutoTokenizer.from_pretrained(tokenizer_folder, model_max_length=512).save_pretrained(folder)
            made[name] = folder
        return made[name]

    return folder_of


def both(folder: Path) -> tuple[W2SHF, HFLM]:
    return W2SHF(str(folder), device="cpu"), HFLM(str(folder), device="cpu", dtype="float32", batch_size=1)


def asked(contexts: list[str], limit: int) -> list[Instance]:
    wanted = {"until": ["\n\n"], "max_gen_toks": limit, "do_sample": False}
    return [Instance("generate_until", {}, (c, dict(wanted)), i, metadata=("t", i, 1)) for i, c in enumerate(contexts)]


def plain_scores(model: torch.nn.Module, requests: list[packing.Request]) -> torch.Tensor:
    """Every continuation's log-likelihood, each by a forward pass of its own, written as simply as can be."""
    found: list[torch.Tensor] = []
    for context, continuation in requests:
        row = torch.tensor([[*context, *continuation][:-1]])
        logprobs = model(input_ids=row, use_cache=False).logits[0].float().log_softmax(-1)
        found.append(logprobs[-len(continuation) :].gather(1, torch.tensor(continuation)[:, None]).sum())
    return torch.stack(found)


@pytest.mark.parametrize("name", CONFIGS)
def test_scores_and_replies_are_those_of_hf_one_row_at_a_time(make: Make, name: str):
    """Behind shots that every window is smaller than, and without, where rows of a pack stand further apart than it."""
    ours, theirs = both(make(name))
    for pairs in (few_shot(8), zero_shot(24)):
        for mine, wanted in zip(ours.loglikelihood(instances(pairs)), theirs.loglikelihood(instances(pairs)), strict=True):
            assert mine[0] == pytest.approx(wanted[0], abs=1e-4)
            assert mine[1] == wanted[1]
    contexts = [context for context, _ in [*few_shot(3)[::3], *zero_shot(3)[::3]]]
    assert ours.generate_until(asked(contexts, 12)) == theirs.generate_until(asked(contexts, 12))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_training_step_has_the_losses_and_gradients_of_plain_passes(make: Make, name: str):
    folder = make(name)
    requests = W2SHF(str(folder), device="cpu").encode([*zero_shot(12), *few_shot(2)])
    model = tf.AutoModelForCausalLM.from_pretrained(folder).train()
    trained = [p for p in model.parameters() if p.dim() > 1]
    weights = torch.linspace(-1, 1, len(requests))
    packed = packing.score(model, requests, max_length=512).loglik
    plain = plain_scores(model, requests)
    assert torch.allclose(packed, plain, atol=1e-4)
    ours, theirs = (torch.autograd.grad((s * weights).sum(), trained, allow_unused=True) for s in (packed, plain))
    largest = max(float(grad.abs().max()) for grad in theirs if grad is not None)
    for mine, wanted in zip(ours, theirs, strict=True):
        assert (mine is None) == (wanted is None)
        assert mine is None or torch.allclose(mine, wanted, atol=1e-4 * largest)
    assert all(p.grad is None for p in model.parameters())


# ---- windows --------------------------------------------------------------------------------------------------------


def rows(lengths: list[int], shared: int) -> list[packing.Request]:
    """Texts of these lengths, the first tokens shared by all, with a continuation of two tokens."""
    made = torch.Generator().manual_seed(1)
    words = torch.randint(20, 500, (shared + sum(lengths),), generator=made).tolist()
    requests: list[packing.Request] = []
    for i, length in enumerate(lengths):
        start = shared + sum(lengths[:i])
        requests.append((tuple(words[:shared] + words[start : start + length - shared]), (7 + i, 9)))
    return requests


def scored(model: torch.nn.Module, requests: list[packing.Request], budget: int | None = None) -> torch.Tensor:
    with torch.inference_mode():
        return packing.score(model, requests, max_length=512, budget=budget).loglik.clone()


def plainly(model: torch.nn.Module, requests: list[packing.Request]) -> torch.Tensor:
    with torch.inference_mode():
        return plain_scores(model, requests).clone()


def test_a_window_that_only_later_and_longer_packs_cross_is_noticed_then(make: Make, caplog: pytest.LogCaptureFixture):
    """Short texts in a short pack first; then as many that their row is longer than the window, and than the model's own."""
    model = tf.AutoModelForCausalLM.from_pretrained(make(local(100, positions=128)))
    few, many = rows([20] * 3, 8), rows([20] * 40, 8)
    assert torch.allclose(scored(model, few), plainly(model, few), atol=1e-4)
    assert scoring.plan_for(model, few, 128).groups
    assert torch.allclose(scored(model, many), plainly(model, many), atol=1e-4)
    assert not scoring.plan_for(model, many, 128).groups
    assert caplog.text.count("can't be packed") == 1


def test_a_window_that_no_setting_names_is_found_in_the_rules_of_the_masks(make: Make, monkeypatch: pytest.MonkeyPatch):
    from transformers.masking_utils import create_causal_mask, sliding_window_overlay
    from transformers.models.llama import modeling_llama

    def windowed(**inputs: Any) -> Any:
        return create_causal_mask(**inputs, and_mask_function=sliding_window_overlay(90))

    monkeypatch.setattr(modeling_llama, "create_causal_mask", windowed)
    model = tf.AutoModelForCausalLM.from_pretrained(make(tf.LlamaConfig(**GROUPED)))
    short, long = rows([40] * 4, 30), rows([140] * 4, 120)
    assert torch.allclose(scored(model, short), plainly(model, short), atol=1e-4)
    assert trial.known(model).driven
    assert scoring.plan_for(model, short, 512).groups
    assert torch.allclose(scored(model, long), plainly(model, long), atol=1e-4)
    assert not scoring.plan_for(model, long, 512).groups


def test_masks_tell_that_llamas_layers_see_everything_so_that_longer_rows_need_no_new_trial(make: Make):
    model = tf.AutoModelForCausalLM.from_pretrained(make(tf.LlamaConfig(**GROUPED)))
    scored(model, rows([30] * 4, 20))
    seen: list[torch.Size] = []
    model.register_forward_pre_hook(lambda _, args, named: seen.append(named["input_ids"].shape), with_kwargs=True)
    long = rows([300] * 3, 250)
    found = scored(model, long)
    assert seen == [torch.Size([1, 250 + 3 * 51])]
    assert torch.allclose(found, plainly(model, long), atol=1e-4)


def test_a_model_that_declares_its_window_is_tried_beyond_it_and_packed(make: Make):
    model = tf.AutoModelForCausalLM.from_pretrained(make(tf.MistralConfig(**GROUPED, sliding_window=90)))
    seen: list[int] = []
    model.register_forward_pre_hook(lambda _, args, named: seen.append(named["input_ids"].shape[1]), with_kwargs=True)
    long = rows([140] * 4, 120)
    found = scored(model, long)
    assert max(seen[:-1]) > 90
    assert scoring.plan_for(model, long, 512).groups
    assert torch.allclose(found, plainly(model, long), atol=1e-4)


def test_what_can_not_be_packed_is_told_once(make: Make, caplog: pytest.LogCaptureFixture):
    ours, _ = both(make("gpt_neo"))
    with caplog.at_level(logging.WARNING, logger="w2s_tasks"):
        ours.loglikelihood(instances(few_shot(4)))
        ours.loglikelihood(instances(zero_shot(4)))
        ours.generate_until(asked(["Review: the film"], 4))
        packing.score(ours.language_model, ours.encode(few_shot(2)), max_length=512)
    assert [r.message.count("can't be packed") for r in caplog.records] == [1]


def test_rows_that_look_ahead_are_run_one_at_a_time(make: Make, caplog: pytest.LogCaptureFixture):
    """A BERT as it is, without its decoder's mask, and trained: its modules' modes and the random numbers stay."""
    model = tf.AutoModelForCausalLM.from_pretrained(make("bert"), is_decoder=False).train()
    requests = rows([30, 20, 12, 6], 4)
    state = torch.random.get_rng_state()
    found = packing.score(model, requests, max_length=512).loglik
    assert torch.allclose(found, plain_scores(model, requests), atol=1e-4)
    assert "one at a time" in caplog.text
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_where_padding_counts_only_in_longer_texts_rows_are_run_one_at_a_time_too(make: Make):
    """Sparse attention: the keys that a token sees are chosen among all that stand there, from 12 tokens on."""
    sparse = getattr(tf, "DeepseekV32Config", None)
    if sparse is None:
        pytest.skip("needs a transformers with DeepSeek V3.2")
    sizes = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
    experts = {"moe_intermediate_size": 32, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
    index = {"index_topk": 12, "index_head_dim": 8, "index_n_heads": 2}
    config = sparse(**{**SIZE, "num_hidden_layers": 2}, **sizes, **experts, **index, first_k_dense_replace=1)
    model = tf.AutoModelForCausalLM.from_pretrained(make(config))
    for requests in (rows([10, 9, 8, 6], 2), rows([60, 58, 50, 45, 40, 30, 20], 4)):
        assert torch.allclose(scored(model, requests), plainly(model, requests), atol=1e-4)


# ---- positions that follow the length ---------------------------------------------------------------------------------

FOLLOWING: dict[str, Callable[[], tf.PretrainedConfig]] = {
    "phi3, longrope": CONFIGS["longrope"],
    "llama, longrope": lambda: tf.LlamaConfig(**GROUPED, rope_parameters=longrope(64)),
    "llama, dynamic": lambda: tf.LlamaConfig(
        **{**GROUPED, "max_position_embeddings": 64}, rope_parameters=rope("dynamic", factor=4.0)
    ),
    "phimoe, longrope": lambda: tf.PhimoeConfig(
        **GROUPED,
        num_local_experts=2,
        rope_parameters={**longrope(64), "short_mscale": 1.0, "long_mscale": 1.4},
    ),
}


@pytest.mark.parametrize("name", FOLLOWING)
def test_a_row_has_one_score_and_one_reply_whatever_stands_beside_it(make: Make, name: str):
    """Rows on both sides of a switch at 64 tokens; each is asked alone of a model that was loaded for it."""
    folder = make(FOLLOWING[name]())

    def fresh() -> Any:
        return tf.AutoModelForCausalLM.from_pretrained(folder)

    requests = [*rows([50, 58, 64, 65, 66, 90, 90, 140], 40), *rows([70, 80, 90], 66)]
    alone = torch.stack([plainly(fresh(), [request])[0] for request in requests])
    model = fresh()
    backwards = scored(model, requests[::-1], budget=600).flip(0)
    assert torch.allclose(backwards, alone, atol=1e-4)
    assert torch.allclose(scored(model, requests[:3]), alone[:3], atol=1e-4)
    assert scoring.plan_for(model, requests[:3], 512).groups, "short rows share their beginning all the same"
    assert torch.allclose(packing.score(model, requests, max_length=512).loglik, alone, atol=1e-4)

    prompts = [requests[i][0] for i in (7, 0, 1, 3, 5)]
    expected: list[list[int]] = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        out = fresh().generate(ids, attention_mask=torch.ones_like(ids), max_length=len(prompt) + 12, do_sample=False)
        expected.append(out[0, len(prompt) :].tolist())
    replies = packing.generate(model, prompts, limit=12, finished=lambda text: text[-1] == 2)
    assert replies == expected


def test_lm_evals_own_way_runs_such_a_model_one_row_at_a_time(make: Make):
    """Requests that packed decoding can't follow, at the batch size that the user asked for."""
    folder = make(FOLLOWING["llama, longrope"]())
    contexts = [context for context, _ in [few_shot(1)[0], zero_shot(1)[0]]]
    wanted = {"until": ["\n\n"], "max_gen_toks": 8, "do_sample": False, "num_beams": 2}
    beams = [Instance("generate_until", {}, (c, dict(wanted)), i, metadata=("t", i, 1)) for i, c in enumerate(contexts)]
    ours = W2SHF(str(folder), device="cpu", batch_size=2)
    assert ours.generate_until(beams) == HFLM(str(folder), device="cpu", dtype="float32", batch_size=1).generate_until(beams)
    assert ours.batch_size == 2


def test_tables_of_ordinary_models_follow_no_length(make: Make):
    for config in (tf.LlamaConfig(**GROUPED), tf.LlamaConfig(**GROUPED, rope_parameters=rope("linear", factor=2.0))):
        assert not positions_of(tf.AutoModelForCausalLM.from_pretrained(make(config))).adaptive
