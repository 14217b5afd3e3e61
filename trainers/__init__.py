"""Trainers that make weak labels and fine-tuned strong models, and tell what came of them; they stand on `w2s_tasks`.

In Python::

    from trainers import Experiment, run

    results = run("quickstart", overrides={"seeds": [0, 1, 2]})
    results.gaps
    results.plot.accuracy()

Names are imported when they are asked for; torch comes with the first call.
"""

import importlib
import warnings
from typing import Any

PLACES = {
    "Experiment": "trainers.config.experiment",
    "Results": "trainers.report.results",
    "bench": "trainers.api",
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


class _Later(type):
    """A class that stands for another one, which is imported when it is called or looked into."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return cls._meant()(*args, **kwargs)

    def __getattr__(cls, name: str) -> Any:
        return getattr(cls._meant(), name)

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, cls._meant())

    def _meant(cls) -> Any:
        return _imported(cls.__name__)


class _Experiment(metaclass=_Later):
    """One experiment, checked when it is made; its keys are those of an experiment file (docs/experiments.md)."""


_Experiment.__name__ = _Experiment.__qualname__ = "Experiment"


def __getattr__(name: str) -> Any:
    if name not in PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(PLACES)}")
    if name == "Experiment":  # its schema stands on the trainers, and these on torch
        return _Experiment
    return _imported(name)


def _imported(name: str) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "IProgress not found")  # the bars of a notebook here are text
        return getattr(importlib.import_module(PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *PLACES})
