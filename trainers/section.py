"""What the sections of an experiment file have in common."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from w2s_tasks.errors import nearest
from w2s_tasks.keys import remote_code_in, secret_in

SECRET_PLACES = ("api_key_env", "base_url")
"""Keys where a user may put a secret by mistake: their values are not repeated in an error."""


def no_secrets(value: dict[str, Any]) -> dict[str, Any]:
    """Refuse arguments that hold a key, by their name or by their look, or that ask for a model's own code.

    Raises:
        ValueError: names the argument, never its value.
    """
    if found := secret_in(value):
        raise ValueError(f"'{found}' looks like a secret: keys come from the environment only, never from a file")
    if remote_code_in(value):
        raise ValueError("trust_remote_code is off in this suite: a model's own code is never run")
    return value


class Section(BaseModel):
    """Unknown keys are errors; values are fixed once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Settings = Section
"""As plug-ins know it: to them a section is a part of the report."""
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
