"""Rows of an own task (CSV, JSONL, parquet) and its YAML that are wrong: one clear error before any work, with the place."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bad_input import one_clear_error
from conftest import OWN_TASK

from trainers.flow.alone import _chosen, finetune_model, label_rows
from trainers.harness import evaluate as hn
from trainers.labels.label_set import LabelSet
from w2s_tasks.plugin.manager import W2STaskManager

TASK = OWN_TASK.replace("own_reviews", "mine").replace(": json", ": {kind}").replace(".jsonl", ".{end}")
CSV = b"text,label\ngood,1\nbad,0\n"
JSONL = b'{"text": "good", "label": 1}\n{"text": "bad", "label": 0}\n'
KINDS = {"csv": ("csv", CSV), "jsonl": ("json", JSONL)}


@pytest.fixture(autouse=True)
def _own_index_only(monkeypatch: pytest.MonkeyPatch) -> None:
    # lm_eval's own 14,683 names take half a minute to read.
    monkeypatch.setattr(W2STaskManager, "_widen", lambda self: setattr(self, "_can_widen", False))


def write(folder: Path, end: str = "csv", train: bytes | None = None, test: bytes | None = None, yaml: str = TASK) -> Path:
    folder.mkdir(exist_ok=True)
    kind, good = KINDS.get(end, ("parquet", b""))
    (folder / "mine.yaml").write_text(yaml.format(folder=folder, kind=kind, end=end))
    (folder / f"train.{end}").write_bytes(good if train is None else train)
    (folder / f"test.{end}").write_bytes(good if test is None else test)
    return folder


def use(folder: Path) -> hn.HarnessTask:
    """What w2s run and w2s finetune look at before they train."""
    task = hn.Harness([str(folder)]).task("mine")
    task.check_trainable()
    task.check_evaluable()
    for doc in task.train_docs[:3]:
        task.pairs(doc, hn.PromptStyle())
    return task


ROWS: dict[str, tuple[str, bytes, str]] = {
    "csv: empty": ("csv", b"", "can't be loaded.*EmptyDataError|empty"),
    "csv: only a header": ("csv", b"text,label\n", "mine.yaml; its rows: .*train.csv.* can't be loaded.*first 0 values"),
    "csv: no label column": ("csv", b"text\ngood\n", "label|can't be"),
    "csv: no text column": ("csv", b"sentence,label\ngood,1\n", "can't be loaded.*column names don't match"),
    "csv: a column misspelt": ("csv", b"text,lable\ngood,1\n", "lable.*column names don't match"),
    "csv: more cells than columns": ("csv", CSV + b"a,b,c,d,e\n", "can't be loaded.*Expected 2 fields"),
    "csv: an open quote": ("csv", CSV + b'"open,1\n' * 3, "can't be loaded|label"),
    "csv: invalid utf-8": ("csv", CSV + b"\xff\xfe,1\n", "can't be loaded.*utf-8"),
    "csv: utf-16": ("csv", CSV.decode().encode("utf-16"), "can't be loaded"),
    "csv: unknown label": (
        "csv",
        CSV + b"fine,7\n",
        "row 2 of its training split has the gold label 7, but the task has 2 choices",
    ),
    "csv: negative label": ("csv", CSV + b"fine,-2\n", "gold label -2"),
    "csv: a missing label": ("csv", CSV + b"fine,\n", "row 2 of its training split has nothing in the column 'label'"),
    "csv: a fraction as label": ("csv", CSV + b"fine,0.5\n", "a label must be a choice's number or text, found 0.5"),
    "csv: a word as label": (
        "csv",
        b"text,label\ngood,yes\nbad,no\n",
        "row 0 of its training split has the gold label 'yes'",
    ),
    "csv: an infinite label": ("csv", CSV + b"fine,inf\n", "a label must be"),
    "jsonl: empty": ("jsonl", b"", "can't be loaded|empty"),
    "jsonl: not JSON": ("jsonl", JSONL + b"{\n", "can't be loaded.*JSON"),
    "jsonl: cut": ("jsonl", JSONL[:-9], "can't be loaded.*JSON"),
    "jsonl: words": ("jsonl", b"good\nbad\n", "can't be loaded.*JSON"),
    "jsonl: numbers": ("jsonl", b"1\n2\n", "can't be loaded|can't be read|label"),
    "jsonl: no label": ("jsonl", b'{"text": "good"}\n', "label|can't be"),
    "jsonl: labels of two types": ("jsonl", JSONL + b'{"text": "x", "label": "yes"}\n', "can't be loaded|gold label 'yes'"),
    "jsonl: a list as label": ("jsonl", b'{"text": "x", "label": [1]}\n', "can't be loaded|a label must be"),
    "jsonl: null label": (
        "jsonl",
        JSONL + b'{"text": "x", "label": null}\n',
        "row 2 of its training split has nothing in the column 'label'",
    ),
    "jsonl: NaN label": ("jsonl", JSONL + b'{"text": "x", "label": NaN}\n', "can't be loaded|a label must be"),
    "jsonl: unknown label": ("jsonl", JSONL + b'{"text": "x", "label": 2}\n', "gold label 2, but the task has 2 choices"),
    "jsonl: invalid utf-8": ("jsonl", JSONL + b'{"text": "\xff", "label": 1}\n', "can't be loaded|utf-8"),
    "jsonl: a huge number": ("jsonl", JSONL + b'{"text": "x", "label": ' + b"9" * 40 + b"}\n", "can't be loaded|gold label"),
    "jsonl: html": ("jsonl", b"<!doctype html><html></html>", "can't be loaded.*JSON"),
    "parquet: empty": ("parquet", b"", "can't be loaded"),
    "parquet: csv inside": ("parquet", CSV, "can't be loaded.*[Pp]arquet"),
    "parquet: cut": ("parquet", b"PAR1" + b"\0" * 100, "can't be loaded.*[Pp]arquet"),
}


@pytest.mark.parametrize("case", ROWS)
def test_bad_rows_of_an_own_task(case: str, tmp_path: Path):
    end, data, message = ROWS[case]
    folder = write(tmp_path / "own", end, train=data, test=data if end == "parquet" else None)
    one_clear_error(lambda: use(folder), message, names="mine")


TEST_ROWS: dict[str, tuple[str, bytes, str]] = {
    "only a header": ("csv", b"text,label\n", "evaluation split is empty|can't be"),
    "unknown label": ("csv", CSV + b"fine,7\n", "row 2 of its evaluation split has the gold label 7"),
    "no text": ("csv", b"sentence,label\ngood,1\n", "can't be"),
    "a word as label": (
        "jsonl",
        b'{"text": "x", "label": "maybe"}\n',
        "row 0 of its evaluation split has the gold label 'maybe'|can't be",
    ),
}


@pytest.mark.parametrize("case", TEST_ROWS)
def test_bad_rows_to_evaluate_are_told_before_anything_is_trained(case: str, tmp_path: Path):
    end, data, message = TEST_ROWS[case]
    one_clear_error(lambda: use(write(tmp_path / "own", end, test=data)), message, names="mine")


@pytest.mark.parametrize(
    ("end", "data"),
    [
        ("csv", b"\xef\xbb\xbf" + CSV),
        ("csv", CSV.replace(b"\n", b"\r\n")),
        ("csv", CSV + b"x" * 10_000_000 + b",1\n"),
        ("csv", CSV + b"good,1\n" * 3),  # duplicates are real rows
        ("jsonl", JSONL.replace(b"\n", b"\r\n")),
        ("jsonl", JSONL + '{"text": "a\u2028b", "label": 1}\n'.encode()),
        ("jsonl", JSONL + b'{"text": "' + b"x" * 10_000_000 + b'", "label": 1}\n'),
        ("jsonl", JSONL + b'{"text": "a\\u0000b", "label": 1}\n'),
    ],
)
def test_what_is_harmless_is_accepted(end: str, data: bytes, tmp_path: Path):
    task = use(write(tmp_path / "own", end, train=data))
    assert len(set(task.train_ids)) == len(task.train_docs) >= 2


YAMLS: dict[str, tuple[Callable[[str], str], str]] = {
    "a column that is not there": (
        lambda t: t.replace("{{{{text}}}}", "{{{{txet}}}}"),
        "can't be loaded.*'txet' is undefined",
    ),
    "a template that does not end": (lambda t: t.replace("{{{{text}}}}", "{{{{text"), "can't be"),
    "a target that is not there": (
        lambda t: t.replace("doc_to_target: label", "doc_to_target: lable"),
        "lable|label|can't be",
    ),
    "a split that is not there": (
        lambda t: t.replace("training_split: train", "training_split: trian"),
        "no split 'trian', which training_split names. It has: train, test",
    ),
    "no training split": (lambda t: t.replace("training_split: train\n", ""), "has no training_split"),
    "text is generated": (lambda t: t.replace("multiple_choice", "generate_until"), "output_type is generate_until"),
    "an unknown output type": (lambda t: t.replace("multiple_choice", "multiple_choise"), "can't be"),
    "three choices and labels of two": (
        lambda t: t.replace("doc_to_target: label", "doc_to_target: 5"),
        "can't be loaded.*out of range",
    ),
    "a data file that is not there": (lambda t: t.replace("train.{end}", "none.{end}"), "can't be loaded.*none.csv|none"),
    "a data file above the folder": (
        lambda t: t.replace("{folder}/train", "{folder}/../../nothing/train"),
        "can't be loaded",
    ),
    "another name": (lambda t: t.replace("task: mine", "task: other"), "no task 'mine'"),
    "not YAML": (lambda t: "task: [", "no task 'mine'|can't be|not YAML"),
    "empty": (lambda t: "", "no task 'mine'"),
    "a module that is not there": (
        lambda t: t.replace("doc_to_target: label", "doc_to_target: !function gone.f"),
        "can't be loaded|gone",
    ),
}


@pytest.mark.parametrize("case", YAMLS)
def test_a_bad_task_yaml(case: str, tmp_path: Path):
    change, message = YAMLS[case]
    folder = write(tmp_path / "own", yaml=change(TASK))
    one_clear_error(lambda: use(folder), message, names="mine")


# ---- labels against a task --------------------------------------------------------------------------------------------


def labels(path: Path, ids: Sequence[str], soft: Any = None) -> Path:
    soft = [[0.9, 0.1]] * len(ids) if soft is None else soft
    hard = [int(np.argmax(s)) for s in soft]
    columns = {"row_id": list(ids), "soft": soft, "hard": hard}
    pq.write_table(pa.table(columns), path)
    return path


def test_labels_that_do_not_fit_the_task(tmp_path: Path):
    task = use(write(tmp_path / "own"))
    ids, file = task.train_ids, tmp_path / "l.parquet"

    def refused(message: str, *arguments: Any, **columns: Any) -> None:
        labels(file, *arguments, **columns)
        one_clear_error(lambda: _chosen(task, file, None), message, names="l.parquet")

    refused("has a label over 3 choices, in 'mine' it has 2", ids, soft=[[0.8, 0.1, 0.1]] * 2)
    refused("is not in the training split of 'mine'; were these labels made for it", ["0123456789abcdef-0"])
    assert len(_chosen(task, labels(file, ids), None)[1]) == 2


def test_places_that_cannot_be_written(tmp_path: Path, encoder_folder: Path):
    folder = str(write(tmp_path / "own"))
    args = {"pretrained": str(encoder_folder), "untrained_head": 2, "text": "text"}

    def label(out: Path, **changes: Any) -> LabelSet:
        return label_rows("mine", "w2s-classifier", args | changes, out, 2, 0, [folder])

    one_clear_error(lambda: label(tmp_path), "is a folder; --out names the file", untouched=tmp_path)
    (tmp_path / "file").write_text("")
    one_clear_error(lambda: label(tmp_path / "file" / "l.parquet"), "can't be written", untouched=tmp_path)
    one_clear_error(lambda: label(tmp_path / "l.parquet", api_key="x"), "looks like a secret", untouched=tmp_path)
    one_clear_error(
        lambda: label(tmp_path / "l.parquet", txet="x"), "no argument 'txet'.*Did you mean 'text'", untouched=tmp_path
    )
    one_clear_error(lambda: label(tmp_path / "l.parquet", trust_remote_code=True), "is off", untouched=tmp_path)
    one_clear_error(
        lambda: finetune_model(
            "mine", "m", "lora", None, tmp_path / "x", None, ["model_args.api_key=sk-live-12345678"], 0, [folder]
        ),
        "looks like a secret",
        untouched=tmp_path,
    )
    assert len(label(tmp_path / "l.parquet")) == 2
    assert json.loads(json.dumps(sorted(p.name for p in tmp_path.iterdir()))) == ["file", "l.parquet", "own"]
