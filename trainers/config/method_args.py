"""Settings of the student's methods, as they stand in an experiment file."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

from pydantic import PlainValidator, PydanticUserError, SerializeAsAny, ValidationError, create_model

from trainers.labels.operations import METHOD_OPS
from trainers.registry import place_of
from trainers.section import Section
from trainers.steps.teachers import MODEL_OPS
from trainers.training.losses import LOSSES
from w2s_tasks.errors import UserError
from w2s_tasks.user_text import one_line


class MethodArgs(Section):
    """Settings of the parts of the methods; its class has a section for each part that has settings, see `known`."""

    def section(self, part: str) -> Any:
        """The section of one part; None where it has none."""
        return getattr(self, part, None)

    def of(self, part: str) -> dict[str, Any]:
        """The settings of one part, empty where it has none."""
        section = self.section(part)
        return section.model_dump() if section else {}

    def __reduce__(self) -> tuple[Any, ...]:
        """For other processes: the class is made there again, of what is registered there."""
        return read, (self.model_dump(exclude_unset=True),)


@functools.cache
def settings_of(function: Callable[..., Any]) -> type[Section] | None:
    """The section of a loss or a label operation: its keyword arguments with their types, bounds and defaults.

    Raises:
        UserError: one has no type or no default, or a type that can't be read from a file.
    """
    keywords = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    if not keywords:
        return None
    try:
        hints = get_type_hints(function, include_extras=True)
        for argument in keywords:
            if argument.name not in hints or argument.default is argument.empty:
                raise TypeError(f"the setting {argument.name} needs a type and a default: `*, {argument.name}: float = 0.5`")
        fields: dict[str, Any] = {p.name: (hints[p.name], p.default) for p in keywords}
        section = create_model(f"{function.__name__}_settings", __base__=Section, __doc__=function.__doc__, **fields)
        section.model_validate(section().model_dump())
    except (TypeError, NameError, PydanticUserError) as error:
        raise UserError(f"{place_of(function)}: settings of {function.__name__}: {one_line(error)}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        told = f"{'.'.join(map(str, first['loc']))}: its default does not fit its type: {first['msg']}"
        raise UserError(f"{place_of(function)}: settings of {function.__name__}: {told}.") from error
    return section


def known() -> type[MethodArgs]:
    """The class with a section for every loss and operation that is registered by now and has settings."""
    return _class((*(LOSSES | METHOD_OPS).items(), *((name, op.settings) for name, op in MODEL_OPS.items())))


@functools.lru_cache(maxsize=1)
def _class(parts: tuple[tuple[str, Callable[..., Any] | type[Section]], ...]) -> type[MethodArgs]:
    sections = {name: part if isinstance(part, type) else settings_of(part) for name, part in parts}
    fields: dict[str, Any] = {name: (section, section()) for name, section in sections.items() if section}
    return create_model("MethodArgs", __base__=MethodArgs, __doc__="Settings of the parts of the methods.", **fields)


def read(value: Any) -> MethodArgs:
    """Settings as a file has them, or as they were read before, checked against what is registered by now."""
    if isinstance(value, MethodArgs):
        value = value.model_dump(exclude_unset=True)
    return known().model_validate(value)


AnyMethodArgs = Annotated[SerializeAsAny[MethodArgs], PlainValidator(read)]
