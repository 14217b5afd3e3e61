"""Several processes that run one experiment together (``accelerate launch``): who writes, and what all of them agree on.

Every process runs the same flow. The main one decides what is built and owns the run folder; the others build beside it in
folders of their own, which share the main one's checkpoints, take their part of training and evaluation, and are dropped.
"""

from __future__ import annotations

import os
from typing import Any, TypeVar

T = TypeVar("T")


def count() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def index() -> int:
    """The number of this process; 0 is the main one."""
    return int(os.environ.get("RANK", "0"))


def is_main() -> bool:
    """Whether this process owns the run folder and speaks to the user."""
    return index() == 0


def _state() -> Any:
    from accelerate import PartialState

    return PartialState()


def wait() -> None:
    """Until every process is here."""
    if count() > 1:
        _state().wait_for_everyone()


def agree(value: T) -> T:
    """The main process's value, in all of them."""
    if count() == 1:
        return value
    from accelerate.utils import broadcast_object_list

    _state()
    agreed: list[T] = broadcast_object_list([value])
    return agreed[0]


def gather(values: list[T]) -> list[T]:
    """The lists of all processes, one after the other, in all of them."""
    if count() == 1:
        return values
    from accelerate.utils import gather_object

    _state()
    return gather_object(values)
