"""SIGTERM, as a cluster sends it before it takes a machine away: write a checkpoint, then exit; the same command goes on.

transformers' own `enable_jit_checkpoint` waits three seconds first and then lets `train()` return as if it had come to its
end; here the half-trained model must never be taken for a whole one, so training ends with `Terminated` instead.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

EXIT_CODE = 128 + signal.SIGTERM


class Terminated(KeyboardInterrupt):
    """The process was asked to end, and what it was at is safe."""


class _State:
    def __init__(self) -> None:
        self.training = False
        self.asked = False


_state = _State()


def asked() -> bool:
    """Whether a SIGTERM arrived while a model was being trained."""
    return _state.asked


def _handle(signum: int, frame: FrameType | None) -> None:
    if _state.training and not _state.asked:
        _state.asked = True  # the training loop writes a checkpoint after this step and raises
    else:
        raise Terminated


@contextlib.contextmanager
def on_sigterm() -> Iterator[None]:
    """Handle SIGTERM: at once by `Terminated`, inside `training()` after the step's checkpoint."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: Any = signal.signal(signal.SIGTERM, _handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        _state.asked = False


@contextlib.contextmanager
def training() -> Iterator[None]:
    """While a training loop runs that looks at `asked()` after every step."""
    _state.training = True
    try:
        yield
    finally:
        _state.training = False
