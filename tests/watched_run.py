"""`w2s run` in a process that tells of every disk operation before it does it, and can be made to stop just before one.

The process is forked from one that has imported everything (multiprocessing's fork server), so that a start costs little.
"""

from __future__ import annotations

import contextlib
import functools
import json
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tqdm import tqdm

from trainers.report.report import read_report

PRELOADED = [
    *(
        "trainers.cli",
        "trainers.flow.run",
        "trainers.report.report",
        "trainers.report.page",
        "trainers.report.panels",
    ),
    *("lm_eval.evaluator", "lm_eval.models.huggingface", "lm_eval.loggers", "datasets", "peft", "safetensors.torch"),
    *("w2s_tasks.models.packed_hf", "w2s_tasks.models.classifier", "transformers.models.bert.modeling_bert"),
    *("transformers.models.llama.modeling_llama", "matplotlib.figure"),
]
REPORT, STEP = "report", "step"
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
STOPPED = "stopped"


def content(run: Path) -> dict[str, Any]:
    """Weights, labels, splits, curves and per-row predictions of all stages, by kind and key."""
    found: dict[str, Any] = {}
    for path in sorted((run / "stages").glob("[!.]*/**/*")):
        name = path.relative_to(run).as_posix()
        if path.suffix in (".safetensors", ".parquet") or path.name in ("split.json", "curves.json"):
            found[name] = path.read_bytes()
        elif path.name.startswith("samples_"):
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            found[steady(name)] = [(r["doc_id"], r["doc_hash"], r["filtered_resps"]) for r in rows]
    return found


def numbers(run: Path) -> Any:
    """What the report says of every arm, and the gaps."""
    report = read_report(run).json()
    return [(a["arm"], a["n"], a["metrics"]) for a in report["arms"]], report["gaps"]


def steady(path: str) -> str:
    """A path without what differs between equal runs: lm_eval's folder and times, names of temporary files."""
    path = re.sub(r"/__[^/]*(?=/|$)", "/__model", path)
    path = re.sub(r"_[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9.-]+(?=[.]json)", "", path)
    return re.sub(r"[.][0-9a-f]{8}[.]tmp$", ".tmp", path)


@dataclass(frozen=True)
class Moment:
    """A disk operation that was about to be done, or a step of training that was done, and where in the run folder."""

    verb: str
    path: str

    @property
    def stage(self) -> str | None:
        """The stage that is being built there, as kind-key; None outside the stages."""
        found = re.match(r"stages/(?:\.work-)?([a-z]+-[0-9a-f]{16})(/|$)", self.path)
        return found[1] if found else None

    def __str__(self) -> str:
        return f"{self.verb} {re.sub(r'^stages/(?:.work-)?[a-z]+-[0-9a-f]{16}/?', '', steady(self.path)) or 'its folder'}"


class _Teller:
    """Tells the parent of disk operations below a folder, one line each; ends at, or some time after, one that is meant."""

    def __init__(self, folder: Path, pipe: Connection, stop: str | None, after: float | None) -> None:
        self.root, self.pipe, self.after = f"{folder}{os.sep}", pipe, after
        self.stop = re.compile(stop) if stop else None

    def tell(self, verb: str, path: Any) -> None:
        text = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""
        if not text.startswith(self.root) or ".lock" in text:
            return
        line = f"{verb} {text.removeprefix(self.root)}"
        os.write(self.pipe.fileno(), f"{line}\n".encode())
        if self.stop and self.stop.search(line):
            if self.after is not None:
                threading.Timer(self.after, os.kill, (os.getpid(), signal.SIGKILL)).start()
                self.stop = None
                return
            os.write(self.pipe.fileno(), f"{STOPPED} {line}\n".encode())
            while True:
                time.sleep(60)

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Python's own account of what it is about to do."""
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES:
            self.tell("write", arguments[0])
        elif event == "os.rename":
            self.tell("rename", arguments[0])
        elif event in ("os.mkdir", "os.remove", "shutil.rmtree"):
            self.tell(event.split(".")[1], arguments[0])

    def before(self, owner: Any, name: str, told_of: Callable[..., tuple[str, Any]]) -> None:
        """Tell of the calls of a function."""
        original: Callable[..., Any] = getattr(owner, name)

        def telling(*args: Any, **options: Any) -> Any:
            self.tell(*told_of(*args))
            return original(*args, **options)

        setattr(owner, name, telling)


def _run(arguments: list[str], output: Path, prepare: Callable[[], None] | None) -> None:
    """What a forked process does: `w2s ARGUMENTS`, its output in a file."""
    from trainers import cli

    log = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    tqdm.set_lock(threading.RLock())  # its own is a named semaphore, which a killed process leaves behind
    if prepare:
        prepare()
    sys.argv = ["w2s", *arguments]
    cli.main()


def _watch(folder: Path, pipe: Connection, stop: str | None, after: float | None) -> None:
    import safetensors.torch
    import torch

    from trainers.report import report
    from trainers.training import loop as training

    teller = _Teller(folder, pipe, stop, after)
    for module, name in ((torch, "save"), (safetensors.torch, "serialize_file")):  # native, not in Python's own account
        teller.before(module, name, lambda _, path, *more: ("write", path))
    teller.before(report, "write_report", lambda *_: (REPORT, folder / "begins"))
    for name in ("on_train_begin", "on_step_end"):
        teller.before(training.Bar, name, lambda _, a, state, *more: (STEP, f"{a.output_dir}/step-{state.global_step}"))
    sys.addaudithook(teller.audit)


def forked(
    arguments: list[str], output: Path, prepare: Callable[[], None] | None = None
) -> multiprocessing.process.BaseProcess:
    """Start `w2s ARGUMENTS` in a process that has imported everything already.

    Args:
        arguments: of `w2s`.
        output: takes what it prints.
        prepare: called in the process first.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=_run, args=(arguments, output, prepare), daemon=True)
    process.start()
    return process


class Watched:
    """A run under way."""

    def __init__(
        self, arguments: list[str], folder: Path, output: Path, stop: str | None = None, after: float | None = None
    ) -> None:
        """Start it.

        Args:
            arguments: of `w2s`.
            folder: the run folder, which it tells of.
            output: takes what it prints.
            stop: stop for ever before the first operation whose verb and path, below the folder, this expression is in.
            after: don't stop there, but get a SIGKILL so many seconds later, which a parent might be too late for.
        """
        self.pipe, theirs = multiprocessing.Pipe(duplex=False)
        self.process = forked(arguments, output, functools.partial(_watch, folder, theirs, stop, after))
        theirs.close()
        self.moments: list[Moment] = []
        self.stopped = False
        self._rest = b""

    def follow(self) -> Iterator[Moment]:
        """The operations as they are told, until the process ends or stops."""
        while not self.stopped:
            text = os.read(self.pipe.fileno(), 1 << 16)
            if not text:
                return
            *lines, self._rest = (self._rest + text).split(b"\n")
            for line in lines:
                verb, _, path = line.decode().partition(" ")
                if verb == STOPPED:
                    self.stopped = True
                else:
                    self.moments.append(Moment(verb, path))
                    yield self.moments[-1]

    def kill(self) -> int | None:
        """SIGKILL; then read what was told before it. Returns the exit code."""
        assert self.process.pid is not None
        with contextlib.suppress(ProcessLookupError):  # it got its signal, or came to its end
            os.kill(self.process.pid, signal.SIGKILL)
        for _ in self.follow():
            pass
        return self.ended()

    def ended(self) -> int | None:
        """Wait for the end; the exit code."""
        self.process.join(300)
        self.pipe.close()
        return self.process.exitcode
