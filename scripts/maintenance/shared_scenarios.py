"""What utilitarianism's pairs share, and what taking them for independent does to an error (``scripts/shared_scenarios``).

A scenario stands in several pairs. Pairs that it connects are no clusters: on the test set one component holds more than
half of all. So the error that is reported takes pairs for independent, and this simulates how far it is from the truth: a
reader rates every scenario once, at a scale times its utility plus noise of its own, and is right on a pair where the better
one's rating is higher; utilities are the least-squares solution of "every better scenario is one above the worse".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import lsqr

from w2s_tasks.rows.sources import ethics

Array = npt.NDArray[Any]

DRAWS, AT_ONCE = 4000, 250
SCALES = (0.0, 0.5, 1.5)
"""How well the reader tells the scenarios apart: not at all, some, well."""


@dataclass(frozen=True)
class Pairs:
    """Pairs of scenarios: numbers of the better and of the worse one, shape [pairs]."""

    better: Array
    worse: Array

    @classmethod
    def of(cls, split: str, first: int | None = None) -> Pairs:
        """The pairs of a split of the hub's ETHICS; rows stand two by two, the better one first."""
        _, number = np.unique(list(ethics(subtask="utilitarianism")[split]["activity"]), return_inverse=True)
        return cls(number[0::2][:first], number[1::2][:first])

    def components(self) -> Array:
        """Sizes, in pairs, of what shared scenarios connect; the largest first."""
        size = 1 + max(self.better.max(), self.worse.max())
        graph = coo_matrix((np.ones(len(self.better)), (self.better, self.worse)), shape=(size, size))
        _, counts = np.unique(connected_components(graph, directed=False)[1][self.better], return_counts=True)
        return np.sort(counts)[::-1]

    def sharing(self) -> float:
        """Share of the pairs with a scenario that stands in another pair too."""
        often = np.bincount(np.concatenate([self.better, self.worse])) > 1
        return float((often[self.better] | often[self.worse]).mean())

    def error_ratio(self, scale: float, rng: np.random.Generator) -> tuple[float, float]:
        """Mean accuracy of such readers, and the true error of an accuracy over that of independent pairs."""
        pairs, size = len(self.better), 1 + max(self.better.max(), self.worse.max())
        place = np.concatenate([np.arange(pairs)] * 2)
        signs = np.repeat([1.0, -1.0], pairs)
        order = coo_matrix((signs, (place, np.concatenate([self.better, self.worse]))), shape=(pairs, size)).tocsr()
        utility = lsqr(order, np.ones(pairs))[0]
        accuracy = []
        for _ in range(DRAWS // AT_ONCE):
            ratings = scale * utility + rng.standard_normal((AT_ONCE, size))
            accuracy.append((ratings[:, self.better] > ratings[:, self.worse]).mean(axis=1))
        found = np.concatenate(accuracy)
        independent = found * (1 - found) / pairs
        return float(found.mean()), float(np.sqrt(found.var() / independent.mean()))


def main() -> None:
    """Print a line for all pairs of each split, and for its first 400."""
    for name, split in (("test", "validation"), ("hard", "test")):
        for first in (None, 400):
            pairs, rng = Pairs.of(split, first), np.random.default_rng(0)
            sizes = pairs.components()
            told = ", ".join("{1:.2f} at accuracy {0:.2f}".format(*pairs.error_ratio(scale, rng)) for scale in SCALES)
            print(
                f"{name}: {len(pairs.better):,} pairs, {pairs.sharing():.1%} share a scenario, largest component "
                f"{sizes[0]:,} pairs; true error over ours: {told}"
            )


if __name__ == "__main__":
    main()
