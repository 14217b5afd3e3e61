"""A method of your own: it is there as `my_method` in experiments that are run with --plugin my_method.py.

Change the formula, its settings and the test beside it. Besides losses a plug-in may hold operations on labels, steps that train or ask
models, arms, trainers and sections of the report: docs/own_methods.md of the suite shows one of each.
"""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from trainers.plugins import State, loss


@loss
def my_method(
    logprobs: Tensor, targets: Tensor, state: State, *, sharpness: Annotated[float, Field(gt=0)] = 2.0
) -> Tensor:
    """Cross-entropy with sharpened labels: -sum_c q_c log p_c, q proportional to y^sharpness.

    Args:
        logprobs: log p, the student's log-probabilities over the choices, shape [rows, choices].
        targets: y, the supervisor's probabilities, shape [rows, choices].
        state: what else may be known: `progress` of the training from 0 to 1, `prior`, the labels' mean.
        sharpness: 1 leaves the labels as they are; a setting, `method_args: {my_method: {sharpness: 3}}`.

    Returns:
        One loss a row, shape [rows]; the trainer averages.
    """
    sharp = targets**sharpness
    return -(sharp / sharp.sum(dim=-1, keepdim=True) * logprobs).sum(dim=-1)
