"""Which fields of the settings a piece of work looks at: a field that nothing reads is a setting that is ignored."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from trainers.section import Section

READERS = (
    "trainers.config.experiment",
    "trainers.section",
    "trainers.config.method_args",
    "trainers.training.settings",
    "trainers.fit",
    "trainers.labels.splits",
    "pydantic",
)
"""Where settings are checked and copied, which is no use of them."""


@contextlib.contextmanager
def reads() -> Iterator[set[tuple[str, str]]]:
    """Collect (section, field) of everything that is read outside of the schema itself."""
    found: set[tuple[str, str]] = set()
    plain = Section.__getattribute__

    def watched(self: Section, name: str) -> Any:
        if name in type(self).__pydantic_fields__ and not _in_schema(sys._getframe(1)):
            found.add((type(self).__name__, name))
        return plain(self, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Section, "__getattribute__", watched)
        yield found


def _in_schema(frame: Any) -> bool:
    """Whether a field is read by a validator; a property of a section is a use, made for the code that asks it."""
    name = frame.f_globals.get("__name__", "")
    place, _, function = frame.f_code.co_qualname.rpartition(".")
    return name.startswith(READERS) and bool(place) and function.startswith("_")
