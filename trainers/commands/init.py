"""`w2s init`: a folder with a method to begin from, its test, an experiment that compares it, and a README."""

from __future__ import annotations

import importlib.util
import keyword
import re
from importlib.resources import files
from pathlib import Path

from trainers.config.methods import parts
from trainers.labels.arms import ARMS
from w2s_tasks.errors import UserError
from w2s_tasks.paths import check_place
from w2s_tasks.user_text import shown

NAME = "my_method"
"""What the templates call the method."""


def begin(folder: Path) -> list[Path]:
    """Write the folder; what it is called, the method is called.

    Args:
        folder: which must not exist.

    Returns:
        The files.

    Raises:
        UserError: a name that no method can have, or a folder that is there.
    """
    name = folder.name
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise UserError(f"{shown(name)}: the method is called like its folder: small letters, digits and _, e.g. {NAME}.")
    if name in {*parts(), *ARMS}:
        raise UserError(f"'{name}' is a method or an arm already; choose another name.")
    if importlib.util.find_spec(name) is not None:
        raise UserError(f"Python has a module '{name}' already, which a plug-in would hide; choose another name.")
    check_place(folder, "w2s init")
    if folder.exists():
        raise UserError(f"{folder} exists; nothing was written. Choose another name.")
    folder.mkdir(parents=True)
    written = []
    for template in sorted(files("trainers").joinpath("templates/new_plugin").iterdir(), key=lambda file: file.name):
        path = folder / template.name.removesuffix(".in").replace(NAME, name)
        path.write_text(template.read_text(encoding="utf-8").replace(NAME, name), encoding="utf-8")
        written.append(path)
    return written
