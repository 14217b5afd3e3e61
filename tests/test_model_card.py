"""Model cards: one a trained model, with its labels' provenance, its numbers and the command that measures it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml

from trainers.report.model_card import card, card_name, write_cards

CHANGE = {"value": -0.05, "stderr": 0.03, "low": -0.11, "high": 0.01, "p": 0.1, "n": 100, "seeds": 1, "discordance": 0.1}
GAP = {
    "arm": "student",
    "method": "logconf",
    "seeds": [0],
    "pgr": 0.5,
    "ci95": [0.2, None],
    "defined": True,
    "reason": "one seed",
}


def _arm(name: str, method: str | None, seed: int | None) -> dict[str, Any]:
    return {
        "arm": name,
        "method": method,
        "seed": seed,
        "model": "base/model",
        "mode": "loglikelihood",
        "objective": "choices" if method else None,
        "num_fewshot": 0,
        "n": 100,
        "metrics": {"acc": 0.8},
        "stderr": {"acc": 0.04},
        "ci95": {"acc": [0.71, 0.87]},
    }


@pytest.fixture
def report() -> dict[str, Any]:
    section = {"model": "base/model", "trainer": "lora", "lr": 2e-4, "epochs": 1, "r": 16}
    report = {
        "experiment": "demo",
        "task": "w2s_sst2",
        "arms": [_arm(*a) for a in (
            ("zero_shot", None, None), ("weak", "xent", 0), ("student", "logconf", 0), ("ceiling", "xent", 0)
        )],
        "gaps": [GAP],
        "weak_labels": [{"seed": 0, "n": 64, "acc": 0.75}],
        "stages": {"fit/weak, seed 0": "fit-a", "fit/student, logconf, seed 0": "fit-b", "fit/ceiling, seed 0": "fit-c"},
        "commands": [
            {"arm": "student, logconf, seed 0", "command": "lm_eval run --model hf --model_args 'peft=stages/fit-b'"}
        ],
        "safety_gaps": [
            {"arm": "student", "method": "logconf", "subtask": "justice", "split": "test", "mode": "loglikelihood",
             "contrast": "to_zero_shot",
             "p_holm": 0.4, **CHANGE}
        ],
        "safety_mean_gaps": [],
        "safety_family": {"tests": 2},
        "config": {"weak": {**section, "model": "weak/model", "trainer": "classifier"}, "strong": section},
    }  # fmt: skip
    return copy.deepcopy(report)


def test_the_card_tells_where_labels_came_from_and_what_came_out(report):
    text = card(report["arms"][2], report)
    front = yaml.safe_load(text.split("---")[1])
    assert front["base_model"] == "base/model"
    assert front["library_name"] == "peft"
    assert "labels of the weak supervisor (weak/model), 75.0 % right on these 64 rows; no gold label was seen" in text
    assert "0.50 [0.20, unbounded]" in text
    assert "| justice | test | loglikelihood | 100 | untuned | -5.0 [-11.0, +1.0] | 0.4 |" in text
    assert "lm_eval run --model hf --model_args 'peft=stages/fit-b'" in text
    assert "stages/fit-b" in text


def test_the_supervisor_is_no_adapter_and_the_ceiling_has_no_pgr_of_its_own(report):
    weak, ceiling = (card(report["arms"][i], report) for i in (1, 3))
    assert yaml.safe_load(weak.split("---")[1])["library_name"] == "transformers"
    assert "PGR is 0 by definition" in weak
    assert "PGR is 1 by definition" in ceiling
    assert "gold labels of the 64 rows that the student learns from" in ceiling


def test_undefined_pgr_is_said_not_numbered(report):
    report["gaps"][0] |= {"defined": False, "pgr": None, "ci95": None, "reason": "the ceiling is not significantly above"}
    assert "PGR [95 %]: undefined. The ceiling is not significantly above." in card(report["arms"][2], report)


def test_one_card_for_each_trained_model_and_none_of_an_earlier_run(report, tmp_path):
    (tmp_path / "cards").mkdir()
    (tmp_path / "cards" / "student-old-seed9.md").write_text("old")
    paths = write_cards(report, tmp_path / "cards")
    assert [p.name for p in paths] == ["weak-seed0.md", "student-logconf-seed0.md", "ceiling-seed0.md"]
    assert sorted(p.name for p in (tmp_path / "cards").iterdir()) == sorted(p.name for p in paths)


def test_a_name_never_leaves_the_folder():
    assert card_name({"arm": "../few_shot(4)", "method": "a/b", "seed": 1}) == "..-few_shot-4--a-b-seed1.md"
