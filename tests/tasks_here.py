"""Which tasks of the pack have their data on this machine."""

from __future__ import annotations

from w2s_tasks.rows.nlp_sets import SETS
from w2s_tasks.rows.sources import local_folder

SUITE = "w2s_nlp_"
FOLDERS = {"w2s_preference_helpful": "Anthropic/hh-rlhf/helpful-base", "w2s_mbpp": "google-research-datasets/mbpp"}
BUILT = "w2s_code_check"
"""Made by `w2s build`, in a cache of its own."""


def is_here(task: str) -> bool:
    """Whether a task's rows can be read: some sets are on the hub alone, all others in `$W2S_DATA` or in a package."""
    if task.startswith(BUILT):
        return False
    if folder := next((folder for name, folder in FOLDERS.items() if task.startswith(name)), None):
        return local_folder(folder) is not None
    if not task.startswith(SUITE):
        return True
    one = SETS[task.removeprefix(SUITE)]
    return one.wheel or local_folder(one.path) is not None
