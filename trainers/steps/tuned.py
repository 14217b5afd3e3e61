"""The training of an arm under a grid of settings: every one is tried, and the rows that each training held back choose."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from trainers.fit.trainer import Code
from trainers.steps.fit import Fit
from trainers.steps.step import Ground, Step
from trainers.store import processes
from trainers.store.costs import COST_FILE
from trainers.store.remote import MANIFEST
from trainers.store.stages import write_atomic
from trainers.training import course
from trainers.training.settings import ModelSettings, Optimised, held_back
from w2s_tasks.errors import MissingDataError, UserError

TUNED = "tuned.json"
FEWEST = 10
"""Rows that have to be held back: fewer can't choose anything."""
By = Literal["loss", "agreement"]
"""Of held-back rows' own labels: cross-entropy to them, or agreement with them."""


@dataclass(frozen=True)
class Tried:
    """One setting of the grid."""

    values: dict[str, Any]
    """By key of the strong model's section."""
    loss: float | None
    """Cross-entropy to the held-back rows' own labels, nats a row, mean over the seeds that decide; None if not finite."""
    agreement: float | None
    """Share of held-back rows on which the model and their labels agree, likewise; None for texts."""


@dataclass(frozen=True)
class Choice:
    """What tuned.json holds: every setting with what speaks for it, and which was taken."""

    by: By
    seeds: list[int]
    """Those that decided."""
    rows: int
    """Held-back rows of a training, the fewest of all."""
    tried: list[Tried]
    chosen: int
    """The number of the setting in `tried`, from 0."""

    @classmethod
    def load(cls, path: Path) -> Choice:
        """Read tuned.json."""
        data = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**data, "tried": [Tried(**one) for one in data["tried"]]})

    @property
    def values(self) -> dict[str, Any]:
        """The setting that was taken."""
        return self.tried[self.chosen].values


@dataclass(frozen=True, eq=False, kw_only=True)
class Tuned(Fit):
    """An arm's training with the setting that was chosen for it, in the place of a `Fit` whose settings are known before."""

    keys: tuple[str, ...]
    """Of the strong model's section, those that the grid varies."""
    own: tuple[Fit, ...]
    """The training under each setting for its own seed; steps of the layout where this seed is one of those that decide."""
    deciding: tuple[tuple[Fit, ...], ...]
    """For each seed that decides the training under each setting, in the order of `own`."""
    by: By

    @property
    def decides(self) -> bool:
        """Whether its seed is one of those that decide: then its training is one of the grid's."""
        return any(fits[0] is self.own[0] for fits in self.deciding)

    @property
    def title(self) -> str:
        """By its model."""
        return f"choose {self.model}, of {len(self.own)} settings" if self.decides else f"{super().title}, as chosen"

    @property
    def inputs(self) -> tuple[Step, ...]:
        """Its labels, and all trainings that decide."""
        return (*super().inputs, *(fit for fits in self.deciding for fit in fits))

    @property
    def code(self) -> tuple[Code, ...]:
        """A training's."""
        return (Fit.build, *super().code)

    def recipe(self) -> dict[str, Any]:
        """A training's; the grid, and what decides."""
        return {**super().recipe(), "tune": self.by, "grid": [setting_of(fit.settings, self.keys) for fit in self.own]}

    def rows(self) -> int:
        """The rows that it learns; none where its model is there already."""
        return 0 if self.decides else super().rows()

    def build(self, ground: Ground, out: Path) -> None:
        """Choose; then take over the model that was trained so, or train it."""
        choice = self._choice(ground)
        fit = self.own[choice.chosen]
        if not self.decides:
            fit.build(ground, out)
        elif processes.is_main():
            _take_over(ground.folder_of(fit), out)
        if processes.is_main():
            write_atomic(out / TUNED, json.dumps(asdict(choice), indent=2))

    def _choice(self, ground: Ground) -> Choice:
        """What the held-back rows of the trainings that decide say.

        Raises:
            UserError: a training that held none back.
        """
        by_setting = [[_held_back(fit, ground) for fit in fits] for fits in zip(*self.deciding, strict=True)]
        tried = [
            Tried(setting_of(fit.settings, self.keys), _mean([m.loss for m in models]), _mean([m.agreement for m in models]))
            for fit, models in zip(self.own, by_setting, strict=True)
        ]
        seeds = [fits[0].source.split.seed for fits in self.deciding]
        return Choice(self.by, seeds, min(m.rows for models in by_setting for m in models), tried, best(tried, self.by))


def setting_of(settings: ModelSettings, keys: Sequence[str]) -> dict[str, Any]:
    """The values of some keys of a section."""
    return {key: getattr(settings, key) for key in keys}


def told(values: Mapping[str, Any]) -> str:
    """A setting in words: lr 0.0005, epochs 2."""
    return ", ".join(f"{key} {_short(value)}" for key, value in values.items())


def _short(value: Any) -> str:
    """A value as it is written, never two alike."""
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def trials(fit: Fit, settings: Sequence[ModelSettings], keys: Sequence[str]) -> tuple[Fit, ...]:
    """A training under each setting of a grid.

    Args:
        fit: the arm's training, whatever its settings.
        settings: the strong model's section under each.
        keys: those that differ.

    Raises:
        UserError: so few rows that hardly any are held back.
    """
    return tuple(
        _checked(replace(fit, arm=None, settings=own, whose=f"{fit.whose}, {told(setting_of(own, keys))}"))
        for own in settings
    )


def _checked(fit: Fit) -> Fit:
    try:
        rows = fit.rows()
    except MissingDataError:  # a plan without data
        return fit
    share = fit.settings.holdout if isinstance(fit.settings, Optimised) else 0.0
    if (held := held_back(rows, share)) < FEWEST:
        raise UserError(
            f"tune: {fit.model} learns about {rows} rows and holds {held} back, too few to choose settings by. Raise "
            f"strong.holdout or the rows: at least {FEWEST} have to be held back."
        )
    return fit


def tuned(fit: Fit, keys: Sequence[str], own: tuple[Fit, ...], deciding: tuple[tuple[Fit, ...], ...], by: By) -> Tuned:
    """The step in an arm's training's place; see `Tuned`."""
    # Of the section's own values under the keys of the grid nothing is used, so no key of a stage may depend on them.
    return Tuned(**{**vars(fit), "settings": own[0].settings}, keys=tuple(keys), own=own, deciding=deciding, by=by)


def best(tried: Sequence[Tried], by: By) -> int:
    """The number of the best setting: the lowest loss; or the highest agreement, of equals by loss; then the first."""

    def badness(number: int) -> tuple[float, float]:
        loss = math.inf if (found := tried[number].loss) is None else found
        return (loss, 0.0) if by == "loss" else (-(tried[number].agreement or 0.0), loss)

    return min(range(len(tried)), key=badness)


def _held_back(fit: Fit, ground: Ground) -> course.HeldBack:
    """The model that a training left, on the rows that it held back."""
    path = ground.folder_of(fit) / "curves.json"
    points = course.held_back_points(course.read_points(path)) if path.is_file() else []
    found = course.kept(points, getattr(fit.settings, "checkpoint", "last"))
    if found is None:
        raise UserError(f"tune: {fit.model} held no rows back, so that nothing chooses its settings. Raise strong.holdout.")
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return sum(known) / len(known) if values and len(known) == len(values) else None


def _take_over(stage: Path, out: Path) -> None:
    """Put a finished stage's files into another's work folder; what it cost stays with the one that was paid for."""
    shutil.copytree(
        stage,
        out,
        copy_function=_link,
        ignore=lambda folder, names: {MANIFEST, COST_FILE} & set(names) if Path(folder) == stage else set(),
        dirs_exist_ok=True,
    )


def _link(source: str, target: str) -> None:
    """A second name for a file, which takes no room; a copy where the file system has no such thing."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
