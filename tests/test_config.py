"""Mistakes in an experiment file are told with file, line and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainers.config import reading
from w2s_tasks.errors import UserError

GOOD = """\
task: w2s_sst2
split: {by: source, limit: {weak: 100, transfer: 50}}
weak: {model: "pypi:all-minilm-l6-v2", lr: 5e-5}
strong: {model: "pypi:smollm2-135m-instruct"}
"""


def test_defaults_and_short_forms():
    found = reading.parse(GOOD.replace("{by: source, limit: {weak: 100, transfer: 50}}", "study"), "x.yaml")
    assert found.split.by == "study"
    assert found.weak.lr == pytest.approx(5e-5)
    assert found.arms == ["zero_shot", "student", "ceiling", "random_labels"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "tsak: x\n", r"x\.yaml:5: tsak: unknown key\. Did you mean 'task'\?"),
        (GOOD.replace("lr: 5e-5", "lrr: 5e-5"), r"x\.yaml:3: weak\.lrr: unknown key\. Did you mean 'lr'\?"),
        (
            GOOD.replace("transfer: 50", "transfr: 50"),
            r"x\.yaml:2: split\.limit\.transfr: unknown key\. Did you mean 'transfer'\?",
        ),
        (GOOD.replace("5e-5", "fast"), r"x\.yaml:3: weak\.lr: Input should be a valid number.*got 'fast'"),
        (GOOD.replace("5e-5", "-1"), r"weak\.lr: Input should be greater than 0"),
        (GOOD.replace("task: w2s_sst2\n", ""), r"x\.yaml: task: this key is missing"),
        (GOOD + "arms: [zero_shot, studnet]\n", r"no arm 'studnet'\. Did you mean 'student'\?"),
        (GOOD + "methods: [xnet]\n", r"no method 'xnet'\. Did you mean 'xent'\?"),
        (GOOD + "arms: [student, student]\n", "a name occurs twice"),
        (GOOD + "seeds: []\n", "at least 1 item"),
        (GOOD + "seeds: [1, 1]\n", "a seed occurs twice"),
        (GOOD + "name: ../up\n", "name: String should match pattern"),
        (GOOD.replace("lr: 5e-5", "model_args: {api_key: sk-1}"), "looks like a secret"),
        (GOOD.replace("lr: 5e-5", "model_args: {trust_remote_code: true}"), "trust_remote_code is off"),
        ("task: [", r"x\.yaml:1: not YAML"),
        ("- a\n", "an experiment is a mapping"),
        ("", "an experiment is a mapping"),
        (
            GOOD.replace('smollm2-135m-instruct"', 'smollm2-135m-instruct", system_prompt: hi'),
            "system_prompt needs chat_template",
        ),
    ],
)
def test_mistakes_are_named(text: str, message: str):
    with pytest.raises(UserError, match=message):
        reading.parse(text, "x.yaml")


def test_set_overrides_nested_keys():
    found = reading.parse(
        GOOD, "x", ["strong.lr=1e-3", "seeds=[0, 1]", "split.limit.weak=64", "safety={tasks: [w2s_ethics]}"]
    )
    assert (found.strong.lr, found.seeds, found.split.limit.weak) == (1e-3, [0, 1], 64)
    assert found.safety is not None
    assert found.safety.tasks == ["w2s_ethics"]


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("strong.lr", "write key=value"),
        ("task.x=1", "no section"),
        ("strong.lrr=1", "Did you mean 'lr'"),
        ("seeds=[", "not YAML"),
    ],
)
def test_bad_overrides_are_named(assignment: str, message: str):
    with pytest.raises(UserError, match=message):
        reading.parse(GOOD, "x.yaml", [assignment])


@pytest.mark.parametrize("path", sorted(reading.shipped().values()), ids=lambda p: p.stem)
def test_every_shipped_experiment_is_valid(path: Path):
    found, _ = reading.load(str(path))
    assert found.name == path.stem


def test_shipped_experiments_are_found_by_name_and_near_misses_suggested():
    assert reading.find_config("quickstart").name == "quickstart.yaml"
    with pytest.raises(UserError, match="Did you mean 'quickstart'"):
        reading.find_config("quickstrat")


def test_a_bom_and_crlf_are_forgiven_and_bad_bytes_are_not(tmp_path: Path):
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert reading.load(str(path))[0].task == "w2s_sst2"
    path.write_bytes(b"task: \xff\xfe\n")
    with pytest.raises(UserError, match="not readable as UTF-8"):
        reading.load(str(path))
