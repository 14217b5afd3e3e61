"""One side of a comparison: a process that loads its model once, then answers calls over a pipe."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

from w2s_tasks.errors import UserError

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
SPIN_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Left at their defaults: an idle thread then spins for milliseconds and sleeps, so a side that waits takes no time."""


@dataclass(frozen=True)
class Reply:
    """What a call returned and what it took: seconds, tokens through the model, peak memory of the process so far in MB."""

    value: Any
    seconds: float
    tokens: int
    peak_mb: float
    device: str
    """Name of the GPU, or "cpu"."""


class TokenMeter:
    """Counts the tokens that go through a model, padding included, where they enter: at the input embeddings.

    A hook on the model itself would miss passes through a PEFT wrapper, which calls ``forward`` directly.
    """

    def __init__(self) -> None:
        self.tokens = 0

    def attach(self, model: Any) -> None:
        """Count every forward pass of a transformers model from now on."""
        model.get_input_embeddings().register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.tokens += (args[0] if args else kwargs["input"]).numel()


class Worker:
    """What runs in a side's process: public methods are called from the other end of the pipe."""

    def __init__(self) -> None:
        self.meter = TokenMeter()


def peak_memory_mb() -> float:
    """Peak memory of this process in MB: on a GPU what was allocated there, else resident memory.

    Linux's ``ru_maxrss`` outlives exec: a child would begin with its parent's peak. ``VmHWM`` doesn't.
    """
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes on macOS
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) / 2**10 if found else float("nan")


def device_name() -> str:
    """What computes: the name of the GPU, or "cpu"."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def _answer(worker: Worker, method: str, args: Sequence[Any]) -> Reply:
    before, start = worker.meter.tokens, time.perf_counter()
    value = getattr(worker, method)(*args)
    seconds = time.perf_counter() - start
    return Reply(value, seconds, worker.meter.tokens - before, peak_memory_mb(), device_name())


def _quiet_libraries() -> None:
    import datasets
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", module=r"torch|transformers|peft|accelerate|trl|lm_eval")


def _serve(pipe: Connection, make: Callable[..., Worker], arguments: dict[str, Any], threads: int) -> None:
    """The child's life: make the worker, answer calls, end when the parent hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair
    os.dup2(2, 1)  # standard output belongs to the parent's one line
    _quiet_libraries()
    import torch

    torch.set_num_threads(threads)
    worker: Worker | None = None
    try:
        while True:
            method, args = pipe.recv()
            try:
                if worker is None:
                    worker = make(**arguments)
                pipe.send(_answer(worker, method, args) if method else None)
            except UserError as error:
                pipe.send(error)
            except Exception:  # noqa: BLE001 - whatever it is, the parent raises it
                pipe.send(RuntimeError(traceback.format_exc()))
    except (EOFError, BrokenPipeError):
        return


class Side:
    """A worker in a process of its own; use as a context manager."""

    def __init__(self, name: str, make: Callable[..., Worker], *, threads: int, **arguments: Any) -> None:
        """Start the process and load what it needs.

        Args:
            name: for messages.
            make: the worker's class, importable.
            threads: of torch, OpenMP and BLAS.
            arguments: given to `make`.

        Raises:
            UserError: as raised by the worker.
        """
        self.name = name
        os.environ.update({variable: str(threads) for variable in THREAD_VARIABLES})
        os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
        for variable in SPIN_VARIABLES:
            os.environ.pop(variable, None)
        context = multiprocessing.get_context("spawn")
        self._pipe, end = context.Pipe()
        self._process = context.Process(target=_serve, args=(end, make, arguments, threads), name=name, daemon=True)
        self._process.start()
        end.close()
        self._call(None)

    def call(self, method: str, *args: Any) -> Reply:
        """Call a method of the worker and wait for it.

        Raises:
            UserError: raised by the worker, or its process ended.
            RuntimeError: any other error of the worker, with its traceback.
        """
        return self._call(method, *args)

    def _call(self, method: str | None, *args: Any) -> Any:
        try:
            self._pipe.send((method, args))
            reply = self._pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self._process.join()
            raise UserError(
                f"{self.name}: its process ended with code {self._process.exitcode} (-9 mostly means that memory ran out: "
                "take fewer rows, shots or a smaller batch)."
            ) from None
        if isinstance(reply, Exception):
            self.close()
            raise reply
        return reply

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(timeout=5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def __enter__(self) -> Side:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None:
            self._process.kill()
        self.close()
