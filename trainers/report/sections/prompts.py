"""Prompts and shots: how much of an accuracy, and of a difference between two arms, hangs on how the task is asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

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

Varied = Literal["prompt", "shots"]


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
    """An arm's accuracy by every prompt, or with every draw of shots; means over its seeds."""

    task: str
    """The task whose documents are asked."""
    varied: Varied
    """What is otherwise: the prompt, or the draw of the shots."""
    acc: list[float]
    """With each, that of all other numbers first: the task's own prompt, lm_eval's own draw; shares from 0 to 1."""
    sd: float
    """Its standard deviation over prompts or draws, beyond what questions and seeds explain."""
    others: Difference
    """Mean over the others minus the first: the task's own prompt is the one of training"""


@dataclass(frozen=True, kw_only=True)
class PromptGap(PromptDifference, OfArm):
    """An arm minus another one, averaged over prompts or draws of shots."""

    task: str
    """The task whose documents are asked."""
    varied: Varied
    """What is otherwise: the prompt, or the draw of the shots."""
    against: str
    """The other arm: weak, zero_shot or the ceiling; asked in one way alone where nothing varies for it."""


@section
@dataclass(frozen=True, kw_only=True)
class Prompts(Section):
    """Empty with one prompt and one draw of shots."""

    title = "Prompts and shots"
    link = "Prompts"
    place = 28

    prompt_texts: list[PromptText]
    prompts: list[ByPrompt]
    prompt_gaps: list[PromptGap]

    @classmethod
    def form(cls, collected: Collected) -> Prompts:
        """From the evaluations by every prompt and with every draw of shots."""
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
        if self.prompt_texts:
            rows: list[Row] = [(one.task, str(one.prompt), one.text, ", ".join(one.choices)) for one in self.prompt_texts]
            yield Table(("task", "prompt", "template", "choices"), rows, left=("template", "choices"), style="prose")
        yield from self._tables()
        yield Note(
            "Accuracy in %; the first column is the task's own prompt, which trained the models, and lm_eval's own draw of "
            "shots: those of all other tables. “SD” is the standard deviation over prompts or draws beyond what other "
            "questions and seeds would make. “Others − first” and the first interval of a difference hold for these prompts "
            "and draws; the last counts them as drawn from all that there are. Few of them tell little about all, so that "
            "interval is wide."
        )

    def terminal(self, report: Report) -> Iterator[Block]:
        """All tables."""
        yield from self._tables()

    def _tables(self) -> Iterator[Table]:
        for task, varied in dict.fromkeys((entry.task, entry.varied) for entry in self.prompts):
            arms = [entry for entry in self.prompts if (entry.task, entry.varied) == (task, varied)]
            what = "prompt" if varied == "prompt" else "draw of shots"
            numbers = [f"{what} {i + 1}" for i in range(len(arms[0].acc))]
            lines: list[Row] = [
                (group_title(e.group), *map(percent, e.acc), f"{100 * e.sd:.1f}", _points(e.others)) for e in arms
            ]
            yield Table(("arm", *numbers, "SD", "others − first"), lines, title=f"{task} by {what} (%)", style="wrap")
            lines = [
                (
                    f"{group_title(e.group)} − {e.against}",
                    *map(points, e.each),
                    f"{100 * e.sd:.1f}",
                    _points(e.given),
                    points_interval(e.low, e.high),
                )
                for e in self.prompt_gaps
                if (e.task, e.varied) == (task, varied)
            ]
            if lines:
                columns = ("difference", *numbers, "SD", "mean [given these]", f"any {what}")
                yield Table(columns, lines, title=f"{task}: differences by {what} (points, 95 % intervals)", style="wrap")


def _points(difference: Difference) -> Cell:
    return Cell(points(difference.value), points_interval(difference.low, difference.high))


@dataclass(frozen=True)
class _Asked:
    """One task's evaluations by each prompt or with each draw of shots, the headline's first."""

    task: str
    varied: Varied
    each: Sequence[Evaluations]
    groups: Sequence[Group]
    ceiling: str

    def asked(self, group: Group) -> bool:
        """Whether an arm was asked in every way; the supervisor was not."""
        return all(arm in evaluations for evaluations in self.each for arm in group.arms)

    def answers(self, group: Group, seeds: int) -> Array:
        """Correctness, [P, S, n]; what no prompt, no draw or no seed changes stands there as often."""
        like = self.each[0][group.arms[0]][self.task]
        ways = [e if self.asked(group) else self.each[0] for e in self.each]
        return np.stack([stacked([e[arm][self.task] for arm in group.arms], like, seeds) for e in ways])

    def arms(self) -> Iterator[ByPrompt]:
        """The arms that were asked in every way."""
        for group in filter(self.asked, self.groups):
            correct, cluster = self.answers(group, len(group.arms)), self._cluster(group)
            yield ByPrompt(
                **group.about,
                task=self.task,
                varied=self.varied,
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
                yield PromptGap(**group.about, **vars(found), task=self.task, varied=self.varied, against=base.name)

    def _cluster(self, group: Group) -> Array | None:
        return self.each[0][group.arms[0]][self.task].cluster


def _tasks(collected: Collected) -> Iterator[_Asked]:
    """The training task and the safety tasks, where they were asked by further prompts or with other shots."""
    ways: tuple[tuple[Varied, Evaluations, Mapping[int, Evaluations]], ...] = (
        ("prompt", collected.training, collected.prompts),
        ("prompt", collected.safety, collected.safety_prompts),
        ("shots", collected.training, collected.draws),
        ("shots", collected.safety, collected.safety_draws),
    )
    for varied, first, further in ways:
        names = {task: None for e in list(further.values())[:1] for scores in e.values() for task in scores}
        groups = collected.groups(first)
        for task in names:
            own = [g for g in groups if task in first[g.arms[0]]]
            yield _Asked(task, varied, [first, *further.values()], own, collected.ceiling)


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
