"""Work behind promises: in the order of its numbers, each number once, by one thread."""

from __future__ import annotations

import queue
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field

from loopback import Answer, Faults
from tinker.types import RequestErrorCategory

from .wire import UserFault, failed


@dataclass
class Job:
    """One promised piece of work."""

    request_id: str
    line: str
    """Whose work it is: a run's is done in order, and waits for ever behind a job that is never done."""
    kind: str
    run: Callable[[], Answer]
    done: threading.Event = field(default_factory=threading.Event)
    result: Answer | None = None
    failed: bool = False


class Jobs:
    """All promised work. One thread does it, so that models need no locks."""

    def __init__(self, faults: Faults) -> None:
        self.errors: list[str] = []
        """Tracebacks of the stand-in's own errors."""
        self._faults = faults
        self._jobs: dict[str, Job] = {}
        self._next: dict[str, int] = {}
        self._waiting: dict[str, dict[int, Job]] = {}
        self._stalled: set[str] = set()
        self._finished: list[Job] = []
        self._queue: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def in_order(self, line: str, number: int, kind: str, run: Callable[[], Answer]) -> Job:
        """Promise a run's work; it is done when all numbers before it are. A number seen before is its first job."""
        with self._changed:
            waiting = self._waiting.setdefault(line, {})
            job = self._jobs.get(f"{line}:{number}")
            if job is None:
                job = waiting[number] = self._new(f"{line}:{number}", line, kind, run)
            while ready := waiting.pop(self._next.setdefault(line, 0), None):
                self._next[line] += 1
                self._start(ready)
            return job

    def at_once(self, request_id: str, kind: str, run: Callable[[], Answer]) -> Job:
        """Promise work that waits for no other. An id seen before is its first job."""
        with self._changed:
            job = self._jobs.get(request_id)
            if job is None:
                job = self._new(request_id, request_id, kind, run)
                self._start(job)
            return job

    def find(self, request_id: str) -> Job | None:
        """A promised job."""
        return self._jobs.get(request_id)

    def knows(self, line: str) -> bool:
        """Whether any work of a run was promised."""
        return line in self._next

    def finished(self, prefix: str, after: int, seconds: float) -> list[Job]:
        """The finished jobs whose ids begin so, but for the first `after`; waits that long where there are none."""
        found: list[Job] = []

        def news() -> bool:
            found[:] = [job for job in self._finished if job.request_id.startswith(prefix)][after:]
            return bool(found)

        with self._changed:
            self._changed.wait_for(news, seconds)
        return found

    def forget(self) -> None:
        """Forget all work, done or not; who waits for a result is let go."""
        with self._changed:
            for job in self._jobs.values():
                job.done.set()
            for known in (self._jobs, self._next, self._waiting, self._stalled, self._finished):
                known.clear()

    def _new(self, request_id: str, line: str, kind: str, run: Callable[[], Answer]) -> Job:
        job = self._jobs[request_id] = Job(request_id, line, kind, run)
        return job

    def _start(self, job: Job) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()
        self._queue.put(job)

    def _work(self) -> None:
        while True:
            job = self._queue.get()
            if self._jobs.get(job.request_id) is not job or job.line in self._stalled:
                continue
            fault = self._faults.take("FUTURE", job.kind)
            if fault and fault.kind == "stall":
                self._stalled.add(job.line)
                fault.reached.set()
                continue
            if fault:
                job.failed, job.result = True, failed(fault.message, RequestErrorCategory(fault.code or "server"))
            else:
                self._run(job)
            with self._changed:
                if self._jobs.get(job.request_id) is job:
                    self._finished.append(job)
                job.done.set()
                self._changed.notify_all()
            if fault:
                fault.reached.set()

    def _run(self, job: Job) -> None:
        try:
            job.result = job.run()
        except UserFault as error:
            job.failed, job.result = True, failed(str(error), RequestErrorCategory.User)
        except Exception as error:  # noqa: BLE001 - it becomes the promise's result
            self.errors.append(traceback.format_exc())
            job.failed, job.result = True, failed(f"{type(error).__name__}: {error}", RequestErrorCategory.Server)
