"""What w2s-chat makes of the answers of real servers (`tests/exchanges`): a right number, or one clear sentence."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance
from recorded_server import FOLDER, answering

from w2s_tasks.errors import UserError
from w2s_tasks.models.chat.model import UNCHOSEN, W2SChat
from w2s_tasks.scoring import no_answer

QUESTION = "Review: a warm, funny and honest film\nSentiment (positive or negative):"
CHOICES = (" negative", " positive")
POSITIVE, NEGATIVE = (UNCHOSEN, 0.0), (0.0, UNCHOSEN)
NONE = (no_answer.LOGLIK, no_answer.LOGLIK)


def total(*logprobs: float) -> float:
    """The log of summed probabilities."""
    return math.log(sum(map(math.exp, logprobs)))


BY_PROMPT = (total(-1.3215731382369995, -5.564075469970703), total(-1.2444514036178589, -5.078737258911133))
LISTED = (-1.35, total(-0.35, -4.2))
NO_THINKING = {"chat_template_kwargs": {"enable_thinking": False}}
LP = "log-probabilities"


def requests(n: int = 1) -> list[Instance]:
    """The question, asked as `n` documents of a task."""
    return [
        Instance("loglikelihood", {}, (QUESTION + " " * d, choice), i, ("film", d, 1))
        for d in range(n)
        for i, choice in enumerate(CHOICES)
    ]


def model(server: Any, folder: Path, **more: Any) -> W2SChat:
    return W2SChat(server.model, server.base_url, **{"store": str(folder), "backoff": 0.01, **more})


SCORED: list[tuple[str, str, dict[str, Any], tuple[float, float], list[str]]] = [
    ("llama_cpp", "listed", {}, (-5.214511394500732, -4.190413951873779), [LP, "tokens"]),
    ("llama_cpp", "schema", {"mode": "generated"}, NEGATIVE, ["object"]),
    ("llama_cpp", "cut", {"mode": "generated", "answer_tokens": 8}, NEGATIVE, ["object", "string"]),
    (
        "llama_cpp",
        "completions",
        {"endpoint": "completions"},
        BY_PROMPT,
        [LP],
    ),
    ("llama_cpp_python", "no logits", {}, POSITIVE, [LP, "object"]),
    ("transformers", "passed over", {}, NONE, [LP, "object", ""]),
    ("ollama", "since", {}, LISTED, [LP]),
    ("ollama", "before", {}, POSITIVE, [LP, "object"]),
    ("ollama", "at most 20", {"top_logprobs": 50}, LISTED, [LP]),
    ("lm_studio", "no log-probabilities", {}, POSITIVE, [LP, "object"]),
    ("lm_studio", "as a thought", {}, POSITIVE, [LP, "object"]),
    ("lm_studio", "another model", {}, POSITIVE, [LP, "object"]),
    ("mlx_lm", "listed", {"top_logprobs": 10}, LISTED, [LP]),
    ("mlx_lm", "numbers", {}, POSITIVE, [LP, "object"]),
    ("mlx_lm", "older numbers", {}, POSITIVE, [LP, "object"]),
    ("vllm", "misnamed", {"extra": NO_THINKING}, LISTED, [LP]),
    ("vllm", "blanks", {"mode": "generated"}, POSITIVE, ["object", "string"]),
    ("vllm", "only blanks", {"mode": "generated"}, POSITIVE, ["object", "string"]),
    ("vllm", "cut inside", {"mode": "generated"}, POSITIVE, ["object"]),
    ("vllm", "thought first", {"mode": "generated"}, POSITIVE, ["object"]),
    ("sglang", "listed", {}, LISTED, [LP]),
    ("tgi", "at most 5", {}, LISTED, [LP]),
    ("tgi", "top_p", {}, (math.log(1e-9), 0.0), [LP, "tokens"]),
    ("others", "blanks", {"mode": "generated"}, POSITIVE, ["object", "string", ""]),
    ("others", "detail", {}, POSITIVE, [LP, "object", ""]),
]

TOLD: list[tuple[str, str, dict[str, Any], str]] = [
    ("llama_cpp", "long", {}, r"a prompt is too long for the model: request \(5031 tokens\) exceeds.*fewer shots"),
    ("ollama", "thinking", {}, r"'llama3\.2:1b' at .* thinks before it answers.*reasoning_effort.*mode=generated"),
    ("ollama", "harmony", {}, "thinks before it answers"),
    ("ollama", "not pulled", {}, r"try pulling it first\. It has: llama3\.2:3b, qwen3:4b\. Did you mean 'llama3\.2:3b'"),
    ("ollama", "empty", {}, r"try pulling it first\. It has: none"),
    ("lm_studio", "without v1", {}, r"\(200\): Unexpected endpoint.*base_url= \(it usually ends in /v1\)"),
    ("lm_studio", "nothing loaded", {}, "No models loaded.*'lms load'"),
    ("lm_studio", "not downloaded", {}, r"Invalid model identifier.*It has: qwen3\.5-4b, gemma-3-1b-it-qat"),
    ("mlx_lm", "at most 10", {}, r"failed 3 times.*RemoteProtocolError.*top_logprobs=10"),
    ("vllm", "thinking", {}, "thinks before it answers.*enable_thinking"),
    ("vllm", "in the text", {}, "thinks before it answers"),
    ("sglang", "long", {}, r"a prompt is too long for the model: The input \(61709 tokens\)"),
    ("tgi", "temperature", {}, r"strictly positive\. With send_temperature=false none is sent"),
]


@pytest.mark.parametrize(("name", "case", "args", "logliks", "asked"), SCORED, ids=[f"{n}: {c}" for n, c, *_ in SCORED])
def test_an_answer_is_the_number_that_it_holds(
    name: str, case: str, args: dict[str, Any], logliks: tuple[float, float], asked: list[str], tmp_path: Path
) -> None:
    with answering(name, case) as server:
        found = model(server, tmp_path, **args).loglikelihood(requests())
    assert [x for x, _ in found] == pytest.approx(logliks)
    assert list(dict.fromkeys(server.asked)) == asked


@pytest.mark.parametrize(("name", "case", "args", "said"), TOLD, ids=[f"{n}: {c}" for n, c, *_ in TOLD])
def test_what_is_no_answer_is_one_sentence(name: str, case: str, args: dict[str, Any], said: str, tmp_path: Path) -> None:
    with answering(name, case) as server, pytest.raises(UserError, match=said):
        model(server, tmp_path, **args).loglikelihood(requests())
    assert len(server.asked) <= 5


def test_a_second_answer_is_counted_and_a_model_of_another_name_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with answering("vllm", "blanks") as server:
        asked = model(server, tmp_path, mode="generated")
        asked.loglikelihood(requests())
    assert asked.get_model_info()["scoring"]["film"]["second_requests"] == 1
    assert [b["max_tokens"] for b in server.bodies] == [32, 32]
    with answering("lm_studio", "another model") as server:
        model(server, tmp_path / "other").loglikelihood(requests())
    assert "'qwen3.5-9b' was asked for, and gemma-3-1b-it-qat:2 answered" in caplog.text
    assert "Qwen3-8B' was asked for" not in caplog.text


def test_a_model_that_thinks_is_told_where_its_answer_is_text(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    generate = Instance("generate_until", {}, (QUESTION, {"until": ["\n"]}), 0, ("film", 0, 1))
    with answering("vllm", "thought first") as server:
        asked = model(server, tmp_path, extra={"response_format": {"json_schema": {"schema": {"type": "object"}}}})
        assert asked.generate_until([generate]) == ['{"answer": "positive"}']
    assert not caplog.text


def test_every_case_is_played() -> None:
    held = {(path.stem, case) for path in FOLDER.glob("*.json") for case in json.loads(path.read_text("utf-8"))["cases"]}
    assert held == {(name, case) for name, case, *_ in [*SCORED, *TOLD]}
