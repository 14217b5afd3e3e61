"""What the benchmarks' options mean."""

from __future__ import annotations

import os

from w2s_tasks.errors import UserError


def numbers(text: str, option: str) -> list[int]:
    """Positive whole numbers of an option, in order.

    Raises:
        UserError: something else.
    """
    try:
        found = sorted({int(part) for part in text.split(",")})
    except ValueError:
        found = []
    if not found or found[0] < 1:
        raise UserError(f"{option} {text}: write positive whole numbers, e.g. {option} 1,4,8.")
    return found


def model_path(model: str) -> str:
    """A model's folder or hub id; fetched here, before two processes ask for it."""
    from w2s_tasks.models.ref import resolve

    return resolve(model)


def default_task() -> str:
    """SST-2, or the movie reviews that install from a package index where there is no folder of data."""
    return "w2s_sst2" if os.environ.get("W2S_DATA") else "w2s_movie_reviews"
