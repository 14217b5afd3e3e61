"""Disagreements worth reading: where the first student overrode its supervisor, in the rows' own words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainers.report.blocks import Block, Heading, Quote
from trainers.report.collected import Collected
from trainers.report.entries import Entry
from trainers.report.section import Report, Section, section
from trainers.report.text import fraction
from w2s_tasks.results.diagnostics import probabilities
from w2s_tasks.results.read import read_documents

SHOWN = 6
"""Disagreements of each kind."""
TEXT = 600
"""Characters of a document that are shown."""


@dataclass(frozen=True, kw_only=True)
class Disagreement(Entry):
    """A row on which the first student overrode its supervisor."""

    right: bool
    """Whether the student's answer is right."""
    row: str | int
    """The question's number and hash."""
    text: str
    """The question's own words."""
    gold: str
    """The right answer."""
    weak: str
    """The supervisor's."""
    student: str
    """The student's."""
    weak_confidence: float | None
    """Probability that the supervisor gave its answer, 0 to 1."""
    student_confidence: float | None
    """Probability that the student gave its answer, 0 to 1."""
    of: int
    """How many such rows there are."""


@section
@dataclass(frozen=True, kw_only=True)
class Disagreements(Section):
    """The rows of which the student is surest, rightly and wrongly; rows without probabilities come in the task's order."""

    title = "Disagreements worth reading"
    link = "Disagreements"
    place = 80

    disagreements: list[Disagreement]

    @classmethod
    def form(cls, collected: Collected) -> Disagreements:
        """From the answers of the first student and of the supervisor of its seed."""
        return cls(disagreements=_disagreements(collected))

    def page(self, report: Report) -> Iterator[Block]:
        """Each row with the three answers."""
        for right in (True, False):
            rows = [d for d in self.disagreements if d.right == right]
            if rows:
                how = "right" if right else "wrong"
                shown = f"{rows[0].of} rows; the {len(rows)} of which it is surest"
                yield Heading(f"The student overrode its supervisor and was {how} ({shown})")
            for d in rows:
                weak, student = _sure(d.weak, d.weak_confidence), _sure(d.student, d.student_confidence)
                yield Quote(d.text, f"right: {d.gold} · supervisor: {weak} · student: {student}")


def _sure(answer: str, confidence: float | None) -> str:
    return answer + ("" if confidence is None else f" ({fraction(confidence)})")


def _text(document: dict[str, Any]) -> str:
    """The document's own words: its longest text columns, cut."""
    texts = [str(value) for value in document.values() if isinstance(value, str) and not value.isdigit()]
    joined = " · ".join(t.strip() for t in texts) or json.dumps(document, ensure_ascii=False, default=str)
    return joined if len(joined) <= TEXT else joined[:TEXT].rstrip() + " …"


def _disagreements(collected: Collected) -> list[Disagreement]:
    group = collected.group(collected.training, "student")
    if group is None:
        return []
    arm, task = group.arms[0], collected.task
    mine = collected.training[arm][task]
    theirs = next(s[task] for a, s in collected.training.items() if a.name == "weak" and a.seed == arm.seed)
    if mine.predicted is None or theirs.predicted is None or mine.gold is None:
        return []
    own, other = probabilities(mine), probabilities(theirs)
    certainty = own.max(axis=1) if own is not None else np.zeros(mine.n)
    documents = read_documents(collected.run.folder_of(collected.run.layout.evaluations[arm]), mine.task)
    entries = []
    for right in (True, False):
        # In a task of several choices an override may go from one wrong choice to another: it is wrong.
        rows = np.flatnonzero((mine.predicted != theirs.predicted) & ((mine.predicted == mine.gold) == right))
        for row in sorted(rows.tolist(), key=lambda r: -certainty[r])[:SHOWN]:
            chosen = (int(x[row]) for x in (mine.gold, theirs.predicted, mine.predicted))
            names = collected.run.layout.task.choices_of(documents[row])
            gold, weak, student = (names[c].strip() if c >= 0 else "(unparsed)" for c in chosen)
            entries.append(
                Disagreement(
                    right=right,
                    row=mine.units[row],
                    text=_text(documents[row]),
                    gold=gold,
                    weak=weak,
                    student=student,
                    weak_confidence=None if other is None else float(other[row].max()),
                    student_confidence=None if own is None else float(own[row].max()),
                    of=len(rows),
                )
            )
    return entries
