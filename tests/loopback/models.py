"""Small models for the threads of a service."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from safetensors.torch import load_file


def load_model(folder: Path) -> Any:
    """A causal model in float32, without `from_pretrained`.

    That changes torch's initialisers for the whole process while it runs; the service's threads would leave them changed for
    the test that loads a model at the same time.
    """
    config = transformers.AutoConfig.from_pretrained(folder)
    model: Any = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)
    missing, unexpected = model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    model.tie_weights()
    if unexpected or set(missing) - set(model.all_tied_weights_keys):
        raise ValueError(f"{folder} does not fit its config: {missing}, {unexpected}")
    return model.float()
