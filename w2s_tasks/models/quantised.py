"""4-bit and 8-bit bases by bitsandbytes, from the arguments that lm_eval's ``hf`` has for them.

transformers 5 takes them in a configuration only, which lm_eval 0.4.13 does not make.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from w2s_tasks.errors import UserError

NAMES = ("load_in_4bit", "load_in_8bit")
DETAILS = ("bnb_4bit_", "llm_int8_")


def take_configuration(arguments: dict[str, Any]) -> Any:
    """Take bitsandbytes' arguments out of a model's, and make its configuration; None where none asks for it.

    Raises:
        UserError: bitsandbytes is not installed, or takes no such arguments.
    """
    found = {name: arguments.pop(name) for name in list(arguments) if name in NAMES or name.startswith(DETAILS)}
    if not any(found.get(name) for name in NAMES):
        if any(name.startswith(DETAILS) for name in found):
            raise UserError(f"{', '.join(found)}: these need load_in_4bit=True or load_in_8bit=True.")
        return None
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(f"{', '.join(found)} need bitsandbytes: pip install 'w2s-harness[bitsandbytes]'.")
    from transformers import BitsAndBytesConfig

    try:
        return BitsAndBytesConfig(**found)
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{', '.join(f'{k}={v}' for k, v in found.items())}: {error}") from error


def keep_differentiable(model: torch.nn.Module) -> None:
    """Leave out bitsandbytes' kernel for CPUs: once a model has answered with it, its layers pass no gradient back."""
    modules: Any = model.modules()
    for module in modules:
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
