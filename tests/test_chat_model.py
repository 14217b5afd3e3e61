"""w2s-chat through lm_eval, against the stand-in service with a real small model behind it."""

from __future__ import annotations

import http.client
import http.server
import importlib
import json
import logging
import threading
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from chat_support import arguments, chosen, evaluate, stored, teach
from openai_service import Service
from openai_service.chat import Chat

from w2s_tasks.errors import UserError
from w2s_tasks.results.compare import compared
from w2s_tasks.results.read import read_evaluation

TASK = ["own_reviews"]


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_one_request_a_document_decides_as_w2s_hf_does(
    service: Service, reviewer: Path, own_task: Path, tmp_path: Path, endpoint: str
) -> None:
    chat = endpoint == "chat"
    asked = evaluate("w2s-chat", arguments(service, tmp_path, endpoint=endpoint), TASK, own_task, apply_chat_template=chat)
    local = evaluate("w2s-hf", {"pretrained": str(reviewer), "device": "cpu"}, TASK, own_task, apply_chat_template=chat)
    assert chosen(asked, "own_reviews") == chosen(local, "own_reviews")
    assert asked["results"]["own_reviews"]["acc,none"] == local["results"]["own_reviews"]["acc,none"] > 0.9
    assert len(service.part(Chat).asked) == 60
    assert asked["config"]["scoring_mode"] == "first_token"
    assert asked["config"]["scoring"]["own_reviews"]["documents"] == 60


def test_a_second_run_asks_nothing_and_another_model_or_address_asks_anew(
    service: Service, reviewer: Path, own_task: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    evaluate("w2s-chat", arguments(service, tmp_path), TASK, own_task, limit=10)
    again = evaluate("w2s-chat", arguments(service, tmp_path), TASK, own_task, limit=10)
    assert len(service.part(Chat).asked) == 10
    assert again["config"]["api_usage"]["requests"] == 0
    evaluate("w2s-chat", arguments(service, tmp_path, model="twin"), TASK, own_task, limit=10)
    assert [b["model"] for b in service.part(Chat).asked] == ["tiny"] * 10 + ["twin"] * 10
    with Service(models={"tiny": reviewer}) as other:
        evaluate("w2s-chat", arguments(other, tmp_path), TASK, own_task, limit=10)
        assert len(other.part(Chat).asked) == 10


def test_shots_and_system_prompt_arrive_as_messages(service: Service, own_task: Path, tmp_path: Path) -> None:
    evaluate(
        "w2s-chat", arguments(service, tmp_path), TASK, own_task, limit=2, num_fewshot=2, system_instruction="Be brief.",
        fewshot_as_multiturn=True,
    )  # fmt: skip
    messages = service.part(Chat).asked[0]["messages"]
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert messages[0]["content"] == "Be brief."
    assert messages[2]["content"] in ("negative", "positive")


def test_what_is_sent_for_a_choice_is_one_greedy_token_with_its_rivals(
    service: Service, own_task: Path, tmp_path: Path
) -> None:
    evaluate("w2s-chat", arguments(service, tmp_path), TASK, own_task, limit=1)
    body = service.part(Chat).asked[0]
    body.pop("messages")
    assert body == {"model": "tiny", "max_tokens": 1, "temperature": 0.0, "logprobs": True, "top_logprobs": 20}


def test_floored_rows_are_counted_and_told(
    service: Service, own_task: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "w2s_tasks"):
        results = evaluate("w2s-chat", arguments(service, tmp_path, top_logprobs=1), TASK, own_task)
    report = results["config"]["scoring"]["own_reviews"]
    assert report["floored"] == 1.0
    assert report["unlisted"] == 0.0
    assert results["results"]["own_reviews"]["acc,none"] > 0.9
    assert "outside the top 1, scored at its floor: own_reviews 100.0%" in caplog.text


def test_a_quote_before_the_answer_is_passed(
    causal_model: Callable[[str], Path], own_task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quoting = teach(causal_model("llama"), tmp_path / "quoting", quote='"')
    with Service(models={"tiny": quoting}) as running:
        monkeypatch.setenv("OPENAI_API_KEY", running.key)
        results = evaluate("w2s-chat", arguments(running, tmp_path), TASK, own_task)
        asked = running.part(Chat).asked
    assert results["results"]["own_reviews"]["acc,none"] > 0.9
    # The first document tells that one token is not enough; all others are asked for more at once.
    assert len(asked) == 61
    assert [b["max_tokens"] for b in asked] == [1] + [5] * 60


def test_without_logprobs_the_answer_is_generated_and_stamped(
    service: Service, own_task: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    service.part(Chat).logprobs = False
    results = evaluate("w2s-chat", arguments(service, tmp_path), TASK, own_task, limit=20)
    assert results["config"]["scoring_mode"] == "generated"
    assert results["results"]["own_reviews"]["acc,none"] > 0.9
    assert "gives no log-probabilities" in caplog.text
    schema = service.part(Chat).asked[-1]["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["answer"]["enum"] == ["negative", "positive"]
    with pytest.raises(UserError, match="mode=generated"):
        evaluate("w2s-chat", arguments(service, tmp_path, mode="first_token"), TASK, own_task, limit=20)


def test_a_reasoning_models_dialect_is_learnt_but_its_temperature_never_changed_silently(
    service: Service, own_task: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = service.part(Chat)
    state.logprobs, state.only_max_completion_tokens, state.only_default_temperature = False, True, True
    with pytest.raises(UserError, match="send_temperature=false"):
        evaluate("w2s-chat", arguments(service, tmp_path), TASK, own_task, limit=4)
    state.reasoning = True
    args = arguments(service, tmp_path, send_temperature=False)
    results = evaluate("w2s-chat", args, TASK, own_task, limit=4)
    assert "reasons first needs a larger answer_tokens" in caplog.text
    assert results["config"]["scoring"]["own_reviews"]["unlisted"] == 1.0
    results = evaluate("w2s-chat", args | {"answer_tokens": 100}, TASK, own_task, limit=4)
    assert results["config"]["dialect"]["limit"] == "max_completion_tokens"
    assert results["config"]["dialect"]["temperature"] is False
    assert results["config"]["scoring"]["own_reviews"]["unlisted"] < 1.0


def test_fewer_logprobs_are_taken_where_the_endpoint_allows_fewer(service: Service, own_task: Path, tmp_path: Path) -> None:
    service.part(Chat).max_top = 5
    results = evaluate("w2s-chat", arguments(service, tmp_path), TASK, own_task, limit=4)
    assert results["config"]["dialect"]["top"] == 5
    assert service.part(Chat).asked[-1]["top_logprobs"] == 5


def test_all_our_tasks_are_answered(service: Service, tmp_path: Path) -> None:
    tasks = ["w2s_ethics_probe_all", "w2s_ethics_probe_all_gen"]
    results = evaluate("w2s-chat", arguments(service, tmp_path), tasks, None, limit=2)
    scored = {t for t in results["configs"] if not t.endswith("_gen")}
    assert len(scored) >= 12
    assert set(results["config"]["scoring"]) == set(results["configs"])
    assert len(results["configs"]) >= 24
    bodies = service.part(Chat).asked
    generated = [b for b in bodies if "logprobs" not in b]
    assert {b["temperature"] for b in bodies} == {0.0}
    assert {(b["max_tokens"], tuple(b["stop"])) for b in generated} == {(32, ("\n\n",))}
    assert all(len(s["filtered_resps"]) == 9 for s in results["samples"]["w2s_ethics_probe_utilitarianism"])


def test_reports_read_the_mode(service: Service, own_task: Path, tmp_path: Path) -> None:
    from trainers.harness import evaluate as hn
    from trainers.labels.ask import label
    from w2s_tasks.models.ref import ModelRef

    harness = hn.Harness([str(own_task)])
    ref = ModelRef("w2s-chat", arguments(service, tmp_path))
    style = hn.PromptStyle(chat_template=True)
    hn.evaluate(harness, hn.ModelPool(), ref, {harness.task("own_reviews"): 6}, tmp_path / "out", style=style)
    scores = read_evaluation(tmp_path / "out")["own_reviews"]
    assert (scores.mode, scores.n) == ("first_token", 6)
    line = compared(scores, scores)
    assert line.startswith("own_reviews: n 6, accuracy ")
    assert "same answer 100.0%, log-likelihoods differ by 0.0000" in line
    labels = label(hn.ModelPool().load(ref), harness.task("own_reviews"), harness.task("own_reviews").train_docs[:4],
                      list("abcd"), style)  # fmt: skip
    assert labels.soft.shape == (4, 2)
    assert labels.soft.sum(axis=1) == pytest.approx(1.0)


def test_stops_that_the_endpoint_refuses_are_cut_here(service: Service, tmp_path: Path) -> None:
    tasks = ["w2s_ethics_probe_justice_gen"]
    with_stop = evaluate("w2s-chat", arguments(service, tmp_path), tasks, None, limit=4)
    service.part(Chat).no_stop = True
    without = evaluate("w2s-chat", arguments(service, tmp_path / "other"), tasks, None, limit=4)
    assert without["config"]["dialect"]["stop"] is False

    def texts(results: dict[str, Any]) -> list[str]:
        return [s["resps"][0][0] for s in results["samples"][tasks[0]]]

    assert texts(with_stop) == texts(without)


def test_a_filtered_prompt_does_not_end_the_run(
    service: Service, own_task: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    texts = [json.loads(line)["text"] for line in (own_task / "test.jsonl").read_text().splitlines()]
    service.part(Chat).filtered = texts[3]
    results = evaluate("w2s-chat", arguments(service, tmp_path), TASK, own_task, limit=10)
    assert results["config"]["scoring"]["own_reviews"]["unlisted"] == 0.1
    assert len(stored(tmp_path)) == 10


# --- what is refused ------------------------------------------------------------------------------------------------------


def write_task(folder: Path, name: str, body: str) -> None:
    folder.mkdir(exist_ok=True)
    rows = [{"q": "Which?", "right": 0, "options": ["The cat sat", "The dog ran", "A bird"]}] * 3
    (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), "utf-8")
    head = f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {folder}/rows.jsonl}}}}\n"
    head += "test_split: test\n"
    (folder / f"{name}.yaml").write_text(head + body + "metric_list: [{metric: acc}]\n", "utf-8")


def test_choices_that_begin_alike_are_refused_and_named(service: Service, tmp_path: Path) -> None:
    body = 'output_type: multiple_choice\ndoc_to_text: "{{q}}"\ndoc_to_choice: "{{options}}"\ndoc_to_target: right\n'
    write_task(tmp_path / "tasks", "animals", body)
    with pytest.raises(UserError, match=r"animals, document 0.*'The cat sat' and 'The dog ran' begin alike.*mode=generated"):
        evaluate("w2s-chat", arguments(service, tmp_path), ["animals"], tmp_path / "tasks")
    assert not service.part(Chat).asked
    results = evaluate("w2s-chat", arguments(service, tmp_path, mode="generated"), ["animals"], tmp_path / "tasks")
    assert results["config"]["scoring"]["animals"]["mode"] == "generated"


def test_likelihoods_of_given_text_are_refused(service: Service, tmp_path: Path) -> None:
    write_task(tmp_path / "tasks", "given", 'output_type: loglikelihood\ndoc_to_text: "{{q}}"\ndoc_to_target: "{{q}}"\n')
    with pytest.raises(UserError, match="given text"):
        evaluate("w2s-chat", arguments(service, tmp_path), ["given"], tmp_path / "tasks")
    body = 'output_type: multiple_choice\ndoc_to_text: right\ndoc_to_choice: "{{options}}"\ndoc_to_target: " so."\n'
    write_task(tmp_path / "tasks", "contexts", body)
    with pytest.raises(UserError, match="the choices stand in the prompts"):
        evaluate("w2s-chat", arguments(service, tmp_path), ["contexts"], tmp_path / "tasks")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"api_key": "sk-secret"}, "keys are read from the environment"),
        ({"api_key_env": "sk-secret-0123456789"}, "NAME of an environment variable"),
        ({"num_concurent": 3}, "Did you mean 'num_concurrent'"),
        ({"mode": "first"}, "Did you mean 'first_token'"),
        ({"endpoint": "chats"}, "Did you mean 'chat'"),
        ({"base_url": "localhost"}, "base_url must be an address"),
        ({"max_cost": 1.0, "model": "unpriced"}, "max_cost needs a price"),
        ({"extra": "{"}, "JSON object"),
        ({"extra": {"temperature": 1}}, "temperature"),
        ({"prices": "missing.yaml"}, r"missing\.yaml"),
    ],
)
def test_wrong_arguments_are_one_clear_sentence(args: dict[str, Any], message: str, tmp_path: Path) -> None:
    from w2s_tasks.models.chat.model import W2SChat

    with pytest.raises(UserError, match=message) as error:
        W2SChat(**{"model": "tiny", "base_url": "http://127.0.0.1:1/v1", "store": str(tmp_path), **args})
    assert "secret" not in str(error.value)


def test_openai_without_a_key_is_refused_before_anything_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from w2s_tasks.models.chat.model import W2SChat

    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("AZURE_OPENAI_API_KEY", raising=False)
    with pytest.raises(UserError, match=r"\$OPENAI_API_KEY"):
        W2SChat("gpt-4o-mini", base_url="https://api.openai.com/v1", store=str(tmp_path))
    with pytest.raises(UserError, match=r"\$AZURE_OPENAI_API_KEY"):
        W2SChat("mine", base_url="https://me.openai.azure.com", api_version="2024-10-21", store=str(tmp_path))


def test_a_wrong_model_or_address_is_told_with_what_is_there(service: Service, own_task: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"`tinny` does not exist.*It has: tiny, twin\. Did you mean 'tiny'"):
        evaluate("w2s-chat", arguments(service, tmp_path, model="tinny"), TASK, own_task, limit=2)
    with pytest.raises(UserError, match=r"nothing answers at http://127\.0\.0\.1:9/v1"):
        evaluate("w2s-chat", arguments(service, tmp_path, base_url="http://127.0.0.1:9/v1"), TASK, own_task, limit=2)


def test_lm_evals_cache_is_refused(service: Service, own_task: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--use_cache"):
        evaluate("w2s-chat", arguments(service, tmp_path), TASK, own_task, limit=2, use_cache=str(tmp_path / "c"))


def test_the_shipped_configs_are_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from lm_eval.config.evaluate_config import EvaluatorConfig

    from w2s_tasks.models.chat.model import W2SChat
    from w2s_tasks.plugin.manager import W2STaskManager

    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", "sk-test")
    folder = Path(__file__).parent.parent / "harness_configs" / "eval"
    manager, seen = W2STaskManager(), set()
    for path in sorted(folder.glob("*.yaml")):
        text = path.read_text("utf-8")
        if "model: w2s-chat" not in text:
            continue
        seen.add(path.stem)
        assert f"w2s eval --config harness_configs/eval/{path.name}" in text
        config = EvaluatorConfig(**yaml.safe_load(text))
        assert set(config.tasks) <= set(manager.all_tasks)
        W2SChat(**config.model_args, store=str(tmp_path))
    assert seen == {"openai", "azure", "vllm_server", "llama_cpp_server"}


def test_the_benchmark_counts_what_is_sent(
    reviewer: Path, own_task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "scripts"))
    bench = importlib.import_module("bench.chat")
    monkeypatch.setenv("OPENAI_API_KEY", "")
    twin = (own_task / "own_reviews.yaml").read_text("utf-8").replace("multiple_choice", "generate_until")
    twin = twin.replace("task: own_reviews", "task: own_reviews_gen")
    twin = twin.replace("metric: acc", "metric: exact_match") + "generation_kwargs: {until: ['\\n'], max_gen_toks: 3}\n"
    (own_task / "own_reviews_gen.yaml").write_text(twin, "utf-8")
    bench.main(tokenizer=str(reviewer), task="own_reviews", docs=12, shots=0, concurrent=3, include_path=[str(own_task)])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    # One more than documents: the stand-in refuses to list 20 tokens, as OpenAI does for completions.
    assert (found["ours_requests"], found["peer_requests"]) == (13, 24)
    assert found["same_predictions"] == 1.0
    assert found["sides"]["local-chat-completions"]["requests"] == 12
    assert found["sides"]["w2s-chat, chat"]["completion_tokens"] == 12


def test_azure_is_asked_in_its_own_way(
    service: Service, own_task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str | None, str | None]] = []

    class Azure(http.server.BaseHTTPRequestHandler):
        """Azure's paths and header in front of the stand-in."""

        def do_POST(self) -> None:
            asked.append((self.path, self.headers["api-key"], self.headers["Authorization"]))
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {"Authorization": f"Bearer {service.key}", "Content-Type": "application/json"}
            connection = http.client.HTTPConnection(urllib.parse.urlsplit(service.base_url).netloc)
            connection.request("POST", "/v1/chat/completions", body, headers)
            data = connection.getresponse().read()
            connection.close()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing on stderr."""

    monkeypatch.setenv("AZURE_OPENAI_API_KEY", "azure-key")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Azure) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
        args = {"model": "tiny", "api_version": "2024-10-21", "store": str(tmp_path / "s")}
        results = evaluate("w2s-chat", args, TASK, own_task, limit=5)
        server.shutdown()
    assert set(asked) == {("/openai/deployments/tiny/chat/completions?api-version=2024-10-21", "azure-key", None)}
    assert len(asked) == 5
    assert results["config"]["scoring_mode"] == "first_token"
