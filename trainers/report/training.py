"""The report's sections on the training task: arms, PGR, labels, curves, diagnostics, disagreements."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import numpy as np

from trainers.flow.run import Run
from trainers.labels.arms import kind_of
from trainers.labels.gold import GOLD, Gold
from trainers.labels.label_set import LABELS, LabelSet
from trainers.report.collected import Collected, Group
from trainers.steps.arm import Arm
from trainers.steps.fit import Fit
from trainers.training.told import Told
from w2s_tasks.results.diagnostics import confusion, diagnose, probabilities
from w2s_tasks.results.gap import Gap, recovered
from w2s_tasks.results.read import TaskScores, read_documents
from w2s_tasks.results.safety import stacked
from w2s_tasks.results.stats import accuracy_interval, mean_accuracy, share_interval

SCORES = ("acc", "precision", "recall", "f1", "balanced_acc", "mcc", "em")
SHOWN = 6
"""Disagreements of each kind."""
TEXT = 600
"""Characters of a document that are shown."""

Entry = dict[str, Any]


def score_entry(scores: TaskScores) -> Entry:
    """Metrics with standard errors and an interval of the accuracy."""
    values = {k: scores.metrics[k] for k in SCORES if k in scores.metrics}
    return {
        "n": scores.n,
        "metrics": values | {"acc": float(scores.correct.mean())},
        "stderr": {k: scores.stderr[k] for k in SCORES if k in scores.stderr},
        "ci95": {"acc": list(accuracy_interval(scores.correct, scores.cluster))},
    }


def arm_entry(collected: Collected, arm: Arm) -> Entry:
    """One model on the training task."""
    run = collected.run
    scores, asked = collected.training[arm][collected.task], run.layout.evaluations[arm]
    table = confusion(scores)
    return {
        "arm": arm.name,
        "method": arm.method,
        "seed": arm.seed,
        "model": asked.settings.model,
        "mode": collected.mode(arm, scores),
        "objective": collected.objective(arm),
        "asked": scores.task,
        "num_fewshot": asked.style.num_fewshot,
        "system_prompt": scores.system_prompt,
        "training": asdict(Told.load(run.folder_of(asked.fit))) if asked.fit else None,
        **score_entry(scores),
        "unparsed": scores.unparsed,
        "ties": scores.ties,
        "confusion": None if table is None else table.tolist(),
    }


def _of(collected: Collected, group: Group) -> list[TaskScores]:
    return [collected.training[arm][collected.task] for arm in group.arms]


def mean_entries(collected: Collected) -> list[Entry]:
    """Every arm and method over its seeds: accuracy with an interval that includes their spread."""
    entries = []
    for group in collected.groups(collected.training):
        scores = _of(collected, group)
        acc, low, high = mean_accuracy(stacked(scores, scores[0], len(scores)), scores[0].cluster)
        per_seed = [float(s.correct.mean()) for s in scores]
        entries.append({**group.entry(), "n": scores[0].n, "acc": acc, "ci95": [low, high], "per_seed": per_seed})
    return entries


def _gap_entry(group: Group, seeds: list[int], gap: Gap) -> Entry:
    return {"arm": group.name, "method": group.method, "seeds": seeds, **asdict(gap)}


def gap_entries(collected: Collected, end: Collected | None = None) -> list[Entry]:
    """PGR of every student, then of the untuned model and the controls, which tell how much of it needs no teacher.

    Args:
        collected: whose PGR.
        end: whose supervisor and ceiling it is measured against; None for those of `collected`.
    """
    end = end or collected
    weak, ceiling = (end.group(end.training, name) for name in ("weak", collected.ceiling))
    if weak is None or ceiling is None:
        return []
    groups = [
        g for g in collected.groups(collected.training) if g.name != collected.ceiling and kind_of(g.name).model == "strong"
    ]
    like, seeds = _of(end, ceiling)[0], list(collected.config.seeds)
    entries = []
    for group in sorted(groups, key=lambda g: g.name != "student"):
        scores = (_of(end, weak), _of(collected, group), _of(end, ceiling))
        series = [stacked(one, like, len(seeds)) for one in scores]
        entries.append(_gap_entry(group, seeds, recovered(*series, cluster=like.cluster)))
    return entries


def _share(values: Iterable[int], choices: int) -> list[float]:
    counts = np.bincount(np.asarray(list(values), dtype=int), minlength=choices)
    return [float(x) for x in counts / counts.sum()]


def label_entries(run: Run) -> list[Entry]:
    """How good the weak labels are on the rows that the students learn from."""
    entries = []
    for seed, step in run.layout.weak_labels.items():
        labels = LabelSet.load(run.folder_of(step) / LABELS)
        gold = Gold.load(run.folder_of(step.split) / GOLD)
        accuracy = gold.accuracy(labels)
        low, high = share_interval(accuracy * len(labels), len(labels))
        entries.append(
            {
                "seed": seed,
                "n": len(labels),
                "acc": accuracy,
                "ci95": [low, high],
                "class_share": _share(labels.hard, labels.soft.shape[1]),
                "gold_share": _share(gold.of(labels.row_id), labels.soft.shape[1]),
            }
        )
    return entries


def curve_entries(run: Run) -> list[Entry]:
    """Learning curves of everything that was trained."""
    entries = []
    for step in run.layout.steps.values():
        if isinstance(step, Fit) and step.arm and (path := run.folder_of(step) / "curves.json").is_file():
            points = json.loads(path.read_text(encoding="utf-8"))
            entries.append({"arm": step.arm.name, "method": step.arm.method, "seed": step.arm.seed, "points": points})
    return entries


def diagnostic_entries(collected: Collected) -> list[Entry]:
    """Every arm of the strong model against the weak supervisor of its seed, on the evaluation rows."""
    task = collected.task
    names = ("weak", collected.ceiling)
    weak, ceiling = ({a.seed: s[task] for a, s in collected.training.items() if a.name == name} for name in names)
    first = collected.config.seeds[0]
    entries = []
    for arm in collected.arms():
        if arm.kind.model == "weak":
            continue
        seed = first if arm.seed is None else arm.seed
        diagnosis = diagnose(
            collected.training[arm][task], weak[seed], None if arm.name == collected.ceiling else ceiling.get(seed)
        )
        if diagnosis is not None:
            entries.append({"arm": arm.name, "method": arm.method, "seed": arm.seed, **asdict(diagnosis)})
    return entries


def _text(document: Entry) -> str:
    """The document's own words: its longest text columns, cut."""
    texts = [str(value) for value in document.values() if isinstance(value, str) and not value.isdigit()]
    joined = " · ".join(t.strip() for t in texts) or json.dumps(document, ensure_ascii=False, default=str)
    return joined if len(joined) <= TEXT else joined[:TEXT].rstrip() + " …"


def disagreements(collected: Collected) -> list[Entry]:
    """Where the first student overrode its supervisor: the rows of which it is surest, rightly and wrongly.

    Rows without probabilities (generated text) come in the task's order.
    """
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
            gold, weak, student = (collected.choices[c].strip() if c >= 0 else "(unparsed)" for c in chosen)
            entries.append(
                {
                    "right": right,
                    "row": mine.units[row],
                    "text": _text(documents[row]),
                    "gold": gold,
                    "weak": weak,
                    "student": student,
                    "weak_confidence": None if other is None else float(other[row].max()),
                    "student_confidence": None if own is None else float(own[row].max()),
                    "of": len(rows),
                }
            )
    return entries
