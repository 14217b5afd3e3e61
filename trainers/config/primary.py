"""The one question that an experiment is run to answer, named before it runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from trainers.section import Section

Margin = Annotated[float, Field(gt=0, lt=1)]
Claim = Literal["differs", "above", "not_below", "equal"]
"""What is to be shown: that they differ; that the arm is above; that it is not below by the margin; that neither is."""


WITH_MARGIN = ("not_below", "equal")
"""Claims that mean something only with a margin."""


class Primary(Section):
    """The primary endpoint: one comparison, first in the report; everything else there is exploratory."""

    arm: str = "student"
    """The arm that is asked about."""
    method: str | None = None
    """A student's method; null for the first of `methods`."""
    against: str = "zero_shot"
    """The arm that it is compared with."""
    task: str | None = None
    """A safety task; null for the training task."""
    measure: Literal["accuracy", "auroc"] = "accuracy"
    """What is compared."""
    claim: Claim = "differs"
    """differs; above; not_below (by the margin); equal (within the margin either way)."""
    margin: Margin | None = None
    """For not_below and equal: the smallest difference that would matter, e.g. 0.03 for three points."""

    def method_of(self, methods: Sequence[str]) -> str | None:
        """The method of its arm: only students have one."""
        return (self.method or methods[0]) if self.arm == "student" else None

    @model_validator(mode="after")
    def _with_a_margin(self) -> Primary:
        if self.claim in WITH_MARGIN and self.margin is None:
            raise ValueError(f"claim: {self.claim} needs a margin, the smallest difference that would matter")
        if self.claim not in WITH_MARGIN and self.margin is not None:
            raise ValueError(f"margin: {self.claim} has none; it is for not_below and equal")
        if self.arm == self.against:
            raise ValueError("against: an arm can't be compared with itself")
        if self.method is not None and self.arm != "student":
            raise ValueError("method: only the arm student has methods")
        return self
