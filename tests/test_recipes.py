"""CONTRIBUTING's recipes, followed to the letter: what they add works and moves no key."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import rows

from trainers.config.reading import load
from trainers.flow.progress import Progress
from trainers.flow.run import open_run
from trainers.report.report import write_report
from trainers.report.section import json_schema

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^( *)```(?:python|yaml)\n *# (\S+)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)


def code_blocks(heading: str) -> list[tuple[str, str]]:
    """The files that a recipe names, each with what it says to put there."""
    (section,) = re.findall(
        rf"^## {heading}\n(.*?)(?=^## |\Z)",
        (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"),
        re.MULTILINE | re.DOTALL,
    )
    return [(name, textwrap.dedent(text)) for _, name, text in BLOCK.findall(section)]


INTO = """import {module} as _into
globals().update({{name: value for name, value in vars(_into).items() if not name.startswith("__")}})

"""
"""Before a recipe's code that is put into a module: what stands there already."""


@pytest.fixture
def follow(plugins: Callable[..., Any], tmp_path: Path) -> Callable[[str], None]:
    """Does what a recipe says, as a plug-in: a new file as it is, an addition with the names of its module."""

    def followed(heading: str) -> None:
        blocks = code_blocks(heading)
        assert blocks
        for name, text in blocks:
            module = name.removesuffix(".py").replace("/", ".")
            head = INTO.format(module=module) if (ROOT / name).exists() else ""
            plugins(tmp_path, f"recipe_{heading.split()[-1]}.py", head + text)

    return followed


def run(file: Path, *sets: str) -> tuple[dict[str, Any], dict[str, bool]]:
    """The report of the small experiment, and which stages were there already."""
    small = ("split.limit={weak: 48, transfer: 32}", "evaluate.limit=16", "weak.epochs=1")
    opened = open_run(load(str(file), [*small, *sets])[0], file.parent / "runs")
    opened.build(Progress(quiet=True))
    report = write_report(opened)[0].json()
    return report, {name: stage.reused for name, stage in opened.stages.items()}


@pytest.mark.slow
def test_losses_label_operations_and_arms(follow: Callable[[str], None], experiment_file: Path):
    """Each by its recipe; what was trained before is found again, for no key has moved."""
    run(experiment_file, "arms=[student]")
    for heading in ("Add a loss", "Add a label operation", "Add an arm"):
        follow(heading)
    methods = "methods=[xent, halve+tempered]"
    args = "method_args={tempered: {sharpness: 3}, halve: {share: 0.7}}"
    report, reused = run(experiment_file, "arms=[student, flipped_labels]", methods, args)
    trained = [("weak", "xent"), ("student", "xent"), ("student", "halve+tempered"), ("flipped_labels", "xent")]
    assert [(arm["arm"], arm["method"]) for arm in report["arms"]] == trained
    assert {name for name, there in reused.items() if there} == {
        "split/0",
        "labels/weak, seed 0",
        *(f"{kind}/{arm}, seed 0" for kind in ("fit", "evaluate") for arm in ("weak", "student")),
    }
    card = next((experiment_file.parent / "runs").glob("*/model_cards/flipped_labels*.md")).read_text(encoding="utf-8")
    assert "every tenth row flipped" in card


def test_a_task(tmp_path: Path):
    """In a copy of the suite: a task is part of it."""
    suite = tmp_path / "suite"
    for package in ("trainers", "w2s_tasks", "harness_configs"):
        shutil.copytree(ROOT / package, suite / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in code_blocks("Add a task"):
        path = suite / name
        path.parent.mkdir(exist_ok=True)
        path.write_text((path.read_text(encoding="utf-8") + "\n\n" if path.exists() else "") + text, encoding="utf-8")
    data = tmp_path / "data" / "org" / "toy"
    data.mkdir(parents=True)
    for split, seed in (("train", 1), ("validation", 2)):
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(20, seed)), encoding="utf-8")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "trainers.cli",
            "eval",
            "--model",
            "dummy",
            "--tasks",
            "w2s_toy",
            "--limit",
            "2",
            "--write_out",
        ],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(suite), "HF_HUB_OFFLINE": "1", "W2S_DATA": str(tmp_path / "data")},
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "w2s_toy" in done.stdout


@pytest.mark.slow
def test_a_report_section(follow: Callable[[str], None], experiment_file: Path):
    """Its key, its table and its part of the page stand in the report of a run that was finished before."""
    run(experiment_file, "arms=[student]")
    follow("Add a report section")
    report, reused = run(experiment_file, "arms=[student]")
    assert all(reused.values())
    assert [model["arm"] for model in report["tied"]] == ["weak", "student"]
    assert [plugin["name"] for plugin in report["software"]["plugins"]] == ["recipe_section"]
    (folder,) = (experiment_file.parent / "runs").iterdir()
    assert '<h2 id="ties">Ties</h2>' in (folder / "report.html").read_text(encoding="utf-8")
    assert (folder / "tables" / "tied.csv").read_text(encoding="utf-8").startswith("arm,method,seed,share\nweak,xent,0,")
    schema = json_schema()
    assert "ModelTies" in schema["$defs"]
    assert "tied" in schema["required"]
