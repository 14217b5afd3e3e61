"""bench.html, and what `w2s bench` prints: endpoints first, then a table a supervisor, contrasts with controls, safety."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from markupsafe import Markup

from trainers.report.bench import BenchReport, Experiment, Outcome, Pair, Part
from trainers.report.blocks import Block, Cell, Figure, Heading, Note, Table, html
from trainers.report.page import framed
from trainers.report.panels import Column, recovered_panels
from trainers.report.pooled import Effect
from trainers.report.sections.primary import CLAIMS
from trainers.report.text import fraction, fractions, group_title, percent, points, points_interval

READING = (
    "Mean: over tasks like these, partially pooled (flat prior on the mean, half-normal prior of ten points on how much "
    "tasks differ), with its 95 % interval; for a new task: the interval of the effect on a task that is not here. PGR over "
    "tasks is given where the pooled gap between supervisor and ceiling is significant. Rank: among the students' methods; "
    "it is open where pairs can't be told apart (Holm over all pairs)."
)


def render(report: BenchReport, parts: Sequence[Part]) -> str:
    """The page as HTML text."""
    title = Markup("<h1>{}</h1>").format(report.bench)
    figures = [block for supervisor in _supervisors(report) for block in _figure(supervisor, parts)]
    return framed(f"{report.bench} – weak-to-strong bench", [title, html([*blocks(report), *figures])])


def blocks(report: BenchReport) -> Iterator[Block]:
    """What the terminal shows too."""
    if report.missing:
        yield Note(f"Not there yet: {', '.join(report.missing)}. All below is of the others.", "verdict")
    if report.endpoints:
        yield _endpoints(report.endpoints)
    for supervisor in _supervisors(report):
        yield Heading(f"Supervisor: {supervisor}")
        yield _arms(report, supervisor)
        yield from _pairs(
            "students minus controls and minus plain cross-entropy", [*report.controls, *report.methods], supervisor
        )
        for task in dict.fromkeys(pair.safety for pair in report.safety if pair.supervisor == supervisor):
            own = [pair for pair in report.safety if pair.safety == task]
            yield from _pairs(f"{task}: minus the model before it", own, supervisor)
    yield Note(READING)


def _supervisors(report: BenchReport) -> list[str]:
    return list(dict.fromkeys(one.supervisor for one in report.experiments))


def _endpoints(outcomes: Sequence[Outcome]) -> Table:
    rows = [(_claim(one), *_told(one)) for one in outcomes]
    return Table(
        ("claim", "supervisor", "tasks", "mean, points [95 %]", "p (Holm)", "shown"),
        rows,
        title="primary endpoints",
        left=("supervisor", "shown"),
        style="wrap",
    )


def _claim(outcome: Outcome) -> str:
    asked = outcome.endpoint
    against = group_title((asked["against"], asked.get("against_method")))
    margin = f"{100 * asked['margin']:g}" if "margin" in asked else ""
    claim = CLAIMS[asked["claim"]].format(arm=group_title((outcome.arm, outcome.method)), against=against, margin=margin)
    return claim + (f" on {asked['safety']}" if "safety" in asked else "")


def _told(outcome: Outcome) -> tuple[str | Cell, ...]:
    if outcome.effect is None or outcome.p_holm is None:
        return outcome.supervisor, str(outcome.tasks), "fewer than three tasks yet", "–", "–"
    shown = "yes" if outcome.shown else "no"
    return outcome.supervisor, str(outcome.tasks), _mean(outcome.effect), f"{outcome.p_holm:.3f}", shown


def _mean(effect: Effect) -> Cell:
    return Cell(points(effect.mean), points_interval(*effect.ci95))


def _arms(report: BenchReport, supervisor: str) -> Table:
    own = [one for one in report.experiments if one.supervisor == supervisor]
    names = list(dict.fromkeys(name for one in own for name in one.accuracy))
    heads = [f"{one.task}\n{one.n} × {one.seeds}" for one in own]
    return Table(
        ("arm", *heads, "gain over weak [95 %]", "for a new task", "PGR [95 %]", "rank"),
        [(name, *(_accuracy(one, name) for one in own), *_pooled(report, supervisor, name)) for name in names],
        title=f"supervisor {supervisor}: accuracy % (questions × seeds), and gains in points",
        style="wrap",
    )


def _accuracy(experiment: Experiment, name: str) -> str | Cell:
    if name not in experiment.accuracy:
        return "–"
    low, high = experiment.ci95[name]
    return Cell(percent(experiment.accuracy[name]), f"\n[{percent(low)}, {percent(high)}]")


def _pooled(report: BenchReport, supervisor: str, name: str) -> Iterator[str | Cell]:
    gain = next((p for p in report.gains if p.supervisor == supervisor and group_title(p.first) == name), None)
    ratio = next(
        (r for r in report.recovered if r.supervisor == supervisor and group_title((r.arm, r.method)) == name), None
    )
    place = next(
        (r for r in report.ranks if r.supervisor == supervisor and group_title(("student", r.method)) == name), None
    )
    yield _mean(gain.effect) if gain else "–"
    yield points_interval(*gain.effect.new_task_ci95) if gain else "–"
    yield Cell(fraction(ratio.pgr), fractions(ratio.ci95)) if ratio else "–"
    yield "–" if place is None else str(place.best) if place.best == place.worst else f"{place.best} to {place.worst}"


def _pairs(title: str, pairs: Sequence[Pair], supervisor: str) -> Iterator[Table]:
    own = [pair for pair in pairs if pair.supervisor == supervisor]
    tasks = list(dict.fromkeys(one.task for pair in own for one in pair.effect.tasks))
    if not own:
        return
    rows = []
    for pair in own:
        each = {one.task: Cell(points(one.value), "\n" + points_interval(*one.ci95)) for one in pair.effect.tasks}
        name = f"{group_title(pair.first)} − {group_title((pair.against, pair.against_method))}"
        effect = pair.effect
        row = (*(each.get(task, "–") for task in tasks), _mean(effect), points_interval(*effect.new_task_ci95))
        rows.append((name, *row, f"{effect.p:.3f}"))
    title = f"supervisor {supervisor}: {title}"
    yield Table(("difference, points", *tasks, "mean [95 %]", "for a new task", "p"), rows, title=title, style="wrap")


def _figure(supervisor: str, parts: Sequence[Part]) -> Iterator[Block]:
    own = [part for part in parts if part.cell.supervisor == supervisor]
    columns = [Column(part.cell.task, None, part.accuracy.levels(), list(part.accuracy.students().values())) for part in own]
    drawing = recovered_panels(columns, "task")
    if drawing is not None:
        yield Heading(f"Supervisor: {supervisor}, task by task")
        yield Figure(
            drawing,
            "Accuracy between weak supervisor and ceiling; below, the share of the gap recovered, where it is defined "
            "(after Burns et al. 2023, figure 3). Bars are 95 % intervals over seeds and questions.",
        )
