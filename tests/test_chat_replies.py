"""What servers answer in place of OpenAI's shapes: read where it is an answer, told in its own words where it is none."""

from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from chat_client import questions
from chat_support import arguments, evaluate
from openai_service import Service
from openai_service.batches import Batches

from w2s_tasks.errors import UserError
from w2s_tasks.models.chat.choices import ChoiceSet, Position
from w2s_tasks.models.chat.client import Connection
from w2s_tasks.models.chat.replies import BadReplyError, RefusedError, Reply, Usage, read_body, refusal_of, token_text
from w2s_tasks.models.chat.states import Standing, standing
from w2s_tasks.models.chat.store import AnswerStore
from w2s_tasks.models.chat.transport import NEVER_REACHED, Meter, Policy, Sender
from w2s_tasks.models.chat.wire import Endpoint

CHAT = "POST /v1/chat/completions"
TASK = ["own_reviews"]


def choice(logprobs: Any = None, content: Any = "yes", **more: Any) -> dict[str, Any]:
    return {
        "index": 0,
        "finish_reason": "stop",
        "logprobs": logprobs,
        "message": {"role": "assistant", "content": content},
    } | more


def body(*choices: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"model": "m", "choices": list(choices)} | more).encode()


# --- answers in other shapes ----------------------------------------------------------------------------------------------

TOP = [{"token": "yes", "logprob": -0.1}, {"token": "no", "logprob": -2.5}]
FOUND = (Position("yes", -0.1, (("yes", -0.1), ("no", -2.5))),)
BARE = (Position("yes", -0.1, ()),)
LEGACY = {"tokens": ["yes"], "token_logprobs": [-0.1], "top_logprobs": [{"yes": -0.1, "no": -2.5}], "text_offset": [0]}


@pytest.mark.parametrize(
    ("logprobs", "positions"),
    [
        ({"content": [{"token": "yes", "logprob": -0.1, "top_logprobs": TOP}]}, FOUND),
        ([{"token": "yes", "logprob": -0.1, "top_logprobs": TOP}], FOUND),
        (LEGACY, FOUND),
        ({"content": None} | LEGACY, FOUND),
        ({"content": [{"token": "yes", "logprob": -0.1, "top_logprobs": {"yes": -0.1, "no": -2.5}}]}, FOUND),
        ({"content": [{"token": "yes", "logprob": None, "top_logprobs": TOP}]}, FOUND),
        ({"content": [{"token": "yes", "logprob": -9999.0, "top_logprobs": TOP}]}, FOUND),
        ({"content": [{"token": "yes", "logprob": -0.1, "top_logprobs": None}]}, BARE),
        ({"content": [{"token": "yes", "logprob": -0.1, "top_logprobs": []}]}, BARE),
        ({"content": [{"token": "yes", "logprob": -0.1}]}, BARE),
        (LEGACY | {"top_logprobs": None}, BARE),
        (None, None),
        ({}, None),
        ({"content": None}, None),
        ({"content": []}, None),
        ({"content": [{"token": "yes", "logprob": None, "top_logprobs": []}]}, None),
        ({"content": [{"token": "yes", "logprob": -9999.0, "top_logprobs": []}]}, None),
        ({"content": [{"token": "yes", "logprob": 17.5, "top_logprobs": []}]}, None),
        ({"content": [{"token": "yes", "logprob": "high", "top_logprobs": []}]}, None),
        ({"content": [{"id": 9, "logprob": -0.1}]}, None),
        ({"content": [{}]}, None),
        ({"content": [{"token": "yes", "logprob": -0.1, "top_logprobs": [*TOP, {"id": 3, "logprob": -4}]}]}, FOUND),
        ({"tokens": [9], "token_logprobs": [-0.1], "top_logprobs": [{"9": -0.1, "4": -2.5}]}, None),
        (LEGACY | {"token_logprobs": [None], "top_logprobs": [None]}, None),
        ("none", None),
    ],
)
@pytest.mark.parametrize("kind", ["chat", "completions"])
def test_log_probabilities_are_read_in_either_shape_at_either_endpoint(kind: Any, logprobs: Any, positions: Any) -> None:
    one = choice(logprobs)
    if kind == "completions":
        one["text"] = one.pop("message")["content"]
    assert read_body(kind, body(one)).positions == positions


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([{"type": "text", "text": "y"}, {"type": "text", "text": "es"}], "yes"),
        ([{"type": "reasoning", "text": "Hmm"}, {"type": "output_text", "text": "yes"}], "yes"),
        (["yes"], "yes"),
        ([], None),
        (None, None),
        ("", ""),
        ("\ud83d", "�"),
    ],
)
def test_text_may_come_in_parts(content: Any, text: str | None) -> None:
    reply = read_body("chat", body(choice(content=content)))
    assert (reply.text, reply.refusal) == (text, None)


@pytest.mark.parametrize(
    ("message", "text", "thought"),
    [
        ({"content": "yes"}, "yes", None),
        ({"content": "yes", "reasoning": ""}, "yes", None),
        ({"content": "yes", "reasoning_content": "Hm"}, "yes", "Hm"),
        ({"content": None, "reasoning": "Hm"}, None, "Hm"),
        ({"content": "<think>\nHm\n</think>\n\nyes"}, "yes", "Hm"),
        ({"content": "Hm, so</think>yes"}, "yes", "Hm, so"),
        ({"content": "<think>\nHm"}, "", "Hm"),
        ({"content": "[THINK]Hm[/THINK]yes"}, "yes", "Hm"),
        (
            {"content": "<|channel|>analysis<|message|>Hm<|end|><|start|>assistant<|channel|>final<|message|>yes"},
            "yes",
            "Hm",
        ),
        ({"content": "I think so"}, "I think so", None),
    ],
)
def test_thoughts_are_no_part_of_the_text(message: dict[str, Any], text: str | None, thought: str | None) -> None:
    reply = read_body("chat", body(choice(message={"role": "assistant"} | message)))
    assert (reply.text, reply.thought) == (text, thought)


def test_plain_text_is_left_as_it_is() -> None:
    reply = read_body("completions", body({"text": "<think>Hm</think>yes", "finish_reason": "stop"}))
    assert (reply.text, reply.thought) == ("<think>Hm</think>yes", None)


def test_a_call_of_a_tool_is_no_text() -> None:
    one = choice(content=None, finish_reason="tool_calls")
    one["message"]["tool_calls"] = [{"id": "x", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    reply = read_body("chat", body(one))
    assert (reply.text, reply.finish, reply.refusal) == (None, "tool_calls", None)


@pytest.mark.parametrize(
    ("usage", "counted"),
    [
        (None, Usage()),
        ({"prompt_tokens": "9", "completion_tokens": 1.0}, Usage(9, 1)),
        ({"prompt_tokens": None, "completion_tokens": "?", "prompt_tokens_details": []}, Usage()),
        ({"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 4}}, Usage(9, 0, 4)),
        ([1], Usage()),
    ],
)
def test_what_tokens_were_used_never_costs_the_answer(usage: Any, counted: Usage) -> None:
    assert read_body("chat", body(choice(), usage=usage)).usage == counted


# --- tokens ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token", "data", "text"),
    [
        ("yes", None, "yes"),
        ("yes", list(b"yes"), "yes"),
        ("Ġyes", None, " yes"),
        ("▁yes", None, " yes"),
        ("<0x0A>", None, "\n"),
        ("\\xe5\\xa5", [0xE5, 0xA5], "\udce5\udca5"),
        ("bytes:\\xe5\\xa5", None, "\udce5\udca5"),
        ("<0xE5>", None, "\udce5"),
        ("yes", ["y"], "yes"),
        ("yes", [], "yes"),
        ("yes", [999], "yes"),
    ],
)
def test_a_token_is_the_text_that_it_stands_for(token: str, data: Any, text: str) -> None:
    assert token_text(token, data) == text


def test_a_character_in_pieces_of_bytes_is_joined_and_scored() -> None:
    """Two choices whose first characters begin with the same byte: they part at the second piece."""
    good, bad = "好", "差"
    assert good.encode()[:1] == bad.encode()[:1]
    first = {"token": "\\xe5", "bytes": [0xE5], "logprob": -0.1}
    rest = [
        {"token": "?", "bytes": list(good.encode()[1:]), "logprob": -0.2},
        {"token": "?", "bytes": list(bad.encode()[1:]), "logprob": -1.7},
    ]
    content = [first | {"top_logprobs": [first]}, rest[0] | {"top_logprobs": rest}]
    reply = read_body("chat", body(choice({"content": content}, "好")))
    assert reply.positions is not None
    scores = ChoiceSet.of([good, bad]).score(reply.positions)
    assert scores.greedy == 0
    assert scores.loglik == pytest.approx((-0.3, -1.8))
    assert scores.floored == (False, False)


def test_pieces_of_bytes_survive_the_way_to_disk_and_back(tmp_path: Path) -> None:
    reply = Reply("yes", "stop", (Position("\udce5", -0.1, (("\udce5", -0.1),)),), Usage(), "m", None, "Hm")
    with AnswerStore(tmp_path / "s.jsonl") as store:
        store.add("k", reply)
    assert AnswerStore(tmp_path / "s.jsonl").get("k") == reply


# --- no answers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "an empty body"),
        (b"  \n", "an empty body"),
        (
            b"<!doctype html><html><head><style>p {}</style></head><body>LM&nbsp;Studio</body></html>",
            "an HTML page.*LM Studio$",
        ),
        (b"Service is starting", "no JSON: Service is starting"),
        (b'{"choices": [', "no JSON"),
        (b"\xff\xfe\x00\x01", "no JSON"),
        ("é".encode("latin-1"), "no JSON"),
        (gzip.compress(b"{}", mtime=0)[:9], "no JSON"),
        (
            b'data: {"choices": [{"delta": {"content": "y"}}]}\n\ndata: [DONE]\n',
            "a stream of events, though none was asked for",
        ),
        (b'event: error\ndata: {"message": "Overloaded"}\n', "a stream of events.*Overloaded"),
        (body(choice(message=None, delta={"content": "y"})), "a piece of a stream"),
        (body(), "no choices in it"),
        (b'{"choices": null, "usage": {}}', "no choices in it"),
        (b"[1]", "."),
        (b"null", "."),
        (b'"text"', "."),
        (b"{}", "KeyError"),
        (body(choice(content=3)), "the text is int"),
        (body(choice(content=[3])), "something else than parts"),
    ],
)
def test_what_is_no_answer_is_told_by_what_it_is(raw: bytes, said: str) -> None:
    with pytest.raises(BadReplyError, match=said):
        read_body("chat", raw)


@pytest.mark.parametrize(
    ("data", "status", "said"),
    [
        ({"error": {"message": "Insufficient credits", "code": 402}}, 402, "Insufficient credits"),
        ({"error": {"message": "Slow down", "code": "429"}}, 429, "Slow down"),
        ({"error": {"message": "Slow down", "code": "rate_limit_exceeded"}}, 429, "Slow down"),
        ({"error": {"message": "No key", "type": "authentication_error"}}, 401, "No key"),
        ({"error": {"message": "Busy", "type": "overloaded_error"}}, 503, "Busy"),
        ({"error": "model not loaded"}, 200, "model not loaded"),
        ({"error": ["one", "two"]}, 200, "one"),
        ({"error": {"errors": [1], "detail": "Odd"}}, 200, "Odd"),
        ({"errors": [{"message": "Bad field", "status": 400}]}, 400, "Bad field"),
        ({"object": "error", "message": "max_tokens too large", "code": 400}, 400, "max_tokens too large"),
        ({"detail": [{"loc": ["body"], "msg": "Field required"}]}, 200, "Field required"),
        ({"detail": [{"loc": ["body", "stop"], "msg": "Extra"}]}, 200, "stop: Extra"),
        ({"detail": "Not Found"}, 200, "Not Found"),
        ({"code": 500, "message": "Internal"}, 500, "Internal"),
        (
            {"choices": [{"error": {"message": "Provider failed", "code": 502}, "finish_reason": "error"}]},
            502,
            "Provider failed",
        ),
        ([{"error": {"message": "Wrapped", "code": 400}}], 400, "Wrapped"),
    ],
)
def test_an_error_with_status_200_is_an_error_in_its_own_words(data: Any, status: int, said: str) -> None:
    with pytest.raises(RefusedError) as caught:
        read_body("chat", json.dumps(data).encode())
    assert (caught.value.status, caught.value.message) == (status, said)


@pytest.mark.parametrize("error", [None, {}, "", False, {"message": None, "code": None}])
def test_an_empty_error_beside_an_answer_is_none(error: Any) -> None:
    assert read_body("chat", body(choice(), error=error)).text == "yes"


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"<html><h1>502 Bad Gateway</h1></html>", "502 Bad Gateway"),
        (b"", r"\(no words\)"),
        (b'{"error": {"message": "Nope"}}', "Nope"),
        (b'{"why": "because"}', "because"),
        (b'"plain"', "plain"),
        ("zu groß".encode("latin-1"), "zu gro"),
    ],
)
def test_an_error_status_is_told_in_the_services_words(raw: bytes, said: str) -> None:
    error = refusal_of(418, raw)
    assert error.status == 418
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(error.message)


# --- within seconds, over real HTTP ---------------------------------------------------------------------------------------

ANSWERS: dict[str, tuple[bytes, dict[str, Any], str]] = {
    "error": (b'{"error": {"message": "Rate limit exceeded: free-models-per-day", "code": 429}}', {}, "free-models-per-day"),
    "unnumbered": (b'{"error": "model is not loaded"}', {}, "model is not loaded"),
    "html": (b"<html><body>LM Studio</body></html>", {"content_type": "text/html"}, "an HTML page, no JSON: LM Studio"),
    "empty": (b"", {"status": 204}, "status 204.*an empty body"),
    "stream": (b"data: {}\n\n", {"content_type": "text/event-stream"}, "a stream of events, though none was asked for"),
    "latin": ("{é}".encode("latin-1"), {}, "no JSON"),
    "gzip": (b"no gzip at all", {"headers": {"Content-Encoding": "gzip"}}, "DecodingError"),
    "moved": (b"", {"status": 301, "headers": {"Location": "/login"}}, "redirected to http.*/login; is base_url right"),
    "round": (b"", {"status": 307, "headers": {"Location": "/v1/chat/completions"}}, "TooManyRedirects"),
    "no choices": (b'{"choices": [], "usage": {}}', {}, "no choices in it"),
    "gateway": (b'{"error": {"message": "logprobs are not supported here", "code": 500}}', {}, "logprobs are not supported"),
}


@pytest.mark.parametrize(("answer", "settings", "said"), ANSWERS.values(), ids=ANSWERS)
def test_the_default_patience_tells_what_the_service_says_within_seconds(
    service: Service, tmp_path: Path, answer: bytes, settings: dict[str, Any], said: str
) -> None:
    service.faults.add(CHAT, "body", **{"status": 200, "body": answer, "times": 10**9} | settings)
    connection = Connection(Endpoint(service.base_url, "tiny"), "OPENAI_API_KEY", 30)
    sender = Sender(connection, AnswerStore(tmp_path / "s.jsonl"), Meter(None), Policy())
    with pytest.raises((UserError, RefusedError)) as caught:
        sender.ask(questions(1), "test", quiet=True)
    asked = 0 if settings.get("status") == 307 else service.count("POST", CHAT.partition(" ")[2])
    assert asked <= NEVER_REACHED, "with all retries the default waits for minutes"
    error = caught.value if isinstance(caught.value, UserError) else connection.explain(caught.value)
    with pytest.raises(UserError, match=said):
        raise error
    assert service.key not in str(error)


def test_what_the_service_says_is_told_while_requests_wait(
    service: Service, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    service.faults.add(CHAT, "status", times=4, status=503, message="Warming up")
    connection = Connection(Endpoint(service.base_url, "tiny"), "OPENAI_API_KEY", 30)
    sender = Sender(connection, AnswerStore(tmp_path / "s.jsonl"), Meter(None), Policy(backoff=0.01))
    with caplog.at_level(logging.WARNING, "w2s_tasks"):
        sender.ask(questions(1), "test", quiet=True)
    assert caplog.text.count("503: Warming up") == 1


def test_an_endpoint_that_stops_giving_log_probabilities_is_named(service: Service, own_task: Path, tmp_path: Path) -> None:
    service.faults.add(CHAT, "body", status=200, body=body(choice(content="positive")), skip=3, times=4)
    with pytest.raises(UserError, match=r"4 of 10 answers without log-probabilities.*own_reviews, document.*mode=generated"):
        evaluate("w2s-chat", arguments(service, tmp_path), TASK, own_task, limit=10)


# --- batches --------------------------------------------------------------------------------------------------------------


def line(**fields: Any) -> Any:
    """Makes the lines of a batch's output from its input: each with these fields in place of an answer."""
    return lambda row: {"id": "x", "custom_id": row["custom_id"], "response": None, "error": None} | fields


LINES: dict[str, tuple[Any, str]] = {
    "an error": (line(error={"code": "model_not_found", "message": "No such deployment"}), "No such deployment"),
    "an error without a known code": (line(error={"code": "boom", "message": "It broke"}), "It broke"),
    "an error as text": (line(error="quota is over"), "quota is over"),
    "an error as the answer": (
        line(response={"status_code": 200, "body": {"error": {"message": "Bad field", "code": 400}}}),
        "Bad field",
    ),
    "an error as text in the body": (line(response={"status_code": 400, "body": '{"error": {"message": "Odd"}}'}), "Odd"),
    "a page": (line(response={"status_code": 403, "body": "<html>Forbidden zone</html>"}), "Forbidden zone"),
}


@pytest.mark.parametrize(("make", "said"), LINES.values(), ids=LINES)
def test_a_batch_line_that_holds_an_error_is_told_and_not_sent_again(
    service: Service, own_task: Path, tmp_path: Path, make: Any, said: str
) -> None:
    service.part(Batches).lines = make
    with pytest.raises(UserError, match=said):
        evaluate("w2s-chat", arguments(service, tmp_path, batch=True), TASK, own_task, limit=5)
    assert len(service.part(Batches).all) == 1


def test_lines_that_hold_nothing_are_sent_again_but_not_for_ever(service: Service, own_task: Path, tmp_path: Path) -> None:
    service.part(Batches).lines = line()
    with pytest.raises(UserError, match="without an answer 4 times; the last said: "):
        evaluate("w2s-chat", arguments(service, tmp_path, batch=True), TASK, own_task, limit=5)
    assert len(service.part(Batches).all) == 4


def test_a_refused_line_is_no_answer(service: Service, own_task: Path, tmp_path: Path) -> None:
    service.part(Batches).lines = line(error={"code": "content_filter", "message": "Filtered"})
    results = evaluate("w2s-chat", arguments(service, tmp_path, batch=True), TASK, own_task, limit=5)
    assert results["config"]["scoring"]["own_reviews"]["refused"] == 0.8


@pytest.mark.parametrize(("word", "ends"), [("Completed", True), ("hibernating", False)])
def test_a_batchs_state_is_understood_or_told(
    service: Service, own_task: Path, tmp_path: Path, word: str, ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("w2s_tasks.models.chat.batch.LONGEST_POLL", 0.02)
    service.part(Batches).said = {"completed": word}
    args = arguments(service, tmp_path, batch=True)
    if ends:
        assert evaluate("w2s-chat", args, TASK, own_task, limit=5)["results"]["own_reviews"]["acc,none"] > 0.5
    else:
        with pytest.raises(UserError, match=r"is 'hibernating', not known here.*goes on with it"):
            evaluate("w2s-chat", args, TASK, own_task, limit=5)


def test_a_batch_has_a_deadline(service: Service, own_task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("w2s_tasks.models.chat.batch.LONGEST_BATCH", 0.05)
    service.part(Batches).polls = 10**9
    with pytest.raises(UserError, match=r"is still 'in_progress' after .* hours"):
        evaluate("w2s-chat", arguments(service, tmp_path, batch=True), TASK, own_task, limit=5)


@pytest.mark.parametrize(
    ("word", "meaning"),
    [
        ("succeeded", Standing.SUCCEEDED),
        ("JOB_STATE_COMPLETED", Standing.SUCCEEDED),
        ("Canceled", Standing.CANCELLED),
        ("cancelling", Standing.GOING),
        ("validating-files", Standing.GOING),
        ("In Progress", Standing.GOING),
        ("ERROR", Standing.FAILED),
        ("expired", Standing.EXPIRED),
        ("", Standing.UNKNOWN),
        (None, Standing.UNKNOWN),
        ("not completed", Standing.UNKNOWN),
    ],
)
def test_states_in_any_services_words(word: object, meaning: Standing) -> None:
    assert standing(word) is meaning
