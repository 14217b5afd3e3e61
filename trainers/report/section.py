"""What a section of the report is: one file in `trainers.report.sections`, a class with its keys of report.json.

Its fields are those keys, typed; `form` makes them of the evaluations, `page` and `terminal` show them.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar, cast

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from trainers.registry import Registry
from trainers.report.blocks import Block
from trainers.report.collected import Collected
from trainers.report.entries import Entry
from trainers.report.figures import Drawing
from w2s_tasks.errors import UserError
from w2s_tasks.user_text import one_line

SCHEMA = 2

S = TypeVar("S", bound="Section")


@dataclass(frozen=True, kw_only=True)
class Section(Entry, ABC):
    """A section; its fields stand in report.json under their own names."""

    title: ClassVar[str]
    """Its heading."""
    link: ClassVar[str] = ""
    """A shorter one for the page's list of sections."""
    place: ClassVar[int]
    """Sections are read by it, in rising order."""

    @classmethod
    @abstractmethod
    def form(cls, collected: Collected) -> Self:
        """Its numbers."""

    @classmethod
    def of(cls, collected: Collected) -> Self:
        """Its numbers, formed once; for sections that stand on others."""
        if cls not in collected.formed:
            collected.formed[cls] = cls.form(collected)
        return cast(Self, collected.formed[cls])

    def heading(self, report: Report) -> str:
        """Its heading over the report's page, where more is known."""
        return self.title

    def page(self, report: Report) -> Iterator[Block]:
        """What report.html shows; without blocks the section is left out."""
        yield from ()

    def terminal(self, report: Report) -> Iterator[Block]:
        """What `w2s run` and `w2s report` print."""
        yield from ()

    def figures(self, report: Report) -> Mapping[str, Drawing | None]:
        """Its figures by the names that `Results.plot` has them under; None where there is nothing to draw."""
        return {}


SECTIONS: Registry[type[Section]] = Registry("section")
"""By the classes' names."""
section = SECTIONS.entry
"""Registers a section; a decorator of its class."""


def in_order() -> list[type[Section]]:
    """The sections as they are read."""
    return sorted(SECTIONS.values(), key=lambda section: section.place)


@dataclass(frozen=True, kw_only=True)
class Head(Entry):
    """What the report is of, and where its stages are."""

    schema: int
    experiment: str
    task: str
    choices: list[str]
    config: dict[str, Any]
    command: str
    """How to run it again."""
    stages_folder: str
    """Seen from the report; the cells of a sweep share theirs."""
    stages: dict[str, str]
    """Each step's folder there."""


@dataclass(frozen=True)
class Report:
    """All of report.json: its head, then every section's keys."""

    head: Head
    sections: dict[type[Section], Section]

    def of(self, section: type[S]) -> S:
        """A section's numbers."""
        return cast(S, self.sections[section])

    def json(self) -> dict[str, Any]:
        """As report.json has it."""
        parts = (self.head, *self.sections.values())
        return {key: to_jsonable_python(value) for part in parts for key, value in asdict(part).items()}

    @classmethod
    def read(cls, data: Any, file: Path) -> Report:
        """Check what a report.json holds against the sections' types.

        Args:
            data: what JSON gave.
            file: whose that is, for the error.

        Raises:
            UserError: it does not fit.
        """
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            raise UserError(f"{file}: not a report of schema {SCHEMA}. Run w2s run again; finished stages are found again.")
        rest = dict(data)
        try:
            parts: tuple[Any, ...] = (Head, *in_order())
            head, *sections = (_checked(part, rest) for part in parts)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise UserError(
                f"{file}: this report is cut or altered, or of another version ({place}: {first['msg']}). w2s run writes it "
                "again."
            ) from error
        if rest:
            raise UserError(
                f"{file}: keys of no section: {', '.join(rest)}. Was it written with a plug-in that is not here?"
            )
        return cls(head, {type(section): section for section in sections})


def read_parts(file: Path, parts: Sequence[type[Any]]) -> list[Any]:
    """Some parts of a report.json, whatever version the others are of.

    Args:
        file: the report.
        parts: `Head`, or sections.

    Raises:
        UserError: it can't be read, or has not these parts.
    """
    try:
        rest = json.loads(file.read_text(encoding="utf-8"))
        return [_checked(part, rest) for part in parts]
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{file}: no report of this version ({one_line(error)}). w2s run writes it again.") from error


def _checked(part: Any, rest: dict[str, Any]) -> Any:
    """Take a part's own keys out of `rest`."""
    own = {field.name: rest.pop(field.name) for field in fields(part) if field.name in rest}
    return _adapter(part).validate_python(own)


@cache
def _adapter(part: Hashable) -> TypeAdapter[Any]:
    return TypeAdapter(cast(Any, part))


def json_schema() -> dict[str, Any]:
    """The JSON schema of report.json."""
    parts: tuple[Any, ...] = (Head, *in_order())
    schemas, shared = TypeAdapter.json_schemas([(part, "validation", _adapter(part)) for part in parts])
    own = [_resolved(schemas[part, "validation"], shared) for part in parts]
    return {
        "title": "Report",
        "description": "All of report.json.",
        "type": "object",
        "properties": {key: value for schema in own for key, value in schema["properties"].items()},
        "required": [key for schema in own for key in schema["required"]],
        "additionalProperties": False,
        "$defs": {name: found for name, found in shared["$defs"].items() if name not in {p.__name__ for p in parts}},
    }


def _resolved(schema: Any, shared: Any) -> Any:
    return shared["$defs"][schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
