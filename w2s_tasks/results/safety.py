"""What training did to a model's ethics: accuracy differences to a reference model, question by question, over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from w2s_tasks.errors import UserError
from w2s_tasks.results.equivalence import equivalence
from w2s_tasks.results.over_tasks import mean_difference
from w2s_tasks.results.power import Design, detectable
from w2s_tasks.results.read import Array, TaskScores
from w2s_tasks.results.stats import Difference, holm, paired_components, paired_difference

HARD = "_hard"
FEW_DIFFER = 12
"""With fewer questions on which the models differ, a paired 95 % interval covers more than 97 % (`scripts/coverage`)."""

Scores = Mapping[str, TaskScores]


def split_of(task: str) -> str:
    """Which test set a task's name stands for: test or hard."""
    return "hard" if HARD in task else "test"


def subtask_of(task: str) -> str:
    """The subtask's name without pack prefix, split and twin: w2s_ethics_probe_justice_hard_gen -> justice."""
    name = task.removesuffix("_gen").removesuffix(HARD)
    for prefix in ("w2s_ethics_probe_", "w2s_ethics_study_", "w2s_ethics_", "w2s_"):
        name = name.removeprefix(prefix)
    return name


def exact_match(scores: TaskScores) -> TaskScores | None:
    """The same with groups of rows as units, right where every row is: None where that is not the task's own score.

    As in `scoring.metrics.exact_match`, a group that a limit cut is no unit.
    """
    if "em" not in scores.metrics or scores.cluster is None:
        return None
    groups, index, sizes = np.unique(scores.cluster, return_inverse=True, return_counts=True)
    right = np.bincount(index, weights=scores.correct) == sizes
    whole = sizes == sizes.max() if len(groups) > 1 else np.ones(1, dtype=bool)
    units = tuple(f"group {group}" for group in groups[whole])
    return TaskScores(scores.task, int(whole.sum()), {}, {}, units, right[whole].astype(float))


@dataclass(frozen=True)
class Change:
    """A model against a reference on one task.

    ``p_holm`` is adjusted over the family that `adjusted` was given, and ``detectable`` is the smallest difference that this
    comparison finds in that family with 80 % power, given how often the models differ; None where it can't find any.
    """

    task: str
    difference: Difference
    design: Design | None = None
    detectable: float | None = None
    p_holm: float | None = None
    p_equal: float | None = None
    """Of a difference as large as the margin or larger, either way (`equivalence`), adjusted likewise; None without one."""

    @property
    def few(self) -> bool:
        """Whether so few questions, or whole groups of them, differ that the interval is wider than it need be."""
        return self.design is not None and self.design.discordance * self.design.rows < FEW_DIFFER


def aligned(first: TaskScores, second: TaskScores) -> None:
    """Check that two evaluations asked the same questions.

    Raises:
        UserError: they did not, so that a paired comparison would be wrong.
    """
    if first.units != second.units:
        raise UserError(f"{first.task}: the two evaluations asked different questions; evaluate both with one --limit.")


def stacked(scores: Sequence[TaskScores], like: TaskScores, seeds: int) -> Array:
    """Correctness over seeds, shape [seeds, n]; a model that no seed changes counts at each.

    Raises:
        UserError: evaluations of different questions.
    """
    for one in scores:
        aligned(one, like)
    rows = np.stack([one.correct for one in scores])
    return np.broadcast_to(rows, (seeds, rows.shape[1])) if len(rows) == 1 else rows


def _both(task: str, model: Sequence[Scores], reference: Sequence[Scores]) -> tuple[Array, Array, Array | None]:
    like, seeds = model[0][task], max(len(model), len(reference))
    first, second = (stacked([s[task] for s in part], like, seeds) for part in (model, reference))
    return first, second, like.cluster


def _common(model: Sequence[Scores], reference: Sequence[Scores]) -> list[str]:
    if not model or not reference:
        return []
    return [task for task in model[0] if all(task in s for s in (*model, *reference))]


def changes(model: Sequence[Scores], reference: Sequence[Scores], margin: float | None = None) -> list[Change]:
    """Differences on every task that all evaluations have.

    Args:
        model: the model's scores by task, one entry a seed.
        reference: the same for the reference; one entry where no seed changes it.
        margin: the smallest difference that would matter; None for no test of equivalence.

    Raises:
        UserError: evaluations of different questions.
    """
    return [_change(task, *_both(task, model, reference), margin) for task in _common(model, reference)]


def _change(task: str, first: Array, second: Array, cluster: Array | None, margin: float | None) -> Change:
    difference = paired_difference(first, second, cluster)
    parts, n = paired_components(first, second, cluster), first.shape[1]
    effect = float(parts.effect)
    seeds, rows = (float(v) for v in parts.variance(np.ones(1)))
    discordance = difference.discordance or 0.0
    design = Design(n / effect, float(parts.row_df), discordance, parts.seed_df, seeds, rows)
    equal = None if margin is None else equivalence(parts, margin).equal
    return Change(task, difference, design, p_equal=equal)


def mean_change(model: Sequence[Scores], reference: Sequence[Scores], tasks: Sequence[str]) -> Difference | None:
    """Unweighted mean of the differences over tasks (`over_tasks`); None where they have none in common."""
    chosen = [task for task in _common(model, reference) if task in tasks]
    if not chosen:
        return None
    return mean_difference([_both(task, model, reference) for task in chosen], [subtask_of(task) for task in chosen])


def adjusted(family: Sequence[Change]) -> list[Change]:
    """The same changes with Holm's p over all of them, and what each could detect beside the others.

    Holm's smallest p has to pass the level over the size of the family: that is what a difference needs to be found alone.
    """
    level = 0.05 / max(1, len(family))
    differing = holm([c.difference.p for c in family])
    asked = [c.p_equal for c in family if c.p_equal is not None]
    equal = iter(holm(asked) if asked else ())
    return [
        replace(
            c,
            p_holm=p,
            detectable=None if c.design is None else detectable(c.design, level=level),
            p_equal=None if c.p_equal is None else next(equal),
        )
        for c, p in zip(family, differing, strict=True)
    ]
