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

from trainers.labels.arms import ARMS
from trainers.report.tables import group_title, percent, pgr_text
from trainers.store.stages import write_atomic
from w2s_tasks.paths import file_name

Entry = Mapping[str, Any]


def card_name(arm: Entry) -> str:
    """File name of an arm's card: student-logconf-seed0.md."""
    parts = [str(arm["arm"]), *([str(arm["method"])] if arm["method"] not in (None, "xent") else [])]
    parts += [f"seed{arm['seed']}"] if arm["seed"] is not None else []
    return file_name(re.sub(r"[^\w.+-]+", "-", "-".join(parts))) + ".md"


def _title(arm: Entry) -> str:
    """As `Arm.title`: the key of the arm's stage and command."""
    return group_title(dict(arm)) + (f", seed {arm['seed']}" if arm["seed"] is not None else "")


def _labels(arm: Entry, report: Entry) -> str:
    text = ARMS[arm["arm"]].provenance if arm["arm"] in ARMS else f"labels of the arm '{arm['arm']}'"
    found = next((entry for entry in report["weak_labels"] if entry["seed"] == arm["seed"]), None)
    if found is None:
        return text.partition("{")[0].rstrip(" (,")
    return text.format(weak=report["config"]["weak"]["model"], percent=percent(found["acc"]), n=found["n"])


def _settings(arm: Entry, report: Entry) -> dict[str, Any]:
    section = report["config"]["weak" if arm["arm"] == "weak" else "strong"]
    names: tuple[str, ...] = (
        "trainer",
        "lr",
        "epochs",
        "batch_size",
        "schedule",
        "warmup",
        "weight_decay",
        "r",
        "alpha",
        "target_modules",
    )
    if section.get("trainer") == "classifier":
        names = names[:7]
    return {k: section[k] for k in names if section.get(k) is not None}


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


def card(arm: Entry, report: Entry) -> str:
    """The card of one trained model as Markdown.

    Args:
        arm: an entry of the report's ``arms`` that was trained.
        report: the whole report.
    """
    # Markdown, which `_plain` sees to.
    options: dict[str, Any] = {"undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True, "finalize": _plain}
    environment = Environment(autoescape=False, **options)  # noqa: S701
    environment.filters["percent"] = percent
    template = environment.from_string(
        files("trainers.report").joinpath("templates/model_card.md.j2").read_text(encoding="utf-8")
    )
    key = (arm["arm"], arm["method"])
    commands = {c["arm"]: c["command"] for c in report["commands"]}
    return template.render(
        arm=arm,
        base_model=_Command(json.dumps(str(arm["model"]))),
        report={"stages_folder": "stages", **report},
        title=_title(arm),
        adapter=report["config"]["weak" if arm["arm"] == "weak" else "strong"].get("trainer") == "lora",
        labels=_labels(arm, report),
        settings=_settings(arm, report),
        stage=report["stages"].get(f"fit/{_title(arm)}"),
        gap=next((g for g in report["gaps"] if (g["arm"], g["method"]) == key), None),
        pgr_text=pgr_text,
        mean=next((m for m in report.get("arm_means", []) if (m["arm"], m["method"]) == key), None),
        safety=[e for e in report.get("safety_gaps", []) if (e["arm"], e["method"]) == key],
        safety_mean=[e for e in report.get("safety_mean_gaps", []) if (e["arm"], e["method"], e["split"]) == (*key, "all")],
        command=_command(commands.get(_title(arm))),
    )


def write_cards(report: Entry, folder: Path) -> list[Path]:
    """Write the card of every trained model; cards of models that the report has no more go."""
    trained = [arm for arm in report["arms"] if f"fit/{_title(arm)}" in report.get("stages", {})]
    folder.mkdir(exist_ok=True)
    paths = [folder / card_name(arm) for arm in trained]
    for old in folder.glob("*.md"):
        if old not in paths:
            old.unlink()
    for path, arm in zip(paths, trained, strict=True):
        write_atomic(path, card(arm, report))
    return paths
