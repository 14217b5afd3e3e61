"""Settings of the student's methods and of the arm unsupervised, as they stand in an experiment file."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

from pydantic import Field, create_model, model_validator

from trainers.labels.operations import METHOD_OPS
from trainers.section import Section
from trainers.training.losses import LOSSES


class Relabel(Section):
    """Two-stage training: filter, train, let the student label what was left out, train anew on both."""

    keep: float = Field(default=0.5, gt=0, lt=1)
    """Share of the rows in the first stage, the most confident weak labels."""
    add: float = Field(default=0.5, gt=0, le=1)
    """Share of the rows left out that come back in the second stage, those of which the first student is surest."""
    by_class: bool = True
    """Take both shares within each labelled class."""


class Ensemble(Section):
    """Several weak supervisors, whose probabilities are averaged."""

    members: list[dict[str, Any]] = Field(default=[{"seed": 1}, {"seed": 2}], min_length=1)
    """Supervisors beside `weak`: each is that section with these keys changed; `seed` is added to the experiment's."""
    weights: Literal["mean", "accuracy"] | list[Annotated[float, Field(ge=0)]] = "mean"
    """mean; accuracy: log-odds of each member's accuracy on the rows of the weak half that it held back; or one number for
    each, `weak` first."""


class Bootstrap(Section):
    """A chain of students: weak -> the first -> ... -> strong."""

    chain: list[dict[str, Any]] = Field(default=[{}], min_length=1)
    """Models in between, smallest first: each is the `strong` section with these keys changed; {} is the strong model."""


class _OfModels(Section):
    """Settings of the parts of the methods that need a model."""

    relabel: Relabel = Relabel()
    """Two-stage training."""
    ensemble: Ensemble = Ensemble()
    """Several weak supervisors."""
    bootstrap: Bootstrap = Bootstrap()
    """A chain of students."""

    def of(self, part: str) -> dict[str, Any]:
        """The settings of one part, empty where it has none."""
        section = getattr(self, part, None)
        return section.model_dump() if section else {}


def settings_of(function: Callable[..., Any]) -> type[Section] | None:
    """The section of a loss or a label operation: its keyword arguments with their types, bounds and defaults."""
    hints = get_type_hints(function, include_extras=True)
    keywords = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    if not keywords:
        return None
    fields: dict[str, Any] = {p.name: (hints[p.name], p.default) for p in keywords}
    return create_model(f"{function.__name__}_settings", __base__=Section, __doc__=function.__doc__, **fields)


def _with_functions() -> type[_OfModels]:
    """The section `method_args` with a section for every loss and operation that has settings."""
    sections = {name: settings_of(function) for name, function in (LOSSES | METHOD_OPS).items()}
    fields: dict[str, Any] = {name: (section, section()) for name, section in sections.items() if section}
    return create_model("MethodArgs", __base__=_OfModels, __doc__="Settings of the parts of the methods.", **fields)


if TYPE_CHECKING:
    MethodArgs = _OfModels
else:
    MethodArgs = _with_functions()


class Unsupervised(Section):
    """The arm unsupervised: labels that make each other likely to the untuned strong model (Wen et al., 2506.10139)."""

    rows: int = Field(default=64, ge=4)
    """Transfer rows whose labels are searched; the others are labelled from them, in context."""
    groups: int = Field(default=4, ge=2)
    """The rows are cut into so many groups; each is the context from which another one's labels are predicted."""
    initial: int = Field(default=8, ge=2)
    """Rows that begin with random labels."""
    steps: int = Field(default=256, ge=1)
    """Rows drawn; a step costs nothing where the drawn row has its most likely label already."""
    alpha: float = Field(default=50.0, gt=0)
    """Weight of the mean log-probability in the score, before the temperature divides it."""
    start_temperature: float = Field(default=10.0, gt=0)
    """Temperature of the first acceptance."""
    final_temperature: float = Field(default=0.01, gt=0)
    """The temperature never falls below."""
    cooling: float = Field(default=2.0, gt=0)
    """beta in T = start / (1 + beta log n)."""
    calibrate: bool = True
    """Divide by each context's mean prediction first: without it the same label everywhere is the likeliest."""

    @model_validator(mode="after")
    def _fits(self) -> Unsupervised:
        if self.rows < 2 * self.groups:
            raise ValueError(f"{self.rows} rows can't be cut into {self.groups} groups of at least 2")
        if self.initial > self.rows:
            raise ValueError(f"initial: {self.initial} random labels for {self.rows} rows")
        return self
