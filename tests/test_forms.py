"""A task in another form: rows by hand, the same draws for everyone, one task for training, evaluation and every command."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from bad_input import one_clear_error
from test_choices_by_row import OWN, ragged
from test_own_rows import use, w2s, write

from trainers.harness import evaluate as hn
from w2s_tasks.errors import UserError
from w2s_tasks.plugin.forms import FORMS, parted
from w2s_tasks.plugin.manager import W2STaskManager
from w2s_tasks.rows import forms

Models = Callable[[str], Path]


@pytest.fixture(autouse=True)
def _own_index_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(W2STaskManager, "_widen", lambda self: setattr(self, "_can_widen", False))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "own_tasks", ragged(240, 1), ragged(120, 2), **OWN)


def load(folder: Path, form: str) -> hn.HarnessTask:
    task = hn.Harness([str(folder)]).task(f"own_reviews@{form}")
    task.check_trainable()
    task.check_evaluable()
    return task


# ---- draws ----------------------------------------------------------------------------------------------------------------


def test_the_coin_is_even_and_the_distractors_are_too():
    drawn = [forms.verified(f"q{i}", ["a", "b", "c", "d"], 2) for i in range(4000)]
    assert sum(label for _, label in drawn) / 4000 == pytest.approx(0.5, abs=0.03)
    wrong = Counter(answer for answer, label in drawn if not label)
    assert set(wrong) == {"a", "b", "d"}
    assert all(count / sum(wrong.values()) == pytest.approx(1 / 3, abs=0.05) for count in wrong.values())
    assert all(answer == "c" for answer, label in drawn if label)


def test_draws_hang_on_the_row_and_the_seed_alone():
    asked = ("q", ["a", "b", "c"], 1)
    assert forms.verified(*asked) == forms.verified(*asked)
    by_seed = {forms.verified(*asked, seed=seed) for seed in range(30)}
    assert by_seed == {("b", 1), ("a", 0), ("c", 0)}
    assert forms.draws(0, "a", "bc").random() != forms.draws(0, "ab", "c").random()


def test_sides_do_not_tell_the_better_answer():
    drawn = [forms.paired(f"q{i}", "better and longer", "worse") for i in range(2000)]
    assert sum(side for _, side in drawn) / 2000 == pytest.approx(0.5, abs=0.04)
    assert all(pair[side] == "better and longer" for pair, side in drawn)


def test_a_shuffle_is_a_permutation_and_every_place_is_as_likely():
    places = Counter(forms.shuffled(f"q{i}", ["w", "x", "y", "right"]).index(3) for i in range(2000))
    assert all(count / 2000 == pytest.approx(0.25, abs=0.04) for count in places.values())


# ---- tasks ----------------------------------------------------------------------------------------------------------------


def test_verify_asks_whether_one_answer_is_right(folder: Path):
    base, task = use(folder), load(folder, "verify")
    assert task.classes == ["no", "yes"]
    assert len(task.train_docs) == 240
    assert len(task.task.eval_docs) == 120
    for doc, turned in zip(base.train_docs, task.train_docs, strict=True):
        answer = turned["answer"].strip()
        assert (answer == doc["choices"][doc["label"]]) == bool(turned["label"])
        assert answer in doc["choices"]
    prompt, choice = task.pairs(task.train_docs[0], hn.PromptStyle())[0]
    doc = base.train_docs[0]
    assert prompt == f"Which word is good, {doc['text']}?\nWord:{task.train_docs[0]['answer']}\n\nIs this answer correct?"
    assert choice == " no"


def test_pair_shows_the_right_answer_and_another(folder: Path):
    base, task = use(folder), load(folder, "pair")
    assert task.classes == ["A", "B"]
    for doc, turned in zip(base.train_docs, task.train_docs, strict=True):
        right = doc["choices"][doc["label"]]
        shown = [turned["a"].strip(), turned["b"].strip()]
        assert shown[turned["label"]] == right
        assert shown[1 - turned["label"]] in set(doc["choices"]) - {right}
    assert task.task.config.metadata["candidates"] == {"question": "question", "answers": ["a", "b"]}


def test_both_orders_mirror_each_other_in_evaluation_alone(folder: Path):
    path = folder / "own_reviews.yaml"
    settings = yaml.safe_load(path.read_text())
    settings["metadata"]["both_orders"] = True
    path.write_text(yaml.safe_dump(settings))
    task = load(folder, "pair")
    assert len(task.train_docs) == 240
    docs = list(task.task.eval_docs)
    assert len(docs) == 240
    for first, second in zip(docs[::2], docs[1::2], strict=True):
        assert (first["a"], first["b"], first["label"]) == (second["b"], second["a"], 1 - second["label"])
        assert first["w2s_pair"] == second["w2s_pair"]
    always_a = [(0.0, True), (-1.0, False)]
    items = [task.task.config.process_results(doc, always_a) for doc in docs]
    scores = {m["metric"]: m["aggregation"] for m in task.task.config.metric_list}
    told = {name: scores[name]([item[name] for item in items]) for name in ("acc", "first", "consistent", "position_bias")}
    assert told == {"acc": 0.5, "first": 1, "consistent": 0, "position_bias": 1}


def test_a_choice_that_says_the_same_as_the_right_one_is_no_wrong_answer(tmp_path: Path):
    rows = [{"text": f"t{i}", "choices": ["good", "bad", "good "], "label": 0} for i in range(12)]
    folder = write(tmp_path / "own_tasks", rows, **OWN)
    docs = load(folder, "verify").train_docs
    assert {doc["answer"].strip() for doc in docs if not doc["label"]} == {"bad"}
    pair = load(folder, "pair").train_docs
    assert all({doc["a"].strip(), doc["b"].strip()} == {"good", "bad"} for doc in pair)


def always_last(n: int, seed: int) -> list[dict[str, Any]]:
    """As in sciq: the right choice stands at the end."""
    found = []
    for row in ragged(n, seed, (4,)):
        right = row["choices"][row["label"]]
        found.append({**row, "choices": [*(c for c in row["choices"] if c != right), right], "label": 3})
    return found


def test_a_right_answer_that_always_stands_at_one_place_is_told_and_the_remedy_works(tmp_path: Path):
    folder = write(tmp_path / "own_tasks", always_last(60, 1), always_last(30, 2), **OWN)
    one_clear_error(lambda: use(folder), "in all 60 training rows choice 3 is the right one.*form: shuffle")
    task = load(folder, "shuffle")
    places = Counter(task.gold(doc) for doc in task.train_docs)
    assert set(places) == {0, 1, 2, 3}
    for doc, turned in zip(always_last(60, 1), task.train_docs, strict=True):
        assert sorted(turned["choices"]) == sorted(doc["choices"])
        assert turned["choices"][turned["label"]] == doc["choices"][3]


def test_few_rows_of_one_place_are_no_proof(tmp_path: Path):
    use(write(tmp_path / "own_tasks", always_last(12, 1), **OWN))


@pytest.mark.parametrize("form", list(FORMS))
def test_questions_of_one_source_stay_together_and_errors_know_it(folder: Path, tmp_path: Path, form: str):
    yaml_file = folder / "own_reviews.yaml"
    settings = yaml.safe_load(yaml_file.read_text())
    settings["metadata"]["source"] = {"column": "text"}
    yaml_file.write_text(yaml.safe_dump(settings))
    task = load(folder, form)
    texts, contained = task.source_texts()
    assert texts == [doc["text"] for doc in use(folder).train_docs]
    assert not contained
    first, second = task.task.eval_docs[0], dict(task.task.eval_docs[1])
    assert first["w2s_group"] == forms.cluster(first["source"]) != second["w2s_group"]
    n = len(task.task.doc_to_choice(first))
    item = task.task.config.process_results(first, [(-1.0 - i, False) for i in range(n)])["acc"]
    assert item[0] == first["w2s_group"]


def test_a_form_of_fixed_classes_or_of_no_choices_is_refused_where_it_means_nothing(tmp_path: Path, own_task: Path):
    one_clear_error(lambda: load(own_task, "shuffle"), "all its rows have the same choices")
    assert load(own_task, "verify").train_docs[0]["answer"] in (" negative", " positive")
    manager = hn.Harness([str(own_task)])
    one_clear_error(lambda: manager.load(["own_reviews@verfy"]), "no task 'own_reviews@verfy'.*verify, pair, shuffle")
    one_clear_error(lambda: manager.load(["w2s_ethics_probe@verify"]), "is a group")
    one_clear_error(lambda: manager.load(["w2s_ethics_probe_justice_gen@verify"]), "has no form verify")


def test_names_of_files_with_the_mark_are_no_forms():
    assert parted("mail@host.yaml") == ("mail@host.yaml", None, 1)
    assert parted("@verify") == ("@verify", None, 1)
    assert parted("a@b@pair") == ("a@b", FORMS["pair"], 1)
    assert parted("a@verify@prompt12") == ("a", FORMS["verify"], 12)
    assert [parted(f"a@prompt{n}") for n in (0, 1)] == [("a@prompt0", None, 1), ("a@prompt1", None, 1)]
    assert parted("@prompt2") == ("@prompt2", None, 1)


def test_a_label_outside_the_choices_is_told_before_rows_are_turned(tmp_path: Path):
    rows = ragged(20, 1)
    rows[7]["label"] = 9
    folder = write(tmp_path / "own_tasks", rows, **OWN)
    with pytest.raises(UserError, match="gold label 9"):
        load(folder, "verify")


def test_another_seed_draws_other_answers_and_is_part_of_the_settings(folder: Path):
    first = load(folder, "verify")
    path = folder / "own_reviews.yaml"
    settings = yaml.safe_load(path.read_text())
    settings["metadata"]["form_seed"] = 1
    path.write_text(yaml.safe_dump(settings))
    second = load(folder, "verify")
    assert [d["answer"] for d in first.train_docs] != [d["answer"] for d in second.train_docs]
    assert first.renderer_hash(hn.PromptStyle()) != second.renderer_hash(hn.PromptStyle())


def test_three_lines_of_yaml_are_the_same_task_under_the_stock_lm_eval(folder: Path):
    (folder / "mine.yaml").write_text(
        "include: own_reviews.yaml\ntask: mine_verify\nclass: !function w2s_tasks.plugin.forms.Verify\n"
    )
    from lm_eval.tasks import TaskManager

    stock = TaskManager(include_path=str(folder), include_defaults=False).load(["mine_verify"])["tasks"]["mine_verify"]
    ours = load(folder, "verify")
    assert stock.task_name == "mine_verify"
    assert stock.eval_docs.to_list() == ours.task.eval_docs.to_list()
    assert stock.doc_to_text(stock.eval_docs[0]) == ours.task.doc_to_text(ours.task.eval_docs[0])


def test_an_experiment_asks_training_and_evaluation_in_the_form_and_says_so(
    folder: Path, tmp_path: Path, encoder_folder: Path, causal_model: Models
):
    (tmp_path / "small.yaml").write_text(
        f"""task: own_reviews
form: pair
include_path: [own_tasks]
split: {{limit: {{weak: 64, transfer: 48}}}}
weak: {{model: {encoder_folder}, epochs: 12, lr: 2e-3, batch_size: 16}}
strong: {{model: {causal_model("llama")}, r: 4, lr: 1e-2, batch_size: 16}}
arms: [zero_shot, student, ceiling]
safety: {{tasks: [own_reviews@verify]}}
"""
    )
    last = w2s("run", "small.yaml", "--quiet", cwd=tmp_path).strip().splitlines()[-1]
    report = json.loads(Path(last.removeprefix("report: ")).read_text())
    assert report["task"] == "own_reviews@pair"
    weak = next(arm for arm in report["arms"] if arm["arm"] == "weak")
    assert weak["metrics"]["acc"] > 0.6  # it reads both answers one by one
    assert {entry["task"] for entry in report["safety"]} == {"own_reviews@verify"}
    assert "own_reviews@verify: train 240" in w2s(
        "validate", "own_reviews@verify", "--include_path", "own_tasks", cwd=tmp_path
    )
