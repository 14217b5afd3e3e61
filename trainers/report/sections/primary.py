"""The primary endpoint: one comparison that was named before the run, with when, and what came of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainers.config.primary import Primary as Endpoint
from trainers.flow import stamp
from trainers.report.blocks import Block, Note
from trainers.report.collected import Collected, Group, matched
from trainers.report.entries import Entry, Interval
from trainers.report.section import SECTIONS, Report, Section
from trainers.report.text import fraction, group_title, points, points_interval
from trainers.steps.arm import Arm
from w2s_tasks.errors import UserError
from w2s_tasks.results.components import Components, crossed
from w2s_tasks.results.discrimination import auroc_table
from w2s_tasks.results.equivalence import above, equivalence
from w2s_tasks.results.read import TaskScores
from w2s_tasks.results.safety import aligned
from w2s_tasks.results.stats import PAIR, Difference, difference_of, paired_components, paired_difference

LEVEL = 0.05
CLAIMS = {
    "differs": "{arm} and {against} differ",
    "above": "{arm} is above {against}",
    "not_below": "{arm} is not below {against} by {margin} points or more",
    "equal": "{arm} and {against} are within {margin} points of each other",
}


@dataclass(frozen=True, kw_only=True)
class Outcome(Entry):
    """What was asked, and what came out."""

    arm: str
    method: str | None
    seeds: list[int | None]
    against: str
    task: str
    measure: str
    claim: str
    margin: float | None
    difference: Difference
    ci90: Interval
    """The interval that two one-sided tests at 5 % look at."""
    p: float
    """Of the claim: two-sided for differs, else one-sided."""
    shown: bool
    """Whether p < .05."""


@dataclass(frozen=True, kw_only=True)
class Named(Entry):
    """When the endpoint was named."""

    time: str | None
    """UTC; null where nothing tells (the run was not started by w2s run)."""
    experiment: str
    """Hex sha256 of the configuration."""
    evaluations: int
    """Evaluations that were there when this endpoint was named first: 0 for one that was named before any result."""
    changes: int
    """How often the run was started with another configuration since."""


@SECTIONS.entry
@dataclass(frozen=True, kw_only=True)
class Primary(Section):
    """The primary endpoint."""

    title = "Primary endpoint"
    link = "Primary"
    place = 5

    primary: Outcome | None
    primary_named: Named | None

    @classmethod
    def form(cls, collected: Collected) -> Primary:
        """From the evaluations that it names."""
        endpoint = collected.config.primary
        if endpoint is None:
            return cls(primary=None, primary_named=None)
        return cls(primary=_outcome(collected, endpoint), primary_named=_named(collected, endpoint))

    def terminal(self, report: Report) -> Iterator[Block]:
        """Verdict and when it was named."""
        if self.primary and self.primary_named:
            yield Note(f"Primary endpoint: {self._verdict(self.primary)}")
            yield Note(_told(self.primary_named))

    def page(self, report: Report) -> Iterator[Block]:
        """The same."""
        if self.primary and self.primary_named:
            yield Note(self._verdict(self.primary), "verdict")
            yield Note(_told(self.primary_named))

    def _verdict(self, found: Outcome) -> str:
        arm = group_title((found.arm, found.method))
        margin = "" if found.margin is None else f"{100 * found.margin:g}"
        claim = CLAIMS[found.claim].format(arm=arm, against=found.against, margin=margin)
        change = found.difference
        if found.measure == "auroc":
            value, ends = fraction(change.value), f"[{fraction(found.ci90[0])}, {fraction(found.ci90[1])}]"
        else:
            value, ends = f"{points(change.value)} points", points_interval(*found.ci90)
        level = "90 % interval" if found.claim != "differs" else "95 % interval"
        if found.claim == "differs":
            ends = points_interval(change.low, change.high)
        word = "shown" if found.shown else "not shown"
        over = f"{change.n} questions" + (f" and {change.n_seeds} seeds" if change.n_seeds > 1 else ", given these weights")
        return (
            f"“{claim}” ({found.measure} on {found.task}): {word}. Difference {value}, {level} {ends}, p {found.p:.3f}, "
            f"over {over}."
        )


def _told(named: Named) -> str:
    when = "It is not known when it was named" if named.time is None else f"Named on {named.time} (UTC)"
    if named.time is not None:
        when += (
            ", before any evaluation was there"
            if not named.evaluations
            else f", when {named.evaluations} evaluations were there already, so it is exploratory too"
        )
    since = f"; the configuration was changed {named.changes} times since" if named.changes else ""
    return f"{when}{since}; sha256 of the configuration {named.experiment[:16]}… Everything below is exploratory."


def _named(collected: Collected, endpoint: Endpoint) -> Named:
    stamps, asked = stamp.read(collected.run.folder), endpoint.model_dump()
    # The last unbroken stretch of starts with this endpoint: who names another one in between names this one anew.
    same = 0
    while same < len(stamps) and stamps[-1 - same].primary == asked:
        same += 1
    now = stamp.fingerprint(collected.config)
    if not same:
        return Named(time=None, experiment=now, evaluations=0, changes=0)
    first = stamps[-same]
    return Named(time=first.time, experiment=first.experiment, evaluations=first.evaluations, changes=same - 1)


def _group(collected: Collected, name: str, method: str | None, task: str) -> tuple[Group, Any]:
    evaluations = collected.training if task == collected.task else collected.safety
    for group in collected.groups(evaluations):
        if group.name == name and method in (None, group.method) and task in evaluations[group.arms[0]]:
            return group, evaluations
    raise UserError(f"primary: no evaluation of the arm {name} on {task}; name an arm and a task that the run has.")


def _outcome(collected: Collected, endpoint: Endpoint) -> Outcome:
    task = endpoint.task or collected.task
    method = endpoint.method or (collected.config.methods[0] if endpoint.arm == "student" else None)
    group, evaluations = _group(collected, endpoint.arm, method, task)
    other, _ = _group(collected, endpoint.against, None, task)

    def read(arm: Arm) -> TaskScores:
        found: TaskScores = evaluations[arm][task]
        return found

    first, second = matched(group, other, read)
    for one in (*first, *second):
        aligned(one, first[0])
    parts, difference = _compared(first, second, endpoint.measure, task)
    half = float(parts.half_width(np.eye(len(parts.mean))[0], 0.9))
    centre = float(parts.mean[0])
    if endpoint.claim == "differs":
        p = difference.p
    elif endpoint.claim == "above":
        p = above(parts)
    else:
        found = equivalence(parts, endpoint.margin or 0.0)
        p = found.equal if endpoint.claim == "equal" else found.not_below
    return Outcome(
        **group.about,
        against=endpoint.against,
        task=task,
        measure=endpoint.measure,
        claim=endpoint.claim,
        margin=endpoint.margin,
        difference=difference,
        ci90=(max(-1.0, centre - half), min(1.0, centre + half)),
        p=p,
        shown=p < LEVEL,
    )


def _compared(first: list[TaskScores], second: list[TaskScores], measure: str, task: str) -> tuple[Components, Difference]:
    """Components of first - second, and their difference."""
    cluster = first[0].cluster
    if measure == "accuracy":
        own, other = np.broadcast_arrays(*(np.stack([s.correct for s in part]) for part in (first, second)))
        return paired_components(own, other, cluster), paired_difference(own, other, cluster)
    areas = auroc_table(first), auroc_table(second)
    if areas[0] is None or areas[1] is None:
        raise UserError(f"primary: {task} has no AUROC (its answers are text, pairs, or of one class); use accuracy.")
    parts = crossed((areas[0] - areas[1])[None], cluster, PAIR)
    return parts, difference_of(parts, first[0].n)
