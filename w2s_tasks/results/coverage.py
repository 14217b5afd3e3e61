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

from w2s_tasks.results.components import Components, crossed
from w2s_tasks.results.gap import gap_components, in_fieller_set
from w2s_tasks.results.stats import PAIR

Array = npt.NDArray[Any]

BAND = (0.93, 0.97)
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
    inside: Array = np.abs(parts.mean[..., contrast] - truth) <= half
    return inside


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
    inside: Array = np.abs(np.einsum("ri,ri->r", direction, parts.mean)) <= parts.half_width(direction)
    return inside


def _rows_only(parts: Components) -> Components:
    nothing = np.zeros_like(parts.seeds)
    return replace(parts, seeds=nothing, rows=parts.rows + parts.rest, rest=nothing, seed_df=0)


# ---- differences with one seed: few rows, little discordance, clusters ----------------------------------------------------


@dataclass(frozen=True)
class PairSetting:
    """One line of the table of paired differences with one seed."""

    n: int
    discordance: float
    difference: float = 0.0
    cluster_size: int = 1
    within: float = 0.0
    """Share of the rows of a cluster that copy its first one."""


PAIR_SETTINGS = [
    *(PairSetting(n, d) for n in (24, 100, 400) for d in (0.02, 0.1, 0.3)),
    *(PairSetting(n, 0.2, 0.1) for n in (24, 100, 400)),
    *(PairSetting(n, d, 0.0, 4, w) for n in (100, 400) for d in (0.1, 0.3) for w in (0.0, 0.5, 1.0)),
]


@dataclass(frozen=True)
class PairCovered:
    """Coverage of the paired difference in one setting, and that of the interval that takes rows for independent."""

    setting: PairSetting
    repetitions: int
    interval: float
    unclustered: float


def cover_pair(setting: PairSetting, repetitions: int = 4000, seed: int = 0) -> PairCovered:
    """Coverage of `paired_difference` in one setting."""
    rng = np.random.default_rng([seed, setting.n, round(1000 * setting.discordance), round(100 * setting.within)])
    plus = (setting.discordance + setting.difference) / 2
    draw = rng.random((repetitions, setting.n))
    if setting.cluster_size > 1:
        first = draw.reshape(repetitions, -1, setting.cluster_size)
        copies = rng.random(first.shape) < setting.within
        draw = np.where(copies, first[:, :, :1], first).reshape(repetitions, -1)
    delta = (draw < plus).astype(float) - ((draw >= plus) & (draw < setting.discordance))
    cluster = np.arange(setting.n) // setting.cluster_size if setting.cluster_size > 1 else None
    inside = [
        float(holds(crossed(delta[:, None, None], c, PAIR), np.asarray(setting.difference)).mean()) for c in (cluster, None)
    ]
    return PairCovered(setting, repetitions, *inside)


# ---- the command ----------------------------------------------------------------------------------------------------------


def _spread(setting: Setting) -> str:
    return f"accuracy {setting.acc_sd:g}" if setting.acc_sd is not None else f"PGR {setting.pgr_sd:g}"


def _mark(share: float) -> str:
    return f"{100 * share:.1f}" + ("" if BAND[0] <= share <= BAND[1] else " !")


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
        setting = [str(s.n), f"{s.discordance:g}", f"{s.difference:g}", str(s.cluster_size), f"{s.within:g}"]
        out.append([*setting, _mark(r.interval), f"{100 * r.unclustered:.1f}"])
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
    pairs = [cover_pair(s, chosen.repetitions, chosen.seed) for s in PAIR_SETTINGS]
    if chosen.json:
        data = {"band": BAND, "pgr": [asdict(c) for c in pgr], "differences": [asdict(c) for c in pairs]}
        print(json.dumps(data, indent=2))  # noqa: T201
    else:
        head = ["seeds", "rows", "gap", "true PGR", "SD over seeds", "PGR", "ceiling-weak", "student-weak", "defined"]
        title = "coverage of nominal 95 % intervals, in % (! = outside 93 to 97); last: over seeds, by rows alone"
        _print(title, [*head, "PGR if", "rows only"], _pgr_table(pgr))
        head = ["rows", "discordance", "difference", "cluster", "copies within", "interval", "clusters ignored"]
        _print("paired differences with one seed", head, _pair_table(pairs))
    outside = [c for c in pgr if not all(BAND[0] <= x <= BAND[1] for x in (c.pgr, c.gap, c.student_to_weak))]
    return 1 if outside else 0


if __name__ == "__main__":
    sys.exit(main())
