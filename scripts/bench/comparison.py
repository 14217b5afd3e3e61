"""Two sides that take turns, and the line of JSON that tells what came out."""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import typer

from w2s_tasks.errors import UserError

T = TypeVar("T")
U = TypeVar("U")


def say(text: str) -> None:
    """One line for the person who waits."""
    print(text, file=sys.stderr, flush=True)


def alternate(ours: Callable[[int], T], peer: Callable[[int], U], repeats: int) -> tuple[list[T], list[U]]:
    """Run ours, peer, ours, peer, ...: slow changes of the machine's speed meet both. Each gets the number of its run."""
    mine: list[T] = []
    theirs: list[U] = []
    for i in range(repeats):
        mine.append(ours(i))
        theirs.append(peer(i))
    return mine, theirs


@dataclass(frozen=True)
class Comparison:
    """The result of a benchmark; times are medians over the repeats."""

    bench: str
    ours_runs_s: Sequence[float]
    peer_runs_s: Sequence[float]
    ours_tokens: int
    peer_tokens: int
    max_abs_diff: float
    same_predictions: bool
    ours_peak_mb: float
    peer_peak_mb: float
    extra: dict[str, Any] = field(default_factory=dict)

    def json(self) -> str:
        """One line: the keys that every benchmark has, then its own."""
        values = asdict(self)
        ours_s, peer_s = statistics.median(self.ours_runs_s), statistics.median(self.peer_runs_s)
        first = {"bench": self.bench, "ours_s": ours_s, "peer_s": peer_s, "ratio": peer_s / ours_s}
        middle = ("ours_tokens", "peer_tokens", "max_abs_diff", "same_predictions", "ours_peak_mb", "peer_peak_mb")
        runs = {"ours_runs_s": list(self.ours_runs_s), "peer_runs_s": list(self.peer_runs_s)}
        line = {**first, **{key: values[key] for key in middle}, **self.extra, **runs}
        return json.dumps(rounded(line))


def rounded(value: Any, digits: int = 5) -> Any:
    """A value for JSON: numbers with `digits` significant digits, what is not finite as null."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: rounded(item, digits) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item, digits) for item in value]
    return value


def run(command: Callable[..., None], argv: Sequence[str] | None = None) -> None:
    """Run a benchmark's command line; a user's mistake is one line on standard error and exit code 2."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command()(command)
    try:
        app(args=None if argv is None else list(argv), standalone_mode=argv is None)
    except UserError as error:
        say(f"error: {error}")
        sys.exit(2)
