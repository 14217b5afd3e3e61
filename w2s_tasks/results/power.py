"""What n questions can show: the smallest difference that a paired test finds, given how often the models differ."""

from __future__ import annotations

import math

from scipy.stats import norm


def needed(difference: float, discordance: float, *, power: float = 0.8, level: float = 0.05) -> float:
    """Questions for McNemar's test to find a difference (Connor 1987, Biometrics 43, eq. 2).

    Args:
        difference: accuracy of one model minus the other's, not 0.
        discordance: share of the questions that exactly one of them has right; at least the difference's size.
        power: chance to find it.
        level: of the two-sided test.
    """
    z_level, z_power = float(norm.isf(level / 2)), float(norm.ppf(power))
    spread = z_level * math.sqrt(discordance) + z_power * math.sqrt(max(discordance - difference**2, 0.0))
    return (spread / difference) ** 2


def detectable(n: float, discordance: float, *, power: float = 0.8, level: float = 0.05) -> float | None:
    """The smallest difference that n questions show with this power; None where even a difference of 1 is not shown.

    Args:
        n: questions; an effective number where they come in clusters.
        discordance: share of the questions that exactly one of the models has right; a difference larger than it
            brings its own discordance.
        power: chance to find it.
        level: of the two-sided test.
    """
    low, high = 0.0, 1.0
    if needed(high, 1.0, power=power, level=level) > n:
        return None
    for _ in range(60):
        middle = (low + high) / 2
        if middle > 0 and needed(middle, max(discordance, middle), power=power, level=level) <= n:
            high = middle
        else:
            low = middle
    return high
