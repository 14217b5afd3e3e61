"""Training losses, one function each: the formula is the code.

Every loss takes the student's log-probabilities over the task's choices (normalised), the label's distribution and the
`State` of the training, and returns one value a row; the trainer averages. A new loss is a new function with `@loss` above
it; its keyword arguments are its settings in an experiment file (`method_args`). In the formulas p is the student's
distribution, y the label's, c runs over the choices, and sg() is no gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from trainers.registry import Registry

Loss = Callable[..., Tensor]
Share = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]
LOSSES: Registry[Loss] = Registry("loss", space="method")
loss = LOSSES.entry
"""Registers a loss under its function's name; a decorator."""
WHOLE_STEP: Registry[Loss] = Registry("mark of a loss")
"""Losses that look at all rows of an optimizer step, `State.batch`."""
whole_step = WHOLE_STEP.entry
"""Marks such a loss; a decorator."""

ABSENT = -1e30
"""The log-probability of a choice that a row doesn't have, where rows have different numbers of them: its exp is 0."""
FLOOR = 1e-3
"""The smallest probability that `reverse_kl` sees in a label: a hard label has zeros, whose logarithm is infinite."""


@dataclass(frozen=True)
class State:
    """What a loss may know beside the rows it is given."""

    progress: float = 0.0
    """Share of the optimizer steps that are done, 0 to 1."""
    prior: Tensor | None = None
    """Mean label over the training rows, shape [choices]: the weak supervisor's class prior."""
    batch: Tensor | None = None
    """The student's probabilities of all rows of the optimizer step, shape [rows of the step, choices], without gradient.

    Given to the losses in `WHOLE_STEP`, so that a quantile does not depend on how a step is cut into micro-batches."""
    classes: bool = True
    """Whether a choice means the same in every row: where rows have different numbers of choices it can't."""


def _cross_entropy(logprobs: Tensor, target: Tensor) -> Tensor:
    return -(target * logprobs).sum(dim=-1)


def warmed_up(value: float, progress: float, warmup: float) -> float:
    """A coefficient that rises linearly from 0 to `value` over the share `warmup` of the steps, and stays there."""
    return value * min(1.0, progress / warmup) if warmup > 0 else value


@loss
def xent(logprobs: Tensor, targets: Tensor, state: State) -> Tensor:
    """Cross-entropy with the label, soft or hard: -sum_c y_c log p_c. Naive fine-tuning in Burns et al. 2023 (2312.09390).

    Args:
        logprobs: log p over the choices, normalised, shape [rows, choices].
        targets: y, shape [rows, choices], rows sum to 1.
        state: not used.

    Returns:
        One loss a row, shape [rows].
    """
    return _cross_entropy(logprobs, targets)


def prior_threshold(probs: Tensor, prior: Tensor) -> Tensor:
    """For each choice the value that the share prior_c of the probabilities p_c reaches: its (1 - prior_c) quantile.

    Args:
        probs: shape [rows, choices].
        prior: shape [choices].

    Returns:
        Shape [choices].
    """
    return torch.stack([torch.quantile(probs[:, c], 1 - prior[c]) for c in range(probs.shape[1])])


@loss
@whole_step
def logconf(logprobs: Tensor, targets: Tensor, state: State, *, alpha: Share = 0.5, warmup: Share = 0.2) -> Tensor:
    """Auxiliary confidence loss: CE(p, (1 - a) y + a sg(ŷ)), ŷ the student's own hard label.

    Burns et al. 2023 (2312.09390), section 4.3.2 and appendix A.4: ŷ = 1[p > t], where the threshold t is the quantile of
    the student's probabilities at the labels' class prior, so that self-labels have the labels' class shares; a rises
    linearly to `alpha` over the first 20 % of the steps. (In the published code a jumps from 0.05 to 0.5 after a tenth of
    the steps; not here.) For more than two choices ŷ = argmax_c (p_c - t_c), which for two is the same as the threshold.
    Where rows have different numbers of choices there is no class prior to keep, and ŷ is the most probable choice.

    Args:
        logprobs: as in `xent`.
        targets: as in `xent`.
        state: progress; prior; batch, over which the quantile is taken.
        alpha: the weight of the self-label after the warm-up: .5, or .75 for the largest models in the paper.
        warmup: share of the steps over which the weight rises.
    """
    probs = logprobs.detach().exp()
    batch = probs if state.batch is None else state.batch
    prior = targets.mean(dim=0) if state.prior is None else state.prior.to(probs)
    threshold = prior_threshold(batch, prior) if state.classes else torch.zeros_like(prior)
    own = (probs - threshold).argmax(dim=-1)
    a = warmed_up(alpha, state.progress, warmup)
    return _cross_entropy(logprobs, (1 - a) * targets + a * torch.nn.functional.one_hot(own, targets.shape[1]))


@loss
def entropy(logprobs: Tensor, targets: Tensor, state: State, *, alpha: Share = 0.5, warmup: Share = 0.2) -> Tensor:
    """`logconf` with the soft self-label: CE(p, (1 - a) y + a sg(p)). The "entropy" loss of EleutherAI/w2s (w2s/loss.py).

    Over the choices the gradient of CE(p, sg(p)) is 0, so this is `xent` with its gradient times 1 - a.

    Args:
        logprobs: as in `xent`.
        targets: as in `xent`.
        state: progress.
        alpha: the weight of the self-label after the warm-up.
        warmup: share of the steps over which the weight rises.
    """
    a = warmed_up(alpha, state.progress, warmup)
    return _cross_entropy(logprobs, (1 - a) * targets + a * logprobs.detach().exp())


@loss
def product(logprobs: Tensor, targets: Tensor, state: State, *, alpha: NotNegative = 1.0, beta: NotNegative = 1.0) -> Tensor:
    """CE(p, q) with q proportional to sg(p)^beta y^alpha: label and student as a product of experts.

    `product_loss_fn` of openai/weak-to-strong (weak_to_strong/loss.py). With a hard label q = y: it needs soft ones.

    Args:
        logprobs: as in `xent`.
        targets: as in `xent`.
        state: not used.
        alpha: the label's exponent.
        beta: the student's exponent.
    """
    # 0 log 0 is 0: without the label's expert a choice that the label rules out is no special case.
    label = alpha * targets.log() if alpha else torch.zeros_like(targets)
    absent = logprobs <= ABSENT
    mixed = (beta * logprobs.detach() + label).masked_fill(absent, -torch.inf).softmax(dim=-1)
    return _cross_entropy(logprobs, mixed)


@loss
def window(logprobs: Tensor, targets: Tensor, state: State, *, radius: Annotated[float, Field(gt=0, lt=1)] = 0.15) -> Tensor:
    """CE(p, y) where the student is unsure, max_c p_c < 1/C + radius, and 0 elsewhere; C is the row's number of choices.

    `confidence_window_loss` of EleutherAI/w2s (w2s/loss.py), there for two choices. Sure rows still count in the mean.

    Args:
        logprobs: as in `xent`.
        targets: as in `xent`.
        state: not used.
        radius: the half-width of the window.
    """
    choices = (logprobs > ABSENT).sum(dim=-1)
    unsure = logprobs.detach().exp().max(dim=-1).values < 1 / choices + radius
    return _cross_entropy(logprobs, targets) * unsure


@loss
def reverse_kl(logprobs: Tensor, targets: Tensor, state: State) -> Tensor:
    """KL(p || y) = sum_c p_c (log p_c - log y_c): zero-forcing, so that it follows sure labels and ignores unsure ones.

    Yao et al. 2025 (2502.11107), the reverse KL loss. Labels are kept above `FLOOR` and normalised again.

    Args:
        logprobs: as in `xent`.
        targets: as in `xent`.
        state: not used.
    """
    absent = logprobs <= ABSENT
    safe = targets.clamp(min=FLOOR).masked_fill(absent, 0)
    safe = safe / safe.sum(dim=-1, keepdim=True)
    return (logprobs.exp() * (logprobs - safe.log()).masked_fill(absent, 0)).sum(dim=-1)


@loss
def adaptive_confidence(
    logprobs: Tensor, targets: Tensor, state: State, *, temperature: Annotated[float, Field(gt=0)] = 1.0
) -> Tensor:
    """(1 - b) CE(p, y) + b CE(p, ŷ), with a weight b of its own for each row.

    Guo et al. 2024 (2402.03749), AdaptConf: b = sg(exp(CE(p, ŷ)) / (exp(CE(p, ŷ)) + exp(CE(p, ȳ)))), ŷ the student's hard
    label and ȳ the label's; the authors' code divides both cross-entropies by a temperature. So b is 1/2 where both agree
    and falls towards 0 where the student is surely of another opinion. In place of CE(p, y) that code has the KL divergence
    of distributions softened by a second temperature, and may add gold labels: neither is done here.

    Args:
        logprobs: as in `xent`.
        targets: as in `xent`.
        state: not used.
        temperature: divides the cross-entropies inside b.
    """
    fixed = logprobs.detach()
    own = fixed.max(dim=-1)
    against_label = -fixed.gather(1, targets.argmax(dim=-1, keepdim=True)).squeeze(1)
    b = torch.sigmoid((-own.values - against_label) / temperature)
    towards_own = -logprobs.gather(1, own.indices[:, None]).squeeze(1)
    return (1 - b) * _cross_entropy(logprobs, targets) + b * towards_own
