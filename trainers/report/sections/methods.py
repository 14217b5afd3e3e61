"""What every model gains over the supervisor, in points and in errors, and the students' methods against each other."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from trainers.labels.arms import kind_of
from trainers.report.blocks import Block, Cell, Note, Row, Table
from trainers.report.collected import Collected, Group, matched
from trainers.report.entries import Entry, Interval, OfArm
from trainers.report.section import Report, Section, section
from trainers.report.sections.accuracy import Array, scores_of, series
from trainers.report.text import fraction, fractions, group_title, percent, percents, points, points_interval
from w2s_tasks.results.gains import UNDEFINED, Ratio, errors_removed, pgr_difference
from w2s_tasks.results.read import TaskScores
from w2s_tasks.results.stats import Difference, holm, paired_difference


@dataclass(frozen=True, kw_only=True)
class Gain(OfArm):
    """A model's accuracy minus the supervisor's and minus the untuned model's, and the share of errors removed."""

    to_weak: Difference
    """Minus the weak supervisor"""
    to_zero_shot: Difference | None
    """Minus the untuned model"""
    errors_removed: float | None
    """(model - weak) / (1 - weak); null where the supervisor makes no error that is significant."""
    errors_removed_ci95: Interval | None
    """Fieller's 95 % interval of that share."""


@dataclass(frozen=True, kw_only=True)
class MethodPair(Entry):
    """Students of two methods on the same questions and seeds: the first minus the second."""

    first: str
    """A method of the student."""
    second: str
    """The method that it is compared with."""
    seeds: list[int | None]
    """The repetitions that both have."""
    difference: Difference
    """First minus second"""
    p_holm: float
    """Corrected for all pairs."""
    pgr: float | None
    """Of PGR; null where the gap is not significant."""
    pgr_ci95: Interval | None
    """Fieller's 95 % interval of that difference of PGR."""


@section
@dataclass(frozen=True, kw_only=True)
class Methods(Section):
    """Gains, and method against method."""

    title = "Gains, and method against method"
    link = "Methods"
    place = 25

    gains: list[Gain]
    method_pairs: list[MethodPair]
    """Of every two methods of the student; a family of tests of its own."""

    @classmethod
    def form(cls, collected: Collected) -> Methods:
        """From the evaluations on the training task."""
        return cls(gains=list(_gains(collected)), method_pairs=_pairs(collected))

    def terminal(self, report: Report) -> Iterator[Block]:
        """A sentence a pair of methods that differ, or that none does."""
        yield from (Note(line) for line in self.verdicts())

    def page(self, report: Report) -> Iterator[Block]:
        """Two tables."""
        if self.gains:
            rows: list[Row] = [
                (
                    group_title(gain.group),
                    _points(gain.to_weak),
                    _points(gain.to_zero_shot) if gain.to_zero_shot else "–",
                    Cell(percent(gain.errors_removed), percents(gain.errors_removed_ci95 or (None, None))),
                )
                for gain in self.gains
            ]
            yield Table(("arm", "points over weak", "points over zero_shot", "weak's errors removed, %"), rows, style="wrap")
            yield Note(
                "Differences are paired by question and seed, with 95 % intervals; (arm − weak) / (1 − weak) has "
                "Fieller's. Neither needs a ceiling, and neither tells what a better teacher would have brought: that "
                "is PGR's question."
            )
        if self.method_pairs:
            rows = [
                (
                    f"{pair.first} − {pair.second}",
                    _points(pair.difference),
                    f"{pair.p_holm:.3f}",
                    f"{fraction(pair.pgr)} {fractions(pair.pgr_ci95)}" if pair.pgr is not None else "undefined",
                )
                for pair in self.method_pairs
            ]
            yield Table(("methods", "points", "p (Holm)", "PGR [95 %]"), rows, style="wrap")
            yield from (Note(line) for line in self.verdicts())

    def verdicts(self) -> Iterator[str]:
        """A sentence a pair of methods that differ, or that none does."""
        pairs = self.method_pairs
        if not pairs:
            return
        apart = [pair for pair in pairs if pair.p_holm < 0.05]
        for pair in apart:
            better, worse = (pair.first, pair.second) if pair.difference.value > 0 else (pair.second, pair.first)
            yield (
                f"{better} is better than {worse} by {100 * abs(pair.difference.value):.1f} points "
                f"(Holm p {pair.p_holm:.3f} over {len(pairs)} pairs of methods)."
            )
        if not apart:
            widest = max(max(-pair.difference.low, pair.difference.high) for pair in pairs)
            count = f"{len(pairs)} pair{'s' if len(pairs) > 1 else ''}"
            yield (
                f"No method differs significantly from another one ({count}, Holm); differences of up to "
                f"{100 * widest:.1f} points are not excluded."
            )


def _points(difference: Difference) -> Cell:
    return Cell(points(difference.value), points_interval(difference.low, difference.high))


def _gains(collected: Collected) -> Iterator[Gain]:
    weak, untuned = (collected.group(collected.training, name) for name in ("weak", "zero_shot"))
    if weak is None:
        return
    like, seeds = scores_of(collected, weak)[0], list(collected.config.seeds)
    base = _correct(collected, weak, like, len(seeds))
    bare = _correct(collected, untuned, like, len(seeds)) if untuned is not None else None
    for group in collected.groups(collected.training):
        if kind_of(group.name).model != "strong":
            continue
        own = _correct(collected, group, like, len(seeds))
        removed = errors_removed(base, own, like.cluster)
        yield Gain(
            **group.about | {"seeds": seeds},
            to_weak=paired_difference(own, base, like.cluster),
            to_zero_shot=None if bare is None or group.name == "zero_shot" else paired_difference(own, bare, like.cluster),
            errors_removed=removed.value,
            errors_removed_ci95=_ends(removed),
        )


def _correct(collected: Collected, group: Group, like: TaskScores, seeds: int) -> Array:
    rows = series(scores_of(collected, group), like, seeds)
    assert rows is not None  # noqa: S101 - for the type checker: every score has a correctness
    return rows


def _ends(ratio: Ratio) -> Interval | None:
    return None if ratio.value is None else (ratio.low, ratio.high)


def _pairs(collected: Collected) -> list[MethodPair]:
    students = [group for group in collected.groups(collected.training) if group.name == "student"]
    weak, ceiling = (collected.group(collected.training, name) for name in ("weak", collected.ceiling))
    found = []
    for first, second in itertools.combinations(students, 2):
        arms, _ = matched(first, second, lambda arm: arm)
        like = scores_of(collected, first)[0]
        a, b = (_correct(collected, group, like, len(arms)) for group in (first, second))
        ratio = UNDEFINED
        if weak is not None and ceiling is not None:
            base, top = (_correct(collected, group, like, len(arms)) for group in (weak, ceiling))
            ratio = pgr_difference(a, b, base, top, like.cluster)
        difference = paired_difference(a, b, like.cluster)
        found.append((str(first.method), str(second.method), [arm.seed for arm in arms], difference, ratio))
    corrected = holm([difference.p for *_, difference, _ in found])
    return [
        MethodPair(
            first=first,
            second=second,
            seeds=seeds,
            difference=difference,
            p_holm=p,
            pgr=ratio.value,
            pgr_ci95=_ends(ratio),
        )
        for (first, second, seeds, difference, ratio), p in zip(found, corrected, strict=True)
    ]
