"""The floors of the house: every import goes down, and no module imports itself by any way round.

Imports inside functions and for the type checker alone count as well.
"""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = (
    *("w2s_tasks", "w2s_tasks.errors", "w2s_tasks.user_text", "w2s_tasks.paths", "w2s_tasks.keys"),
    *(
        "w2s_tasks.machine",
        "w2s_tasks.notebook",
        "w2s_tasks.code_scope",
        "w2s_tasks.sandbox",
        "w2s_tasks.rows",
        "w2s_tasks.scoring",
    ),
    *("w2s_tasks.packing", "w2s_tasks.models", "w2s_tasks.plugin", "w2s_tasks.results", "w2s_tasks.study"),
    *("w2s_tasks.doctor", "w2s_tasks.validate", "w2s_tasks.own", "w2s_tasks.cli"),
    *("trainers", "trainers.quiet", "trainers.registry", "trainers.plugin_loader", "trainers.section"),
    *("trainers.store", "trainers.harness", "trainers.labels", "trainers.training", "trainers.services"),
    *("trainers.fit", "trainers.steps", "trainers.config", "trainers.flow", "trainers.report"),
    *("trainers.plugins", "trainers.commands", "trainers.api", "trainers.store_cli", "trainers.cli"),
)
"""From the ground up: a module or package imports only what stands before it, and what is in its own package."""


def modules() -> dict[str, Path]:
    """All modules of both packages by name."""
    found = {}
    for package in ("w2s_tasks", "trainers"):
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(module: str) -> Iterator[str]:
    """The modules that a module imports, wherever in its text."""
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            yield from (
                inner if (inner := f"{node.module}.{alias.name}") in MODULES else node.module for alias in node.names
            )


def floor(module: str) -> int:
    """The floor of a module: that of the longest name that is it or a package around it."""
    names = [name for name in FLOORS if module == name or module.startswith(f"{name}.")]
    own = max(names, key=len)
    assert own not in ("w2s_tasks", "trainers") or module == own, f"{module} stands on no floor of FLOORS"
    return FLOORS.index(own)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_imports_only_from_below(module: str):
    above = [other for other in imports(module) if floor(other) > floor(module)]
    assert not above, f"{module} imports {above}"


def test_no_module_imports_itself_by_any_way_round():
    graph = {name: set(imports(name)) - {name} for name in MODULES}
    list(graphlib.TopologicalSorter(graph).static_order())
