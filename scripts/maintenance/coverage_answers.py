"""Simulated coverage of what is computed from answers, not from right and wrong alone.

The parts of a change (`drift`), the errors of precision, recall, F1, balanced accuracy and MCC (`metrics.table_stderr`), and
rank correlations (`association`). The truth is that of the whole population that a repetition's rows are drawn from:
a table of (right class, answer before, answer after), so that every setting's truth is exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from w2s_tasks.results.association import rank_correlation
from w2s_tasks.results.drift import PARTS, UNPARSED, contributions, drift
from w2s_tasks.results.read import TaskScores
from w2s_tasks.results.stats import Z95
from w2s_tasks.scoring.metrics import TABLE_METRICS, table_score, table_stderr

Array = npt.NDArray[Any]

POPULATION = 20_000  # rows that stand for all: every setting's shares are multiples of 1 / POPULATION


@dataclass(frozen=True)
class AnswerSetting:
    """One line of the table of answers: yes/no questions, half of them yes, in `clusters` groups of `size` rows.

    Before, the model is right on `base` of either class. Then `lost` of all answers no longer parse; of the others `shift`
    of the noes become yes, and `blur` of the right and of the wrong answers of each class change places at random.
    ``whole``: share of the groups whose rows are all one and the same question.
    """

    clusters: int
    size: int
    base: float = 0.75
    lost: float = 0.0
    shift: float = 0.0
    blur: float = 0.0
    whole: float = 0.0

    @property
    def label(self) -> str:
        """The rows in words: 50 x 4."""
        return str(self.clusters) if self.size == 1 else f"{self.clusters} x {self.size}"


ANSWER_SETTINGS = [
    *(
        AnswerSetting(n, 1, 0.75, *change)
        for n in (100, 400)
        for change in ((0.1, 0.0, 0.0), (0.0, 0.4, 0.0), (0.0, 0.0, 0.3))
    ),
    AnswerSetting(400, 1, 0.75, 0.1, 0.3, 0.2),
    AnswerSetting(400, 1, 0.75, 0.0, 0.97),
    AnswerSetting(400, 1, 0.95, 0.02, 0.05),
    *(AnswerSetting(50, 4, 0.75, 0.1, 0.3, 0.2, whole) for whole in (0.0, 0.5, 1.0)),
    *(AnswerSetting(12, 5, 0.75, 0.1, 0.3, 0.2, whole) for whole in (0.0, 1.0)),
]


@dataclass(frozen=True)
class AnswersCovered:
    """What was found in one setting: how often each interval holds the truth; None for a part that is always zero."""

    setting: AnswerSetting
    repetitions: int
    parts: dict[str, float | None]
    metrics: dict[str, float]
    """Of value +- 1.96 errors of the answers after, for every score of a table of right and given answers."""


def population(setting: AnswerSetting) -> Array:
    """Rows of (right class, answer before, answer after), int, shape [about POPULATION, 3]."""
    share: dict[tuple[int, int, int], float] = {}
    for gold, right in product((0, 1), (True, False)):
        before = gold if right else 1 - gold
        mass = 0.5 * (setting.base if right else 1 - setting.base)
        yes = 1.0 if before else setting.shift
        after = {1: yes * (1 - setting.blur) + (1 - yes) * setting.blur, UNPARSED: setting.lost}
        after[0] = 1 - after[1]
        for answer in (0, 1):
            share[gold, before, answer] = mass * after[answer] * (1 - setting.lost)
        share[gold, before, UNPARSED] = mass * setting.lost
    return np.repeat(np.array(list(share)), np.rint(POPULATION * np.array(list(share.values()))).astype(int), axis=0)


def _scores(rows: Array, answers: Array, cluster: Array | None) -> TaskScores:
    correct = (rows[:, 0] == answers).astype(float)
    n, parsed = len(rows), answers != UNPARSED
    metrics = {"acc": float(correct.mean())}
    return TaskScores(
        "simulated",
        n,
        metrics,
        {},
        tuple(map(str, range(n))),
        correct,
        cluster,
        predicted=answers,
        gold=rows[:, 0],
        unparsed=float(1 - parsed.mean()),
        parsed=parsed,
    )


def _drawn(everything: Array, setting: AnswerSetting, rng: np.random.Generator) -> Array:
    chosen = rng.integers(len(everything), size=(setting.clusters, setting.size))
    whole = rng.random(setting.clusters) < setting.whole
    chosen[whole] = chosen[whole][:, :1]
    return everything[chosen.ravel()]


def cover_answers(setting: AnswerSetting, repetitions: int = 1000, seed: int = 0) -> AnswersCovered:
    """Coverage of the parts of a change and of the errors of `metrics.TABLE_METRICS` in one setting."""
    rng = np.random.default_rng(
        [seed, setting.clusters, *(round(1000 * x) for x in (setting.lost, setting.shift, setting.blur))]
    )
    everything = population(setting)
    cluster = np.repeat(np.arange(setting.clusters), setting.size) if setting.size > 1 else None
    truth = contributions(everything[:, 1], everything[:, 2], everything[:, 0])
    moves = [bool(part.any()) for part in truth]
    scores = {name: table_score(name, everything[:, 0], everything[:, 2]) for name in TABLE_METRICS}
    parts, metrics = np.zeros((repetitions, len(PARTS))), np.zeros((repetitions, len(scores)))
    for i in range(repetitions):
        rows = _drawn(everything, setting, rng)
        found = drift([_scores(rows, rows[:, 1], cluster)], [_scores(rows, rows[:, 2], cluster)])
        intervals = (found.unparsed, found.prior, found.errors)
        parts[i] = [d is not None and d.low <= true <= d.high for d, true in zip(intervals, truth.mean(axis=1), strict=True)]
        for j, (name, true) in enumerate(scores.items()):
            error = table_stderr(name, rows[:, 0], rows[:, 2], cluster)
            metrics[i, j] = abs(table_score(name, rows[:, 0], rows[:, 2]) - true) <= Z95 * error
    return AnswersCovered(
        setting,
        repetitions,
        {name: share if some else None for name, share, some in zip(PARTS, parts.mean(axis=0).tolist(), moves, strict=True)},
        dict(zip(scores, metrics.mean(axis=0).tolist(), strict=True)),
    )


# ---- rank correlations ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RankSetting:
    """One line of the table of rank correlations: normal points with Pearson's correlation `rho`.

    ``alike``: points of a cluster of `size` share this part of their variance.
    """

    points: int
    rho: float
    size: int = 1
    alike: float = 0.0


RANK_SETTINGS = [
    *(RankSetting(n, rho) for n in (5, 6, 8, 12, 30) for rho in (0.0, 0.5, 0.9)),
    *(RankSetting(n, rho, 3, alike) for n in (15, 24) for rho in (0.0, 0.5) for alike in (0.5, 1.0)),
]


@dataclass(frozen=True)
class RankCovered:
    """Coverage of Spearman's rho in one setting, and how often p is below .05 (None where no p is given)."""

    setting: RankSetting
    repetitions: int
    rho: float
    rejected: float | None


def cover_rank(setting: RankSetting, repetitions: int = 1000, seed: int = 0) -> RankCovered:
    """Coverage of `rank_correlation` in one setting."""
    rng = np.random.default_rng([seed, setting.points, round(1000 * setting.rho), round(1000 * setting.alike)])
    truth = 6 / math.pi * math.asin(setting.rho / 2)  # Spearman's of a normal pair
    root = np.linalg.cholesky([[1, setting.rho], [setting.rho, 1]])
    groups = setting.points // setting.size
    cluster = None if setting.size == 1 else np.repeat(np.arange(groups), setting.size).tolist()
    inside, rejected = [], []
    for _ in range(repetitions):
        common = np.repeat(rng.standard_normal((groups, 2)), setting.size, axis=0)
        own = rng.standard_normal((setting.points, 2))
        points = (math.sqrt(setting.alike) * common + math.sqrt(1 - setting.alike) * own) @ root.T
        found = rank_correlation(points[:, 0].tolist(), points[:, 1].tolist(), cluster)
        if found.low is not None and found.high is not None:
            inside.append(found.low <= truth <= found.high)
        if found.p is not None:
            rejected.append(found.p < 0.05)
    return RankCovered(setting, repetitions, float(np.mean(inside)), float(np.mean(rejected)) if rejected else None)
