"""Every harder task and form in a whole small experiment on real rows: taught, labelled, learnt, controlled, reported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from trainers.config.reading import load
from trainers.flow.progress import Progress
from trainers.flow.run import open_run
from trainers.report.report import write_report

TASKS = {
    "w2s_gsm8k_check": "",
    "w2s_math_check": "",
    "w2s_chess": "",
    "w2s_preference_harmless": "",
    "w2s_moral_scenarios_parted": "",
    "w2s_sciq": "",
    "w2s_sciq@verify": "form: verify",
    "w2s_sciq@pair": "form: pair",
    "w2s_sciq@shuffle": "form: shuffle",
    "w2s_nlp_sciq": "",
    "w2s_ethics_justice": "",
    "w2s_ethics_commonsense": "",
}
"""With the experiment's form."""


@pytest.mark.parametrize("task", list(TASKS))
def test_a_task_goes_through_a_whole_experiment(
    real_data: Path, tmp_path: Path, encoder_folder: Path, causal_model: Callable[[str], Path], task: str
):
    file = tmp_path / "small.yaml"
    file.write_text(
        f"""task: {task.partition("@")[0]}
{TASKS[task]}
split: {{limit: {{weak: 16, transfer: 16}}}}
weak: {{model: {encoder_folder}, batch_size: 8}}
strong: {{model: {causal_model("llama")}, r: 2, batch_size: 8}}
arms: [zero_shot, student, ceiling, random_labels]
evaluate: {{limit: 8}}
"""
    )
    run = open_run(load(str(file), [])[0], tmp_path / "runs")
    run.build(Progress(quiet=True))
    report = write_report(run)[0].json()
    assert report["task"] == task
    assert {arm["arm"] for arm in report["arms"]} == {"weak", *report["config"]["arms"]}
    assert all(arm["n"] == 8 for arm in report["arms"])
    assert report["weak_labels"][0]["n"] == 16
