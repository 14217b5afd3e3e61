"""What an engine is given: stages to be, each with the names of those that it stands on and a call that builds it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from trainers.config.resources import StepResources
from trainers.flow.run import Run
from trainers.flow.worker import Built, Plan, build_step
from trainers.store.stages import Store


@dataclass(frozen=True)
class Job:
    """A stage to be, or what is made of stages."""

    name: str
    """Its stage's folder; jobs of one name are one job."""
    title: str
    """For progress lines."""
    inputs: tuple[str, ...]
    """Names of the jobs that it stands on."""
    call: Callable[[], Built]
    """Builds it; picklable, and of a module that every machine can import."""
    there: Callable[[], bool]
    """Whether it is there whole; asked in the driver, once."""
    resources: StepResources
    light: bool = False
    """Whether it needs no GPU and one core."""

    @property
    def kind(self) -> str:
        """For an engine's own displays: the first word of its name."""
        return self.name.replace("-", " ").split()[0]


def jobs_of(run: Run, store: Store) -> Iterator[Job]:
    """A job for every step of a run, each after those that it stands on."""
    config = run.layout.config
    plan = Plan(config.model_dump_json(), str(run.folder.absolute()), str(store.root.parent.absolute()))
    if store.remote is not None:
        plan = replace(plan, store=store.remote.objects.url, experiment=store.remote.experiment)
    for step in run.layout.steps.values():
        kind, key, resources = step.kind, run.key(step), config.resources.of(step.kind)

        def there(kind: str = kind, key: str = key) -> bool:
            return store.has(kind, key)

        yield Job(
            name=f"{kind}-{key}",
            title=step.title,
            inputs=tuple(f"{one.kind}-{run.key(one)}" for one in step.needs),
            call=functools.partial(build_step, plan, step.name, resources.processes),
            there=there,
            resources=resources,
            light=kind == "split",
        )
