"""Figures of a report as inline SVG: no scripts, no network, text that stays text.

matplotlib comes with the extra ``[report]``; without it the page has its tables only and says so.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

from trainers.tables import arm_title

Report = dict[str, Any]

# Okabe-Ito: told apart by colour-blind readers and in grey.
COLOURS = {
    "weak": "#777777",
    "weak_untrained": "#bbbbbb",
    "zero_shot": "#56b4e9",
    "few_shot": "#0072b2",
    "student": "#d55e00",
    "ceiling": "#009e73",
    "random_labels": "#cc79a7",
    "permuted_labels": "#e69f00",
    "noise_matched": "#a6761d",
    "self_labels": "#332288",
}


def _svg(draw: Callable[[Any], None], width: float, height: float) -> str | None:
    try:
        import matplotlib as mpl
    except ImportError:
        return None
    mpl.use("svg")
    from matplotlib.figure import Figure

    # Text as text scales with the reader's font; currentColor follows light and dark.
    style = {"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10, "svg.hashsalt": "w2s"}
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
    return text.replace("<svg ", '<svg role="img" fill="currentColor" ', 1)


def _clean(axes: Any) -> None:
    axes.patch.set_alpha(0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def accuracy_dots(report: Report) -> str | None:
    """Accuracy of every arm with its 95 % interval, weak supervisor and ceiling as guides."""
    arms = report["arms"]

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        _clean(axes)
        for name in ("weak", "ceiling"):
            values = [a["metrics"]["acc"] for a in arms if a["arm"] == name]
            if values:
                axes.axvline(sum(values) / len(values), color=COLOURS[name], linestyle=":", linewidth=1)
        for y, arm in enumerate(reversed(arms)):
            low, high = arm["ci95"]["acc"]
            colour = COLOURS.get(arm["arm"], "#000000")
            axes.plot([low, high], [y, y], color=colour, linewidth=2, solid_capstyle="butt")
            axes.plot(arm["metrics"]["acc"], y, "o", color=colour, markersize=7)
        axes.set_yticks(range(len(arms)), [arm_title(a, report) for a in reversed(arms)])
        axes.set_xlabel(f"accuracy on {report['task']} (bars: 95 % Wilson interval, n = {arms[0]['n']})")
        axes.margins(y=0.15)

    return _svg(draw, 7.2, 0.9 + 0.36 * len(arms))


def learning_curves(report: Report) -> str | None:
    """Training loss, and accuracy on held-back rows, by optimizer step."""
    curves = report["curves"]

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2)
        for curve in curves:
            points = curve["points"]
            colour = COLOURS.get(curve["arm"], "#000000")
            loss = [(p["step"], p["loss"]) for p in points if "loss" in p]
            held = [(p["step"], p["eval_accuracy"]) for p in points if "eval_accuracy" in p]
            label = arm_title(curve, report)
            left.plot(*zip(*_smooth(loss), strict=True), color=colour, linewidth=1.4, label=label)
            if held:
                right.plot(*zip(*held, strict=True), color=colour, marker="o", markersize=3, linewidth=1.4, label=label)
        left.set_ylabel("training loss (mean of 5 steps)")
        right.set_ylabel("held-back rows: accuracy (gold)")
        for axes in (left, right):
            _clean(axes)
            axes.set_xlabel("optimizer step")
        left.legend(frameon=False, fontsize=8)

    return _svg(draw, 7.2, 3.4) if curves else None


def _smooth(points: list[tuple[int, float]], width: int = 5) -> list[tuple[int, float]]:
    values = [v for _, v in points]
    means = [
        sum(values[max(0, i - width + 1) : i + 1]) / len(values[max(0, i - width + 1) : i + 1]) for i in range(len(values))
    ]
    return [(step, mean) for (step, _), mean in zip(points, means, strict=True)]


def safety_forest(report: Report) -> str | None:
    """Difference of each arm to the untuned model on every safety task, with 95 % intervals."""
    entries = [e for e in report["safety"] if e["to_zero_shot"]]
    tasks = list(dict.fromkeys(e["task"] for e in entries))
    arms = list(dict.fromkeys((e["arm"], e["method"], e["seed"]) for e in entries))
    if not entries:
        return None

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        _clean(axes)
        axes.axvline(0, color="#777777", linewidth=1)
        for k, (arm, method, seed) in enumerate(arms):
            offset = 0.6 * (k - (len(arms) - 1) / 2) / max(1, len(arms))
            for e in entries:
                if (e["arm"], e["method"], e["seed"]) == (arm, method, seed):
                    y = len(tasks) - 1 - tasks.index(e["task"]) - offset
                    change = e["to_zero_shot"]
                    colour = COLOURS.get(arm, "#000000")
                    axes.plot([change["low"], change["high"]], [y, y], color=colour, linewidth=1.6)
                    axes.plot(change["value"], y, "o", color=colour, markersize=4)
            axes.plot([], [], "o-", color=COLOURS.get(arm, "#000000"), label=arm_title(_entry(arm, method, seed), report))
        names = [f"{e['subtask']}, {e['split']}" for t in tasks for e in [next(x for x in entries if x["task"] == t)]]
        axes.set_yticks(range(len(tasks)), list(reversed(names)))
        axes.set_xlabel("accuracy minus that of the untuned model (95 % interval, paired by question)")
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))

    return _svg(draw, 7.2, 1.1 + 0.42 * len(tasks))


def _entry(arm: str, method: str | None, seed: int | None) -> dict[str, Any]:
    return {"arm": arm, "method": method, "seed": seed}
