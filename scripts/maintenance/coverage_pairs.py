"""Simulated coverage where pairs share scenarios: ETHICS' utilitarianism, whose intervals take pairs for independent.

``W2S_DATA=DIR PYTHONPATH=scripts python -m maintenance.coverage_pairs [--repetitions N]``; about a minute.

The graph is the real one: who is paired with whom. A scenario has a pleasantness and two models misread it, each with a
noise of its own and one that they share; all are normal deviates, new in each repetition, so that a model's true accuracy is
1/2 + arctan(1 / noise) / pi. Errors of pairs that share a scenario are correlated through it, as far as they can be: nothing
of them belongs to the pair. `effect` is the variance of the accuracy over repetitions against that of independent pairs. One
cluster of pairs that hang together holds more than half of the test set, so clusters are no remedy; the dyadic variance
(Aronow et al. 2015, arXiv 1312.3398) is.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from w2s_tasks.results.stats import accuracy_interval, paired_difference
from w2s_tasks.rows.families import numbered, plain
from w2s_tasks.rows.sources import load

Array = npt.NDArray[np.float64]
Pairs = npt.NDArray[np.int64]

SHARED = 0.5
"""Part of a model's noise that the other model shares."""
ACCURACIES = ((0.6, 0.6), (0.65, 0.6), (0.7, 0.6), (0.8, 0.75), (0.9, 0.75))


@dataclass(frozen=True)
class Covered:
    """Shares of the repetitions whose interval holds the truth, and what pairs that share scenarios do to the variance."""

    accuracy: float
    difference: float
    effect: float
    dyadic: float
    """The mean of the dyadic estimates of `effect`."""


def graph(split: str) -> Pairs:
    """The two scenarios of each pair by number, shape [pairs, 2]."""
    pairs = load("hendrycks/ethics", "utilitarianism")[split]
    both = [*pairs["baseline"][:], *pairs["less_pleasant"][:]]
    return np.array(numbered(map(plain, both))).reshape(2, -1).T


def dyadic_effect(correct: Array, pairs: Pairs) -> float:
    """The variance of a mean over pairs that knows which pairs share a scenario, against that of independent pairs."""
    away, n = correct - correct.mean(), int(pairs.max()) + 1
    of_scenario = sum(np.bincount(side, away, n) for side in pairs.T)
    _, same = np.unique(np.sort(pairs), axis=0, return_inverse=True)
    of_pair = np.bincount(same.ravel(), away)  # counted with both of its scenarios
    return float(((of_scenario**2).sum() - (of_pair**2).sum()) / (away**2).sum())


def answered(pairs: Pairs, accuracies: tuple[float, float], rng: np.random.Generator) -> Array:
    """Whether two models rank each pair as its scenarios' pleasantness does, 0/1, shape [2, pairs]."""
    scenarios = int(pairs.max()) + 1
    pleasant, shared = rng.standard_normal((2, scenarios))
    ranked = []
    for accuracy in accuracies:
        own = math.sqrt(1 - SHARED) * rng.standard_normal(scenarios) + math.sqrt(SHARED) * shared
        rating = pleasant + own / math.tan(math.pi * (accuracy - 0.5))
        ranked.append((np.diff(rating[pairs]) > 0) == (np.diff(pleasant[pairs]) > 0))
    return np.array(ranked, dtype=float)[..., 0]


def cover(pairs: Pairs, accuracies: tuple[float, float], repetitions: int, seed: int = 0) -> Covered:
    """Coverage of the first model's accuracy and of the difference of both."""
    rng = np.random.default_rng(seed)
    shares, dyadic, held = [], [], []
    for _ in range(repetitions):
        first, second = answered(pairs, accuracies, rng)
        low, high = accuracy_interval(first)
        difference = paired_difference(first, second)
        apart = accuracies[0] - accuracies[1]
        held.append((low <= accuracies[0] <= high, difference.low <= apart <= difference.high))
        shares.append(first.mean())
        dyadic.append(dyadic_effect(first, pairs))
    alone = accuracies[0] * (1 - accuracies[0]) / len(pairs)
    accuracy, both = np.mean(held, axis=0)
    return Covered(float(accuracy), float(both), float(np.var(shares) / alone), float(np.mean(dyadic)))


def main() -> None:
    """Print a line a setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=1000)
    repetitions = parser.parse_args().repetitions
    print("| set | accuracies | coverage of the first | of the difference | effect | dyadic estimate |")
    print("|---|---|---|---|---|---|")
    for split, title in (("validation", "test"), ("test", "hard")):
        for accuracies in ACCURACIES:
            found = cover(graph(split), accuracies, repetitions)
            shares = f"{100 * found.accuracy:.1f} | {100 * found.difference:.1f} | {found.effect:.2f} | {found.dyadic:.2f}"
            print(f"| {title} | {accuracies[0]}, {accuracies[1]} | {shares} |", flush=True)


if __name__ == "__main__":
    main()
