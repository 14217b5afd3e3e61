"""What report.json is made of: entries, and whose numbers they are.

An interval is a pair of bounds; null stands for what is undefined or unbounded. Shares are between 0 and 1: .01 is a point.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict

Interval = tuple[float | None, float | None]
Mode = Literal["loglikelihood", "first_token", "generated", "classifier"]
Objective = Literal["choices", "language_model"] | None


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A part of the report; keys that stand in no type are refused."""

    __pydantic_config__: ClassVar[Any] = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


@dataclass(frozen=True, kw_only=True)
class OfModel(Entry):
    """What is told of one model; method and seed are null where nothing was trained."""

    arm: str
    """How the model came about: weak, zero_shot, student, ceiling, a control."""
    method: str | None
    """Label operations and loss that it was trained with; null where nothing was trained."""
    seed: int | None
    """The repetition that it is of; null where no seed changes it."""

    @property
    def group(self) -> tuple[str, str | None]:
        """Arm and method: what its seeds have in common."""
        return self.arm, self.method


@dataclass(frozen=True, kw_only=True)
class OfArm(Entry):
    """What is told of an arm and method over its seeds; [null] where no seed changes it."""

    arm: str
    """How its models came about: weak, zero_shot, student, ceiling, a control."""
    method: str | None
    """Label operations and loss that they were trained with; null where nothing was trained."""
    seeds: list[int | None]
    """The repetitions that the numbers are taken over; [null] where no seed changes them."""

    @property
    def group(self) -> tuple[str, str | None]:
        """Arm and method."""
        return self.arm, self.method


@dataclass(frozen=True, kw_only=True)
class OfTask(Entry):
    """What is told of a safety task."""

    subtask: str
    """The task's short name."""
    split: str
    """Which rows: test, hard."""
    mode: Mode
    """How answers were scored: loglikelihood, first_token, generated, classifier."""
