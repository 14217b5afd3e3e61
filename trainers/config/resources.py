"""What a step asks of a machine, by kind of step; for engines that share machines out. No result depends on it."""

from __future__ import annotations

from pydantic import Field

from trainers.section import Section


class StepResources(Section):
    """What one step asks for; null follows the cluster's machines."""

    cpus: float | None = Field(default=None, gt=0)
    """Cores, and the threads that it computes with; null for half of the smallest machine, one beside a GPU."""
    gpus: float | None = Field(default=None, ge=0)
    """GPUs: .5 lets two steps share one; null for one where the cluster has any, none for a split."""
    memory_gb: float | None = Field(default=None, gt=0)
    """Memory, in GB of 10^9 bytes, that must be free of other steps' claims; null asks for none."""
    processes: int = Field(default=1, ge=1, le=64)
    """Processes that build it together on one machine through accelerate; give it as many GPUs."""


class Resources(Section):
    """By kind of step."""

    split: StepResources = StepResources()
    """The split into halves."""
    labels: StepResources = StepResources()
    """Labels of a supervisor, or of a search without one."""
    embeddings: StepResources = StepResources()
    """Hidden states of rows, for methods that ask for them."""
    fit: StepResources = StepResources()
    """Trainings."""
    evaluate: StepResources = StepResources()
    """Evaluations on the training task."""
    safety: StepResources = StepResources()
    """Evaluations on the safety tasks."""

    def of(self, kind: str) -> StepResources:
        """Those of a kind of step."""
        found: StepResources = getattr(self, kind)
        return found
