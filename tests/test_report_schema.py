"""report.json is what its types say, and the types are what `w2s report --schema` prints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from typer.testing import CliRunner

from trainers import cli
from trainers.report.section import Report, json_schema
from w2s_tasks.errors import UserError


def test_a_report_is_read_back_as_it_was_written(report: dict[str, Any]):
    assert Report.read(report, Path("report.json")).json() == report
    assert all(report[key] for key in ("arms", "gaps", "safety", "safety_gaps", "drift", "ladder", "curves", "tradeoff"))


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "a key of no type": lambda r: r["arms"][0].update(colour="red"),
    "a key that is missing": lambda r: r["gaps"][0].pop("gap_ci95"),
    "a word for a number": lambda r: r["safety"][0].update(acc="high"),
    "another contrast": lambda r: r["safety_gaps"][0].update(contrast="to_nothing"),
    "an interval of three": lambda r: r["arm_means"][0].update(ci95=[0.1, 0.2, 0.3]),
    "what is not finite": lambda r: r["weak_labels"][0].update(acc=float("nan")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_does_not_fit_is_refused(report: dict[str, Any], change: str):
    CHANGES[change](report)
    with pytest.raises(UserError, match="cut or altered"):
        Report.read(report, Path("report.json"))


def test_a_key_of_no_section_is_refused(report: dict[str, Any]):
    with pytest.raises(UserError, match="keys of no section: colour"):
        Report.read({**report, "colour": "red"}, Path("report.json"))


def test_the_schema_is_printed():
    done = CliRunner().invoke(cli.app, ["report", "--schema"])
    assert done.exit_code == 0
    schema = json.loads(done.output)
    assert schema == json_schema()
    assert {"arms", "gaps", "safety_gaps", "schema"} <= set(schema["properties"])


def test_a_report_is_what_its_json_schema_says(report: dict[str, Any]):
    schema = json_schema()
    assert set(schema["required"]) == set(report)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(report, schema)
    report["gaps"][0]["pgr"] = "much"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(report, schema)
