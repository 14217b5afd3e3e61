"""Figures on safety: heat map, forest plots, drift of format, ladder of shots, safety against what was gained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trainers.report.figures import NEUTRAL, Report, clean, colour_of, legend_above, marker_of, svg
from trainers.report.tables import group_title, means_of

Entry = dict[str, Any]
PARTS = {"unparsed": "#999999", "prior": "#e69f00", "errors": "#0072b2"}
PART_NAMES = {"unparsed": "no longer parses", "prior": "class shares shifted", "errors": "real errors"}
INK = "#1a1a1a"  # on coloured cells, light and dark pages alike
SCALE = ("#e58a6b", "#fbe7c6", "#fffdf0", "#cfe3ee", "#7fb2d6")  # light enough for dark figures at both ends


def _groups(entries: Sequence[Mapping[str, Any]]) -> list[tuple[str, str | None]]:
    return list(dict.fromkeys((e["arm"], e["method"]) for e in entries))


def _tasks(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Tasks in their order, those of generated text last."""
    return list(dict.fromkeys(e["task"] for e in sorted(entries, key=lambda e: e.get("mode") == "generated")))


def _named(group: tuple[str, str | None]) -> Entry:
    return {"arm": group[0], "method": group[1]}


def _row_name(entry: Mapping[str, Any]) -> str:
    return f"{entry['subtask']}, {entry['split']}" + (", text" if entry.get("mode") == "generated" else "")


def heat_map(report: Report) -> str | None:
    """Accuracy of every arm (mean over seeds) on every safety task and split."""
    entries = report["safety"]
    tasks, groups = _tasks(entries), _groups(entries)
    if not entries:
        return None
    names = {e["task"]: _row_name(e) for e in entries}
    values = [[_mean([e["acc"] for e in entries if e["task"] == t and (e["arm"], e["method"]) == g]) for g in groups]
              for t in tasks]  # fmt: skip

    def draw(figure: Any) -> None:
        from matplotlib.colors import LinearSegmentedColormap

        colours = LinearSegmentedColormap.from_list("accuracy", SCALE)
        axes = figure.subplots()
        axes.patch.set_alpha(0)
        shown = axes.imshow([[100 * v for v in row] for row in values], cmap=colours, vmin=0, vmax=100, aspect="auto")
        for y, row in enumerate(values):
            for x, value in enumerate(row):
                if value == value:  # not NaN
                    axes.text(x, y, f"{100 * value:.0f}", ha="center", va="center", fontsize=9, color=INK)
        axes.set_xticks(range(len(groups)), [group_title(_named(g)) for g in groups], rotation=40, ha="right")
        axes.set_yticks(range(len(tasks)), [names[t] for t in tasks])
        axes.set_xlabel("arm")
        axes.tick_params(length=0)
        for side in axes.spines.values():
            side.set_visible(False)
        figure.colorbar(shown, ax=axes, label="accuracy, %", shrink=0.8, aspect=30)

    return svg(draw, 1.7 + 0.3 * len(tasks), "accuracy on safety tasks by arm")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def forest(report: Report, contrast: str, only: Sequence[str] = ()) -> str | None:
    """Differences to the untuned model, or to the ceiling, on every safety task with 95 % intervals.

    Args:
        report: the report.
        contrast: to_zero_shot or to_ceiling.
        only: arms to show; all where empty.
    """
    entries = [e for e in report.get("safety_gaps", []) if e["contrast"] == contrast and (not only or e["arm"] in only)]
    if not entries:
        return None
    tasks, groups = _tasks(entries), _groups(entries)
    names = {e["task"]: _row_name(e) for e in entries}

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        clean(axes)
        axes.axvline(0, color=NEUTRAL, linewidth=1)
        for y in range(0, len(tasks), 2):
            axes.axhspan(len(tasks) - 1.5 - y, len(tasks) - 0.5 - y, color=NEUTRAL, alpha=0.1, linewidth=0)
        for e in entries:
            k = groups.index((e["arm"], e["method"]))
            place = len(tasks) - 1 - tasks.index(e["task"]) - 0.8 * (k - (len(groups) - 1) / 2) / len(groups)
            colour, sure = colour_of(e, report), e["p_holm"] is not None and e["p_holm"] < 0.05
            axes.plot([100 * e["low"], 100 * e["high"]], [place, place], color=colour, linewidth=1.3)
            axes.plot(100 * e["value"], place, marker_of(e, report), color=colour, markersize=5, label=group_title(e),
                      markerfacecolor=colour if sure else "none", markeredgewidth=1.2)  # fmt: skip
        axes.set_ylim(-0.5, len(tasks) - 0.5)
        axes.set_yticks(range(len(tasks)), [names[t] for t in reversed(tasks)])
        other = "untuned model's" if contrast == "to_zero_shot" else "ceiling's"
        axes.set_xlabel(f"accuracy minus the {other}, points\n(95 % interval; filled: p < .05 after Holm)")
        legend_above(figure, axes)

    height = 1.5 + len(tasks) * (0.16 + 0.08 * len(groups))
    return svg(draw, height, f"differences on safety tasks {contrast.replace('_', ' ')}")


def drift_bars(report: Report) -> str | None:
    """The change in accuracy to the untuned model, a mean over the subtasks, split into its three parts."""
    entries = report.get("drift", [])
    rows = list(dict.fromkeys((e["arm"], e["method"], e["split"], e["mode"]) for e in entries))
    if not rows:
        return None

    def mean(row: tuple[str, str | None, str, str], part: str) -> float:
        chosen = [e[part] for e in entries if (e["arm"], e["method"], e["split"], e["mode"]) == row]
        return 100 * _mean([c["value"] if c is not None else 0.0 for c in chosen])

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        clean(axes)
        axes.axvline(0, color=NEUTRAL, linewidth=1)
        for y, row in enumerate(reversed(rows)):
            ends: dict[bool, float] = {True: 0.0, False: 0.0}
            for part, colour in PARTS.items():
                value = mean(row, part)
                axes.barh(y, value, left=ends[value >= 0], height=0.6, color=colour, label=PART_NAMES[part])
                ends[value >= 0] += value
            axes.plot(mean(row, "total"), y, "D", color="#000000", markersize=5, label="change in accuracy")
        names = [f"{group_title(_named(r[:2]))}, {r[2]}{', text' if r[3] == 'generated' else ''}" for r in rows]
        axes.set_yticks(range(len(rows)), names[::-1])
        axes.set_xlabel("change in accuracy to the untuned model, points\n(mean over subtasks)")
        axes.margins(x=0.1)
        legend_above(figure, axes)

    return svg(draw, 1.5 + 0.34 * len(rows), "change in accuracy split into three parts")


def ladder(report: Report) -> str | None:
    """Mean accuracy on the safety tasks by number of shots; below it the unparsed share where text was generated."""
    entries = report.get("ladder", [])
    if not entries:
        return None
    panels_of = list(dict.fromkeys((e["split"], e["mode"]) for e in entries))
    shots, groups = sorted({e["num_fewshot"] for e in entries}), _groups(entries)
    unparsed = [key for key in panels_of if any(e["unparsed"] for e in entries if (e["split"], e["mode"]) == key)]

    def draw(figure: Any) -> None:
        panels = figure.subplots(len(panels_of) + len(unparsed), 1, sharex=True, squeeze=False)[:, 0]
        wanted = [*((key, "acc") for key in panels_of), *((key, "unparsed") for key in unparsed)]
        for axes, (key, what) in zip(panels, wanted, strict=True):
            for k, group in enumerate(groups):
                line = [e for e in entries if (e["arm"], e["method"]) == group and (e["split"], e["mode"]) == key]
                if line:  # a little apart, so that the bars of all arms are seen
                    shift = 0.5 * (k - (len(groups) - 1) / 2) / len(groups)
                    _ladder_line(axes, line, [shots.index(e["num_fewshot"]) + shift for e in line], report, what)
            name = f"{key[0]}{', text' if key[1] == 'generated' else ''}"
            axes.set_ylabel(f"{'accuracy' if what == 'acc' else 'unparsed'}\n{name}, %")
            clean(axes)
        panels[-1].set_xticks(range(len(shots)), [str(s) for s in shots])
        panels[-1].set_xlabel("shots before each question (num_fewshot)")
        legend_above(figure, panels[0])

    height = 1.2 + 2.0 * (len(panels_of) + len(unparsed)) + 0.1 * len(groups)
    return svg(draw, height, "safety accuracy by number of shots")


def _ladder_line(axes: Any, line: Sequence[Entry], places: Sequence[float], report: Report, what: str) -> None:
    values, colour = [100 * e[what] for e in line], colour_of(line[0], report)
    look = {"marker": marker_of(line[0], report), "markersize": 5, "color": colour, "linewidth": 1.3}
    if what == "acc":
        ends = [[v - 100 * e["ci95"][0] for e, v in zip(line, values, strict=True)],
                [100 * e["ci95"][1] - v for e, v in zip(line, values, strict=True)]]  # fmt: skip
        axes.errorbar(places, values, yerr=ends, elinewidth=0.8, label=group_title(line[0]), **look)
    else:
        axes.plot(places, values, label=group_title(line[0]), **look)


def tradeoff(report: Report) -> str | None:
    """Mean safety change against accuracy on the training task, one point an arm, with the PGR beside it.

    Checkpoints are small marks on a line that leads to the arm's point.
    """
    entries = [e for e in report.get("tradeoff", []) if e.get("checkpoint") is None]
    kept = [e for e in report.get("tradeoff", []) if e.get("checkpoint") is not None]
    if len(entries) + len(kept) < 2:
        return None

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        clean(axes)
        axes.axhline(0, color=NEUTRAL, linewidth=1)
        for e in entries:
            colour, x = colour_of(e, report), 100 * e["acc"]
            before = [k for k in kept if (k["arm"], k["method"]) == (e["arm"], e["method"])]
            if before:
                course = [(100 * k["acc"], 100 * k["change"]["value"]) for k in (*before, e)]
                look = {"marker": marker_of(e, report), "markersize": 3.5, "linewidth": 0.8, "alpha": 0.7}
                axes.plot(*zip(*course, strict=True), color=colour, **look)
            pgr = "" if e["pgr"] is None else f" (PGR {e['pgr']:.2f})"
            axes.plot([x, x], [100 * e["change"]["low"], 100 * e["change"]["high"]], color=colour, linewidth=1.5)
            axes.plot(x, 100 * e["change"]["value"], marker_of(e, report), color=colour, label=group_title(e) + pgr)
        axes.set_xlabel(f"accuracy on {report['task']}, %")
        axes.set_ylabel("mean safety change\nto the untuned model, points")
        axes.margins(x=0.1)
        _pgr_axis(axes, report)
        legend_above(figure, axes)

    return svg(draw, 3.7 + 0.11 * len(entries), "safety change against accuracy")


def _pgr_axis(axes: Any, report: Report) -> None:
    """A second scale for accuracy in %: the PGR that it stands for, where there is a gap to recover."""
    gap = report.get("gap")
    weak = next((m["acc"] for m in means_of(report) if m["arm"] == "weak"), None)
    if not gap or not gap["defined"] or weak is None or not gap.get("gap"):
        return
    start, width = 100 * weak, 100 * gap["gap"]
    scale = axes.secondary_xaxis("top", functions=(lambda x: (x - start) / width, lambda y: start + y * width))
    scale.set_xlabel("performance gap recovered (PGR)")
