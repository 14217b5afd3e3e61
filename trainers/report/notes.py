"""What a reader has to know before models are compared: trainings that warned, and prompts that were not built alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from trainers.flow.run import Run
from trainers.report.collected import Collected
from trainers.report.entries import Entry
from trainers.steps.fit import Fit
from trainers.steps.tuned import Tuned
from trainers.training.told import Told


@dataclass(frozen=True, kw_only=True)
class SystemPrompt(Entry):
    """Where a task's system prompt or description stood, in the prompts of which models."""

    task: str
    """The task."""
    place: str | None
    """Where system prompt and description stood in the prompt; null where they were left out."""
    models: list[str]
    """In whose prompts."""


def training_warnings(run: Run) -> list[str]:
    """What trainings warned of, those of models in between included."""
    tried = _tried(run)
    stages = [stage for name, stage in run.stages.items() if stage.kind == "fit" and name not in tried]
    return [text for stage in stages for text in Told.load(stage).warnings]


def _tried(run: Run) -> set[str]:
    """Trainings under the settings of a grid: what was chosen of them stands in the store once more, as an arm's."""
    grids = (step.deciding for step in run.layout.steps.values() if isinstance(step, Tuned))
    return {fit.name for grid in grids for fits in grid for fit in fits}


def _asked(collected: Collected) -> Iterator[tuple[str, str, str | None]]:
    """Task, model and place of the system prompt, of everything that was prompted: evaluations, then trainings."""
    for evaluations in (collected.training, collected.safety):
        for arm, scores in evaluations.items():
            for one in scores.values():
                if collected.mode(arm, one) != "classifier":
                    yield one.task, replace(arm, seed=None).title, one.system_prompt
    tried = _tried(collected.run)
    for step in collected.run.layout.steps.values():
        if isinstance(step, Fit) and step.name not in tried and step.settings.trainer != "classifier":
            yield collected.task, f"training of {step.whose}", Told.load(collected.run.stages[step.name]).system_prompt


def system_prompts(collected: Collected) -> list[SystemPrompt]:
    """For each task with a system prompt or description where it stood, and in whose prompts; None for those without it."""
    places: dict[str, dict[str | None, dict[str, None]]] = {}
    for task, model, place in _asked(collected):
        places.setdefault(task, {}).setdefault(place, {})[model] = None
    return [
        SystemPrompt(task=task, place=place, models=list(models))
        for task, by_place in places.items()
        if set(by_place) != {None}
        for place, models in by_place.items()
    ]


def unlike(entries: list[SystemPrompt]) -> list[str]:
    """A sentence for every task whose system prompt or description did not stand in the same place for all models."""
    sentences = []
    for task in dict.fromkeys(entry.task for entry in entries):
        own = [entry for entry in entries if entry.task == task]
        if len(own) > 1:
            parts = "; ".join(f"{entry.place or 'left out'} of {', '.join(entry.models)}" for entry in own)
            sentences.append(f"Not all models were prompted alike on {task}. System prompt and description: {parts}.")
    return sentences
