"""A model card (Markdown) for every model that a run trained: base, labels, results with intervals, how to measure it.

Cards stand in the run folder, not in the content-addressed stage: a card tells of comparisons that came after the training.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from trainers.labels.arms import ARMS, UNSEEN
from trainers.report.section import Report
from trainers.report.sections.accuracy import Accuracy, Model
from trainers.report.sections.again import Again
from trainers.report.sections.safety import ALL, Safety
from trainers.report.sections.setup import Setup
from trainers.report.sections.tuned import Settings
from trainers.report.text import percent, points, points_interval
from trainers.steps.arm import Arm
from trainers.store.stages import write_atomic
from w2s_tasks.paths import file_name

SETTINGS = (
    *("trainer", "lr", "epochs", "batch_size", "schedule", "warmup", "weight_decay", "r", "alpha", "target_modules"),
    *("layer", "pooling"),
)


def card_name(model: Model) -> str:
    """File name of a model's card: student-logconf-seed0.md."""
    parts = [model.arm, *([str(model.method)] if model.method not in (None, "xent") else [])]
    parts += [f"seed{model.seed}"] if model.seed is not None else []
    return file_name(re.sub(r"[^\w.+-]+", "-", "-".join(parts))) + ".md"


def _title(model: Model) -> str:
    """What its step and its command are found by."""
    return Arm(model.arm, model.method, model.seed).title


def _section(model: Model, report: Report) -> Mapping[str, Any]:
    """The part of the configuration whose model it is."""
    section: Mapping[str, Any] = report.head.config["weak" if model.arm == "weak" else "strong"]
    return section


def _labels(model: Model, report: Report) -> str:
    text = ARMS[model.arm].provenance if model.arm in ARMS else f"labels of the arm '{model.arm}'"
    if model.sees_gold:
        text = text.replace(UNSEEN, "; its method was given gold labels of some of them")
    labels = next((entry for entry in report.of(Setup).weak_labels if entry.seed == model.seed), None)
    if labels is None:
        return text.partition("{")[0].rstrip(" (,")
    return text.format(weak=report.head.config["weak"]["model"], percent=percent(labels.acc), n=labels.n)


class _Command(str):
    """Text of a fenced block, where nothing is Markdown but the fence."""

    __slots__ = ()


def _plain(value: Any) -> Any:
    """A value as it may stand in Markdown: one line without markup, links or code spans of its own."""
    if isinstance(value, _Command) or not isinstance(value, str):
        return value
    text = "".join(c if c.isprintable() else " " for c in value)
    for markup, instead in (("<", "&lt;"), ("`", "'"), ("](", "] ("), ("|", "\\|")):
        text = text.replace(markup, instead)
    return text


def _command(text: str | None) -> _Command | None:
    if text is None:
        return None
    return _Command("".join(c if c.isprintable() else " " for c in text).replace("```", ""))


def card(model: Model, report: Report) -> str:
    """The card of one trained model as Markdown."""
    # Markdown, which `_plain` sees to.
    options: dict[str, Any] = {"undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True, "finalize": _plain}
    environment = Environment(autoescape=False, **options)  # noqa: S701
    environment.filters.update(percent=percent, points=points)
    template = environment.from_string(
        files("trainers.report").joinpath("templates/model_card.md.j2").read_text(encoding="utf-8")
    )
    accuracy, safety, section = report.of(Accuracy), report.of(Safety), _section(model, report)
    base = report.of(Setup).models["weak" if model.arm == "weak" else "strong"]
    chosen = report.of(Settings).values_of(model.arm, model.method, model.seed)
    commands = {entry.arm: entry.command for entry in report.of(Again).commands}
    return template.render(
        model=model,
        head=report.head,
        base=base,
        base_model=_Command(json.dumps(model.model)),
        title=_title(model),
        adapter="r" in section,  # LoRA's rank
        probe="layer" in section,
        labels=_labels(model, report),
        settings={k: section[k] for k in SETTINGS if section.get(k) is not None} | dict(chosen),
        stage=report.head.stages[f"fit/{_title(model)}"],
        gap=accuracy.gap_of(model.group),
        mean=accuracy.mean(model.group),
        safety=[entry for entry in safety.safety_gaps if entry.group == model.group],
        safety_mean=[e for e in safety.safety_mean_gaps if (e.group, e.split) == (model.group, ALL)],
        interval=points_interval,
        plugins=report.of(Setup).software.plugins,
        command=_command(commands.get(_title(model))),
    )


def write_cards(report: Report, folder: Path) -> list[Path]:
    """Write the card of every trained model; cards of models that the report has no more go."""
    trained = [model for model in report.of(Accuracy).arms if f"fit/{_title(model)}" in report.head.stages]
    folder.mkdir(exist_ok=True)
    paths = [folder / card_name(model) for model in trained]
    for old in folder.glob("*.md"):
        if old not in paths:
            old.unlink()
    for path, model in zip(paths, trained, strict=True):
        write_atomic(path, card(model, report))
    return paths
