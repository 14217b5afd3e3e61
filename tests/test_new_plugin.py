"""`w2s init`: what it writes works at once, and it overwrites nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from trainers.commands.init import begin
from trainers.config.reading import load
from trainers.flow.progress import Progress
from trainers.flow.run import open_run
from trainers.report.report import write_report
from w2s_tasks.errors import UserError


def test_its_tests_pass_and_its_experiment_runs(plugins: Callable[..., Any], tmp_path: Path, experiment_file: Path):
    folder = tmp_path / "sharpest"
    names = [path.name for path in begin(folder)]
    assert names == ["README.md", "experiment.yaml", "sharpest.py", "test_sharpest.py"]
    assert not [path for path in folder.iterdir() if "my_method" in path.read_text(encoding="utf-8")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
    )
    assert "4 passed" in done.stdout, done.stdout + done.stderr
    plugins(folder, "sharpest.py", (folder / "sharpest.py").read_text(encoding="utf-8"))
    tiny = yaml.safe_load(experiment_file.read_text(encoding="utf-8"))
    sets = [f"{key}={tiny[key]}" for key in ("task", "weak", "strong", "split")]
    sets += [f"include_path=[{experiment_file.parent / 'own_tasks'}]", "evaluate.limit=16", "arms=[student, ceiling]"]
    run = open_run(load(str(folder / "experiment.yaml"), sets)[0], tmp_path / "runs")
    run.build(Progress(quiet=True))
    report = write_report(run)[0].json()
    assert [arm["method"] for arm in report["arms"] if arm["arm"] == "student"] == ["xent", "sharpest"]
    assert report["software"]["plugins"][0]["name"] == "sharpest"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("xent", "a method or an arm already"),
        ("ceiling", "a method or an arm already"),
        ("json", "Python has a module 'json'"),
        ("my-method", "small letters"),
        ("My", "small letters"),
        ("class", "small letters"),
        ("there", "exists; nothing was written"),
    ],
)
def test_a_name_that_would_not_work_is_refused(tmp_path: Path, name: str, told: str):
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match=told):
        begin(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    assert not list((tmp_path / "there").iterdir())
