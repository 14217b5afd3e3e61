"""Numbers and names as the report's text has them."""

from __future__ import annotations

from trainers.report.entries import Interval

Named = tuple[str, str | None]
"""An arm and its method."""


def group_title(group: Named) -> str:
    """An arm's name over all its seeds, with the method where it is not plain cross-entropy."""
    arm, method = group
    return arm if method in (None, "xent") else f"{arm}, {method}"


def percent(value: float | None, error: float | None = None) -> str:
    """A share as a percentage, with its standard error."""
    if value is None:
        return "–"
    return f"{100 * value:.1f}" + (f"±{100 * error:.1f}" if error is not None else "")


def percents(interval: Interval) -> str:
    """An interval of a share."""
    return f"[{percent(interval[0])}, {percent(interval[1])}]"


def points(value: float | None) -> str:
    """A difference of shares in points."""
    return "–" if value is None else f"{100 * value:+.1f}"


def points_interval(low: float | None, high: float | None) -> str:
    """Its interval."""
    return f"[{points(low)}, {points(high)}]"


def fraction(value: float | None) -> str:
    """A number of two digits; no minus before a zero."""
    return "–" if value is None else f"{round(value, 2) + 0.0:.2f}"


def fractions(interval: Interval | None) -> str:
    """An interval of a ratio, whose ends may be unbounded."""
    if interval is None:
        return "–"
    low, high = ("unbounded" if x is None else f"{x:.2f}" for x in interval)
    return f"[{low}, {high}]"


def on_split(split: str, mode: str) -> str:
    """A split's name, with how it was answered where text was generated."""
    return split + (", text" if mode == "generated" else "")
