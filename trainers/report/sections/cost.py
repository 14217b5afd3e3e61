"""What the run took: seconds and money."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from trainers.report.blocks import Aside, Block, Note, Table
from trainers.report.collected import Collected
from trainers.report.section import Report, Section, section
from trainers.store.costs import COST_FILE


@section
@dataclass(frozen=True, kw_only=True)
class Cost(Section):
    """Seconds that the stages took when they were made, and what services were paid."""

    title = "Cost and time"
    link = "Time"
    place = 100

    seconds: dict[str, float]
    """By kind of stage, and in total."""
    stage_seconds: dict[str, float]
    costs_usd: dict[str, float | None]
    """Of every stage that a service was paid for; null where its price is not known."""

    @classmethod
    def form(cls, collected: Collected) -> Cost:
        """From the stages."""
        stages = collected.run.stages
        kinds: dict[str, float] = {}
        for stage in stages.values():
            kinds[stage.kind] = kinds.get(stage.kind, 0.0) + stage.seconds
        files = {name: stage.file(COST_FILE) for name, stage in stages.items()}
        return cls(
            seconds={k: round(v, 1) for k, v in kinds.items()} | {"total": round(sum(kinds.values()), 1)},
            stage_seconds={name: round(stage.seconds, 2) for name, stage in stages.items()},
            costs_usd={n: json.loads(f.read_text(encoding="utf-8"))["usd"] for n, f in files.items() if f},
        )

    def terminal(self, report: Report) -> Iterator[Block]:
        """The total."""
        yield Note(f"Time: {self.seconds['total']:.0f} s in all stages.")

    def page(self, report: Report) -> Iterator[Block]:
        """By kind, by stage on request, then money."""
        yield Table(("kind of stage", "seconds"), [(k, f"{v:,.1f}") for k, v in self.seconds.items()])
        by_stage = [(k, f"{v:,.1f}") for k, v in self.stage_seconds.items()]
        yield Aside("by stage", [Table(("stage", "seconds"), by_stage)])
        paid = "" if self.costs_usd else "; no service was paid"
        yield Note(f"Seconds that the stages took when they were made{paid}.")
        if self.costs_usd:
            rows = [(k, "price unknown" if v is None else f"{v:.2f}") for k, v in self.costs_usd.items()]
            total = sum(v for v in self.costs_usd.values() if v is not None)
            yield Table(("stage", "USD"), [*rows, ("all", f"{total:.2f}")])
