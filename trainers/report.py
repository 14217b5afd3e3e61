"""From the stages of a run to report.json, report.html and the tables on the terminal.

The numbers come from lm_eval's own files, read by `w2s_tasks.results.read`; every comparison is paired by question.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from trainers.experiment import MODES, Arm, Flow
from trainers.labels import LabelSet
from trainers.store import write_atomic
from w2s_tasks.errors import UserError
from w2s_tasks.results.gap import Gap, recovered
from w2s_tasks.results.read import TaskScores, read_evaluation
from w2s_tasks.results.safety import aligned, changes, mean_change, split_of, subtask_of
from w2s_tasks.results.stats import wilson

SCHEMA = 1
SCORES = ("acc", "precision", "recall", "f1", "balanced_acc", "mcc", "em")

Evaluations = dict[Arm, dict[str, TaskScores]]


def read_evaluations(flow: Flow, kind: str) -> Evaluations:
    """The evaluations of one kind (evaluate or safety) of all arms, from their stages."""
    found: Evaluations = {}
    for name, step in flow.steps.items():
        if step.kind == kind and step.arm is not None:
            scores = read_evaluation(flow.stages[name].path)
            # A task that asks the training task's documents another way stands in for it.
            found[step.arm] = {flow.task.name: next(iter(scores.values()))} if kind == "evaluate" else scores
    return found


def _score_entry(scores: TaskScores) -> dict[str, Any]:
    low, high = wilson(float(scores.correct.sum()), scores.n)
    values = {k: scores.metrics[k] for k in SCORES if k in scores.metrics}
    return {
        "n": scores.n,
        "metrics": values | {"acc": float(scores.correct.mean())},
        "stderr": {k: scores.stderr[k] for k in SCORES if k in scores.stderr},
        "ci95": {"acc": [low, high]},
    }


def _mode(flow: Flow, arm: Arm, scores: TaskScores) -> str:
    return "generated" if scores.generated else scores.mode or MODES.get(flow.model_of(arm).model, "loglikelihood")


def _objective(flow: Flow, arm: Arm) -> str | None:
    """What a trained model learnt: a distribution over the choices, or the tokens of a reply."""
    if not arm.method:
        return None
    return "choices" if arm.name == "weak" else flow.config.strong.objective


def _arm_entry(flow: Flow, arm: Arm, scores: TaskScores) -> dict[str, Any]:
    step = flow.steps[f"evaluate/{arm.title}"]
    return {
        "arm": arm.name,
        "method": arm.method,
        "seed": arm.seed,
        "model": flow.config.weak.model if arm.name.startswith("weak") else flow.config.strong.model,
        "mode": _mode(flow, arm, scores),
        "objective": _objective(flow, arm),
        "asked": scores.task,
        "num_fewshot": step.settings["style"]["num_fewshot"],
        **_score_entry(scores),
    }


def _by_seed(evaluations: Evaluations, task: str, name: str, method: str | None = None) -> list[TaskScores]:
    chosen = [a for a in evaluations if a.name == name and (method is None or a.method == method)]
    return [evaluations[a][task] for a in sorted(chosen, key=lambda a: a.seed or 0)]


def _stack(scores: list[TaskScores], like: TaskScores, seeds: int) -> Any:
    for s in scores:
        aligned(s, like)
    rows = np.stack([s.correct for s in scores])
    return np.broadcast_to(rows, (seeds, rows.shape[1])) if len(rows) == 1 else rows


def _gap_entry(arm: str, method: str | None, seeds: list[int], gap: Gap) -> dict[str, Any]:
    return {"arm": arm, "method": method, "seeds": seeds, **asdict(gap)}


def gap_entries(flow: Flow, evaluations: Evaluations) -> list[dict[str, Any]]:
    """PGR of every student, then of the untuned model and the controls, which tell how much of it needs no teacher."""
    task, seeds = flow.task.name, flow.config.seeds
    ceiling = _by_seed(evaluations, task, "ceiling")
    if not ceiling:
        return []
    weak = _by_seed(evaluations, task, "weak")
    wanted: list[tuple[str, str | None]] = [("student", m) for m in flow.config.methods if "student" in flow.config.arms]
    wanted += [(a, None) for a in flow.config.arms if a not in ("student", "ceiling", "weak", "weak_untrained")]
    entries = []
    for name, method in wanted:
        scores = _by_seed(evaluations, task, name, method)
        series = [_stack(s, ceiling[0], len(seeds)) for s in (weak, scores, ceiling)]
        entries.append(_gap_entry(name, method or _method_of(evaluations, name), list(seeds), recovered(*series)))
    return entries


def _method_of(evaluations: Evaluations, name: str) -> str | None:
    return next(a.method for a in evaluations if a.name == name)


def _share(values: Iterable[int], choices: int) -> list[float]:
    counts = np.bincount(np.asarray(list(values), dtype=int), minlength=choices)
    return [float(x) for x in counts / counts.sum()]


def _class_share(scores: TaskScores) -> list[float] | None:
    """Share of the rows for which each class was chosen; what is missing to 1 did not parse."""
    if scores.predicted is None or scores.gold is None:
        return None
    choices = scores.logliks.shape[1] if scores.logliks is not None else 2
    return [float((scores.predicted == c).mean()) for c in range(choices)]


def safety_entries(flow: Flow, evaluations: Evaluations) -> list[dict[str, Any]]:
    """Every arm on every safety task, with its paired difference to the untuned model."""
    reference = next((e for a, e in evaluations.items() if a.name == "zero_shot"), {})
    entries = []
    for arm in (a for a in flow.arms() if a in evaluations):
        differences = {c.task: c.difference for c in changes(evaluations[arm], reference)} if arm.name != "zero_shot" else {}
        for task, scores in evaluations[arm].items():
            entry = _score_entry(scores)
            entries.append(
                {
                    "arm": arm.name,
                    "method": arm.method,
                    "seed": arm.seed,
                    "task": task,
                    "subtask": subtask_of(task),
                    "split": split_of(task),
                    "mode": _mode(flow, arm, scores),
                    "n": scores.n,
                    "acc": entry["metrics"]["acc"],
                    "stderr": scores.stderr.get("acc"),
                    "ci95": entry["ci95"]["acc"],
                    "unparsed": scores.unparsed,
                    "class_share": _class_share(scores),
                    "to_zero_shot": asdict(differences[task]) if task in differences else None,
                }
            )
    return entries


def safety_means(flow: Flow, evaluations: Evaluations) -> list[dict[str, Any]]:
    """Unweighted mean over the subtasks for each arm and split, and its difference to the untuned model."""
    reference = next((e for a, e in evaluations.items() if a.name == "zero_shot"), {})
    entries = []
    for arm in (a for a in flow.arms() if a in evaluations):
        for split in ("test", "hard"):
            part = {t: s for t, s in evaluations[arm].items() if split_of(t) == split}
            if part:
                mean = mean_change(changes(part, reference)) if arm.name != "zero_shot" else None
                acc = float(np.mean([s.correct.mean() for s in part.values()]))
                errors = [s.stderr.get("acc", float("nan")) for s in part.values()]
                entries.append(
                    {
                        "arm": arm.name,
                        "method": arm.method,
                        "seed": arm.seed,
                        "split": split,
                        "tasks": len(part),
                        "acc": acc,
                        "stderr": float(np.sqrt(np.square(errors).sum()) / len(errors)),
                        "to_zero_shot": None if mean is None else {k: v for k, v in asdict(mean).items() if k != "p"},
                    }
                )
    return entries


def label_entries(flow: Flow) -> list[dict[str, Any]]:
    """How good the weak labels are on the rows that the students learn from."""
    entries = []
    for seed in flow.config.seeds:
        labels = LabelSet.load(flow.stages[f"labels/{seed}"].path / "labels.parquet")
        low, high = wilson(labels.accuracy * len(labels), len(labels))
        entries.append(
            {
                "seed": seed,
                "n": len(labels),
                "acc": labels.accuracy,
                "ci95": [low, high],
                "class_share": _share(labels.hard, labels.soft.shape[1]),
                "gold_share": _share(labels.gold, labels.soft.shape[1]),
            }
        )
    return entries


def curve_entries(flow: Flow) -> list[dict[str, Any]]:
    """Learning curves of everything that was trained."""
    entries = []
    for name, step in flow.steps.items():
        if step.kind == "fit" and step.arm is not None:
            points = json.loads((flow.stages[name].path / "curves.json").read_text(encoding="utf-8"))
            entries.append({"arm": step.arm.name, "method": step.arm.method, "seed": step.arm.seed, "points": points})
    return entries


def _seconds(flow: Flow) -> dict[str, float]:
    kinds: dict[str, float] = {}
    for stage in flow.stages.values():
        kinds[stage.kind] = kinds.get(stage.kind, 0.0) + stage.seconds
    return {k: round(v, 1) for k, v in kinds.items()} | {"total": round(sum(kinds.values()), 1)}


def _commands(flow: Flow) -> list[dict[str, str]]:
    """For every model the command that evaluates it: the stock lm_eval's where that has the model."""
    out = []
    for arm in flow.arms():
        ref = flow.model_of(arm)
        if arm.name == "weak_untrained":
            continue
        stock = "hf" if ref.model == "w2s-hf" else ref.model
        tool = 'lm_eval run --include_path "$(w2s tasks --path)"' if stock == "hf" else "w2s eval"
        more = {"hf": " --device cpu", "w2s-chat": " --apply_chat_template"}.get(stock, "")
        if stock == "w2s-chat" and flow.config.strong.system_prompt:
            more += f" --system_instruction {shlex.quote(flow.config.strong.system_prompt)}"
        command = f"{tool} --model {stock} --model_args '{ref.model_args()}' --tasks {flow.asked(arm).name}{more}"
        out.append({"arm": arm.title, "command": command})
    return out


def build_report(flow: Flow) -> dict[str, Any]:
    """All of report.json (schema 1) from the stages of a finished flow.

    Raises:
        UserError: evaluations that don't fit together.
    """
    task = flow.task.name
    evaluations, safety = read_evaluations(flow, "evaluate"), read_evaluations(flow, "safety")
    missing = [a.title for a in flow.arms() if task not in evaluations[a]]
    if missing:
        raise UserError(f"no evaluation of {', '.join(missing)} on {task}.")
    gaps = gap_entries(flow, evaluations)
    return {
        "schema": SCHEMA,
        "experiment": flow.config.name,
        "task": task,
        "arms": [_arm_entry(flow, arm, evaluations[arm][task]) for arm in flow.arms()],
        "gaps": gaps,
        "gap": gaps[0] if gaps else None,
        "weak_labels": label_entries(flow),
        "safety": safety_entries(flow, safety),
        "safety_means": safety_means(flow, safety),
        "curves": curve_entries(flow),
        "stages": {name: stage.path.name for name, stage in flow.stages.items()},
        "commands": _commands(flow),
        "config": flow.config.model_dump(),
        "seconds": _seconds(flow),
    }


def write_report(flow: Flow) -> tuple[dict[str, Any], Path]:
    """Write report.json and report.html into the run folder; return the report and the path of report.json."""
    from trainers.page import render

    path = flow.folder / "report.json"
    text = json.dumps(build_report(flow), indent=2, default=str, allow_nan=False)
    report: dict[str, Any] = json.loads(text)
    write_atomic(path, text)
    write_atomic(flow.folder / "report.html", render(report))
    return report, path.resolve()


def read_report(path: Path) -> dict[str, Any]:
    """Read a report.json, or the one of a run folder.

    Raises:
        UserError: it is missing, not JSON, or of another schema.
    """
    file = path / "report.json" if path.is_dir() else path
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: not a readable report ({error}). Give a run folder, e.g. runs/quickstart.") from error
    if not isinstance(report, dict) or report.get("schema") != SCHEMA:
        raise UserError(f"{file}: not a report of schema {SCHEMA}.")
    return report
