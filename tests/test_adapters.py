"""One base with one adapter has one score, PEFT's own; the base comes back bit for bit; all else is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as tf
from bad_input import one_clear_error
from lm_eval.api.instance import Instance
from safetensors.torch import load_file, save_file

from trainers.harness.evaluate import ModelPool
from w2s_tasks.models.adapters import TAKEN
from w2s_tasks.models.packed_hf import W2SHF
from w2s_tasks.models.ref import ModelRef

SHOTS = "Review: dull and cold\nSentiment: negative\n\nReview: a brave, lovely plot\nSentiment: positive\n\n"
PAIRS = [
    (f"{SHOTS}Review: {text}\nSentiment:", f" {choice}")
    for text in ("the film was lovely", "a false and stupid actor", "warm")
    for choice in ("negative", "positive", "very positive indeed")
]
QV, FUSED = ["q_proj", "v_proj"], ["c_attn", "c_fc"]
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("llama", {"target_modules": QV}),
    "all linear": ("llama", {"target_modules": "all-linear"}),
    "a pattern": ("llama", {"target_modules": r".*layers\.1\..*(q|down)_proj"}),
    "without some": ("llama", {"target_modules": "all-linear", "exclude_modules": ["down_proj"]}),
    "one layer": ("llama", {"target_modules": QV, "layers_to_transform": [1], "layers_pattern": "layers"}),
    "ranks": ("llama", {"target_modules": QV, "rank_pattern": {"q_proj": 2}}),
    "alphas": ("llama", {"target_modules": QV, "alpha_pattern": {"v_proj": 30}}),
    "dropout": ("llama", {"target_modules": QV, "lora_dropout": 0.5}),
    "rslora": ("llama", {"target_modules": QV, "use_rslora": True}),
    "dora": ("llama", {"target_modules": QV, "use_dora": True}),
    "dora on everything": ("llama", {"target_modules": [*QV, "embed_tokens", "lm_head"], "use_dora": True}),
    "a bias of its own": ("qwen2", {"target_modules": QV, "lora_bias": True}),
    "bias all": ("qwen2", {"target_modules": ["down_proj"], "bias": "all"}),
    "bias lora_only": ("qwen2", {"target_modules": QV, "bias": "lora_only"}),
    "gaussian": ("llama", {"target_modules": QV, "init_lora_weights": "gaussian"}),
    "orthogonal": ("llama", {"target_modules": QV, "init_lora_weights": "orthogonal"}),
    "eva": ("llama", {"target_modules": QV, "init_lora_weights": "eva"}),
    "random": ("llama", {"target_modules": QV, "init_lora_weights": False}),
    "pissa": ("llama", {"target_modules": QV, "init_lora_weights": "pissa"}),
    "olora": ("llama", {"target_modules": "all-linear", "init_lora_weights": "olora"}),
    "the head trained": ("llama", {"target_modules": QV, "modules_to_save": ["lm_head"]}),
    "both embeddings trained": ("llama", {"target_modules": QV, "modules_to_save": ["embed_tokens", "lm_head"]}),
    "norms trained": ("llama", {"target_modules": QV, "modules_to_save": ["input_layernorm", "norm"]}),
    "some tokens trained": ("llama", {"target_modules": QV, "trainable_token_indices": [40, 70, 580]}),
    "embeddings": ("llama", {"target_modules": [*QV, "embed_tokens", "lm_head"]}),
    "tied embeddings": ("gemma3", {"target_modules": [*QV, "embed_tokens"]}),
    "tied head": ("gemma3", {"target_modules": [*QV, "lm_head"]}),
    "tied head trained": ("gemma3", {"target_modules": QV, "modules_to_save": ["lm_head"]}),
    "tied embeddings trained": ("gemma3", {"target_modules": QV, "modules_to_save": ["embed_tokens"]}),
    "kept tied": ("gemma3", {"target_modules": QV, "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
    "some tied tokens trained": ("gemma3", {"target_modules": QV, "trainable_token_indices": [40, 70, 580]}),
    "Conv1D": ("gpt2", {"target_modules": FUSED, "fan_in_fan_out": True}),
    "Conv1D, bias all": ("gpt2", {"target_modules": FUSED, "fan_in_fan_out": True, "bias": "all"}),
    "Conv1D, pissa": ("gpt2", {"target_modules": FUSED, "fan_in_fan_out": True, "init_lora_weights": "pissa"}),
    "experts": ("mixtral", {"target_modules": QV, "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}),
}


@pytest.fixture(scope="module")
def base(causal_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A base folder by its architecture; its embeddings are larger than its tokenizer."""
    made: dict[str, Path] = {}

    def mixtral() -> Path:
        if "mixtral" not in made:
            folder = made["mixtral"] = tmp_path_factory.mktemp("mixtral")
            config = tf.MixtralConfig(
                vocab_size=600, hidden_size=48, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
                num_key_value_heads=2, num_local_experts=4, max_position_embeddings=256,
            )  # fmt: skip
            torch.manual_seed(0)
            tf.MixtralForCausalLM(config).save_pretrained(folder)
            tf.AutoTokenizer.from_pretrained(causal_model("llama")).save_pretrained(folder)
        return made["mixtral"]

    return lambda architecture: mixtral() if architecture == "mixtral" else causal_model(architecture)


def trained(base: Path, folder: Path, **settings: Any) -> Path:
    """An adapter of a base as training would leave it: every weight that may change has changed."""
    torch.manual_seed(0)
    config = settings.pop("config", None) or peft.LoraConfig(r=4, task_type="CAUSAL_LM", **settings)
    model = peft.get_peft_model(tf.AutoModelForCausalLM.from_pretrained(base), config)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data.add_(torch.randn_like(weight) * 0.2)
    model.save_pretrained(folder)
    return folder


def scores(lm: Any) -> list[float]:
    requests = [Instance("loglikelihood", {}, pair, i, metadata=("t", i, 1)) for i, pair in enumerate(PAIRS)]
    return [score for score, _ in lm.loglikelihood(requests, disable_tqdm=True)]


@torch.no_grad()
def scores_by_peft(lm: W2SHF, base: Path, folder: Path) -> list[float]:
    """Row by row, by PEFT and transformers alone."""
    model = peft.PeftModel.from_pretrained(tf.AutoModelForCausalLM.from_pretrained(base), folder).eval()
    found = []
    for context, continuation in (lm._encode_pair(*pair) for pair in PAIRS):
        logprobs = model(torch.tensor([[*context, *continuation]])).logits[0].log_softmax(-1)
        found.append(sum(float(logprobs[len(context) - 1 + k, token]) for k, token in enumerate(continuation)))
    return found


@pytest.mark.parametrize("case", CASES)
def test_either_way_of_loading_gives_pefts_scores_and_the_base_comes_back(
    case: str, base: Callable[[str], Path], tmp_path: Path
):
    architecture, settings = CASES[case]
    assert len(tf.AutoTokenizer.from_pretrained(base(architecture))) < 600
    folder = trained(base(architecture), tmp_path / "adapter", **settings)
    lm = W2SHF(str(base(architecture)), device="cpu")
    before = {name: weight.clone() for name, weight in lm.language_model.state_dict().items()}
    modules = {name: id(module) for name, module in lm.language_model.named_modules()}
    bare = scores(lm)
    expected = scores_by_peft(lm, base(architecture), folder)
    assert max(abs(a - b) for a, b in zip(expected, bare, strict=True)) > 0.05

    lm.use_adapter(folder)
    assert scores(lm) == pytest.approx(expected, abs=1e-4)
    loaded_with_it = W2SHF(str(base(architecture)), peft=str(folder), device="cpu")
    assert scores(loaded_with_it) == scores(lm)

    for changed in (lm, loaded_with_it):
        changed.use_adapter(None)
        after = changed.language_model.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert scores(changed) == bare
    assert {name: id(module) for name, module in lm.language_model.named_modules()} == modules


def test_every_option_that_is_taken_is_tested():
    bookkeeping = set(list(TAKEN)[list(TAKEN).index("peft_type") :])
    tested = {"r", "lora_alpha"} | {option for _, settings in CASES.values() for option in settings}
    assert tested == set(TAKEN) - bookkeeping
    for option in ("bias", "init_lora_weights"):
        values = {settings[option] for _, settings in CASES.values() if option in settings}
        assert values | {None, True, "none"} >= set(TAKEN[option] or ())


def test_adapters_one_after_the_other_leave_nothing_to_each_other(base: Callable[[str], Path], tmp_path: Path):
    folder = base("qwen2")
    settings = [{"bias": "all"}, {"init_lora_weights": "olora"}, {"modules_to_save": ["lm_head"]}, {}]
    adapters = [trained(folder, tmp_path / str(i), target_modules=QV, **s) for i, s in enumerate(settings)]
    pool = ModelPool()
    refs = [ModelRef("w2s-hf", {"pretrained": str(folder), "device": "cpu", "peft": str(a)}) for a in adapters]
    found = [scores(pool.load(ref)) for ref in refs]
    assert found == [scores(W2SHF(str(folder), peft=str(a), device="cpu")) for a in adapters]


# ---- refused ----------------------------------------------------------------------------------------------------------


def kinds() -> list[str]:
    """Every kind of adapter that this version of PEFT knows but LoRA."""
    return sorted(kind.value for kind in peft.PeftType if kind.value != "LORA")


@pytest.mark.parametrize("kind", kinds())
def test_every_other_kind_is_refused_by_name(kind: str, base: Callable[[str], Path], tmp_path: Path):
    folder = trained(base("llama"), tmp_path / "adapter", target_modules=QV)
    change(folder, peft_type=kind)
    one_clear_error(lambda: W2SHF(str(base("llama")), peft=str(folder), device="cpu"), f"peft_type = '{kind}' is not taken")


def change(folder: Path, **values: object) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("init_lora_weights", "pissa_niter_4"),
        ("init_lora_weights", "corda"),
        ("init_lora_weights", "loftq"),
        ("init_lora_weights", "lora_ga"),
        ("init_lora_weights", "mica"),
        ("alora_invocation_tokens", [1, 2]),
        ("alora_invocation_tokens", []),
        ("layer_replication", [[0, 2], [1, 2]]),
        ("use_qalora", True),
        ("arrow_config", {"top_k": 2}),
        ("use_bdlora", {"nblocks": 2}),
        ("megatron_config", {"a": 1}),
        ("task_type", "SEQ_CLS"),
        ("bias", "some"),
        ("an_option_of_a_later_peft", 0.5),
    ],
)
def test_an_option_that_is_not_taken_is_refused_by_name(
    option: str, value: object, base: Callable[[str], Path], tmp_path: Path
):
    folder = trained(base("llama"), tmp_path / "adapter", target_modules=QV)
    change(folder, **{option: value})
    one_clear_error(lambda: W2SHF(str(base("llama")), peft=str(folder), device="cpu"), f"{option} = .* is not taken")


def without(part: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        file = folder / "adapter_model.safetensors"
        tensors = {k: v for k, v in load_file(file).items() if part not in k}
        save_file(tensors, file, metadata={"format": "pt"})

    return damage


def with_more_rows(folder: Path) -> None:
    """As after tokens were added to the base."""
    file = folder / "adapter_model.safetensors"
    tensors = {k: torch.cat([v, v[:8]]) if "lm_head" in k or "embed" in k else v for k, v in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})


def a_stranger(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    save_file(load_file(file) | {"base_model.model.model.layers.7.bias": torch.ones(2)}, file, metadata={"format": "pt"})


def renamed(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "model.safetensors")


DAMAGED: dict[str, tuple[dict[str, Any], Callable[[Path], None], str]] = {
    "a bias is missing": ({"bias": "all"}, without("k_proj.bias"), "does not fit the base"),
    "the trained head is missing": ({"modules_to_save": ["lm_head"]}, without("lm_head"), "could not load|does not fit"),
    "a magnitude is missing": ({"use_dora": True}, without("layers.0.self_attn.q_proj.lora_magnitude"), "does not fit"),
    "a tensor of nothing": ({}, a_stranger, r"does not fit the base .*layers\.7\.bias"),
    "tokens were added, head": ({"modules_to_save": ["lm_head"]}, with_more_rows, "Where tokens were added"),
    "no weights": (
        {},
        lambda f: (f / "adapter_model.safetensors").rename(f / "w.safetensors") and None,
        "holds no adapter_m",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_an_adapter_that_is_not_wholly_taken_up_is_refused_and_the_base_is_whole(
    case: str, base: Callable[[str], Path], tmp_path: Path
):
    settings, damage, message = DAMAGED[case]
    folder = trained(base("qwen2"), tmp_path / "adapter", target_modules=QV, **settings)
    damage(folder)
    lm = W2SHF(str(base("qwen2")), device="cpu")
    before = scores(lm)
    one_clear_error(lambda: lm.use_adapter(folder), message, names="adapter")
    assert scores(lm) == before
    assert not isinstance(lm.language_model, peft.PeftModel)


def test_an_adapter_of_a_deeper_base_is_refused_whatever_its_kind(base: Callable[[str], Path], tmp_path: Path):
    deep = tmp_path / "deep"
    config = tf.AutoConfig.from_pretrained(base("llama"), num_hidden_layers=4)
    tf.AutoModelForCausalLM.from_config(config).save_pretrained(deep)
    made = [
        peft.LoHaConfig(r=4, target_modules=QV),
        peft.VeraConfig(r=4, target_modules=QV),
        peft.IA3Config(target_modules=QV, feedforward_modules=[]),
        peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
        peft.LoraConfig(r=4, target_modules=QV),
        peft.LoraConfig(r=4, target_modules=QV, modules_to_save=["input_layernorm"]),
        peft.LoraConfig(r=4, target_modules=["down_proj"], trainable_token_indices=[3]),
    ]
    for i, config in enumerate(made):
        folder = trained(deep, tmp_path / str(i), config=config)
        one_clear_error(lambda: W2SHF(str(base("llama")), peft=str(folder), device="cpu"), "not taken|fit the base|not load")  # noqa: B023


def test_peft_and_delta_together_are_refused(base: Callable[[str], Path], tmp_path: Path):
    folder = trained(base("llama"), tmp_path / "adapter", target_modules=QV)
    delta = str(base("llama"))
    one_clear_error(
        lambda: W2SHF(str(base("llama")), peft=str(folder), delta=delta, device="cpu"), "can't be given together"
    )


# ---- a tokenizer larger than the embeddings --------------------------------------------------------------------------


@pytest.fixture
def small_embeddings(base: Callable[[str], Path], tmp_path: Path) -> Path:
    """A base whose tokenizer has learnt tokens that its embeddings lack."""
    folder = tmp_path / "small"
    shutil.copytree(base("llama"), folder)
    tokenizer = tf.AutoTokenizer.from_pretrained(folder)
    model = tf.AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folder)
    return folder


def test_a_tokenizer_larger_than_the_embeddings_changes_no_score(small_embeddings: Path, tmp_path: Path):
    folder = trained(small_embeddings, tmp_path / "adapter", target_modules=QV)
    lm = W2SHF(str(small_embeddings), peft=str(folder), device="cpu")
    assert scores(lm) == pytest.approx(scores_by_peft(lm, small_embeddings, folder), abs=1e-4)


def test_a_token_without_an_embedding_is_one_clear_error(small_embeddings: Path):
    lm = W2SHF(str(small_embeddings), device="cpu")
    request = Instance("loglikelihood", {}, ("Review: <new>\nSentiment:", " positive"), 0, metadata=("t", 0, 1))
    one_clear_error(lambda: lm.loglikelihood([request], disable_tqdm=True), "'<new>'.*no embedding")
    one_clear_error(lambda: lm.tokenize(["<new>"]), "'<new>'.*no embedding")
