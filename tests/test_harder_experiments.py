"""Every harder task and form in a whole small experiment on real rows: taught, labelled, learnt, controlled, reported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainers.config.reading import load
from trainers.flow.progress import Progress
from trainers.flow.run import open_run
from trainers.report.report import write_report

TASKS = [
    "w2s_gsm8k_check",
    "w2s_math_check",
    "w2s_chess",
    "w2s_preference_harmless",
    "w2s_moral_scenarios_parted",
    "w2s_sciq",
    "w2s_sciq@verify",
    "w2s_sciq@pair",
    "w2s_sciq@shuffle",
    "w2s_nlp_sciq",
    "w2s_ethics_justice",
    "w2s_ethics_commonsense",
]


def small_report(folder: Path, task: str, weak: Path, strong: Path, *, rows: int = 16, asked: int = 8) -> dict[str, Any]:
    """The report of a whole small experiment on a task, perhaps in a form (NAME@FORM)."""
    name, _, form = task.partition("@")
    file = folder / "small.yaml"
    file.write_text(
        f"""task: {name}
{f"form: {form}" if form else ""}
split: {{limit: {{weak: {rows}, transfer: {rows}}}}}
weak: {{model: {weak}, batch_size: 8}}
strong: {{model: {strong}, r: 2, batch_size: 8}}
arms: [zero_shot, student, ceiling, random_labels]
evaluate: {{limit: {asked}}}
"""
    )
    run = open_run(load(str(file), [])[0], folder / "runs")
    run.build(Progress(quiet=True))
    report = write_report(run)[0].json()
    assert report["task"] == task
    assert {arm["arm"] for arm in report["arms"]} == {"weak", *report["config"]["arms"]}
    assert all(arm["n"] == asked for arm in report["arms"])
    return report


@pytest.mark.parametrize("task", TASKS)
def test_a_task_goes_through_a_whole_experiment(
    real_data: Path, tmp_path: Path, encoder_folder: Path, causal_model: Callable[[str], Path], task: str
):
    report = small_report(tmp_path, task, encoder_folder, causal_model("llama"))
    assert report["weak_labels"][0]["n"] == 16
