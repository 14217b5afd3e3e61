"""Position: how often a model answers A where two candidates stand on drawn sides, and the same letter in both orders.

A model that prefers a place is right on half of the questions without having read them; its accuracy alone doesn't say so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from trainers.report.blocks import Block, Note, Table
from trainers.report.collected import Collected, about
from trainers.report.entries import OfModel
from trainers.report.section import Report, Section, section
from trainers.report.text import group_title, percent

SHARES = ("first", "consistent", "position_bias")
"""Scores of `w2s_tasks.scoring.pairwise`."""


@dataclass(frozen=True, kw_only=True)
class Positions(OfModel):
    """One model on one task of two candidates; shares with their standard errors, null where a task doesn't ask for them."""

    task: str
    """The task's name in lm_eval."""
    n: int
    """Questions."""
    first: float | None
    """Share of answers A; .5 where the place decides nothing."""
    first_stderr: float | None
    """Its standard error."""
    consistent: float | None
    """Share of pairs that are answered right in both orders."""
    consistent_stderr: float | None
    """Its standard error."""
    position_bias: float | None
    """Share of pairs that are given the same letter in both orders."""
    position_bias_stderr: float | None
    """Its standard error."""


@section
@dataclass(frozen=True, kw_only=True)
class Position(Section):
    """What the place of two candidates decides."""

    title = "Position"
    place = 39

    positions: list[Positions]

    @classmethod
    def form(cls, collected: Collected) -> Position:
        """From the tasks that tell it."""
        entries = []
        for evaluations in (collected.training, collected.safety):
            for arm, tasks in evaluations.items():
                for task, scores in tasks.items():
                    if "first" in scores.metrics:
                        shares: dict[str, Any] = {name: scores.metrics.get(name) for name in SHARES}
                        errors: dict[str, Any] = {f"{name}_stderr": scores.stderr.get(name) for name in SHARES}
                        entries.append(Positions(**about(arm), task=task, n=scores.n, **shares, **errors))
        return cls(positions=entries)

    def page(self, report: Report) -> Iterator[Block]:
        """A line a model and task."""
        if not self.positions:
            return
        columns = ("arm", "seed", "task", "n", "answers A %", "right in both orders %", "same letter in both %")
        rows = [
            (
                group_title(entry.group),
                "–" if entry.seed is None else str(entry.seed),
                entry.task,
                str(entry.n),
                *(_share(getattr(entry, name), getattr(entry, f"{name}_stderr")) for name in SHARES),
            )
            for entry in self.positions
        ]
        yield Table(columns, rows)
        yield Note("Shares ± standard errors. Sides are drawn by each row's text, so that answers A should be half of all.")


def _share(value: float | None, error: float | None) -> str:
    return "–" if value is None else percent(value) if error is None else f"{percent(value)} ± {percent(error)}"
