"""Text and YAML that a user brings: read once, the same way everywhere, with errors that name file and line.

``yaml.safe_load`` alone runs no code, but it drops a key that stands twice without a word, takes a few hundred bytes of
nested aliases for a structure of gigabytes, and ends in other errors than its own for odd dates, numbers and nesting.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from w2s_tasks.errors import UserError

LONGEST = 2_000_000
"""Bytes of the largest YAML file that is read."""
MOST_NODES = 100_000
"""Values in a YAML file, an alias counted as what it stands for."""
SHOWN = 200


def shown(value: object, most: int = SHOWN) -> str:
    """A value for an error message: its repr, cut to a readable length."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}... ({len(text):,} characters)"


def one_line(error: BaseException, most: int = SHOWN) -> str:
    """The first line of an error's own message, cut to a readable length; its type where it has none."""
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= most else f"{text[:most]}..."


def read_text(path: Path, *, most: int | None = None) -> str:
    """A UTF-8 text file, with or without a byte order mark.

    Raises:
        UserError: it can't be read, is no UTF-8 text, or is larger than `most` bytes.
    """
    try:
        if most is not None and path.stat().st_size > most:
            raise UserError(f"{path}: {path.stat().st_size:,} bytes; such a file has at most {most:,}. Is it the right one?")
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable ({one_line(error)}).") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(f"{path}:{line}: not readable as UTF-8 text ({error.reason}); save it as UTF-8.") from error


def _whole_characters(text: str, where: str) -> str:
    r"""A text of whole characters: JSON writes one beyond \uffff as two escapes, which YAML leaves as two halves."""
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: {shown(text)} holds half a character, which no file can; write the whole one.") from error


def _size(node: yaml.Node, known: dict[int, int], under: set[int], where: str) -> int:
    """Values below a node, aliases counted as often as they occur; a mapping's keys are checked on the way."""
    if id(node) in known:
        return known[id(node)]
    line = node.start_mark.line + 1
    if id(node) in under:
        raise UserError(f"{where}:{line}: an anchor that contains itself (&name ... *name); write the value out.")
    under.add(id(node))
    size = 1
    if isinstance(node, yaml.ScalarNode):
        node.value = _whole_characters(node.value, f"{where}:{line}")
    elif isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise UserError(
                        f"{where}:{key.start_mark.line + 1}: the key {shown(key.value)} stands twice here; keep one."
                    )
                seen.add(key.value)
            size += _size(key, known, under, where) + _size(value, known, under, where)
    elif isinstance(node, yaml.SequenceNode):
        size += sum(_size(part, known, under, where) for part in node.value)
    under.remove(id(node))
    if size > MOST_NODES:
        raise UserError(f"{where}:{line}: more than {MOST_NODES:,} values, its aliases (*name) written out; use fewer.")
    known[id(node)] = size
    return size


def _place(error: yaml.YAMLError, where: str, text: str) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is not None:
        return f"{where}:{mark.line + 1}"
    position = getattr(error, "position", None)
    return where if position is None else f"{where}:{text.count(chr(10), 0, position) + 1}"


def parse_yaml(text: str, where: str) -> Any:
    """The value of one YAML document of plain values.

    Args:
        text: the document.
        where: its file, or the option that it came with, for messages.

    Raises:
        UserError: not YAML, a key that stands twice, an anchor within itself, aliases that stand for too much.
    """
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _size(node, {}, set(), where)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or one_line(error)
        raise UserError(f"{_place(error, where, text)}: not YAML: {problem}.") from error
    except RecursionError as error:
        raise UserError(f"{where}: not YAML that this reads: brackets or indents are nested too deeply.") from error
    except (ValueError, OverflowError, TypeError, AttributeError, IndexError) as error:
        # A date such as 2026-02-30, or a number that is none, written without quotes.
        raise UserError(f"{where}: not YAML: a value is no date or number ({one_line(error)}); put it in quotes.") from error


def read_yaml(path: Path) -> Any:
    """The value of a YAML file.

    Raises:
        UserError: as `read_text` and `parse_yaml`.
    """
    return parse_yaml(read_text(path, most=LONGEST), str(path))


def parse_json(text: str, where: str) -> Any:
    """The value of a JSON text.

    Raises:
        UserError: not JSON; numbers or nesting that no reader takes.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise UserError(f"{where}: JSON that is nested too deeply.") from error
    except ValueError as error:  # also a whole number of thousands of digits
        raise UserError(f"{where}: not JSON ({one_line(error)}); the file is cut or altered.") from error
