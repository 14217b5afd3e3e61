"""A user's columns mean nothing, whatever they are called: those that this suite adds to rows begin with w2s_."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import EXPERIMENT, rows
from test_own_rows import Rows, w2s, write

import trainers
import w2s_tasks
from trainers.harness import evaluate as hn
from w2s_tasks.rows.sources import _probe

ADDED = re.compile(r"w2s_\w+")
DERIVED = {"utilitarianism": {"activity"}}
"""Columns that stand in the place of others: a pair of scenarios becomes two activities."""


def keys_in_code() -> Iterator[str]:
    """Every text that this suite's code looks something up by: among them all columns that it reads."""
    for package in (w2s_tasks, trainers):
        for path in Path(package.__path__[0]).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                by_get = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get"
                found = node.slice if isinstance(node, ast.Subscript) else node.args[0] if by_get and node.args else None
                if isinstance(found, ast.Constant) and isinstance(found.value, str) and found.value.isidentifier():
                    yield found.value


def test_the_columns_that_our_tasks_add_begin_with_our_prefix():
    tasks = hn.Harness().load(["w2s_ethics_probe_all"])
    added = set()
    for task in tasks:
        subtask = task.name.removeprefix("w2s_ethics_probe_").removesuffix("_hard")
        known = set(_probe(subtask)["train"].column_names) | DERIVED.get(subtask, set())
        new = set(task.task.eval_docs[0]) - known
        assert all(ADDED.fullmatch(name) for name in new), (task.name, new)
        added |= new
    assert added == {"w2s_group", "w2s_pair", "w2s_role"}


def odd(name: str, row: int) -> Any:
    """Something in a column of any name: texts with gaps in one, numbers with gaps in the next."""
    if row % 3 == len(name) % 3:
        return None
    return ("women", "men")[row % 2] if len(name) % 2 else row % 4


@pytest.mark.slow
def test_columns_of_every_name_that_our_code_knows_change_nothing(
    encoder_folder: Path, causal_model: Callable[[str], Path], tmp_path: Path
):
    names = sorted({*keys_in_code(), "doc", "label_", "weight", "cluster", "seed", "source"} - {"text", "label"})
    data: Rows = rows(300, 3)
    reports = []
    for kind in ("plain", "odd"):
        folder = tmp_path / kind
        more = (lambda i: {name: odd(name, i) for name in names}) if kind == "odd" else (lambda _: {})
        filled = [{**row, **more(i)} for i, row in enumerate(data)]
        folder.mkdir()
        write(folder / "own_tasks", filled[:240], filled[240:])
        experiment = EXPERIMENT.format(encoder=encoder_folder, strong=causal_model("llama"))
        (folder / "small.yaml").write_text(experiment)
        last = w2s("run", "small.yaml", "--quiet", "--set", "arms=[student]", cwd=folder).strip().splitlines()[-1]
        reports.append(json.loads(Path(last.removeprefix("report: ")).read_text()))
    told = ("arm", "n", "metrics", "ci95", "confusion")
    plain, odds = ([[arm[key] for key in told] for arm in report["arms"]] for report in reports)
    assert len(plain) == 2
    assert plain == odds
