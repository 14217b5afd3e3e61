"""From the stages of a run to its report: report.json, report.html, CSV tables and a model card for every adapter.

The numbers come from lm_eval's own files, read by `w2s_tasks.results.read`; every comparison is paired by question. The
sections are formed in `report_training` and `report_safety`, shown by `tables` (terminal) and `page` (HTML).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from safetensors import safe_open

from trainers.config.experiment import Experiment
from trainers.flow import commands
from trainers.flow.layout import Layout
from trainers.flow.run import Run
from trainers.report import notes
from trainers.report import safety as safe
from trainers.report import training as trained
from trainers.report.collected import collect
from trainers.report.schema import SCHEMA, Report
from trainers.steps.evaluation import Evaluation, evaluated_model
from trainers.store.stages import MANIFEST, Stage, whole, write_atomic
from w2s_tasks.errors import UserError
from w2s_tasks.models.ref import resolve

REQUIRED = ("experiment", "task", "arms", "gaps", "gap", "safety", "seconds", "config")
"""What a report without is not whole."""
CONFIG = "config.yaml"
WRITTEN = ("report.json", "report.html", CONFIG, "tables", "model_cards")
"""What a run folder holds beside its stages."""


def _seconds(run: Run) -> dict[str, float]:
    kinds: dict[str, float] = {}
    for stage in run.stages.values():
        kinds[stage.kind] = kinds.get(stage.kind, 0.0) + stage.seconds
    return {k: round(v, 1) for k, v in kinds.items()} | {"total": round(sum(kinds.values()), 1)}


def _stages_folder(run: Run) -> str:
    """Where the stages are, seen from the report: the cells of a sweep share theirs."""
    stage = next(iter(run.stages.values()))
    return Path(os.path.relpath(stage.path.parent, run.folder)).as_posix()


def _commands(run: Run) -> list[dict[str, str]]:
    """For every model the command that evaluates it on the training task again."""
    return [
        {"arm": arm.title, "command": _asking(run, run.layout.evaluations[arm])}
        for arm in run.layout.arms()
        if arm.name != "weak_untrained"
    ]


def _asking(run: Run, step: Evaluation) -> str:
    ((task, limit),) = step.limits.items()
    return commands.evaluation(evaluated_model(step, run), step.harness, task.name, step.style, limit)


def _command(run: Run) -> str:
    """How to run the experiment again, over the same stages; a cell of a sweep becomes a run of its own beside the sweep."""
    stage = next(iter(run.stages.values()))
    return commands.experiment(run.folder / CONFIG, runs_dir=stage.path.parent.parent.parent)


def parameters(model: str) -> int | None:
    """Parameters of a local model, from the headers of its safetensors files; None where they are not here."""
    try:
        folder = Path(resolve(model))
        if not folder.is_dir():
            from huggingface_hub import snapshot_download

            folder = Path(snapshot_download(model, local_files_only=True))
    except (UserError, OSError, ValueError):
        return None
    total = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "numpy") as f:
            total += sum(math.prod(f.get_slice(name).get_shape()) for name in f.keys())  # noqa: SIM118 - no mapping
    return total or None


def _costs(run: Run) -> dict[str, float | None]:
    """USD of every stage that a service was paid for; None where its price is not known."""
    files = {name: stage.path / "cost.json" for name, stage in run.stages.items()}
    return {n: json.loads(f.read_text(encoding="utf-8"))["usd"] for n, f in files.items() if f.is_file()}


def _software(run: Run) -> dict[str, Any]:
    """Library versions and commits that the stages were made with, from their manifests."""
    versions: dict[str, set[str]] = {}
    commits: set[str] = set()
    for stage in run.stages.values():
        manifest = json.loads((stage.path / MANIFEST).read_text(encoding="utf-8"))
        for library, version in manifest.get("versions", {}).items():
            versions.setdefault(library, set()).add(version)
        if manifest.get("git"):
            commits.add(manifest["git"])
    return {"versions": {k: ", ".join(sorted(v)) for k, v in sorted(versions.items())}, "git": sorted(commits)}


def build_report(run: Run) -> dict[str, Any]:
    """All of report.json (`trainers.report.schema`) from the stages of a finished run.

    Raises:
        UserError: evaluations that don't fit together.
    """
    layout, collected = run.layout, collect(run)
    task, config = layout.task.name, layout.config
    missing = [a.title for a in layout.arms() if task not in collected.training.get(a, {})]
    if missing:
        raise UserError(f"no evaluation of {', '.join(missing)} on {task}.")
    gaps = trained.gap_entries(collected)
    changes, family = safe.change_entries(collected)
    mean_changes = safe.mean_change_entries(collected)
    prompts = notes.system_prompts(collected)
    return {
        "schema": SCHEMA,
        "experiment": config.name,
        "task": task,
        "choices": [c.strip() for c in layout.task.choices],
        "arms": [trained.arm_entry(collected, arm) for arm in layout.arms()],
        "arm_means": trained.mean_entries(collected),
        "gaps": gaps,
        "gap": gaps[0] if gaps else None,
        "notes": [*notes.training_warnings(run), *notes.unlike(prompts)],
        "system_prompts": prompts,
        "weak_labels": trained.label_entries(run),
        "diagnostics": trained.diagnostic_entries(collected),
        "disagreements": trained.disagreements(collected),
        "safety": safe.safety_entries(collected),
        "safety_means": safe.safety_means(collected),
        "safety_gaps": changes,
        "safety_family": family,
        "safety_mean_gaps": mean_changes,
        "drift": safe.drift_entries(collected),
        "ladder": safe.ladder_entries(collected),
        "associations": safe.association_entries(collected),
        "tradeoff": safe.tradeoff_entries(collected, gaps, mean_changes),
        "curves": trained.curve_entries(run),
        "models": {
            part: {"model": section.model, "parameters": parameters(section.model)}
            for part, section in (("weak", config.weak), ("strong", config.strong))
        },
        "stages_folder": _stages_folder(run),
        "stages": {name: stage.path.name for name, stage in run.stages.items()},
        "stage_seconds": {name: round(stage.seconds, 2) for name, stage in run.stages.items()},
        "commands": _commands(run),
        "costs_usd": _costs(run),
        "command": _command(run),
        "config": config.model_dump(),
        "software": _software(run),
        "seconds": _seconds(run),
    }


def write_report(run: Run) -> tuple[dict[str, Any], Path]:
    """Write report.json and report.html, config.yaml, tables/*.csv and model_cards/*.md into the run folder.

    Returns:
        The report, and the path of report.json.
    """
    path = run.folder / "report.json"
    text = json.dumps(build_report(run), indent=2, default=str, allow_nan=False)
    report: dict[str, Any] = json.loads(text)
    Report.model_validate(report)
    write_atomic(run.folder / CONFIG, yaml.safe_dump(report["config"], sort_keys=False, allow_unicode=True))
    write_atomic(path, text)
    present(report, run.folder)
    return report, path.resolve()


def present(report: Mapping[str, Any], folder: Path) -> None:
    """Write what follows from report.json alone: the page, the tables and the model cards."""
    from trainers.report.exports import write_tables
    from trainers.report.model_card import write_cards
    from trainers.report.page import render

    write_atomic(folder / "report.html", render(dict(report)))
    write_tables(report, folder / "tables")
    write_cards(report, folder / "model_cards")


def read_report(path: Path) -> dict[str, Any]:
    """Read a report.json, or the one of a run folder.

    Raises:
        UserError: it is missing, not JSON, or of another schema.
    """
    file = path / "report.json" if path.is_dir() else path
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: not a readable report ({error}). Give a run folder, e.g. runs/quickstart.") from error
    if not isinstance(report, dict) or report.get("schema") != SCHEMA:
        raise UserError(f"{file}: not a report of schema {SCHEMA}.")
    missing = [key for key in REQUIRED if key not in report]
    if missing:
        raise UserError(
            f"{file}: this report lacks {', '.join(missing)}; it is cut or altered. Write it again with w2s run."
        )
    return report


def runs_of(paths: Sequence[Path]) -> list[Path]:
    """The run folders that are meant: a sweep's folder stands for its cells."""
    out: list[Path] = []
    for path in paths:
        cells = sorted(p.parent for p in path.glob("cells/*/report.json")) if (path / "sweep.json").is_file() else []
        out += cells if cells and not (path / "report.json").is_file() else [path]
    return out


def recomputed(folder: Path) -> tuple[dict[str, Any], Path]:
    """Form a run's report anew from the stages that its report.json names: new statistics over old weights.

    Raises:
        UserError: no report there, or a stage of it is gone.
    """
    report = read_report(folder)
    try:
        config = Experiment.model_validate(report["config"])
    except ValueError as error:
        raise UserError(f"{folder}: its configuration does not fit this version; run it again instead ({error}).") from error
    run = Run(Layout.load(config), folder)
    for name in run.layout.steps:
        stage = folder / report.get("stages_folder", "stages") / str(report["stages"].get(name, ""))
        if name not in report["stages"] or not (stage / MANIFEST).is_file():
            raise UserError(f"{folder}: the stage of '{name}' is not there; w2s run makes what is missing.")
        manifest, altered = whole(stage)
        if manifest is None:
            raise UserError(f"{stage}: {altered} is not as its manifest says; w2s run builds the stage of '{name}' anew.")
        run.stages[name] = Stage(manifest["kind"], manifest["key"], stage, float(manifest["seconds"]), reused=True)
    return write_report(run)
