"""Equal footing: a grid of settings out of which every arm that trains the strong model gets its own best."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import Field, model_validator

from trainers.fit.language_model import Prompted
from trainers.fit.trainer import named, variant
from trainers.section import Section
from trainers.steps.tuned import By, setting_of
from trainers.training.settings import ModelSettings, Optimised
from w2s_tasks.errors import nearest
from w2s_tasks.user_text import shown

OF = "strong."
MOST = 64
"""Settings of a grid."""
JUDGING = {"holdout", "checkpoint"}
"""Keys that say by what a training is judged."""
EQUAL = {"epochs", "batch_size"}
"""Keys that say how many optimizer steps a training takes."""


class Tune(Section):
    """Every student, ceiling and control is trained under each setting of a grid, and the rows of its own labels that its
    training held back choose one: weak labels for a student, gold for a ceiling. Models in between (the first stage of
    relabel, links of bootstrap) and the weak supervisor keep the settings of their sections."""

    grid: dict[str, Annotated[list[Any], Field(min_length=2)]] = Field(min_length=1)
    """Values of keys of `strong`, e.g. {strong.lr: [2e-4, 5e-4, 1e-3]}; several keys make a product."""
    by: By = "loss"
    """What chooses: cross-entropy to the held-back labels, or agreement with them (of equals the lower cross-entropy)."""
    seeds: int | None = Field(default=None, ge=1)
    """How many seeds decide, the first ones, by the mean over them: the others train once, with what was decided. null: each
    seed decides for itself, so that differences between seeds hold those of the choice too."""

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        """Keys with a dot are the grid's."""
        if not isinstance(value, dict) or "grid" in value:
            return value
        grid = {key: values for key, values in value.items() if "." in str(key)}
        return {"grid": grid, **{key: own for key, own in value.items() if key not in grid}}

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of the strong model's section."""
        return tuple(key.removeprefix(OF) for key in self.grid)

    def settings(self, strong: ModelSettings) -> list[ModelSettings]:
        """The strong model's section under each setting.

        Raises:
            ValueError: a key that is not one of how it is trained, a value that does not fit, or settings that are one.
        """
        if not isinstance(strong, Optimised):
            others = named("strong", lambda t: issubclass(t.settings, Optimised))
            raise ValueError(
                f"tune: the service decides how strong.trainer: {strong.trainer} trains and scores no held-back rows; it "
                f"needs strong.trainer: {others}"
            )
        if not strong.holdout:
            raise ValueError("tune: settings are chosen by held-back rows; set strong.holdout above 0")
        known = tunable(type(strong))
        for name in self.grid:
            key = name.removeprefix(OF)
            if name == key or key not in known:
                hint = nearest(name, [OF + one for one in known])
                raise ValueError(
                    f"tune.grid: {shown(name)} says nothing of how the strong model is trained.{hint} Known: "
                    f"{', '.join(OF + one for one in known)}."
                )
        if (number := math.prod(map(len, self.grid.values()))) > MOST:
            raise ValueError(f"tune.grid: {number:,} settings, each a training of every arm; at most {MOST}")
        values = itertools.product(*self.grid.values())
        return self._different([variant(strong, dict(zip(self.keys, own, strict=True)), "tune.grid") for own in values])

    def _different(self, settings: list[ModelSettings]) -> list[ModelSettings]:
        """Refuse settings that are the same training."""
        recipes = [one.recipe() for one in settings]
        for number, recipe in enumerate(recipes):
            if recipe in recipes[:number]:
                twice = setting_of(settings[number], self.keys)
                raise ValueError(f"tune.grid: {shown(twice)} is the same training as another setting; name each once")
        return settings

    def check(self, strong: ModelSettings, *, seeds: Sequence[int], equal_steps: bool, texts: bool) -> None:
        """Refuse a grid that does not fit the experiment that it stands in.

        Args:
            strong: the strong model's section.
            seeds: the experiment's.
            equal_steps: whether its trainings take equal steps.
            texts: whether its labels are solutions.

        Raises:
            ValueError: names what does not fit.
        """
        self.settings(strong)
        if self.seeds is not None and self.seeds > len(seeds):
            raise ValueError(f"tune.seeds: {self.seeds} are to decide, and the experiment has {len(seeds)}")
        if self.by == "agreement" and texts:
            raise ValueError("tune.by: solutions don't agree or differ as a whole; use loss")
        if equal_steps and (taken := EQUAL & set(self.keys)):
            raise ValueError(
                f"tune.grid: equal_steps gives every arm the same steps, and with {' and '.join(sorted(taken))} in the grid "
                "each arm would choose its own; leave one of both out"
            )

    def deciding(self, seeds: Sequence[int]) -> list[int]:
        """The seeds that decide for all; empty where each decides for itself."""
        return list(seeds[: self.seeds or 0])


def tunable(section: type[ModelSettings]) -> list[str]:
    """The keys of a trainer's section that say how it trains: numbers, switches and words of a list."""
    fixed = {*ModelSettings.model_fields, *Prompted.model_fields} | JUDGING
    return [name for name, field in section.model_fields.items() if name not in fixed and _plain(field.annotation)]


def _plain(annotation: Any) -> bool:
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        return all(map(_plain, get_args(annotation)))
    if origin is Annotated:
        return _plain(get_args(annotation)[0])
    return origin is Literal or annotation in (int, float, bool, NoneType)
