"""A bench's report: every arm over tasks, claims with their controls, ranks, safety. bench.json and bench.html.

It is made of the cells' report.json alone, so that cells may have been run anywhere and at any time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

from trainers.config.bench import Bench, Endpoint, cell_name
from trainers.labels.arms import kind_of
from trainers.report.entries import Entry, Interval
from trainers.report.pooled import Cell, Contrast, Effect, contrast, difference, effect, pool, recovered
from trainers.report.section import Head, read_parts
from trainers.report.sections.accuracy import Accuracy
from trainers.report.sections.joint import Jointly
from trainers.report.text import Named, group_title
from trainers.store.stages import write_atomic
from w2s_tasks.results.pooling import FEWEST
from w2s_tasks.results.ranks import ranks
from w2s_tasks.results.stats import holm

SCHEMA = 1
WEAK: Named = ("weak", None)
CEILING: Named = ("ceiling", None)
PLAIN: Named = ("student", "xent")
LEVEL = 0.05


@dataclass(frozen=True)
class Part:
    """What a finished experiment of a bench says."""

    cell: Cell
    head: Head
    accuracy: Accuracy


def read_finished(file: Path, task: str, supervisor: str) -> Part:
    """What a bench needs of a report.json; its other sections may be of another version.

    Raises:
        UserError: not a report with these sections.
    """
    head, accuracy, jointly = read_parts(file, (Head, Accuracy, Jointly))
    return Part(Cell(task, supervisor, jointly.joint[0], tuple(jointly.joint[1:])), head, accuracy)


@dataclass(frozen=True, kw_only=True)
class Pair(Entry):
    """The difference between two arms over the tasks of a supervisor."""

    supervisor: str
    arm: str
    method: str | None
    against: str
    against_method: str | None
    safety: str | None
    """The safety task; null for each experiment's own."""
    effect: Effect

    @property
    def first(self) -> Named:
        """The arm that it is about."""
        return self.arm, self.method


@dataclass(frozen=True, kw_only=True)
class Ratio(Entry):
    """An arm's PGR over the tasks of a supervisor."""

    supervisor: str
    arm: str
    method: str | None
    pgr: float
    ci95: Interval
    """Null ends are unbounded."""


@dataclass(frozen=True, kw_only=True)
class Place(Entry):
    """A student's rank among the methods of a supervisor, 1 the best."""

    supervisor: str
    method: str
    best: int
    worst: int


@dataclass(frozen=True, kw_only=True)
class Outcome(Entry):
    """What came of an endpoint."""

    endpoint: dict[str, Any]
    supervisor: str
    arm: str
    method: str | None
    tasks: int
    """Over which it was asked."""
    effect: Effect | None
    """Null with fewer than three tasks."""
    p: float | None
    """Of the claim: two-sided for differs, else one-sided."""
    p_holm: float | None
    """Holm-adjusted over the endpoints."""

    @property
    def shown(self) -> bool:
        """Whether it is shown."""
        return self.p_holm is not None and self.p_holm < LEVEL


@dataclass(frozen=True, kw_only=True)
class Experiment(Entry):
    """A finished experiment of the bench."""

    task: str
    supervisor: str
    benchmark: str
    """The training task's name in lm_eval."""
    n: int
    seeds: int
    accuracy: dict[str, float]
    """By arm, with a student's method."""
    ci95: dict[str, Interval]
    """Of each, of this experiment alone."""


@dataclass(frozen=True, kw_only=True)
class BenchReport(Entry):
    """All of bench.json. Shares are between 0 and 1."""

    schema: int
    bench: str
    endpoints: list[Outcome]
    experiments: list[Experiment]
    missing: list[str]
    """Experiments without a report."""
    gains: list[Pair]
    """Every arm minus the supervisor."""
    methods: list[Pair]
    """Every student minus the one of plain cross-entropy."""
    controls: list[Pair]
    """Every student minus every control: arms whose labels are no supervisor's."""
    safety: list[Pair]
    """Every trained arm minus the model that it started from, on each safety task."""
    recovered: list[Ratio]
    """PGR of those over tasks where the gap is significant."""
    ranks: list[Place]


def form(title: str, bench: Bench, parts: Sequence[Part]) -> BenchReport:
    """The report of what there is.

    Args:
        title: the bench's name.
        bench: its section.
        parts: the finished experiments.
    """
    cells = {name: [p.cell for p in parts if p.cell.supervisor == name] for name in bench.supervisors}
    there = {(p.cell.task, p.cell.supervisor) for p in parts}
    return BenchReport(
        schema=SCHEMA,
        bench=title,
        endpoints=_outcomes(bench, cells),
        experiments=[_experiment(part) for part in parts],
        missing=[cell_name(*pair) for pair in bench.cells() if pair not in there],
        gains=[found for name, own in cells.items() for found in _gains(name, own)],
        methods=[found for name, own in cells.items() for found in _against(name, own, [PLAIN])],
        controls=[found for name, own in cells.items() for found in _against(name, own, _controls(own))],
        safety=[found for name, own in cells.items() for found in _safety(name, own)],
        recovered=[found for name, own in cells.items() for found in _recovered(name, own)],
        ranks=[found for name, own in cells.items() for found in _ranks(name, own)],
    )


def _experiment(part: Part) -> Experiment:
    means = {group_title(mean.group): mean for mean in part.accuracy.arm_means}
    return Experiment(
        task=part.cell.task,
        supervisor=part.cell.supervisor,
        benchmark=part.head.task,
        n=part.cell.joint.n,
        seeds=part.cell.joint.seeds,
        accuracy={name: mean.acc for name, mean in means.items()},
        ci95={name: mean.ci95 for name, mean in means.items()},
    )


def groups_of(cells: Sequence[Cell]) -> list[Named]:
    """All arms of some cells, in the order of their reports."""
    return list(dict.fromkeys(arm.group for cell in cells for arm in cell.joint.arms))


def _students(cells: Sequence[Cell]) -> list[Named]:
    return [group for group in groups_of(cells) if group[0] == "student"]


def _controls(cells: Sequence[Cell]) -> list[Named]:
    """Arms that the student is held against: trained on labels that are no supervisor's, or not trained."""
    known = ("weak", "weak_untrained", "student", "ceiling", "ceiling_full")
    return [group for group in groups_of(cells) if group[0] not in known and kind_of(group[0]).shots is None]


def _pair(supervisor: str, cells: Sequence[Cell], first: Named, second: Named, safety: str | None = None) -> Iterator[Pair]:
    found = effect(_contrasts(cells, first, second, safety), shared=safety is not None)
    if found is not None:
        yield Pair(
            supervisor=supervisor,
            arm=first[0],
            method=first[1],
            against=second[0],
            against_method=second[1],
            safety=safety,
            effect=found,
        )


def _contrasts(cells: Sequence[Cell], first: Named, second: Named, safety: str | None = None) -> list[Contrast]:
    return [found for cell in cells if (found := contrast(cell, difference(first, second), safety))]


def _gains(supervisor: str, cells: Sequence[Cell]) -> Iterator[Pair]:
    for group in groups_of(cells):
        if group[0] != "weak":
            yield from _pair(supervisor, cells, group, WEAK)


def _against(supervisor: str, cells: Sequence[Cell], others: Sequence[Named]) -> Iterator[Pair]:
    for student in _students(cells):
        for other in others:
            if student != other:
                yield from _pair(supervisor, cells, student, other)


def _safety(supervisor: str, cells: Sequence[Cell]) -> Iterator[Pair]:
    tasks = dict.fromkeys(one.task for cell in cells for one in cell.safety)
    for task in tasks:
        for group in groups_of(cells):
            if kind_of(group[0]).teacher is not None:
                yield from _pair(supervisor, cells, group, ("zero_shot", None), task)


def _recovered(supervisor: str, cells: Sequence[Cell]) -> Iterator[Ratio]:
    for group in groups_of(cells):
        if kind_of(group[0]).model == "strong" and group[0] != "ceiling" and (found := recovered(cells, group, CEILING)):
            yield Ratio(supervisor=supervisor, arm=group[0], method=group[1], pgr=found[0], ci95=found[1])


def _ranks(supervisor: str, cells: Sequence[Cell]) -> Iterator[Place]:
    names = {str(method): (arm, method) for arm, method in _students(cells)}
    if len(names) < 2 or len(cells) < FEWEST:
        return

    def compare(first: str, second: str) -> tuple[float, float]:
        found = effect(_contrasts(cells, names[first], names[second]))
        return (found.mean, found.p) if found else (0.0, 1.0)

    for name, rank in ranks(list(names), compare).items():
        yield Place(supervisor=supervisor, method=name, best=rank.best, worst=rank.worst)


def _outcomes(bench: Bench, cells: Mapping[str, Sequence[Cell]]) -> list[Outcome]:
    found = [_outcome(endpoint, endpoint.supervisor or next(iter(bench.supervisors)), cells) for endpoint in bench.endpoints]
    asked = [outcome.p for outcome in found if outcome.p is not None]
    corrected = iter(holm(asked))
    return [outcome if outcome.p is None else replace(outcome, p_holm=next(corrected)) for outcome in found]


def _outcome(endpoint: Endpoint, supervisor: str, cells: Mapping[str, Sequence[Cell]]) -> Outcome:
    first, second = (endpoint.arm, endpoint.method), (endpoint.against, endpoint.against_method)
    contrasts = _contrasts(cells[supervisor], first, second, endpoint.safety)
    shared = endpoint.safety is not None
    return Outcome(
        endpoint=endpoint.model_dump(exclude_none=True),
        supervisor=supervisor,
        arm=endpoint.arm,
        method=endpoint.method,
        tasks=len(contrasts),
        effect=effect(contrasts, shared=shared),
        p=claim_p(endpoint, contrasts, shared=shared) if len(contrasts) >= FEWEST else None,
        p_holm=None,
    )


def claim_p(endpoint: Endpoint, contrasts: Sequence[Contrast], *, shared: bool) -> float:
    """The posterior probability that a claim about the mean over tasks is wrong; two-sided for `differs`."""

    def below(bound: float) -> float:
        found = pool([replace(c, value=c.value - bound) for c in contrasts], shared=shared)
        return found.p / 2 if found.overall.mean > 0 else 1 - found.p / 2

    margin = endpoint.margin or 0.0
    match endpoint.claim:
        case "differs":
            return 2 * min(below(0.0), 1 - below(0.0))
        case "above" | "not_below":
            return below(-margin)
        case _:
            return max(below(-margin), 1 - below(margin))


def portable(report: str, command: str) -> str:
    """A report.json to be kept with the code, a line a key; without rows' own words and the folders of its machine.

    Args:
        report: the file's text.
        command: how to make it again.
    """
    data = json.loads(report)
    data |= {"command": command, "commands": [], "disagreements": [{**one, "text": ""} for one in data["disagreements"]]}
    lines = (f"{json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in data.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def write(report: BenchReport, folder: Path, page: str) -> Path:
    """Write bench.json and bench.html; the JSON's path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "bench.json"
    write_atomic(path, json.dumps(to_jsonable_python(asdict(report)), indent=1, allow_nan=False) + "\n")
    write_atomic(folder / "bench.html", page)
    return path.resolve()
