"""The environment that lm_eval writes into every result file, collected once a process and while other work goes on.

It asks pip, lscpu, gcc and others for their versions, two to six seconds in all: as long as the rest of a start.
"""

from __future__ import annotations

import functools
import threading
from typing import Any


class _Collecting(threading.Thread):
    """Collects in the background; daemonic, so that a command that ends early does not wait for it."""

    def __init__(self) -> None:
        super().__init__(name="environment", daemon=True)
        self.found: dict[str, Any] = {}
        self.error: Exception | None = None

    def run(self) -> None:
        from lm_eval.loggers.utils import add_env_info

        try:
            add_env_info(self.found)
        except Exception as error:  # noqa: BLE001 - lm_eval calls whatever is installed; the caller gets it
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
        Exception: what lm_eval's function raised.
    """
    collecting = begin()
    collecting.join()
    if collecting.error:
        raise collecting.error
    storage.update(collecting.found)
