"""Figures of a report as inline SVG: no scripts, no network, text that stays text.

matplotlib comes with the extra ``[report]``; without it the page has its tables only and says so. Figures are narrow, so
that their text is readable on a phone; `figures_safety` has those on safety.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trainers.labels.arms import ARMS
from trainers.report.tables import group_title, means_of

Report = dict[str, Any]
WIDTH = 5.0  # inches

FURTHER = ("#b22222", "#ff9d5c", "#8c510a", "#e7298a", "#c7a500", "#7570b3", "#1f9e89")
MARKERS = "osD^vP*X"
NEUTRAL = "#808080"


def colour_of(entry: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    """An arm's colour; further methods of the student get their own, and few_shot(4) that of few_shot."""
    name = str(entry["arm"]).partition("(")[0]
    methods = list(dict.fromkeys(a["method"] for a in report["arms"] if a["arm"] == name))
    place = methods.index(entry["method"]) if entry["method"] in methods else 0
    return (ARMS[name].colour if name in ARMS else NEUTRAL) if place == 0 else FURTHER[(place - 1) % len(FURTHER)]


def marker_of(entry: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    """A marker of its own for each arm and method, so that colour is never the only sign."""
    keys = list(dict.fromkeys((a["arm"], a["method"]) for a in report["arms"]))
    key = (entry["arm"], entry["method"])
    return MARKERS[(keys.index(key) if key in keys else 0) % len(MARKERS)]


def svg(draw: Callable[[Any], None], height: float, about: str, width: float = WIDTH) -> str | None:
    """Draw on a figure of this size (inches) and return it as SVG text; None without matplotlib.

    Args:
        draw: fills the figure.
        height: inches.
        about: what it shows, for those who can't see it.
        width: inches.
    """
    try:
        import matplotlib as mpl
    except ImportError:
        return None
    mpl.use("svg")
    from markupsafe import escape
    from matplotlib.figure import Figure

    # Text as text scales with the reader's font; currentColor follows light and dark.
    style = {
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 10,
        "svg.hashsalt": "w2s",
        "text.parse_math": False,
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.patch.set_alpha(0)
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'(<svg [^>]*?) width="[^"]*" height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = text.replace("#000000", "currentColor")
    # matplotlib leaves glyph text without a colour of its own, which would be black on a dark page.
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(about)}" fill="currentColor" ', 1)


def clean(axes: Any) -> None:
    """No frame, no background."""
    axes.patch.set_alpha(0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def legend_above(figure: Any, axes: Any, columns: int = 2) -> None:
    """One legend for the whole figure, above it, where it covers nothing."""
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(unique.values(), unique, loc="outside upper left", ncols=columns, frameon=False, fontsize=9)


def accuracy_dots(report: Report) -> str | None:
    """Accuracy of every arm with its 95 % interval and its seeds, weak supervisor and ceiling as guides."""
    arms = means_of(report)

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        clean(axes)
        for arm in arms:
            if arm["arm"] in ("weak", "ceiling"):
                axes.axvline(100 * arm["acc"], color=ARMS[arm["arm"]].colour, linestyle=":", linewidth=1)
        for y, arm in enumerate(reversed(arms)):
            low, high = (100 * x for x in arm["ci95"])
            colour = colour_of(arm, report)
            axes.plot([low, high], [y, y], color=colour, linewidth=2, solid_capstyle="butt")
            axes.plot(100 * arm["acc"], y, marker_of(arm, report), color=colour, markersize=7)
            if len(arm["per_seed"]) > 1:
                ticks = [100 * x for x in arm["per_seed"]]
                axes.plot(ticks, [y - 0.28] * len(ticks), "|", color=colour, markersize=6)
        axes.set_yticks(range(len(arms)), [group_title(a) for a in reversed(arms)])
        several = max(len(a["per_seed"]) for a in arms) > 1
        marks = f"bars: 95 % interval{'; ticks: seeds' if several else ''}; n = {arms[0]['n']}"
        axes.set_xlabel(f"accuracy on {report['task']}, %\n({marks})")
        axes.margins(y=0.12)

    return svg(draw, 1.0 + 0.36 * len(arms), f"accuracy of {len(arms)} arms with intervals")


Column = dict[str, Any]
"""A place on the x axis: ``label``, ``size`` (parameters or None), ``levels`` (accuracy by guide), ``points`` (students)."""


def method_columns(report: Report) -> list[Column]:
    """A column for each method of the student."""
    means = means_of(report)
    levels = {a["arm"]: a["acc"] for a in means if a["arm"] in ("weak", "zero_shot", "ceiling")}
    gaps = {(g["arm"], g["method"]): g for g in report["gaps"]}
    return [
        {"label": a["method"], "size": None, "levels": levels, "points": [_point(a, gaps, report)]}
        for a in means
        if a["arm"] == "student"
    ]


def _point(arm: dict[str, Any], gaps: Mapping[Any, Any], report: Report) -> dict[str, Any]:
    gap = gaps.get((arm["arm"], arm["method"]))
    return {
        "title": group_title(arm),
        "acc": arm["acc"],
        "ci95": arm["ci95"],
        "gap": gap,
        "colour": colour_of(arm, report),
        "marker": marker_of(arm, report),
    }


def run_columns(reports: Sequence[Report]) -> list[Column]:
    """A column for each run, the strong model's size on the axis where all sizes are known and differ."""
    columns = []
    for report in reports:
        means, gaps = means_of(report), {(g["arm"], g["method"]): g for g in report["gaps"]}
        levels = {a["arm"]: a["acc"] for a in means if a["arm"] in ("weak", "zero_shot", "ceiling")}
        size = report.get("models", {}).get("strong", {}).get("parameters")
        points = [_point(a, gaps, report) for a in means if a["arm"] == "student"]
        columns.append({"label": report["experiment"], "size": size, "levels": levels, "points": points})
    sizes = [c["size"] for c in columns]
    if None in sizes or len(set(sizes)) < 2 or len({r["task"] for r in reports}) > 1:
        columns = [{**c, "size": None} for c in columns]
    return columns


def recovered_panels(columns: Sequence[Column], what: str) -> str | None:
    """Accuracy above, PGR below, as in figure 3 of Burns et al. (2023); None with fewer than two columns.

    Args:
        columns: places on the x axis.
        what: the name of that axis where it is no size.
    """
    if len(columns) < 2:
        return None
    sized = columns[0]["size"] is not None
    ordered = sorted(columns, key=lambda c: c["size"]) if sized else list(columns)
    places = [c["size"] / 1e6 for c in ordered] if sized else list(range(len(ordered)))
    # A column between two others keeps its points apart without leaving it.
    titles = list(dict.fromkeys(p["title"] for c in ordered for p in c["points"]))

    def shift(place: float, title: str) -> float:
        offset = (titles.index(title) - (len(titles) - 1) / 2) * 0.12 if len(ordered[0]["points"]) > 1 else 0.0
        return place * 2 ** (offset / 4) if sized else place + offset

    def draw(figure: Any) -> None:
        upper, lower = figure.subplots(2, 1, sharex=True)
        for level in ("weak", "zero_shot", "ceiling"):
            values = [100 * c["levels"][level] if level in c["levels"] else float("nan") for c in ordered]
            if not any(level in c["levels"] for c in ordered):
                continue
            upper.plot(places, values, "--", color=ARMS[level].colour, label=level, linewidth=1.3, marker="_", markersize=9)
        for place, column in zip(places, ordered, strict=True):
            for point in column["points"]:
                _draw_point(upper, lower, shift(place, point["title"]), point)
        for y, name in ((0, "weak"), (1, "ceiling")):
            lower.axhline(y, color=ARMS[name].colour, linestyle=":", linewidth=1)
        upper.set_ylabel("accuracy, %")
        lower.set_ylabel("PGR (0 weak, 1 ceiling)")
        if sized:
            lower.set_xscale("log")
            lower.set_xticks(places, [f"{p:,.3g}" for p in places])
            lower.minorticks_off()
            lower.set_xlabel("parameters of the strong model, millions")
        else:
            crowded = max(len(str(c["label"])) for c in ordered) * len(ordered) > 44
            turn = {"rotation": 35, "ha": "right"} if crowded else {}
            lower.set_xticks(places, [c["label"] for c in ordered], **turn)
            lower.set_xlim(-0.5, len(ordered) - 0.5)
            lower.set_xlabel(what)
        for axes in (upper, lower):
            clean(axes)
        legend_above(figure, upper, 3)

    return svg(draw, 5.2, f"accuracy and PGR by {what if not sized else 'size of the strong model'}")


def _draw_point(upper: Any, lower: Any, x: float, point: dict[str, Any]) -> None:
    look = {"color": point["colour"]}
    upper.plot([x, x], [100 * v for v in point["ci95"]], linewidth=2, **look)
    upper.plot(x, 100 * point["acc"], point["marker"], label=point["title"], markersize=7, **look)
    gap = point["gap"]
    if gap is None or not gap["defined"]:
        lower.annotate("undefined", (x, 0.5), rotation=90, ha="center", va="center", fontsize=9, color=point["colour"])
        return
    low, high = gap["ci95"]
    lower.plot([x, x], [gap["pgr"] if low is None else low, gap["pgr"] if high is None else high], linewidth=2, **look)
    lower.plot(x, gap["pgr"], point["marker"], markersize=7, **look)


def learning_curves(report: Report) -> str | None:
    """Training loss, and accuracy on held-back rows, by optimizer step: each arm's mean over seeds, its seeds behind it."""
    curves = report["curves"]
    groups = list(dict.fromkeys((c["arm"], c["method"]) for c in curves))

    def draw(figure: Any) -> None:
        upper, lower = figure.subplots(2, 1)
        for group in groups:
            own = [c for c in curves if (c["arm"], c["method"]) == group]
            look = {"color": colour_of(own[0], report), "label": group_title(own[0])}
            losses = [_smooth([(p["step"], p["loss"]) for p in c["points"] if "loss" in p]) for c in own]
            held = [[(p["step"], 100 * p["eval_accuracy"]) for p in c["points"] if "eval_accuracy" in p] for c in own]
            _lines(upper, losses, look)
            _lines(lower, held, {**look, "marker": marker_of(own[0], report), "markersize": 4})
        upper.set_ylabel("training loss, nats\n(mean of 5 steps)")
        lower.set_ylabel("accuracy on held-back\nrows (gold), %")
        for axes in (upper, lower):
            clean(axes)
            axes.set_xlabel("optimizer step")
        legend_above(figure, upper)

    return svg(draw, 4.6 + 0.11 * len(groups), "training loss and held-back accuracy by step") if curves else None


def _lines(axes: Any, lines: Sequence[Sequence[tuple[int, float]]], look: Mapping[str, Any]) -> None:
    """The mean of several lines where they share steps, and the lines themselves thin behind it."""
    known = [dict(line) for line in lines if line]
    if not known:
        return
    if len(known) > 1:
        for line in known:
            axes.plot(list(line), list(line.values()), color=look["color"], linewidth=0.7, alpha=0.3)
    steps = sorted(set.intersection(*(set(line) for line in known)))
    axes.plot(steps, [sum(line[s] for line in known) / len(known) for s in steps], linewidth=1.6, **look)


def _smooth(points: list[tuple[int, float]], width: int = 5) -> list[tuple[int, float]]:
    values = [v for _, v in points]
    means = [
        sum(values[max(0, i - width + 1) : i + 1]) / len(values[max(0, i - width + 1) : i + 1]) for i in range(len(values))
    ]
    return [(step, mean) for (step, _), mean in zip(points, means, strict=True)]
