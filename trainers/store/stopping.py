"""SIGTERM, as a cluster sends it before it takes a machine away, and Ctrl-C: write a checkpoint, then end.

The same command, or the same call in a notebook, goes on from there. A second signal does not wait for the checkpoint.

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
        self.asked: int | None = None
        """The signal that came while a model was being trained."""


_state = _State()


def asked() -> bool:
    """Whether SIGTERM or Ctrl-C arrived while a model was being trained."""
    return _state.asked is not None


def ending() -> KeyboardInterrupt:
    """What a training that was asked to end raises."""
    return _error(_state.asked)


def _error(signum: int | None) -> KeyboardInterrupt:
    return KeyboardInterrupt() if signum == signal.SIGINT else Terminated()


def _handle(signum: int, frame: FrameType | None) -> None:
    if not _state.training or asked():
        raise _error(signum)
    _state.asked = signum  # the training loop writes a checkpoint after this step and raises


@contextlib.contextmanager
def on_signals() -> Iterator[None]:
    """Handle SIGTERM and Ctrl-C: at once by `Terminated` or KeyboardInterrupt, in `training()` after the step's checkpoint.

    Only the main thread gets signals; in another one nothing changes. Where Ctrl-C is ignored, or another's, it stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        ours.append(signal.SIGINT)
    before: list[Any] = [signal.signal(one, _handle) for one in ours]
    try:
        yield
    finally:
        for one, handler in zip(ours, before, strict=True):
            signal.signal(one, handler)
        _state.asked = None


@contextlib.contextmanager
def training() -> Iterator[None]:
    """While a training loop runs that looks at `asked()` after every step."""
    _state.training = True
    try:
        yield
    finally:
        _state.training = False
