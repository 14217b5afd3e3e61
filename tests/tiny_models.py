"""A tiny random model of any architecture that transformers has: its own configuration with every size made small."""

from __future__ import annotations

import inspect
import re
from typing import Any

import torch
import transformers as tf
from transformers.models.auto import modeling_auto as auto

VOCABULARY = 600
WINDOW = 24
"""Of layers that see a part of the text only, in tokens."""
SIZES: list[tuple[str, int]] = [
    (r"(\w+_)?vocab_size(_\w+)?", VOCABULARY),
    (r"max_position_embeddings|n_positions|max_seq_len|n_ctx|max_target_positions|max_source_positions", 256),
    (r"hidden_size|d_model|n_embd|dim|model_dim|embed_dim|emb_dim|hidden_dim|word_embed_proj_dim|dim_model", 64),
    (r"embedding_size|bottleneck_size|input_embedding_size|embedding_dim|hidden_size_per_layer_input|laurel_rank", 64),
    (r"(num_attention_heads|n_heads?|num_heads|(en|de)coder_attention_heads|num_(en|de)coder_attention_heads)", 4),
    (r"num_key_value_heads|n_head_kv|num_kv_heads|(en|de)coder_key_value_heads|num_global_key_value_heads", 2),
    (r"(global_)?head_dim|d_kv|attention_head_dim|dim_head", 16),
    (r"num_hidden_layers|n_layers?|num_layers|(en|de)coder_layers|num_(en|de)coder_layers|num_blocks", 4),
    (r"\w*intermediate_size\w*|ffn_dim|d_ff|d_inner|ffn_hidden_size|(en|de)coder_ffn_dim|dim_ff|n_inner|d_intermediate", 64),
    (r"num_(local_)?experts|n_routed_experts|num_routed_experts|moe_num_experts", 4),
    (r"num_experts_per_tok(en)?|moe_topk|moe_k|num_experts_per_token|top_k_experts|moe_top_k", 2),
    (r"n_shared_experts|num_shared_experts|n_group|topk_group|first_k_dense_replace|moe_num_shared_experts", 1),
    (r"q_lora_rank|kv_lora_rank|o_lora_rank|v_head_dim|index_head_dim", 16),
    (r"qk_rope_head_dim|qk_nope_head_dim|qk_head_dim", 16),
    (r"sliding_window|window_size|attention_window_size|local_window_size|attention_chunk_size", WINDOW),
    (r"sliding_window_pattern|_sliding_window_pattern|layer_group_size|full_attention_interval|attn_layer_period", 2),
    (r"\w*(state_size|d_state)|time_step_rank", 8),
    (r"linear_(num_)?(key|value|num_key|num_value)_heads?|linear_num_(key|value)_heads", 2),
    (r"linear_(key|value)_head_dim", 16),
    (r"num_kv_shared_layers", 0),
]
"""What an attribute of this name is set to, where it is a whole number by default."""


LATENT = {"num_key_value_heads": 4}
"""Multi-head latent attention has as many keys as queries."""
HYBRID = {"layer_types": ["mamba", "attention", "mamba", "attention"]}
ROPE = {"rope_type": "default", "rope_theta": 1e4}
OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(["axk1", "axk2", "deepseek_v3", "deepseek_v32", "dots3_note"], LATENT),
    **dict.fromkeys(["dots3_note_text", "glm4_moe_lite", "glm_moe_dsa", "minicpm3", "youtu"], LATENT),
    "bailing_hybrid": {**LATENT, "num_expert_group": 1, "topk_group": 1},
    "blenderbot": {"encoder_layers": 4},
    "cohere_compass_text": {"rope_parameters": dict.fromkeys(["full_attention", "sliding_attention"], ROPE)},
    "deepseek_v2": {**LATENT, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    "bamba": {"attn_layer_indices": [1, 3]},
    "esm": {"vocab_size": VOCABULARY, "position_embedding_type": "absolute", "mask_token_id": 5},
    "codegen": {"rotary_dim": 8},
    "gptj": {"rotary_dim": 8},
    "emu3": {"pad_token_id": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": HYBRID,
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "gemma3n_text": {
        "intermediate_size": 64, "activation_sparsity_pattern": [0.95, 0.0, 0.0, 0.0], "num_kv_shared_layers": 1,
    },
    "gemma4_assistant": {"hidden_size_per_layer_input": 0},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "longformer": {"attention_window": 16},
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 1},
    "ministral": {"head_dim": 16},
    "nemotron": {"head_dim": 16, "num_key_value_heads": 2},
    "xmod": {"default_language": "en_XX"},
    "zamba2": {"layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"], "hybrid_layer_ids": [1, 3]},
}  # fmt: skip
"""What small sizes need besides, to be consistent."""


def shrunk(config: Any) -> dict[str, Any]:
    """Small values for those of a configuration's attributes that are sizes."""
    found: dict[str, Any] = {}
    for name, value in config.to_dict().items():
        if isinstance(value, int) and not isinstance(value, bool):
            size = next((size for pattern, size in SIZES if re.fullmatch(pattern, name)), None)
            if size is not None:
                found[name] = min(value, size) if value > 0 else value
    return found


SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def values_of(kind: str, default: Any) -> dict[str, Any]:
    """Small values for a default configuration of a kind, and for its parts of text, pictures or sound."""
    parts = {
        name: part.__class__(**values_of(part.model_type, part))
        for name in getattr(default, "sub_configs", {})
        if isinstance(part := getattr(default, name, None), tf.PreTrainedConfig)
    }
    known = set(inspect.signature(default.__class__).parameters) | set(default.to_dict())
    special = {name: token for name, token in SPECIAL.items() if name in known}
    return {**shrunk(default), **special, **parts, **OWN.get(kind, {})}


def tiny_config(kind: str, **own: Any) -> Any:
    """A small configuration of a kind of model (`model_type`), with `own` values over it."""
    cls = tf.CONFIG_MAPPING[kind]
    return cls(**{**values_of(kind, cls()), **own})


def tiny_model(head: Any, config: Any, *, scale: float = 1.0) -> Any:
    """A random model with a head; its weights times `scale`, so that scores differ clearly."""
    torch.manual_seed(0)
    model = head.from_config(config)
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.data.mul_(scale)
    return model.eval()


def causal_models() -> list[str]:
    """Every kind of model that transformers has a causal language model of."""
    return sorted(auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def sequence_classifiers() -> list[str]:
    """Every kind of model that transformers has a sequence classifier of."""
    return sorted(auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES)
