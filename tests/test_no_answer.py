"""A refused or withheld answer is none: wrong whatever the right one is, no label, and its share is told with the number."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_support import arguments, evaluate
from openai_service import Service
from openai_service.chat import Chat

from trainers.harness import evaluate as hn
from trainers.labels.ask import label
from w2s_tasks.errors import UserError
from w2s_tasks.models.ref import ModelRef
from w2s_tasks.results import read
from w2s_tasks.results.diagnostics import confusion
from w2s_tasks.scoring import metrics, no_answer
from w2s_tasks.scoring.generated import UNPARSED

CHAT = "POST /v1/chat/completions"
TASK = "own_reviews"
WORDS = "I can't help with that."


def message(finish: str = "stop", content: Any = None, logprobs: Any = None, **more: Any) -> bytes:
    """The body of an answer."""
    return json.dumps(
        {
            "model": "tiny",
            "choices": [
                {
                    "index": 0,
                    "finish_reason": finish,
                    "logprobs": logprobs,
                    "message": {"role": "assistant", "content": content, **more},
                }
            ],
        }
    ).encode()


def said(text: str) -> dict[str, Any]:
    """Log-probabilities of a text that is written for sure."""
    return {"content": [{"token": text, "logprob": 0.0, "top_logprobs": [{"token": text, "logprob": 0.0}]}]}


REFUSED = {
    "refusal field": message(refusal=WORDS, logprobs={"content": None, "refusal": [{"token": "I", "logprob": 0.0}]}),
    "refusal part": message(content=[{"type": "refusal", "refusal": WORDS}]),
    "filtered": message("content_filter"),
    "filtered after its first words": message("content_filter", "negative", said("negative")),
    "filtered by Gemini": message("SAFETY", "negative", said("negative")),
    "refused, with text": message("stop", "negative", said("negative"), refusal=WORDS),
    "Azure's error with status 200": b'{"error": {"code": "400", "innererror": {"code": "ResponsibleAIPolicyViolation"}}}',
}
SILENT = {
    "other words": message("length", "Sorry", said("Sorry")),
    "nothing": message("stop", "", {"content": []}),
    "a tool's call": message("tool_calls", None, tool_calls=[{"id": "x", "type": "function", "function": {}}]),
}


def documents(results: dict[str, Any], task: str = TASK) -> list[dict[str, Any]]:
    return sorted(results["samples"][task], key=lambda s: s["doc_id"])


def silent(sample: dict[str, Any]) -> bool:
    return no_answer.is_none(float(r[0]) for r in sample["filtered_resps"])


@pytest.mark.parametrize("mode", ["first_token", "generated"])
@pytest.mark.parametrize("body", [*REFUSED.values(), *SILENT.values()], ids=[*REFUSED, *SILENT])
def test_no_answer_is_wrong_whatever_the_right_one_is(
    service: Service, own_task: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, body: bytes, mode: str
) -> None:
    refused = body in REFUSED.values()
    # The first documents are answered, so that the mode is settled; of the next ones none is.
    service.faults.add(CHAT, "body", status=200, body=body, skip=3, times=12)
    # Nor when they are asked once more, after the other 3 and 5: words that are no JSON where a schema was sent.
    service.faults.add(CHAT, "body", status=200, body=body, skip=3 + 5, times=12)
    with caplog.at_level(logging.WARNING, "w2s_tasks"):
        results = evaluate("w2s-chat", arguments(service, tmp_path, mode=mode, num_concurrent=1), [TASK], own_task, limit=20)
    rows = documents(results)
    none = [r for r in rows if silent(r)]
    assert {r["target"] for r in none} == {0, 1}, "both choices are right somewhere"
    assert len(none) == 12
    assert [r["acc"] for r in none] == [0.0] * 12
    assert results["results"][TASK]["acc,none"] == pytest.approx(np.mean([r["acc"] for r in rows]))
    report = results["config"]["scoring"][TASK]
    assert (report["mode"], report["unlisted"], report["refused"]) == (mode, 0.6, 0.6 if refused else 0.0)
    share = f"documents without an answer, which count as wrong: {TASK} 60.0% (refused or withheld: {60 * refused}.0%) of 20"
    assert share in caplog.text


def test_a_first_document_that_is_refused_says_nothing_about_log_probabilities(
    service: Service, own_task: Path, tmp_path: Path
) -> None:
    service.faults.add(CHAT, "body", status=200, body=REFUSED["refusal field"], times=5)
    results = evaluate("w2s-chat", arguments(service, tmp_path, num_concurrent=1), [TASK], own_task, limit=10)
    assert results["config"]["scoring_mode"] == "first_token"
    assert [silent(r) for r in documents(results)] == [True] * 5 + [False] * 5


def test_generated_text_that_is_withheld_is_unparsed_and_its_share_is_told(
    service: Service, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task = "w2s_ethics_probe_justice_gen"
    body = message("content_filter", "reasonable")
    service.faults.add(CHAT, "body", status=200, body=body, times=10**9)
    with caplog.at_level(logging.WARNING, "w2s_tasks"):
        results = evaluate("w2s-chat", arguments(service, tmp_path), [task], None, limit=6)
    assert results["results"][task]["acc,none"] == 0.0
    assert results["results"][task]["unparsed,none"] == 1.0
    assert results["config"]["scoring"][task]["refused"] == 1.0
    assert "6 of 6 answers were refused or withheld and count as none; the first: (content_filter)" in caplog.text


@pytest.mark.parametrize("task", [f"w2s_ethics_probe_{name}" for name in ("commonsense", "justice", "utilitarianism")])
def test_all_scores_of_our_tasks_know_it(service: Service, tmp_path: Path, task: str) -> None:
    service.faults.add(CHAT, "body", status=200, body=REFUSED["refusal field"], times=10**9)
    results = evaluate("w2s-chat", arguments(service, tmp_path), [task], None, limit=8)["results"][task]
    for name in ("acc", "em", "f1", "precision", "recall", "balanced_acc", "ties"):
        assert results.get(f"{name},none", 0.0) == 0.0, name


def test_a_pair_with_one_silent_side_is_wrong_from_either_side() -> None:
    likely = [(0.0 if i == 4 else -9.0, False) for i in range(9)]
    none = [(no_answer.LOGLIK, False)] * 9
    for first, second in ((none, likely), (likely, none), (none, none)):
        items = [
            metrics.expected_rating({"w2s_pair": 1, "w2s_role": role}, results)["acc"]
            for role, results in ((1, first), (0, second))
        ]
        assert metrics.ranking_acc(items) == metrics.ranking_ties(items) == 0.0


def test_any_task_of_lm_evals_own_scoring_knows_it(service: Service, tmp_path: Path) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [{"q": f"Which? {i}", "right": i % 3, "options": ["cat", "dog", "bird"]} for i in range(6)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), "utf-8")
    metric = "metric_list: [{metric: acc}, {metric: acc_norm}, {metric: mcc}, {metric: exact_match}]\n"
    (folder / "pets.yaml").write_text(
        f"task: pets\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {folder}/rows.jsonl}}}}\ntest_split: test\n"
        'output_type: multiple_choice\ndoc_to_text: "{{q}}"\ndoc_to_choice: "{{options}}"\ndoc_to_target: right\n' + metric,
        "utf-8",
    )
    service.faults.add(CHAT, "body", status=200, body=REFUSED["filtered"], times=10**9)
    results = evaluate("w2s-chat", arguments(service, tmp_path), ["pets"], folder)["results"]["pets"]
    assert (results["acc,none"], results["acc_norm,none"]) == (0.0, 0.0)
    assert results["mcc,none"] <= 0.0


def ref_of(service: Service, folder: Path) -> ModelRef:
    return ModelRef("w2s-chat", arguments(service, folder, num_concurrent=1))


def test_a_report_counts_them_apart(service: Service, own_task: Path, tmp_path: Path) -> None:
    service.faults.add(CHAT, "body", status=200, body=REFUSED["refusal field"], skip=2, times=3)
    harness = hn.Harness([str(own_task)])
    style = hn.PromptStyle(chat_template=True)
    limits: dict[hn.HarnessTask, int | None] = {harness.task(TASK): 12}
    hn.evaluate(harness, hn.ModelPool(), ref_of(service, tmp_path), limits, tmp_path / "out", style=style)
    scores = read.read_evaluation(tmp_path / "out")[TASK]
    assert scores.predicted is not None
    assert scores.parsed is not None
    assert scores.logliks is not None
    assert (scores.predicted == UNPARSED).sum() == (~scores.parsed).sum() == 3
    assert scores.unparsed == 0.25
    assert not scores.correct[~scores.parsed].any()
    assert np.isfinite(scores.logliks).all()
    assert np.array(confusion(scores))[:, 2].sum() == 3


def test_a_refused_row_gets_no_label(
    service: Service, own_task: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    service.faults.add(CHAT, "body", status=200, body=REFUSED["refusal field"], skip=2, times=3)
    task = hn.Harness([str(own_task)]).task(TASK)
    docs, ids = task.train_docs[:10], task.train_ids[:10]
    lm = hn.ModelPool().load(ref_of(service, tmp_path))
    with caplog.at_level(logging.WARNING):
        labels = label(lm, task, docs, ids, hn.PromptStyle(chat_template=True))
    assert labels.row_id == (*ids[:2], *ids[5:])
    assert np.isfinite(labels.soft).all()
    assert "3 of 10 rows (30.0 %): they get no label and are left out" in caplog.text


def test_where_every_row_is_refused_there_are_no_labels(service: Service, own_task: Path, tmp_path: Path) -> None:
    service.faults.add(CHAT, "body", status=200, body=REFUSED["filtered"], times=10**9)
    task = hn.Harness([str(own_task)]).task(TASK)
    lm = hn.ModelPool().load(ref_of(service, tmp_path))
    with pytest.raises(UserError, match=r"10 of 10 rows \(100\.0 %\): there are no labels"):
        label(lm, task, task.train_docs[:10], task.train_ids[:10], hn.PromptStyle(chat_template=True))
    assert not service.part(Chat).asked
