"""A hub that can't be reached costs one knock, not half a minute a file."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import datasets
import huggingface_hub
import pytest

from w2s_tasks.rows import hub

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


def closed_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An address where nobody listens, and no word of the user's about being offline."""
    address = f"http://127.0.0.1:{closed_port()}"
    monkeypatch.setenv("HF_ENDPOINT", address)
    for name in (*hub.SETTINGS, *PROXIES, *map(str.upper, PROXIES)):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    hub.knock.cache_clear()
    yield address
    os.environ.pop("HF_HUB_OFFLINE", None)
    hub.knock.cache_clear()


def test_where_nobody_answers_every_client_goes_offline(nobody: str):
    hub.settle()
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert huggingface_hub.is_offline_mode()
    assert datasets.config.HF_HUB_OFFLINE


def test_where_a_mirror_answers_nothing_changes(nobody: str, monkeypatch: pytest.MonkeyPatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert hub.problem() is None
        hub.settle()
    assert "HF_HUB_OFFLINE" not in os.environ
    assert not huggingface_hub.is_offline_mode()


@pytest.mark.parametrize("setting", hub.SETTINGS)
def test_a_users_own_setting_is_left_alone(nobody: str, monkeypatch: pytest.MonkeyPatch, setting: str):
    monkeypatch.setenv(setting, "0")
    knocks: list[int] = []
    monkeypatch.setattr(hub, "problem", lambda: knocks.append(1))
    hub.settle()
    assert not knocks
    assert os.environ[setting] == "0"
    assert not huggingface_hub.is_offline_mode()


def test_behind_a_proxy_the_client_is_left_to_ask(nobody: str, monkeypatch: pytest.MonkeyPatch):
    assert hub.problem()
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert hub.problem() is None
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert hub.problem()


def test_an_evaluation_without_the_hub_never_tries_twice(nobody: str, tmp_path: Path):
    """lm_eval asks the hub for the tokenizer of its dummy model."""
    command = [sys.executable, "-m", "trainers.cli", "eval", "--model", "dummy", "--tasks", "w2s_ethics_probe_justice"]
    command += ["--limit", "2", "--output_path", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "Retry" not in done.stdout + done.stderr
    assert list((tmp_path / "out").rglob("results_*.json"))
