"""Confusion tables, and how each model stands to its weak supervisor: agreement, copied errors, calibration."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from trainers.report.blocks import Beside, Block, Heading, Note, Row, Table
from trainers.report.collected import Collected, about
from trainers.report.entries import OfModel
from trainers.report.section import Report, Section, section
from trainers.report.sections.accuracy import Accuracy, Model
from trainers.report.text import Named, fraction, group_title, percent
from w2s_tasks.results import diagnostics

WIDEST = 5
"""Classes of a confusion table that is shown."""


@dataclass(frozen=True, kw_only=True)
class Diagnosis(diagnostics.Diagnosis, OfModel):
    """A model against the weak supervisor of its seed, on the evaluation rows."""


@section
@dataclass(frozen=True, kw_only=True)
class Diagnostics(Section):
    """Every model of the strong section against its supervisor."""

    title = "Diagnostics"
    place = 50

    diagnostics: list[Diagnosis]

    @classmethod
    def form(cls, collected: Collected) -> Diagnostics:
        """Every arm of the strong model against the weak supervisor of its seed, on the evaluation rows."""
        task = collected.task
        names = ("weak", collected.ceiling)
        weak, ceiling = ({a.seed: s[task] for a, s in collected.training.items() if a.name == name} for name in names)
        entries = []
        for arm in (a for a in collected.arms() if a.kind.model == "strong"):
            seed = collected.config.seeds[0] if arm.seed is None else arm.seed
            other = None if arm.name == collected.ceiling else ceiling.get(seed)
            diagnosis = diagnostics.diagnose(collected.training[arm][task], weak[seed], other)
            if diagnosis is not None:
                entries.append(Diagnosis(**about(arm), **vars(diagnosis)))
        return cls(diagnostics=entries)

    def page(self, report: Report) -> Iterator[Block]:
        """Confusion tables summed over seeds, then means over seeds."""
        models = report.of(Accuracy).arms
        tables = [table for group in dict.fromkeys(m.group for m in models) for table in _confusion(models, group, report)]
        if tables:
            yield Heading("Confusion matrices")
            yield Beside(tables)
            summed = ", summed over seeds" if report.of(Accuracy).several else ""
            yield Note(f"{report.head.task}{summed}. Each row is a right class, each column what the model answered.")
        if not self.diagnostics:
            return
        yield Heading("Against the weak supervisor")
        columns = ("arm", "agreement %", "CAPA", "overrides", "of them right %", "errors copied %", "by the ceiling %")
        rows = [self._row(group) for group in dict.fromkeys(d.group for d in self.diagnostics)]
        yield Table((*columns, "blind spots %", "ECE %", "Brier"), rows, style="wrap")
        yield Note(
            f"Evaluation rows of {report.head.task}; means over seeds. Agreement needs no gold label. CAPA is "
            "agreement in errors beyond chance (arXiv 2502.04313): 1 the same, 0 independent. Errors copied: share "
            "of the supervisor's wrong answers that the model gives too, beside the ceiling's share of the same "
            f"rows, which never saw them. Blind spots: wrong with confidence ≥ {diagnostics.CONFIDENT:g} where the "
            f"supervisor was below {diagnostics.UNSURE:g}. ECE over {diagnostics.BINS} equally filled bins; Brier "
            "summed over the choices."
        )

    def _row(self, group: Named) -> Row:
        own = [d for d in self.diagnostics if d.group == group]
        overrides = _mean(own, lambda d: d.overrides)
        brier = _mean(own, lambda d: d.calibration.brier if d.calibration else None)
        return (
            group_title(group),
            percent(_mean(own, lambda d: d.agreement.value)),
            fraction(_mean(own, lambda d: d.capa)),
            f"{overrides:.0f}",
            percent(_mean(own, lambda d: d.right_overrides.value)),
            percent(_mean(own, lambda d: d.copied.value)),
            percent(_mean(own, lambda d: d.copied_by_ceiling.value if d.copied_by_ceiling else None)),
            percent(_mean(own, lambda d: d.blind_spots.value if d.blind_spots else None)),
            percent(_mean(own, lambda d: d.calibration.ece if d.calibration else None)),
            "–" if brier is None else f"{brier:.3f}",
        )


def _mean(entries: Sequence[Diagnosis], value: Callable[[Diagnosis], float | None]) -> float | None:
    """Over the seeds in which it is defined."""
    known = [v for v in map(value, entries) if v is not None]
    return sum(known) / len(known) if known else None


def _confusion(models: Sequence[Model], group: Named, report: Report) -> Iterator[Table]:
    """A group's table, summed over its seeds; none where there are too many classes to be read."""
    tables = [np.array(m.confusion) for m in models if m.group == group and m.confusion]
    if not tables or max(t.shape[1] for t in tables) > WIDEST:
        return
    width = max(t.shape[1] for t in tables)
    total = np.sum([np.pad(t, ((0, 0), (0, width - t.shape[1]))) for t in tables], axis=0)
    names = [*report.head.choices, "unparsed"][:width]
    rows = [(name, *map(str, row)) for name, row in zip(report.head.choices, total.tolist(), strict=True)]
    yield Table((group_title(group), *names), rows)
