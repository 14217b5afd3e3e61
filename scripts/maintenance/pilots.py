"""``scripts/pilots OUT``: the tables of docs/pilots.md, from what the script left below OUT."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from trainers.report.report import read_report
from trainers.report.section import Report
from trainers.report.sections.accuracy import Accuracy
from trainers.report.sections.methods import Methods
from trainers.report.sections.safety import Safety
from trainers.report.text import group_title, percent, percents, points, points_interval
from w2s_tasks.results.calibrated import calibrated
from w2s_tasks.results.discrimination import discrimination
from w2s_tasks.results.read import TaskScores, read_evaluation

WAYS = {"none": "plain", "batch": "batch", "contextual": "contextual", "domain": "domain"}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def mean_sd(values: Sequence[float]) -> str:
    """Mean ± standard deviation over seeds, in %."""
    spread = f" ± {100 * np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{100 * np.mean(values):.1f}{spread}"


def supervisor(out: Path) -> Iterator[str]:
    """Accuracy of the supervisor by its rows."""
    rows = []
    for path in (out / "supervisor" / "cells").glob("*/report.json"):
        report = read_report(path)
        means = {mean.arm: mean for mean in report.of(Accuracy).arm_means}
        weak, untuned = means["weak"], means["zero_shot"]
        each = " ".join(percent(x) for x in weak.per_seed)
        line = (f"{percent(weak.acc)} {percents(weak.ci95)}", each, percent(untuned.acc))
        rows.append((int(report.head.config["split"]["limit"]["weak"]), *line))
    if rows:
        head = ("gold rows", "weak, % [95 %]", "each seed", "zero_shot, %")
        yield table(head, [(str(n), *rest) for n, *rest in sorted(rows)])


def students(out: Path) -> Iterator[str]:
    """Accuracy, PGR and safety differences by arm and method."""
    path = out / "students" / "report.json"
    if not path.is_file():
        return
    report = read_report(path)
    gaps = {gap.group: gap for gap in report.of(Accuracy).gaps}
    rows = [
        (
            group_title(mean.group),
            f"{percent(mean.acc)} {percents(mean.ci95)}",
            " ".join(percent(x) for x in mean.per_seed),
            str(gaps.get(mean.group, "")),
        )
        for mean in report.of(Accuracy).arm_means
    ]
    yield table(("arm", "accuracy, % [95 %]", "each seed", "PGR [95 %]"), rows)
    yield "\n".join(f"- {note}" for note in report.of(Methods).verdicts())
    yield _safety(report)


def _safety(report: Report) -> str:
    safety = report.of(Safety)
    groups = [group for group in safety.groups() if group[0] != "zero_shot"]
    rows = []
    for task, first in safety.tasks().items():
        gaps = [safety.gap(task, group) for group in groups]
        cells = ["–" if g is None else f"{points(g.value)} {points_interval(g.low, g.high)}{'=' * g.equal}" for g in gaps]
        rows.append((task, str(first.n), percent(safety.accuracy(task, ("zero_shot", None))), *cells))
    return table(("task", "n", "zero_shot", *map(group_title, groups)), rows)


def evaluations(folder: Path) -> dict[int, list[dict[str, TaskScores]]]:
    """By number of shots the evaluations over shot seeds."""
    found: dict[int, list[dict[str, TaskScores]]] = {}
    for path in sorted(folder.glob("*-*")):
        found.setdefault(int(path.name.partition("-")[0]), []).append(read_evaluation(path))
    return dict(sorted(found.items()))


def shots(out: Path) -> Iterator[str]:
    """Accuracy and AUROC of the probe's classification tasks by number of shots."""
    rows = []
    for number, runs in evaluations(out / "probe").items():
        names = [name for name, scores in runs[0].items() if scores.classes and scores.gold is not None]
        areas = [[found.auroc for name in names if (found := discrimination([run[name]]))] for run in runs]
        means = [float(np.mean([run[name].correct.mean() for name in names])) for run in runs]
        each = [f"{np.mean([run[name].correct.mean() for run in runs]):.2f}" for name in names]
        area = [float(np.mean(own)) for own in areas]
        rows.append((str(number), str(len(runs)), mean_sd(means), mean_sd(area), " ".join(each)))
    if rows:
        yield table(("shots", "shot seeds", "accuracy, %", "AUROC × 100", "accuracy of each task"), rows)


def calibration(out: Path) -> Iterator[str]:
    """Accuracy on movie reviews, plain and calibrated."""
    ways = {how: evaluations(out / f"movies-{how}") for how in ("none", "contextual", "domain")}
    rows = []
    for number, runs in ways["none"].items():
        plain = [next(iter(run.values())) for run in runs]
        batch = [found.correct.mean() for one in plain if (found := calibrated(one)) is not None]
        accuracies = {"none": [one.correct.mean() for one in plain], "batch": batch}
        for how in ("contextual", "domain"):
            accuracies[how] = [next(iter(run.values())).correct.mean() for run in ways[how].get(number, [])]
        areas = [own.auroc for one in plain if (own := discrimination([one]))]
        cells = [mean_sd(accuracies[how]) if accuracies[how] else "–" for how in WAYS]
        rows.append((str(number), str(len(runs)), *cells, mean_sd(areas)))
    if rows:
        yield table(("shots", "shot seeds", *(f"{way}, %" for way in WAYS.values()), "AUROC × 100"), rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables of what is there."""
    (out,) = arguments if arguments is not None else sys.argv[1:]
    for pilot in (supervisor, students, shots, calibration):
        parts = list(pilot(Path(out)))
        if parts:
            print(f"## {pilot.__name__}\n\n" + "\n\n".join(parts) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
