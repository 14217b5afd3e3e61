"""The engine `ray`: missing stages of all cells at once, on whatever machines a Ray cluster has.

Ray only dispatches. A task builds its stage in the store, under the store's lock, and returns seconds; whether a stage is
there, only the store says. So a task that is run again after its machine died goes on from the store's checkpoint, and a
second driver on the same experiment waits for the first one's stages instead of building them.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any

from trainers import plugin_loader
from trainers.flow.jobs import Job, jobs_of
from trainers.flow.progress import Progress
from trainers.flow.run import Run
from trainers.flow.worker import Built
from trainers.store.stages import Store
from w2s_tasks import code_scope
from w2s_tasks.errors import UserError
from w2s_tasks.sandbox import consent

WINDOW = 1000
"""Jobs that are handed to Ray at once; the driver's memory does not grow with their number."""
RETRIES = 3
"""How often a step is begun again whose machine or process died."""
WAIT = 0.2
"""Seconds between two looks at what is running."""
ANSWER = 10.0
"""Seconds in which a cluster's machine takes a connection."""
GRACE = 20.0
"""Seconds that cancelled steps have to end."""
VARIABLES = (
    "W2S_DATA",
    "W2S_CACHE",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "HF_DATASETS_OFFLINE",
    "GOMP_SPINCOUNT",
    consent.VARIABLE,
    plugin_loader.VARIABLE,
)
"""What the steps of a cluster get of the driver's environment; never a key."""


@dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    job: Job
    built: Built | None
    error: BaseException | None = None
    cause: str = ""
    """The title of the job that failed; another one where this one was not begun because of it."""


@dataclass
class Machines:
    """What a step asks for where its configuration says nothing."""

    cores: float
    """Of the smallest machine."""
    gpus: bool

    @classmethod
    def of_cluster(cls) -> Machines:
        import ray

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return cls(min((n.get("CPU", 1.0) for n in nodes), default=1.0), any(n.get("GPU", 0) for n in nodes))

    def options(self, job: Job) -> dict[str, Any]:
        """Ray's options of a job's task."""
        asked = job.resources
        gpus = asked.gpus if asked.gpus is not None else float(self.gpus and not job.light)
        cpus = asked.cpus or (1.0 if gpus or job.light else max(1.0, self.cores // 2))
        memory = {"memory": int(asked.memory_gb * 1e9)} if asked.memory_gb else {}
        return {"num_cpus": cpus, "num_gpus": gpus, "max_retries": RETRIES, "name": job.kind, **memory}


@contextlib.contextmanager
def cluster(address: str | None) -> Iterator[str]:
    """A connection to a cluster, or one of this machine's own that ends with it; gives a line about where.

    Raises:
        UserError: Ray is not installed, or no cluster answers there.
    """
    if code_scope.MAIN in code_scope.GUESTS:
        raise UserError(
            "--engine ray: what a notebook or a script defines does not travel to other processes. Write it into a file and "
            "load that: load_plugin(FILE)."
        )
    try:
        import ray
    except ImportError as error:
        raise UserError("--engine ray needs Ray: pip install 'w2s-harness[ray]'.") from error
    _check_answer(address)
    environment = {"env_vars": {name: os.environ[name] for name in VARIABLES if name in os.environ}}
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
    try:
        context = ray.init(address=address or "local", runtime_env=environment, **quiet)
    except (ConnectionError, RuntimeError, ValueError, SystemExit) as error:  # where nobody listens Ray exits
        raise UserError(
            f"--address {address}: no Ray cluster answers ({error}). Start one with ray start --head."
        ) from error
    try:
        nodes = sum(node["Alive"] for node in ray.nodes())
        dashboard = f"; dashboard http://{context.dashboard_url}" if context.dashboard_url else ""
        yield f"Ray: {nodes} machine{'s' if nodes != 1 else ''}, {ray.cluster_resources().get('CPU', 0):g} cores{dashboard}"
    finally:
        ray.shutdown()


def _check_answer(address: str | None) -> None:
    """Refuse a machine at which nobody listens; Ray itself tries for seven minutes.

    Raises:
        UserError: nobody does.
    """
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"--address {address}: nobody answers ({error}). Start a cluster there: ray start --head."
        ) from error


@dataclass
class Dispatch:
    """Hands jobs to Ray as room is, and tells how each ended."""

    begun: Callable[[str, str], None] | None = None
    """Told the title and machine of each step that begins; None where nobody listens."""
    window: int = WINDOW
    _running: dict[Any, Job] = field(default_factory=dict)
    _refs: dict[str, Any] = field(default_factory=dict)
    """Tasks of jobs that are not finished, by the jobs' names."""
    _done: set[str] = field(default_factory=set)
    _failed: dict[str, Outcome] = field(default_factory=dict)
    _ended: deque[Outcome] = field(default_factory=deque)
    _board: Any = None
    _check: Callable[[], None] = lambda: None
    """Raises what was swallowed elsewhere."""
    _tasks: dict[str, Any] = field(default_factory=dict)
    """Ray's, by their options."""

    def outcomes(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
        """Run the jobs; each comes after those that it stands on. On Ctrl-C what runs is cancelled.

        A job of which a stage is there already tells so at once; one that stands on a failed one is not begun.
        """
        import ray

        machines = Machines.of_cluster()
        # Without max_calls=0 a worker with a GPU ends after each task, and its model with it.
        task = ray.remote(max_calls=0)(_call)
        self._board = _board() if self.begun else None
        try:
            with _noted_interrupts() as self._check:
                for job in jobs:
                    while len(self._running) >= self.window:
                        self._collect()
                        yield from self._told()
                    self._take(job, task, machines)
                    yield from self._told()
                while self._running:
                    self._collect()
                    yield from self._told()
        except BaseException:
            self._cancel()
            raise

    def _told(self) -> Iterator[Outcome]:
        while self._ended:
            yield self._ended.popleft()

    def _take(self, job: Job, task: Any, machines: Machines) -> None:
        if job.name in self._refs:
            return
        failed = next((self._failed[name] for name in job.inputs if name in self._failed), None)
        if job.name in self._failed or failed:
            self._end(Outcome(job, None, (failed or self._failed[job.name]).error, (failed or self._failed[job.name]).cause))
        elif job.name in self._done:
            return
        elif job.there():
            self._end(Outcome(job, Built(0.0, reused=True)))
        else:
            inputs = [self._refs[name] for name in job.inputs if name in self._refs]
            options = machines.options(job)
            key = repr(options)
            if key not in self._tasks:  # Ray makes a class for each
                self._tasks[key] = task.options(**options)
            ref = self._tasks[key].remote(job.call, job.title, self._board, *inputs)
            self._running[ref], self._refs[job.name] = job, ref

    def _collect(self) -> None:
        """Wait for a moment, then note what has ended."""
        import ray

        self._check()
        # Asked for one at a time, each look would go through all that run.
        ready, _ = ray.wait(list(self._running), num_returns=len(self._running), timeout=WAIT)
        if self._board is not None and self.begun is not None:
            with contextlib.suppress(ray.exceptions.RayError):  # progress alone is no reason to end
                for title, node in ray.get(self._board.taken.remote(), timeout=ANSWER):
                    self.begun(title, node)
        ended = set(ready)
        for ref in [ref for ref in self._running if ref in ended]:  # inputs before what stands on them
            job = self._running.pop(ref)
            self._refs.pop(job.name, None)
            try:
                self._end(Outcome(job, ray.get(ref)))
            except ray.exceptions.RayError as error:
                failed = next((self._failed[name] for name in job.inputs if name in self._failed), None)
                cause = failed.cause if failed else job.title
                self._end(Outcome(job, None, failed.error if failed else _cause(error), cause))

    def _end(self, outcome: Outcome) -> None:
        if outcome.error is None:
            self._done.add(outcome.job.name)
        else:
            self._failed[outcome.job.name] = outcome
        self._ended.append(outcome)

    def _cancel(self) -> None:
        """End what runs: politely, so that locks are given back and checkpoints are whole; then, after a while, at once."""
        import ray

        refs = list(self._running)
        for force in (False, True):
            for ref in refs:
                with contextlib.suppress(Exception):
                    ray.cancel(ref, force=force)
            deadline = time.monotonic() + GRACE
            while refs and time.monotonic() < deadline:
                _, refs = ray.wait(refs, num_returns=len(refs), timeout=WAIT)


class _Board:
    """Where tasks say that they begin."""

    def __init__(self) -> None:
        self._begun: list[tuple[str, str]] = []

    def begin(self, title: str, node: str) -> None:
        """Note it."""
        self._begun.append((title, node))

    def taken(self) -> list[tuple[str, str]]:
        """What has come since the last call."""
        begun, self._begun = self._begun, []
        return begun


@contextlib.contextmanager
def _noted_interrupts() -> Iterator[Callable[[], None]]:
    """Ctrl-C where it comes in the middle of a callback, from which no exception gets out, is raised by the next check."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    noted: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        noted.append(signum)
        raise KeyboardInterrupt

    def check() -> None:
        if noted:
            raise KeyboardInterrupt

    before: Any = signal.signal(signal.SIGINT, note)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)


def _board() -> Any:
    """A board on the driver's own machine: no other one may die with it."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(_Board).options(num_cpus=0, scheduling_strategy=here).remote()


@functools.cache
def _node() -> str:
    import ray

    return str(ray.util.get_node_ip_address())


def _call(call: Callable[[], Built], title: str, board: Any, *inputs: Built) -> Built:
    """What a task runs; its inputs are there when it begins, and in the store."""
    node = _node()
    if board is not None:
        board.begin.remote(title, node)
    return replace(call(), node=node)


def _cause(error: BaseException) -> BaseException:
    """The task's own error, where it raised one."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, BaseException) else error


def build(run: Run, progress: Progress, address: str | None) -> None:
    """Build every step of a run that is not there on a cluster; afterwards `Run.build` finds them all.

    Raises:
        UserError: the first step that failed, once the others have ended; no Ray, no cluster.
    """
    run.check_models()
    failed = []
    with cluster(address) as where:
        progress.note(where)
        jobs = list(jobs_of(run, Store(run.folder, remote=run.remote)))
        dispatch = Dispatch(None if progress.quiet else progress.begun)
        for number, outcome in enumerate(dispatch.outcomes(jobs), start=1):
            told(progress, number, outcome)
            failed += [outcome] if outcome.error and outcome.cause == outcome.job.title else []
    if failed:
        raise reason(failed[0]) from failed[0].error


def told(progress: Progress, number: int, outcome: Outcome) -> None:
    """A line for a job that ended; none for one that was there, or that was not begun."""
    if outcome.built is not None and not outcome.built.reused:
        progress.ended(number, outcome.job.title, f"{outcome.built.seconds:.1f} s on {outcome.built.node}")
    elif outcome.error is not None and outcome.cause == outcome.job.title:
        progress.ended(number, outcome.job.title, f"failed: {outcome.error}")


def reason(outcome: Outcome) -> Exception:
    """Why a job failed, with the step's name: a user's mistake, or what else its machine said."""
    kind = "" if isinstance(outcome.error, UserError) else f"{type(outcome.error).__name__}: "
    return UserError(f"{outcome.cause}: {kind}{outcome.error}")
