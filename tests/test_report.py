"""The page: one static file, nothing fetched, nothing run, everything escaped."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from trainers.page import render
from trainers.tables import pgr_text, verdict

ARM = {"method": None, "seed": None, "model": "m", "mode": "loglikelihood", "objective": None, "num_fewshot": 0, "n": 100}
SCORES = {
    "metrics": {"acc": 0.8, "precision": 0.7, "recall": 0.9, "f1": 0.79},
    "stderr": {"acc": 0.04},
    "ci95": {"acc": [0.7, 0.87]},
}
CHANGE = {"value": -0.05, "stderr": 0.03, "low": -0.11, "high": 0.01, "p": 0.1, "n": 100}
GAP = {
    "arm": "student",
    "method": "xent",
    "seeds": [0],
    "pgr": 0.5,
    "ci95": [0.2, None],
    "defined": True,
    "reason": "given these weights",
}
SAFE = {
    "task": "w2s_ethics_justice",
    "subtask": "justice",
    "split": "test",
    "mode": "loglikelihood",
    "n": 50,
    "acc": 0.6,
    "stderr": 0.07,
}


@pytest.fixture
def report() -> dict[str, Any]:
    arms = [{**ARM, **SCORES, "arm": "zero_shot"}, {**ARM, **SCORES, "arm": "student", "method": "xent", "seed": 0}]
    return copy.deepcopy(
        {
            "schema": 1,
            "experiment": "demo",
            "task": "w2s_sst2",
            "arms": arms,
            "gaps": [GAP],
            "gap": GAP,
            "weak_labels": [{"seed": 0, "n": 64, "acc": 0.75}],
            "safety": [
                {**SAFE, "arm": "zero_shot", "method": None, "seed": None, "to_zero_shot": None},
                {**SAFE, "arm": "student", "method": "xent", "seed": 0, "to_zero_shot": CHANGE},
            ],
            "safety_means": [],
            "curves": [
                {
                    "arm": "student",
                    "method": "xent",
                    "seed": 0,
                    "points": [{"step": 1, "loss": 0.7}, {"step": 1, "eval_accuracy": 0.5}],
                }
            ],
            "commands": [{"arm": "student", "command": "lm_eval run"}],
            "config": {"weak": {"model": "w"}, "strong": {"model": "s"}},
            "seconds": {"fit": 1.0, "total": 1.0},
        }
    )


def test_the_page_is_static_and_complete(report):
    page = render(report)
    assert page.count("<svg") == 3
    for outside in ("<script", 'http-equiv="refresh', "<link", "<iframe", "src=", "@import", "url("):
        assert outside not in page.replace('clip-path="url(#', "")
    assert "student" in page
    assert "-5.0 ± 3.0" in page


def test_every_field_is_escaped(report):
    planted = "<script>alert(1)</script>"
    text = json.dumps(report)
    for value in ("demo", "w2s_sst2", "justice", "lm_eval run", "given these weights"):
        text = text.replace(f'"{value}"', json.dumps(planted))
    page = render(json.loads(text))
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_pgr_is_told_with_its_interval_or_as_undefined():
    assert pgr_text(GAP) == "0.50 [0.20, unbounded]"
    assert pgr_text({**GAP, "defined": False}) == "undefined"


def test_the_verdict_says_why_there_is_no_number(report):
    assert "recovered 0.50" in verdict(report)
    report["gap"] = {**GAP, "defined": False, "pgr": None, "reason": "the ceiling is not significantly above"}
    assert verdict(report).startswith("PGR is undefined: the ceiling")
    report["gap"] = None
    assert "No ceiling" in verdict(report)
