"""Every arm's accuracy with the covariances of all of them: what benches pool over tasks. It has no part of the page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from trainers.report.collected import Collected, Evaluations, Group
from trainers.report.entries import Entry
from trainers.report.section import Section, section
from trainers.report.sections.accuracy import series
from trainers.report.text import Named
from w2s_tasks.results.components import crossed
from w2s_tasks.results.read import TaskScores

Matrix = list[list[float]]


@dataclass(frozen=True, kw_only=True)
class JointArm(Entry):
    """An arm and method over all seeds."""

    arm: str
    """How its models came about: weak, zero_shot, student, ceiling, a control."""
    method: str | None
    """Label operations and loss that they were trained with; null where nothing was trained."""

    @property
    def group(self) -> Named:
        """Arm and method."""
        return self.arm, self.method


@dataclass(frozen=True, kw_only=True)
class Joint(Entry):
    """All arms on the same questions of one task. A contrast d of accuracies has the variance d' (seeds + questions) d."""

    task: str
    """The task's name in lm_eval."""
    n: int
    """Questions."""
    seeds: int
    """Repetitions."""
    arms: list[JointArm]
    """The order of all that follows."""
    accuracy: list[float]
    """Of each arm over all seeds, 0 to 1."""
    seed_covariance: Matrix
    """Of these means, by what differs between seeds; 0 with one seed."""
    question_covariance: Matrix
    """Of these means, by which questions are asked; in clusters where they come in groups."""

    def place(self, group: Named) -> int | None:
        """Where an arm stands; of a student without a method its first."""
        return next((i for i, arm in enumerate(self.arms) if arm.arm == group[0] and group[1] in (None, arm.method)), None)


@section
@dataclass(frozen=True, kw_only=True)
class Jointly(Section):
    """Accuracies and their covariances."""

    title = "Accuracies and their covariances"
    place = 95

    joint: list[Joint]
    """The training task first, then the safety tasks at the main number of shots."""

    @classmethod
    def form(cls, collected: Collected) -> Self:
        """Of every task, for the arms that all were asked it."""
        of_safety = {task: None for scores in collected.safety.values() for task in scores}
        tasks = [(collected.training, collected.task), *((collected.safety, task) for task in of_safety)]
        return cls(joint=[found for evaluations, task in tasks for found in _joint(collected, evaluations, task)])


def _joint(collected: Collected, evaluations: Evaluations, task: str) -> Iterator[Joint]:
    asked = {arm: scores for arm, scores in evaluations.items() if task in scores}
    groups = collected.groups(asked)
    if not groups:
        return
    scores = [_scores(asked, group, task) for group in groups]
    like, seeds = scores[0][0], max(map(len, scores))
    rows = [series(one, like, seeds) for one in scores]
    parts = crossed(np.stack([row for row in rows if row is not None]), like.cluster)
    yield Joint(
        task=task,
        n=like.n,
        seeds=seeds,
        arms=[JointArm(arm=group.name, method=group.method) for group in groups],
        accuracy=parts.mean.tolist(),
        seed_covariance=parts.seeds.tolist(),
        question_covariance=parts.rows.tolist(),
    )


def _scores(evaluations: Evaluations, group: Group, task: str) -> Sequence[TaskScores]:
    return [evaluations[arm][task] for arm in group.arms]
