"""The primary endpoint: one comparison that was named before the run, with when, and what came of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from trainers.config.primary import Primary as Endpoint
from trainers.flow import stamp
from trainers.report.blocks import Block, Note
from trainers.report.collected import Collected, Evaluations, Group, matched
from trainers.report.entries import Entry, Interval
from trainers.report.section import Report, Section, section
from trainers.report.text import fraction, fractions, group_title, points, points_interval
from trainers.steps.arm import Arm
from w2s_tasks.results.components import Components
from w2s_tasks.results.discrimination import auroc_components
from w2s_tasks.results.equivalence import equivalence
from w2s_tasks.results.read import TaskScores
from w2s_tasks.results.safety import stacked
from w2s_tasks.results.stats import Difference, difference_of, paired_components, paired_difference

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


@section
@dataclass(frozen=True, kw_only=True)
class Primary(Section):
    """The primary endpoint."""

    title = "Primary endpoint"
    link = "Primary"
    place = 5

    primary: Outcome | None
    primary_problem: str | None
    """Why there is no outcome of an endpoint that was named."""
    primary_named: Named | None

    @classmethod
    def form(cls, collected: Collected) -> Primary:
        """From the evaluations that it names."""
        endpoint = collected.config.primary
        if endpoint is None:
            return cls(primary=None, primary_problem=None, primary_named=None)
        outcome, problem = _outcome(collected, endpoint)
        return cls(primary=outcome, primary_problem=problem, primary_named=_named(collected, endpoint))

    def terminal(self, report: Report) -> Iterator[Block]:
        """Verdict and when it was named."""
        if self.primary_named:
            yield Note(f"Primary endpoint: {self._verdict()}")
            yield Note(_told(self.primary_named))

    def page(self, report: Report) -> Iterator[Block]:
        """The same."""
        if self.primary_named:
            yield Note(self._verdict(), "verdict")
            yield Note(_told(self.primary_named))

    def _verdict(self) -> str:
        found = self.primary
        if found is None:
            return f"{self.primary_problem}."
        arm, change = group_title((found.arm, found.method)), found.difference
        margin = "" if found.margin is None else f"{100 * found.margin:g}"
        claim = CLAIMS[found.claim].format(arm=arm, against=found.against, margin=margin)
        level, ends = ("95", (change.low, change.high)) if found.claim == "differs" else ("90", found.ci90)
        if found.measure == "auroc":
            value, interval = fraction(change.value), fractions(ends)
        else:
            value, interval = f"{points(change.value)} points", points_interval(*ends)
        over = f"{change.n} questions" + (f" and {change.n_seeds} seeds" if change.n_seeds > 1 else ", given these weights")
        return (
            f"“{claim}” ({found.measure} on {found.task}): {'shown' if found.shown else 'not shown'}. Difference {value}, "
            f"{level} % interval {interval}, p {found.p:.3f}, over {over}."
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
    # The stages of a sweep's cell are the sweep's, and so is the record.
    folder = next(iter(collected.run.stages.values())).folder.parent.parent
    starts, asked = stamp.read(folder).starts, endpoint.model_dump()
    # The last unbroken stretch of starts with this endpoint: who names another one in between names this one anew.
    same = 0
    while same < len(starts) and asked in starts[-1 - same].primary:
        same += 1
    if not same:
        return Named(time=None, experiment=stamp.fingerprint(collected.config), evaluations=0, changes=0)
    first = starts[-same]
    return Named(time=first.time, experiment=first.experiment, evaluations=first.evaluations, changes=same - 1)


def _group(collected: Collected, evaluations: Evaluations, name: str, method: str | None, task: str) -> Group | None:
    groups = (g for g in collected.groups(evaluations) if g.name == name and method in (None, g.method))
    return next((group for group in groups if task in evaluations[group.arms[0]]), None)


def _outcome(collected: Collected, endpoint: Endpoint) -> tuple[Outcome | None, str | None]:
    """What came out, or why nothing did."""
    task = endpoint.task or collected.task
    evaluations = collected.training if task == collected.task else collected.safety
    group = _group(collected, evaluations, endpoint.arm, endpoint.method_of(collected.config.methods), task)
    other = _group(collected, evaluations, endpoint.against, None, task)
    if group is None or other is None:
        return None, f"the run has no evaluation of {endpoint.arm} and {endpoint.against} on {task}"

    def read(arm: Arm) -> TaskScores:
        return evaluations[arm][task]

    first, second = matched(group, other, read)
    compared = _compared(first, second, endpoint.measure)
    if compared is None:
        return None, f"{task} has no AUROC: its answers are text, pairs, of one class, or no classes at all"
    parts, difference = compared
    half, centre = float(parts.half_width(np.eye(len(parts.mean))[0], 0.9)), float(parts.mean[0])
    p = _p(endpoint, parts, difference)
    outcome = Outcome(
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
    return outcome, None


def _p(endpoint: Endpoint, parts: Components, difference: Difference) -> float:
    match endpoint.claim:
        case "differs":
            return difference.p
        case "above":  # with one seed the exact test has a say, as in the two-sided p
            return difference.p / 2 if difference.value > 0 else 1 - difference.p / 2
        case "equal":
            return equivalence(parts, endpoint.margin or 0.0).equal
        case "not_below":
            return equivalence(parts, endpoint.margin or 0.0).not_below


def _compared(first: list[TaskScores], second: list[TaskScores], measure: str) -> tuple[Components, Difference] | None:
    """Components of first - second, and their difference; None where there is no AUROC.

    Raises:
        UserError: evaluations of different questions.
    """
    like, seeds = first[0], max(len(first), len(second))
    own, other = (stacked(part, like, seeds) for part in (first, second))
    if measure == "accuracy":
        return paired_components(own, other, like.cluster), paired_difference(own, other, like.cluster)
    parts = auroc_components(first, second)
    return None if parts is None else (parts, difference_of(parts, like.n))
