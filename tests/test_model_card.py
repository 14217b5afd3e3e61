"""Model cards: one a trained model, with its labels' provenance, its numbers and the command that measures it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from trainers.report.model_card import card, card_name, write_cards
from trainers.report.section import Report
from trainers.report.sections.accuracy import Accuracy

DIFFERENCE = {"value": -0.05, "low": -0.11, "high": 0.01, "n": 100, "p_holm": 0.4}


def of(data: dict[str, Any]) -> Report:
    """The report that a report.json of this content is."""
    return Report.read(json.loads(json.dumps(data)), Path("report.json"))


def card_of(arm: str, data: dict[str, Any]) -> str:
    """The card of an arm's first seed."""
    report = of(data)
    return card(next(m for m in report.of(Accuracy).arms if (m.arm, m.seed) == (arm, 0)), report)


@pytest.fixture
def changed(report: dict[str, Any]) -> dict[str, Any]:
    """A real run's report with numbers that are known here."""
    report["weak_labels"][0] |= {"n": 64, "acc": 0.75}
    report["config"]["weak"]["model"] = "weak/model"
    own = next(g for g in report["gaps"] if g["arm"] == "student")
    own |= {"pgr": 0.5, "ci95": [0.2, None], "defined": True, "reason": "one seed"}
    next(m for m in report["arms"] if m["arm"] == "student")["model"] = "base/model"
    first = next(g for g in report["safety_gaps"] if (g["arm"], g["subtask"]) == ("student", "justice"))
    first |= DIFFERENCE
    return report


def test_the_card_tells_where_labels_came_from_and_what_came_out(changed):
    text = card_of("student", changed)
    front = yaml.safe_load(text.split("---")[1])
    assert front["base_model"] == "base/model"
    assert front["library_name"] == "peft"
    assert "labels of the weak supervisor (weak/model), 75.0 % right on these 64 rows; no gold label was seen" in text
    assert "0.50 [0.20, unbounded]. One seed." in text
    assert "| justice | test | loglikelihood | 100 | untuned | -5.0 [-11.0, +1.0] | 0.4 |" in text
    command = next(c["command"] for c in changed["commands"] if c["arm"] == "student, seed 0")
    assert f"```bash\n{command}\n```" in text
    assert f"stages/{changed['stages']['fit/student, seed 0']}" in text


def test_the_supervisor_is_no_adapter_and_the_ceiling_has_no_pgr_of_its_own(changed):
    weak, ceiling = (card_of(arm, changed) for arm in ("weak", "ceiling"))
    assert yaml.safe_load(weak.split("---")[1])["library_name"] == "transformers"
    assert "PGR is 0 by definition" in weak
    assert "| r |" not in weak
    assert "PGR is 1 by definition" in ceiling
    assert "gold labels of the 64 rows that the student learns from" in ceiling


def test_undefined_pgr_is_said_not_numbered(changed):
    own = next(g for g in changed["gaps"] if g["arm"] == "student")
    own |= {"defined": False, "pgr": None, "ci95": None, "reason": "the ceiling is not significantly above"}
    assert "PGR [95 %]: undefined. The ceiling is not significantly above." in card_of("student", changed)


def test_one_card_for_each_trained_model_and_none_of_an_earlier_run(changed, tmp_path):
    (tmp_path / "cards").mkdir()
    (tmp_path / "cards" / "student-old-seed9.md").write_text("old")
    paths = write_cards(of(changed), tmp_path / "cards")
    arms = ("weak", "student", "ceiling", "random_labels")
    assert [p.name for p in paths] == [f"{arm}-seed{seed}.md" for arm in arms for seed in (0, 1)]
    assert sorted(p.name for p in (tmp_path / "cards").iterdir()) == sorted(p.name for p in paths)


def test_a_name_never_leaves_the_folder(changed):
    model = next(m for m in changed["arms"] if m["arm"] == "student")
    model |= {"arm": "../few_shot(4)", "method": "a/b", "seed": 1}
    named = next(m for m in of(changed).of(Accuracy).arms if m.method == "a/b")
    assert card_name(named) == "..-few_shot-4--a-b-seed1.md"
