"""Simulated coverage of this suite's intervals: how often a nominal 95 % interval holds the truth.

``scripts/coverage`` prints the tables, ``--json`` gives the figures. Nothing is conditioned on the gate: a repetition whose
gap is not significant counts with its whole (unbounded) Fieller set. Beside it stand the share of repetitions in which the
report would have given a number, and the coverage among those.

Rows have a difficulty; a model is right on a row if difficulty + noise lies below its accuracy, part of the noise
being its own for the row (the same at every seed) and part of it new at every seed. Seeds shift the accuracies of all three
models. With one seed the truth is the PGR of those weights over all questions; with several that of the mean over seeds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from maintenance import coverage_answers as answers
from maintenance.coverage_auroc import AUROC_SETTINGS, AurocCovered, cover_auroc
from maintenance.coverage_pooling import POOLING_SETTINGS, PoolingCovered, cover_pooling
from maintenance.coverage_prompts import PROMPT_SETTINGS, PromptsCovered, cover_prompts
from w2s_tasks.results.components import Components, crossed
from w2s_tasks.results.gap import gap_components, in_fieller_set
from w2s_tasks.results.over_tasks import mean_difference, mean_level
from w2s_tasks.results.stats import PAIR, mean_accuracy, paired_difference

Array = npt.NDArray[Any]

BAND = (0.93, 0.98)
CHUNK = 6_000_000  # numbers held at once


@dataclass(frozen=True)
class Setting:
    """One line of the table of PGR: seeds, rows, ceiling - weak, and the spread over seeds.

    ``pgr_sd`` is the standard deviation of one seed's PGR where `acc_sd` is None; else all accuracies vary by `acc_sd`.
    """

    seeds: int
    n: int
    gap: float
    pgr: float = 0.5
    pgr_sd: float = 0.1
    acc_sd: float | None = None

    @property
    def shift(self) -> float:
        """Standard deviation over seeds of each model's accuracy."""
        if self.acc_sd is not None:
            return self.acc_sd
        # PGR = (s - w) / (c - w): its variance to first order is shift^2 (1 + (1 - pgr)^2 + pgr^2) / gap^2.
        return self.pgr_sd * self.gap / float(np.sqrt(1 + (1 - self.pgr) ** 2 + self.pgr**2))


@dataclass(frozen=True)
class Covered:
    """What was found in one setting; shares of `repetitions`."""

    setting: Setting
    repetitions: int
    pgr: float
    gap: float
    student_to_weak: float
    defined: float
    pgr_where_defined: float | None
    rows_only: float
    """Coverage of the truth over seeds by the interval that knows the questions' error only."""


SEEDS, GAPS, ROWS = (1, 3, 5, 10), (0.02, 0.05, 0.1, 0.2), (200, 872)
SETTINGS = [
    *(Setting(s, n, g) for n in ROWS for g in GAPS for s in SEEDS),
    *(Setting(s, 872, 0.1, acc_sd=0.1) for s in SEEDS),
    *(Setting(s, 872, 0.1, pgr_sd=0.5) for s in SEEDS),
    *(Setting(s, 872, 0.1, pgr=p) for p in (0.0, 1.0) for s in SEEDS),
    *(Setting(2, 872, g) for g in GAPS),
]


def simulate(setting: Setting, repetitions: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Draw correctness of weak supervisor, student and ceiling.

    Returns:
        0/1, shape [repetitions, 3, seeds, n], and the accuracies over all questions behind it, [repetitions, 3, seeds].
    """
    gap = setting.gap
    weak = 0.5 - gap / 2
    base = np.array([weak, weak + setting.pgr * gap, weak + gap])[None, :, None]
    shape = (repetitions, 3, setting.seeds)
    accuracy = base + setting.shift * np.clip(rng.standard_normal(shape), -3.5, 3.5)
    # Difficulty is uniform on [0, 1] and the noise symmetric within +- width, so the accuracy is exact within these bounds.
    width = 0.1 if setting.acc_sd else 0.3
    own = width * (rng.random((repetitions, 3, 1, setting.n), dtype=np.float32) - 0.5)
    fresh = width * (rng.random((*shape, setting.n), dtype=np.float32) - 0.5)
    difficulty = rng.random((repetitions, 1, 1, setting.n), dtype=np.float32)
    return (difficulty + own + fresh < accuracy[..., None]).astype(np.float32), accuracy


def _chunks(repetitions: int, numbers: int) -> Iterator[int]:
    size = max(1, min(repetitions, CHUNK // numbers))
    for start in range(0, repetitions, size):
        yield min(size, repetitions - start)


def holds(parts: Components, truth: Array, contrast: int = 0) -> Array:
    """Whether the 95 % interval of one contrast holds the truth, for every leading element."""
    half = parts.half_width(np.eye(parts.mean.shape[-1])[contrast])
    return np.abs(parts.mean[..., contrast] - truth) <= half


def cover(setting: Setting, repetitions: int = 4000, seed: int = 0) -> Covered:
    """Coverage in one setting."""
    rng = np.random.default_rng([seed, setting.seeds, setting.n, round(1000 * setting.gap), round(1000 * setting.pgr)])
    found: dict[str, list[Array]] = {k: [] for k in ("pgr", "gap", "student", "defined", "rows")}
    for size in _chunks(repetitions, 3 * setting.seeds * setting.n):
        scores, accuracy = simulate(setting, size, rng)
        weak, student, ceiling = (scores[:, i] for i in range(3))
        parts = gap_components(weak, student, ceiling)
        truth = accuracy.mean(axis=2) if setting.seeds == 1 else np.broadcast_to(_expected(setting), (size, 3))
        found["pgr"].append(_ratio_inside(parts, truth))
        found["rows"].append(_ratio_inside(_rows_only(parts), np.broadcast_to(_expected(setting), (size, 3))))
        found["gap"].append(holds(parts, truth[:, 2] - truth[:, 0], 1))
        pair = crossed((student - weak)[:, None], pseudo=PAIR)
        found["student"].append(holds(pair, truth[:, 1] - truth[:, 0]))
        found["defined"].append(~in_fieller_set(parts, np.array([np.inf]))[:, 0] & (parts.mean[:, 1] > 0))
    inside, defined = np.concatenate(found["pgr"]), np.concatenate(found["defined"])
    return Covered(
        setting,
        repetitions,
        float(inside.mean()),
        float(np.concatenate(found["gap"]).mean()),
        float(np.concatenate(found["student"]).mean()),
        float(defined.mean()),
        float(inside[defined].mean()) if defined.sum() >= 100 else None,
        float(np.concatenate(found["rows"]).mean()),
    )


def _expected(setting: Setting) -> Array:
    return np.array([0.0, setting.pgr * setting.gap, setting.gap])


def _ratio_inside(parts: Components, truth: Array) -> Array:
    """Whether each repetition's Fieller set holds its own true ratio: the contrast at that ratio is not significant."""
    ratio = (truth[:, 1] - truth[:, 0]) / (truth[:, 2] - truth[:, 0])
    direction = np.stack([np.ones_like(ratio), -ratio], axis=-1)
    return np.abs(np.einsum("ri,ri->r", direction, parts.mean)) <= parts.half_width(direction)


def _rows_only(parts: Components) -> Components:
    nothing = np.zeros_like(parts.seeds)
    return replace(parts, seeds=nothing, rows=parts.rows + parts.rest, rest=nothing, seed_df=0)


# ---- accuracies and paired differences: clusters, few rows, near-constant arms, seeds -------------------------------------


@dataclass(frozen=True)
class PairSetting:
    """One line of the table of accuracies and paired differences.

    The reference is right on `base` of the rows. A share `lost` of the units is answered wrongly by the other model where
    the reference is right, a share `gained` the other way; units are whole clusters for the share `whole` of the rows, and
    the same at all seeds for the share `shared`.
    """

    clusters: tuple[tuple[int, int], ...]
    """(number, size) of each kind of cluster; ((100, 1),) for a hundred single rows."""
    lost: float
    gained: float = 0.0
    whole: float = 1.0
    seeds: int = 1
    shared: float = 1.0
    base: float = 0.7

    @property
    def label(self) -> str:
        """The rows in words: 50 x 4."""
        return " + ".join(str(n) if size == 1 else f"{n} x {size}" for n, size in self.clusters)

    @property
    def cluster(self) -> Array | None:
        """The cluster of each row."""
        if all(size == 1 for _, size in self.clusters):
            return None
        sizes = [size for n, size in self.clusters for _ in range(n)]
        return np.repeat(np.arange(len(sizes)), sizes)

    @property
    def units(self) -> float:
        """Clusters that differ, on average: with few of them an interval can't but cover more than it promises."""
        largest = sum(n * size**2 for n, size in self.clusters) / sum(n * size for n, size in self.clusters)
        rows = sum(n * size for n, size in self.clusters)
        return (self.lost + self.gained) * rows / (1 + (largest - 1) * self.whole)


FOURS, FEW, UNEQUAL = ((50, 4),), ((8, 5),), ((3, 30), (40, 3))
PAIR_SETTINGS = [
    *(PairSetting(((n, 1),), d / 2 + e, d / 2) for n in (24, 100, 400) for d, e in ((0.02, 0.0), (0.1, 0.0), (0.2, 0.1))),
    *(PairSetting(((25, 4),), 0.04, 0.0, w) for w in (0.5, 1.0)),
    *(PairSetting(((20, 5),), 0.04, 0.0, w) for w in (0.5, 1.0)),
    PairSetting(FOURS, 0.02),
    *(PairSetting(c, 0.2, 0.05, w) for c in (FOURS, FEW, UNEQUAL, ((3, 50), (60, 2))) for w in (0.0, 0.5, 1.0)),
    *(PairSetting(c, 0.25, 0.1, 0.5, s, h) for c in (((200, 1),), FOURS) for s in (2, 3, 5) for h in (0.5, 1.0)),
    *(PairSetting(((100, 1),), 0.02, 0.0, 1.0, s) for s in (2, 3, 5)),
    *(PairSetting(c, 0.0, 0.0, 1.0, 1, 1.0, b) for c in (((100, 1),), ((25, 4),), FEW) for b in (0.5, 0.97, 0.99)),
]


@dataclass(frozen=True)
class PairCovered:
    """What was found in one setting: how often the intervals hold the truth, and how often test and interval disagree."""

    setting: PairSetting
    repetitions: int
    difference: float
    accuracy: float
    disagreement: float
    unclustered: float
    """Coverage of the difference by the interval that takes rows for independent."""


def _units(setting: PairSetting, seeds: int, rng: np.random.Generator) -> Array:
    """A uniform number for each row and seed, [seeds, n], the same within whole clusters and across seeds as set."""
    cluster = setting.cluster
    n = sum(count * size for count, size in setting.clusters)
    index = np.arange(n) if cluster is None else cluster
    whole = rng.random(n) < setting.whole
    draws = np.where(whole, rng.random((seeds, int(index.max()) + 1))[:, index], rng.random((seeds, n)))
    if seeds > 1:  # a unit is the same at all seeds or at none: by cluster where clusters change as wholes
        same = np.where(whole, rng.random(int(index.max()) + 1)[index], rng.random(n)) < setting.shared
        draws = np.where(same, draws[:1], draws)
    return draws


def draw_pair(setting: PairSetting, rng: np.random.Generator) -> tuple[Array, Array]:
    """Correctness of a model and its reference, [seeds, n]."""
    reference = _units(replace(setting, seeds=1), 1, rng) < setting.base
    change = _units(setting, setting.seeds, rng)
    lost = reference & (change < setting.lost / setting.base)
    gained = ~reference & (change < setting.gained / (1 - setting.base))
    model = (reference & ~lost) | gained
    return model.astype(float), np.broadcast_to(reference, model.shape).astype(float)


def cover_pair(setting: PairSetting, repetitions: int = 1000, seed: int = 0) -> PairCovered:
    """Coverage of `paired_difference` and `mean_accuracy` in one setting."""
    rng, cluster = (
        np.random.default_rng([seed, round(1000 * setting.lost), setting.seeds, len(setting.label)]),
        setting.cluster,
    )
    truth, level = setting.gained - setting.lost, setting.base + setting.gained - setting.lost
    found = []
    for _ in range(repetitions):
        model, reference = draw_pair(setting, rng)
        difference = paired_difference(model, reference, cluster)
        _, low, high = mean_accuracy(model, cluster)
        plain = difference if cluster is None else paired_difference(model, reference)
        left_out = not difference.low <= 0 <= difference.high
        found.append(
            (
                difference.low <= truth <= difference.high,
                low <= level <= high,
                left_out != (difference.p < 0.05),
                plain.low <= truth <= plain.high,
            )
        )
    shares = [float(x) for x in np.mean(found, axis=0)]
    return PairCovered(setting, repetitions, *shares)


# ---- means over tasks -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MeanSetting:
    """One line of the table of means over tasks: six subtasks with `tasks` tasks of 60 questions each.

    ``of_subtask`` is the standard deviation of a subtask's own change, common to its tasks: with one seed over subtasks,
    with several over seeds and subtasks.
    """

    seeds: int
    tasks: int
    of_subtask: float
    of_seed: float = 0.0


MEAN_SETTINGS = [
    *(MeanSetting(1, k, s) for k in (1, 2, 3) for s in (0.0, 0.08)),
    *(MeanSetting(n, k, s, e) for n in (3, 5) for k in (2, 3) for s, e in ((0.0, 0.0), (0.08, 0.0), (0.05, 0.05))),
]


@dataclass(frozen=True)
class MeanCovered:
    """Coverage of the mean difference, and of the mean accuracy (undefined where one seed's subtasks differ by chance)."""

    setting: MeanSetting
    repetitions: int
    difference: float
    accuracy: float | None


def cover_mean(setting: MeanSetting, repetitions: int = 1000, seed: int = 0) -> MeanCovered:
    """Coverage of `over_tasks` in one setting: a change of 6 points on average."""
    rng = np.random.default_rng([seed, setting.seeds, setting.tasks, round(1000 * setting.of_subtask)])
    subtasks, n, change = 6, 60, 0.06
    names = [str(i) for i in range(subtasks) for _ in range(setting.tasks)]
    found = []
    for _ in range(repetitions):
        shift = change + setting.of_subtask * np.clip(rng.standard_normal((setting.seeds, subtasks)), -2, 2)
        shift += setting.of_seed * np.clip(rng.standard_normal((setting.seeds, 1)), -2, 2)
        pairs: list[tuple[Array, Array, Array | None]] = []
        for i in range(len(names)):
            difficulty, own = rng.random(n), 0.2 * (rng.random(n) - 0.5)
            fresh = 0.1 * (rng.random((setting.seeds, n)) - 0.5)
            model = difficulty + own + fresh < 0.6 + shift[:, i // setting.tasks, None]
            pairs.append((model.astype(float), np.broadcast_to(difficulty < 0.6, model.shape).astype(float), None))
        mean = mean_difference(pairs, names)
        _, low, high = mean_level([(model, None) for model, _, _ in pairs])
        found.append((mean.low <= change <= mean.high, low <= 0.6 + change <= high))
    shares = np.mean(found, axis=0)
    given_weights = setting.seeds == 1 and setting.of_subtask > 0
    return MeanCovered(setting, repetitions, float(shares[0]), None if given_weights else float(shares[1]))


# ---- the command ----------------------------------------------------------------------------------------------------------


def _spread(setting: Setting) -> str:
    return f"accuracy {setting.acc_sd:g}" if setting.acc_sd is not None else f"PGR {setting.pgr_sd:g}"


def _mark(share: float, most: float = BAND[1]) -> str:
    return f"{100 * share:.1f}" + ("" if BAND[0] <= share <= most else " !")


def _pgr_table(rows: list[Covered]) -> list[list[str]]:
    out = []
    for r in rows:
        s = r.setting
        where_defined = "–" if r.pgr_where_defined is None else f"{100 * r.pgr_where_defined:.1f}"
        setting = [str(s.seeds), str(s.n), f"{s.gap:g}", f"{s.pgr:g}", _spread(s)]
        covered = [_mark(r.pgr), _mark(r.gap), _mark(r.student_to_weak)]
        out.append([*setting, *covered, f"{100 * r.defined:.0f}", where_defined, f"{100 * r.rows_only:.1f}"])
    return out


def _pair_table(rows: list[PairCovered]) -> list[list[str]]:
    out = []
    for r in rows:
        s = r.setting
        setting = [s.label, f"{s.base:g}", f"{s.lost:g}", f"{s.gained:g}", f"{s.whole:g}", str(s.seeds), f"{s.shared:g}"]
        found = [_mark(r.difference, most=1), _mark(r.accuracy, most=1), f"{100 * r.disagreement:.1f}"]
        out.append([*setting, f"{s.units:.1f}", *found, f"{100 * r.unclustered:.1f}"])
    return out


def _mean_table(rows: list[MeanCovered]) -> list[list[str]]:
    out = []
    for r in rows:
        s = r.setting
        setting = [str(s.seeds), str(s.tasks), f"{s.of_subtask:g}", f"{s.of_seed:g}"]
        out.append([*setting, _mark(r.difference, most=1), "–" if r.accuracy is None else _mark(r.accuracy, most=1)])
    return out


def _answer_table(rows: list[answers.AnswersCovered]) -> list[list[str]]:
    out = []
    for r in rows:
        s = r.setting
        setting = [s.label, f"{s.base:g}", f"{s.lost:g}", f"{s.shift:g}", f"{s.blur:g}", f"{s.whole:g}"]
        parts = ["–" if share is None else _mark(share, most=1) for share in r.parts.values()]
        out.append([*setting, *parts, *(f"{100 * share:.1f}" for share in r.metrics.values())])
    return out


def _rank_table(rows: list[answers.RankCovered]) -> list[list[str]]:
    out = []
    for r in rows:
        s = r.setting
        points = str(s.points) if s.size == 1 else f"{s.points // s.size} x {s.size}"
        rejected = "–" if r.rejected is None else f"{100 * r.rejected:.1f}"
        out.append([points, f"{s.rho:g}", f"{s.alike:g}", _mark(r.rho, most=1), rejected])
    return out


def _auroc_table(rows: list[AurocCovered]) -> list[list[str]]:
    out = []
    for r in rows:
        s = r.setting
        size = str(s.rows) if s.size == 1 else f"{s.rows // s.size} x {s.size}"
        areas = [f"{s.share:g}", f"{s.first:g}", f"{s.second:g}"]
        rest = [str(s.seeds), f"{s.spread:g}", f"{s.shared:g}", f"{s.unequal:g}"]
        out.append([size, *areas, *rest, _mark(r.area, most=1), _mark(r.difference, most=1), f"{100 * r.rejected:.1f}"])
    return out


def _pooling_table(rows: list[PoolingCovered]) -> list[list[str]]:
    out = []
    for r in rows:
        s = r.setting
        setting = [str(s.tasks), str(s.seeds), f"{s.gain:g}", f"{s.spread:g}"]
        ratio = "–" if r.pgr is None else _mark(r.pgr, most=1)
        out.append([*setting, _mark(r.mean, most=1), _mark(r.new_task, most=1), ratio])
    return out


def _prompt_table(rows: list[PromptsCovered]) -> list[list[str]]:
    out = []
    for r in rows:
        s = r.setting
        size = str(s.rows) if s.size == 1 else f"{s.rows // s.size} x {s.size}"
        setting = [str(s.prompts), str(s.seeds), size, f"{s.prompt:g}", f"{s.taste:g}", f"{s.level[0]:g} / {s.level[1]:g}"]
        out.append([*setting, _mark(r.difference, most=1), f"{100 * r.given_prompts:.1f}", f"{100 * r.sd:.1f}"])
    return out


def _print(title: str, head: list[str], rows: list[list[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in head:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False)
    (console if console.is_terminal else Console(highlight=False, width=150)).print(table)


def main(arguments: list[str] | None = None) -> int:
    """Print the coverage tables; 1 where an interval that the report gives leaves the band."""
    parser = argparse.ArgumentParser(prog="scripts/coverage", description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=4000, help="of every setting (default 4000: ± 0.3 points)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print JSON")
    chosen = parser.parse_args(arguments)
    if chosen.repetitions < 1:
        parser.error("--repetitions must be at least 1")
    pgr = [cover(s, chosen.repetitions, chosen.seed) for s in SETTINGS]
    # These go through the report's own functions, one repetition at a time.
    each = max(1, chosen.repetitions // 4)
    pairs = [cover_pair(s, each, chosen.seed) for s in PAIR_SETTINGS]
    means = [cover_mean(s, each, chosen.seed) for s in MEAN_SETTINGS]
    changes = [answers.cover_answers(s, each, chosen.seed) for s in answers.ANSWER_SETTINGS]
    ranks = [answers.cover_rank(s, chosen.repetitions, chosen.seed) for s in answers.RANK_SETTINGS]
    areas = [cover_auroc(s, each, chosen.seed) for s in AUROC_SETTINGS]
    pooled = [cover_pooling(s, each, chosen.seed) for s in POOLING_SETTINGS]
    asked = [cover_prompts(s, chosen.repetitions, chosen.seed) for s in PROMPT_SETTINGS]
    if chosen.json:
        data = {"band": BAND, "pgr": [asdict(c) for c in pgr], "differences": [asdict(c) for c in pairs]}
        others: dict[str, list[Any]] = {"means": means, "answers": changes, "rank_correlations": ranks, "auroc": areas}
        others |= {"pooling": pooled, "prompts": asked}
        print(json.dumps(data | {k: [asdict(c) for c in v] for k, v in others.items()}, indent=2))
    else:
        head = ["seeds", "rows", "gap", "true PGR", "SD over seeds", "PGR", "ceiling-weak", "student-weak", "defined"]
        title = "coverage of nominal 95 % intervals, in % (! = outside 93 to 98); last: over seeds, by rows alone"
        _print(title, [*head, "PGR if", "rows only"], _pgr_table(pgr))
        head = ["rows", "base", "lost", "gained", "whole", "seeds", "shared", "units", "difference", "accuracy"]
        title = "accuracies and paired differences (! = below 93); units: rows or groups that differ, on average"
        _print(title, [*head, "p disagrees", "groups ignored"], _pair_table(pairs))
        head = ["seeds", "tasks a subtask", "SD of subtask", "SD of seed", "mean difference", "mean accuracy"]
        _print("means over six subtasks (! = below 93)", head, _mean_table(means))
        head = ["rows", "base", "lost", "shift", "blur", "whole", *answers.PARTS, *answers.TABLE_METRICS]
        title = "parts of a change (! = below 93), and value +- 1.96 errors of the scores of a table"
        _print(title, head, _answer_table(changes))
        head = ["points", "correlation", "alike in a cluster", "Spearman's rho", "p < .05"]
        _print("rank correlations (! = below 93)", head, _rank_table(ranks))
        head = ["rows", "class 1", "first", "second", "seeds", "SD of seed", "shared", "SD of class 1", "AUROC"]
        _print("AUROC and paired differences of it (! = below 93)", [*head, "difference", "p < .05"], _auroc_table(areas))
        head = ["tasks", "seeds", "gain", "SD between tasks", "mean", "new task", "PGR"]
        _print("effects over tasks (! = below 93); PGR where it is given", head, _pooling_table(pooled))
        head = ["prompts", "seeds", "rows", "SD of prompt", "of one seed's", "levels", "difference", "given these"]
        title = "differences over prompts (! = below 93); beside it the interval given these prompts, and the SD found, %"
        _print(title, [*head, "SD found"], _prompt_table(asked))
    below = [x for c in areas for x in (c.area, c.difference)] + [c.difference for c in asked]
    below += [x for c in pairs for x in (c.difference, c.accuracy)] + [c.difference for c in means]
    below += [x for c in pooled for x in (c.mean, c.new_task, c.pgr) if x is not None]
    below += [x for c in changes for x in c.parts.values() if x is not None] + [c.rho for c in ranks]
    outside = [c for c in pgr if not all(BAND[0] <= x <= BAND[1] for x in (c.pgr, c.gap, c.student_to_weak))]
    return 1 if outside or min(below) < BAND[0] else 0


if __name__ == "__main__":
    sys.exit(main())
