"""One training at a Tinker service, found again wherever it was begun, so that no step is trained and paid for twice.

A training is known by its run key: the hash of model, rows, loss, settings and seed, which the service keeps with every run
that is begun under it and in the names of its checkpoints. Before a run is begun the intent is on disk and the service's
list of runs has been asked for the key; every so many steps weights and optimizer are saved there. A killed process, a lost
session, another folder, another machine: all go on from the newest checkpoint, or find the finished weights.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainers.services.record import RUN_KEY, SETTLE, SETTLED, Record
from w2s_tasks.models.tinker.service import TINKER, ForeignError, GoneError, Service, known, result_of
from w2s_tasks.models.tinker.weights import whole

PAGE = 100
MOST_PAGES = 100
STATE_SECONDS = 7 * 24 * 3600
"""How long the service keeps a checkpoint that a training can go on from."""
FINAL = "final"
DAY = 24 * 3600


@dataclass(frozen=True)
class Lora:
    """Which adapter a run trains; its scale is the service's own."""

    rank: int
    train_mlp: bool
    train_attn: bool
    train_unembed: bool


@dataclass(frozen=True)
class Reached:
    """How far a training came at the service."""

    step: int = 0
    """Optimizer steps that are done."""
    state: str | None = None
    """Weights and optimizer after them."""
    sampler: str | None = None
    """The finished weights, for sampling."""


@dataclass
class Known(Record):
    """What is known here about a training."""

    runs: list[str] = field(default_factory=list)
    intent: float | None = None
    """When a run was about to be begun that may not be listed yet (Unix time)."""
    step: int = 0
    state: str | None = None
    curve: list[dict[str, float]] = field(default_factory=list)
    """The learning curve up to `step` and beyond."""


class TinkerRun:
    """Begins a training, goes on with it, saves and ends it."""

    def __init__(self, service: Service, model: str, lora: Lora, seed: int, run_key: str, path: Path) -> None:
        """Prepare; nothing is sent.

        Args:
            service: where it trains.
            model: the service's name of the base.
            lora: the adapter.
            seed: of its initialisation.
            run_key: of the training.
            path: where the record is kept (JSON).
        """
        self.service, self.model, self.lora, self.seed = service, model, lora, seed
        self.key, self.path = run_key, path
        self.record = Known.load(path, run_key, service.base_url)
        self.client: Any = None
        """The SDK's client, within `session`."""

    @contextlib.contextmanager
    def session(self) -> Iterator[None]:
        """A session at the service, in which a training can be opened.

        Raises:
            UserError: no SDK, no key.
        """
        with self.service.session() as self.client:
            yield
        self.client = None

    def keep(self, **changes: Any) -> None:
        """Change the record, here and on disk."""
        self.record.keep(self.path, **changes)

    def name(self, mark: int | str) -> str:
        """Of the checkpoint after so many steps, or of the finished weights."""
        return f"w2s-{self.key[:16]}-{mark:06d}" if isinstance(mark, int) else f"w2s-{self.key[:16]}-{mark}"

    # ---- what is there -----------------------------------------------------------------------------------------------

    def reached(self, steps: int, note: Callable[[str], None]) -> Reached:
        """How far the training came, by the service's own lists.

        Args:
            steps: of the whole training.
            note: takes a line for the user.

        Raises:
            UserError: the service fails.
        """
        rest, before, lately = self.service.rest(), self.record.runs, self.record.intent
        # After an intent without a run the list may lag behind.
        patient = not before and lately is not None and time.time() - lately < SETTLED
        for wait in SETTLE if patient else SETTLE[:1]:
            time.sleep(wait)
            listed, bare = self._runs(rest, note)
            if listed:
                break
        runs = list(dict.fromkeys([*before, *listed]))  # another machine may have gone further
        if runs != before:
            self.keep(runs=runs)
        found = [self._of_run(rest, run, steps) for run in runs]
        sampler = next((one.sampler for one in found if one.sampler), None)
        if not runs:
            # SkyRL's server keeps no metadata, but names; it can't sample from weights whose session is gone.
            found = [self._of_run(rest, run, steps) for run in bare]
        best = max(found, key=lambda one: one.step, default=Reached())
        return dataclasses.replace(best, sampler=sampler)

    def _runs(self, rest: Any, note: Callable[[str], None]) -> tuple[list[str], list[str]]:
        """Ids of the runs that were begun under the key, from whatever machine, and of those without metadata."""
        found: list[str] = []
        bare: list[str] = []
        try:
            for page in range(MOST_PAGES):
                start = page * PAGE
                answer = self.service.within(
                    "looking for this training",
                    lambda start=start: rest.list_training_runs(limit=PAGE, offset=start).result(),  # type: ignore[misc]
                )
                runs = answer.training_runs
                found += [run.training_run_id for run in runs if (run.user_metadata or {}).get(RUN_KEY) == self.key]
                bare += [run.training_run_id for run in runs if self._may_be_ours(run)]
                if len(runs) < PAGE:
                    break
        except (GoneError, ForeignError) as error:  # a server without such a list; one that fails ends the run
            note(f"only this folder's record keeps a training from being paid for twice: {error}")
        return found, bare

    def _may_be_ours(self, run: Any) -> bool:
        same = (run.base_model, run.lora_rank) == (self.model, self.lora.rank)
        return same and run.user_metadata is None and self.service.base_url != TINKER

    def _of_run(self, rest: Any, run: str, steps: int) -> Reached:
        """What a run has saved under the key."""
        reached = Reached()
        try:
            answer = self.service.within(f"asking for the checkpoints of {run}", lambda: rest.list_checkpoints(run).result())
        except GoneError:  # deleted there
            return reached
        for kind, name, path in _named(answer.checkpoints):
            mark = name.removeprefix(self.name("")) if name.startswith(self.name("")) else ""
            if kind == "sampler" and mark == FINAL:
                reached = dataclasses.replace(reached, sampler=path)
            elif kind == "training" and (mark == FINAL or mark.isdigit()):
                step = steps if mark == FINAL else int(mark)
                if step > reached.step:
                    reached = dataclasses.replace(reached, step=step, state=path)
        return reached

    # ---- going on ----------------------------------------------------------------------------------------------------

    def open(self, reached: Reached) -> Any:
        """A training client after `reached`, which begins a run of its own under the key.

        Raises:
            UserError: the service fails.
        """
        self.keep(intent=time.time())
        metadata = {RUN_KEY: self.key}
        if reached.state:
            state = reached.state

            def call() -> Any:
                return known(
                    self.client.create_training_client_from_state_with_optimizer, path=state, user_metadata=metadata
                )
        else:

            def call() -> Any:
                return self.client.create_lora_training_client(
                    base_model=self.model, seed=self.seed, user_metadata=metadata, **dataclasses.asdict(self.lora)
                )

        training = self.service.within(f"opening {self.model} for training", lambda: result_of(call))
        self.keep(runs=[*self.record.runs, str(training.model_id)], intent=None, step=reached.step, state=reached.state)
        return training

    def save(self, training: Any, step: int) -> str:
        """Save weights and optimizer after so many steps.

        Raises:
            UserError: the service fails.
        """
        path = self._saved(training.save_state, self.name(step), STATE_SECONDS, f"saving step {step}")
        self.keep(step=step, state=path)
        return path

    def finish(self, training: Any, steps: int, days: float | None) -> Reached:
        """Save the finished weights, for sampling and (by the same name) for a download.

        Args:
            training: the client of the last step.
            steps: how many there were.
            days: how long the service keeps them; None until they are deleted.

        Raises:
            UserError: the service fails.
        """
        seconds = None if days is None else round(days * DAY)
        state = self._saved(training.save_state, self.name(FINAL), seconds, "saving the finished weights")
        sampler = self._saved(
            training.save_weights_for_sampler, self.name(FINAL), seconds, "saving the finished weights for sampling"
        )
        return Reached(steps, state, whole(sampler))

    def _saved(self, call: Callable[..., Any], name: str, seconds: int | None, what: str) -> str:
        metadata = {RUN_KEY: self.key}
        # A checkpoint of this name is the same weights, saved by a process whose record of it was lost.
        return str(
            self.service.within(
                what,
                lambda: known(call, name=name, ttl_seconds=seconds, user_metadata=metadata, overwrite=True).result().path,
            )
        )


def _named(checkpoints: list[Any]) -> Iterator[tuple[str, str, str]]:
    """Kind, name and address of each checkpoint."""
    for checkpoint in checkpoints:
        path = str(checkpoint.tinker_path)
        yield str(checkpoint.checkpoint_type), path.rsplit("/", 1)[-1], path
