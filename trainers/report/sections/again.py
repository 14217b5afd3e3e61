"""How to evaluate the models again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from trainers.flow import commands
from trainers.flow.run import Run
from trainers.report.blocks import Block, Code, Note
from trainers.report.collected import Collected
from trainers.report.entries import Entry
from trainers.report.section import Report, Section, section
from trainers.steps.evaluation import Evaluation, evaluated_model


@dataclass(frozen=True, kw_only=True)
class Command(Entry):
    """How to measure a model again."""

    arm: str
    """The model."""
    command: str
    """To be pasted into a shell."""


@section
@dataclass(frozen=True, kw_only=True)
class Again(Section):
    """Commands that evaluate the models."""

    title = "Evaluate these models again"
    link = "Again"
    place = 90

    commands: list[Command]

    @classmethod
    def form(cls, collected: Collected) -> Again:
        """For every model the command that evaluates it on the training task again."""
        run = collected.run
        arms = [arm for arm in collected.arms() if arm.name != "weak_untrained"]
        return cls(commands=[Command(arm=a.title, command=_asking(run, run.layout.evaluations[a])) for a in arms])

    def page(self, report: Report) -> Iterator[Block]:
        """One after the other."""
        for entry in self.commands:
            yield Note(entry.arm)
            yield Code(entry.command)


def _asking(run: Run, step: Evaluation) -> str:
    ((task, limit),) = step.limits.items()
    return commands.evaluation(evaluated_model(step, run), step.harness, task.name, step.style, limit)
