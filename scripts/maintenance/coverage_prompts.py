"""Simulated coverage of differences over prompts: by the interval given these prompts, and by the one over all of them.

A model is right on a question where the sum of normal deviates is above 0: the question's (or its group's), the model's own
on it, the seed's, the prompt's, and those of their pairs. So the share that it has right over all questions, seeds and
prompts is exact; with one seed the truth is that of its weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import norm

from w2s_tasks.results.prompts import over_prompts
from w2s_tasks.results.stats import PAIR

Array = npt.NDArray[Any]

SEED, OWN, FRESH = 0.2, 0.7, 0.6
"""Standard deviations of a seed, of a model on a question, and of a model on a question by one prompt."""


@dataclass(frozen=True)
class PromptSetting:
    """One line of the table; the question's own standard deviation is 1.

    ``prompt``: standard deviation over prompts of either model; ``taste``: the same of one seed's own response to them;
    ``size``: questions of a group, alike in all but the last; ``level``: of the models on that scale (.8 and .4 are nine
    points apart).
    """

    prompts: int
    seeds: int
    rows: int
    prompt: float
    taste: float = 0.0
    size: int = 1
    level: tuple[float, float] = (0.8, 0.4)


@dataclass(frozen=True)
class PromptsCovered:
    """Share of the repetitions whose interval held the truth, and the mean estimated standard deviation over prompts."""

    setting: PromptSetting
    difference: float
    given_prompts: float
    sd: float


PROMPT_SETTINGS = [
    *(PromptSetting(p, s, 400, x) for p in (2, 3, 5) for s in (1, 3) for x in (0.0, 0.1, 0.3)),
    *(PromptSetting(3, s, 400, 0.3, 0.2) for s in (1, 3)),
    *(PromptSetting(3, s, 400, x, size=4) for s in (1, 3) for x in (0.0, 0.3)),
    *(PromptSetting(3, s, 1600, 0.1, level=(0.4, 0.4)) for s in (1, 3)),
]


def draw_prompts(setting: PromptSetting, repetitions: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Correctness of two models, [repetitions, 2, P, S, n], and how far the first is truly ahead, [repetitions]."""
    p, s, n, both = setting.prompts, setting.seeds, setting.rows, (repetitions, 2)

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape, dtype=np.float32)

    def by_question(*shape: int) -> Array:
        """A deviate of each question or of its group."""
        return np.repeat(normal(*shape, n // setting.size), setting.size, axis=-1)

    seed = SEED * normal(*both, 1, s, 1)
    level = np.array(setting.level, dtype=np.float32)[:, None, None, None] + seed
    prompt = setting.prompt * normal(*both, p, 1, 1) + setting.taste * normal(*both, p, s, 1)
    question = by_question(repetitions, 1, 1, 1) + OWN * by_question(*both, 1, s)
    correct = level + prompt + question + FRESH * by_question(*both, p, 1) / 2 + FRESH * normal(*both, p, s, n) > 0
    spread = 1 + OWN**2 + 1.25 * FRESH**2 + setting.prompt**2 + setting.taste**2
    if s == 1:
        truth = norm.cdf(level[..., 0, 0, 0] / math.sqrt(spread))
    else:
        truth = np.broadcast_to(norm.cdf(np.array(setting.level) / math.sqrt(spread + SEED**2)), both)
    return correct.astype(np.float32), truth[:, 0] - truth[:, 1]


def cover_prompts(setting: PromptSetting, repetitions: int, seed: int = 0) -> PromptsCovered:
    """Simulate one setting.

    Args:
        setting: what is simulated.
        repetitions: how often.
        seed: of the random numbers.
    """
    rng = np.random.default_rng(
        [seed, setting.prompts, setting.seeds, setting.rows, round(100 * setting.prompt), setting.size]
    )
    cluster = np.arange(setting.rows) // setting.size if setting.size > 1 else None
    held, variance = np.zeros(2), 0.0
    size = max(1, 2_000_000 // (2 * setting.prompts * setting.seeds * setting.rows))
    for start in range(0, repetitions, size):
        correct, truth = draw_prompts(setting, min(size, repetitions - start), rng)
        found = over_prompts(correct[:, 0] - correct[:, 1], cluster, PAIR)
        away = np.abs(found.given.mean[..., 0] - truth)
        held += (away <= found.half_width()).sum(), (away <= found.given.half_width(np.ones(1))).sum()
        variance += float(found.component.sum())
    over, given = held / repetitions
    return PromptsCovered(setting, float(over), float(given), math.sqrt(variance / repetitions))
