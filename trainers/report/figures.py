"""Figures of the report: inline SVG without scripts and network in the page, matplotlib's own figures in a notebook.

matplotlib comes with the extra ``[report]``; without it the page has its tables only and says so. Figures are narrow, so
that their text is readable on a phone. Each section draws its own; here is what they share.
"""

from __future__ import annotations

import functools
import importlib.util
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import escape

from trainers.labels.arms import ARMS, entry_of
from trainers.report.entries import OfArm
from trainers.report.text import Named
from w2s_tasks.errors import UserError

if TYPE_CHECKING:
    import matplotlib.figure

WIDTH = 5.0  # inches

FURTHER = ("#b22222", "#ff9d5c", "#8c510a", "#e7298a", "#c7a500", "#7570b3", "#1f9e89")
MARKERS = "osD^vP*X"
NEUTRAL = "#808080"
STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "svg.hashsalt": "w2s",
    "text.parse_math": False,
}
"""Text as text scales with the reader's font, and is no formula; the page's currentColor follows light and dark."""


def colour_of(group: Named, arms: Sequence[OfArm]) -> str:
    """An arm's colour; further methods of the student get their own, and few_shot(4) that of few_shot.

    Args:
        group: arm and method.
        arms: all of the report.
    """
    name = entry_of(group[0])
    methods = [arm.method for arm in arms if arm.arm == name]
    place = methods.index(group[1]) if group[1] in methods else 0
    return (ARMS[name].colour if name in ARMS else NEUTRAL) if place == 0 else FURTHER[(place - 1) % len(FURTHER)]


def marker_of(group: Named, arms: Sequence[OfArm]) -> str:
    """A marker of its own for each arm and method, so that colour is never the only sign."""
    groups = [arm.group for arm in arms]
    return MARKERS[(groups.index(group) if group in groups else 0) % len(MARKERS)]


def installed() -> bool:
    """Whether matplotlib is here."""
    return importlib.util.find_spec("matplotlib") is not None


@dataclass(frozen=True)
class Drawing:
    """A figure that is not drawn yet: the report's page takes it as SVG, a notebook as a figure of matplotlib's."""

    draw: Callable[[Any], None]
    """Fills a figure."""
    height: float
    """Inches."""
    about: str
    """What it shows, for those who can't see it."""
    width: float = WIDTH
    """Inches."""

    def figure(self) -> matplotlib.figure.Figure:
        """As a figure, which a notebook shows and `savefig` writes.

        Raises:
            UserError: matplotlib is not here.
        """
        if not installed():
            raise UserError("figures need matplotlib: pip install 'w2s-harness[report]'.")
        import matplotlib as mpl

        with mpl.rc_context(STYLE):
            figure = self._drawn()
            figure.draw_without_rendering()  # ticks are made here: their text, too, is never read as a formula
        # What Jupyter asks for: pyplot, which else shows figures there, does not know this one, so no cell shows it twice.
        vars(figure)["_repr_png_"] = functools.partial(_png, figure)
        return figure

    def svg(self) -> str | None:
        """As SVG text; None without matplotlib."""
        if not installed():
            return None
        import matplotlib as mpl

        with mpl.rc_context(STYLE):
            figure = self._drawn()
            figure.patch.set_alpha(0)
            buffer = io.StringIO()
            figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
        text = buffer.getvalue()
        text = text[text.index("<svg") :]
        text = re.sub(r'(<svg [^>]*?) width="[^"]*" height="[^"]*"', r"\1", text, count=1)
        text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
        text = text.replace("#000000", "currentColor")
        # matplotlib leaves glyph text without a colour of its own, which would be black on a dark page.
        return text.replace("<svg ", f'<svg role="img" aria-label="{escape(self.about)}" fill="currentColor" ', 1)

    def _drawn(self) -> matplotlib.figure.Figure:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(self.width, self.height), layout="constrained")
        self.draw(figure)
        return figure


def _png(figure: matplotlib.figure.Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


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
