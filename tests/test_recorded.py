"""`w2s-recorded`: three formats, two ways to match, and what happens to prompts without a reply."""

from __future__ import annotations

import json
from pathlib import Path

import lm_eval
import pytest
from lm_eval.loggers import EvaluationTracker

from w2s_tasks import register
from w2s_tasks.errors import UserError
from w2s_tasks.models.recorded import Recorded, read_replies, study_subtask, study_task
from w2s_tasks.plugin.manager import W2STaskManager

TASK = "w2s_ethics_probe_virtue_gen"


@pytest.fixture(scope="module")
def task():
    loaded = W2STaskManager().load([TASK])["tasks"][TASK]
    loaded.set_fewshot_seed(seed=1234)
    return loaded


def write(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def run(path: Path, tracker: EvaluationTracker | None = None, tasks=TASK, **model_args):
    register()
    found = lm_eval.simple_evaluate(
        model="w2s-recorded",
        model_args={"path": str(path), **model_args},
        tasks=[tasks],
        task_manager=W2STaskManager(),
        bootstrap_iters=0,
        evaluation_tracker=tracker,
    )
    if tracker is not None:
        samples = found.pop("samples")
        tracker.save_results_aggregated(results=found, samples=samples)
        tracker.save_results_samples(task_name=tasks, samples=samples[tasks])
    return found


def replies(task, wrong=()):
    """Right replies in order, but for these rows."""
    return [
        {"prompt": task.fewshot_context(doc, num_fewshot=0), "response": ["no", "yes"][doc["label"] ^ (i in wrong)]}
        for i, doc in enumerate(task.eval_docs)
    ]


def test_replies_are_found_by_prompt_in_any_order(task, tmp_path):
    rows = replies(task, wrong={0, 1})
    found = run(write(tmp_path / "r.jsonl", rows[::-1]))
    assert found["results"][TASK]["acc,none"] == pytest.approx(1 - 2 / len(rows))
    assert found["config"]["recorded_missing"] == 0


def test_replies_are_found_by_row_whatever_the_prompt(task, tmp_path):
    rows = [{**row, "prompt": "another template"} for row in replies(task, wrong={3})]
    found = run(write(tmp_path / "r.jsonl", rows), match="row")
    assert found["results"][TASK]["acc,none"] == pytest.approx(1 - 1 / len(rows))


def test_a_prompt_recorded_with_shots_answers_the_same_question_without(task, tmp_path):
    rows = replies(task)
    with_shots = [{**row, "prompt": f"Sentence: another\nAnswer: no\n\n{row['prompt']}"} for row in rows]
    assert run(write(tmp_path / "r.jsonl", with_shots))["results"][TASK]["acc,none"] == 1.0


def test_lm_evals_own_samples_are_read_again(task, tmp_path):
    path = write(tmp_path / "r.jsonl", replies(task, wrong={2}))
    first = run(path, EvaluationTracker(output_path=str(tmp_path / "out")))
    sample_files = list((tmp_path / "out").rglob("samples_*.jsonl"))
    assert len(sample_files) == 1
    for match in ("prompt", "row"):
        again = run(tmp_path / "out", match=match)
        assert again["results"][TASK]["acc,none"] == first["results"][TASK]["acc,none"]
    assert read_replies(sample_files[0])[0].task == TASK


def test_a_prompt_without_a_reply_is_named(task, tmp_path):
    path = write(tmp_path / "r.jsonl", replies(task)[1:])
    with pytest.raises(UserError, match=r"no recorded reply for document 0 of w2s_ethics_probe_virtue_gen.*missing=skip"):
        run(path)
    with pytest.raises(UserError, match="by row"):
        run(path, match="row")


def test_prompts_without_a_reply_are_left_out_and_counted_where_that_is_wanted(task, tmp_path):
    rows = replies(task, wrong={5})
    found = run(write(tmp_path / "r.jsonl", rows[2:]), missing="skip")
    assert found["config"]["recorded_missing"] == 2
    assert found["n-samples"][TASK]["effective"] == len(rows) - 2
    assert found["results"][TASK]["acc,none"] == pytest.approx(1 - 1 / (len(rows) - 2))
    assert found["results"][TASK]["unparsed,none"] == 0.0


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.jsonl", '{"prompt": "p"}\n', r"a.jsonl:1: 'response' must be a string, found nothing"),
        ("a.jsonl", '{"prompt": "p", "response": "r"}\n{"prompt"', r"a.jsonl:2: not JSON"),
        (
            "a.jsonl",
            '{"resps": [[["-1.0", "False"]]], "doc_id": 0, "arguments": {"gen_args_0": {"arg_0": "p"}}}\n',
            "log-likelihoods",
        ),
        ("a.jsonl", '{"resps": []}\n', r"a.jsonl:1: not a sample of lm_eval"),
        ("justice_m_1.json", "[", "not JSON .*the file is cut or altered"),
        ("justice_m_1.json", '{"a": 1}', "a list of recorded replies is expected"),
        ("justice_m_1.json", '[{"test_prompt": "p", "model_response": "r"}, {"test_prompt": 3}]', r"row 1: 'test_prompt'"),
        (
            "justice_m_1.json",
            '[{"test_prompt": "p", "model_response": 4}]',
            r"row 0: 'model_response' must be a string, found int",
        ),
    ],
)
def test_malformed_files_are_named_with_their_row(tmp_path, name, text, said):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=said):
        Recorded(path=str(tmp_path / name))


def test_options_and_places_are_checked(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        Recorded(path=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="no recorded replies"):
        Recorded(path=str(tmp_path))
    file = write(tmp_path / "r.jsonl", [{"prompt": "p", "response": "r"}])
    with pytest.raises(UserError, match="match=rows"):
        Recorded(path=str(file), match="rows")
    for model in ("one", "two"):
        (tmp_path / model).mkdir()
        (tmp_path / model / "justice_1.json").write_text('[{"test_prompt": "p", "model_response": "r"}]', encoding="utf-8")
    with pytest.raises(UserError, match="several models"):
        Recorded(path=str(tmp_path))


def test_log_likelihoods_are_refused(task, tmp_path):
    path = write(tmp_path / "r.jsonl", replies(task))
    with pytest.raises(UserError, match="use its `_gen` twin"):
        run(path, tasks="w2s_ethics_probe_virtue")


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("long_commonsense_hard_m_20241204.json", ("long_commonsense", "hard")),
        ("commonsense_hard-m_2024.json", ("commonsense", "test")),
        ("commonsense_m_hard_2024.json", ("commonsense", "test")),
        ("justice.json", ("justice", "test")),
        ("summary.json", None),
        ("justice_m.txt", None),
    ],
)
def test_the_studys_file_names_tell_subtask_and_split(name, place):
    assert study_subtask(Path(name)) == place


def test_the_studys_own_files_answer_its_task(real_data):
    path = next((real_data / "seed_study" / "results" / "gpt-4o-mini-baseline").glob("justice_gpt*.json"))
    register()
    found = lm_eval.simple_evaluate(
        model="w2s-recorded",
        model_args={"path": str(path), "missing": "skip"},
        tasks=[study_task("justice", "test")],
        num_fewshot=0,
        task_manager=W2STaskManager(),
        bootstrap_iters=0,
    )
    n = found["n-samples"][study_task("justice", "test")]["effective"]
    assert 0 < n < 200
    assert n + found["config"]["recorded_missing"] == 200
