"""From the stages of a run to its report: report.json, report.html, CSV tables and a model card for every adapter.

The numbers come from lm_eval's own files, read by `w2s_tasks.results.read`; every comparison is paired by question. Each
section forms its own numbers and shows them (`trainers.report.sections`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

import trainers.report.sections  # noqa: F401 - registers them
from trainers.config.experiment import Experiment
from trainers.flow import commands
from trainers.flow.layout import Layout
from trainers.flow.run import Run
from trainers.flow.stamp import STAMPS
from trainers.report.blocks import show, standard_output
from trainers.report.collected import collect
from trainers.report.csv_tables import write_tables
from trainers.report.model_card import write_cards
from trainers.report.page import QUESTIONS, has_questions, render
from trainers.report.section import SCHEMA, Head, Report, in_order
from trainers.store.objects import is_url, open_objects
from trainers.store.remote import MANIFEST, Stored
from trainers.store.stages import Stage, whole, write_atomic
from w2s_tasks.errors import UserError
from w2s_tasks.rows.assets import cache_dir

CONFIG = "config.yaml"
WRITTEN = ("report.json", STAMPS, "report.html", QUESTIONS, CONFIG, "tables", "model_cards")
"""What a run folder holds beside its stages."""


def head_of(run: Run) -> Head:
    """What a run's report is of."""
    layout = run.layout
    # The same stages again: a cell of a sweep becomes a run of its own beside the sweep.
    folder = next(iter(run.stages.values())).folder.parent
    return Head(
        schema=SCHEMA,
        experiment=layout.config.name,
        task=layout.task.name,
        choices=[c.strip() for c in layout.task.classes],
        config=layout.config.model_dump(mode="json"),
        command=commands.experiment(run.folder / CONFIG, runs_dir=folder.parent.parent),
        stages_folder=Path(os.path.relpath(folder, run.folder)).as_posix(),
        stages={name: stage.folder.name for name, stage in run.stages.items()},
    )


def build_report(run: Run) -> Report:
    """The report of a finished run, from its stages.

    Raises:
        UserError: evaluations that don't fit together.
    """
    layout, collected = run.layout, collect(run)
    missing = [arm.title for arm in layout.arms() if layout.task.name not in collected.training.get(arm, {})]
    if missing:
        raise UserError(f"no evaluation of {', '.join(missing)} on {layout.task.name}.")
    return Report(head_of(run), {section: section.of(collected) for section in in_order()})


def write_report(run: Run) -> tuple[Report, Path]:
    """Write report.json and report.html, config.yaml, tables/*.csv and model_cards/*.md into the run folder.

    Returns:
        The report, and the path of report.json.
    """
    path = run.folder / "report.json"
    text = json.dumps(build_report(run).json(), indent=2, allow_nan=False)
    report = Report.read(json.loads(text), path)
    write_atomic(run.folder / CONFIG, yaml.safe_dump(report.head.config, sort_keys=False, allow_unicode=True))
    write_atomic(path, text)
    present(report, run.folder)
    return report, path.resolve()


def present(report: Report, folder: Path) -> None:
    """Write what follows from report.json alone: the page, the tables and the model cards."""
    write_atomic(folder / "report.html", render(report, questions=has_questions(report, folder)))
    write_tables(report, folder / "tables")
    write_cards(report, folder / "model_cards")


def show_report(report: Report) -> None:
    """Print each section's part on the terminal."""
    console = standard_output()
    for section in report.sections.values():
        show(section.terminal(report), console)


def read_report(path: Path) -> Report:
    """Read a report.json, or the one of a run folder.

    Raises:
        UserError: it is missing, not JSON, or not what its sections say.
    """
    return Report.read(*_read(path))


def _read(path: Path) -> tuple[Any, Path]:
    file = path / "report.json" if path.is_dir() else path
    try:
        return json.loads(file.read_text(encoding="utf-8")), file
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: not a readable report ({error}). Give a run folder, e.g. runs/quickstart.") from error


def runs_of(paths: Sequence[Path]) -> list[Path]:
    """The run folders that are meant: a sweep's folder stands for its cells."""
    out: list[Path] = []
    for path in paths:
        cells = sorted(p.parent for p in path.glob("cells/*/report.json")) if (path / "sweep.json").is_file() else []
        out += cells if cells and not (path / "report.json").is_file() else [path]
    return out


def here(place: str, *, stages: bool = False) -> Path:
    """A run folder, from an object store brought into the cache where it is the URL of an experiment there.

    Args:
        place: a folder, a report.json, or a URL.
        stages: whether the reports' stages are needed too.

    Raises:
        UserError: the store can't be read, or holds no report there.
    """
    if not is_url(place):
        return Path(place)
    url, _, experiment = place.rstrip("/").removesuffix("/report.json").rpartition("/")
    stored = Stored(open_objects(url), experiment)
    folder = cache_dir() / "stores" / hashlib.sha256(url.encode()).hexdigest()[:12] / experiment
    for name in (*WRITTEN, "sweep.json", "cells"):
        stored.pull(folder, name)
    reports = [path / "report.json" for path in runs_of([folder]) if (path / "report.json").is_file()]
    if not reports:
        raise UserError(f"{place}: no report there. Give an experiment's folder, e.g. s3://bucket/prefix/quickstart.")
    for stage in {name for path in reports for name in _read(path)[0]["stages"].values()} if stages else ():
        manifest = stored.manifest(stage)
        if manifest is not None and not (folder / "stages" / stage / MANIFEST).is_file():
            (folder / "stages").mkdir(exist_ok=True)
            stored.fetch(stage, manifest, folder / "stages" / stage)
    return folder


def reopened(folder: Path) -> Run:
    """A finished run with the stages that its report.json names.

    Of that file only the configuration and the stages are read, so that it may be of an older version.

    Raises:
        UserError: no report there, or a stage of it is gone.
    """
    data, _ = _read(folder)
    try:
        config = Experiment.model_validate(data["config"])
        there, names = folder / data["stages_folder"], {str(k): str(v) for k, v in data["stages"].items()}
    except ValidationError as error:
        told = error.errors()[0]["msg"].removeprefix("Value error, ").rstrip(".")
        raise UserError(f"{folder}: its configuration can't be read: {told}. Or run it again instead.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder}: its configuration does not fit this version; run it again instead ({error}).") from error
    run = Run(Layout.load(config), folder)
    for name in run.layout.steps:
        stage = there / names.get(name, "")
        if name not in names or not (stage / MANIFEST).is_file():
            raise UserError(f"{folder}: the stage of '{name}' is not there; w2s run makes what is missing.")
        manifest, altered = whole(stage)
        if manifest is None:
            raise UserError(f"{stage}: {altered} is not as its manifest says; w2s run builds the stage of '{name}' anew.")
        run.stages[name] = Stage(stage, manifest, reused=True)
    return run


def recomputed(folder: Path) -> tuple[Report, Path]:
    """Form a run's report anew from its stages: new statistics over old weights.

    Raises:
        UserError: as `reopened`.
    """
    return write_report(reopened(folder))
