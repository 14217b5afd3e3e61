"""What tokens cost at the least: their share of one long forward pass through the same layers."""

from __future__ import annotations

import statistics
import time
from typing import Any

FLOOR_TOKENS, FLOOR_REPEATS = 1024, 5


def seconds_a_token(model: Any) -> float:
    """What a token costs a causal language model in a pass of one row that projects its last position only (a median)."""
    import torch

    from w2s_tasks.packing.forward import narrows

    config = model.config.get_text_config()
    length = min(FLOOR_TOKENS, getattr(config, "max_position_embeddings", FLOOR_TOKENS))
    row = torch.randint(config.vocab_size, (1, length), generator=torch.Generator().manual_seed(0)).to(model.device)
    narrow = {"logits_to_keep": 1} if narrows(model) else {}
    times = []
    with torch.inference_mode():
        for _ in range(FLOOR_REPEATS + 1):
            start = time.perf_counter()
            model(input_ids=row, use_cache=False, **narrow).logits.sum().item()
            times.append(time.perf_counter() - start)
    return statistics.median(times[1:]) / length  # a first pass is slower
