"""The stand-in as a process of its own, which can be killed."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path


@contextlib.contextmanager
def running(models: Mapping[str, Path], folder: Path, port: int = 0) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Start one over a folder; its address and its process, which is killed at the end if it was not before."""
    command = [sys.executable, "-m", "tinker_service", "--folder", str(folder), "--port", str(port)]
    command += ["--models", *(f"{name}={where}" for name, where in models.items())]
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}) as process:
        try:
            assert process.stdout
            address = process.stdout.readline().strip()
            assert address, f"the service ended with {process.wait()}"
            yield address, process
        finally:
            process.kill()
