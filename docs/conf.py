"""The manual as a site: ``scripts/docs`` builds it, warnings are errors.

Pages that stand elsewhere in the repository (the READMEs of the tasks, SECURITY.md, ...), the pages of ``--help`` and the
reference of the modules are written to ``pages/`` before the build.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import typer.main
from typer.cli import get_docs_for_click  # what `typer utils docs` prints

HERE = Path(__file__).resolve().parent
ROOT, PAGES = HERE.parent, HERE / "pages"
sys.path.insert(0, str(ROOT))

project = "w2s-harness"
author = "The w2s-harness authors"
extensions = ["myst_nb", "sphinx_design", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build", "pages/front_page.md"]  # the front page is part of index.md
nb_execution_mode = "off"
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "dollarmath"]
# napoleon takes "word: text" under a field for its type; upstream's template of a task's README goes from H1 to H3.
suppress_warnings = ["ref.python", "myst.header"]
# References to ours have to be right; the others' manuals are not fetched.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!w2s_tasks|trainers).*")]
autodoc_typehints = "none"
autodoc_member_order = "bysource"
html_theme = "pydata_sphinx_theme"
html_title = project
html_theme_options = {"show_toc_level": 2, "navigation_with_keys": False, "navbar_center": []}
html_sidebars = {"**": ["globaltoc.html"]}

TEXTS = {"README.md": "front_page"} | {f"{n}.md": n.lower() for n in ("SECURITY", "CONTRIBUTING", "CHANGELOG")}
TEXTS |= {str(p.relative_to(ROOT)): p.parent.name for p in (ROOT / "w2s_tasks" / "tasks").glob("*/README.md")}
TEXTS |= {"tests/replies/README.md": "replies", "scripts/upstream/README.md": "upstream"}


def _linked(text: str, here: Path) -> str:
    """Links to what has a page here lead to it; of those to other files of the repository the words are left."""

    def link(match: re.Match[str]) -> str:
        words, _, target = match[1], match[2], match[2].partition("#")[0]
        path = (here / target).resolve()
        name = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else ""
        if name == "README.md":
            return f"[{words}](/index.md)"
        if name in TEXTS:
            return f"[{words}](/pages/{TEXTS[name]}.md)"
        if path.is_relative_to(HERE) and path.exists():
            return f"[{words}](/{path.relative_to(HERE)})"
        if path.exists():
            return f"{words} (`{name}`)" if words != name else f"`{words}`"
        return match[0]

    return re.sub(r"(?<!!)\[([^\]\[]+)\]\((?!https?:|#)([^)\s]+)\)", link, text)


def _commands() -> str:
    from trainers.cli import app

    command = typer.main.get_command(app)
    return get_docs_for_click(obj=command, ctx=typer.Context(command), name="w2s", title="Commands")


def _modules() -> dict[str, str]:
    """A page for every package, from the docstrings of its public modules, and the list of them."""
    pages: dict[str, list[str]] = {}
    for path in sorted([*(ROOT / "w2s_tasks").rglob("*.py"), *(ROOT / "trainers").rglob("*.py")]):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if path.stem not in ("__init__", "__main__"):
            package = name.rpartition(".")[0]
            text = f"## {name}\n\n```{{eval-rst}}\n.. automodule:: {name}\n   :members:\n```"
            pages.setdefault(package, [f"# {package}"]).append(text)
    tree = [
        "# API reference",
        "Every public module, from its docstrings.",
        "```{toctree}",
        *(f"api_{p}" for p in pages),
        "```",
    ]
    return {"api": "\n".join(tree)} | {f"api_{package}": "\n\n".join(parts) for package, parts in pages.items()}


def _type_of(field: dict[str, Any]) -> str:
    """A field's type in a JSON schema, in words."""
    if "$ref" in field:
        return field["$ref"].rpartition("/")[2]
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(_type_of(option) for option in field["anyOf"]))
    if "enum" in field or "const" in field:
        return " or ".join(map(str, field.get("enum", [field.get("const")])))
    if field.get("type") == "array":
        inner = field["prefixItems"] if "prefixItems" in field else [field.get("items", {})]
        return f"pair of {_type_of(inner[0])}" if "prefixItems" in field else f"list of {_type_of(inner[0])}"
    if field.get("type") == "object":
        values = field.get("additionalProperties")
        return f"mapping to {_type_of(values)}" if isinstance(values, dict) else "mapping"
    return str(field.get("type", "anything"))


def _report_schema() -> str:
    """A page with a table for every type of report.json."""
    import trainers.report.sections  # noqa: F401 - registers them
    from trainers.report.section import json_schema

    schema = json_schema()
    types = schema["$defs"]
    parts = ["# report.json"]
    for name, entry in {"Report": schema, **types}.items():
        rows = ["| key | type | what |", "|---|---|---|"]
        for key, field in entry["properties"].items():
            kind = _type_of(field)
            what = field.get("description") or types.get(kind.rpartition(" ")[2], {}).get("description", "")
            rows.append(f"| `{key}` | {kind} | {' '.join(what.split())} |")
        parts += [f"## {name}", entry.get("description", ""), "\n".join(rows)]
    return "\n\n".join(parts)


def _write_pages() -> None:
    PAGES.mkdir(exist_ok=True)
    pages = {"commands": _commands(), "report_schema": _report_schema(), **_modules()}
    for name, page in TEXTS.items():
        pages[page] = _linked((ROOT / name).read_text(encoding="utf-8"), (ROOT / name).parent)
    for page, text in pages.items():
        (PAGES / f"{page}.md").write_text(text + "\n", encoding="utf-8")


os.environ.setdefault("COLUMNS", "120")
_write_pages()


def setup(app: Any) -> None:
    """Rewrite the links of the pages that stand here."""

    def rewrite(_: Any, page: str, source: list[str]) -> None:
        if not page.startswith("pages/"):
            source[0] = _linked(source[0], (HERE / page).parent)

    app.connect("source-read", rewrite)
