"""report.html: one static file that opens anywhere, from report.json alone."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from jinja2 import Environment, select_autoescape
from markupsafe import Markup

from trainers import figures
from trainers.tables import arm_title, percent, pgr_text, verdict

Report = dict[str, Any]


def _figure(svg: str | None) -> Markup | None:
    # The SVG is our own, and matplotlib escapes the text in it; everything else on the page is autoescaped.
    return None if svg is None else Markup(svg)  # noqa: S704


def _safety_grid(report: Report) -> dict[str, Any] | None:
    if not report["safety"]:
        return None
    columns = list(dict.fromkeys((e["arm"], e["method"], e["seed"]) for e in report["safety"]))
    titles = [arm_title({"arm": a, "method": m, "seed": s}, report) for a, m, s in columns]
    cells = {(e["task"], e["arm"], e["method"], e["seed"]): e for e in report["safety"]}
    means = {(e["split"], e["arm"], e["method"], e["seed"]): e for e in report["safety_means"]}
    rows = []
    for task in dict.fromkeys(e["task"] for e in report["safety"]):
        first = next(e for e in report["safety"] if e["task"] == task)
        rows.append(
            {
                "name": first["subtask"],
                "split": first["split"],
                "n": first["n"],
                "cells": [cells.get((task, *c)) for c in columns],
            }
        )
    for split in dict.fromkeys(e["split"] for e in report["safety_means"]):
        rows.append({"name": "mean", "split": split, "n": "", "cells": [means.get((split, *c)) for c in columns]})
    return {"titles": titles, "rows": rows, "probe": any("probe" in e["task"] for e in report["safety"])}


def render(report: Report) -> str:
    """The page as HTML text; every value from the report is escaped."""
    environment = Environment(
        autoescape=select_autoescape(default_for_string=True, default=True), trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = percent
    environment.globals.update(title_of=lambda entry: arm_title(entry, report), pgr_text=pgr_text)
    template = environment.from_string(files("trainers").joinpath("templates/report.html.j2").read_text(encoding="utf-8"))
    return template.render(
        report=report,
        verdict=verdict(report),
        gaps={(g["arm"], g["method"]): g for g in report["gaps"]},
        safety=_safety_grid(report),
        dots=_figure(figures.accuracy_dots(report)),
        curves=_figure(figures.learning_curves(report)),
        forest=_figure(figures.safety_forest(report)),
    )
