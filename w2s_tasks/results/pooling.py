"""One effect over several tasks: partial pooling by a normal random-effects model, integrated exactly.

Task c gives an estimate y[c] of its own effect theta[c], with a variance v[c] that is known well enough, and

    y[c] ~ N(theta[c], v[c]),   theta[c] ~ N(mu, tau^2),   p(mu) flat,   tau ~ half-normal(PRIOR)

(Gelman, Bayesian Analysis 2006, 1(3), for the prior of tau: with four or five tasks their spread is hardly known, and the
usual estimates of it are 0 far too often). Given tau everything is normal; tau is summed over a grid. Three things are told:
mu, the mean over tasks like these; each theta[c], drawn towards it; and the effect on a task that is not here, whose
interval is the one to read before a method is used elsewhere.

Where all tasks are asked the same further questions (safety), the error of having asked these and no others is the same in
all estimates: it tells nothing of tau, and pooling does not make it smaller (`shared`).

`scripts/coverage` simulates the intervals of mu and of a new task's effect: 92 to 98 % where tasks differ by five to ten
points, up to 100 % where they hardly differ, for so few tasks can't show that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

Array = npt.NDArray[Any]

PRIOR = 0.1
"""Scale of the half-normal prior of tau: tasks differ by ten points, twice that is unlikely."""
FEWEST = 3
"""Tasks; of fewer no mean over tasks is given, for their spread would be the prior's."""
ENDS = (0.025, 0.975)
"""Of the intervals."""
GRID = 400
"""Values of tau, even from 0 to 5 PRIOR."""


@dataclass(frozen=True)
class Estimate:
    """A posterior: its mean and the ends of its central 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Pooled:
    """An effect over tasks."""

    tasks: int
    overall: Estimate
    """mu: the mean over tasks like these."""
    new_task: Estimate
    """On a task that is not here."""
    spread: Estimate
    """tau: how much tasks differ beyond what their own errors explain."""
    each: list[Estimate]
    """theta: each task's, drawn towards the mean."""
    p: float
    """Two-sided: twice the posterior probability that the mean has the other sign."""


def pooled(effects: Sequence[float] | Array, variances: Sequence[float] | Array, shared: float = 0.0) -> Pooled:
    """Pool one effect over tasks.

    Args:
        effects: each task's estimate, shape [tasks].
        variances: of those estimates, above 0, shape [tasks].
        shared: variance of an error that is the same in all of them, beside `variances`.

    Raises:
        ValueError: fewer than `FEWEST` tasks.
    """
    y, v = np.asarray(effects, dtype=float), np.asarray(variances, dtype=float)
    if len(y) < FEWEST:
        raise ValueError(f"{len(y)} tasks: an effect over tasks takes at least {FEWEST}")
    tau, weight, centre, variance = posterior(y, v)
    own = tau[:, None] ** 2 / (tau[:, None] ** 2 + v)  # how much of a task's own estimate stays, [grid, tasks]
    means = own * y + (1 - own) * centre[:, None]
    variances_of_tasks = own * v + (1 - own) ** 2 * variance[:, None] + shared
    variance = variance + shared
    overall = _mixture(weight, centre, variance)
    below = float(weight @ ndtr(-centre / np.sqrt(variance)))
    low, high = (float(tau[np.searchsorted(np.cumsum(weight), end).clip(max=GRID - 1)]) for end in ENDS)
    return Pooled(
        tasks=len(y),
        overall=overall,
        new_task=_mixture(weight, centre, variance + tau**2),
        spread=Estimate(float(weight @ tau), low, high),
        each=[_mixture(weight, means[:, c], variances_of_tasks[:, c]) for c in range(len(y))],
        p=2 * min(below, 1 - below),
    )


def posterior(y: Array, v: Array) -> tuple[Array, Array, Array, Array]:
    """tau's grid and its weights, and mu's mean and variance given each tau; shape [grid] all four.

    With mu integrated out and s = v + tau^2,
    log p(tau | y) = -tau^2 / (2 PRIOR^2) + log(var mu) / 2 - sum log(s) / 2 - sum (y - mu)^2 / (2 s).
    """
    tau = np.linspace(0, 5 * PRIOR, GRID)
    spread = v + tau[:, None] ** 2
    variance = 1 / (1 / spread).sum(axis=1)
    centre = variance * (y / spread).sum(axis=1)
    squares = ((y - centre[:, None]) ** 2 / spread).sum(axis=1)
    logs = -((tau / PRIOR) ** 2) / 2 + np.log(variance) / 2 - np.log(spread).sum(axis=1) / 2 - squares / 2
    weight = np.exp(logs - logs.max())
    return tau, weight / weight.sum(), centre, variance


def _mixture(weight: Array, means: Array, variances: Array) -> Estimate:
    """Mean and central interval of a mixture of normals."""
    from scipy.optimize import brentq

    deviations = np.sqrt(variances)
    far = 12 * float(deviations.max()) + 1e-12
    low, high = (
        brentq(lambda x, end=end: float(weight @ ndtr((x - means) / deviations)) - end, means.min() - far, means.max() + far)
        for end in ENDS
    )
    return Estimate(float(weight @ means), low, high)
