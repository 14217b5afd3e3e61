"""How many tokens go through the model at once: what the device does best, less where its memory is small.

The memory that counts is all of the device's, not what happens to be free: a command that is run again, or goes on after a
kill, then cuts its work in the same way and computes the same to the last bit. Where the estimate is too high, a GPU says
so, and the work goes on with half the tokens (`scoring`) or with gradient checkpointing (`trainers.training.loop`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from w2s_tasks import machine
from w2s_tasks.packing import masks

BATCH_TOKENS = {"cpu": 256, "cuda": 16_384}
PACK_TOKENS = {"cpu": 1024, "cuda": 4096}
DECODING_TOKENS = {"cpu": 1024, "cuda": 8192}
"""Of prompts decoded side by side; more than for scoring, because a step costs about the same for one prompt as for many."""
TRAIN_TOKENS = {"cpu": 1024, "cuda": 8192}
"""In training the trunk is part of the row, so a pack has to hold a whole micro-batch to share it."""
LEAST_TOKENS = 64
"""Where even so few tokens don't fit the memory, the model is too large for the device."""
USABLE = {"cpu": 0.5}
"""Share of a device's memory that this process may fill, by default `USABLE_BY_DEFAULT`; on a CPU others live there too."""
USABLE_BY_DEFAULT = 0.85


@dataclass(frozen=True)
class Budget:
    """Tokens of one forward pass: of a pack beyond its trunk, and of a padded batch."""

    in_pack: int
    in_batch: int

    def half(self) -> Budget:
        """Half as many."""
        return Budget(self.in_pack // 2, self.in_batch // 2)


def memory_of(device: torch.device) -> int:
    """A device's whole memory in bytes; of a CPU's what a container may fill."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory())
    return machine.memory()


def room_on(device: torch.device, model: torch.nn.Module) -> float:
    """Bytes that are left for a pass beside the weights that lie on the device."""
    weights = sum(p.nbytes for p in model.parameters() if p.device == device)
    return USABLE.get(device.type, USABLE_BY_DEFAULT) * memory_of(device) - weights


def _size(config: Any, name: str, default: int) -> int:
    """A size of an architecture, the largest where its layers differ; the default where it has no such thing."""
    try:
        value = getattr(config, name, None) or default
    except RuntimeError:  # transformers has no one answer where each layer has a configuration of its own
        value = [getattr(layer, name) for layer in config.per_layer_config]
    return int(max(value)) if isinstance(value, list | tuple) else int(value)


def token_bytes(model: torch.nn.Module) -> int:
    """Bytes that a token takes at most while it is run, activations and logits; with gradients, until the pass back.

    Counted from the configuration for a layer of attention and a gated MLP, as if every token were scored.
    """
    config = masks.text_config(model)
    size = next(model.parameters()).element_size()
    hidden, layers = _size(config, "hidden_size", 4096), _size(config, "num_hidden_layers", 32)
    wide, vocabulary = _size(config, "intermediate_size", 4 * hidden), _size(config, "vocab_size", 2**17)
    heads = _size(config, "num_attention_heads", 1)
    keys_and_values = 2 * hidden * _size(config, "num_key_value_heads", heads) // heads
    one_layer = 8 * hidden + 3 * wide
    logits = vocabulary * (size + 8)  # as they come, in float32, and their log-softmax
    if not torch.is_grad_enabled():
        return size * (one_layer + layers * keys_and_values) + logits
    kept = layers * (hidden if masks.recomputes(model) else 12 * hidden + 4 * wide)
    return size * (one_layer + kept) + logits + 4 * vocabulary


def fits(tokens: int, model: torch.nn.Module, device: torch.device) -> bool:
    """Whether a pass of so many tokens fits the device's memory."""
    return tokens * token_bytes(model) <= room_on(device, model)


def fitting(most: int, model: torch.nn.Module, device: torch.device) -> int:
    """`most` tokens, halved until a pass of so many fits the device's memory."""
    while most >= 2 * LEAST_TOKENS and not fits(most, model, device):
        most //= 2
    return most


def find_budget(model: torch.nn.Module, device: torch.device, asked: int | None = None) -> Budget:
    """Tokens of a pass: as many as were asked for, else what is fast on the device and fits its memory.

    With gradients a pack is as large as it may be all the same: its parts would be kept together until the pass back. What
    limits the memory there is `part_tokens`.
    """
    if asked:
        return Budget(asked, asked)
    kind = device.type
    if torch.is_grad_enabled():
        return Budget(TRAIN_TOKENS.get(kind, 1024), BATCH_TOKENS.get(kind, 4096))
    in_pack, in_batch = PACK_TOKENS.get(kind, 1024), BATCH_TOKENS.get(kind, 4096)
    return Budget(fitting(in_pack, model, device), fitting(in_batch, model, device))


def part_tokens(model: torch.nn.Module, device: torch.device) -> int:
    """Tokens whose activations a training step keeps at once where rows share little; fewer would only cost speed."""
    return fitting(TRAIN_TOKENS.get(device.type, 1024), model, device)


def decoding_tokens(model: torch.nn.Module, device: torch.device) -> int:
    """Tokens of the prompts that are decoded side by side."""
    return fitting(DECODING_TOKENS.get(device.type, 1024), model, device)
