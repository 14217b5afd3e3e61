"""Questions that come in groups: what a mean over them is worth.

Rows of one group (the four variants of an ETHICS scenario, questions about one passage) are answered alike, so a mean over
them is known less well than over as many independent rows. How much less, the design effect, is estimated from the data
and drawn towards the worst case, that groups change as wholes, by one pseudo-group: where few groups differ at all, the data
can't tell that they don't.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

SHARE_UNIT = 0.25
"""Square by which the rows of a share of one half differ from it: what a row of a pseudo-cluster of an accuracy weighs."""


@dataclass(frozen=True)
class Clusters:
    """Which rows belong together.

    ``index``: number of each row's cluster, 0 to G - 1, shape [n]; ``sizes``: rows of each cluster, shape [G].
    """

    index: Array
    sizes: Array

    @classmethod
    def of(cls, labels: Array) -> Clusters:
        """From one label a row, of any kind."""
        _, index, sizes = np.unique(labels, return_inverse=True, return_counts=True)
        return cls(index, sizes.astype(float))

    @property
    def largest_effect(self) -> float:
        """Design effect of clusters that change as wholes: mean size of the cluster of a row (Kish 1965)."""
        return float((self.sizes**2).sum() / self.sizes.sum())

    @property
    def enlarged(self) -> Array:
        """Factor of each cluster's squared sum of residuals, 1 / (1 - its share of the rows): CR2 of a mean, shape [G]."""
        share = self.sizes / self.sizes.sum()
        return 1 / (1 - share) if len(share) > 1 else np.ones(1)

    def sums(self, values: Array) -> Array:
        """Sums within clusters over the last dimension: [..., n] -> [..., G]."""
        order = np.argsort(self.index, kind="stable")
        starts = np.concatenate([[0], np.cumsum(self.sizes[:-1])]).astype(int)
        return np.add.reduceat(values[..., order], starts, axis=-1)

    def effect(self, values: Array, unit: float) -> Array:
        """Design effect of the means of k centred values, between 1 and `largest_effect`.

        Squared sums of clusters over squares of rows, both with one pseudo-cluster that differs as a whole.

        Args:
            values: centred values, shape [..., k, n].
            unit: square of the value of a row that differs: 1 for differences of 0/1, 1/4 for shares.

        Returns:
            Shape [...].
        """
        most, k = self.largest_effect, values.shape[-2]
        together = (self.sums(values) ** 2).sum(axis=(-2, -1)) + k * unit * most**2
        alone = (values**2).sum(axis=(-2, -1)) + k * unit * most
        return np.asarray(np.clip(together / alone, 1.0, most))

    def degrees(self, effect: Array) -> Array:
        """Degrees of freedom of the enlarged variance of a mean, from 1 to G - 1.

        Satterthwaite's, after Bell & McCaffrey (2002) and Imbens & Kolesár (2016, Review of Economics and Statistics 98),
        under rows with equal correlations within clusters that give this design effect; G - 1 for equal sizes.

        Args:
            effect: design effects between 1 and `largest_effect`, any shape.
        """
        n, most = self.sizes.sum(), self.largest_effect
        if np.ptp(self.sizes) == 0:
            return np.full(np.shape(effect), max(1.0, len(self.sizes) - 1.0))
        correlation = (np.asarray(effect, dtype=float)[..., None] - 1) / (most - 1)
        tau = self.sizes * (1 + (self.sizes - 1) * correlation)  # variances of the sums, [..., G]
        # The squared residual sums are a quadratic form with D (diag(tau) - (s tau' + tau s') / n + s s' T / n²) D inside,
        # s the sizes, T the sum of tau, D the square roots of `enlarged`; df = trace^2 / trace of the square.
        root = np.sqrt(self.enlarged)
        a, b, total = root * self.sizes, root * tau, tau.sum(axis=-1)
        diagonal = self.enlarged * tau
        aa, ab, bb = (a**2).sum(), (a * b).sum(axis=-1), (b**2).sum(axis=-1)
        trace = diagonal.sum(axis=-1) - 2 * ab / n + aa * total / n**2
        outer = (2 * ab**2 + 2 * aa * bb) / n**2 - 4 * ab * aa * total / n**3 + (aa * total) ** 2 / n**4
        mixed = -2 * (diagonal * a * b).sum(axis=-1) / n + (diagonal * a**2).sum(axis=-1) * total / n**2
        square = (diagonal**2).sum(axis=-1) + outer + 2 * mixed
        return np.asarray(trace**2 / square)
