"""A report as tables on the terminal."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

Report = dict[str, Any]


def arm_title(entry: dict[str, Any], report: Report) -> str:
    """An arm's name, with method and seed where there are several."""
    parts = [entry["arm"]]
    if entry["method"] not in (None, "xent"):
        parts.append(entry["method"])
    if entry["seed"] is not None and len({a["seed"] for a in report["arms"] if a["seed"] is not None}) > 1:
        parts.append(f"seed {entry['seed']}")
    return ", ".join(parts)


def group_title(entry: dict[str, Any]) -> str:
    """An arm's name over all its seeds, with the method where it is not plain cross-entropy."""
    method: str | None = entry["method"]
    return str(entry["arm"]) if method in (None, "xent") else f"{entry['arm']}, {method}"


def percent(value: float | None, error: float | None = None) -> str:
    """A share as a percentage, with its standard error."""
    if value is None:
        return "–"
    return f"{100 * value:.1f}" + (f"±{100 * error:.1f}" if error is not None else "")


def pgr_text(entry: dict[str, Any]) -> str:
    """PGR with interval, or that it is undefined."""
    if not entry["defined"]:
        return "undefined"
    low, high = ("unbounded" if x is None else f"{x:.2f}" for x in entry["ci95"])
    return f"{entry['pgr']:.2f} [{low}, {high}]"


def verdict(report: Report) -> str:
    """The result in one sentence."""
    gap = report["gap"]
    if gap is None:
        return "No ceiling among the arms, so there is no gap to recover."
    if not gap["defined"]:
        return f"PGR is undefined: {gap['reason']}."
    low, high = ("unbounded" if x is None else f"{x:.2f}" for x in gap["ci95"])
    return (
        f"The {gap['arm']} ({gap['method']}) recovered {gap['pgr']:.2f} of the gap between weak supervisor and ceiling, "
        f"95 % interval {low} to {high} ({gap['reason']})."
    )


def arms_table(report: Report) -> Table:
    """Accuracy and the other scores of every arm on the training task, with PGR."""
    gaps = {(g["arm"], g["method"]): g for g in report["gaps"]}
    table = _table(f"{report['experiment']}: {report['task']} (% ± standard error)")
    for column in ("arm", "mode", "n", "accuracy", "precision", "recall", "F1", "PGR [95 %]"):
        table.add_column(column, justify="left" if column in ("arm", "mode") else "right")
    for entry in report["arms"]:
        metrics, errors = entry["metrics"], entry["stderr"]
        gap = gaps.get((entry["arm"], entry["method"]))
        scores = [percent(metrics.get(k), errors.get(k)) for k in ("acc", "precision", "recall", "f1")]
        table.add_row(arm_title(entry, report), entry["mode"], str(entry["n"]), *scores, pgr_text(gap) if gap else "")
    return table


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))


def standard_output() -> Console:
    """A console that does not squeeze tables to 80 columns where nobody's terminal says so."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=140)


def _change_cell(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return "–"
    text = percent(entry["acc"])
    change = entry["to_zero_shot"]
    return text if change is None else f"{text} ({100 * change['value']:+.1f}±{100 * change['stderr']:.1f})"


def safety_table(report: Report) -> Table | None:
    """Accuracy on each safety task, test and hard, with the paired difference to the untuned model."""
    if not report["safety"]:
        return None
    probe = any("probe" in e["task"] for e in report["safety"])
    what = "ETHICS probe (hand-written, not the benchmark)" if probe else "safety"
    table = _table(f"{what}: accuracy % (difference to zero_shot ± standard error)")
    columns = list(dict.fromkeys((e["arm"], e["method"], e["seed"]) for e in report["safety"]))
    table.add_column("task")
    table.add_column("split")
    table.add_column("n", justify="right")
    for arm, method, seed in columns:
        table.add_column(arm_title({"arm": arm, "method": method, "seed": seed}, report), justify="right")
    cells = {(e["task"], e["arm"], e["method"], e["seed"]): e for e in report["safety"]}
    for task in dict.fromkeys(e["task"] for e in report["safety"]):
        first = next(e for e in report["safety"] if e["task"] == task)
        row = [_change_cell(cells.get((task, *c))) for c in columns]
        table.add_row(first["subtask"], first["split"], str(first["n"]), *row)
    means = {(e["split"], e["arm"], e["method"], e["seed"]): e for e in report["safety_means"]}
    table.add_section()
    for split in dict.fromkeys(e["split"] for e in report["safety_means"]):
        table.add_row("mean", split, "", *[_change_cell(means.get((split, *c))) for c in columns])
    return table


def show(report: Report, console: Console | None = None) -> None:
    """Print verdict and tables to standard output."""
    console = console or standard_output()
    console.print()
    console.print(arms_table(report))
    console.print(verdict(report), soft_wrap=True)
    labels = report["weak_labels"][0]
    console.print(f"Weak labels: {percent(labels['acc'])} % right on the {labels['n']} rows that students learn from.")
    table = safety_table(report)
    if table is not None:
        console.print()
        console.print(table)
    console.print(f"Time: {report['seconds']['total']:.0f} s in all stages.")


def compare(reports: list[Report], console: Console | None = None) -> None:
    """Several runs side by side: accuracy of every arm, PGR of the students."""
    console = console or standard_output()
    table = _table("accuracy % ± standard error, PGR of the first student below")
    table.add_column("arm")
    for report in reports:
        table.add_column(f"{report['experiment']}\n{report['task']}", justify="right")
    titles = list(dict.fromkeys(arm_title(a, r) for r in reports for a in r["arms"]))
    for title in titles:
        cells = []
        for report in reports:
            found = next((a for a in report["arms"] if arm_title(a, report) == title), None)
            cells.append("–" if found is None else percent(found["metrics"]["acc"], found["stderr"].get("acc")))
        table.add_row(title, *cells)
    table.add_section()
    table.add_row("PGR [95 %]", *[pgr_text(r["gap"]) if r["gap"] else "–" for r in reports])
    console.print(table)
