"""What the sections of an experiment file have in common."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from w2s_tasks.errors import nearest


class Section(BaseModel):
    """Unknown keys are errors; values are fixed once read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


AnySection = TypeVar("AnySection", bound=Section)


def changed(section: AnySection, changes: dict[str, Any], where: str) -> AnySection:
    """A section with some keys changed, checked as if it stood in the file.

    Raises:
        ValueError: an unknown key or a value that does not fit; `where` names the place.
    """
    try:
        return type(section).model_validate(section.model_dump() | changes)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        hint = nearest(key, type(section).model_fields) if first["type"] == "extra_forbidden" else ""
        raise ValueError(f"{where}: {key}: {first['msg']}.{hint}") from error
