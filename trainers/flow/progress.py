"""One line a step, on a terminal or in a notebook: number, what it does, how long it took, or that it was there already."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape

from trainers.store import processes
from w2s_tasks import notebook


class Shown:
    """Takes a step's outcome for its line."""

    def __init__(self) -> None:
        self.text = ""

    def done(self, seconds: float, reused: bool) -> None:
        """Say how the step ended."""
        self.text = f"[dim]there already ({seconds:.1f} s when it was made)[/dim]" if reused else f"{seconds:.1f} s"


class Progress:
    """Writes to standard error, so that standard output holds only results; in a notebook into the cell."""

    def __init__(self, quiet: bool = False, *, new_only: bool = False) -> None:
        """Set up.

        Args:
            quiet: write nothing.
            new_only: write no line for a step that was there already.
        """
        self.new_only, self.quiet = new_only, quiet
        quiet = quiet or not processes.is_main()
        if notebook.inside():  # as text: rich's own way there writes no line over another
            self.console = Console(
                file=sys.stdout, quiet=quiet, highlight=False, force_jupyter=False, force_terminal=True, width=110
            )
        else:
            self.console = Console(stderr=True, quiet=quiet, highlight=False)
        self.start = time.monotonic()

    @contextmanager
    def step(self, number: int, total: int, title: str) -> Iterator[Shown]:
        """A step is under way; its line is completed when it ends."""
        head = f"\\[{number:>{len(str(total))}}/{total}] {title}"
        self.console.print(f"{head} ...", end="\r" if self.console.is_terminal else "\n")
        shown = Shown()
        yield shown
        self.console.print(f"{head:<52} {shown.text}")

    def begun(self, title: str, node: str) -> None:
        """A step has begun on some machine."""
        self.console.print(f"[dim]        {escape(title)} on {node} ...[/dim]")

    def ended(self, number: int, title: str, outcome: str) -> None:
        """A step has ended, the so-manieth."""
        self.console.print(f"\\[{number:>4}] {escape(title):<44} {escape(outcome)}")

    def note(self, text: str) -> None:
        """A line of its own."""
        self.console.print(text)
