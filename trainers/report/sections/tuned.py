"""Equal footing: which setting of the grid every arm was given, and by what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from trainers.report.blocks import Block, Cell, Note, Row, Table
from trainers.report.collected import CEILINGS, Collected
from trainers.report.entries import Entry, OfArm
from trainers.report.section import Report, Section, section
from trainers.report.text import group_title
from trainers.steps.arm import Arm
from trainers.steps.tuned import TUNED, By, Choice, Tuned, told

End = Literal["lowest", "highest"]
UNINFORMED = ("random_labels", "permuted_labels")
"""Arms whose labels tell nothing of their rows: to learn them least is best, at whatever end of the grid."""


@dataclass(frozen=True, kw_only=True)
class TriedSetting(Entry):
    """A setting of the grid, by the rows of the arm's own labels that its training held back."""

    values: dict[str, Any]
    """By key of the strong model's section."""
    loss: float | None
    """Cross-entropy to the held-back labels, nats a row, mean over the seeds that decided; null where it is not finite."""
    agreement: float | None
    """Share of the held-back rows whose label the model gives, likewise; null for texts."""


@dataclass(frozen=True, kw_only=True)
class Tuning(OfArm):
    """What was chosen for an arm and method; the seeds are those that were trained with it."""

    by: By
    """What chose: held-back cross-entropy (loss) or agreement."""
    decided_by: list[int]
    """The seeds whose trainings decided."""
    rows: int
    """Rows that a training held back, the fewest of all."""
    chosen: dict[str, Any]
    """The values that were chosen, by key of the strong model's section."""
    edges: dict[str, End]
    """Keys whose chosen number is the lowest or the highest of the grid: a better one may lie outside."""
    settings: list[TriedSetting]

    @property
    def edge(self) -> str:
        """In words: highest epochs, lowest lr."""
        return ", ".join(f"{end} {key}" for key, end in self.edges.items())


def edges_of(choice: Choice) -> dict[str, End]:
    """The keys with numbers whose chosen one is at an end of those that were tried."""
    found: dict[str, End] = {}
    for key, value in choice.values.items():
        tried = [one.values[key] for one in choice.tried]
        if len(set(tried)) < 2 or any(isinstance(one, bool) or not isinstance(one, int | float) for one in tried):
            continue
        if value in (min(tried), max(tried)):
            found[key] = "lowest" if value == min(tried) else "highest"
    return found


def _tuning(group: tuple[str, str | None], seeds: Sequence[int | None], choice: Choice) -> Tuning:
    arm, method = group
    return Tuning(
        arm=arm,
        method=method,
        seeds=list(seeds),
        by=choice.by,
        decided_by=choice.seeds,
        rows=choice.rows,
        chosen=choice.values,
        edges=edges_of(choice),
        settings=[TriedSetting(values=one.values, loss=one.loss, agreement=one.agreement) for one in choice.tried],
    )


@section
@dataclass(frozen=True, kw_only=True)
class Settings(Section):
    """The settings that were chosen out of a grid (`tune`)."""

    title = "Settings chosen"
    link = "Settings"
    place = 58

    tuned: list[Tuning]

    @classmethod
    def form(cls, collected: Collected) -> Settings:
        """From each training's tuned.json; seeds that share a choice are one entry."""
        run = collected.run
        steps = [step for step in run.layout.steps.values() if isinstance(step, Tuned)]
        found: list[tuple[Arm, Choice, list[int | None]]] = []
        for step in steps:
            path = run.stages[step.name].file(TUNED)
            assert step.arm is not None  # noqa: S101 - what is tuned is an arm's
            assert path is not None  # noqa: S101 - the step wrote it
            choice = Choice.load(path)
            known = next((seeds for arm, other, seeds in found if (arm.label, other) == (step.arm.label, choice)), None)
            if known is None:
                found.append((step.arm, choice, [step.arm.seed]))
            else:
                known.append(step.arm.seed)
        return cls(tuned=[_tuning((arm.name, arm.method), seeds, choice) for arm, choice, seeds in found])

    def values_of(self, arm: str, method: str | None, seed: int | None) -> Mapping[str, Any]:
        """What was chosen for a model; empty where nothing was."""
        own = (one.chosen for one in self.tuned if one.group == (arm, method) and seed in one.seeds)
        return next(own, {})

    def terminal(self, report: Report) -> Iterator[Block]:
        """What was chosen, and whether the grid should be wider."""
        if self.tuned:
            yield Table(("arm", "seeds", "chosen", "held-back loss", "at the edge"), list(self._lines()), "Settings chosen")
            yield from self._warnings()

    def page(self, report: Report) -> Iterator[Block]:
        """The same, with every setting."""
        if not self.tuned:
            return
        settings = [told(one.values) for one in self.tuned[0].settings]
        rows: list[Row] = [
            (group_title(one.group), _seeds(one), *(_cell(own, one) for own in one.settings), told(one.chosen), one.edge)
            for one in self.tuned
        ]
        yield Table(("arm", "seeds", *settings, "chosen", "at the edge"), rows, left=("chosen", "at the edge"), style="wrap")
        first = self.tuned[0]
        by = "lowest cross-entropy to" if first.by == "loss" else "highest agreement with"
        decided = ", ".join(map(str, first.decided_by))
        who = "Each seed decided for itself" if first.seeds == first.decided_by else f"Of all seeds {decided} decided"
        yield Note(
            f"{who}: kept was the setting with the {by} the rows of an arm's own labels that its trainings held back "
            f"({min(one.rows for one in self.tuned)} or more): weak labels of a student, gold of a ceiling. Cells are this "
            "cross-entropy in nats a row and the agreement. Levels of different arms don't compare, and labels without "
            "information are best learnt least."
        )
        yield from self._warnings()

    def _lines(self) -> Iterator[tuple[str, ...]]:
        for one in self.tuned:
            loss = next(own.loss for own in one.settings if own.values == one.chosen)
            yield group_title(one.group), _seeds(one), told(one.chosen), _loss(loss), one.edge

    def _warnings(self) -> Iterator[Note]:
        at_edge = [f"{group_title(one.group)} ({one.edge})" for one in self.tuned if one.edges and one.arm not in UNINFORMED]
        if at_edge:
            named = "; ".join(dict.fromkeys(at_edge))
            yield Note(f"The grid should be wider, for the best setting is at its edge: {named}.", "verdict")
        if any(one.arm in CEILINGS and one.edges.get("epochs") == "highest" for one in self.tuned):
            yield Note(
                "The ceiling was best with the most epochs of the grid, so it may still rise: no ceiling yet.", "verdict"
            )


def _seeds(one: Tuning) -> str:
    return ", ".join(map(str, one.seeds))


def _loss(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _cell(own: TriedSetting, one: Tuning) -> Cell:
    """A setting's loss, with a mark where it was chosen, and its agreement."""
    mark = " ✓" if own.values == one.chosen else ""
    return Cell(_loss(own.loss) + mark, "" if own.agreement is None else f"{100 * own.agreement:.0f} %")
