"""Loads plug-ins: Python that a user names on the command line or has installed, and that registers parts of the suite.

Nothing is loaded because an experiment names it. What a plug-in registers, `trainers.plugins` says; its code is searched as
the suite's own is (`w2s_tasks.code_scope`), so it counts in the keys of the steps that use it, and in no others.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, packages_distributions, version
from pathlib import Path
from types import ModuleType

from trainers.registry import Registry, all_or_nothing, line_in
from w2s_tasks import code_scope
from w2s_tasks.errors import UserError, nearest
from w2s_tasks.user_text import one_line, shown

GROUP = "w2s.plugins"
"""The entry points of installed plug-ins."""
VARIABLE = "W2S_PLUGINS"
"""What a process was given, for the processes that it starts: a JSON list."""


@dataclass(frozen=True)
class Plugin:
    """A plug-in that is loaded."""

    name: str
    """By which experiments require it: the file's without .py, the module's, or the entry point's."""
    version: str | None
    """Of its package, or its `__version__`."""
    sha256: str
    """Of its file, or of all Python files of its package."""
    module: str
    """Its top module."""
    file: str | None = None
    """Its path, where it is a file of its own."""


LOADED: dict[str, Plugin] = {}
"""Those that are loaded, by name."""


def load_plugin(source: str | Path) -> Plugin:
    """Load a plug-in from a file or by its module's name; a file that changed since is loaded anew.

    Args:
        source: ``my_method.py``, ``folder/my_method.py`` or ``my_package.my_method``; a module is looked for in the working
            folder too.

    Raises:
        UserError: it is not there, raises an error, or takes a name that is taken; with file and line.
    """
    text = str(source)
    path = Path(text).expanduser()
    if path.suffix == ".py" or path.is_file():
        return _handed_on(_load_file(path))
    if not all(part.isidentifier() for part in text.split(".")):
        raise UserError(f"--plugin {shown(text)}: name a file (my_method.py) or a module (my_package.my_method).")
    if text not in LOADED:
        if "" not in sys.path and str(Path.cwd()) not in sys.path:
            sys.path.append(str(Path.cwd()))  # as `python -m` finds it
        module = _imported(text, text, functools.partial(importlib.import_module, text))
        LOADED[text] = _described(text, module, _version(module))
    return _handed_on(LOADED[text])


def _handed_on(plugin: Plugin) -> Plugin:
    """Let the processes that this one starts load it too, on other machines from the same place."""
    os.environ[VARIABLE] = json.dumps(list(dict.fromkeys([*given(), plugin.file or plugin.name])))
    return plugin


def given() -> list[str]:
    """The files and modules that this process, or the one that started it, was given."""
    found: list[str] = json.loads(os.environ.get(VARIABLE, "[]"))
    return found


def load_plugins(sources: Iterable[str | Path] | None) -> None:
    """Load those that are there without being named (`load_standing`), then those that are; see `load_plugin`."""
    load_standing()
    for source in sources or ():
        load_plugin(source)


@functools.cache
def load_standing() -> None:
    """Load every plug-in that is installed, and what the process that started this one was given; once.

    Raises:
        UserError: one can't be loaded.
    """
    for point in entry_points(group=GROUP):
        _load_point(point)
    for source in given():
        load_plugin(source)


def _load_point(point: EntryPoint) -> None:
    about = f"{point.name} of {point.dist.name} {point.dist.version}" if point.dist else point.name
    if point.name in LOADED:
        raise UserError(f"two installed plug-ins are called '{point.name}'; uninstall one ({about}).")
    _imported(point.module, f"the installed plug-in {about}", point.load)
    LOADED[point.name] = _described(point.name, sys.modules[point.module], point.dist.version if point.dist else None)


def _load_file(path: Path) -> Plugin:
    name, path = path.stem, path.resolve()
    if not path.is_file():
        known = [file.name for file in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise UserError(f"--plugin {shown(str(path))}: no such file.{nearest(path.name, known)}")
    if not name.isidentifier():
        raise UserError(f"--plugin {path}: a plug-in's file is named like a Python module, e.g. my_method.py.")
    there = LOADED.get(name)
    if there is not None and there.file == str(path):
        if there.sha256 == code_scope.files_hash([path]):
            return there
        _forget(name)  # what can't be loaded anew is not there in its old form either
    _refuse_name(name, path)
    module = _imported(name, path.name, functools.partial(_run, name, path), path)
    LOADED[name] = _described(name, module, getattr(module, "__version__", None), path)
    return LOADED[name]


def _refuse_name(name: str, path: Path) -> None:
    """Refuse a file whose name another plug-in or an installed module has."""
    there = LOADED.get(name)
    if there is not None and there.file != str(path):
        raise UserError(f"two plug-ins are called '{name}': {there.file or there.module} and {path}. Rename one.")
    spec = None if name in sys.modules else importlib.util.find_spec(name)
    other = getattr(sys.modules.get(name), "__file__", "built in") if spec is None and name in sys.modules else None
    other = other or (spec.origin or "a package" if spec else None)
    if other and Path(other).resolve() != path:
        raise UserError(f"--plugin {path}: Python has another module '{name}' ({other}). Rename the file.")


def _forget(name: str) -> None:
    """Take back a plug-in's module and what it registered."""
    del LOADED[name]
    sys.modules.pop(name, None)
    for registry in Registry.known:
        for entry in [entry for entry, (module, _) in registry.places.items() if module == name]:
            del registry[entry], registry.places[entry]


def _run(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # noqa: S101 - a .py file has a loader
    assert spec.loader is not None  # noqa: S101
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # for modules beside it; behind all others, so that it hides none
    spec.loader.exec_module(module)
    return module


def _imported(name: str, about: str, run: Callable[[], ModuleType], file: Path | None = None) -> ModuleType:
    """A plug-in's module; what went wrong in it is told with the place in its own code."""
    before, places = set(sys.modules), [file] if file else _places(name)
    try:
        with all_or_nothing():
            run()
            code_scope.take_in(name)
    except Exception as error:
        for new in set(sys.modules) - before:
            if new.partition(".")[0] == name.partition(".")[0]:
                del sys.modules[new]
        code_scope.give_up(name)
        if isinstance(error, UserError):
            raise
        raise UserError(f"{_place(error, places) or about}: the plug-in can't be loaded: {_told(error)}") from error
    return sys.modules[name]


def _told(error: Exception) -> str:
    if isinstance(error, SyntaxError):
        return f"it is no valid Python: {error.msg}"
    return f"{type(error).__name__}: {one_line(error)}"


def _places(name: str) -> list[Path]:
    """Where the source of a plug-in's package is, as far as it can be found."""
    try:
        spec = importlib.util.find_spec(name.partition(".")[0])
    except (ImportError, ValueError):  # a file's own module, of which Python has no finder
        spec = None
    found = [*(spec.submodule_search_locations or ()), spec.origin] if spec else []
    return [Path(place) for place in found if place]


def _place(error: Exception, places: list[Path]) -> str | None:
    """File and line of a plug-in's code where an error came from; None where it has no part in it."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name}:{error.lineno}"
    return line_in(error, places)


def _version(module: ModuleType) -> str | None:
    try:
        return version(packages_distributions()[module.__name__.partition(".")[0]][0])
    except (KeyError, PackageNotFoundError):
        own = getattr(module, "__version__", None)
        return None if own is None else str(own)


def _described(name: str, module: ModuleType, told: object, path: Path | None = None) -> Plugin:
    top = module.__name__.partition(".")[0]
    place = path or code_scope.GUESTS[top]
    assert place is not None  # noqa: S101 - a module that was imported has a file
    file = None if path is None else str(path)
    return Plugin(name, None if told is None else str(told), code_scope.files_hash([place]), top, file)


def used_by(modules: Iterable[str]) -> list[Plugin]:
    """The plug-ins that some modules belong to, in the order in which they were loaded."""
    tops = {module.partition(".")[0] for module in modules}
    return [plugin for plugin in LOADED.values() if plugin.module in tops]


def require(names: Iterable[str]) -> None:
    """Refuse an experiment whose plug-ins are not there.

    Raises:
        ValueError: names the first one, and how it is given.
    """
    load_standing()
    for name in names:
        if name not in LOADED:
            known = f" Loaded: {', '.join(LOADED)}." if LOADED else ""
            raise ValueError(
                f"the plug-in {shown(name)} is not here: name its file (--plugin {name}.py) or its module, or "
                f"install its package.{nearest(name, LOADED)}{known}"
            )
