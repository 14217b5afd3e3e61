"""Whether programs of models and data sets may run: said on the command line or in a call, known to every process of it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

OPTION = "--confirm_run_unsafe_code"
VARIABLE = "W2S_CONFIRM_RUN_UNSAFE_CODE"
"""How the processes of a command hear of it: shards, cells and machines of a cluster."""


def give(wanted: bool) -> None:
    """Note what the command line says."""
    if wanted:
        os.environ[VARIABLE] = "1"


def given() -> bool:
    """Whether it was said."""
    return os.environ.get(VARIABLE) == "1"


@contextlib.contextmanager
def during(wanted: bool) -> Iterator[None]:
    """Note it for a while, and forget it again."""
    before = given()
    give(wanted)
    try:
        yield
    finally:
        if not before:
            os.environ.pop(VARIABLE, None)
