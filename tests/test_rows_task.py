"""Rows from a frame, a data set or a list of dicts as a task: the same as the YAML that one would write by hand."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import lm_eval
import numpy as np
import pandas as pd
import pytest
import yaml
from bad_input import one_clear_error
from conftest import rows, write_own_task
from lm_eval.tasks import TaskManager
from rich.console import Console

from trainers.config.experiment import Experiment
from trainers.flow.progress import Progress
from trainers.flow.run import open_run
from trainers.harness.evaluate import Harness
from trainers.harness.tasks import PromptStyle
from w2s_tasks.own import checks
from w2s_tasks.own.parts import by_share
from w2s_tasks.own.task import RowsTask, task_from_rows
from w2s_tasks.plugin import stock_names
from w2s_tasks.validate import validate

Rows = list[dict[str, Any]]
CHOICES = ["negative", "positive"]
PROMPT = "Review: {{text}}\nSentiment:"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and lm_eval's 14,441 files left unread."""
    monkeypatch.setattr(stock_names, "stock_has", lambda name: False)
    monkeypatch.setenv("W2S_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


def make(data: Any, **changes: Any) -> RowsTask:
    """A task of reviews."""
    given = {"text": PROMPT, "choices": CHOICES, "label": "label", "name": "mine", "test": 0.2}
    return task_from_rows(data, **(given | changes))


def load(task: RowsTask) -> Any:
    """It as the trainers see it, checked as before a run."""
    loaded = Harness([task.folder]).task(task.name)
    loaded.check_trainable()
    loaded.check_evaluable()
    return loaded


def valid(task: RowsTask) -> bool:
    """What `w2s validate` says of it."""
    settings: dict[str, Any] = {"documents": 20, "model": None, "mode": "loglikelihood", "examples": False}
    return validate([task.name], **settings, include_path=[task.folder], console=Console(quiet=True))


# ---- the same as by hand ------------------------------------------------------------------------------------------------


def test_the_rows_are_asked_as_those_of_a_task_written_by_hand(tmp_path: Path):
    folder = write_own_task(tmp_path / "own")
    written = yaml.safe_load((folder / "own_reviews.yaml").read_text())
    shots = "fewshot_config: {sampler: !function w2s_tasks.rows.fewshot.BalancedSampler, "
    shots += "process_docs: !function w2s_tasks.rows.fewshot.pool}\n"
    (folder / "own_reviews.yaml").write_text(yaml.safe_dump(written) + shots)
    data = rows(300, 3)
    made = load(make({"train": data[:240], "test": data[240:]}, test=None, name="made"))
    hand = Harness([str(folder)]).task("own_reviews")
    assert made.train_ids == hand.train_ids
    assert made.eval_hash(None) == hand.eval_hash(None)
    for style in (PromptStyle(), PromptStyle(num_fewshot=4)):
        for doc in hand.train_docs[:5]:
            assert made.pairs(doc, style) == hand.pairs(doc, style)
        assert made.renderer_hash(style)
    assert [made.gold(doc) for doc in made.train_docs] == [hand.gold(doc) for doc in hand.train_docs]


def test_frame_data_set_and_dicts_are_one_task_and_an_experiment_runs_on_it(
    encoder_folder: Path, causal_model: Callable[[str], Path], tmp_path: Path
):
    data = [row | {"label": CHOICES[int(str(row["label"]))]} for row in rows(300, 3)]
    tasks = {make(kind) for kind in (data, iter(data), pd.DataFrame(data), datasets.Dataset.from_list(data))}
    (task,) = tasks
    assert make(data, choices=np.array(CHOICES)) == make(data, choices=tuple(CHOICES)) == task
    assert valid(task)
    experiment = Experiment(
        task=task,  # type: ignore[arg-type] # the validator takes it apart
        split={"limit": {"weak": 48, "transfer": 24}},  # type: ignore[arg-type]
        weak={"model": str(encoder_folder), "text": "text", "epochs": 1, "lr": 2e-3, "batch_size": 16},  # type: ignore[arg-type]
        strong={"model": str(causal_model("llama")), "r": 4, "lr": 1e-2, "epochs": 1, "batch_size": 16},  # type: ignore[arg-type]
        arms=["student"],
        name="mine",
    )
    assert (experiment.task, experiment.include_path) == ("mine", [task.folder])
    assert Experiment.model_validate(experiment.model_dump()) == experiment
    flow = open_run(experiment, tmp_path / "runs")
    flow.build(Progress(quiet=True))
    from trainers.report.report import read_report, write_report

    write_report(flow)
    assert {arm["arm"] for arm in read_report(flow.folder).json()["arms"]} == {"weak", "student"}


def test_a_data_sets_own_splits_are_kept():
    data = rows(60, 1)
    parts = {"train": datasets.Dataset.from_list(data[:40]), "validation": datasets.Dataset.from_list(data[40:])}
    task = load(make(datasets.DatasetDict(parts), test=None))
    assert (task.train_docs, list(task.task.eval_docs)) == (data[:40], data[40:])


def test_a_column_names_the_splits():
    data = [row | {"part": "test" if i % 5 == 0 else "Train"} for i, row in enumerate(rows(60, 1))]
    task = load(make(data, test=None, split="part"))
    assert (len(task.train_docs), len(task.task.eval_docs)) == (48, 12)


@pytest.mark.parametrize("shots", [0, 4])
def test_the_stock_lm_eval_evaluates_it(shots: int):
    task = make(rows(60, 1), group="text")
    manager = TaskManager(include_path=task.folder, include_defaults=False)
    done = lm_eval.simple_evaluate(model="dummy", tasks=["mine"], task_manager=manager, num_fewshot=shots, bootstrap_iters=0)
    assert done is not None
    scores = done["results"]["mine"]
    assert 0 <= scores["acc,none"] <= 1
    assert scores["acc_stderr,none"] > 0


def test_the_same_rows_are_found_again_and_others_are_others(cache: Path):
    data = rows(60, 1)
    first = make(data)
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    assert make(pd.DataFrame(data)) == first
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == before
    assert load(first).train_ids == load(first).train_ids
    changed = [{**row, "text": f"{row['text']} indeed"} if i == 7 else row for i, row in enumerate(data)]
    others = {make(changed).folder, make(data[:-1]).folder, make(data, seed=1).folder, make(data, description="Say.").folder}
    assert len(others | {first.folder}) == 5
    assert any("indeed" in doc["text"] for doc in [*load(make(changed)).train_docs, *load(make(changed)).task.eval_docs])
    (Path(first.folder) / "mine_test.parquet").unlink()
    assert load(make(data)).train_ids == load(first).train_ids


# ---- splits, groups, choices by row -------------------------------------------------------------------------------------


def test_rows_of_a_group_stay_on_one_side_and_are_clusters():
    data = [row | {"author": f"a{i % 15}", "note": None} for i, row in enumerate(rows(120, 2))]
    task = load(make(data, group="author"))
    trained, tested = ({doc["author"] for doc in docs} for docs in (task.train_docs, task.task.eval_docs))
    assert not trained & tested
    assert 12 <= len(task.task.eval_docs) <= 36
    assert task.source_texts() == ([doc["author"] for doc in task.train_docs], False)
    doc = task.task.eval_docs[0]
    item = task.task.process_results(doc, [(-1.0, True), (-2.0, False)])["acc"]
    assert item == (doc["w2s_group"], float(doc["label"] == 0))


def test_a_share_keeps_equal_prompts_together_and_hangs_on_texts_and_seed_alone():
    texts = [f"text {i % 50}" for i in range(200)]
    for seed in range(5):
        splits = by_share([texts], 0.3, seed)
        sides = dict(zip(texts, splits, strict=True))
        assert [sides[text] for text in texts] == splits
        assert splits.count("test") == 60
        order = random.Random(seed).sample(range(200), 200)
        assert by_share([[texts[i] for i in order]], 0.3, seed) == [splits[i] for i in order]
    assert len({tuple(by_share([texts], 0.3, seed)) for seed in range(5)}) == 5
    assert set(by_share([texts], 1, 0)) == {"test"}


def questions(n: int = 40, *, at: int | None = None) -> Rows:
    """Questions with choices of their own."""
    rng = random.Random(0)
    found = []
    for i in range(n):
        place = rng.randrange(3) if at is None else at
        own = [f"thing {i} {side}" for side in "abc"]
        found.append({"q": f"Which of {i}", "options": own, "answer": place})
    return found


def test_each_row_has_choices_of_its_own():
    by_place = make(questions(), **OWN)
    assert valid(by_place)
    doc = load(by_place).train_docs[0]
    assert load(by_place).pairs(doc, PromptStyle())[1] == (f"{doc['q']}?", f" {doc['options'][1]}")
    texts = [row | {"answer": row["options"][row["answer"]]} for row in questions()]
    frame = pd.DataFrame(texts).assign(options=[np.array(row["options"]) for row in texts])
    by_text = load(make(frame, **OWN))
    assert [doc["label"] for doc in by_text.train_docs] == [doc["label"] for doc in load(by_place).train_docs]


def test_choices_whose_right_one_has_one_place_are_refused_and_shuffled(cache: Path):
    one_clear_error(lambda: make(questions(at=1), **OWN), "place tells the answer.*shuffle=True", untouched=cache)
    task = load(make(questions(at=1), **OWN, shuffle=True))
    docs = [*task.train_docs, *task.task.eval_docs]
    assert len({doc["label"] for doc in docs}) == 3
    assert all(doc["options"][doc["label"]].endswith("b") for doc in docs)


def test_a_task_for_evaluation_alone_has_no_training_rows():
    task = make(rows(40, 1), test=1)
    assert valid(task)
    assert not Harness([task.folder]).task("mine").task.has_training_docs()


def test_equal_rows_on_both_sides_are_told(caplog: pytest.LogCaptureFixture):
    data = rows(60, 1)
    data = [row | {"author": i // 20} for i, row in enumerate(data)]
    make({"train": data[:40], "test": data[35:]}, test=None, group="author")
    assert "5 of the 25 test rows stand in train" in caplog.text
    assert "5 of the 25 test rows have their group in train" in caplog.text


# ---- hostile texts ------------------------------------------------------------------------------------------------------

HOSTILE = (
    "{{ 7 * 7 }}",
    "{% for i in range(9) %}x{% endfor %}",
    "{# gone #}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "!function os.system",
    "a: [b, *c] # d",
    "quote \" and ' and \\ back",
    "line\nbreak\ttab",
    "nul \0 bell \x07 escape \x1b[31m next \x85 line \u2028",
    "na\u00efve \U0001f600 \u202e",
    "---\n...\n",
)


@pytest.mark.parametrize("template", [True, False])
def test_what_stands_in_rows_is_never_read_as_anything_but_text(template: bool):
    data = [{"text": f"{text} number {i}", "label": (i + n) % 2} for n in range(8) for i, text in enumerate(HOSTILE)]
    choices = ["{{ 7 * 7 }}", "!function os.system"]
    task = make(data, text=PROMPT if template else "text", choices=choices)
    assert valid(task)
    loaded = load(task)
    by_text = {row["text"]: row["label"] for row in data}
    for doc in [*loaded.train_docs, *loaded.task.eval_docs]:
        assert doc["text"] in by_text
        pairs = loaded.pairs(doc, PromptStyle())
        asked = f"Review: {doc['text']}\nSentiment:" if template else doc["text"]
        assert pairs == [(asked, f" {choice}") for choice in choices]
    shots = loaded.pairs(loaded.train_docs[0], PromptStyle(num_fewshot=8))[0][0]
    assert "49" not in shots.replace("number 49", "")
    assert "uid=" not in shots


def test_columns_with_hostile_names_are_kept_and_can_be_the_text():
    name = "{{ 7 * 7 }}: !x\n"
    data = [{name: row["text"], "label": row["label"], "": i} for i, row in enumerate(rows(40, 1))]
    task = load(make(data, text=name))
    assert task.pairs(task.train_docs[0], PromptStyle())[0][0] == task.train_docs[0][name]


# ---- refusals -----------------------------------------------------------------------------------------------------------


def bad(row: int = 5, **cells: Any) -> Rows:
    """Forty good rows but one."""
    return [one | cells if i == row else one for i, one in enumerate(rows(40, 1))]


def without(column: str) -> Rows:
    return [{k: v for k, v in row.items() if k != column} for row in rows(40, 1)]


LONE: dict[str, Any] = {"q": "x", "options": ["a"], "answer": 0}
OWN: dict[str, Any] = {"text": "{{q}}?", "choices": "options", "label": "answer"}
REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no rows": ([], {}, "there are no rows"),
    "an empty frame": (pd.DataFrame({"text": [], "label": []}), {}, "there are no rows"),
    "no splits": ({}, {"test": None}, "there are no rows"),
    "an empty split": ({"train": rows(40, 1), "test": []}, {"test": None}, r"rows\['test'\]: there are no rows"),
    "a number": (7, {}, "list of dicts is expected, found int"),
    "texts": (["a", "b"], {}, "row 0 is no dict"),
    "a path": ("reviews.csv", {}, "found str"),
    "no text column": (without("text"), {}, "no column 'text'"),
    "no label column": (without("label"), {}, "no column 'label'"),
    "no such column": (rows(40, 1), {"text": "txt"}, "no column 'txt'. Did you mean 'text'"),
    "a template of none": (rows(40, 1), {"text": "{{txt}}?"}, "no column 'txt'"),
    "a template of nothing": (rows(40, 1), {"text": "{{7}}?"}, "names no column"),
    "a broken template": (rows(40, 1), {"text": "{{text"}, "no template that Jinja reads"),
    "a failing template": (rows(40, 1), {"text": "{{text + 1}}?"}, "row 0.*can't be rendered: TypeError"),
    "the answer in the prompt": (rows(40, 1), {"text": "{{text}} {{label}}?"}, "shows the column 'label'"),
    "a missing text": (bad(text=None), {}, "row 5, column 'text': there is nothing"),
    "a NaN text": (pd.DataFrame(bad(text=np.nan)), {}, "row 5, column 'text': there is nothing"),
    "a number as text": (bad(text=3), {"text": "text"}, "row 5, column 'text': 3 is no text"),
    "an empty text": (bad(text=" "), {"text": "text"}, "row 5.*the prompt is empty"),
    "half a character": (bad(text="\ud83d"), {}, "row 5, column 'text'.*half a character"),
    "a space at the end": (bad(text="fine "), {"text": "text"}, r"row 5.*white space.*\{\{text\|trim\}\}"),
    "digits alone": (bad(text="2024"), {"text": "{{text}}"}, "row 5.*takes the prompt '2024' for a number"),
    "no label": (bad(label=None), {}, "row 5, column 'label': there is no label"),
    "a NaN label": (pd.DataFrame(bad(label=np.nan)), {}, "row 5, column 'label': there is no label"),
    "another label": (bad(label=2), {}, "row 5, column 'label': 2 is no label.*number from 0 to 1"),
    "a negative label": (bad(label=-1), {}, "row 5, column 'label': -1 is no label"),
    "half a label": (bad(label=0.5), {}, "row 5, column 'label': 0.5 is no label"),
    "another text": (bad(label="bad"), {}, "row 5, column 'label': 'bad' is no label"),
    "digits as label": (bad(label="1"), {}, "row 5.*a text of digits is no number"),
    "a label of two minds": (rows(40, 1), {"choices": ["1", "0"]}, "the text of one of.*and the number of another"),
    "one label": ([row | {"label": 1} for row in rows(40, 1)], {}, "all .* rows have the label 'positive'"),
    "one choice": (rows(40, 1), {"choices": ["yes"]}, "1 choices.*nothing to choose from"),
    "no choices": (rows(40, 1), {"choices": []}, "nothing to choose from"),
    "a choice twice": (rows(40, 1), {"choices": ["a", "a"]}, "'a' stands there twice"),
    "a number as choice": (rows(40, 1), {"choices": [0, 1]}, "choice 0.*0 is no text"),
    "an empty choice": (rows(40, 1), {"choices": ["", "a"]}, "is empty or begins"),
    "choices of no column": (rows(40, 1), {"choices": "negative"}, "choices.*no column 'negative'"),
    "choices that are a text": (rows(40, 1), {"choices": "text"}, "row 0, column 'text': a list of texts is expected"),
    "a row's one choice": ([*questions(8), LONE], OWN, "row 8, column 'options': 1 choices"),
    "a row's choice twice": (
        [*questions(8), LONE | {"options": ["a", "a"]}],
        OWN,
        "row 8, column 'options': the choice 'a'",
    ),
    "a row's label beyond": ([*questions(8), LONE | {"options": ["a", "b"], "answer": 2}], OWN, "row 8.*2 is no label"),
    "no way to split": (rows(40, 1), {"test": None}, "which rows are evaluated on"),
    "two ways to split": (rows(40, 1), {"split": "label"}, "split and test say it twice"),
    "an odd share": (rows(40, 1), {"test": 20}, "a share of the rows above 0"),
    "no share": (rows(40, 1), {"test": float("nan")}, "a share of the rows above 0"),
    "an odd split": (bad(0, part="tset"), {"test": None, "split": "part"}, "row 0.*'part': no split 'tset'. Did you"),
    "an odd dict": ({"train": rows(40, 1), "tset": rows(40, 2)}, {"test": None}, "no split 'tset'. Did you mean 'test'"),
    "train alone": ({"train": rows(40, 1)}, {"test": None}, "all rows are in train"),
    "other columns": ({"train": rows(40, 1), "test": without("text")}, {"test": None}, "not all splits have the.*'text'"),
    "one group": ([row | {"g": 1} for row in rows(40, 1)], {"group": "g"}, "leave none to train on"),
    "a missing group": (bad(g=None), {"group": "g"}, "row 0, column 'g': there is no group"),
    "a column of ours": (bad(w2s_pair=1), {}, "the column 'w2s_pair'"),
    "two labels": ([row | {"mood": row["label"]} for row in rows(40, 1)], {"label": "mood"}, "column 'label' is there"),
    "a column twice": (
        pd.DataFrame([["a", 0, 1]], columns=["text", "label", "label"]),
        {},
        "two columns are called 'label'",
    ),
    "values of two kinds": (bad(other={"a": 1}) + bad(other="x"), {}, "the column 'other' can't be kept"),
    "an order of the same choices": (rows(40, 1), {"shuffle": True}, "shuffle: all rows have the same choices"),
    "a number of choices": (rows(40, 1), {"choices": 2}, "a list of texts, or a column.*found 2"),
    "a column that clears the screen": (bad(**{"w2s_\x1b[2J": 1}), {}, r"the column 'w2s_\\x1b\[2J'"),
    "a path as name": (rows(40, 1), {"name": "../mine"}, "can't be a task's name"),
    "a form as name": (rows(40, 1), {"name": "mine@verify"}, "can't be a task's name"),
    "a long name": (rows(40, 1), {"name": "m" * 300}, "can't be a task's name"),
    "our name": (rows(40, 1), {"name": "w2s_sst2"}, "is a task, group or tag of this suite"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_task_is_refused_before_anything_is_written(case: str, cache: Path):
    data, changes, message = REFUSED[case]
    one_clear_error(lambda: make(data, **changes), message, untouched=cache)


def test_names_of_lm_evals_own_are_taken(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()
    assert stock_names.stock_has("arc_easy")
    assert not stock_names.stock_has("arc_eas.")
    one_clear_error(lambda: checks.check_free("arc_easy"), "lm_eval's own")


def test_labels_of_every_kind_mean_what_they_say():
    for labels in ([0, 1], [0.0, 1.0], [False, True], CHOICES, [np.int64(0), np.float32(1)]):
        data = [row | {"label": labels[int(str(row["label"]))]} for row in rows(40, 1)]
        found = {doc["text"]: doc["label"] for doc in load(make(data)).train_docs}
        assert all(row["label"] == found.get(row["text"], row["label"]) for row in rows(40, 1)), labels
    counted = [row | {"label": 1 + int(str(row["label"]))} for row in rows(40, 1)]
    assert load(make(counted, choices=["0", "5", "7"])).classes == ["0", "5", "7"]
    digits = [row | {"label": str(2 - int(str(row["label"])))} for row in rows(40, 1)]
    assert load(make(digits, choices=["2", "1"])).classes == ["2", "1"]
    turned = load(make([row | {"label": str(row["label"])} for row in rows(40, 1)], choices=["1", "0"]))
    assert all(turned.classes[turned.gold(doc)] != str(doc["label"]) for doc in turned.train_docs)


def test_an_interrupted_writing_leaves_no_task(cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Path, "replace", lambda self, to: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        make(rows(40, 1))
    monkeypatch.undo()
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_a_task_of_rows_can_be_compared_and_written_down():
    task = make(rows(40, 1))
    assert task == replace(task)
    assert json.loads(json.dumps(vars(task)))["name"] == "mine"
