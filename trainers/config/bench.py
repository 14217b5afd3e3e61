"""A bench: tasks, supervisors, methods and seeds in one file, each pair of task and supervisor an experiment of its own.

The file is an experiment's with a section `bench`. What stands outside of it is common to all; an experiment of the bench is
that, changed by its supervisor's keys, its task's, and those of the pair, one after the other. Sections are merged key by
key, but a model of another `trainer` replaces the section.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from trainers.config.experiment import Experiment
from trainers.config.primary import WITH_MARGIN, Claim, Margin
from trainers.config.reading import explain, find_config, read, set_value
from trainers.section import Section
from w2s_tasks.errors import UserError, nearest
from w2s_tasks.user_text import LONGEST, parse_yaml, read_text, shown

Keys = dict[str, Any]
Name = Annotated[str, Field(pattern=r"^\w[\w-]*$")]


class Endpoint(Section):
    """A claim over all tasks of a supervisor: one mean difference between two arms."""

    arm: str = "student"
    """The arm that it is about."""
    method: str | None = None
    """A student's method; null for the first."""
    against: str = "weak"
    """The arm that it is compared with."""
    against_method: str | None = None
    """Where that is a student too."""
    supervisor: str | None = None
    """Whose tasks; null for the first supervisor."""
    safety: str | None = None
    """A safety task; null for each experiment's own."""
    claim: Claim = "above"
    """differs; above; not_below (by the margin); equal (within the margin either way): of the mean over tasks like these."""
    margin: Margin | None = None
    """For not_below and equal."""

    @model_validator(mode="after")
    def _with_a_margin(self) -> Endpoint:
        if (self.claim in WITH_MARGIN) != (self.margin is not None):
            raise ValueError(
                "margin: not_below and equal need one, the smallest difference that would matter; others have none"
            )
        return self


class Bench(Section):
    """Which experiments."""

    tasks: dict[Name, Keys] = Field(min_length=1)
    """By a short name, what an experiment on that task changes: at least `task`."""
    supervisors: dict[Name, Keys] = Field(min_length=1)
    """By a short name, what a supervisor changes: at least `weak`; `tasks` names those that it labels, all if left out."""
    pairs: dict[str, Keys] = Field(default={})
    """By TASK.SUPERVISOR, what that experiment alone changes."""
    endpoints: list[Endpoint] = Field(default=[])
    """The claims that the bench is run for, named before it runs; everything else in its report is exploratory."""

    def cells(self) -> list[tuple[str, str]]:
        """Task and supervisor of every experiment; all of a supervisor's one after the other.

        Raises:
            ValueError: a name that is none of the tasks or supervisors.
        """
        found = []
        for supervisor, keys in self.supervisors.items():
            chosen = keys.get("tasks", list(self.tasks))
            _known(chosen, self.tasks, f"bench.supervisors.{supervisor}.tasks")
            found += [(task, supervisor) for task in self.tasks if task in chosen]
        _known(self.pairs, [cell_name(*pair) for pair in found], "bench.pairs")
        _known([e.supervisor for e in self.endpoints if e.supervisor], self.supervisors, "bench.endpoints: supervisor")
        return found

    @model_validator(mode="after")
    def _names_are_there(self) -> Bench:
        self.cells()
        return self


def cell_name(task: str, supervisor: str) -> str:
    """What an experiment of the bench is called."""
    return f"{task}.{supervisor}"


def _known(names: Any, known: Any, where: str) -> None:
    if not isinstance(names, list | Mapping):
        raise ValueError(f"{where}: a list of names, got {shown(names)}")
    for name in names:
        if name not in known:
            raise ValueError(f"{where}: no {shown(name)}.{nearest(str(name), known)} Known: {', '.join(known)}.")


def load_bench(name: str, overrides: Sequence[str] = ()) -> tuple[str, Bench, dict[tuple[str, str], Experiment]]:
    """Read a bench.

    Args:
        name: a file, or a name that ships.
        overrides: ``--set`` of keys that all experiments have in common, or of `bench`.

    Returns:
        Its name, its section, and its experiments by task and supervisor.

    Raises:
        UserError: no such file, no section `bench`, or an experiment that does not fit, by its name.
    """
    path = find_config(name)
    text = read_text(path, most=LONGEST)
    data = parse_yaml(text, str(path))
    if not isinstance(data, dict) or not isinstance(data.get("bench"), dict):
        raise UserError(f"{path}: no section `bench`; for one experiment use w2s run.")
    for assignment in overrides:
        set_value(data, assignment)
    try:
        bench = Bench.model_validate(data.pop("bench"))
    except ValidationError as error:
        raise UserError(explain(error, f"{path}: bench", "", {})) from error
    title = str(data.pop("name", path.stem))
    cells = {pair: _experiment(title, bench, data, *pair, path) for pair in bench.cells()}
    return title, bench, cells


def _experiment(title: str, bench: Bench, common: Keys, task: str, supervisor: str, path: Path) -> Experiment:
    name = cell_name(task, supervisor)
    own = {key: value for key, value in bench.supervisors[supervisor].items() if key != "tasks"}
    keys = copy.deepcopy(common)
    for changes in (own, bench.tasks[task], bench.pairs.get(name, {})):
        keys = merged(keys, changes)
    keys["include_path"] = [os.fspath((path.parent / folder).resolve()) for folder in keys.get("include_path", [])]
    try:
        return read({**keys, "name": f"{title}.{name}"})
    except UserError as error:
        raise UserError(f"{path}: {name}: {error}") from error


def merged(keys: Keys, changes: Keys) -> Keys:
    """Keys with changes, sections merged key by key; a section of another `trainer` is replaced."""
    found = dict(keys)
    for key, value in changes.items():
        before: Any = found.get(key)
        sections = isinstance(before, dict) and isinstance(value, dict)
        same = sections and value.get("trainer", before.get("trainer")) == before.get("trainer")
        found[key] = merged(before, value) if same else value
    return found
