"""report.html: one static file that opens anywhere, from report.json alone; and the page that compares several runs."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from jinja2 import DictLoader, Environment, select_autoescape
from markupsafe import Markup

from trainers.report import figures, figures_safety
from trainers.report.tables import arm_title, group_title, means_of, percent, pgr_text, safety_grid, several_seeds, verdict

Report = dict[str, Any]


def _figure(svg: str | None) -> Markup | None:
    # The SVG is our own, and matplotlib escapes the text in it; everything else on the page is autoescaped.
    return None if svg is None else Markup(svg)  # noqa: S704


def _diagnostics(report: Report) -> list[Report]:
    """Diagnostics as means over the seeds of an arm."""
    entries = report.get("diagnostics", [])
    rows = []
    for key in dict.fromkeys((e["arm"], e["method"]) for e in entries):
        own = [e for e in entries if (e["arm"], e["method"]) == key]

        def mean(*path: str, own: list[Report] = own) -> float | None:
            values = [_at(e, path) for e in own]
            known = [v for v in values if v is not None]
            return sum(known) / len(known) if known else None

        rows.append(
            {
                "title": group_title(own[0]),
                "seeds": len(own),
                "agreement": mean("agreement", "value"),
                "capa": mean("capa"),
                "right": mean("right_overrides", "value"),
                "overrides": mean("overrides"),
                "copied": mean("copied", "value"),
                "by_ceiling": mean("copied_by_ceiling", "value"),
                "blind": mean("blind_spots", "value"),
                "ece": mean("calibration", "ece"),
                "brier": mean("calibration", "brier"),
            }
        )
    return rows


def _at(entry: Any, path: Sequence[str]) -> float | None:
    for key in path:
        if entry is None:
            return None
        entry = entry[key]
    return None if entry is None else float(entry)


def _confusions(report: Report) -> list[Report]:
    """Confusion tables summed over the seeds of an arm; small tasks only."""
    rows = []
    for key in dict.fromkeys((a["arm"], a["method"]) for a in report["arms"]):
        tables = [a["confusion"] for a in report["arms"] if (a["arm"], a["method"]) == key and a.get("confusion")]
        width = max((len(row) for t in tables for row in t), default=0)
        if not tables or width > 5:
            continue
        padded = [[[*row, *[0] * (width - len(row))] for row in t] for t in tables]
        total = [[sum(t[i][j] for t in padded) for j in range(width)] for i in range(len(padded[0]))]
        rows.append({"title": group_title({"arm": key[0], "method": key[1]}), "table": total, "seeds": len(tables)})
    return rows


def _ladder(report: Report) -> list[Report]:
    """A line for each arm, split and way of scoring, a cell for each number of shots."""
    entries = report.get("ladder", [])
    shots = sorted({e["num_fewshot"] for e in entries})
    lines: dict[tuple[Any, ...], Report] = {}
    for e in entries:
        line = lines.setdefault((e["arm"], e["method"], e["split"], e["mode"]), {**e, "title": group_title(e), "points": {}})
        line["points"][e["num_fewshot"]] = e
    return [{**line, "points": [line["points"].get(k) for k in shots]} for line in lines.values()]


def _checkpoints(report: Report) -> list[str]:
    """The shares of a training after which it was evaluated too."""
    shares = {e.get("checkpoint") for e in report.get("tradeoff", [])} - {None}
    return [f"{100 * share:g} %" for share in sorted(shares)]


def _environment() -> Environment:
    folder = files("trainers.report").joinpath("templates")
    names = ("report.html.j2", "compare.html.j2", "style.html.j2")
    texts = {name: folder.joinpath(name).read_text(encoding="utf-8") for name in names}
    environment = Environment(
        loader=DictLoader(texts),
        autoescape=select_autoescape(default_for_string=True, default=True),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    environment.globals.update(pgr_text=pgr_text, group_title=group_title, verdict=verdict)
    return environment


def render(report: Report) -> str:
    """The page as HTML text; every value from the report is escaped."""
    students = ("student",)
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            title_of=lambda entry: arm_title(entry, report),
            gaps={(g["arm"], g["method"]): g for g in report["gaps"]},
            means=means_of(report),
            several=several_seeds(report),
            safety=safety_grid(report),
            checkpoints=_checkpoints(report),
            diagnostics=_diagnostics(report),
            confusions=_confusions(report),
            ladder=_ladder(report),
            figures={
                "methods": _figure(figures.recovered_panels(figures.method_columns(report), "method of the student")),
                "dots": _figure(figures.accuracy_dots(report)),
                "curves": _figure(figures.learning_curves(report)),
                "heat": _figure(figures_safety.heat_map(report)),
                "forest": _figure(figures_safety.forest(report, "to_zero_shot")),
                "forest_ceiling": _figure(figures_safety.forest(report, "to_ceiling", students)),
                "drift": _figure(figures_safety.drift_bars(report)),
                "ladder": _figure(figures_safety.ladder(report)),
                "tradeoff": _figure(figures_safety.tradeoff(report)),
            },
        )
    )


def render_comparison(reports: Sequence[Report]) -> str:
    """Several runs on one page: accuracy and PGR by size of the strong model, or by run."""
    arms = list(dict.fromkeys((m["arm"], m["method"]) for r in reports for m in means_of(r)))
    rows = [
        {
            "title": group_title({"arm": a, "method": m}),
            "cells": [next((e for e in means_of(r) if (e["arm"], e["method"]) == (a, m)), None) for r in reports],
            "gaps": [next((g for g in r["gaps"] if (g["arm"], g["method"]) == (a, m)), None) for r in reports],
        }
        for a, m in arms
    ]
    return (
        _environment()
        .get_template("compare.html.j2")
        .render(
            reports=reports,
            rows=rows,
            panels=_figure(figures.recovered_panels(figures.run_columns(reports), "run")),
        )
    )
