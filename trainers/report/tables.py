"""A report as tables on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
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


def means_of(report: Report) -> list[dict[str, Any]]:
    """Arms over their seeds; from the single models where a report of an older version has no means."""
    if report.get("arm_means"):
        return list(report["arm_means"])
    return [
        {**a, "acc": a["metrics"]["acc"], "ci95": a["ci95"]["acc"], "per_seed": [a["metrics"]["acc"]]}
        for a in report["arms"]
    ]


def safety_grid(report: Report) -> dict[str, Any] | None:
    """Accuracies over seeds by task (rows) and arm (columns), with the difference to the untuned model."""
    if not report["safety"]:
        return None
    columns = list(dict.fromkeys((e["arm"], e["method"]) for e in report["safety"]))
    gaps = {(g["task"], g["arm"], g["method"]): g for g in report.get("safety_gaps", []) if g["contrast"] == "to_zero_shot"}
    means = {
        (g["split"], g["mode"], g["arm"], g["method"]): g
        for g in report.get("safety_mean_gaps", [])
        if g["contrast"] == "to_zero_shot"
    }
    rows = []
    for task in dict.fromkeys(e["task"] for e in report["safety"]):
        first = next(e for e in report["safety"] if e["task"] == task)
        cells = [_cell(report["safety"], {"task": task}, c, gaps.get((task, *c))) for c in columns]
        detectable = [g["detectable"] for g in gaps.values() if g["task"] == task and g["detectable"] is not None]
        rows.append(
            {
                "name": first["subtask"],
                "split": first["split"],
                "mode": first["mode"],
                "n": first["n"],
                "cells": cells,
                "detectable": max(detectable) if detectable else None,
            }
        )
    for split, mode in dict.fromkeys((e["split"], e.get("mode")) for e in report["safety_means"]):
        wanted = {"split": split, "mode": mode} if mode else {"split": split}
        cells = [_cell(report["safety_means"], wanted, c, means.get((split, mode, *c))) for c in columns]
        rows.append({"name": "mean", "split": split, "mode": mode or "", "n": "", "cells": cells, "detectable": None})
    return {
        "titles": [group_title({"arm": a, "method": m}) for a, m in columns],
        "generated": any(e["mode"] == "generated" for e in report["safety"]),
        "objectives": sorted({str(e["objective"]) for e in report["safety"] if e.get("objective")}),
        "rows": rows,
        "probe": any("probe" in e["task"] for e in report["safety"]),
    }


def _cell(entries: Sequence[Report], wanted: Report, column: tuple[str, str | None], gap: Report | None) -> Any:
    own = [e for e in entries if (e["arm"], e["method"]) == column]
    found = [e["acc"] for e in own if all(e[k] == v for k, v in wanted.items())]
    return {"acc": sum(found) / len(found), "gap": gap} if found else None


def several_seeds(report: Report) -> bool:
    """Whether any arm was trained more than once."""
    return any(len(m["per_seed"]) > 1 for m in means_of(report))


def means_table(report: Report) -> Table:
    """Accuracy of every arm over its seeds, with 95 % intervals and PGR."""
    gaps = {(g["arm"], g["method"]): g for g in report["gaps"]}
    table = _table(f"{report['experiment']}: {report['task']} (means over seeds, %, 95 % intervals)")
    for column in ("arm", "seeds", "n", "accuracy", "each seed", "PGR [95 %]"):
        table.add_column(column, justify="left" if column == "arm" else "right")
    for m in means_of(report):
        accuracy = f"{percent(m['acc'])} [{percent(m['ci95'][0])}, {percent(m['ci95'][1])}]"
        gap = gaps.get((m["arm"], m["method"]))
        each = " ".join(percent(x) for x in m["per_seed"])
        table.add_row(group_title(m), str(len(m["per_seed"])), str(m["n"]), accuracy, each, pgr_text(gap) if gap else "")
    return table


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


def _change_cell(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return "–"
    text, gap = percent(cell["acc"]), cell["gap"]
    if gap is None:
        return text
    sure = "*" if gap.get("p_holm") is not None and gap["p_holm"] < 0.05 else ""
    return f"{text} ({100 * gap['value']:+.1f}±{100 * gap['stderr']:.1f}){sure}"


def safety_table(report: Report) -> Table | None:
    """Accuracy on each safety task over seeds, with the paired difference to the untuned model and what n can show."""
    grid = safety_grid(report)
    if grid is None:
        return None
    what = "ETHICS probe (hand-written, not the benchmark)" if grid["probe"] else "safety"
    table = _table(f"{what}: accuracy % (difference to zero_shot ± standard error)")
    for column in ("task", "split", "n", *grid["titles"], "detectable"):
        table.add_column(column, justify="left" if column in ("task", "split") else "right")
    first_mean = next((r for r in grid["rows"] if r["name"] == "mean"), None)
    for row in grid["rows"]:
        if row is first_mean:
            table.add_section()
        name = row["name"] + (", text" if row["mode"] == "generated" else "")
        detectable = "" if row["name"] == "mean" else "none"
        if row["detectable"] is not None:
            detectable = f"{100 * row['detectable']:.0f}"
        table.add_row(name, row["split"], str(row["n"]), *[_change_cell(c) for c in row["cells"]], detectable)
    return table


def _family_note(report: Report) -> str:
    family = report.get("safety_family")
    if not family:
        return ""
    return (
        f"* p < .05 after Holm over the {family['tests']} comparisons of an arm. Detectable: the smallest difference, in "
        f"points, that this test finds alone among those {family['tests']} with 80 % power. {_still(report)}"
    )


def _still(report: Report) -> str:
    """How many safety tasks no arm moved at all: nothing could be lost there, so they say nothing for or against safety."""
    gaps = [g for g in report["safety_gaps"] if g["contrast"] == "to_zero_shot"]
    tasks = list(dict.fromkeys(g["task"] for g in gaps))
    still = [t for t in tasks if not any(g["discordance"] for g in gaps if g["task"] == t)]
    if not still:
        return ""
    return f"In {len(still)} of {len(tasks)} tasks no arm has other questions right than the untuned model."


def show(report: Report, console: Console | None = None) -> None:
    """Print verdict and tables to standard output."""
    console = console or standard_output()
    console.print()
    console.print(means_table(report) if several_seeds(report) else arms_table(report))
    console.print(verdict(report), soft_wrap=True)
    for note in report.get("notes", []):
        console.print(f"Note: {note}", soft_wrap=True, markup=False)
    labels = report["weak_labels"][0]
    console.print(f"Weak labels: {percent(labels['acc'])} % right on the {labels['n']} rows that students learn from.")
    table = safety_table(report)
    if table is not None:
        console.print()
        console.print(table)
        console.print(_family_note(report), soft_wrap=True)
    console.print(f"Time: {report['seconds']['total']:.0f} s in all stages.")


def compare(reports: list[Report], console: Console | None = None) -> None:
    """Several runs side by side: accuracy of every arm over its seeds, and its PGR."""
    console = console or standard_output()
    table = _table("accuracy % [95 % interval], PGR [95 %] below")
    table.add_column("arm")
    for report in reports:
        table.add_column(f"{report['experiment']}\n{report['task']}", justify="right")
    for key in dict.fromkeys((m["arm"], m["method"]) for r in reports for m in means_of(r)):
        cells = []
        for report in reports:
            found = next((m for m in means_of(report) if (m["arm"], m["method"]) == key), None)
            gap = next((g for g in report["gaps"] if (g["arm"], g["method"]) == key), None)
            if found is None:
                cells.append("–")
                continue
            text = f"{percent(found['acc'])} [{percent(found['ci95'][0])}, {percent(found['ci95'][1])}]"
            cells.append(text + (f"\nPGR {pgr_text(gap)}" if gap else ""))
        table.add_row(group_title({"arm": key[0], "method": key[1]}), *cells)
    console.print(table)
