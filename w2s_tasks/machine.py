"""What this process may use of the machine: cores and memory, a container's quota included, and how its threads wait.

Containers, systemd and SLURM bound a process by control groups; Python, psutil and torch ask the host. The limits are read
as the kernel states them (cgroup v1 and v2: `cgroups(7)`, "Control Group v2" in the kernel's documentation), of the
process's own group and of all above it that can be seen, because the tightest one holds.

``python -m w2s_tasks.machine`` prints for a shell what `share` sets.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath

WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME", "OMP_PROC_BIND", "GOMP_CPU_AFFINITY")
"""Variables by which a user says how OpenMP's threads wait for work, or on which cores."""
NUMBER = ("OMP_NUM_THREADS", "OMP_THREAD_LIMIT", "MKL_NUM_THREADS")
"""Variables by which a user says how many threads there are."""
SPINS = "1000"
"""Turns that an idle thread of GNU OpenMP takes before it sleeps, some microseconds. By default it is 300,000, for which it
holds a core that another process could use: two processes on two cores then take ten times as long as one."""


def versions(libraries: Iterable[str]) -> dict[str, str]:
    """Of those that are installed."""
    import importlib.metadata

    found = {}
    for library in libraries:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[library] = importlib.metadata.version(library)
    return found


def share() -> dict[str, str]:
    """Let OpenMP's threads sleep when they wait, and be no more than a quota allows; to be called before torch is loaded.

    The libraries read these variables when they are loaded, and child processes inherit them. A user who has set one of
    `WAITING` or `NUMBER` has decided how threads wait, one who has set one of `NUMBER` how many there are.

    Returns:
        The variables that were set.
    """
    found = {}
    if not set(os.environ).intersection(WAITING + NUMBER):
        found["GOMP_SPINCOUNT"] = SPINS
    if not set(os.environ).intersection(NUMBER) and cores() < _schedulable():
        import psutil

        # Without a quota torch takes one thread a physical core; a quota is no reason to take more.
        found["OMP_NUM_THREADS"] = str(min(cores(), psutil.cpu_count(logical=False) or cores()))
    os.environ.update(found)
    return found


def _schedulable() -> int:
    """Cores on which the kernel may run this process: its affinity, within the cpuset of its group."""
    affinity: Callable[[int], set[int]] | None = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def cores(root: Path = Path("/")) -> int:
    """Cores that this process may keep busy: those it may run on, or as many as its quota of processor time is worth.

    A part of a core counts as one: a second thread uses half a core's time, a single one leaves it.

    Args:
        root: where ``proc`` and ``sys`` are.
    """
    quotas = [quota for group in _groups(root) if (quota := _cpu_quota(group)) is not None]
    return max(1, min([_schedulable(), *map(math.ceil, quotas)]))


@functools.cache
def memory(root: Path = Path("/")) -> int:
    """Bytes of memory that this process may fill, with all others of its group; not what happens to be free.

    Args:
        root: where ``proc`` and ``sys`` are.
    """
    import psutil

    limits = [limit for group in _groups(root) for limit in _memory_limits(group)]
    return min([int(psutil.virtual_memory().total), *limits])


def processes(bytes_each: float) -> int:
    """How many processes of one thread and so much memory run well side by side."""
    return max(1, min(cores(), int(memory() / bytes_each)))


def _groups(root: Path) -> Iterator[Path]:
    """The folders of this process's control groups, each with all above it, of every hierarchy that is mounted."""
    own: dict[str, PurePosixPath] = {}  # by controller, "" for version 2
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        own.update(dict.fromkeys(controllers.split(","), PurePosixPath(path)))
    for line in _lines(root / "proc/self/mountinfo"):
        mount, _, what = line.partition(" - ")
        kind, *_, options = what.split()
        names = {"cgroup2": [""], "cgroup": options.split(",")}.get(kind, [])
        group = next((own[name] for name in names if name in own), None)
        if group is not None:
            beginning, point = (_unescaped(field) for field in mount.split()[3:5])
            yield from _upwards(root / point.lstrip("/"), _inside(group, beginning))


def _inside(group: PurePosixPath, beginning: str) -> PurePosixPath:
    """A group's path below the folder that is mounted; where a namespace hides it, the mount is all that can be seen."""
    if group.is_relative_to(beginning) and ".." not in group.parts:
        return group.relative_to(beginning)
    return PurePosixPath()


def _upwards(top: Path, inside: PurePosixPath) -> Iterator[Path]:
    for path in (inside, *inside.parents):
        yield top / path


def _unescaped(field: str) -> str:
    """A field of mountinfo, where white space stands as \\040 and the like."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), field)


def _cpu_quota(group: Path) -> float | None:
    """Processor time a group may take, in cores; None where it has no limit of its own."""
    words = _words(group / "cpu.max") or _words(group / "cpu.cfs_quota_us") + _words(group / "cpu.cfs_period_us")
    quota, period = (_number(word) for word in words) if len(words) == 2 else (None, None)
    return quota / period if quota and period else None


def _memory_limits(group: Path) -> Iterator[int]:
    """The limits that a group states; above ``memory.high`` it runs on, but is held back."""
    for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):
        for word in _words(group / name):
            limit = _number(word)
            if limit:
                yield limit
    for line in _lines(
        group / "memory.stat"
    ):  # version 1 tells here what holds above the mount, which a container can't see
        if line.startswith("hierarchical_memory_limit "):
            yield int(line.split()[1])


def _number(word: str) -> int | None:
    """A limit; None for ``max`` and -1, which stand for none."""
    return int(word) if word.isdecimal() else None


def _words(file: Path) -> list[str]:
    return " ".join(_lines(file)).split()


def _lines(file: Path) -> list[str]:
    """A file's lines; none where this kernel has no such file, or does not show it."""
    try:
        return file.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []


if __name__ == "__main__":
    for name, value in share().items():
        print(f"export {name}={shlex.quote(value)}")  # noqa: T201 - for a shell's eval
