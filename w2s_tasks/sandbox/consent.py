"""Whether programs of models and data sets may run: said once on the command line, known to every process of it."""

from __future__ import annotations

import os

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
