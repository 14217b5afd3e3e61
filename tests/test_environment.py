"""The environment in result files is lm_eval's own, collected once."""

from __future__ import annotations

from pathlib import Path

import pytest
from lm_eval.loggers import utils

from w2s_tasks.plugin import environment


def test_the_environment_is_lm_evals_and_collected_once(monkeypatch: pytest.MonkeyPatch):
    calls: list[int] = []
    original = environment.collect
    monkeypatch.setattr(environment, "collect", lambda: calls.append(1) or original())
    environment.begin.cache_clear()
    first: dict[str, object] = {"kept": 1}
    second: dict[str, object] = {}
    environment.add_env_info(first)
    environment.add_env_info(second)
    expected: dict[str, object] = {}
    utils.add_env_info(expected)
    assert first == expected | {"kept": 1}
    assert second == expected
    assert calls == [1]
    environment.begin.cache_clear()


def test_what_goes_wrong_in_the_background_is_raised_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch):
    def fail() -> dict[str, object]:
        raise OSError("no pip here")

    monkeypatch.setattr(environment, "collect", fail)
    environment.begin.cache_clear()
    with pytest.raises(OSError, match="no pip"):
        environment.add_env_info({})
    environment.begin.cache_clear()


def test_a_machine_that_cannot_be_described_stops_no_evaluation(monkeypatch: pytest.MonkeyPatch):
    failing = "def fail(): None.splitlines()  # as torch 2.6 without pip\ncollect_env.get_pretty_env_info = fail\n"
    monkeypatch.setattr(environment, "DESCRIBE", f"from torch.utils import collect_env\n{failing}{environment.DESCRIBE}")
    found = environment.collect()
    expected: dict[str, object] = {}
    utils.add_env_info(expected)
    assert found == expected | {"pretty_env_info": "AttributeError: 'NoneType' object has no attribute 'splitlines'"}


def test_no_module_of_the_working_folder_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "torch.py").write_text("raise SystemExit('run')")
    monkeypatch.chdir(tmp_path)
    assert "PyTorch version" in environment.describe()


def test_git_is_asked_once_and_complains_about_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    environment.git_commit.cache_clear()
    assert environment.git_commit() is None
    assert capfd.readouterr().err == ""
    assert environment.git_commit() == utils.get_git_commit_hash()  # which does complain
    assert capfd.readouterr().err
    environment.git_commit.cache_clear()
