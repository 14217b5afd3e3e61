"""Trainers that make weak labels and fine-tuned strong models, and tell what came of them; they stand on `w2s_tasks`.

In Python::

    from trainers import Experiment, run

    results = run("quickstart", overrides={"seeds": [0, 1, 2]})
    results.gaps
    results.plot.accuracy()

Names are imported when they are asked for; torch comes with the first call, or with `Experiment`.
"""

import importlib
import warnings
from typing import Any

PLACES = {
    "Experiment": "trainers.config.experiment",
    "Results": "trainers.report.results",
    "evaluate": "trainers.api",
    "load_experiment": "trainers.api",
    "load_report": "trainers.api",
    "plan": "trainers.api",
    "run": "trainers.api",
    "sweep": "trainers.api",
    "task_from_rows": "w2s_tasks.own.task",
}
"""Where each public name is defined; `__init__.pyi` tells type checkers and editors the same."""

__all__ = list(PLACES)


def __getattr__(name: str) -> Any:
    if name not in PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(PLACES)}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "IProgress not found")  # the bars of a notebook here are text
        return getattr(importlib.import_module(PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *PLACES})
