"""Files and folders that are named after what users name: refused before any work, or shortened, never lost after it.

A file system counts bytes, not characters, and a name of 255 bytes at most; lm_eval makes a folder of a model's whole path
and a file name of a task's, and goes on without a word where that fails.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from w2s_tasks.errors import UserError
from w2s_tasks.user_text import shown

LONGEST_NAME = 200
"""Bytes of a name that is made here: what is put before and behind it (``samples_``, a time) has room in 255."""
LONGEST_PATH = 4095
"""Bytes of a whole path, without the byte that ends it."""
ROOM = 1024
"""Bytes that a run or an evaluation writes below the folder that a user names: stages, models, checkpoints."""
NO_NAME = re.compile(r"[\x00-\x1f\x7f/\\:\ud800-\udfff]")
"""Characters that can't stand in a file's name, or not on every system."""


def size(text: str) -> int:
    """Bytes of a name or path on the disk."""
    return len(text.encode(errors="surrogatepass"))


def cut(text: str, most: int) -> str:
    """The beginning of a text, in at most `most` bytes of whole characters."""
    return text.encode(errors="surrogatepass")[:most].decode(errors="ignore")


def file_name(text: str, made_of: str | None = None, most: int = LONGEST_NAME) -> str:
    """A name for a file or folder: the text itself where that can be, else shortened and made plain, with a hash.

    Args:
        text: what tells a reader what it is.
        made_of: what the hash tells apart; `text` itself by default.
        most: bytes of the name.
    """
    plain = NO_NAME.sub("_", text)
    if plain == text and size(text) <= most:
        return text
    digest = hashlib.sha256((text if made_of is None else made_of).encode(errors="surrogatepass")).hexdigest()[:12]
    return f"{cut(plain, most - len(digest) - 1)}-{digest}"


def _longest_name(folder: Path) -> int:
    try:
        return os.pathconf(folder, "PC_NAME_MAX")
    except (AttributeError, OSError, ValueError):  # not on every system
        return 255


def check_place(path: Path, where: str, *, behind: int = 0, below: int = 0) -> None:
    """Refuse, before any work, a place where its results could not be written.

    Args:
        path: the file or folder that will be made; what is missing above it as well.
        where: the option or key that names it.
        behind: bytes that are put before and behind its name.
        below: bytes of the longest path that is written in it.

    Raises:
        UserError: a name or path that is too long, a character that no name holds, a file where a folder has to be, or no
            permission to write.
    """
    if "\0" in str(path):
        raise UserError(f"{where}: {shown(str(path))} holds a NUL character, which no file's name can.")
    whole = path.absolute()
    total = size(str(whole)) + behind + (below + 1 if below else 0)
    if total > LONGEST_PATH:
        raise UserError(
            f"{where}: {shown(str(path))} is too long: with what is written there a path has {total:,} bytes, and at most "
            f"{LONGEST_PATH:,} are possible. Choose a shorter one."
        )
    there = whole
    while not _is_there(there):
        there = there.parent
    most = _longest_name(there)
    for name in whole.parts:
        length = size(name) + (behind if name == whole.name else 0)
        if length > most:
            raise UserError(
                f"{where}: the name {shown(name)} is too long: {length:,} bytes with what is put behind it, at most {most} "
                "are possible (a letter that is not English has two or more). Choose a shorter one."
            )
    if there != whole and not there.is_dir():
        raise UserError(f"{where}: {shown(str(path))} can't be written: {there} is a file. Choose another place.")
    if not os.access(there, os.W_OK | (os.X_OK if there.is_dir() else 0)):
        raise UserError(
            f"{where}: no permission to write {shown(str(path))}, or a read-only disk ({there}). Choose another place."
        )


def _is_there(path: Path) -> bool:
    try:
        return path.exists() or path == path.parent
    except OSError:  # a name that is too long is nowhere
        return False


def check_folder(path: Path, where: str, *, below: int = ROOM) -> None:
    """As `check_place`, for a folder.

    Raises:
        UserError: also where a file of that name stands there.
    """
    check_place(path, where, below=below)
    if path.exists() and not path.is_dir():
        raise UserError(f"{where}: {path} can't be written: it is a file, and a folder is expected. Choose another name.")
