"""docs/python.md: its blocks run one after the other as one script, over a small experiment `my.yaml`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from trainers.report.results import Plots, Results

PAGE = (Path(__file__).parents[1] / "docs" / "python.md").read_text(encoding="utf-8")
BEHIND = """
assert experiment.strong.lr == 3e-4
assert set(swept.cells["grid.method"]) == {"xent", "logconf"}
assert measured.accuracies.n.tolist() == [20]
assert set(asked.arm) == {"weak", "student", "ceiling"}
"""


@pytest.mark.slow
def test_the_blocks_of_the_page_run(experiment_file: Path, tmp_path: Path):
    keys = yaml.safe_load(experiment_file.read_text(encoding="utf-8"))
    keys["split"]["limit"] = {"weak": 32, "transfer": 24}
    keys |= {"arms": ["student", "ceiling"], "evaluate": {"limit": 20}, "include_path": [str(tmp_path / "own_tasks")]}
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(keys), encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "page.py").write_text("\n".join([*blocks, BEHIND]), encoding="utf-8")
    done = subprocess.run([sys.executable, "page.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "runs" / "squared" / "report.html").is_file()


def test_tables_and_figures_that_the_page_names_are_there():
    told = set(re.findall(r"`(\w+)`", PAGE))
    assert {*Plots.__annotations__} <= told
    assert len({*Results.__annotations__} & told) > 12
