"""Training losses, one function each: the formula is the code.

Every loss takes the student's log-probabilities over the task's choices and the target distribution, and returns one
value a row; the trainer averages. A new method is a new function with an entry in `LOSSES`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

Loss = Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]


def xent(logprobs: torch.Tensor, targets: torch.Tensor, progress: float) -> torch.Tensor:
    """Cross-entropy with the label, soft or hard: -sum_c y_c log p_c.

    Args:
        logprobs: log p over the choices, normalised, shape [rows, choices].
        targets: y, shape [rows, choices], rows sum to 1.
        progress: share of the training steps that are done, for losses that warm up.

    Returns:
        One loss a row, shape [rows].
    """
    return -(targets * logprobs).sum(dim=-1)


LOSSES: dict[str, Loss] = {"xent": xent}
