"""The environment that lm_eval writes into every result file, collected once a process and while other work goes on.

It imports torch and asks pip, lscpu, gcc and others for their versions, two to six seconds in all: as long as the rest of a
start, so a process of its own does that. Git is asked without its complaint about a folder that is no repository, which
would stand between the lines of progress.
"""

from __future__ import annotations

import functools
import importlib.metadata
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

DESCRIBE = "from torch.utils.collect_env import get_pretty_env_info; print(get_pretty_env_info(), end='')"
"""A program that prints torch's description of the machine."""


def describe() -> str:
    """torch's description of the machine, or why there is none: older versions fail where pip is missing, as in uv's."""
    # -P: no module of the working folder is run. A thread would fight for the interpreter with the imports of a start.
    command = [sys.executable, "-P", "-X", "utf8", "-c", DESCRIBE]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", errors="replace")
    return done.stdout if done.returncode == 0 else (done.stderr.strip().splitlines() or ["unknown"])[-1]


def collect() -> dict[str, Any]:
    """What lm_eval's `add_env_info` collects, without importing transformers for its version alone."""
    about = describe()
    from lm_eval.loggers.utils import get_commit_from_path  # later: this import takes as long as the description

    return {
        "pretty_env_info": about,
        "transformers_version": importlib.metadata.version("transformers"),
        "lm_eval_version": importlib.metadata.version("lm_eval"),
        "upper_git_hash": get_commit_from_path(Path.cwd().parent),
    }


class _Collecting(threading.Thread):
    """Collects in the background; daemonic, so that a command that ends early does not wait for it."""

    def __init__(self) -> None:
        super().__init__(name="environment", daemon=True)
        self.found: dict[str, Any] = {}
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self.found = collect()
        except Exception as error:  # noqa: BLE001 - torch asks whatever is installed; the caller gets it
            self.error = error


@functools.cache
def begin() -> _Collecting:
    """Start collecting; further calls give the same collection."""
    collecting = _Collecting()
    collecting.start()
    return collecting


def add_env_info(storage: dict[str, Any]) -> None:
    """What lm_eval's function of this name does, from the collection that runs or ran.

    Raises:
        Exception: what the collection raised.
    """
    collecting = begin()
    collecting.join()
    if collecting.error:
        raise collecting.error
    storage.update(collecting.found)


@functools.cache
def git_commit() -> str | None:
    """The commit that lm_eval's function of this name finds for the working folder; None where that is no repository."""
    from lm_eval.loggers.utils import get_commit_from_path

    try:
        done = subprocess.run(["git", "describe", "--always"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return get_commit_from_path(Path.cwd())
    return done.stdout.strip()


def use(evaluator: Any) -> tuple[Any, Any]:
    """Put both in the place of lm_eval's own functions; returns those, for `restore`."""
    before = evaluator.add_env_info, evaluator.get_git_commit_hash
    evaluator.add_env_info, evaluator.get_git_commit_hash = add_env_info, git_commit
    return before


def restore(evaluator: Any, before: tuple[Any, Any]) -> None:
    """Undo `use`."""
    evaluator.add_env_info, evaluator.get_git_commit_hash = before
