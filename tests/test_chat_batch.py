"""The Batch API: half the price, each request paid once whatever happens, and the same answers as asked directly."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from chat_client import ask, questions
from chat_support import arguments, chosen, evaluate, stored
from openai_service import Service
from openai_service.batches import Batches
from openai_service.chat import Chat

from w2s_tasks.errors import UserError
from w2s_tasks.models.chat.batch import split

TASK = ["own_reviews"]
CREATE = "POST /v1/batches"


def batched(service: Service, folder: Path, **more: Any) -> dict[str, Any]:
    return arguments(service, folder, batch=True, **more)


def test_a_batch_gives_the_answers_of_direct_requests_at_half_the_price(
    service: Service, own_task: Path, tmp_path: Path
) -> None:
    (tmp_path / "prices.yaml").write_text("as_of: 2026-11-01\nmodels: {tiny: {input: 100, output: 100}}\n", "utf-8")
    prices = str(tmp_path / "prices.yaml")
    direct = evaluate("w2s-chat", arguments(service, tmp_path / "a", prices=prices), TASK, own_task)
    assert len(service.part(Chat).asked) == 60
    results = evaluate("w2s-chat", batched(service, tmp_path / "b", prices=prices), TASK, own_task)
    # One document goes ahead directly, to learn what the endpoint takes; the batch answers in an order of its own.
    assert len(service.part(Chat).asked) == 60 + 60
    assert len(service.part(Batches).all) == 1
    assert next(iter(service.part(Batches).all.values()))["request_counts"]["total"] == 59
    assert chosen(results, "own_reviews") == chosen(direct, "own_reviews")
    assert results["config"]["api_usage"]["cost_usd"] == pytest.approx(
        direct["config"]["api_usage"]["cost_usd"] / 2, rel=0.02
    )
    assert not list((tmp_path / "b").rglob("*.batches"))
    again = evaluate("w2s-chat", batched(service, tmp_path / "b"), TASK, own_task)
    assert again["config"]["api_usage"]["requests"] == 0
    assert len(service.part(Batches).all) == 1


def test_what_expires_is_sent_again_and_nothing_else(service: Service, own_task: Path, tmp_path: Path) -> None:
    service.part(Batches).expire_after = 20
    evaluate("w2s-chat", batched(service, tmp_path), TASK, own_task)
    assert [b["request_counts"]["total"] for b in service.part(Batches).all.values()] == [59, 39]
    found = [a["key"] for a in stored(tmp_path)]
    assert len(found) == len(set(found)) == len(service.part(Chat).asked) == 60


def test_a_batch_that_expires_untouched_is_sent_again(service: Service, own_task: Path, tmp_path: Path) -> None:
    service.part(Batches).expire_after = 0
    evaluate("w2s-chat", batched(service, tmp_path), TASK, own_task, limit=10)
    assert [b["status"] for b in service.part(Batches).all.values()] == ["expired", "completed"]
    assert len(stored(tmp_path)) == 10


@pytest.mark.parametrize("kind", ["lost", "malformed", "truncated", "reset", "status"])
def test_a_creation_whose_answer_is_lost_makes_one_batch(
    service: Service, own_task: Path, tmp_path: Path, kind: str
) -> None:
    service.faults.add(CREATE, kind, times=1)
    evaluate("w2s-chat", batched(service, tmp_path), TASK, own_task, limit=10)
    assert len(service.part(Batches).all) == 1
    assert len(stored(tmp_path)) == len(service.part(Chat).asked) == 10


@pytest.mark.parametrize(
    "where",
    [
        ("POST /v1/files", "hang_after"),
        (CREATE, "hang_before"),
        (CREATE, "hang_after"),
        (r"GET /v1/batches/[^/]+", "hang_after"),
        (r"GET /v1/files/[^/]+/content", "hang_after"),
    ],
)
def test_killed_anywhere_a_second_run_finds_the_first_batch(
    service: Service, tmp_path: Path, where: tuple[str, Any]
) -> None:
    held = service.faults.add(*where)
    store = tmp_path / "store.jsonl"
    script = str(Path(__file__).parent / "chat_client.py")
    process = subprocess.Popen([sys.executable, script, service.base_url, str(store), "10", "batch"])
    try:
        assert held.reached.wait(60)
    finally:
        process.kill()
        process.wait()
    service.faults.clear()
    ask(service.base_url, store, questions(10), batch=True)
    assert len(service.part(Batches).all) == 1
    found = [a["key"] for a in stored(tmp_path)]
    assert len(found) == len(set(found)) == len(service.part(Chat).asked) == 10


def test_a_batch_that_fails_as_a_whole_says_why(service: Service, own_task: Path, tmp_path: Path) -> None:
    service.part(Batches).fail = "Enqueued token limit reached."
    with pytest.raises(UserError, match=r"refused the batch .* as a whole: Enqueued token limit reached\."):
        evaluate("w2s-chat", batched(service, tmp_path), TASK, own_task, limit=10)
    evaluate("w2s-chat", batched(service, tmp_path), TASK, own_task, limit=10)
    assert len(stored(tmp_path)) == 10


def test_one_refused_line_is_told_and_the_others_are_kept(service: Service, own_task: Path, tmp_path: Path) -> None:
    texts = [json.loads(line)["text"] for line in (own_task / "test.jsonl").read_text().splitlines()]
    service.part(Chat).filtered = texts[3]
    results = evaluate("w2s-chat", batched(service, tmp_path), TASK, own_task, limit=10)
    assert results["config"]["scoring"]["own_reviews"]["unlisted"] == 0.1


def test_a_batch_over_the_budget_is_not_sent(service: Service, own_task: Path, tmp_path: Path) -> None:
    (tmp_path / "prices.yaml").write_text("as_of: 2026-11-01\nmodels: {tiny: {input: 100, output: 100}}\n", "utf-8")
    args = batched(service, tmp_path, prices=str(tmp_path / "prices.yaml"), max_cost=0.02)
    with pytest.raises(UserError, match=r"more than is left of max_cost=0\.02 USD .* Nothing was sent\."):
        evaluate("w2s-chat", args, TASK, own_task)
    assert not service.part(Batches).all


def test_generated_text_in_a_batch(service: Service, tmp_path: Path) -> None:
    task = ["w2s_ethics_probe_justice_gen"]
    direct = evaluate("w2s-chat", arguments(service, tmp_path / "a"), task, None, limit=4)
    results = evaluate("w2s-chat", batched(service, tmp_path / "b"), task, None, limit=4)
    texts = [[s["resps"] for s in r["samples"][task[0]]] for r in (direct, results)]
    assert texts[0] == texts[1]


def test_files_keep_the_services_limits() -> None:
    lines = [b"x" * 9 + b"\n"] * 25
    assert [len(p) for p in split(lines, max_requests=10)] == [10, 10, 5]
    assert [len(p) for p in split(lines, max_bytes=45)] == [4] * 6 + [1]
    assert list(split([])) == []
