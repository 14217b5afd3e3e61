"""Registries: names to what they stand for, each entry made where it is defined, here or in a user's plug-in."""

from __future__ import annotations

import contextlib
import inspect
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from w2s_tasks import code_scope
from w2s_tasks.errors import UserError

T = TypeVar("T")


class Registry(dict[str, T]):
    """Entries by name. A name looked up here is not followed by `w2s_tasks.code_scope`: who uses an entry names it."""

    known: ClassVar[list[Registry[Any]]] = []
    """All of them."""

    def __init__(self, what: str, /, *, space: str | None = None, **entries: T) -> None:
        """With entries that no function stands for.

        Args:
            what: an entry is called, for errors.
            space: registries of one space share their names; None for names of its own.
            **entries: the first ones.
        """
        super().__init__(entries)
        self.what, self.space = what, space
        self.places: dict[str, tuple[str, str]] = {}
        """For each entry the module that made it, and where: file and line."""
        Registry.known.append(self)

    def entry(self, function: T) -> T:
        """Register a function under its own name; a decorator."""
        return self.named(function.__name__)(function)  # type: ignore[attr-defined]

    def named(self, name: str) -> Callable[[T], T]:
        """Register a function under another name; gives a decorator."""

        def register(function: T) -> T:
            self.add(name, function, function)
            return function

        return register

    def add(self, name: str, value: T, made_by: Any) -> None:
        """Register what a function or class stands for. One that is defined anew, as in a notebook, takes its own place.

        Raises:
            UserError: another one has the name; says where both are.
        """
        module, place = str(made_by.__module__), place_of(made_by)
        for other in (self, *(r for r in Registry.known if r.space is not None and r.space == self.space and r is not self)):
            again = other is self and module == code_scope.MAIN == self.places.get(name, ("", ""))[0]
            if name in other and not again:
                there = other.places.get(name, ("", "this suite"))[1]
                raise UserError(f"{place}: '{name}' is the name of {_a(other.what)} already ({there}). Choose another name.")
        code_scope.take_in(module)
        self[name], self.places[name] = value, (module, place)


def _a(what: str) -> str:
    return f"{'an' if what[0] in 'aeiou' else 'a'} {what}"


def place_of(made_by: Any, error: BaseException | None = None) -> str:
    """File and line of a function or class, for errors; the module where there is no file, as in a notebook.

    Args:
        made_by: the function or class.
        error: what was raised in it: then the last line of users' code that led to it, where there is one.
    """
    own = line_in(error, filter(None, code_scope.GUESTS.values())) if error is not None else None
    if own is not None:
        return own
    made_by = code_scope.unwrapped(made_by)
    try:
        file, line = inspect.getsourcefile(made_by), inspect.getsourcelines(made_by)[1]
    except (OSError, TypeError):
        return f"{made_by.__module__}.{getattr(made_by, '__qualname__', '')}"
    return f"{Path(file).name if file else made_by.__module__}:{line}"


def line_in(error: BaseException, places: Iterable[Path]) -> str | None:
    """File and line of the last call, of those that led to an error, in some files or folders; None where none is there."""
    inside = tuple(map(str, places))
    calls = [call for call in traceback.extract_tb(error.__traceback__) if call.filename.startswith(inside)]
    return f"{Path(calls[-1].filename).name}:{calls[-1].lineno}" if calls else None


def remembered() -> Callable[[], None]:
    """What brings all registries back to what they are now."""
    before = [(registry, dict(registry), dict(registry.places)) for registry in Registry.known]

    def restore() -> None:
        for registry, entries, places in before:
            registry.clear()
            registry.update(entries)
            registry.places = places

    return restore


@contextlib.contextmanager
def all_or_nothing() -> Iterator[None]:
    """Take back what was registered inside, where it ends with an error."""
    restore = remembered()
    try:
        yield
    except BaseException:
        restore()
        raise
