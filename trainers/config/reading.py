"""Reading experiment files: YAML, `--set`, and errors that name file, line and key."""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from trainers.config.experiment import Experiment, trainer_of
from trainers.config.method_args import known
from trainers.fit.trainer import TRAINERS, Role
from trainers.section import SECRET_PLACES
from w2s_tasks.errors import UserError, nearest
from w2s_tasks.paths import LONGEST_NAME, cut, size
from w2s_tasks.user_text import LONGEST, SHOWN, parse_yaml, read_text, shown

Given = Experiment | Mapping[str, Any] | str | os.PathLike[str]
"""What stands for an experiment in Python."""
_BENCH = re.compile(r"^bench:", re.MULTILINE)
"""In the file of several experiments (`trainers.config.bench`)."""
MOST_ERRORS = 20
"""Lines of an error about an experiment file."""
ROLES: tuple[Role, ...] = get_args(Role)


def _line_of(text: str, path: tuple[str | int, ...]) -> int | None:
    """The line of a key in YAML text, as far as the path can be followed."""
    # The nodes of the YAML reader that is here anyway: ruamel.yaml would be a second one, with rules of its own.
    node, line = yaml.compose(text, Loader=yaml.SafeLoader), None
    for part in path:
        if isinstance(node, yaml.MappingNode):
            pair = next(((k, v) for k, v in node.value if k.value == str(part)), None)
            if pair is None:
                return line
            line, node = pair[0].start_mark.line + 1, pair[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            return line
    return line


def _known_keys(path: tuple[str | int, ...], data: Mapping[str, Any]) -> list[str]:
    """The keys of the section at a path."""
    model: type[BaseModel] = Experiment
    for part in path:
        if str(part) not in model.model_fields:
            break
        model = _section_at(model, str(part), data)
    return list(model.model_fields)


def _section_at(model: type[BaseModel], key: str, data: Mapping[str, Any]) -> type[BaseModel]:
    if model is Experiment and key in ROLES:
        return TRAINERS[trainer_of(key, data[key])].settings
    if model is Experiment and key == "method_args":
        return known()
    annotation = model.model_fields[key].annotation
    options = [a for a in (annotation, *getattr(annotation, "__args__", ())) if isinstance(a, type)]
    return next((a for a in options if issubclass(a, BaseModel)), model)


def _elsewhere(loc: tuple[str | int, ...]) -> str:
    """Which other trainers of a role have a key."""
    if len(loc) != 2 or loc[0] not in ROLES:
        return ""
    others = [n for n, t in TRAINERS.items() if loc[0] in t.roles and loc[1] in t.settings.model_fields]
    return f" It is for trainer: {' or '.join(others)}." if others else ""


def explain(error: ValidationError, where: str, text: str, data: Mapping[str, Any]) -> str:
    lines = []
    for item in error.errors():
        path = tuple(item["loc"])
        key = cut(".".join(map(str, path)), SHOWN) or "(file)"
        if item["type"] == "extra_forbidden":
            here = _known_keys(path[:-1], data)
            message = f"unknown key.{_elsewhere(path) or nearest(str(path[-1]), here)} Known here: {', '.join(here)}."
        elif item["type"] == "missing":
            message = "this key is missing."
        else:
            message = item["msg"].removeprefix("Value error, ")
            if not path and (named := re.match(r"([a-z_]+(?:\.\w+)*): ", message)):  # a rule over several keys names one
                path, message = tuple(named[1].split(".")), message[named.end() :]
                key = named[1]
            value = item.get("input")
            simple = path and path[-1] not in SECRET_PLACES and isinstance(value, str | int | float | bool)
            message += f" (got {shown(value)})" if simple else ""
        line = _line_of(text, path)
        lines.append(f"{f'{where}:{line}' if line else where}: {key}: {message}")
    more = [f"{where}: and {len(lines) - MOST_ERRORS:,} more errors"] if len(lines) > MOST_ERRORS else []
    return "\n".join([*lines[:MOST_ERRORS], *more])


def set_value(data: dict[str, Any], assignment: str) -> None:
    """Apply one ``--set a.b=value``; the value is read as YAML.

    Raises:
        UserError: no ``=``, or a path through something that is no section.
    """
    path, equals, raw = assignment.partition("=")
    *parents, last = path.strip().split(".")
    if not equals or not all((*parents, last)):
        raise UserError(f"--set {cut(assignment, SHOWN)}: write key=value, e.g. --set strong.lr=1e-3.")
    node: Any = data
    for parent in parents:
        if isinstance(node.get(parent), str) and parent == "split":
            node[parent] = {"by": node[parent]}
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise UserError(f"--set {cut(assignment, SHOWN)}: '{cut(parent, SHOWN)}' is no section of the config.")
    node[last] = parse_yaml(raw, f"--set {cut(path, SHOWN)}")


def parse(text: str, where: str, overrides: Sequence[str] | None = None) -> Experiment:
    """Read an experiment from YAML text.

    Raises:
        UserError: not YAML, an unknown or missing key, or a value that does not fit; with file, line and key.
    """
    data = parse_yaml(text, where)
    if not isinstance(data, dict):
        raise UserError(f"{where}: an experiment is a mapping of keys; see harness_configs/experiments/quickstart.yaml.")
    return _checked(data, where, text, overrides)


def _checked(data: dict[str, Any], where: str, text: str, overrides: Sequence[str] | None) -> Experiment:
    if "bench" in data:
        raise UserError(f"{where}: a bench of several experiments; run it with w2s bench.")
    for assignment in overrides or []:
        set_value(data, assignment)
    try:
        return Experiment.model_validate(data)
    except ValidationError as error:
        raise UserError(explain(error, where, text, data)) from error


def shipped() -> dict[str, Path]:
    """The experiments that ship with the package, by name."""
    return {name: path for name, path in _files().items() if not _BENCH.search(path.read_text(encoding="utf-8"))}


def _files() -> dict[str, Path]:
    """Their files, and those of benches."""
    folder = Path(__file__).parents[2] / "harness_configs" / "experiments"
    return {p.stem: p for p in sorted(folder.glob("*.yaml"))}


def find_config(name: str) -> Path:
    """A config by path, or by the name of one that ships.

    Raises:
        UserError: neither exists.
    """
    path = Path(name)
    if path.is_file():
        return path
    known = _files()
    stem = path.stem if path.suffix in (".yaml", ".yml") else name
    if stem in known:
        return known[stem]
    raise UserError(
        f"no config file '{name}', and none of that name ships.{nearest(stem, known)} Shipped: {', '.join(known)}."
    )


def load(name: str, overrides: Sequence[str] | None = None) -> tuple[Experiment, Path]:
    """Read an experiment file by path or shipped name, with ``--set`` overrides; folders become absolute."""
    path = find_config(name)
    text = read_text(path, most=LONGEST)
    config = parse(text, str(path), overrides)
    folders = _absolute(config.include_path, path.parent)
    name = config.name or path.stem
    if not name.strip(".") or size(name) > LONGEST_NAME:
        raise UserError(f"{path}: its name can't name a run folder; put `name: my_experiment` into it.")
    return config.model_copy(update={"include_path": folders, "name": name}), path


def _absolute(folders: Sequence[str], start: Path) -> list[str]:
    return [str((start / folder).resolve()) for folder in folders]


def read(given: Given, overrides: Sequence[str] | None = None) -> Experiment:
    """An experiment from whatever a caller has of it: itself, its keys, or its file as `load` finds it.

    Args:
        given: folders in an experiment or a mapping are relative to the working folder.
        overrides: as ``--set`` has them, e.g. strong.lr=1e-3.

    Raises:
        UserError: as `parse` and `find_config`.
    """
    if isinstance(given, str | os.PathLike):
        return load(os.fspath(given), overrides)[0]
    if isinstance(given, Experiment):
        data = given.model_dump(exclude_unset=True)
    elif isinstance(given, Mapping):
        data = copy.deepcopy(dict(given))
    else:
        raise UserError(
            f"an experiment is an Experiment, its keys, a file or a name that ships, not {type(given).__name__}."
        )
    config = _checked(data, "the experiment", "", overrides)
    return config.model_copy(update={"include_path": _absolute(config.include_path, Path())})


def as_assignments(overrides: Mapping[str, Any] | None) -> list[str]:
    """Overrides by dotted key as ``--set`` has them.

    Raises:
        UserError: a value that could not stand in a file.
    """
    found = []
    for key, value in (overrides or {}).items():
        try:
            found.append(f"{key}={json.dumps(value, allow_nan=False)}")
        except (TypeError, ValueError) as error:
            raise UserError(f"overrides: {key}: no plain number, word, list or mapping ({error}).") from error
    return found
