"""The manual's notebook in a real kernel, as a reader runs it: small here, and as it stands (slow)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebook.ipynb"


def read() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def executed(folder: Path, sizes: dict[str, Any], monkeypatch: pytest.MonkeyPatch, timeout: int = 300) -> list[Any]:
    """The notebook's code cells after they ran in an empty folder."""
    monkeypatch.setenv("W2S_NOTEBOOK", json.dumps(sizes))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(NOTEBOOK.parents[1]), os.environ.get("PYTHONPATH", "")]))
    notebook = read()
    NotebookClient(notebook, timeout=timeout, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(cell: Any) -> dict[str, Any]:
    """What a cell's last line gave, by media type."""
    found: dict[str, Any] = next(output.data for output in cell.outputs if output.output_type == "execute_result")
    return found


def printed(cell: Any) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def check(cells: list[Any], folder: Path) -> None:
    """Results are shown, the figure is a picture, and progress is a line a step."""
    by_name = {cell.source.splitlines()[0]: cell for cell in cells}
    ran = by_name["results = run(experiment, overrides=SIZES)"]
    assert "student, by_confidence" in shown(ran)["text/html"]
    stages = list((folder / "runs" / "by_confidence" / "stages").glob("*-*/manifest.json"))
    assert printed(ran).count("\n") == len(stages)
    assert not [output.text for cell in cells for output in cell.outputs if output.get("name") == "stderr"]
    assert "image/png" in shown(by_name["results.plot.accuracy()"])
    assert "by_confidence" in shown(next(cell for cell in cells if "method_pairs" in cell.source))["text/html"]


def test_the_notebook_runs(
    tmp_path: Path,
    own_task: Path,
    encoder_folder: Path,
    causal_model: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
):
    sizes = {
        "task": "own_reviews",
        "include_path": [str(own_task)],
        "split.limit": {"weak": 48, "transfer": 32},
        "weak": {"model": str(encoder_folder), "text": "text", "batch_size": 16},
        "strong": {"model": str(causal_model("llama")), "trainer": "lora", "r": 4, "batch_size": 16},
        "evaluate.limit": 30,
    }
    folder = tmp_path / "work"
    folder.mkdir()
    check(executed(folder, sizes, monkeypatch), folder)


@pytest.mark.slow
@pytest.mark.pypi
def test_the_notebook_runs_as_it_stands(tmp_path: Path, smollm2: str, monkeypatch: pytest.MonkeyPatch):
    check(executed(tmp_path, {}, monkeypatch, timeout=3600), tmp_path)


def test_the_notebook_is_short_and_holds_no_outputs():
    notebook = read()
    assert len(notebook.cells) <= 15
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
