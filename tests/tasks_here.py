"""Which tasks of the pack have their data on this machine."""

from __future__ import annotations

from w2s_tasks.rows.nlp_sets import SETS
from w2s_tasks.rows.sources import local_folder

SUITE = "w2s_nlp_"


def is_here(task: str) -> bool:
    """Whether a task's rows can be read: most sets of the NLP suite are on the hub alone, all others are in `$W2S_DATA`."""
    if not task.startswith(SUITE):
        return True
    one = SETS[task.removeprefix(SUITE)]
    return one.wheel or local_folder(one.path) is not None
