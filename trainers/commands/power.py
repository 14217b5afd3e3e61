"""`w2s power`: what an experiment will be able to show, from numbers or from a pilot's report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from trainers.report.blocks import Block, Note, Table
from trainers.report.report import here, read_report
from trainers.report.section import Report
from trainers.report.sections.accuracy import Accuracy, Mean
from trainers.report.sections.methods import Methods
from trainers.report.text import points
from w2s_tasks.errors import UserError
from w2s_tasks.results.planning import OWN, Expected, Planned, most_discordant, planned, seeds_needed

UNKNOWN_SD = 0.02
"""A model's standard deviation over seeds where a pilot has one seed: as SmolLM2-135M has on SST-2 (docs/results.md)."""
LEAST_SD = 0.002
DISCORDANCE = 0.2
"""Share of the rows on which one of two models is right, where nothing tells."""
POWER = 0.8


@dataclass(frozen=True)
class Pilot:
    """What a pilot's report says of an experiment like it."""

    expected: Expected
    n: int
    notes: tuple[str, ...]


def of_report(place: str) -> Pilot:
    """What to expect of an experiment like a finished one.

    Raises:
        UserError: no report, or one without weak supervisor, student and ceiling.
    """
    return _pilot(read_report(here(place)), place)


def _pilot(report: Report, place: str) -> Pilot:
    accuracy = report.of(Accuracy)
    means = {name: _mean(accuracy.arm_means, name) for name in ("weak", "student", "ceiling")}
    if missing := [name for name, mean in means.items() if mean is None]:
        raise UserError(f"{place}: no arm {', '.join(missing)} in it; a plan needs weak, student and ceiling.")
    weak, student, ceiling = (mean for mean in means.values() if mean is not None)
    deviations = [np.std(mean.per_seed, ddof=1) for mean in (weak, student, ceiling) if len(mean.per_seed) > 1]
    gain = next((gain for gain in report.of(Methods).gains if gain.group == student.group), None)
    # Of two models of equal accuracy: what they differ on beyond the difference itself.
    change = gain.to_weak if gain is not None else None
    differing = DISCORDANCE if change is None or change.discordance is None else change.discordance - abs(change.value)
    seeds = len(report.head.config["seeds"])
    notes = [f"pilot: {Path(place).name}, {student.n} questions, {seeds} seed{'s' if seeds > 1 else ''}"]
    if deviations:
        # The spread of measured accuracies holds what a training changes on single rows, too, which is drawn anew.
        noise = (1 - OWN) * differing / (2 * student.n)
        spread = float(np.sqrt(max(LEAST_SD**2, float(np.mean(np.square(deviations))) - noise)))
        if seeds < 5:
            notes.append(f"the spread over {seeds} seeds is itself hardly known; try --seed-sd {1.5 * spread:.3f} too")
    else:
        spread = UNKNOWN_SD
        notes.append(f"one seed tells nothing of their spread: {spread} is taken (--seed-sd)")
    if student.acc <= weak.acc:
        notes.append("the pilot's student is not above its supervisor: name the difference to look for (--difference)")
    expected = fitting(Expected(weak.acc, student.acc, ceiling.acc, discordance=differing, seed_sd=spread))
    return Pilot(expected, student.n, tuple(notes))


def fitting(expected: Expected) -> Expected:
    """The same with a discordance that models of these accuracies can have: at most 3/4 of what independent ones have."""
    most = 0.75 * most_discordant(expected.middle)
    return replace(expected, discordance=min(most, max(expected.discordance, 0.01)))


def _mean(means: Iterable[Mean], name: str) -> Mean | None:
    return next((mean for mean in means if mean.arm == name), None)


def plans(expected: Expected, rows: Sequence[int], seeds: Sequence[int]) -> Iterator[Planned]:
    """Every combination of rows and seeds.

    Raises:
        UserError: numbers that do not go together.
    """
    try:
        yield from (planned(expected, n, s) for n in rows for s in seeds)
    except ValueError as error:
        raise UserError(f"{error}.") from error


def shown(expected: Expected, found: Sequence[Planned], notes: Sequence[str]) -> Iterator[Block]:
    """The table, and how many seeds the expected difference takes."""
    equal = [] if expected.margin is None else [f"equal within {100 * expected.margin:g}"]
    columns = ("n", "seeds", "detectable", f"power at {points(expected.effect)}", *equal, "gate passes", "width of PGR")
    rows = []
    for plan in found:
        line = [str(plan.n), str(plan.seeds), _percent(plan.detectable, 1), _percent(plan.power, 0)]
        line += [] if plan.equal is None else [_percent(plan.equal, 0)]
        rows.append((*line, _percent(plan.gate, 0), "–" if plan.pgr_width is None else f"{plan.pgr_width:.2f}"))
    family = f", Holm over {expected.tests} tests" if expected.tests > 1 else ""
    yield from (Note(note) for note in notes)
    yield Note(
        f"weak {expected.weak:.1%}, student {expected.student:.1%}, ceiling {expected.ceiling:.1%}; models differ on "
        f"{expected.discordance:.0%} of the questions; SD over seeds {100 * expected.seed_sd:.1f} points{family}"
    )
    yield Table(columns, rows, title="what it can show: points, and % of drawn experiments")
    for n in dict.fromkeys(plan.n for plan in found):
        needed = seeds_needed(expected, n) if expected.effect else None
        told = "more than 30 seeds" if needed is None else f"{needed} seeds"
        yield Note(f"{points(expected.effect)} points with {n} questions: {told} for {POWER:.0%} power.")
    yield Note(
        "One seed holds for its own weights: another training may give another answer. Detectable: the smallest difference "
        f"found with {POWER:.0%} power. Gate: ceiling significantly above weak, without which no PGR is given."
    )


def _percent(value: float | None, digits: int) -> str:
    return "none" if value is None else f"{100 * value:.{digits}f}"


def with_options(pilot: Expected, **given: float | int | None) -> Expected:
    """The pilot's numbers with those that a user names in their place."""
    return replace(pilot, **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
