"""CONTRIBUTING's recipes, followed to the letter in a copy of this suite: what they add works and moves no key."""

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
from conftest import rows, write_experiment

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^( *)```(?:python|yaml)\n *# (\S+)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
RUN = """
import json, sys
from pathlib import Path
from trainers.config.reading import load
from trainers.flow.run import open_run
from trainers.flow.progress import Progress
from trainers.report.report import write_report
config, runs, *sets = sys.argv[1:]
flow = open_run(load(config, sets)[0], Path(runs))
flow.build(Progress(quiet=True))
report = write_report(flow)[0].json()
arms = [[a["arm"], a["method"], a["n"]] for a in report["arms"]]
print(json.dumps({"arms": arms, "reused": {name: stage.reused for name, stage in flow.stages.items()}}))
"""


def code_blocks(heading: str) -> list[tuple[str, str]]:
    """The files that a recipe names, each with what it says to put there."""
    (section,) = re.findall(
        rf"^## {heading}\n(.*?)(?=^## |\Z)",
        (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"),
        re.MULTILINE | re.DOTALL,
    )
    return [(name, textwrap.dedent(text)) for _, name, text in BLOCK.findall(section)]


class Copy:
    """This suite, copied, with an experiment; recipes are followed in it."""

    def __init__(self, folder: Path, encoder: Path, strong: Path) -> None:
        self.folder, self.suite = folder, folder / "suite"
        for package in ("trainers", "w2s_tasks", "harness_configs"):
            shutil.copytree(ROOT / package, self.suite / package, ignore=shutil.ignore_patterns("__pycache__"))
        self.config = write_experiment(folder, encoder, strong)

    def follow(self, heading: str) -> None:
        """Put a recipe's code where it says: at a file's end, or into a new one."""
        blocks = code_blocks(heading)
        assert blocks
        for name, text in blocks:
            path = self.suite / name
            path.parent.mkdir(exist_ok=True)
            before = path.read_text(encoding="utf-8") + "\n\n" if path.exists() else ""
            path.write_text(before + text, encoding="utf-8")

    def python(self, *arguments: str, **environment: str) -> str:
        """Run Python on the copy; what it printed."""
        variables = os.environ | {"PYTHONPATH": str(self.suite), "HF_HUB_OFFLINE": "1"} | environment
        done = subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, env=variables, cwd=self.folder, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def run(self, *sets: str) -> dict[str, Any]:
        """Run the experiment: its arms, and which stages were there already."""
        small = ("split.limit={weak: 48, transfer: 32}", "evaluate.limit=16", "weak.epochs=1")
        found: dict[str, Any] = json.loads(
            self.python("-c", RUN, str(self.config), str(self.folder / "runs"), *small, *sets).splitlines()[-1]
        )
        return found


@pytest.fixture
def copy(tmp_path: Path, encoder_folder: Path, causal_model: Callable[[str], Path]) -> Copy:
    return Copy(tmp_path, encoder_folder, causal_model("llama"))


def test_losses_label_operations_and_arms(copy: Copy):
    """Each by its recipe; what was trained before is found again, for no key has moved."""
    copy.run("arms=[student]")
    for heading in ("Add a loss", "Add a label operation", "Add an arm"):
        copy.follow(heading)
    methods = "methods=[xent, halve+tempered]"
    args = "method_args={tempered: {sharpness: 3}, halve: {share: 0.7}}"
    found = copy.run("arms=[student, flipped_labels]", methods, args)
    trained = [("student", "xent"), ("student", "halve+tempered"), ("flipped_labels", "xent")]
    assert found["arms"] == [["weak", "xent", 16], *([arm, method, 16] for arm, method in trained)]
    old = {
        "split/0",
        "labels/weak, seed 0",
        *(f"{kind}/{arm}, seed 0" for kind in ("fit", "evaluate") for arm in ("weak", "student")),
    }
    assert {name for name, reused in found["reused"].items() if reused} == old
    card = next((copy.folder / "runs").glob("*/model_cards/flipped_labels*.md")).read_text(encoding="utf-8")
    assert "every tenth row flipped" in card


def test_a_task(copy: Copy):
    copy.follow("Add a task")
    data = copy.folder / "data" / "org" / "toy"
    data.mkdir(parents=True)
    for split, seed in (("train", 1), ("validation", 2)):
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(20, seed)), encoding="utf-8")
    out = copy.python(
        *("-m", "trainers.cli", "eval", "--model", "dummy", "--tasks", "w2s_toy", "--limit", "2", "--write_out"),
        W2S_DATA=str(copy.folder / "data"),
    )
    assert "w2s_toy" in out


def test_a_trainer(copy: Copy):
    """In a run of its own, beside the models of which nothing has moved."""
    copy.run("arms=[student]")
    copy.follow("Add a trainer")
    found = copy.run("arms=[student]", "strong.trainer=attention", "strong.r=2")
    assert found["arms"] == [["weak", "xent", 16], ["student", "xent", 16]]
    assert {name for name, reused in found["reused"].items() if not reused} == {
        "fit/student, seed 0",
        "evaluate/student, seed 0",
    }
    (adapter,) = (json.loads(p.read_text()) for p in (copy.folder / "runs").rglob("adapter_config.json") if _small(p))
    assert set(adapter["target_modules"]) == {"q_proj", "v_proj"}


def _small(path: Path) -> bool:
    return bool(json.loads(path.read_text(encoding="utf-8"))["r"] == 2)


def test_a_report_section(copy: Copy):
    """Its key, its table and its part of the page stand in the report of a run that was finished before."""
    copy.run("arms=[student]")
    copy.follow("Add a report section")
    found = copy.run("arms=[student]")
    assert all(found["reused"].values())
    (run,) = (copy.folder / "runs").iterdir()
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    assert [model["arm"] for model in report["tied"]] == ["weak", "student"]
    assert '<h2 id="ties">Ties</h2>' in (run / "report.html").read_text(encoding="utf-8")
    assert (run / "tables" / "tied.csv").read_text(encoding="utf-8").startswith("arm,method,seed,share\nweak,xent,0,")
    schema = json.loads(copy.python("-m", "trainers.cli", "report", "--schema"))
    assert "ModelTies" in schema["$defs"]
    assert "tied" in schema["required"]
