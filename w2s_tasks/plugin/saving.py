"""lm_eval's result files: their names, and an error where one of them could not be written.

lm_eval's own tracker logs such an error and goes on, to exit code 0. Under this one the names are short enough for every
disk, a place where nothing can be written is refused before any work, and what was lost all the same is an error.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lm_eval.loggers
from lm_eval.loggers import evaluation_tracker
from lm_eval.utils import sanitize_model_name

from w2s_tasks.errors import UserError
from w2s_tasks.paths import LONGEST_NAME, check_folder, check_place, file_name

DATE = "_2026-01-01T00-00-00.000000"
"""What lm_eval puts behind the name of a result file."""


def check_output(path: str, where: str) -> None:
    """Refuse, before any work, an ``--output_path`` that lm_eval could not write to.

    Raises:
        UserError: as `w2s_tasks.paths.check_place`.
    """
    place = Path(path)
    if place.suffix == ".json":
        check_folder(place.parent, where, below=LONGEST_NAME + 64)
        check_place(place, where, behind=len(DATE))
    else:
        check_folder(place, where, below=2 * LONGEST_NAME + 64)


class Tracker(evaluation_tracker.EvaluationTracker):
    """lm_eval's tracker that keeps what could not be saved, for `check`."""

    def __init__(self, output_path: str | None = None, **kwargs: Any) -> None:
        if output_path:
            check_output(output_path, "output_path")
        super().__init__(output_path=output_path, **kwargs)
        self.lost: list[str] = []

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Keep what lm_eval logs about errors that it swallows: a warning that names no reason, then the reason."""
        said: list[str] = []

        def hear(record: logging.LogRecord) -> bool:
            said.append(record.getMessage())
            return record.levelno >= level

        logger = evaluation_tracker.eval_logger
        level, own = logger.getEffectiveLevel(), logger.level
        logger.addFilter(hear)
        logger.setLevel(logging.INFO)
        try:
            yield
        finally:
            logger.setLevel(own)
            logger.removeFilter(hear)
        self.lost += [": ".join(said[i : i + 2]) for i, text in enumerate(said) if text.startswith("Could not save")]

    def save_results_aggregated(self, results: dict[str, Any], samples: dict[str, Any] | None = None) -> None:
        """Write the result file, below a folder whose name is short enough."""
        model = self.general_config_tracker
        if model.model_name is not None:
            model.model_name_sanitized = file_name(sanitize_model_name(model.model_name), model.model_name)
        with self._told():
            super().save_results_aggregated(results=results, samples=samples)

    def save_results_samples(self, task_name: str, samples: Any) -> None:
        """Write a task's samples, to a file whose name is short enough."""
        with self._told():
            super().save_results_samples(task_name=file_name(task_name), samples=samples)

    def check(self) -> None:
        """Tell what was lost.

        Raises:
            UserError: a file could not be written.
        """
        if self.lost:
            raise UserError(
                f"results could not be saved in {self.output_path}: {'; '.join(self.lost)}. Make room, or choose another "
                "place, and run the same command again."
            )


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Put this tracker in the place of lm_eval's own for a command of lm_eval's.

    Raises:
        UserError: at the end, where a file could not be written.
    """
    made: list[Tracker] = []

    def make(**kwargs: Any) -> Tracker:
        made.append(Tracker(**kwargs))
        return made[-1]

    before, lm_eval.loggers.EvaluationTracker = lm_eval.loggers.EvaluationTracker, make
    try:
        yield
    finally:
        lm_eval.loggers.EvaluationTracker = before
    for tracker in made:
        tracker.check()
