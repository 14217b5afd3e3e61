"""A task's settings as plain values: what its YAML says, and the groups that name it, to be compared and hashed."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lm_eval.api.task import ConfigurableTask

from w2s_tasks.code_scope import code_hash, is_ours
from w2s_tasks.errors import UserError
from w2s_tasks.user_text import shown

NAMES = frozenset({"task", "task_alias", "tag"})
"""What a task is called, not what it asks."""
ROWS = frozenset(
    {
        "custom_dataset",
        "dataset_path",
        "dataset_name",
        "dataset_kwargs",
        "training_split",
        "validation_split",
        "test_split",
        "fewshot_split",
    }
)
"""Where the rows come from; the rows themselves are hashed elsewhere."""
PROMPTS = "prompts"
"""The entry of a task's metadata that states its paraphrases, each of them the prompt of a task of its own."""


def _function(value: Any) -> str:
    """A function or class by its name and its source, never by path or address.

    Of this suite's own the source is what it stands on; of another's, a user's task folder too, its whole module.
    """
    name = getattr(value, "__qualname__", type(value).__qualname__)
    if is_ours(value):
        return f"{name}:{code_hash([value])}"
    try:
        source = inspect.getsourcefile(value if hasattr(value, "__qualname__") else type(value))
    except TypeError:  # a builtin has no source
        source = None
    return f"{name}:{hashlib.sha256(Path(source).read_bytes()).hexdigest()[:16] if source else ''}"


def plain(value: Any) -> Any:
    """A setting as JSON takes it: functions by the content of their module, dataclasses and mappings by their entries."""
    if isinstance(value, functools.partial):
        return [plain(value.func), plain(value.args), plain(value.keywords)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(entry) for entry in value]
    return _function(value) if callable(value) or not isinstance(value, str | int | float | None) else value


def settings(task: ConfigurableTask, without: Iterable[str] = ()) -> dict[str, Any]:
    """All settings of a loaded task but its names and those of `without`; its YAML's place and other prompts are none."""
    found: dict[str, Any] = plain(task.config)
    left_out = NAMES | frozenset(without)
    found["metadata"] = {k: v for k, v in (found.get("metadata") or {}).items() if k not in ("config_source", PROMPTS)}
    return {key: value for key, value in found.items() if key not in left_out}


def differing(one: ConfigurableTask, other: ConfigurableTask) -> list[str]:
    """The settings in which two loaded tasks differ."""
    mine, theirs = settings(one), settings(other)
    return sorted(key for key in mine if mine[key] != theirs[key])


def refuse_two(one: ConfigurableTask, other: ConfigurableTask) -> None:
    """Refuse two tasks of one name with different settings, of which lm_eval drops one.

    Raises:
        UserError: with the settings in which they differ.
    """
    keys = [] if one is other else differing(one, other)
    if keys:
        name = one.task_name
        raise UserError(
            f"the task '{name}' is named twice, and its {', '.join(keys)} differ; results have one place for a name, so one "
            f"of the two would be lost. Give one of them a name of its own: a YAML that includes the task's, with "
            f"`task: {name}_2` and those settings."
        )


def refuse_odd_choices(name: str, choices: Any) -> None:
    """Refuse choices of a YAML that are no texts: lm_eval stops at them without saying what they are.

    Raises:
        UserError: with the choice, and why yes and no without quotes are none.
    """
    listed = list(choices.values()) if isinstance(choices, dict) else choices if isinstance(choices, list) else []
    odd = [c for c in listed if not isinstance(c, str) or not c]
    if odd:
        raise UserError(
            f"the task '{name}': doc_to_choice: choices must be a list of texts, found {odd[0]!r} in {shown(listed)}. "
            'YAML reads yes, no, on, off, null and digits as other things than text; put quotes around them: ["no", "yes"].'
        )
