"""Figures of the report as inline SVG: no scripts, no network, text that stays text.

matplotlib comes with the extra ``[report]``; without it the page has its tables only and says so. Figures are narrow, so
that their text is readable on a phone. Each section draws its own; here is what they share.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

from trainers.labels.arms import ARMS
from trainers.report.entries import OfArm
from trainers.report.text import Named

WIDTH = 5.0  # inches

FURTHER = ("#b22222", "#ff9d5c", "#8c510a", "#e7298a", "#c7a500", "#7570b3", "#1f9e89")
MARKERS = "osD^vP*X"
NEUTRAL = "#808080"


def colour_of(group: Named, arms: Sequence[OfArm]) -> str:
    """An arm's colour; further methods of the student get their own, and few_shot(4) that of few_shot.

    Args:
        group: arm and method.
        arms: all of the report.
    """
    name = group[0].partition("(")[0]
    methods = [arm.method for arm in arms if arm.arm == name]
    place = methods.index(group[1]) if group[1] in methods else 0
    return (ARMS[name].colour if name in ARMS else NEUTRAL) if place == 0 else FURTHER[(place - 1) % len(FURTHER)]


def marker_of(group: Named, arms: Sequence[OfArm]) -> str:
    """A marker of its own for each arm and method, so that colour is never the only sign."""
    groups = [arm.group for arm in arms]
    return MARKERS[(groups.index(group) if group in groups else 0) % len(MARKERS)]


def svg(draw: Callable[[Any], None], height: float, about: str, width: float = WIDTH) -> str | None:
    """Draw on a figure of this size (inches) and return it as SVG text; None without matplotlib.

    Args:
        draw: fills the figure.
        height: inches.
        about: what it shows, for those who can't see it.
        width: inches.
    """
    try:
        import matplotlib as mpl
    except ImportError:
        return None
    mpl.use("svg")
    from markupsafe import escape
    from matplotlib.figure import Figure

    # Text as text scales with the reader's font; currentColor follows light and dark.
    style = {
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 10,
        "svg.hashsalt": "w2s",
        "text.parse_math": False,
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.patch.set_alpha(0)
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'(<svg [^>]*?) width="[^"]*" height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = text.replace("#000000", "currentColor")
    # matplotlib leaves glyph text without a colour of its own, which would be black on a dark page.
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(about)}" fill="currentColor" ', 1)


def clean(axes: Any) -> None:
    """No frame, no background."""
    axes.patch.set_alpha(0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def legend_above(figure: Any, axes: Any, columns: int = 2) -> None:
    """One legend for the whole figure, above it, where it covers nothing."""
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(unique.values(), unique, loc="outside upper left", ncols=columns, frameon=False, fontsize=9)
