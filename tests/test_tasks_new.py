"""`w2s tasks new`: what a table's columns are taken for, what is written, and what is refused before anything is."""

from __future__ import annotations

import csv
import json
import random
import re
import shlex
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from bad_input import one_clear_error
from conftest import rows
from rich.console import Console
from typer.testing import CliRunner

from trainers.cli import app
from trainers.config.reading import load as load_experiment
from trainers.harness.evaluate import Harness
from trainers.harness.tasks import PromptStyle
from w2s_tasks.own import guess as guessing
from w2s_tasks.own import tables
from w2s_tasks.plugin import stock_names
from w2s_tasks.validate import validate

Rows = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which the command is started."""
    monkeypatch.setattr(stock_names, "stock_has", lambda name: False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, data: Rows, separator: str = ",") -> Path:
    """A table in the form that its name says."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(data), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in data), encoding="utf-8")
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(data[0]), delimiter=separator)
            writer.writeheader()
            writer.writerows(data)
    return path


def new(*arguments: str | Path) -> str:
    """What the command prints."""
    return run("tasks", "new", *map(str, arguments))


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def task(name: str, where: str | None = None) -> Any:
    """The task that was written, checked as before a run."""
    found = Harness([where or name]).task(name)
    found.check_trainable()
    found.check_evaluable()
    return found


def valid(*names: str) -> bool:
    """What `w2s validate` says of tasks, each in the folder of its name."""
    settings: dict[str, Any] = {"documents": 20, "model": None, "mode": "loglikelihood", "examples": False}
    return validate(names, **settings, include_path=names, console=Console(quiet=True))


def reviews(n: int = 80) -> Rows:
    """Reviews with a word as label."""
    return [
        {"id": i, "review": str(row["text"]), "mood": ("sad", "glad")[int(str(row["label"]))]}
        for i, row in enumerate(rows(n, 3))
    ]


def quiz(n: int = 60) -> Rows:
    """Questions with four options of their own."""
    rng = random.Random(0)
    return [
        {"question": f"What is {i} and 1?", **{m: str(i + k) for k, m in enumerate("ABCD")}, "answer": rng.choice("ABCD")}
        for i in range(n)
    ]


# ---- what is written ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_a_table_of_texts_and_words_becomes_a_task_that_is_valid(kind: str, folder: Path):
    file = write(folder / f"my reviews.{kind}", reviews(), "\t" if kind == "tsv" else ",")
    told = new(file, "--name", "mine")
    for line in ("label: the column 'mood'", "text: the column 'review'", "choices: 'glad', 'sad'", "test: a fifth"):
        assert line in told
    found = task("mine")
    assert valid("mine")
    assert found.classes == ["glad", "sad"]
    by_text = {row["review"]: row["mood"] for row in reviews()}
    for doc in [*found.train_docs, *found.task.eval_docs]:
        assert found.pairs(doc, PromptStyle())[0] == (f"{doc['review']}\nMood:", " glad")
        assert found.classes[doc["label"]] == by_text[doc["review"]]
    text = (folder / "mine" / "mine.yaml").read_text()
    assert text.count("\n# ") >= 6
    assert yaml.safe_load(re.sub(r"!function", "", text))["metadata"] == {"version": 1.0}


def test_the_commands_that_it_prints_can_be_given(folder: Path):
    odd = folder / "a folder, odd's"
    odd.mkdir()
    told = new(write(odd / "mine.csv", reviews()), "--out", odd / "out")
    validating, evaluating, running = (shlex.split(line) for line in told.splitlines()[-3:])
    assert "ok mine: train 64, test 16" in run(*validating[1:])
    assert evaluating[:2] == ["w2s", "eval"]
    assert running[:3] == ["w2s", "run", "quickstart"]
    config, _ = load_experiment(running[2], [s for s in running[3:] if s != "--set"])
    assert (config.task, config.include_path, config.name) == ("mine", [str(odd / "out")], "mine")


def test_options_of_each_row_become_choices(folder: Path):
    told = new(write(folder / "quiz.csv", quiz()))
    assert "choices: the columns 'A', 'B', 'C', 'D'" in told
    found = task("quiz")
    assert valid("quiz")
    for doc, row in ((doc, row) for doc in found.train_docs for row in quiz() if row["question"] == doc["question"]):
        assert doc["choices"] == [row[m] for m in "ABCD"]
        assert doc["choices"][doc["label"]] == row[row["answer"]]
    assert found.pairs(found.train_docs[0], PromptStyle())[0][0].endswith("?\nAnswer:")


@pytest.mark.parametrize(
    ("names", "label"),
    [
        (["option1", "option2"], {"option1": "1", "option2": "2"}),
        (["ending0", "ending1"], {"ending0": 0, "ending1": 1}),
        (["opa", "opb"], {"opa": "opa", "opb": "opb"}),
        (["choice_a", "choice_b"], {"choice_a": "the text of choice_a", "choice_b": "the text of choice_b"}),
    ],
)
def test_the_label_names_an_option_by_its_mark_its_column_its_text_or_its_place(
    names: list[str], label: dict[str, Any], folder: Path
):
    rng = random.Random(1)
    right = [rng.choice(names) for _ in range(40)]
    texts = {name: f"the text of {name}" for name in names}
    data = [{"sentence": f"This is one, number {i}", **texts, "answer": label[name]} for i, name in enumerate(right)]
    new(write(folder / "own.csv", data))
    found = task("own")
    docs = [*found.train_docs, *found.task.eval_docs]
    assert {doc["sentence"]: doc["choices"][doc["label"]] for doc in docs} == {
        row["sentence"]: texts[name] for row, name in zip(data, right, strict=True)
    }


def test_a_column_of_lists_holds_the_choices(folder: Path):
    data = [
        {"question": row["question"], "options": [row[m] for m in "ABCD"], "answer": row[row["answer"]]} for row in quiz()
    ]
    for kind in ("jsonl", "parquet"):
        assert "choices: the column 'options'" in new(write(folder / f"{kind}_quiz.{kind}", data))
        assert task(f"{kind}_quiz").train_docs[0]["options"][3]


def test_everything_can_be_said(folder: Path):
    data = [
        row | {"verdict": i % 3 % 2, "who": f"w{i % 9}", "fold": "test" if i % 4 == 0 else "train"}
        for i, row in enumerate(quiz())
    ]
    file = write(folder / "t.csv", data)
    said = ["--text", "{{question}} It is {{A}}.", "--label", "verdict", "--choices", "no, yes", "--group", "who"]
    told = new(file, *said, "--name", "said", "--out", "a/b", "--test", "0.5", "--description", "Judge.\n\n", "--seed", "3")
    found = task("said", "a/b")
    assert found.classes == ["no", "yes"]
    assert found.pairs(found.train_docs[0], PromptStyle())[0][0].startswith("Judge.\n\nWhat is")
    assert not {doc["who"] for doc in found.train_docs} & {doc["who"] for doc in found.task.eval_docs}
    assert "guess" not in told
    new(file, *said[:-2], "--name", "folds")
    assert len(task("folds").task.eval_docs) == 15
    new(file, "--text", "question", "--options", "A,B", "--label", "verdict", "--name", "two", "--shuffle", "--test", "1")
    assert (folder / "two" / "two_test.parquet").is_file()


def test_truth_values_and_numbers_are_called_as_they_are_said(folder: Path):
    data = [{"text": row["text"], "label": bool(row["label"]), "stars": 1 + i % 5} for i, row in enumerate(rows(80, 3))]
    assert "no and yes" in new(write(folder / "flags.jsonl", data))
    assert task("flags").classes == ["no", "yes"]
    stars = [{"text": row["text"], "stars": row["stars"]} for row in data]
    new(write(folder / "stars.csv", stars), "--label", "stars", "--choices", "1,2,3,4,5")
    assert task("stars").classes == list("12345")


# ---- files as people have them ------------------------------------------------------------------------------------------


def test_quotes_line_breaks_separators_and_a_byte_order_mark_are_read(folder: Path):
    odd = [f'He said "no", {i}\nand; left\t{{{{ 7 * 7 }}}}' for i in range(40)]
    text = "\ufefftext;label\r\n" + "".join(
        '"{}";{}\r\n'.format(t.replace('"', '""'), "yn"[i % 2]) for i, t in enumerate(odd)
    )
    (folder / "odd.csv").write_bytes(text.encode())
    assert "parted by a semicolon" in new(folder / "odd.csv")
    found = task("odd")
    assert valid("odd")
    assert {doc["text"] for doc in [*found.train_docs, *found.task.eval_docs]} == set(odd)


def test_a_thousand_columns_are_looked_at(folder: Path):
    many = [
        {**row, **{f"x{k}": f"value {i} {k}" if k % 2 else str(i * k) for k in range(1000)}}
        for i, row in enumerate({"words": row["review"], "mood": row["mood"]} for row in reviews(40))
    ]
    file = write(folder / "wide.csv", many)
    new(file, "--text", "words")
    assert len(pq.read_schema(folder / "wide" / "wide_train.parquet")) == 1003
    text = one_clear_error(lambda: new(file, "--name", "other"), "--text COLUMN", names="wide.csv", untouched=folder)
    assert len(text) < 1000


SAFE = {"text": "a film", "label": "y"}


def said(row: int = -1, n: int = 20, **cells: Any) -> Rows:
    """Rows with a text and the label y or n, and one that has other cells."""
    return [{"text": f"a {i}", "label": "yn"[i % 2]} | (cells if i == row else {}) for i in range(n)]


REFUSED: dict[str, tuple[str, bytes | Rows, list[str], str]] = {
    "no file": ("none.csv", b"", ["gone.csv"], "gone.csv: not readable"),
    "another kind": ("t.xlsx", b"x", [], "is read from .csv, .tsv, .jsonl, .parquet"),
    "an empty file": ("t.csv", b"", [], "there are no rows"),
    "a header alone": ("t.csv", b"text,label\n", [], "there are no rows below"),
    "latin-1": ("t.csv", "text,label\ncaf\u00e9,y\n".encode("latin-1"), [], "t.csv:2: not readable as UTF-8"),
    "utf-16": ("t.csv", "text,label\na,y\n".encode("utf-16"), [], "t.csv:1: not readable as UTF-8"),
    "a ragged row": ("t.csv", b"text,label\na,y\na,b,n\n", [], "t.csv:3: 3 cells, and the first line has 2"),
    "an open quote": ("t.csv", b'text,label\n"a,y\nb,n\n', [], "is a quote open"),
    "a column twice": ("t.csv", b"text,text\na,y\n", [], "two columns are called 'text'"),
    "broken json": ("t.jsonl", b'{"text": "a"}\n{"text": \n', [], "t.jsonl:2: not JSON"),
    "a list a line": ("t.jsonl", b"[1]\n", [], "row 0 is no dict"),
    "no parquet": ("t.parquet", b"PAR1 no", [], "not readable as parquet"),
    "no label": ("t.csv", [{"text": f"a film {i}"} for i in range(20)], [], "which column is the label.*--label COLUMN"),
    "two labels": ("t.csv", [{**SAFE, "target": "x"}] * 20, [], "which column is the label.*'label', 'target'"),
    "two texts": ("t.csv", [{**SAFE, "question": "b"}] * 20, [], "which column is asked about.*'text', 'question'"),
    "no text": ("t.csv", [{"n": i, "label": "yn"[i % 2]} for i in range(20)], [], "no column holds texts"),
    "labels that are numbers": (
        "t.csv",
        [{"text": f"a {i}", "label": i % 2} for i in range(9)],
        [],
        "holds 0, 1.*--choices no,yes",
    ),
    "labels that are texts": ("t.csv", [{"text": f"a {i}", "label": f"b {i}"} for i in range(30)], [], "30 different texts"),
    "numbers that count": ("t.csv", [{"text": f"a {i}", "label": i} for i in range(30)], [], "30 different values"),
    "two lists": ("t.jsonl", [{**SAFE, "a": ["x", "y"], "b": ["x", "y"]}] * 9, [], "than one column holds lists"),
    "an empty cell": ("t.csv", said(7, text=""), [], "t.csv: row 7, column 'text'"),
    "an empty label": ("t.csv", said(7, label=""), [], "row 7, column 'label': there is no label"),
    "an empty option": (
        "t.csv",
        [quiz()[0] | {"B": ""}, *quiz()],
        [],
        "row 0, column 'choices': choice 1.*there is nothing",
    ),
    "one place": ("t.csv", [row | {"answer": "A"} for row in quiz()], [], "place tells the answer.*--shuffle"),
    "no such column": ("t.csv", reviews(), ["--label", "moods"], "--label: no column 'moods'. Did you mean 'mood'"),
    "a name of ours": ("t.csv", reviews(), ["--name", "w2s_boolq"], "a task, group or tag of this suite"),
    "a file's odd name": ("\u00e9.csv", reviews(), [], "can't be a task's name"),
    "no share": ("t.csv", reviews(), ["--test", "0"], "a share of the rows above 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_safe_is_refused_before_anything_is_written(case: str, folder: Path):
    name, data, arguments, message = REFUSED[case]
    file = folder / name
    if isinstance(data, bytes):
        file.write_bytes(data)
    else:
        write(file, data)
    given = arguments if arguments and arguments[0].endswith(".csv") else [str(file), *arguments]
    one_clear_error(lambda: new(*given), message, untouched=folder)


def test_nothing_is_overwritten(folder: Path):
    file = write(folder / "mine.csv", reviews())
    new(file)
    (folder / "mine" / "mine.yaml").write_text("edited")
    one_clear_error(lambda: new(file), "is there already.*--name or --out", names="mine.yaml", untouched=folder)
    assert (folder / "mine" / "mine.yaml").read_text() == "edited"
    (folder / "mine" / "mine.yaml").unlink()
    one_clear_error(lambda: new(file), "is there already", names="mine_train.parquet", untouched=folder)
    one_clear_error(lambda: new(file, "--out", str(file)), "it is a file", untouched=folder)
    new(file, "--name", "other", "--out", "mine")
    assert task("other", "mine").name == "other"


def test_the_manuals_examples_run(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("W2S_CACHE", str(folder))
    write(folder / "reviews.csv", reviews())
    write(folder / "quiz.csv", quiz())
    page = (Path(__file__).parents[1] / "docs" / "tasks.md").read_text(encoding="utf-8")
    (commands,) = (block for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL) if "tasks new" in block)
    for line in commands.splitlines():
        words = shlex.split(line, comments=True)
        assert words[0] == "w2s"
        told = run(*words[1:])
    assert "ok reviews: train 64, test 16" in told
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "task_from_rows" in block)
    known: dict[str, Any] = {}
    exec(code, known)  # noqa: S102 - the manual's own
    assert task("my_reviews", known["task"].folder).classes == ["sad", "glad"]


def test_w2s_tasks_lists_and_tells_its_folder_as_before():
    assert "w2s_ethics_all" in run("tasks")
    assert (Path(run("tasks", "--path").strip()) / "sst2" / "w2s_sst2.yaml").is_file()


def test_columns_are_taken_for_options_by_names_that_belong_together_alone():
    texts = ["a", "b", "c", "d"]
    for names, taken in (
        (["sentence1", "sentence2"], []),
        (["A", "C"], []),
        (["option_1", "option_2", "option_4"], []),
        (["Option A", "Option B"], ["Option A", "Option B"]),
        (["a", "b", "c"], ["a", "b", "c"]),
    ):
        found = guessing.Guess(dict.fromkeys(names, texts))
        assert guessing._options(found, set(), guessing.Told()) == taken


def test_cells_are_numbers_where_all_of_them_are():
    assert tables._typed(["1", "", "-2"]) == [1, None, -2]
    assert tables._typed(["1.5", "2.0"]) == [1.5, 2.0]
    assert tables._typed(["01", "2"]) == ["01", "2"]
    assert tables._typed(["1", "x", ""]) == ["1", "x", None]
    assert tables._typed(["", ""]) == [None, None]
