"""report.html: one static file that opens anywhere, from report.json alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from markupsafe import Markup

from trainers.report.blocks import Note, html
from trainers.report.section import Head, Report
from trainers.report.sections.accuracy import Accuracy
from trainers.report.sections.setup import Setup

PAGE = Markup("""<!doctype html>
<html lang="en">
<head>
{style}<title>{title}</title>
</head>
<body>
{body}
</body>
</html>
""")
QUESTIONS = "questions.html"
"""The page of all questions, beside the report's."""
STAGES = '<meta name="w2s-stages" content="{}">'
"""In the head of that page: the stages that it is of."""
SECTION = Markup('<h2 id="{name}">{heading}</h2>\n{blocks}')


def framed(title: str, body: Sequence[Markup]) -> str:
    """A whole page around its parts; nothing in it is fetched or run."""
    style = Markup(files("trainers.report").joinpath("templates", "style.html").read_text(encoding="utf-8"))  # noqa: S704
    return str(PAGE.format(style=style, title=title, body=Markup("\n").join(body)))


def stages_of(head: Head) -> str:
    """A short name of all stages of a report."""
    return hashlib.sha256(json.dumps(head.stages, sort_keys=True).encode()).hexdigest()[:16]


def has_questions(report: Report, folder: Path) -> bool:
    """Whether the page of all questions is in a folder, and is of this report's stages."""
    try:
        with (folder / QUESTIONS).open(encoding="utf-8") as file:
            return STAGES.format(stages_of(report.head)) in file.read(4096)
    except OSError:
        return False


def render(report: Report, *, questions: bool = False) -> str:
    """The page as HTML text; every value from the report is escaped.

    Args:
        report: what it shows.
        questions: whether the page of all questions is there, beside it.
    """
    config, setup = report.head.config, report.of(Setup)
    about = f"{config['weak']['model']} supervises {config['strong']['model']}"
    links, sections = [], []
    for section in report.sections.values():
        blocks = html(section.page(report))
        if blocks:
            name = type(section).__name__.lower()
            links.append(Markup('<a href="#{}">{}</a>').format(name, section.link or section.title))
            sections.append(SECTION.format(name=name, heading=section.heading(report), blocks=blocks))
    if questions:
        links.append(Markup('<a href="{}">Every question and answer</a>').format(QUESTIONS))
    top = [
        Markup("<h1>{}</h1>").format(report.head.experiment),
        html([Note(f"Weak-to-strong experiment on {report.head.task}: {about}.")]),
        html(Note(text, "verdict") for text in (report.of(Accuracy).verdict, *setup.notes)),
        Markup("<nav>{}</nav>").format(Markup().join(links)),
    ]
    return framed(f"{report.head.experiment} – weak-to-strong report", [*top, *sections])
