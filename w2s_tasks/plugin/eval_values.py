"""The values of an evaluation's keys, of flags and of a file alike: what lm_eval takes unseen, and fails on later."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from w2s_tasks.errors import UserError
from w2s_tasks.user_text import shown

MOST = 2**31 - 1
"""The largest whole number that every library below takes."""


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= MOST


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _text(value: Any) -> bool:
    return isinstance(value, str) and "\0" not in value


def _texts(value: Any) -> bool:
    return _text(value) or (isinstance(value, list) and all(map(_text, value)))


def _limit(value: Any) -> bool:
    """Documents, or a share of them below 1; lm_eval would cut 1.5 to 1."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and (0 < value < 1 or (1 <= value <= MOST and value == int(value)))


def _batch_size(value: Any) -> bool:
    if not isinstance(value, str):
        return _whole(value, 1)
    found = re.fullmatch(r"auto(?::([0-9]{1,9}))?|([0-9]{1,9})", value)
    return found is not None and all(number is None or int(number) > 0 for number in found.groups())


def _seed(value: Any) -> bool:
    seeds = value if isinstance(value, list) else [value]
    return len(seeds) in (1, 3, 4) and all(seed is None or _whole(seed, 0) for seed in seeds)


def _samples(value: Any) -> bool:
    """Documents of tasks; text is the name of a file that holds them."""
    if not isinstance(value, dict):
        return _text(value)
    lists = [isinstance(some, list) and some and all(_whole(row, 0) for row in some) for some in value.values()]
    return all(lists) and all(isinstance(name, str) for name in value)


def _caching(value: Any) -> bool:
    return isinstance(value, dict) or value in ("true", "refresh", "delete")


TEXT = ("model", "output_path", "use_cache", "device", "system_instruction", "verbosity")
FLAGS = (
    "log_samples",
    "predict_only",
    "write_out",
    "show_config",
    "check_integrity",
    "fewshot_as_multiturn",
    "trust_remote_code",
    "confirm_run_unsafe_code",
)
EXPECTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "num_fewshot": (lambda value: _whole(value, 0), "a whole number from 0"),
    "max_batch_size": (lambda value: _whole(value, 1), "a whole number from 1"),
    "limit": (_limit, "a number above 0 (a share below 1, or a whole number of documents)"),
    "batch_size": (_batch_size, "a whole number from 1, auto or auto:N"),
    "seed": (_seed, "one whole number from 0, or four of them,"),
    "samples": (_samples, "a mapping of tasks to the numbers of their documents, or the name of its file,"),
    "include_path": (_texts, "a folder"),
    "apply_chat_template": (lambda value: isinstance(value, bool) or _text(value), "true, false or a template's name"),
    "cache_requests": (_caching, "true, refresh or delete"),
    **dict.fromkeys(TEXT, (_text, "text")),
    **dict.fromkeys(FLAGS, (_flag, "true or false")),
}
"""What lm_eval takes for a key, and how to say so."""


def check_values(values: Mapping[str, Any], where: str) -> None:
    """Refuse a value that lm_eval could not use, and two that exclude each other.

    Args:
        values: by key, as flags and file give them together.
        where: the file or command that they came with.

    Raises:
        UserError: with the key, what is expected, and the value.
    """
    tasks = values.get("tasks")
    names = tasks if isinstance(tasks, list) else [] if tasks is None else [tasks]
    if not all(_text(name) and name.strip() for name in names):
        raise UserError(f"{where}: tasks: a name or a list of names is expected, got {shown(tasks)}.")
    for key, (fits, expected) in EXPECTED.items():
        value = values.get(key)
        if value is not None and not fits(value):
            raise UserError(f"{where}: {key}: {expected} is expected, got {shown(value)}.")
    if values.get("samples") is not None and values.get("limit") is not None:
        raise UserError(f"{where}: samples and limit both say which documents are asked; give one of them.")
    if values.get("fewshot_as_multiturn") and not values.get("apply_chat_template"):
        raise UserError(f"{where}: fewshot_as_multiturn: turns need a chat template; add --apply_chat_template.")
