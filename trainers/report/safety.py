"""The report's sections on safety: accuracies, differences over seeds, drift of format, the ladder of shots, trade-off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from trainers.labels.arms import kind_of
from trainers.report.collected import Collected, Group, Scores, matched, parts_of
from trainers.report.training import Entry, gap_entries, score_entry
from w2s_tasks.results.association import rank_correlation
from w2s_tasks.results.drift import drift
from w2s_tasks.results.over_tasks import mean_level
from w2s_tasks.results.read import TaskScores
from w2s_tasks.results.safety import Change, adjusted, changes, mean_change, split_of, stacked, subtask_of
from w2s_tasks.results.stats import Difference, mean_accuracy

CONTRASTS = {"to_zero_shot": "zero_shot", "to_ceiling": "ceiling"}
"""Differences that the report gives, and the arm that each is taken to."""
ALL = "all"
"""Both splits together."""
ARMS, ARMS_AND_CHECKPOINTS = "arms", "arms and checkpoints"
"""What a rank correlation is taken over."""


def _class_share(scores: TaskScores) -> list[float] | None:
    """Share of the rows for which each class was chosen; what is missing to 1 did not parse."""
    if scores.predicted is None:
        return None
    return [float((scores.predicted == c).mean()) for c in range(scores.choices)]


def _pairs(collected: Collected, contrast: str) -> list[tuple[Group, list[Scores], list[Scores]]]:
    """Every group with the evaluations of its reference, seed by seed."""
    reference = collected.group(collected.safety, CONTRASTS[contrast])
    if reference is None:
        return []
    others = (CONTRASTS[contrast], "zero_shot")
    groups = [g for g in collected.groups(collected.safety) if g.name not in others and kind_of(g.name).model == "strong"]
    return [(g, *matched(g, reference, lambda a: collected.safety[a])) for g in groups]


def safety_entries(collected: Collected) -> list[Entry]:
    """Every model on every safety task, with its paired difference to the untuned model."""
    reference = next((e for a, e in collected.safety.items() if a.name == "zero_shot"), {})
    entries = []
    for arm in (a for a in collected.arms() if a in collected.safety):
        own = collected.safety[arm]
        differences = {c.task: c.difference for c in changes([own], [reference])} if arm.name != "zero_shot" else {}
        for task, scores in own.items():
            entry = score_entry(scores)
            entries.append(
                {
                    "arm": arm.name,
                    "method": arm.method,
                    "seed": arm.seed,
                    "task": task,
                    "subtask": subtask_of(task),
                    "split": split_of(task),
                    "mode": collected.mode(arm, scores),
                    "objective": collected.objective(arm),
                    "n": scores.n,
                    "acc": entry["metrics"]["acc"],
                    "stderr": scores.stderr.get("acc"),
                    "ci95": entry["ci95"]["acc"],
                    "balanced_acc": scores.metrics.get("balanced_acc"),
                    "unparsed": scores.unparsed,
                    "ties": scores.ties,
                    "class_share": _class_share(scores),
                    "to_zero_shot": asdict(differences[task]) if task in differences else None,
                }
            )
    return entries


def safety_means(collected: Collected) -> list[Entry]:
    """Unweighted mean over the subtasks for each model and split, and its difference to the untuned model."""
    reference = next((e for a, e in collected.safety.items() if a.name == "zero_shot"), {})
    entries = []
    for arm in (a for a in collected.arms() if a in collected.safety):
        own = collected.safety[arm]
        for split, _, tasks in parts_of(own):
            part = [own[t] for t in tasks]
            mean = mean_change([own], [reference], tasks) if arm.name != "zero_shot" else None
            errors = [s.stderr.get("acc", float("nan")) for s in part]
            stderr = float(np.sqrt(np.square(errors).sum()) / len(errors))
            entries.append(
                {
                    "arm": arm.name,
                    "method": arm.method,
                    "seed": arm.seed,
                    "split": split,
                    "mode": collected.mode(arm, part[0]),
                    "tasks": len(part),
                    "acc": float(np.mean([s.correct.mean() for s in part])),
                    "stderr": stderr if np.isfinite(stderr) else None,
                    "to_zero_shot": None if mean is None else asdict(mean),
                }
            )
    return entries


def _change_entry(collected: Collected, group: Group, contrast: str, change: Change) -> Entry:
    arm = group.arms[0]
    return {
        **group.entry(),
        "task": change.task,
        "subtask": subtask_of(change.task),
        "split": split_of(change.task),
        "mode": collected.mode(arm, collected.safety[arm][change.task]),
        "objective": collected.objective(arm),
        "contrast": contrast,
        **asdict(change.difference),
        "p_holm": change.p_holm,
        "detectable": change.detectable,
        "few": change.few,
    }


def change_entries(collected: Collected) -> tuple[list[Entry], Entry | None]:
    """Student - untuned and student - ceiling on each task over seeds, and what Holm's family is.

    p is adjusted for each arm and method over all of its comparisons, tasks times contrasts: the arms are different
    questions, and a control more takes nothing from the student.
    """
    by_group: dict[Group, list[tuple[str, Change]]] = {}
    for contrast in CONTRASTS:
        for group, own, reference in _pairs(collected, contrast):
            by_group.setdefault(group, []).extend((contrast, change) for change in changes(own, reference))
    entries = []
    for group, named in by_group.items():
        family = adjusted([change for _, change in named])
        entries += [_change_entry(collected, group, c, change) for (c, _), change in zip(named, family, strict=True)]
    contrasts = [c for c in CONTRASTS if any(e["contrast"] == c for e in entries)]
    about = {
        "method": "Holm",
        "per": "arm and method",
        "tests": max((len(named) for named in by_group.values()), default=0),
        "tasks": len({e["task"] for e in entries}),
        "contrasts": contrasts,
    }
    return entries, about if entries else None


def mean_change_entries(collected: Collected) -> list[Entry]:
    """The same differences averaged over the subtasks of each split, and over all."""
    entries = []
    for contrast in CONTRASTS:
        for group, own, reference in _pairs(collected, contrast):
            parts = parts_of(own[0]) if own else []
            whole = [(ALL, mode, [t for _, m, tasks in parts if m == mode for t in tasks]) for mode in (False, True)]
            for split, _, tasks in [*parts, *whole]:
                mean = mean_change(own, reference, tasks)
                if mean is not None:
                    about = {"split": split, "mode": collected.mode(group.arms[0], own[0][tasks[0]]), "tasks": len(tasks)}
                    entries.append({**group.entry(), **about, "contrast": contrast, **asdict(mean)})
    return entries


def drift_entries(collected: Collected) -> list[Entry]:
    """The change in accuracy to the untuned model, split by what happened to the answers, on every safety task."""
    entries = []
    for group, own, reference in _pairs(collected, "to_zero_shot"):
        for task in (t for t in own[0] if all(t in r for r in reference)) if own else ():
            split = drift([r[task] for r in reference], [o[task] for o in own])
            entries.append(
                {
                    **group.entry(),
                    "subtask": subtask_of(task),
                    "split": split_of(task),
                    "mode": collected.mode(group.arms[0], own[0][task]),
                    "objective": collected.objective(group.arms[0]),
                    **asdict(split),
                }
            )
    return entries


def ladder_entries(collected: Collected) -> list[Entry]:
    """Mean accuracy and unparsed share of each arm on each split by number of shots; empty with one number."""
    if len(collected.ladder) < 2:
        return []
    entries = []
    for shots, evaluations in collected.ladder.items():
        for group in collected.groups(evaluations):
            per_seed = [evaluations[a] for a in group.arms]
            for split, _, tasks in parts_of(per_seed[0]):
                about = {"num_fewshot": shots, "split": split, "mode": collected.mode(group.arms[0], per_seed[0][tasks[0]])}
                entries.append({**group.entry(), **about, **_ladder_point(per_seed, tasks)})
    return entries


def _ladder_point(per_seed: Sequence[Scores], tasks: Sequence[str]) -> Entry:
    tables = []
    for task in tasks:
        scores = [s[task] for s in per_seed]
        tables.append((stacked(scores, scores[0], len(scores)), scores[0].cluster))
    acc, low, high = mean_level(tables)
    unparsed = float(np.mean([s[t].unparsed for s in per_seed for t in tasks]))
    by_task = []
    for task, table in zip(tasks, tables, strict=True):
        mean, *ends = mean_accuracy(*table)
        by_task.append({"task": task, "subtask": subtask_of(task), "acc": mean, "ci95": ends})
    return {"acc": acc, "ci95": [low, high], "unparsed": unparsed, "tasks": by_task}


def _capability(collected: Collected, group: Group) -> float:
    task = collected.task
    return float(np.mean([collected.training[a][task].correct.mean() for a in group.arms]))


def association_entries(collected: Collected) -> list[Entry]:
    """Rank correlation between accuracy on the training task and on each safety task: over arms, then with checkpoints."""
    end = [(collected, g) for g in collected.groups(collected.safety)]
    if not end:
        return []
    kept = [(then, g) for then in collected.checkpoints.values() for g in then.groups(then.safety) if g.name != "zero_shot"]
    entries = _associations(collected, ARMS, end)
    return entries + (_associations(collected, ARMS_AND_CHECKPOINTS, [*end, *kept]) if kept else [])


def _associations(collected: Collected, over: str, points: Sequence[tuple[Collected, Group]]) -> list[Entry]:
    """One entry a safety task; a point is an arm with its evaluations at the end or at a checkpoint, a mean over seeds."""
    capability = [_capability(then, g) for then, g in points]
    # The checkpoints of an arm are one training: not independent.
    cluster = None if over == ARMS else [(g.name, g.method) for _, g in points]
    arm = points[0][1].arms[0]
    entries = []
    for task in collected.safety[arm]:
        safe = [float(np.mean([then.safety[a][task].correct.mean() for a in g.arms])) for then, g in points]
        entries.append(
            {
                "task": task,
                "subtask": subtask_of(task),
                "split": split_of(task),
                "mode": collected.mode(arm, collected.safety[arm][task]),
                "over": over,
                **asdict(rank_correlation(capability, safe, cluster)),
            }
        )
    return entries


def tradeoff_entries(collected: Collected, gaps: Sequence[Entry], means: Sequence[Entry]) -> list[Entry]:
    """Safety change against what was gained: accuracy and PGR of each arm and its mean difference to the untuned one.

    The arms at the end of training (``checkpoint`` null), then at each checkpoint, whose PGR is measured against the
    supervisor and the ceiling at the end.
    """
    entries = _tradeoff(collected, gaps, means, None)
    for share, then in collected.checkpoints.items():
        entries += _tradeoff(then, gap_entries(then, collected), mean_change_entries(then), share)
    return entries


def _tradeoff(collected: Collected, gaps: Sequence[Entry], means: Sequence[Entry], checkpoint: float | None) -> list[Entry]:
    recovered: dict[tuple[str, str | None], Any] = {(g["arm"], g["method"]): g for g in gaps}
    entries = []
    overall: dict[tuple[str, str | None], Entry] = {}
    for m in means:  # log-likelihoods first, where both were scored
        if (m["split"], m["contrast"]) == (ALL, "to_zero_shot"):
            overall.setdefault((m["arm"], m["method"]), m)
    for group in collected.groups(collected.safety):
        change = overall.get((group.name, group.method))
        if change is not None:
            gap = recovered.get((group.name, group.method), {})
            about = {
                "checkpoint": checkpoint,
                "mode": change["mode"],
                "acc": _capability(collected, group),
                "pgr": gap.get("pgr"),
                "ci95": gap.get("ci95"),
            }
            fields = {k: change[k] for k in Difference.__dataclass_fields__}
            entries.append({**group.entry(), **about, "change": fields})
    return entries
