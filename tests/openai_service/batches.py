"""Batches: requests from a file, answered into a file; they can expire half-way, fail, or lose lines."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from openai.types import Batch, batch_create_params

from .app import Answer, ApiError, Request, Service, route
from .chat import KINDS, answer
from .files import Files

MAX_REQUESTS = 50_000


@dataclass
class Batches:
    """All batches, newest last, and how the next ones will go. ``len(batches.all)`` is what would have been paid."""

    all: dict[str, dict[str, Any]] = field(default_factory=dict)
    polls: int = 2
    """How often a batch is retrieved before it ends."""
    left: dict[str, int] = field(default_factory=dict)
    expire_after: int | None = None
    """The next batch answers so many of its requests and expires."""
    lines: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    """Makes every line of the output file from its line of the input, in place of an answer."""
    said: dict[str, str] = field(default_factory=dict)
    """Words that answers have for a state in place of the service's own."""
    fail: str | None = None
    """The next batch fails as a whole, with this message."""


@route("POST", r"/v1/batches")
def create_batch(service: Service, request: Request) -> Answer:
    """Take a batch in."""
    body = request.json(batch_create_params.BatchCreateParams)
    content = service.part(Files).get(body["input_file_id"]).content
    lines = content.decode().splitlines()
    if len(lines) > MAX_REQUESTS:
        raise ApiError(400, "A batch holds at most 50,000 requests.", "too_many_requests")
    ids = [json.loads(line)["custom_id"] for line in lines]
    if len(set(ids)) != len(ids):
        raise ApiError(400, "A custom_id occurs twice.", "duplicate_custom_id")
    data = {
        "id": service.new_id("batch"),
        "object": "batch",
        "endpoint": body["endpoint"],
        "input_file_id": body["input_file_id"],
        "completion_window": body["completion_window"],
        "status": "validating",
        "created_at": int(time.time()),
        "metadata": body.get("metadata"),
        "request_counts": {"total": len(lines), "completed": 0, "failed": 0},
    }
    with service.lock:
        batches = service.part(Batches)
        batches.all[data["id"]] = data
        batches.left[data["id"]] = batches.polls
    return Answer.of(Batch, data)


def _line(service: Service, request: Request, line: dict[str, Any]) -> dict[str, Any]:
    """One request of a batch, answered as if it came by itself."""
    one = dataclasses.replace(request, method="POST", path=line["url"], body=json.dumps(line["body"]).encode())
    try:
        if line["url"] not in KINDS:
            raise ApiError(400, f"The URL {line['url']} can't be batched.", "invalid_url")
        status, body = 200, json.loads(answer(service, one).body)
    except ApiError as error:
        status, body = error.status, error.body
    response = {"status_code": status, "request_id": service.new_id("req"), "body": body}
    return {"id": service.new_id("batch_req"), "custom_id": line["custom_id"], "response": response, "error": None}


def _store(service: Service, name: str, rows: list[dict[str, Any]]) -> str | None:
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return service.part(Files).add(service, name, "batch", content).data["id"] if rows else None


def _finish(service: Service, request: Request, data: dict[str, Any]) -> None:
    """Answer a batch's requests and write its files."""
    batches = service.part(Batches)
    if batches.fail:
        data["status"] = "failed"
        data["errors"] = {
            "object": "list",
            "data": [{"code": "invalid", "message": batches.fail, "line": None, "param": None}],
        }
        batches.fail = None
        return
    lines = [json.loads(line) for line in service.part(Files).get(data["input_file_id"]).content.decode().splitlines()]
    n = len(lines) if batches.expire_after is None else batches.expire_after
    data["status"] = "completed" if batches.expire_after is None else "expired"
    batches.expire_after = None
    rows = [batches.lines(line) if batches.lines else _line(service, request, line) for line in lines[:n]]
    good = [row for row in rows if (row["response"] or {}).get("status_code") == 200]
    expired = [
        {
            "id": service.new_id("batch_req"),
            "custom_id": line["custom_id"],
            "response": None,
            "error": {
                "code": "batch_expired",
                "message": "This request could not be executed before the completion window expired.",
            },
        }
        for line in lines[n:]
    ]
    # Answers come back in an order of the service's own.
    data["output_file_id"] = _store(service, "output.jsonl", good[::-1])
    data["error_file_id"] = _store(service, "errors.jsonl", [r for r in rows if r not in good] + expired)
    data["request_counts"] = {"total": len(lines), "completed": len(good), "failed": len(lines) - len(good)}


@route("GET", r"/v1/batches/([^/]+)")
def retrieve_batch(service: Service, request: Request, name: str) -> Answer:
    """One batch; each look brings it on."""
    batches = service.part(Batches)
    with service.lock:
        if name not in batches.all:
            raise ApiError(404, f"No batch found with id '{name}'.", "not_found")
        data = batches.all[name]
        if data["status"] in ("validating", "in_progress"):
            batches.left[name] -= 1
            data["status"] = "in_progress"
            if batches.left[name] <= 0:
                _finish(service, request, data)
    said = batches.said.get(data["status"])
    return Answer.of(Batch, data | ({"status": said} if said else {}), check=said is None)


@route("GET", r"/v1/batches")
def list_batches(service: Service, request: Request) -> Answer:
    """Newest first."""
    return Answer.page(Batch, list(service.part(Batches).all.values())[::-1], request)
