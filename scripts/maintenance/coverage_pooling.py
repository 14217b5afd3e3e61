"""Simulated coverage of effects over tasks: of their mean, of a new task's effect, and of a PGR over tasks.

Every task has its own gap and its own effect; seeds scatter around it, and so does what the questions make of it. The
estimates go through `trainers.report.pooled`, where the seeds' variance is the mean of the tasks' own estimates of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trainers.report.pooled import Cell, contrast, difference, pool, recovered
from trainers.report.sections.joint import Joint, JointArm

Array = npt.NDArray[Any]

ARMS = (("weak", "xent"), ("student", "xent"), ("ceiling", "xent"))
WEAK, STUDENT, CEILING = ARMS


@dataclass(frozen=True)
class PoolingSetting:
    """One line of the table: the mean gain over the supervisor and its SD between tasks, in shares of the questions."""

    tasks: int
    spread: float
    gain: float = 0.03
    gap: float = 0.1
    seeds: int = 5
    of_seed: float = 0.02
    """SD over seeds of an arm's accuracy."""
    of_questions: float = 0.012
    """SD of an arm's own error of having asked these questions."""


@dataclass(frozen=True)
class PoolingCovered:
    """Shares of the repetitions whose interval held the truth; of a PGR among those where it was given."""

    setting: PoolingSetting
    mean: float
    new_task: float
    pgr: float | None
    """None where fewer than a hundred repetitions gave one."""


POOLING_SETTINGS = [
    *(PoolingSetting(tasks, spread) for tasks in (3, 4, 6, 10) for spread in (0.0, 0.02, 0.05, 0.1)),
    *(PoolingSetting(4, 0.03, gain) for gain in (-0.1, 0.1)),
    PoolingSetting(4, 0.03, seeds=1),
]


def drawn(setting: PoolingSetting, rng: np.random.Generator) -> list[Cell]:
    """The tasks of one bench: weak supervisor, student and ceiling, whose gap differs between tasks by a fifth."""
    cells = []
    for number in range(setting.tasks):
        gap = setting.gap * (1 + 0.2 * rng.standard_normal())
        gain = setting.gain + setting.spread * rng.standard_normal()
        true = np.array([0.7, 0.7 + gain, 0.7 + gap])
        seeds = true[:, None] + setting.of_seed * rng.standard_normal((3, setting.seeds))
        asked = setting.of_questions * rng.standard_normal(3)
        between = np.cov(seeds) / setting.seeds if setting.seeds > 1 else np.zeros((3, 3))
        questions = setting.of_questions**2 + (setting.of_seed**2 if setting.seeds == 1 else 0)
        joint = Joint(
            task="t",
            n=400,
            seeds=setting.seeds,
            arms=[JointArm(arm=arm, method=method) for arm, method in ARMS],
            accuracy=(seeds.mean(axis=1) + asked).tolist(),
            seed_covariance=between.tolist(),
            question_covariance=(questions * np.eye(3)).tolist(),
        )
        cells.append(Cell(str(number), "s", joint, ()))
    return cells


def cover_pooling(setting: PoolingSetting, repetitions: int, seed: int = 0) -> PoolingCovered:
    """Simulate one setting; a PGR in every fourth repetition, for it takes longer."""
    rng = np.random.default_rng([seed, setting.tasks, round(1000 * setting.spread), setting.seeds])
    held, ratios = np.zeros(2), []
    for number in range(repetitions):
        cells = drawn(setting, rng)
        found = pool([one for cell in cells if (one := contrast(cell, difference(STUDENT, WEAK)))])
        new = setting.gain + setting.spread * rng.standard_normal()
        held += (
            found.overall.low <= setting.gain <= found.overall.high,
            found.new_task.low <= new <= found.new_task.high,
        )
        ratio = recovered(cells, STUDENT, CEILING) if number % 4 == 0 else None
        if ratio is not None:
            (low, high), true = ratio[1], setting.gain / setting.gap
            ratios.append((low is None or low <= true) and (high is None or true <= high))
    mean, new_task = held / repetitions
    return PoolingCovered(setting, float(mean), float(new_task), float(np.mean(ratios)) if len(ratios) >= 100 else None)
