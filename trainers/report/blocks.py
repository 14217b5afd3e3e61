"""What a section shows: headings, notes, tables, figures, as values that are written as HTML or printed on a terminal."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape
from rich import box
from rich.console import Console
from rich.table import Table as Printed

from trainers.report.figures import Drawing


@dataclass(frozen=True)
class Heading:
    """A heading below the section's own."""

    text: str


@dataclass(frozen=True)
class Note:
    """A paragraph."""

    text: str
    style: str = "note"
    """CSS class: note, or verdict for what nobody should miss."""


@dataclass(frozen=True)
class Code:
    """Text as it is: a command, a configuration."""

    text: str


@dataclass(frozen=True)
class Cell:
    """A table's cell: its number, and what stands smaller beside it (in a line of its own behind a line end)."""

    text: str
    small: str = ""


Row = Sequence[str | Cell]


@dataclass(frozen=True)
class Table:
    """A table; its first column, and those named in `left`, are text."""

    columns: Sequence[str]
    """Heads; all empty where it has none."""
    rows: Sequence[Row]
    title: str = ""
    """On the terminal."""
    left: Collection[str] = ()
    style: str = ""
    """CSS classes: wrap (heads may break), stack (small parts below), prose (text may break), facts (no heads)."""
    cut: int | None = None
    """Row before which a line is drawn on the terminal."""


@dataclass(frozen=True)
class Figure:
    """A figure, or None where there is nothing to draw, with a caption."""

    drawing: Drawing | None
    caption: str = ""


@dataclass(frozen=True)
class Quote:
    """A row's own words, with a line below them."""

    text: str
    below: str


@dataclass(frozen=True)
class Aside:
    """Blocks that open on request."""

    summary: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Beside:
    """Small tables side by side."""

    tables: Sequence[Table]


Block = Heading | Note | Code | Table | Figure | Quote | Aside | Beside


def html(blocks: Iterable[Block]) -> Markup:
    """Blocks as HTML; everything but the figures' SVG is escaped."""
    return Markup("\n").join(_html(block) for block in blocks)


def _html(block: Block) -> Markup:
    match block:
        case Heading(text):
            return Markup("<h3>{}</h3>").format(text)
        case Note(text, style):
            return Markup('<p class="{}">{}</p>').format(style, text)
        case Code(text):
            return Markup("<pre>{}</pre>").format(text)
        case Quote(text, below):
            return Markup('<div class="quote">{}<br><small>{}</small></div>').format(text, below)
        case Figure(drawing, caption):
            svg = drawing.svg() if drawing else None
            if svg is None:
                return Markup()
            # The SVG is our own, and matplotlib escapes the text in it.
            told = Markup("<figcaption>{}</figcaption>").format(caption) if caption else ""
            return Markup("<figure>{}{}</figure>").format(Markup(svg), told)  # noqa: S704
        case Aside(summary, blocks):
            return Markup("<details><summary>{}</summary>{}</details>").format(summary, html(blocks))
        case Beside(tables):
            return Markup('<div class="side">{}</div>').format(Markup().join(_table(table) for table in tables))
        case Table():
            return Markup('<div class="scroll">{}</div>').format(_table(block))


def _table(table: Table) -> Markup:
    text = [name in table.left for name in table.columns]
    heads = [
        Markup("<th{}>{}</th>").format(_of_text(left), Markup("_<wbr>").join(map(escape, name.split("_"))))
        for name, left in zip(table.columns, text, strict=True)
    ]
    head = Markup("<thead><tr>{}</tr></thead>").format(Markup().join(heads)) if any(table.columns) else ""
    rows = [
        Markup("<tr>{}</tr>").format(
            Markup().join(Markup("<td{}>{}</td>").format(_of_text(t), _cell(c)) for c, t in zip(row, text, strict=True))
        )
        for row in table.rows
    ]
    kind = Markup(' class="{}"').format(table.style) if table.style else ""
    return Markup("<table{}>{}<tbody>{}</tbody></table>").format(kind, head, Markup("\n").join(rows))


def _of_text(left: bool) -> Markup:
    return Markup(' class="left"') if left else Markup()


def _cell(cell: str | Cell) -> Markup:
    if isinstance(cell, str):
        return escape(cell)
    lines = [Markup("<small>{}</small>").format(line) if line else "" for line in cell.small.split("\n")]
    return Markup("{} {}").format(cell.text, Markup("<br>").join(lines)) if cell.small else escape(cell.text)


def standard_output() -> Console:
    """A console that does not squeeze tables to 80 columns where nobody's terminal says so."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=140)


def show(blocks: Iterable[Block], console: Console) -> None:
    """Print notes and tables; a page has the rest."""
    for block in blocks:
        if isinstance(block, Table):
            console.print()
            console.print(_printed(block))
        elif isinstance(block, Note):
            console.print(block.text, soft_wrap=True, markup=False)


def _printed(table: Table) -> Printed:
    printed = Printed(title=table.title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for place, name in enumerate(table.columns):
        justify: Any = "left" if name in table.left or place == 0 else "right"
        printed.add_column(name, justify=justify)
    for number, row in enumerate(table.rows):
        if number == table.cut:
            printed.add_section()
        printed.add_row(*[_line(cell) for cell in row])
    return printed


def _line(cell: str | Cell) -> str:
    if isinstance(cell, str) or not cell.small:
        return cell if isinstance(cell, str) else cell.text
    return cell.text + ("" if cell.small.startswith("\n") else " ") + cell.small
