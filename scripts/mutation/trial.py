"""One trial: the tests of a module in a fork of this process, with the module as it is or changed.

The libraries are imported once. A function is changed by giving it other code after the tests were collected, in a fork that
runs them; what stands outside of functions by importing the module anew. Nothing is written into the tree, and a trial costs
what its tests cost.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.machinery
import importlib.util
import inspect
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, NoReturn

from mutation.mutants import Mutant

LIBRARIES = (
    *("numpy", "scipy.stats", "scipy.optimize", "pandas", "pyarrow.parquet", "torch", "sklearn.metrics", "datasets", "peft"),
    *("transformers.models.auto", "lm_eval.tasks", "lm_eval.evaluator", "lm_eval.models.huggingface"),
    *("pytest", "hypothesis", "hypothesis.strategies", "coverage", "pydantic", "typer", "jinja2", "filelock", "openai"),
)
"""What the tests import beside the project."""


@dataclass(frozen=True)
class Coverage:
    """Which tests run a line, and how long each takes."""

    lines: dict[int, list[str]]
    seconds: dict[str, float]

    @classmethod
    def load(cls, path: Path) -> Coverage:
        """Read what was measured."""
        made = json.loads(path.read_text())
        return cls({int(line): names for line, names in made["lines"].items()}, made["seconds"])

    def of(self, line: int) -> list[str]:
        """The tests of a line, the quickest first; all of them where it runs on import alone."""
        return sorted(set(self.lines.get(line, ())) & set(self.seconds) or self.seconds, key=self.seconds.__getitem__)


def load_libraries() -> None:
    """Import what every trial would import."""
    for name in LIBRARIES:
        importlib.import_module(name)


class _Changed(importlib.machinery.SourceFileLoader):
    """Imports one module from changed source."""

    def __init__(self, name: str, path: str, source: str) -> None:
        super().__init__(name, path)
        self.source = source

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> Any:
        return importlib.util.spec_from_file_location(name, self.path, loader=self) if name == self.name else None

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.source, self.path, "exec")


def _unwrapped(found: Any) -> Any:
    """The function inside a property, a class method or a wrapper such as `functools.cache`."""
    found = getattr(found, "fget", None) or getattr(found, "__func__", found)
    return inspect.unwrap(found)


def _swap(module: str, path: Path, source: str, function: str) -> None:
    """Give a function that is imported already the code that it has in a changed source."""
    name = dotted(module)
    changed = ModuleType(name)
    changed.__file__ = str(path)
    exec(compile(source, str(path), "exec"), changed.__dict__)  # noqa: S102 - our own source
    old: Any = sys.modules[name]
    new: Any = changed
    for part in function.split("."):
        old, new = (inspect.getattr_static(each, part) for each in (old, new))
    getattr(old, "cache_clear", lambda: None)()
    old, new = _unwrapped(old), _unwrapped(new)
    old.__code__, old.__defaults__, old.__kwdefaults__ = new.__code__, new.__defaults__, new.__kwdefaults__


def _passes(items: Sequence[Any]) -> bool:
    """Run collected tests in their order, until one fails."""
    from _pytest.runner import runtestprotocol

    for item, following in zip(items, [*items[1:], None], strict=True):
        if any(report.failed for report in runtestprotocol(item, nextitem=following, log=False)):
            return False
    return True


def _in_own_folder(work: Callable[[], int]) -> int:
    folder = tempfile.mkdtemp(prefix="w2s-mutants-")
    os.environ["PYTEST_DEBUG_TEMPROOT"] = folder
    try:
        return work()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Session:
    """In place of pytest's loop over the tests: something else that is done with the collected ones."""

    def __init__(self, loop: Callable[[dict[str, Any]], int]) -> None:
        self.loop, self.code = loop, 70

    def pytest_runtestloop(self, session: Any) -> bool:
        self.code = self.loop({item.nodeid: item for item in session.items})
        return True


def _collected(arguments: Sequence[str], loop: Callable[[dict[str, Any]], int]) -> int:
    """Collect tests, hand them to the loop and return what it returns."""
    import hypothesis
    import pytest

    # A counterexample need not be small here, nor remembered.
    phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
    hypothesis.settings.register_profile("mutants", phases=phases, database=None, derandomize=True, deadline=None)
    hypothesis.settings.load_profile("mutants")
    session = _Session(loop)
    pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:xdist", *arguments], plugins=[session])
    return session.code


def _child(work: Callable[[], int], output: Path) -> NoReturn:
    """In the fork: a process group of its own, its output in a file, and no way back into the parent's code."""
    os.setpgid(0, 0)
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    code = 70
    try:
        code = _in_own_folder(work)
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(code)


def fork(work: Callable[[], int], output: Path) -> int:
    """Start a function in a fork; returns the fork's process id."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _child(work, output)
    return pid


def stop(pid: int) -> None:
    """End a fork and what it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def waited(pid: int) -> int:
    """Wait for a fork and return its exit code; where this process is stopped meanwhile, the fork is told to stop too."""
    try:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except BaseException:
        os.kill(pid, signal.SIGTERM)
        raise


def dotted(module: str) -> str:
    """`a/b.py` as `a.b`."""
    return module.removesuffix(".py").replace("/", ".")


def _measure(items: dict[str, Any], path: Path, out: Path) -> int:
    """Run all tests with the module as it is, and write down which test runs which line, and how long each takes."""
    import coverage

    watched = coverage.Coverage(data_file=None, include=[str(path)])
    seconds: dict[str, float] = {}
    watched.start()
    for name, item in items.items():
        watched.switch_context(name)
        began = time.monotonic()
        if not _passes([item]):
            watched.stop()
            print(f"{name} fails without a mutant")
            return 1
        seconds[name] = time.monotonic() - began
    watched.stop()
    lines = watched.get_data().contexts_by_lineno(str(path))
    out.write_text(json.dumps({"lines": lines, "seconds": seconds}))
    return 0


def _with_new_import(root: Path, mutant: Mutant, arguments: Sequence[str], chosen: Sequence[str]) -> int:
    """For a change outside of functions: the whole module is imported from the changed source."""
    sys.meta_path.insert(0, _Changed(dotted(mutant.module), str(root / mutant.module), mutant.source))
    return _collected(arguments, lambda items: int(not _passes([items[name] for name in chosen])))


def _with_swap(root: Path, mutant: Mutant, items: dict[str, Any], chosen: Sequence[str]) -> int:
    """For a change within a function: it alone gets new code."""
    try:
        _swap(mutant.module, root / mutant.module, mutant.source, mutant.function)
    except Exception:  # noqa: BLE001 - a module that can't even be imported is noticed
        return 1
    return int(not _passes([items[name] for name in chosen]))


def _limit(coverage: Coverage, chosen: Sequence[str]) -> float:
    return 20 + 10 * sum(coverage.seconds[name] for name in chosen)


def _loop(root: Path, mutants: Sequence[Mutant], jobs: int, folder: Path, items: dict[str, Any]) -> int:
    """With the tests collected: measure them, then try every mutant within a function in a fork."""
    module = mutants[0].module
    importlib.import_module(dotted(module))
    output = folder / "measure"
    pid = fork(lambda: _measure(items, root / module, folder / "coverage.json"), output)
    if waited(pid):
        print(output.read_text(errors="replace")[-3000:])
        return 1
    coverage = Coverage.load(folder / "coverage.json")
    work: list[tuple[Callable[[], int], float]] = []
    for mutant in mutants:
        if mutant.function:
            chosen = coverage.of(mutant.line)
            work.append((functools.partial(_with_swap, root, mutant, items, chosen), _limit(coverage, chosen)))
    (folder / "fates.json").write_text(json.dumps(run_all(work, jobs, folder)))
    return 0


def fates(root: Path, mutants: Sequence[Mutant], arguments: Sequence[str], jobs: int) -> list[str]:
    """What becomes of the mutants of one module: "killed", "timeout" (killed, too) or "alive".

    Args:
        root: the repository.
        mutants: all of the same module.
        arguments: pytest's, which name the tests.
        jobs: how many are tried at a time.

    Raises:
        RuntimeError: a test fails with the module as it is; the message is the end of its output.
    """
    folder = Path(tempfile.mkdtemp(prefix="w2s-mutants-"))
    try:
        output = folder / "output"
        pid = fork(lambda: _collected(arguments, lambda items: _loop(root, mutants, jobs, folder, items)), output)
        if waited(pid):
            raise RuntimeError(f"{mutants[0].module}: {output.read_text(errors='replace')[-3000:]}")
        coverage = Coverage.load(folder / "coverage.json")
        swapped = iter(json.loads((folder / "fates.json").read_text()))
        work: list[tuple[Callable[[], int], float]] = []
        for mutant in mutants:
            if not mutant.function:
                chosen = coverage.of(mutant.line)
                work.append((functools.partial(_with_new_import, root, mutant, arguments, chosen), _limit(coverage, chosen)))
        imported = iter(run_all(work, jobs, folder))
        return [next(swapped) if mutant.function else next(imported) for mutant in mutants]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Running:
    """A trial under way."""

    key: int
    started: float
    limit: float


def run_all(work: Sequence[tuple[Callable[[], int], float]], jobs: int, folder: Path) -> list[str]:
    """Run functions in forks, some at a time.

    Args:
        work: functions that return 0 where nothing was noticed, each with the seconds it may take.
        jobs: how many at a time.
        folder: for their output.

    Returns:
        For each "killed", "timeout" (killed, too) or "alive".
    """
    outcomes = [""] * len(work)
    waiting, running = list(range(len(work)))[::-1], dict[int, Running]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                key = waiting.pop()
                pid = fork(work[key][0], folder / f"output-{key}")
                running[pid] = Running(key, time.monotonic(), work[key][1])
            for pid, trial in list(running.items()):
                done, status = os.waitpid(pid, os.WNOHANG)
                late = not done and time.monotonic() - trial.started > trial.limit
                if late:
                    stop(pid)
                    os.waitpid(pid, 0)
                if done or late:
                    stop(pid)  # what a test left running
                    outcomes[trial.key] = "timeout" if late else "killed" if status else "alive"
                    del running[pid]
                    (folder / f"output-{trial.key}").unlink(missing_ok=True)
            time.sleep(0.01)
    finally:
        for pid in running:
            stop(pid)
    return outcomes
