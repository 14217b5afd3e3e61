"""Rows that lm_eval would read otherwise than a user means them are told before any work, with a remedy that works."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from bad_input import one_clear_error
from conftest import EXPERIMENT, OWN_TASK, rows

from trainers.config.reading import load
from trainers.flow.progress import Progress
from trainers.flow.run import open_run
from trainers.harness import evaluate as hn
from w2s_tasks.models.packed_hf import W2SHF
from w2s_tasks.plugin.manager import W2STaskManager
from w2s_tasks.scoring import generated

Rows = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def _own_index_only(monkeypatch: pytest.MonkeyPatch) -> None:
    # lm_eval's own 14,683 names take half a minute to read.
    monkeypatch.setattr(W2STaskManager, "_widen", lambda self: setattr(self, "_can_widen", False))


def write(folder: Path, train: Rows, test: Rows | None = None, kind: str = "jsonl", code: str = "", **changes: Any) -> Path:
    """The task `own_reviews` over these rows in a folder of its own; None as a change takes the setting out."""
    folder.mkdir()
    for name, part in (("train", train), ("test", train if test is None else test)):
        path = folder / f"{name}.{kind}"
        if kind == "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in part))
        else:
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, list(part[0]))
                writer.writeheader()
                writer.writerows(part)
    settings = yaml.safe_load(OWN_TASK.format(folder=folder)) | {"dataset_path": "csv" if kind == "csv" else "json"}
    settings["dataset_kwargs"]["data_files"] = {name: str(folder / f"{name}.{kind}") for name in ("train", "test")}
    settings["dataset_kwargs"] |= changes.pop("dataset_kwargs", {})
    text = yaml.safe_dump({key: value for key, value in (settings | changes).items() if value is not None})
    (folder / "own.py").write_text(code)
    (folder / "own_reviews.yaml").write_text(re.sub(r"'(!function [\w.]+)'", r"\1", text))
    return folder


def use(folder: Path) -> hn.HarnessTask:
    """What w2s run looks at before it trains."""
    task = hn.Harness([str(folder)]).task("own_reviews")
    task.check_trainable()
    task.check_evaluable()
    return task


def w2s(*arguments: str, cwd: Path) -> str:
    command = [sys.executable, "-m", "trainers.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=dict(os.environ))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


NAMES = ("complaint", "praise")


@pytest.mark.slow
def test_a_csv_of_texts_and_their_names_goes_through_every_command(
    encoder_folder: Path, causal_model: Callable[[str], Path], tmp_path: Path
):
    data: Rows = [{"text": r["text"], "label": NAMES[int(str(r["label"]))]} for r in rows(300, 3)]
    write(tmp_path / "own_tasks", data[:240], data[240:], "csv", doc_to_choice=list(NAMES))
    own = ("--task", "own_reviews", "--include_path", "own_tasks")
    assert "ok own_reviews: train 240, test 60" in w2s("validate", "own_reviews", *own[2:], cwd=tmp_path)

    experiment = EXPERIMENT.format(encoder=encoder_folder, strong=causal_model("llama"))
    (tmp_path / "small.yaml").write_text(experiment)
    last = w2s("run", "small.yaml", "--quiet", cwd=tmp_path).strip().splitlines()[-1]
    report = json.loads(Path(last.removeprefix("report: ")).read_text())
    assert report["arms"]

    weak = ("--model", str(encoder_folder), "--trainer", "classifier", "--set", "text=text")
    w2s("finetune", *own, *weak, "--limit", "64", "--out", "weak", cwd=tmp_path)
    w2s("label", *own, "--model_args", "pretrained=weak/model", "--limit", "40", "--out", "labels.parquet", cwd=tmp_path)
    assert pq.read_schema(tmp_path / "labels.parquet").names == ["row_id", "soft", "hard"]
    strong = ("--model", str(causal_model("llama")), "--labels", "labels.parquet")
    w2s("finetune", *own, *strong, "--out", "strong", cwd=tmp_path)


# ---- missing cells ----------------------------------------------------------------------------------------------------


def filled(n: int = 8, **last: Any) -> Rows:
    return [{"text": f"film {i}", "label": i % 2, "more": "x"} for i in range(n - 1)] + [
        {"text": "last", "label": 1, "more": "x"} | last
    ]


TEXT = "def text(doc):\n    return f\"{doc['more']}: {doc['text'].strip()}\"\n"


@pytest.mark.parametrize("split", ["training", "evaluation"])
@pytest.mark.parametrize(
    ("kind", "cell", "column", "changes"),
    [
        *[("csv", cell, "text", {}) for cell in ("null", "n/a", "", "NaN", "None")],
        ("jsonl", None, "text", {}),
        ("jsonl", None, "more", {"doc_to_text": "!function own.text"}),
        ("jsonl", None, "text", {"doc_to_text": "!function own.text"}),
        ("jsonl", None, "text", {"doc_to_text": "text"}),
        ("jsonl", None, "more", {"doc_to_choice": "{{[more ~ ' no', 'yes']}}"}),
        ("csv", "", "label", {}),
    ],
)
def test_a_missing_cell_that_a_prompt_would_call_none_is_told(
    kind: str, cell: Any, column: str, changes: dict[str, Any], split: str, tmp_path: Path
):
    good, bad = filled(), filled(**{column: cell})
    train, test = (bad, good) if split == "training" else (good, bad)
    folder = write(tmp_path / "own", train, test, kind, TEXT, **changes)
    message = f"row 7 of its {split} split has nothing in the column '{column}'.*take the row out"
    text = one_clear_error(lambda: use(folder), message, names="own_reviews")
    assert ("keep_default_na: false" in text) == (kind == "csv")


def test_the_remedy_for_missing_cells_reads_them_as_written(tmp_path: Path):
    data = [row | {"text": cell} for row, cell in zip(filled(4), ("null", "n/a", "", "None"), strict=True)]
    task = use(write(tmp_path / "own", data, kind="csv", dataset_kwargs={"keep_default_na": False}))
    assert [task.pairs(doc, hn.PromptStyle())[0][0] for doc in task.train_docs] == [
        f"Review: {cell}\nSentiment:" for cell in ("null", "n/a", "", "None")
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"doc_to_text": "Review: {{text}}{{more or ''}}\nSentiment:"},
        {"doc_to_text": "{% if more is none %}No context. None.{% else %}{{more}} None.{% endif %} {{text}}"},
        {},
    ],
)
def test_a_missing_cell_that_the_template_expects_is_no_fault(changes: dict[str, Any], tmp_path: Path):
    use(write(tmp_path / "own", filled(more=None), **changes))


# ---- labels that are read as places -------------------------------------------------------------------------------------


def labelled(*labels: Any) -> Rows:
    return [{"text": f"film {i}", "label": label} for i, label in enumerate(labels)]


COUNTED: dict[str, tuple[list[Any], list[str], str, str, list[int]]] = {
    "numbers of a scale from 1": ([1, 2, 1, 2], ["1", "2", "3"], "label", "jsonl", [0, 1, 0, 1]),
    "numbers of a reversed scale": ([0, 1], ["1", "0"], "label", "csv", [1, 0]),
    "numbers with a template": ([1, 2], ["1", "2", "3"], "{{label}}", "csv", [0, 1]),
    "digits as text with a template": (["2", "1"], ["1", "2", "3"], "{{ label }}", "jsonl", [1, 0]),
    "truth values": ([True, False], ["True", "False"], "label", "jsonl", [0, 1]),
    "truth values in small letters": ([True, False], ["true", "false"], "label", "jsonl", [0, 1]),
    "truth values of a CSV": ([True, False], ["true", "false"], "label", "csv", [0, 1]),
    "floats": ([1.0, 2.0], ["1", "2", "3"], "label", "jsonl", [0, 1]),
}


@pytest.mark.parametrize("case", COUNTED)
def test_a_label_that_would_count_the_choices_though_it_names_one_is_told(case: str, tmp_path: Path):
    labels, choices, target, kind, meant = COUNTED[case]
    folder = write(tmp_path / "own", labelled(*labels), kind=kind, doc_to_choice=choices, doc_to_target=target)
    text = one_clear_error(lambda: use(folder), "takes as a place among the choices, counted from 0", names="own_reviews")
    by_text, by_place = re.findall(r'`doc_to_target: "(.*?)"`', text)
    assert golds(tmp_path / "by_text", labels, choices, by_text, kind) == meant
    assert golds(tmp_path / "by_place", labels, choices, by_place, kind) == [int(label) for label in labels]


def golds(folder: Path, labels: list[Any], choices: list[str], target: str, kind: str = "jsonl") -> list[int]:
    task = use(write(folder, labelled(*labels), kind=kind, doc_to_choice=choices, doc_to_target=target))
    return [task.gold(doc) for doc in task.train_docs]


@pytest.mark.parametrize(
    ("labels", "choices", "target"),
    [
        ([0, 1, 4], list("12345"), "label"),  # 0 is no text of a choice: these can but count
        ([0, 1], ["0", "1"], "label"),
        ([False, True], ["false", "true"], "label"),
        ([True, False], ["no", "yes"], "label"),
        (["2", "1"], ["1", "2"], "label"),  # a column of texts names its choice
        ([2, 1], ["1", "2"], "{{label - 1}}"),
    ],
)
def test_labels_that_can_be_read_in_one_way_are_taken(labels: list[Any], choices: list[str], target: str, tmp_path: Path):
    place = {False: 0, True: 1, "1": 0, "2": 1}
    expected = [label - 1 for label in labels] if "- 1" in target else [place.get(label, label) for label in labels]
    assert golds(tmp_path / "own", labels, choices, target) == expected


@pytest.mark.parametrize(
    ("labels", "choices", "remedy"),
    [(["1", "0"], ["no", "yes"], "{{ label|int }}"), ([1, 3], ["1", "2", "3"], "{{ ['1', '2', '3'].index(label|string) }}")],
)
def test_a_label_that_is_no_choice_is_told_with_what_makes_it_one(
    labels: list[Any], choices: list[str], remedy: str, tmp_path: Path
):
    folder = write(tmp_path / "own", labelled(*labels), doc_to_choice=choices)
    text = one_clear_error(lambda: use(folder), "has the gold label|place among the choices", names="own_reviews")
    assert f'`doc_to_target: "{remedy}"`' in text
    assert len(golds(tmp_path / "mended", labels, choices, remedy)) == 2


@pytest.mark.parametrize("digits", ["01", "\u00b2"])
def test_digits_that_are_no_number_to_a_template_are_told(digits: str, tmp_path: Path):
    folder = write(tmp_path / "own", labelled("0", "1", "0", digits), doc_to_target="{{label}}")
    one_clear_error(lambda: use(folder), "a label of its training split can't be read: SyntaxError", names="own_reviews")


def test_a_label_outside_the_choices_is_told_wherever_it_stands(tmp_path: Path):
    folder = write(tmp_path / "own", [*filled(400), {"text": "x", "label": 2, "more": "x"}], filled())
    message = "row 400 of its training split has the gold label 2"
    one_clear_error(hn.Harness([str(folder)]).task("own_reviews").check_trainable, message, names="own_reviews")


@pytest.mark.parametrize("written", ["[no, yes]", "[1, 2]", "[good, null]", '["good", ""]', "{a: off, b: on}"])
def test_choices_that_yaml_does_not_read_as_texts_are_told(written: str, tmp_path: Path):
    folder = write(tmp_path / "own", filled(), doc_to_choice=yaml.safe_load(written))
    one_clear_error(lambda: use(folder), "choices must be a list of texts.*put quotes", names="own_reviews")


def test_choices_of_rows_that_are_no_texts_are_told(tmp_path: Path):
    data = [row | {"options": ["a", "b" if i < 5 else None]} for i, row in enumerate(filled())]
    folder = write(tmp_path / "own", data, doc_to_choice="options")
    one_clear_error(lambda: use(folder), "row 5 of its training split has the choices.*list of texts", names="own_reviews")


# ---- scores of a task's own ---------------------------------------------------------------------------------------------

SCORES: dict[str, tuple[str, str]] = {
    "no acc": ("return {'f1': 1.0}", "gives no `acc`"),
    "a text": ("return {'acc': 'right'}", "gives no `acc`"),
    "always right": ("return {'acc': 1.0}", "other answers than doc_to_target names"),
    "the other answer": ("return {'acc': float(results[1 - doc['label']][0] == -1.0)}", "other answers than doc_to_target"),
    "fails": ("return {'acc': doc['nothing']}", "fails on row 0: KeyError"),
    "no scores": ("return None", "fails on row 0"),
}


@pytest.mark.parametrize("case", SCORES)
def test_scores_that_could_not_be_read_are_told_before_any_work(case: str, tmp_path: Path):
    code, message = SCORES[case]
    code = f"def score(doc, results):\n    {code}\n"
    folder = write(tmp_path / "own", filled(), code=code, process_results="!function own.score")
    for check in ("check_trainable", "check_evaluable"):
        one_clear_error(getattr(hn.Harness([str(folder)]).task("own_reviews"), check), message, names="own_reviews")


def test_scores_of_its_own_that_can_be_read_are_taken(tmp_path: Path):
    code = "def score(doc, results):\n    return {'acc': float(results[doc['label']] == max(results))}\n"
    use(write(tmp_path / "own", filled(), code=code, process_results="!function own.score"))


@pytest.mark.parametrize("score", [None, "!function own.score"])
def test_generated_text_that_this_suite_does_not_score_is_told_before_any_work(score: str | None, tmp_path: Path):
    exact = [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]
    changes = {"output_type": "generate_until", "doc_to_choice": None, "metric_list": exact, "process_results": score}
    code = "def score(doc, results):\n    return {'exact_match': 1.0}\n"
    task = hn.Harness([str(write(tmp_path / "own", filled(), code=code, **changes))]).task("own_reviews")
    one_clear_error(task.check_evaluable, "replies are not scored as this suite's", names="own_reviews")


def test_every_task_of_this_suite_that_needs_no_data_can_be_run():
    for task in hn.Harness().load(["w2s_ethics_probe_all", "w2s_ethics_probe_all_gen"]):
        task.check_evaluable()


@pytest.mark.parametrize("group", ["women", None, 3])
def test_a_column_named_group_means_nothing_to_generated_text(group: Any):
    assert generated.sentiment({"label": 1, "group": group}, ["positive"])["acc"] == (1, 1, 1, generated.NO_GROUP)
    assert "em" not in generated.yes_no({"label": 1, "group": group}, ["yes"])
    assert generated.grouped_yes_no({"label": 1, "w2s_group": 3}, ["yes"])["em"] == (1, 1, 1, 3)


# ---- encoders -----------------------------------------------------------------------------------------------------------


def test_an_encoder_is_refused_as_language_model(encoder_folder: Path):
    one_clear_error(lambda: W2SHF(str(encoder_folder), device="cpu"), "is an encoder.*w2s-classifier", names="encoder")


@pytest.mark.parametrize("part", ["strong", "weak"])
def test_an_encoder_for_a_language_model_stops_a_run_before_its_first_stage(
    part: str, experiment_file: Path, encoder_folder: Path, causal_model: Callable[[str], Path], tmp_path: Path
):
    weak = f"weak={{model: {encoder_folder}, trainer: lora}}"
    changes = [f"strong.model={encoder_folder}", "arms=[student]"] if part == "strong" else [weak]
    flow = open_run(load(str(experiment_file), changes)[0], tmp_path / "runs")
    one_clear_error(lambda: flow.build(Progress(quiet=True)), "is an encoder.*trainer: classifier", names="encoder")
    assert not list((tmp_path / "runs").rglob("*.json"))
