"""Which code a result stands on: the definitions that its functions reach, found in the source.

From a function the search goes to every module-level name that it mentions, in its own module or imported from one of this
suite's, and on from there: annotations and decorators count, comments and docstrings don't. Of a class that is reached all
counts; of a method that the search begins with, the method and what it reaches through ``self``. What is looked up by name
while a program runs is not seen: an entry of a `Registry` counts where it is named as a root, and a registry itself does
not. So a new loss, or a word in the chat client, leaves a key as it is.

A user's own code is searched in the same way once it registered something (`take_in`): a plug-in's file with the modules
beside it, an installed package, a script, the cells of a notebook.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from w2s_tasks.errors import UserError

PACKAGES = ("trainers", "w2s_tasks")
GUESTS: dict[str, Path | None] = {}
"""The top modules of users' code: a file or a package's folder; None for the cells of a notebook."""
MAIN = "__main__"
"""A script or a notebook: what it does, its experiments among it, is no part of what its functions stand on."""
REGISTRY = "Registry"
"""A module-level name that is a call of this class is not followed."""

Reached = dict[str, set[str]]
"""Names of definitions by module; the empty name stands for what a module does when it is imported."""
Imported = tuple[str, str | None]
"""A module, and a name in it; None for the module itself."""


def _without_words(node: ast.AST) -> ast.AST:
    """A copy without docstrings: strings that are statements."""
    copied = ast.parse(ast.unparse(node))
    for inside in ast.walk(copied):
        body = getattr(inside, "body", None)
        if isinstance(body, list):
            kept = [s for s in body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]
            inside.body = kept or [ast.Pass()]  # type: ignore[attr-defined]
    return copied


def _defined(statement: ast.stmt) -> list[str]:
    """The names that a module-level statement defines, imports apart."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [statement.name]
    return [node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]


@dataclass
class _Module:
    """A module's definitions, imports and what else it does."""

    name: str
    package: str
    definitions: dict[str, list[ast.stmt]] = field(default_factory=dict)
    effects: list[ast.stmt] = field(default_factory=list)
    imports: dict[str, Imported] = field(default_factory=dict)
    """An imported name's module, and its name there; None where it is the module itself."""

    def take(self, body: Iterable[ast.stmt]) -> None:
        """Sort module-level statements."""
        for statement in body:
            if isinstance(statement, ast.Import | ast.ImportFrom):
                self.imports |= _imported(statement, self.package)
            elif isinstance(statement, ast.If) and ast.unparse(statement.test).endswith("TYPE_CHECKING"):
                continue  # nothing of it is run
            elif isinstance(statement, ast.If | ast.Try | ast.With):
                self.take([*statement.body, *getattr(statement, "orelse", []), *getattr(statement, "finalbody", [])])
                for handler in getattr(statement, "handlers", []):
                    self.take(handler.body)
            elif names := _defined(statement):
                for name in names:
                    self.definitions.setdefault(name, []).append(statement)
            elif self.name != MAIN and not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)):
                self.effects.append(statement)

    def take_cell(self, text: str) -> None:
        """Take a notebook's cell in place of what an earlier one defined under the same names."""
        with contextlib.suppress(SyntaxError):  # it did nothing either
            cell = _Module(self.name, self.package)
            cell.take(ast.parse(text).body)
            self.definitions |= cell.definitions
            self.imports |= cell.imports


def folder_of(package: str) -> Path:
    """Where the source of one of `PACKAGES` is."""
    spec = importlib.util.find_spec(package)
    assert spec is not None  # noqa: S101 - the packages are this suite's own
    assert spec.submodule_search_locations  # noqa: S101
    return Path(spec.submodule_search_locations[0])


def _exists(module: str) -> bool:
    return _path_of(module) is not None or (module == MAIN and module in GUESTS)


@functools.cache
def _path_of(module: str) -> Path | None:
    """The file of one of this suite's modules, or of a user's."""
    top, *inner = module.split(".")
    base = folder_of(top) if top in PACKAGES else GUESTS.get(top) or _beside(top)
    if base is None or base.is_file():
        return None if inner else base
    path = base.joinpath(*inner)
    files = (path / "__init__.py", *((path.with_name(f"{path.name}.py"),) if inner else ()))
    return next((p for p in files if p.is_file()), None)


def _beside(top: str) -> Path | None:
    """Where a module is that was imported from the folder of a user's file."""
    place = _place_of(top) if top in sys.modules else None
    folders = {guest.parent for guest in GUESTS.values() if guest is not None and guest.is_file()}
    own = {folder for folder in folders if folder.name not in ("site-packages", "dist-packages")}
    return place if place is not None and place.parent in own else None


def _place_of(top: str) -> Path | None:
    """An imported top module's file, or its package's folder; None for one without files."""
    module = sys.modules[top]
    file = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), None)
    place = Path(file).resolve() if file else None
    return place.parent if place is not None and place.name == "__init__.py" else place


def take_in(module: str) -> None:
    """Let the search follow a module that is not this suite's, with all of its package.

    Raises:
        UserError: its source is nowhere, so that nobody could tell when it changes.
    """
    top = module.partition(".")[0]
    if top in PACKAGES or top in GUESTS:
        return
    place = _place_of(top)
    if place is None and not _cells():
        raise UserError(f"the source of what {module} defines is nowhere: write it into a file, or into a notebook's cell.")
    GUESTS[top] = place
    forget()


def give_up(module: str) -> None:
    """Follow a module no more."""
    GUESTS.pop(module.partition(".")[0], None)
    forget()


def forget() -> None:
    """Read all source anew: a user's code may have changed."""
    for cached in (_path_of, _module, _reached_from, _text, _hash_of, all_code):
        cached.cache_clear()


def _cells() -> list[str]:
    """The cells that a notebook ran so far, as Python."""
    return [str(cell) for cell in getattr(sys.modules[MAIN], "In", ())]  # IPython's own name for them


def _imported(statement: ast.Import | ast.ImportFrom, package: str) -> dict[str, Imported]:
    """What an import statement binds."""
    if isinstance(statement, ast.Import):
        # `import a.b` binds a, and a.b is found from there.
        names = [(alias.asname, alias.name, alias.name.partition(".")[0]) for alias in statement.names]
        return {own or first: (whole if own else first, None) for own, whole, first in names}
    above = package.rsplit(".", statement.level - 1)[0] + "." if statement.level else ""
    module = f"{above}{statement.module or ''}".rstrip(".")
    bound: dict[str, Imported] = {}
    for alias in statement.names:
        inner = f"{module}.{alias.name}"
        bound[alias.asname or alias.name] = (inner, None) if _exists(inner) else (module, alias.name)
    return bound


@functools.cache
def _module(name: str) -> _Module:
    path = _path_of(name)
    if path is None:
        session = _Module(name, "")
        for cell in _cells():
            session.take_cell(cell)
        return session
    module = _Module(name, name if path.name == "__init__.py" else name.rpartition(".")[0])
    module.take(ast.parse(path.read_text(encoding="utf-8")).body)
    return module


def _mentions(node: ast.AST) -> Iterator[list[str]]:
    """Names in a node with the attributes that follow: ``a.b.c`` gives [a, b, c]."""
    for inside in ast.walk(node):
        if isinstance(inside, ast.Name):
            yield [inside.id]
        elif isinstance(inside, ast.Attribute):
            chain = [inside.attr]
            value = inside.value
            while isinstance(value, ast.Attribute):
                chain.append(value.attr)
                value = value.value
            if isinstance(value, ast.Name):
                yield [value.id, *reversed(chain)]


def _is_registry(statement: ast.stmt) -> bool:
    value = getattr(statement, "value", None)
    if not isinstance(value, ast.Call):
        return False
    called = value.func.value if isinstance(value.func, ast.Subscript) else value.func
    return isinstance(called, ast.Name) and called.id == REGISTRY


class _Search:
    """Follows mentions from definition to definition."""

    def __init__(self) -> None:
        self.reached: Reached = {}

    def name(self, module: str, name: str) -> None:
        """Reach a name of a module: a definition, or what it imports under this name."""
        found = _module(module)
        if name in found.definitions:
            if name in self.reached.setdefault(module, set()):
                return
            self.enter(module)
            self.reached[module].add(name)
            for statement in found.definitions[name]:
                if not _is_registry(statement):
                    self.follow(module, statement)
        elif name in found.imports:
            self._import(found.imports[name], [])

    def _import(self, imported: Imported, rest: list[str]) -> None:
        """Reach what an import binds; of a module, the attribute that is named behind it."""
        target, inner = imported
        chain = rest if inner is None else [inner]
        while chain and _exists(f"{target}.{chain[0]}"):
            target, chain = f"{target}.{chain[0]}", chain[1:]
        if _exists(target):
            self.name(target, chain[0]) if chain else self.enter(target)

    def enter(self, module: str) -> None:
        """A module is imported: what it does then happens."""
        names = self.reached.setdefault(module, set())
        if "" in names:
            return
        names.add("")
        for statement in _module(module).effects:
            self.follow(module, statement)

    def follow(self, module: str, node: ast.AST) -> None:
        """Reach all that a piece of a module's code mentions."""
        found = _module(module)
        local: dict[str, Imported] = {}
        for inside in ast.walk(node):
            if isinstance(inside, ast.Import | ast.ImportFrom):
                local |= _imported(inside, found.package)
        for first, *rest in _mentions(node):
            self._mention(found, local, first, rest)

    def _mention(self, found: _Module, local: dict[str, Imported], first: str, rest: list[str]) -> None:
        if first in local or first in found.imports:
            self._import(local.get(first) or found.imports[first], rest)
        elif first in found.definitions:
            self.name(found.name, first)


@functools.cache
def _reached_from(module: str, qualname: str) -> tuple[tuple[str, frozenset[str]], ...]:
    search = _Search()
    first, *inner = [part for part in qualname.split(".") if part != "<locals>"]
    statement = _module(module).definitions[first][-1]
    if isinstance(statement, ast.ClassDef) and inner:
        _follow_method(search, module, statement, inner[0])
    else:
        search.name(module, first)
    return tuple((name, frozenset(names)) for name, names in search.reached.items())


def _members(cls: ast.ClassDef) -> dict[str, ast.stmt]:
    return {s.name: s for s in cls.body if isinstance(s, ast.FunctionDef | ast.AsyncFunctionDef)}


def _follow_method(search: _Search, module: str, cls: ast.ClassDef, name: str) -> None:
    """Reach what a method mentions, and what the methods do that it calls on ``self``."""
    search.enter(module)
    members = _members(cls)
    waiting, seen = [name], set[str]()
    while waiting:
        method = waiting.pop()
        if method in seen or method not in members:
            continue
        seen.add(method)
        search.reached.setdefault(module, set()).add(f"{cls.name}.{method}")
        search.follow(module, members[method])
        waiting += [rest[0] for first, *rest in _mentions(members[method]) if first == "self" and rest]


def reached(roots: Iterable[Callable[..., Any] | type]) -> Reached:
    """The definitions that some functions or classes stand on, those of other packages apart.

    Args:
        roots: functions, methods or classes; `functools.partial` of one counts as it. One of another package stands on none.
    """
    return _reached_by(_places(roots))


def _reached_by(places: Iterable[tuple[str, str]]) -> Reached:
    found: Reached = {}
    for place in places:
        for module, names in _reached_from(*place):
            found.setdefault(module, set()).update(names)
    return found


def _places(roots: Iterable[Callable[..., Any] | type]) -> frozenset[tuple[str, str]]:
    """Where this suite's own among some functions are defined: module and qualified name."""
    return frozenset((root.__module__, root.__qualname__) for root in map(unwrapped, roots) if is_ours(root))


def unwrapped(root: Any) -> Any:
    """The function or class inside partials, bound methods and decorators."""
    while isinstance(root, functools.partial):
        root = root.func
    return inspect.unwrap(getattr(root, "__func__", root))


def is_ours(target: Any) -> bool:
    """Whether a function or class is defined in this suite, where its source can be searched."""
    return hasattr(target, "__qualname__") and _exists(str(target.__module__))


def mentioned(root: Callable[..., Any] | type, names: frozenset[str]) -> str | None:
    """File and line where a user's code, as far as a function stands on it, mentions one of some names; None if nowhere."""
    for module, inside in sorted(reached([root]).items()):
        if module.partition(".")[0] in PACKAGES:
            continue
        path = _path_of(module)
        for node in (n for own in sorted(inside) for s in _statements(module, own) for n in ast.walk(s)):
            name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else None
            if name in names and isinstance(node, ast.Name | ast.Attribute):
                return f"{path.name if path else module}:{node.lineno}"
    return None


@functools.cache
def _text(module: str, name: str) -> str:
    """A definition as it counts, without comments and docstrings."""
    return "\n".join(ast.unparse(_without_words(s)) for s in _statements(module, name) if not _is_registry(s))


def _statements(module: str, name: str) -> list[ast.stmt]:
    """What defines a name of a module; for the empty name what the module does when it is imported."""
    found = _module(module)
    first, _, method = name.partition(".")
    if not name:
        return found.effects
    if not method:
        return found.definitions[first]
    (cls,) = [s for s in found.definitions[first] if isinstance(s, ast.ClassDef)]
    return [_members(cls)[method]]


@functools.cache
def all_code() -> str:
    """Hash of every file of source: what a report stands on, its page included."""
    return files_hash([*map(folder_of, PACKAGES), *(place for place in GUESTS.values() if place is not None)])[:16]


def files_hash(places: Iterable[Path]) -> str:
    """Hex sha256 of the Python files of some folders, or of single files."""
    digest = hashlib.sha256()
    for place in places:
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            digest.update(path.relative_to(place.parent).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def code_hash(roots: Iterable[Callable[..., Any] | type]) -> str:
    """Hash of the code that some functions or classes stand on: 16 hex digits."""
    if MAIN in GUESTS:  # a cell may have been run since
        _session(len(_cells()))
    return _hash_of(_places(roots))


@functools.lru_cache(maxsize=1)
def _session(cells: int) -> None:
    forget()


@functools.cache
def _hash_of(places: frozenset[tuple[str, str]]) -> str:
    digest = hashlib.sha256()
    for module, names in sorted(_reached_by(places).items()):
        for name in sorted(names):
            digest.update(f"{module}\0{name}\0{_text(module, name)}\0".encode())
    return digest.hexdigest()[:16]
