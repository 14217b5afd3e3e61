"""Labels that a function makes of what other steps left: the shortest way to a step of one's own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainers.fit.trainer import Code
from trainers.labels.gold import GOLD, Gold
from trainers.labels.kinds import AnyLabels, kind_for
from trainers.labels.label_set import LABELS, Array
from trainers.registry import place_of
from trainers.steps.embeddings import Embeddings, read_embeddings
from trainers.steps.source import Labels, Source, read_labels
from trainers.steps.step import Ground, Step
from w2s_tasks.errors import UserError
from w2s_tasks.user_text import one_line, shown

Input = Source | Labels | Embeddings
"""What such a function may be given: labels so far, a model's answers, hidden states."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Computed(Labels):
    """The labels that a function makes."""

    function: Callable[..., AnyLabels]
    given: tuple[Input, ...]
    settings: Mapping[str, Any]
    gold: bool = False
    """Whether it is given the first labels' gold ones too."""

    @property
    def sources(self) -> list[Source]:
        """What of it has operations on it."""
        return [one for one in self.given if isinstance(one, Source)]

    @property
    def inputs(self) -> tuple[Step, ...]:
        """The steps that it reads."""
        steps = [step for source in self.sources for step in source.inputs]
        return tuple(dict.fromkeys([*steps, *(one for one in self.given if isinstance(one, Step)), self.split]))

    @property
    def code(self) -> tuple[Code, ...]:
        """The function, and the operations before."""
        return self.function, *(code for source in self.sources for code in source.code)

    def recipe(self) -> dict[str, Any]:
        """Its settings, the seed, and the operations before."""
        ops = [source.recipe() for source in self.sources]
        return {"settings": dict(self.settings), "seed": self.split.seed, "given": ops, "gold": self.gold}

    def build(self, ground: Ground, out: Path) -> None:
        """Call the function.

        Raises:
            UserError: it raises, or gives something else than labels of rows that it was given.
        """
        read = [self._read(one, ground) for one in self.given]
        first = next(value for value in read if not isinstance(value, States))
        rng = np.random.default_rng(self.split.seed)
        values = [value.of(first) if isinstance(value, States) else value for value in read]
        gold = [Gold.load(ground.folder_of(self.split) / GOLD).of(first.row_id)] if self.gold else []
        called(self.function, self.whose, first, *values, rng, *gold, **self.settings).save(out / LABELS)

    def _read(self, one: Input, ground: Ground) -> AnyLabels | States:
        if isinstance(one, Source):
            return read_labels(one, ground, self.split.seed)
        if isinstance(one, Embeddings):
            return States(*read_embeddings(one, ground))
        labels: AnyLabels = kind_for(self.task).labels.load(ground.folder_of(one) / LABELS)
        return labels


@dataclass(frozen=True)
class States:
    """Hidden states of rows."""

    ids: list[str]
    vectors: Array

    def of(self, labels: AnyLabels) -> Array:
        """Those of the rows that have labels, in their order."""
        place = {row: i for i, row in enumerate(self.ids)}
        return np.asarray(self.vectors[[place[row] for row in labels.row_id]])


@contextlib.contextmanager
def blaming(name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Tell what a user's function raises, with the place in the user's code."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        place = place_of(function, error)
        raise UserError(f"{place}: {name} can't be used: {type(error).__name__}: {one_line(error)}") from error


def called(function: Callable[..., Any], name: str, given: AnyLabels, *values: Any, **settings: Any) -> AnyLabels:
    """What a function makes of labels, looked at.

    Args:
        function: to be called.
        name: of what it does, for errors.
        given: labels whose rows it may give labels to.
        *values: what it is called with.
        **settings: its keyword arguments.

    Raises:
        UserError: it raises, or gives something else; with file and line.
    """
    with blaming(name, function):
        made: Any = function(*values, **settings)
    if type(made) is not type(given):
        raise UserError(f"{place_of(function)}: {name} gives {type(made).__name__}, no {type(given).__name__}.")
    known = set(given.row_id)
    strange = next((row for row in made.row_id if row not in known), None)
    if strange is not None:
        raise UserError(f"{place_of(function)}: {name} gives a label to {shown(strange)}, a row that it was not given.")
    return made
