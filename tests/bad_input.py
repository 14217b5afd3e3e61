"""What the tests of bad input have in common: one clear error that names file, place and remedy, and nothing left behind."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from w2s_tasks.errors import UserError

LONGEST_MESSAGE = 4000
"""An error must not repeat a file of 10 MB."""


def one_clear_error(call: Callable[[], Any], message: str, *, names: str = "", untouched: Path | None = None) -> str:
    """Run what must fail as a user's mistake, and check the error.

    Args:
        call: what the command calls.
        message: a pattern that the message holds: what is wrong and where, or what to do.
        names: what the message has to name, the file usually.
        untouched: a folder in which no file may appear or vanish.
    """
    before = sorted(untouched.rglob("*")) if untouched else []
    with pytest.raises(UserError) as caught:
        call()
    text = str(caught.value)
    assert re.search(message, text, re.IGNORECASE), text[:1000]
    assert names in text, text[:1000]
    assert len(text) < LONGEST_MESSAGE
    assert "Traceback" not in text
    assert (sorted(untouched.rglob("*")) if untouched else []) == before
    return text
