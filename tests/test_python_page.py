"""docs/python.md: its blocks run one after the other, as a reader would paste them, over a small experiment `my.yaml`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from trainers.report.results import Plots, Results

PAGE = (Path(__file__).parents[1] / "docs" / "python.md").read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore")
def test_the_blocks_of_the_page_run(experiment_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    keys = yaml.safe_load(experiment_file.read_text(encoding="utf-8"))
    keys["split"]["limit"] = {"weak": 32, "transfer": 24}
    keys |= {"arms": ["student", "ceiling"], "evaluate": {"limit": 20}, "include_path": [str(tmp_path / "own_tasks")]}
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(keys), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
        exec(compile(block, "docs/python.md", "exec"), names)  # noqa: S102 - the manual's own
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert names["experiment"].strong.lr == 3e-4
    assert set(names["swept"].cells["grid.method"]) == {"xent", "logconf"}
    assert names["measured"].accuracies.n.tolist() == [20]
    assert isinstance(names["asked"], pd.DataFrame)


def test_tables_and_figures_that_the_page_names_are_there():
    told = set(re.findall(r"`(\w+)`", PAGE))
    assert {*Plots.__annotations__} <= told
    assert len({*Results.__annotations__} & told) > 12
