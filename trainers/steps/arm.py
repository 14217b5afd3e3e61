"""One model of the report: which arm of the experiment, by which method, for which seed."""

from __future__ import annotations

from dataclasses import dataclass

from trainers.labels.arms import Kind, kind_of


@dataclass(frozen=True)
class Arm:
    """How a model came about; method and seed are None where nothing was trained."""

    name: str
    method: str | None = None
    seed: int | None = None
    at: float | None = None
    """The share of its training's steps after which it was kept (`evaluate.checkpoints`); None for the end."""

    @property
    def kind(self) -> Kind:
        """What this arm is."""
        return kind_of(self.name)

    @property
    def label(self) -> str:
        """Its name, and its method where that is not the plain one."""
        return self.name if self.method in (None, "xent") else f"{self.name}, {self.method}"

    @property
    def title(self) -> str:
        """For progress lines and figures."""
        seed = [] if self.seed is None else [f"seed {self.seed}"]
        at = [] if self.at is None else [f"at {self.at}"]
        return ", ".join([self.label, *seed, *at])
