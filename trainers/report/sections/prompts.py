"""Prompts: how much of an accuracy, and of a difference between two arms, hangs on how the task is asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from trainers.report.blocks import Block, Cell, Note, Row, Table
from trainers.report.collected import Collected, Evaluations, Group
from trainers.report.entries import Entry, OfArm
from trainers.report.section import Report, Section, section
from trainers.report.text import group_title, percent, points, points_interval
from trainers.steps.evaluation import Evaluation
from w2s_tasks.plugin.forms import parted
from w2s_tasks.results.prompts import PromptDifference, prompt_difference, prompt_sd
from w2s_tasks.results.read import Array
from w2s_tasks.results.safety import stacked
from w2s_tasks.results.stats import Difference, difference_of, paired_components


@dataclass(frozen=True, kw_only=True)
class PromptText(Entry):
    """A prompt as the task's YAML has it."""

    task: str
    """The task that it is a prompt of."""
    prompt: int
    """Its number; 1 is the task's own."""
    text: str
    """Its template."""
    choices: list[str]
    """Its choices; empty where each row has its own."""


@dataclass(frozen=True, kw_only=True)
class ByPrompt(OfArm):
    """An arm's accuracy by every prompt, means over its seeds."""

    task: str
    """The task whose documents are asked."""
    acc: list[float]
    """With each prompt, the task's own first; shares from 0 to 1."""
    sd: float
    """Its standard deviation over prompts, beyond what questions and seeds explain."""
    others: Difference
    """Mean over the other prompts minus the task's own, which is the one of training"""


@dataclass(frozen=True, kw_only=True)
class PromptGap(PromptDifference, OfArm):
    """An arm minus another one, averaged over prompts."""

    task: str
    """The task whose documents are asked."""
    against: str
    """The other arm: weak, which is asked by the task's own prompt alone, zero_shot or the ceiling."""


@section
@dataclass(frozen=True, kw_only=True)
class Prompts(Section):
    """Empty with one prompt."""

    title = "Prompts"
    place = 28

    prompt_texts: list[PromptText]
    prompts: list[ByPrompt]
    prompt_gaps: list[PromptGap]

    @classmethod
    def form(cls, collected: Collected) -> Prompts:
        """From the evaluations by every prompt."""
        tasks = list(_tasks(collected))
        return cls(
            prompt_texts=_texts(collected),
            prompts=[entry for task in tasks for entry in task.arms()],
            prompt_gaps=[entry for task in tasks for entry in task.gaps()],
        )

    def page(self, report: Report) -> Iterator[Block]:
        """The prompts, a table of accuracies and one of differences."""
        if not self.prompts:
            return
        rows: list[Row] = [(one.task, str(one.prompt), one.text, ", ".join(one.choices)) for one in self.prompt_texts]
        yield Table(("task", "prompt", "template", "choices"), rows, left=("template", "choices"), style="prose")
        yield from self._tables()
        count = max(len(entry.acc) for entry in self.prompts)
        yield Note(
            "Accuracy in % by each prompt; the first is the task's own, which trained the models and stands in all other "
            "tables. “SD” is the standard deviation over prompts beyond what other questions and seeds would make. "
            "“Others − own” and the first interval of a difference hold for these prompts; “any prompt” counts them as drawn "
            f"from all that there are. {count} prompts tell little about all prompts, so that interval is wide."
        )

    def terminal(self, report: Report) -> Iterator[Block]:
        """Both tables."""
        yield from self._tables()

    def _tables(self) -> Iterator[Table]:
        for task in dict.fromkeys(entry.task for entry in self.prompts):
            arms = [entry for entry in self.prompts if entry.task == task]
            numbers = [f"prompt {i + 1}" for i in range(len(arms[0].acc))]
            lines: list[Row] = [
                (group_title(e.group), *map(percent, e.acc), f"{100 * e.sd:.1f}", _points(e.others)) for e in arms
            ]
            yield Table(("arm", *numbers, "SD", "others − own"), lines, title=f"{task} by prompt (%)", style="wrap")
            gaps = [entry for entry in self.prompt_gaps if entry.task == task]
            lines = [
                (
                    f"{group_title(e.group)} − {e.against}",
                    *map(points, e.per_prompt),
                    f"{100 * e.sd:.1f}",
                    _points(e.given),
                    points_interval(e.low, e.high),
                )
                for e in gaps
            ]
            if lines:
                columns = ("difference", *numbers, "SD", "mean [these prompts]", "any prompt")
                yield Table(columns, lines, title=f"{task}: differences by prompt (points, 95 % intervals)", style="wrap")


def _points(difference: Difference) -> Cell:
    return Cell(points(difference.value), points_interval(difference.low, difference.high))


@dataclass(frozen=True)
class _Asked:
    """One task's evaluations by each prompt, the task's own first."""

    task: str
    by_prompt: Sequence[Evaluations]
    groups: Sequence[Group]
    ceiling: str

    def asked(self, group: Group) -> bool:
        """Whether an arm was asked by every prompt; the supervisor was not."""
        return all(arm in evaluations for evaluations in self.by_prompt for arm in group.arms)

    def answers(self, group: Group, seeds: int) -> Array:
        """Correctness, [P, S, n]; what no prompt or no seed changes stands there as often."""
        like = self.by_prompt[0][group.arms[0]][self.task]
        prompts = [e if self.asked(group) else self.by_prompt[0] for e in self.by_prompt]
        return np.stack([stacked([e[arm][self.task] for arm in group.arms], like, seeds) for e in prompts])

    def arms(self) -> Iterator[ByPrompt]:
        """The arms that were asked by every prompt."""
        for group in filter(self.asked, self.groups):
            correct, cluster = self.answers(group, len(group.arms)), self._cluster(group)
            yield ByPrompt(
                **group.about,
                task=self.task,
                acc=[float(x) for x in correct.mean(axis=(1, 2))],
                sd=prompt_sd(correct, cluster),
                others=difference_of(paired_components(correct[1:].mean(axis=0), correct[0], cluster), correct.shape[2]),
            )

    def gaps(self) -> Iterator[PromptGap]:
        """Each of them minus the supervisor, the untuned model and the ceiling."""
        bases = [g for name in ("weak", "zero_shot", self.ceiling) for g in self.groups if g.name == name]
        for group in filter(self.asked, self.groups):
            for base in (b for b in bases if b.name != group.name and (b.name != self.ceiling or group.name == "student")):
                seeds = max(len(group.arms), len(base.arms))
                found = prompt_difference(self.answers(group, seeds), self.answers(base, seeds), self._cluster(group))
                yield PromptGap(**group.about, **vars(found), task=self.task, against=base.name)

    def _cluster(self, group: Group) -> Array | None:
        return self.by_prompt[0][group.arms[0]][self.task].cluster


def _tasks(collected: Collected) -> Iterator[_Asked]:
    """The training task and the safety tasks, where they were asked by further prompts."""
    for first, further in ((collected.training, collected.prompts), (collected.safety, collected.safety_prompts)):
        names = {task: None for e in list(further.values())[:1] for scores in e.values() for task in scores}
        groups = collected.groups(first)
        for task in names:
            own = [g for g in groups if task in first[g.arms[0]]]
            yield _Asked(task, [first, *further.values()], own, collected.ceiling)


def _texts(collected: Collected) -> list[PromptText]:
    """The prompts of every task that was asked by more than one."""
    asked = [(step, t) for step in collected.run.layout.steps.values() if isinstance(step, Evaluation) for t in step.limits]
    several = {parted(task.name).own_prompt for step, task in asked if step.prompt > 1}
    found = {}
    for step, task in asked:
        name, own = parted(task.name).own_prompt, task.task.config
        if name in several:
            text = f"{own.description or ''}{own.doc_to_text}"
            found[name, step.prompt] = PromptText(task=name, prompt=step.prompt, text=text, choices=task.classes)
    return [found[key] for key in sorted(found)]
