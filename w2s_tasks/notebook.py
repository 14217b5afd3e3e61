"""Progress in a notebook: Jupyter is no terminal, but its cells understand a line that is written over."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


def inside() -> bool:
    """Whether this is a notebook's kernel."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


def bar(*, disable: bool | None = None, **settings: Any) -> tqdm[Any]:
    """tqdm's bar: one line that goes when it is done, on a terminal or in a notebook's cell; elsewhere nothing.

    Args:
        disable: True for no bar.
        settings: tqdm's.
    """
    if inside():  # standard error is red there, and as a widget the bar would need ipywidgets
        return tqdm(disable=bool(disable), file=sys.stdout, leave=False, mininterval=0.5, ascii=True, ncols=100, **settings)
    return tqdm(disable=disable or None, leave=False, **settings)
