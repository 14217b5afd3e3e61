"""Prompts, or draws of the shots in them: a third source of error of a mean, beside questions and seeds.

Every prompt asks the same questions of the same models, so a value z[p, s, i] (prompt p, seed s, question i) is taken as
crossed random effects of all three and of their pairs (Searle, Casella & McCulloch 1992, ch. 4). In mean squares, each over
P S n, the variance of the mean over all is that over seeds and questions with these prompts kept
(`w2s_tasks.results.components`, of the means over prompts), and the part of the prompts themselves,

    sigma²(prompts) / P = MS(p) - MS(ps) - MS(pi) + MS(psi),

never below 0. What is subtracted is how far apart the prompts' means would be by chance: other questions, other trainings.
With one seed a model's own response to a prompt can't be told from all models', and counts as the prompt's: the result
holds *given these weights*.

The interval over prompts has that variance added, and the critical value goes from that of seeds and questions to Student's
t of P - 1, with the share of the variance that the prompts' means have as they are, chance included: with three prompts the
component is estimated as 0 too often to rest a decision on. It is never shorter than the interval given these prompts, and
covers 93 to 99 % (`scripts/coverage`), where that one holds the truth over all prompts in 39 to 96 %. Three prompts tell
little about all prompts: the standard deviation over them may be half of the true one or six times it (95 % interval by
chi-square with 2 degrees of freedom).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from w2s_tasks.results.clusters import Clusters
from w2s_tasks.results.components import Components, between, critical, crossed
from w2s_tasks.results.stats import PAIR, Difference, difference_of

Array = npt.NDArray[Any]
ONE = np.ones(1)


@dataclass(frozen=True)
class Prompts:
    """The mean of a value over prompts, seeds and questions. Leading dimensions are free.

    ``given``: the mean and its errors, these prompts kept; ``component``: variance over prompts, [...], never below 0;
    ``apart``: variance of the mean by the spread of the prompts' means, chance included, [...]; ``df``: prompts - 1.
    """

    given: Components
    component: Array
    apart: Array
    df: int

    def half_width(self, level: float = 0.95) -> Array:
        """Half-width of the interval over prompts, seeds and questions."""
        given = self.given
        seeds, rows = given.variance(ONE)
        total = seeds + rows + self.component / (self.df + 1)
        share = np.divide(self.apart, total, out=np.zeros_like(total), where=total > 0)
        factor = between(critical(seeds, rows, given.seed_df, given.row_df, level), np.minimum(share, 1), self.df, level)
        return np.maximum(factor * np.sqrt(total), given.half_width(ONE, level))


def over_prompts(values: Array, cluster: Array | None = None, pseudo: Array | None = None) -> Prompts:
    """Estimate what prompts bring to the mean of a value.

    Args:
        values: shape [..., P, S, n] with two prompts or more; the same seeds and questions in one order.
        cluster: each question's group, shape [n], where questions come in groups.
        pseudo: as in `components.crossed`.
    """
    z = np.asarray(values, dtype=float)
    *_, prompts, seeds, n = z.shape
    given = crossed(z.mean(axis=-3)[..., None, :, :], cluster, pseudo)
    # Prompts in the place of seeds: their spread, and what of it questions alone would make.
    of_questions = crossed(z.mean(axis=-2)[..., None, :, :], cluster)
    apart, by_question = of_questions.seeds[..., 0, 0], of_questions.rest[..., 0, 0]
    by_seed, by_both = np.zeros_like(apart), np.zeros_like(apart)
    if seeds > 1:
        cells = (prompts - 1) * (seeds - 1) * prompts * seeds
        by_seed = np.square(_interaction(z.mean(axis=-1))).sum(axis=(-2, -1)) / cells
        left = _interaction(np.moveaxis(z - z.mean(axis=-1, keepdims=True), -1, -3))  # [..., n, P, S]
        by_both = _squares(np.moveaxis(left, -3, -1), cluster) / (cells * n**2)
    component = prompts * np.maximum(apart - by_question - by_seed + by_both, 0)
    return Prompts(given, component, apart, prompts - 1)


def _interaction(table: Array) -> Array:
    """What rows and columns of the last two dimensions leave unexplained."""
    rows, columns = table.mean(axis=-1, keepdims=True), table.mean(axis=-2, keepdims=True)
    return np.asarray(table - rows - columns + table.mean(axis=(-2, -1), keepdims=True))


def _squares(residuals: Array, cluster: Array | None) -> Array:
    """Unbiased sum of the squares of [..., P, S, n] over questions, or of their groups' enlarged sums."""
    n = residuals.shape[-1]
    if cluster is None:
        return np.asarray(np.square(residuals).sum(axis=(-3, -2, -1)) * n / max(1, n - 1))
    clusters = Clusters.of(cluster)
    return np.asarray((np.square(clusters.sums(residuals)) * clusters.enlarged).sum(axis=(-3, -2, -1)))


def prompt_sd(correct: Array, cluster: Array | None = None) -> float:
    """Standard deviation of an accuracy over prompts, beyond what questions and seeds explain.

    Args:
        correct: 0/1, shape [P, S, n].
        cluster: each question's group, shape [n], where questions come in groups.
    """
    return float(np.sqrt(over_prompts(correct, cluster).component))


@dataclass(frozen=True)
class PromptDifference:
    """Accuracy of one model minus another's on the same questions, by the same prompts or with the same draws of shots."""

    each: list[float]
    """With each prompt or draw, that of all other numbers first; differences of shares from -1 to 1."""
    sd: float
    """Its standard deviation over prompts or draws, beyond what questions and seeds explain."""
    given: Difference
    """The mean over these; its interval holds for other questions and seeds, not for other prompts or draws."""
    low: float
    """Lower end of the 95 % interval of that mean which counts them as drawn from all that there are."""
    high: float
    """Upper end of it."""


def prompt_difference(first: Array, second: Array, cluster: Array | None = None) -> PromptDifference:
    """Compare two models by several prompts, question by question.

    Args:
        first: 0/1, shape [P, S, n].
        second: the same for the other model; it may be one that no prompt or no seed changes, repeated.
        cluster: each question's group, shape [n], where questions come in groups.

    Raises:
        ValueError: other shapes.
    """
    if first.shape != second.shape:
        raise ValueError(f"paired comparison of {first.shape} with {second.shape} units")
    delta = first - second
    found = over_prompts(delta, cluster, PAIR)
    centre, half = float(found.given.mean[0]), float(found.half_width())
    return PromptDifference(
        each=[float(x) for x in delta.mean(axis=(1, 2))],
        sd=float(np.sqrt(found.component)),
        given=difference_of(found.given, delta.shape[2]),
        low=max(-1.0, centre - half),
        high=min(1.0, centre + half),
    )
