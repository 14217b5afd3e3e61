"""Settings of the student's methods, as they stand in an experiment file."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, get_type_hints

from pydantic import create_model

from trainers.labels.operations import METHOD_OPS
from trainers.section import Section
from trainers.steps.teachers import MODEL_OPS
from trainers.training.losses import LOSSES


class _Sections(Section):
    """Settings of the parts of the methods."""

    def section(self, part: str) -> Any:
        """The section of one part; None where it has none."""
        return getattr(self, part, None)

    def of(self, part: str) -> dict[str, Any]:
        """The settings of one part, empty where it has none."""
        section = self.section(part)
        return section.model_dump() if section else {}


def settings_of(function: Callable[..., Any]) -> type[Section] | None:
    """The section of a loss or a label operation: its keyword arguments with their types, bounds and defaults."""
    hints = get_type_hints(function, include_extras=True)
    keywords = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    if not keywords:
        return None
    fields: dict[str, Any] = {p.name: (hints[p.name], p.default) for p in keywords}
    return create_model(f"{function.__name__}_settings", __base__=Section, __doc__=function.__doc__, **fields)


def _with_all() -> type[_Sections]:
    """The section `method_args`, with a section for every loss and operation that has settings."""
    sections = {name: settings_of(function) for name, function in (LOSSES | METHOD_OPS).items()}
    sections |= {name: op.settings for name, op in MODEL_OPS.items()}
    fields: dict[str, Any] = {name: (section, section()) for name, section in sections.items() if section}
    return create_model("MethodArgs", __base__=_Sections, __doc__="Settings of the parts of the methods.", **fields)


if TYPE_CHECKING:
    MethodArgs = _Sections
else:
    MethodArgs = _with_all()
