"""lm_eval's task manager with our tasks in it; its own 14,683-name index is read only when one of its tasks is wanted."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_eval.tasks import TaskManager

from w2s_tasks import TASK_PATH
from w2s_tasks.errors import UserError, nearest


class _NoCustomDatasetNotice(logging.Filter):
    """lm_eval tells at every task with a ``custom_dataset`` that it takes metadata; here that is all of them."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "Custom kwargs can be passed" not in str(record.msg)


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
        super().__init__(include_path=self._paths, include_defaults=False, metadata=metadata)

    def _widen(self) -> None:
        self._can_widen = False
        super().__init__(include_path=self._paths, include_defaults=True, metadata=self._metadata)

    def match_tasks(self, task_list: list[str]) -> list[str]:
        """Match names and patterns; a plain name that is not ours makes the built-in index be read."""
        found: list[str] = super().match_tasks(task_list)
        if self._can_widen and any(not super(W2STaskManager, self).match_tasks([t]) for t in task_list):
            self._widen()
            found = super().match_tasks(task_list)
        return found

    def _load_spec(self, spec: Any) -> Any:
        if isinstance(spec, str) and self._entry(spec) is None and not Path(spec).is_file():
            if self._can_widen:
                self._widen()
            if self._entry(spec) is None:
                raise UserError(
                    f"no task '{spec}'.{nearest(spec, self.all_tasks)} `w2s tasks` lists ours, `lm_eval ls tasks` all."
                )
        return super()._load_spec(spec)
