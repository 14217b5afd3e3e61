"""Many requests at once: nothing lost, nothing asked twice, the budget kept, the key shown nowhere; real HTTP throughout."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from chat_client import ask, questions
from chat_support import arguments, command, evaluate, stored
from openai_service import Service
from openai_service.chat import Chat

from w2s_tasks.errors import UserError
from w2s_tasks.models.chat.client import Connection
from w2s_tasks.models.chat.replies import RefusedError, Reply, Usage
from w2s_tasks.models.chat.store import AnswerStore
from w2s_tasks.models.chat.transport import AdaptiveLimit, Meter, Policy, Sender
from w2s_tasks.models.chat.wire import Endpoint, Request
from w2s_tasks.models.prices import TokenPrice
from w2s_tasks.models.service import retry_after

CHAT = "POST /v1/chat/completions"
FAULTS: dict[str, dict[str, Any]] = {
    "reset": {},
    "lost": {},
    "malformed": {},
    "truncated": {},
    "html": {},
    "slow": {"seconds": 0.05},
}


def sender(service: Service, folder: Path, meter: Meter | None = None, **policy: Any) -> Sender:
    """A sender to the stand-in with quick retries."""
    endpoint = Endpoint(service.base_url, "tiny")
    connection = Connection(endpoint, "OPENAI_API_KEY", 30)
    settings = {"backoff": 0.01, **policy}
    return Sender(connection, AnswerStore(folder / "store.jsonl"), meter or Meter(None), Policy(**settings))


def keys(s: Sender, requests: list[Request]) -> list[str]:
    return [r.key(s.endpoint) for r in requests]


def test_a_thousand_requests_against_a_server_that_fails_a_third_lose_none(service: Service, tmp_path: Path) -> None:
    for kind, settings in FAULTS.items():
        service.faults.add(CHAT, kind, times=10**9, share=0.04, **settings)
    service.faults.add(CHAT, "status", times=10**9, share=0.05, status=500)
    service.faults.add(CHAT, "status", times=10**9, share=0.05, status=429, retry_after="0")
    requests = questions(1000)
    s = sender(service, tmp_path)
    s.ask(requests, "test", quiet=True)
    answers = stored(tmp_path)
    assert sorted(a["key"] for a in answers) == sorted(keys(s, requests))
    failed = sum(r.fault not in (None, "slow") for r in service.log)
    assert failed > 250
    # The same answers as from a server that never fails.
    service.faults.clear()
    calm = sender(service, tmp_path / "calm")
    calm.ask(requests[:50], "test", quiet=True)
    for key in keys(s, requests)[:50]:
        assert s.store.get(key) == calm.store.get(key)


@pytest.mark.parametrize("status", [400, 403, 422])
def test_a_refusal_is_not_repeated(service: Service, tmp_path: Path, status: int) -> None:
    service.faults.add(CHAT, "status", times=10**9, status=status, message="No.")
    with pytest.raises(RefusedError):
        sender(service, tmp_path, concurrency=1).ask(questions(3), "test", quiet=True)
    assert service.count("POST", "/v1/chat/completions") == 1


def test_no_credit_is_said_at_once(service: Service, tmp_path: Path) -> None:
    service.faults.add(
        CHAT, "status", times=10**9, status=429, code="insufficient_quota", message="You exceeded your quota."
    )
    s = sender(service, tmp_path)
    with pytest.raises(RefusedError) as error:
        s.ask(questions(1), "test", quiet=True)
    assert service.count("POST", "/v1/chat/completions") == 1
    assert "quota is used up" in str(s.connection.explain(error.value))


def test_retries_are_bounded_and_end_in_a_sentence(service: Service, tmp_path: Path) -> None:
    service.faults.add(CHAT, "status", times=10**9, status=503, message="Overloaded.")
    with pytest.raises(UserError, match=r"failed 4 times for one request; the last time: 503: Overloaded\."):
        sender(service, tmp_path, retries=3).ask(questions(1), "test", quiet=True)
    assert service.count("POST", "/v1/chat/completions") == 4


def test_retry_after_is_waited_for(service: Service, tmp_path: Path) -> None:
    service.faults.add(CHAT, "status", status=429, retry_after="0.4")
    start = time.monotonic()
    sender(service, tmp_path, concurrency=1).ask(questions(1), "test", quiet=True)
    assert time.monotonic() - start >= 0.4
    assert service.count("POST", "/v1/chat/completions") == 2


def test_an_answer_that_trickles_is_given_up(service: Service, tmp_path: Path) -> None:
    service.faults.add(CHAT, "slow", times=1, seconds=3.0)
    s = sender(service, tmp_path, timeout=0.5)
    s.ask(questions(1), "test", quiet=True)
    assert service.count("POST", "/v1/chat/completions") >= 2 or len(s.store) == 1


def test_retry_after_in_all_its_forms() -> None:
    assert retry_after({"retry-after": "7"}) == 7.0
    assert retry_after({"retry-after-ms": "250"}) == 0.25
    assert retry_after({"retry-after": formatdate(1_000_030, usegmt=True)}, now=1_000_000) == 30.0
    assert retry_after({"retry-after": formatdate(999_000, usegmt=True)}, now=1_000_000) == 0.0
    assert retry_after({"retry-after": "soon"}) is None
    assert retry_after({}) is None


def test_the_limit_halves_once_for_a_window_of_429s_and_grows_slowly() -> None:
    async def check() -> None:
        limit = AdaptiveLimit(32, start=8)
        for _ in range(8):
            limit.too_many(0.0)
        assert limit.size == 4
        for _ in range(4):
            limit.succeeded()
        assert 4.5 < limit.size < 5.2
        for _ in range(5000):
            limit.succeeded()
        assert limit.size == 32

    asyncio.run(check())


def test_never_more_in_flight_than_the_limit() -> None:
    async def check() -> int:
        limit, most = AdaptiveLimit(4, start=3), 0

        async def one() -> None:
            nonlocal most
            async with limit.slot():
                most = max(most, limit.in_flight)
                await asyncio.sleep(0.001)

        await asyncio.gather(*(one() for _ in range(50)))
        assert limit.in_flight == 0
        return most

    assert asyncio.run(check()) == 3


def test_identical_requests_are_asked_once(service: Service, tmp_path: Path) -> None:
    s = sender(service, tmp_path)
    s.ask(questions(5) * 4, "test", quiet=True)
    assert len(service.part(Chat).asked) == len(s.store) == 5


# --- the store ------------------------------------------------------------------------------------------------------------


def test_a_torn_last_line_costs_one_answer_only(service: Service, tmp_path: Path) -> None:
    s = sender(service, tmp_path)
    s.ask(questions(10), "test", quiet=True)
    data = s.store.path.read_bytes()
    s.store.path.write_bytes(data[:-40])
    again = sender(service, tmp_path)
    assert len(again.store) == 9
    again.ask(questions(10), "test", quiet=True)
    assert len(service.part(Chat).asked) == 11
    assert len(AnswerStore(s.store.path)) == 10
    assert all(again.store.get(k) == s.store.get(k) for k in keys(s, questions(10)))


def test_answers_survive_the_way_to_disk_and_back(tmp_path: Path) -> None:
    reply = Reply('Zoë said: "no"\n\u2028', "stop", (), Usage(3, 4, 1), "m")
    with AnswerStore(tmp_path / "a" / "s.jsonl") as store:
        store.add("k", reply)
        store.add("none", Reply(None, None, None, Usage(), ""))
    loaded = AnswerStore(tmp_path / "a" / "s.jsonl")
    assert loaded.get("k") == reply
    assert loaded.get("none") == Reply(None, None, None, Usage(), "")


# --- money ----------------------------------------------------------------------------------------------------------------

PRICES = "as_of: 2026-11-01\nmodels:\n  tiny: {input: 100, output: 100}\n"


def test_the_budget_stops_cleanly_and_a_larger_one_goes_on(service: Service, own_task: Path, tmp_path: Path) -> None:
    (tmp_path / "prices.yaml").write_text(PRICES, "utf-8")
    args = arguments(service, tmp_path, prices=str(tmp_path / "prices.yaml"), max_cost=0.06)
    with pytest.raises(UserError, match=r"the budget max_cost=0\.06 USD does not cover the next request"):
        evaluate("w2s-chat", args, ["own_reviews"], own_task)
    first = len(service.part(Chat).asked)
    assert 0 < first == len(stored(tmp_path)) < 60
    tokens = sum(a["usage"]["prompt"] + a["usage"]["completion"] for a in stored(tmp_path))
    assert tokens * 100 / 1e6 <= 0.06
    results = evaluate("w2s-chat", args | {"max_cost": 10.0}, ["own_reviews"], own_task)
    assert len(service.part(Chat).asked) == 60
    usage = results["config"]["api_usage"]
    assert usage["requests"] == 60 - first
    assert usage["cost_usd"] == pytest.approx((usage["prompt_tokens"] + usage["completion_tokens"]) * 100 / 1e6, abs=1e-6)


def test_money_is_set_aside_for_requests_in_flight() -> None:
    meter = Meter(TokenPrice(input=1.0, output=1.0), max_cost=1.0)
    assert meter.reserve(0.6)
    assert not meter.reserve(0.6)
    meter.release(0.6)
    meter.add(Usage(500_000, 0))
    assert meter.cost == 0.5
    assert meter.reserve(0.5)


# --- kills and keys -------------------------------------------------------------------------------------------------------


def test_killed_in_the_middle_a_second_run_asks_only_what_is_missing(service: Service, tmp_path: Path) -> None:
    held = service.faults.add(CHAT, "hang_before", skip=25, times=10**9)
    store = tmp_path / "store.jsonl"
    script = str(Path(__file__).parent / "chat_client.py")
    process = subprocess.Popen([sys.executable, script, service.base_url, str(store), "60"])
    try:
        assert held.reached.wait(60)
        deadline = time.monotonic() + 30
        while len(stored(tmp_path)) < 25 and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    service.faults.clear()
    assert len(stored(tmp_path)) == len(service.part(Chat).asked) == 25
    ask(service.base_url, store, questions(60))
    assert len(service.part(Chat).asked) == 60
    found = [a["key"] for a in stored(tmp_path)]
    assert len(found) == len(set(found)) == 60


CANARY = "sk-canary-7f3a9c51d2e84b60"


def _run(own_task: Path, args: dict[str, Any], home: Path, *more: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "MY_KEY": CANARY,
        "OPENAI_API_KEY": "",
        "OPENAI_LOG": "debug",
        "W2S_CACHE": str(home / "cache"),
    }
    parts = command(own_task, args, "--log_samples", "--output_path", str(home / "out"), *more)
    return subprocess.run(parts, capture_output=True, text=True, check=False, env=environment, cwd=home)


def test_the_key_is_in_no_file_and_no_output(reviewer: Path, own_task: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    outputs = []
    with Service(models={"tiny": reviewer}, key=CANARY) as running:
        args = {"model": "tiny", "base_url": running.base_url, "api_key_env": "MY_KEY", "backoff": 0.01}
        running.faults.add(CHAT, "status", status=500, message=f"Upstream failed for {CANARY}", skip=2)
        running.faults.add(CHAT, "reset", skip=3)
        done = _run(own_task, args, home, "--limit", "8")
        assert done.returncode == 0, done.stderr[-2000:]
        outputs += [done.stdout, done.stderr]
        # A service that repeats the key in its refusal, and retries that run out.
        running.faults.add(CHAT, "status", times=2, status=500, message=f"Failed for {CANARY}")
        running.faults.add(CHAT, "status", times=99, status=401, message=f"Incorrect API key provided: {CANARY}.")
        done = _run(own_task, args | {"model": "tiny", "top_logprobs": 7}, home)
        assert done.returncode == 2
        assert "the key in $MY_KEY was not accepted" in done.stderr
        outputs += [done.stdout, done.stderr]
    done = _run(own_task, {"model": "tiny", "base_url": "http://127.0.0.1:9/v1", "api_key_env": CANARY}, home)
    assert done.returncode == 2
    outputs += [done.stdout, done.stderr]
    files = [p for p in home.rglob("*") if p.is_file()]
    assert any(p.name.startswith("results_") for p in files)
    assert any(p.suffix == ".jsonl" and "answers" in p.parts for p in files)
    assert not [p for p in files if CANARY.encode() in p.read_bytes()]
    assert not [o for o in outputs if CANARY in o]
    results = json.loads(next(p for p in files if p.name.startswith("results_")).read_text("utf-8"))
    assert results["config"]["model_args"]["api_key_env"] == "MY_KEY"


def _interruptible() -> None:
    """A shell starts background jobs with SIGINT ignored, and their children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_keeps_what_is_finished(service: Service, own_task: Path, tmp_path: Path) -> None:
    held = service.faults.add(CHAT, "hang_before", skip=10, times=10**9)
    process = subprocess.Popen(
        command(own_task, arguments(service, tmp_path, num_concurrent=2)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_interruptible,
    )
    try:
        assert held.reached.wait(60)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    assert process.returncode != 0
    assert "Traceback" not in errors
    assert len(stored(tmp_path)) == 10
