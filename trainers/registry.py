"""Registries: names to what they stand for, each entry made where it is defined."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Registry(dict[str, T]):
    """Entries by name. A name looked up here is not followed by `w2s_tasks.code_scope`: who uses an entry names it."""

    def entry(self, function: T) -> T:
        """Register a function under its own name; a decorator."""
        return self.named(function.__name__)(function)  # type: ignore[attr-defined]

    def named(self, name: str) -> Callable[[T], T]:
        """Register a function under another name; gives a decorator."""

        def register(function: T) -> T:
            self[name] = function
            return function

        return register
