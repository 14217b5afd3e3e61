"""Simulated coverage of AUROC's intervals: of one model, of the difference of two, and of PGR over AUROC.

A row's margin is a normal deviate, shifted apart for the two classes; part of it belongs to the row (or to its group), the
same for every model and seed, part to the model on that row, part to the seed. So each model's true AUROC is exact, given
its weights; over seeds the truth is the mean over all that a training may lead to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import norm

from w2s_tasks.results.discrimination import auroc_difference, discrimination
from w2s_tasks.results.read import TaskScores

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class AurocSetting:
    """One line of the table.

    ``share``: of the rows that are of class 1. ``second`` is the AUROC of the model that the first is compared with;
    ``spread`` the SD over seeds of the distance between the classes; ``shared`` the part of a margin's variance that belongs
    to the row; ``unequal`` the SD of class 1's margins, class 0's being 1.
    """

    rows: int
    share: float = 0.5
    first: float = 0.8
    second: float = 0.7
    seeds: int = 1
    spread: float = 0.0
    shared: float = 0.5
    size: int = 1
    unequal: float = 1.0


@dataclass(frozen=True)
class AurocCovered:
    """Share of the repetitions whose interval held the truth, and (where nothing differs) of p below .05."""

    setting: AurocSetting
    area: float
    difference: float
    rejected: float


AUROC_SETTINGS = [
    *(AurocSetting(n, first=a, second=b) for n in (24, 100, 400) for a, b in ((0.5, 0.5), (0.8, 0.7), (0.95, 0.85))),
    AurocSetting(100, 0.15, 0.8, 0.7),
    AurocSetting(100, 0.5, 0.9, 0.7, unequal=2.0),
    AurocSetting(100, 0.5, 0.8, 0.7, shared=0.95),
    AurocSetting(100, 0.5, 0.97, 0.97, shared=0.95),
    AurocSetting(200, 0.5, 0.8, 0.7, size=4),
    AurocSetting(60, 0.5, 0.8, 0.8, size=3),
    *(AurocSetting(200, 0.5, 0.8, 0.7, seeds, spread) for seeds in (3, 5) for spread in (0.0, 0.1, 0.4)),
    AurocSetting(200, 0.5, 0.8, 0.7, 3, 0.3, size=4),
]


def _distance(area: float, unequal: float) -> float:
    return math.hypot(1, unequal) * float(norm.ppf(area))


def _areas(setting: AurocSetting, target: float, distances: Array) -> float:
    """The truth: of these weights with one seed, of all trainings with several."""
    scale = math.hypot(1, setting.unequal)
    if setting.seeds == 1:
        return float(norm.cdf(distances[0] / scale))
    grid = norm.ppf((np.arange(400) + 0.5) / 400)
    return float(norm.cdf((_distance(target, setting.unequal) + setting.spread * grid) / scale).mean())


def _model(setting: AurocSetting, distances: Array, gold: Array, row: Array, rng: np.random.Generator) -> list[TaskScores]:
    own = rng.standard_normal(len(gold))
    cluster = np.arange(len(gold)) // setting.size if setting.size > 1 else None
    scores = []
    for distance in distances:
        seeds = rng.standard_normal(len(gold))
        rest = math.sqrt(0.5) * own + math.sqrt(0.5) * seeds
        noise = math.sqrt(setting.shared) * row + math.sqrt(1 - setting.shared) * rest
        margin = np.where(gold == 1, distance + setting.unequal * noise, noise)
        logliks = np.stack([np.zeros(len(gold)), margin], axis=1)
        correct = ((margin > 0) == (gold == 1)).astype(float)
        units = tuple(map(str, range(len(gold))))
        scores.append(TaskScores("t", len(gold), {}, {}, units, correct, cluster, gold=gold, logliks=logliks))
    return scores


def cover_auroc(setting: AurocSetting, repetitions: int, seed: int = 0) -> AurocCovered:
    """Simulate one setting.

    Args:
        setting: what is simulated.
        repetitions: how often.
        seed: of the random numbers.
    """
    rng = np.random.default_rng([seed, setting.rows, setting.seeds, round(1000 * setting.first), round(10 * setting.spread)])
    held = np.zeros(3)
    for _ in range(repetitions):
        groups = setting.rows // setting.size
        gold = np.repeat(np.arange(groups) < max(2, round(setting.share * groups)), setting.size).astype(int)
        row = np.repeat(rng.standard_normal(groups), setting.size)
        models, truths = [], []
        for target in (setting.first, setting.second):
            distances = _distance(target, setting.unequal) + setting.spread * rng.standard_normal(setting.seeds)
            models.append(_model(setting, distances, gold, row, rng))
            truths.append(_areas(setting, target, distances))
        alone, change = discrimination(models[0]), auroc_difference(*models)
        if alone is None or change is None:
            continue
        true = truths[0] - truths[1]
        held += (alone.low <= truths[0] <= alone.high, change.low <= true <= change.high, change.p < 0.05)
    area, difference, rejected = held / repetitions
    return AurocCovered(setting, float(area), float(difference), float(rejected))
