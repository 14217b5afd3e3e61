"""lm_eval's task manager with our tasks in it; its own 14,683-name index is read only when one of its tasks is wanted."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lm_eval.tasks.manager
from lm_eval.api.group import Group
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager
from lm_eval.tasks._factory import TaskFactory
from lm_eval.tasks._index import Kind
from lm_eval.tasks.manager import TaskDict

from w2s_tasks import TASK_PATH
from w2s_tasks.errors import UserError, nearest
from w2s_tasks.plugin.forms import FORMS, MARK, parted
from w2s_tasks.plugin.prompts import asked_by
from w2s_tasks.plugin.task_settings import refuse_odd_choices, refuse_two
from w2s_tasks.rows.fewshot import tell_small_pool
from w2s_tasks.rows.readable import whole_labels
from w2s_tasks.rows.sources import cache_of
from w2s_tasks.user_text import shown


class _NoCustomDatasetNotice(logging.Filter):
    """lm_eval tells at every task with a ``custom_dataset`` that it takes metadata; here that is all of them."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "Custom kwargs can be passed" not in str(record.msg)


def _on_disk(name: str) -> bool:
    """Whether a task's name is that of a YAML or of a folder of them, which lm_eval takes too."""
    try:
        return Path(name).exists()
    except OSError:  # longer than a file's name can be
        return False


class _Factory(TaskFactory):
    """lm_eval's builder of groups, which keeps one of two members of a name; here two that differ are an error."""

    def _build_task(self, entry: Any, overrides: dict[str, Any] | None) -> Any:
        config = self._load_full_config(entry, overrides)
        refuse_odd_choices(entry.name, config.get("doc_to_choice"))
        asked = parted(entry.name)
        if asked.form and "class" in config:
            raise UserError(f"the task '{entry.name}': a task with a class of its own has no further form.")
        own = self._own_cache(config)
        if asked.form is None:
            task = super()._build_task(entry, {**(overrides or {}), **own} if own else overrides)
        else:
            task = asked.form(config | own | {"task": asked.own_prompt})
        return task if asked.prompt == 1 else asked_by(task, asked.prompt)

    @staticmethod
    def _own_cache(config: Mapping[str, Any]) -> dict[str, Any]:
        """Settings that let a local folder of data give its rows as they are now; see `rows.sources.cache_of`."""
        path, settings = config.get("dataset_path"), config.get("dataset_kwargs") or {}
        if not isinstance(path, str) or not _on_disk(path) or not Path(path).is_dir() or "cache_dir" in settings:
            return {}
        return {"dataset_kwargs": {**settings, "cache_dir": cache_of(Path(path))}}

    def _build_group_members(self, *args: Any, **kwargs: Any) -> Any:
        children = super()._build_group_members(*args, **kwargs)
        found: dict[str, Any] = {}
        for child in children:
            for task in child.get_all_tasks() if isinstance(child, Group) else [child]:
                refuse_two(found.setdefault(task.task_name, task), task)
        return children


class W2STaskManager(TaskManager):
    """`TaskManager` that knows this pack and the user's folders first, and builds the large index only when needed."""

    def __init__(
        self,
        verbosity: str | None = None,
        include_path: str | Path | Sequence[str | Path] | None = None,
        include_defaults: bool = True,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        extra = [include_path] if isinstance(include_path, str | Path) else list(include_path or [])
        for folder in extra:
            if not Path(folder).exists():
                raise UserError(f"include_path: the folder {folder} does not exist.")
        logging.getLogger("lm_eval.api.task").addFilter(_NoCustomDatasetNotice())
        self._paths = [TASK_PATH, *extra]
        self._can_widen = include_defaults
        self._metadata = metadata
        self._read_index(include_defaults=False)

    def _read_index(self, *, include_defaults: bool) -> None:
        # An lm_eval that finds our folder by its entry point would warn of every task that it is told of twice.
        known: tuple[Path, ...] = getattr(lm_eval.tasks.manager, "discover_plugin_task_paths", tuple)()
        paths = [path for path in self._paths if Path(path).resolve() not in known]
        super().__init__(include_path=paths, include_defaults=include_defaults, metadata=self._metadata)
        self._factory = _Factory(meta=self._metadata)

    def _widen(self) -> None:
        self._can_widen = False
        self._read_index(include_defaults=True)

    def match_tasks(self, task_list: list[str]) -> list[str]:
        """Match names and patterns; a plain name that is not ours makes the built-in index be read."""
        missing = self._unmatched(task_list)
        if missing is not None and self._can_widen:
            self._widen()
            missing = self._unmatched(task_list)
        if missing is not None and not _on_disk(missing):
            raise self._unknown(missing)
        return list(dict.fromkeys(match for name in task_list for match in self._matching(name)))

    def _unmatched(self, task_list: list[str]) -> str | None:
        return next((t for t in task_list if not self._matching(t)), None)

    def _matching(self, name: str) -> list[str]:
        asked = parted(name)
        found: list[str] = super().match_tasks([asked.task])
        return [f"{task}{asked.ending}" for task in found]

    def _unknown(self, name: str) -> UserError:
        hint = nearest(name, self.all_tasks, most=3)
        if MARK in name:
            hint += f" A form is named behind {MARK}: {', '.join(FORMS)}; then another prompt: prompt2, prompt3."
        return UserError(f"no task {shown(name)}.{hint} `w2s tasks` lists ours, `lm_eval ls tasks` all.")

    def load(self, task_list: Any) -> TaskDict:
        """Load tasks and groups as lm_eval does.

        Raises:
            UserError: a task that two groups name, or one group twice with different settings; lm_eval refuses the first
                and drops one of the second.
        """
        try:
            loaded = super().load(task_list)
        except ValueError as error:
            if not str(error).startswith("Duplicate task"):
                raise
            raise UserError(f"{error}; lm_eval can't evaluate it twice in one run. Name it once.") from error
        for task in loaded["tasks"].values():
            if isinstance(task, ConfigurableTask):
                whole_labels(task)
                tell_small_pool(task)
        return loaded

    def _entry(self, name: str) -> Any:
        """The entry of a task; of NAME@FORM and NAME@prompt2 that of NAME, as a task of its own."""
        asked = parted(name)
        entry = super()._entry(asked.task)
        if not asked.ending or entry is None:
            return entry
        if entry.kind in (Kind.GROUP, Kind.TAG):
            raise UserError(f"'{asked.task}' is a group; ask one of its tasks as TASK{asked.ending}.")
        return replace(entry, name=name)

    def _load_spec(self, spec: Any) -> Any:
        if isinstance(spec, str) and self._entry(spec) is None and not _on_disk(spec):
            if self._can_widen:
                self._widen()
            if self._entry(spec) is None:
                raise self._unknown(spec)
        return super()._load_spec(spec)
