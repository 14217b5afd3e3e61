"""Labels of every kind work from file to report; tasks that could not be read afterwards are told before any work."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bad_input import one_clear_error
from conftest import OWN_TASK, rows

from trainers.fit import lora
from trainers.fit.lora import Lora
from trainers.harness import evaluate as hn
from w2s_tasks.results.read import read_evaluation

KINDS: dict[str, Callable[[int], Any]] = {
    "numbers": int,
    "truth values": bool,
    "floats": float,
    "texts": lambda label: ("negative", "positive")[label],
}


def own(folder: Path, label: Callable[[int], Any] = int, change: Callable[[str], str] = lambda y: y, **more: Any) -> Path:
    folder.mkdir()
    data = [{"text": r["text"], "label": label(int(str(r["label"]))), **more} for r in rows(40, 3)]
    for name, part in (("train", data[:20]), ("test", data[20:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in part))
    (folder / "own_reviews.yaml").write_text(change(OWN_TASK.format(folder=folder)))
    return folder


@pytest.mark.parametrize("shots", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_labels_of_every_kind_are_evaluated_and_read(
    kind: str, shots: int, causal_model: Callable[[str], Path], tmp_path: Path
):
    harness = hn.Harness([str(own(tmp_path / "own", KINDS[kind]))])
    task = harness.task("own_reviews")
    task.check_trainable()
    task.check_evaluable()
    ref = lora.base_ref(Lora(model=str(causal_model("llama"))))
    hn.evaluate(harness, hn.ModelPool(), ref, {task: None}, tmp_path / "out", style=hn.PromptStyle(shots))
    scores = read_evaluation(tmp_path / "out")["own_reviews"]
    expected = [int(str(r["label"])) for r in rows(40, 3)[20:]]
    assert scores.gold is not None
    assert scores.gold.tolist() == expected
    assert scores.correct.mean() == pytest.approx(scores.metrics["acc"])
    assert [task.gold(doc) for doc in task.train_docs] == [int(str(r["label"])) for r in rows(40, 3)[:20]]


FILTERS = "filter_list:\n" + "".join(f"  - {{name: {n}, filter: [{{function: take_first}}]}}\n" for n in "ab")
UNREADABLE: dict[str, tuple[Callable[[str], str], str]] = {
    "two filters": (lambda y: y + FILTERS, "2 filters.*keep one"),
    "repeats": (lambda y: y + "repeats: 3\n", "asks every row 3 times; set repeats: 1"),
    "several right answers": (lambda y: y.replace("doc_to_target: label", "doc_to_target: [0, 1]"), "several right answers"),
    "no acc": (lambda y: y.replace("metric: acc", "metric: acc_norm"), "no metric acc"),
    "mutual information": (lambda y: y.replace("metric: acc", "metric: acc_mutual_info"), "scores every choice twice"),
    "a row of one choice": (
        lambda y: y.replace('["negative", "positive"]', "\"{{['a','b','c'][:1 + text|length % 2]}}\""),
        "split has 1 choices, so there is nothing to choose from",
    ),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_a_task_that_could_not_be_read_is_told_before_any_work(case: str, tmp_path: Path):
    change, message = UNREADABLE[case]
    harness = hn.Harness([str(own(tmp_path / "own", change=change))])
    for check in (harness.task("own_reviews").check_evaluable, harness.task("own_reviews").check_trainable):
        one_clear_error(check, message, names="own_reviews")


@pytest.mark.parametrize("value", ["women", 3, None])
def test_a_column_named_group_means_nothing(value: Any, causal_model: Callable[[str], Path], tmp_path: Path):
    harness = hn.Harness([str(own(tmp_path / "own", group=value))])
    ref = lora.base_ref(Lora(model=str(causal_model("llama"))))
    hn.evaluate(harness, hn.ModelPool(), ref, {harness.task("own_reviews"): 6}, tmp_path / "out", style=hn.PromptStyle())
    assert read_evaluation(tmp_path / "out")["own_reviews"].cluster is None


REFUSES = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
IGNORES = "{% set messages = messages | rejectattr('role', 'equalto', 'system') | list %}"


@pytest.mark.parametrize("start", [REFUSES, IGNORES, ""])
def test_a_system_prompt_is_in_the_prompt_whatever_the_template_does_with_it(
    start: str, causal_model: Callable[[str], Path], tmp_path: Path
):
    lm: Any = hn.ModelPool().load(lora.base_ref(Lora(model=str(causal_model("llama")))))
    lm.tokenizer.chat_template = start + lm.tokenizer.chat_template
    task = hn.Harness([str(own(tmp_path / "own", change=lambda y: y + 'description: "Read it."\n'))]).task("own_reviews")
    for shots in (0, 2):
        style = hn.PromptStyle(shots, chat_template=True, system_prompt="Judge film reviews.")
        prompt = task.pairs(task.train_docs[0], style, lm)[0][0]
        assert prompt.count("Judge film reviews.") == prompt.count("Read it.") == 1
        assert prompt.index("Judge") < prompt.index("Review:")
    assert lm.get_model_info().get("system_prompt") == ("in the first user turn" if start else None)
