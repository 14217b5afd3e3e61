"""What was run: both models before training, how good the weak labels are, what was prompted, with which software."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors import safe_open

from trainers.flow.run import Run
from trainers.labels import splits
from trainers.labels.gold import GOLD
from trainers.labels.kinds import kind_for
from trainers.labels.label_set import LABELS
from trainers.plugin_loader import used_by
from trainers.report.blocks import Aside, Block, Cell, Code, Note, Row, Table
from trainers.report.collected import Collected
from trainers.report.entries import Entry, Interval
from trainers.report.notes import SystemPrompt, system_prompts, training_warnings, unlike
from trainers.report.section import SECTIONS, Report, Section, section
from trainers.report.text import percent, percents
from trainers.steps.fit import Fit
from trainers.steps.source import Split
from w2s_tasks.errors import UserError
from w2s_tasks.models.ref import resolve
from w2s_tasks.results.stats import share_interval


@dataclass(frozen=True, kw_only=True)
class Labelled(Entry):
    """How good the labels of some rows are."""

    seed: int
    """The repetition."""
    n: int
    """Rows with a label."""
    acc: float
    """Share of the labels that are as gold, 0 to 1."""
    ci95: Interval
    """Its 95 % interval, over rows."""
    class_share: list[float]
    """Share of the labels of each class, 0 to 1."""
    gold_share: list[float]
    """Share of the rows of each class, 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class WeakLabels(Labelled):
    """The weak labels of a seed, on the rows that students learn from."""

    unlabelled: int
    """Rows without a label: the supervisor gave no answer that could be read."""


@dataclass(frozen=True, kw_only=True)
class OwnLabels(Labelled):
    """The strong model's own labels, which an arm without a teacher learns, or a part of them."""

    arm: str
    """Which arm."""
    rows: Literal["all", "searched", "spread"]
    """Of a search: the rows that it goes over, or those that it labels in the context of these; else all."""


@dataclass(frozen=True, kw_only=True)
class LeftOut(Entry):
    """Training rows of a seed that are in neither half."""

    seed: int
    """The repetition."""
    dropped: int
    """Their sources fall on both sides."""
    overlapping: int
    """They stand in the evaluation split (`split.drop_overlap`)."""


@dataclass(frozen=True, kw_only=True)
class Base(Entry):
    """A model before training."""

    model: str
    parameters: int | None

    @classmethod
    def of(cls, model: str) -> Base:
        """With the number of its parameters, where its weights are here."""
        return cls(model=model, parameters=parameters(model))


@dataclass(frozen=True, kw_only=True)
class PluginUsed(Entry):
    """A plug-in, as it was when a stage was made."""

    name: str
    version: str | None
    sha256: str
    """Of its file, or of all Python files of its package."""

    def __str__(self) -> str:
        """As the report says it."""
        return f"{self.name}{f' {self.version}' if self.version else ''} (sha256 {self.sha256[:12]})"


@dataclass(frozen=True, kw_only=True)
class Software(Entry):
    """What the stages were made with."""

    versions: dict[str, str]
    git: list[str]
    plugins: list[PluginUsed]
    """Users' code that a stage or a section of the report stands on."""


@section
@dataclass(frozen=True, kw_only=True)
class Setup(Section):
    """What was run."""

    title = "Set-up"
    place = 10

    notes: list[str]
    """What to know before models are compared."""
    models: dict[Literal["weak", "strong"], Base]
    weak_labels: list[WeakLabels]
    own_labels: list[OwnLabels]
    """What arms without a teacher learn."""
    left_out: list[LeftOut]
    system_prompts: list[SystemPrompt]
    software: Software

    @classmethod
    def form(cls, collected: Collected) -> Setup:
        """From the configuration, the labels and the stages' manifests."""
        run, config = collected.run, collected.config
        prompts = system_prompts(collected)
        return cls(
            notes=[*training_warnings(run), *unlike(prompts)],
            models={"weak": Base.of(config.weak.model), "strong": Base.of(config.strong.model)},
            weak_labels=_weak_labels(run),
            own_labels=_own_labels(run),
            left_out=[
                LeftOut(seed=seed, **splits.counts(run.folder_of(step.split)))
                for seed, step in run.layout.weak_labels.items()
            ],
            system_prompts=prompts,
            software=_software(run),
        )

    def page(self, report: Report) -> Iterator[Block]:
        """A table of facts, one of the strong model's own labels, the command and the configuration."""
        yield Table(("what", "fact"), list(self._facts(report)), left=("fact",), style="prose facts")
        if self.own_labels:
            yield Note("Labels without a teacher, and how evenly they use the classes:")
            yield Table(
                ("labels", "rows", "n", "right", "classes", "gold"), [_own_row(labels) for labels in self.own_labels]
            )
        yield Note("Run it again:")
        yield Code(report.head.command)
        yield Aside("configuration", [Code(json.dumps(report.head.config, indent=2, ensure_ascii=False))])

    def _facts(self, report: Report) -> Iterator[tuple[str, str]]:
        config = report.head.config
        names = {"weak": "weak supervisor", "strong": "strong model"}
        for part, model in self.models.items():
            section, name = config[part], names[part]
            size = f", {_size(model.parameters)} parameters" if model.parameters else ""
            grid = (config["tune"] or {"grid": {}})["grid"] if part == "strong" else {}
            plain = [k for k in ("trainer", "lr", "epochs") if section.get(k) is not None and f"strong.{k}" not in grid]
            told = [f"{key} {section[key]}" for key in plain]
            told += [f"{key.partition('.')[2]} chosen of {', '.join(map(str, tried))}" for key, tried in grid.items()]
            first = section.get("prepare")
            tasks = f"; prepared on {', '.join(first['tasks'])}, {first['rows']:,} rows each" if first else ""
            yield name, f"{section['model']}{size}{tasks}; {', '.join(told)}"
        for labels in self.weak_labels:
            yield (
                "weak labels" + (f", seed {labels.seed}" if len(self.weak_labels) > 1 else ""),
                f"{percent(labels.acc)} % right on the {labels.n} rows that students learn from "
                f"(95 % interval {percent(labels.ci95[0])} to {percent(labels.ci95[1])})"
                + (f"; {labels.unlabelled} more have no label" if labels.unlabelled else ""),
            )
        for entry in self.left_out:
            if entry.dropped or entry.overlapping:
                yield (
                    "rows left out" + (f", seed {entry.seed}" if len(self.left_out) > 1 else ""),
                    f"{entry.dropped:,} whose sources fall on both sides of the split, {entry.overlapping:,} that stand in "
                    "the evaluation split",
                )
        for prompt in self.system_prompts:
            yield f"system prompt, {prompt.task}", f"{prompt.place or 'left out'}: {', '.join(prompt.models)}"
        seeds = ", ".join(map(str, config["seeds"]))
        yield "seeds", f"{len(config['seeds'])} ({seeds}): each is a whole repetition, split, order and initialisation"
        if self.software.plugins:
            yield "plug-ins", ", ".join(map(str, self.software.plugins))
        commits = f"; commit {', '.join(self.software.git)}" if self.software.git else ""
        yield "software", ", ".join(f"{k} {v}" for k, v in self.software.versions.items()) + commits


def _own_row(labels: OwnLabels) -> Row:
    used, gold = (" ".join(map(percent, shares)) or "–" for shares in (labels.class_share, labels.gold_share))
    right = Cell(percent(labels.acc), percents(labels.ci95))
    return f"{labels.arm}, seed {labels.seed}", labels.rows, str(labels.n), right, used, gold


def _size(number: int) -> str:
    return f"{number / 1e6:,.1f} million" if number >= 1e6 else f"{number:,}"


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


def _weak_labels(run: Run) -> list[WeakLabels]:
    """How good the weak labels are on the rows that the students learn from."""
    entries = []
    for step in run.layout.weak_labels.values():
        labels: Any = kind_for(step.task).labels.load(run.folder_of(step) / LABELS)
        entries.append(WeakLabels(**_measured(run, step.split, labels), unlabelled=step.rows() - len(labels)))
    return entries


def _own_labels(run: Run) -> list[OwnLabels]:
    """What the arms without a teacher learn, those of a search by part."""
    entries = []
    for step in run.layout.steps.values():
        if not isinstance(step, Fit) or step.arm is None or step.arm.kind.teacher not in ("itself", "search"):
            continue
        labels: Any = kind_for(step.task).labels.load(run.folder_of(step) / LABELS)
        parts: dict[Any, Any] = {"all": labels}
        if step.arm.kind.search in ("searched", "spread"):
            parts = {step.arm.kind.search: labels}
        elif step.arm.kind.teacher == "search":
            parts = run.layout.config.unsupervised.parts(labels)
        entries += [
            OwnLabels(**_measured(run, step.source.split, part), arm=step.arm.name, rows=rows)
            for rows, part in parts.items()
            if len(part)
        ]
    return entries


def _measured(run: Run, split: Split, labels: Any) -> dict[str, Any]:
    """How good some labels of a split's rows are, as `Labelled` has it."""
    gold: Any = kind_for(split.task).gold.load(run.folder_of(split) / GOLD, split.task)
    accuracy, choices = gold.accuracy(labels), len(split.task.classes)
    return {
        "seed": split.seed,
        "n": len(labels),
        "acc": accuracy,
        "ci95": share_interval(accuracy * len(labels), len(labels)),
        "class_share": labels.class_share(choices),
        "gold_share": gold.class_share(labels.row_id, choices),
    }


def _software(run: Run) -> Software:
    """Library versions and commits that the stages were made with, from their manifests."""
    versions: dict[str, set[str]] = {}
    commits: set[str] = set()
    sections = [
        PluginUsed(name=p.name, version=p.version, sha256=p.sha256) for p in used_by(s.__module__ for s in SECTIONS.values())
    ]
    plugins = dict.fromkeys(sections)
    for stage in run.stages.values():
        for library, version in stage.manifest.get("versions", {}).items():
            versions.setdefault(library, set()).add(version)
        if stage.manifest.get("git"):
            commits.add(stage.manifest["git"])
        plugins.update(dict.fromkeys(PluginUsed(**used) for used in stage.manifest.get("plugins", ())))
    told = {k: ", ".join(sorted(v)) for k, v in sorted(versions.items())}
    return Software(versions=told, git=sorted(commits), plugins=list(plugins))
