"""Several runs side by side: accuracy and PGR by size of the strong model, or by run, on the terminal or on a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from markupsafe import Markup

from trainers.report.blocks import Block, Cell, Figure, Heading, Note, Table, html
from trainers.report.page import framed
from trainers.report.panels import Column, recovered_panels
from trainers.report.section import Report
from trainers.report.sections.accuracy import Accuracy
from trainers.report.sections.cost import Cost
from trainers.report.sections.setup import Setup
from trainers.report.text import Named, group_title, percent, percents


def table(reports: Sequence[Report]) -> Table:
    """Accuracy of every arm over its seeds with its interval, PGR below."""
    arms = list(dict.fromkeys(mean.group for report in reports for mean in report.of(Accuracy).arm_means))
    rows = [(group_title(arm), *(_cell(report.of(Accuracy), arm) for report in reports)) for arm in arms]
    runs = [f"{report.head.experiment}\n{report.head.task}" for report in reports]
    return Table(("arm", *runs), rows, title="accuracy % [95 % interval], PGR [95 %] below")


def _cell(accuracy: Accuracy, arm: Named) -> Cell | str:
    mean, gap = accuracy.mean(arm), accuracy.gap_of(arm)
    if mean is None:
        return "–"
    return Cell(percent(mean.acc), percents(mean.ci95) + (f"\nPGR {gap}" if gap else ""))


def columns(reports: Sequence[Report]) -> list[Column]:
    """A column for each run, the strong model's size on the axis where all sizes are known and differ."""
    found = []
    for report in reports:
        accuracy, size = report.of(Accuracy), report.of(Setup).models["strong"].parameters
        found.append(Column(report.head.experiment, size, accuracy.levels(), list(accuracy.students().values())))
    sizes = [column.size for column in found]
    if None in sizes or len(set(sizes)) < 2 or len({report.head.task for report in reports}) > 1:
        return [replace(column, size=None) for column in found]
    return found


def render_comparison(reports: Sequence[Report]) -> str:
    """The page that compares runs."""
    blocks: list[Block] = [
        *(Note(f"{r.head.experiment} ({r.head.task}): {r.of(Accuracy).verdict}", "verdict") for r in reports),
        Heading("Accuracy and PGR"),
        Figure(
            recovered_panels(columns(reports), "run"),
            "Accuracy between weak supervisor and ceiling; below, the share of the gap recovered (after Burns et al. 2023, "
            "figure 3). Bars are 95 % intervals.",
        ),
        table(reports),
        Note(
            "Accuracy in % with its 95 % interval, over the seeds of each run. Runs on other rows or tasks are not paired: "
            "compare intervals, not single points."
        ),
        Heading("Set-up"),
        Table(
            ("run", "weak supervisor", "strong model", "parameters", "seeds", "seconds"),
            [_facts(report) for report in reports],
            left=("weak supervisor", "strong model"),
            style="prose",
        ),
    ]
    title = Markup("<h1>{} runs compared</h1>").format(len(reports))
    names = ", ".join(report.head.experiment for report in reports)
    return framed(f"{names} – weak-to-strong comparison", [title, html(blocks)])


def _facts(report: Report) -> tuple[str, ...]:
    config, size = report.head.config, report.of(Setup).models["strong"].parameters
    return (
        *(report.head.experiment, config["weak"]["model"], config["strong"]["model"]),
        f"{size / 1e6:,.1f} M" if size else "–",
        ", ".join(map(str, config["seeds"])),
        f"{report.of(Cost).seconds['total']:.1f}",
    )
