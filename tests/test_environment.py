"""The environment in result files is lm_eval's own, collected once."""

from __future__ import annotations

import pytest
from lm_eval.loggers import utils

from w2s_tasks import environment


def test_the_environment_is_lm_evals_and_collected_once(monkeypatch: pytest.MonkeyPatch):
    calls: list[int] = []
    original = utils.add_env_info
    monkeypatch.setattr(utils, "add_env_info", lambda storage: (calls.append(1), original(storage)))
    environment.begin.cache_clear()
    first: dict[str, object] = {"kept": 1}
    second: dict[str, object] = {}
    environment.add_env_info(first)
    environment.add_env_info(second)
    expected: dict[str, object] = {}
    original(expected)
    assert first.keys() == expected.keys() | {"kept"}
    assert second["transformers_version"] == expected["transformers_version"]
    assert calls == [1]
    environment.begin.cache_clear()


def test_what_goes_wrong_in_the_background_is_raised_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch):
    def fail(storage: dict[str, object]) -> None:
        raise OSError("no pip here")

    monkeypatch.setattr(utils, "add_env_info", fail)
    environment.begin.cache_clear()
    with pytest.raises(OSError, match="no pip"):
        environment.add_env_info({})
    environment.begin.cache_clear()
