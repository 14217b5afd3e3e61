"""A figure that a notebook shows by itself, whether or not pyplot was ever imported there. Needs matplotlib."""

from __future__ import annotations

import io

from matplotlib.figure import Figure


class NotebookFigure(Figure):
    """matplotlib's figure, with the picture that Jupyter asks for: pyplot does not know it, so no cell shows it twice."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()
