"""Label sets, recorded replies, the seed study's layout and evaluations that are wrong: one clear error with its row."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bad_input import one_clear_error

from trainers.labels.label_set import LabelSet
from w2s_tasks.models.recorded import Recorded, read_replies
from w2s_tasks.results.read import read_evaluation
from w2s_tasks.study.rescore import rescore

# ---- label sets -----------------------------------------------------------------------------------------------------


def table(path: Path, **columns: Any) -> None:
    base = {"row_id": ["a", "b"], "soft": [[0.9, 0.1], [0.2, 0.8]], "hard": [0, 1]} | columns
    pq.write_table(pa.table({k: v for k, v in base.items() if v is not None}), path)


def raw(data: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(data) and None


def cut(path: Path) -> None:
    table(path)
    path.write_bytes(path.read_bytes()[:-40])


def flipped(path: Path) -> None:
    table(path, row_id=[f"r{i}" for i in range(500)], soft=[[0.9, 0.1]] * 500, hard=[0] * 500)
    data = bytearray(path.read_bytes())
    for i in range(4, len(data) // 2):
        data[i] ^= 0xFF
    path.write_bytes(bytes(data))


def column_twice(path: Path) -> None:
    columns = [pa.array(["a"]), pa.array([[0.9, 0.1]]), pa.array([0]), pa.array([1])]
    pq.write_table(pa.Table.from_arrays(columns, names=["row_id", "soft", "hard", "hard"]), path)


NAN = float("nan")
LABELS: dict[str, tuple[Callable[[Path], None], str]] = {
    "empty file": (raw(b""), "not a readable label set"),
    "csv": (raw(b"row_id,soft,hard,gold\na,1,0,0\n"), "not a readable label set"),
    "json": (raw(b'[{"row_id": "a"}]'), "not a readable label set"),
    "pickle": (raw(pickle.dumps({"row_id": ["a"]})), "not a readable label set"),
    "only the magic": (raw(b"PAR1PAR1"), "not a readable label set"),
    "NULs": (raw(b"\0" * 1000), "not a readable label set"),
    "10 MB of nothing": (raw(b"x" * 10_000_000), "not a readable label set"),
    "cut": (cut, "not a readable label set"),
    "flipped bytes": (flipped, "not a readable label set|altered|no distribution|must be"),
    "no row_id": (lambda p: table(p, row_id=None), "missing: row_id"),
    "no soft": (lambda p: table(p, soft=None), "missing: soft"),
    "no hard": (lambda p: table(p, hard=None), "missing: hard"),
    "another table": (lambda p: pq.write_table(pa.table({"x": [1]}), p), "missing: row_id, soft, hard"),
    "a column twice": (column_twice, "hard is there more than once"),
    "no row": (lambda p: table(p, row_id=pa.array([], pa.string()), soft=[], hard=[]), "the label set is empty"),
    "duplicate ids": (lambda p: table(p, row_id=["a", "a"]), "a row id occurs twice: 'a'"),
    "ids are numbers": (lambda p: table(p, row_id=[1, 2]), "row 0: row_id must be text, found 1"),
    "a missing id": (lambda p: table(p, row_id=["a", None]), "row 1: no row_id"),
    "a missing label": (lambda p: table(p, soft=[[0.9, 0.1], None]), "row 1: no soft"),
    "a missing hard": (lambda p: table(p, hard=[None, 1]), "row 0: no hard"),
    "hard in words": (lambda p: table(p, hard=["no", "yes"]), "row 0: hard must be a whole number, found 'no'"),
    "hard in fractions": (lambda p: table(p, hard=[0.5, 1.0]), "row 0: hard must be a whole number, found 0.5"),
    "soft is a number": (lambda p: table(p, soft=[0.9, 0.2]), "soft must be a list of numbers"),
    "soft is text": (lambda p: table(p, soft=["0.9", "0.2"]), "soft must be a list of numbers"),
    "soft holds text": (lambda p: table(p, soft=[["a", "b"], ["c", "d"]]), "soft must be a list of numbers"),
    "a row of one choice": (lambda p: table(p, soft=[[0.9, 0.1], [1.0]]), "soft must be a list of numbers"),
    "soft is nested": (lambda p: table(p, soft=[[[0.9], [0.1]], [[0.2], [0.8]]]), "soft must be a list of numbers"),
    "one class": (lambda p: table(p, soft=[[1.0], [1.0]], hard=[0, 0]), "two choices or more"),
    "no class": (lambda p: table(p, soft=pa.array([[], []], pa.list_(pa.float64()))), "two choices or more"),
    "NaN": (lambda p: table(p, soft=[[0.9, 0.1], [NAN, 0.8]], hard=[0, 0]), "b has the soft label .*no distribution"),
    "infinite": (lambda p: table(p, soft=[[0.9, 0.1], [float("inf"), 0.0]], hard=[0, 0]), "no distribution"),
    "negative": (lambda p: table(p, soft=[[0.9, 0.1], [-0.2, 1.2]]), "b has the soft label .*no distribution"),
    "sum is not 1": (lambda p: table(p, soft=[[0.9, 0.3], [0.2, 0.8]]), "a has the soft label .*no distribution"),
    "hard is another": (lambda p: table(p, hard=[1, 1]), "row 0: the column hard does not follow from soft"),
    "hard out of range": (lambda p: table(p, hard=[0, 7]), "row 1: the column hard"),
    "wide rows": (lambda p: table(p, soft=[[1.0] * 5000] * 2, hard=[0, 0]), "no distribution"),
}


@pytest.mark.parametrize("case", LABELS)
def test_a_bad_label_set(case: str, tmp_path: Path):
    make, message = LABELS[case]
    path = tmp_path / "labels.parquet"
    make(path)
    one_clear_error(lambda: LabelSet.load(path), message, names="labels.parquet", untouched=tmp_path)


def test_label_sets_that_are_no_files(tmp_path: Path):
    one_clear_error(lambda: LabelSet.load(tmp_path / "none.parquet"), "no such label set.*w2s label", names="none.parquet")
    one_clear_error(lambda: LabelSet.load(tmp_path), "no such label set", names=str(tmp_path))
    (tmp_path / "gone.parquet").symlink_to(tmp_path / "nowhere")
    one_clear_error(lambda: LabelSet.load(tmp_path / "gone.parquet"), "no such label set", names="gone.parquet")


def test_folder_names_above_a_label_set_are_no_columns(tmp_path: Path):
    """pyarrow's read_table takes `hard=1/` above a file for a column of it."""
    folder = tmp_path / "hard=1" / "row_id=z"
    folder.mkdir(parents=True)
    table(folder / "l.parquet")
    assert LabelSet.load(folder / "l.parquet").hard.tolist() == [0, 1]
    table(folder / "l.parquet", hard=None)
    one_clear_error(lambda: LabelSet.load(folder / "l.parquet"), "missing: hard")


def test_a_label_set_that_cannot_be_written_leaves_nothing(tmp_path: Path):
    labels = LabelSet(("a",), np.array([[0.9, 0.1]]))
    with pytest.raises(OSError, match="No such file"):
        labels.save(tmp_path / "none" / "l.parquet")
    assert list(tmp_path.iterdir()) == []


# ---- recorded replies ------------------------------------------------------------------------------------------------

SAMPLE = {"doc_id": 0, "arguments": {"gen_args_0": {"arg_0": "Q?"}}, "resps": [["yes"]]}


def lines(*records: Any) -> bytes:
    return b"".join((json.dumps(r) if not isinstance(r, str) else r).encode() + b"\n" for r in records)


REPLIES: dict[str, tuple[str, bytes, str]] = {
    "empty": ("r.jsonl", b"", "no recorded reply"),
    "blank lines": ("r.jsonl", b"\n\n  \n", "no recorded reply"),
    "not JSON": ("r.jsonl", lines({"prompt": "a", "response": "b"}, "{"), ":2: not JSON"),
    "cut": ("r.jsonl", lines({"prompt": "a", "response": "b"})[:-8], ":1: not JSON"),
    "csv": ("r.jsonl", b"prompt,response\na,b\n", ":1: not JSON"),
    "a list": ("r.jsonl", b"[1]\n", ":1: 'prompt' must be a string"),
    "a word": ("r.jsonl", b'"x"\n', ":1: 'prompt' must be a string"),
    "no response": ("r.jsonl", lines({"prompt": "a"}), ":1: 'response' must be a string, found nothing"),
    "response is a number": ("r.jsonl", lines({"prompt": "a", "response": 1}), "found int"),
    "response is null": ("r.jsonl", lines({"prompt": "a", "response": None}), "found NoneType"),
    "prompt is a list": ("r.jsonl", lines({"prompt": ["a"], "response": "b"}), "found list"),
    "NaN as response": ("r.jsonl", b'{"prompt": "a", "response": NaN}\n', "found float"),
    "invalid utf-8": ("r.jsonl", b'{"prompt": "a", "response": "b"}\n{"prompt": "\xff"}\n', ":2: not readable as UTF-8"),
    "utf-16": ("r.jsonl", '{"prompt": "a"}'.encode("utf-16"), "not readable as UTF-8"),
    "a NUL": ("r.jsonl", b'{"prompt": "a\0", "response": "b"}\n', ":1: not JSON"),
    "a number of 5000 digits": ("r.jsonl", b'{"prompt": ' + b"9" * 5000 + b"}\n", ":1: not JSON"),
    "nested 100,000 deep": ("r.jsonl", b"[" * 100_000 + b"\n", ":1: "),
    "10 MB in a line": ("r.jsonl", b'{"prompt": "' + b"x" * 10_000_000 + b"\n", ":1: not JSON"),
    "sample without arguments": ("r.jsonl", lines({"resps": [["a"]], "doc_id": 0}), ":1: not a sample of lm_eval"),
    "sample without replies": ("r.jsonl", lines(SAMPLE | {"resps": []}), ":1: not a sample of lm_eval"),
    "sample of log-likelihoods": ("r.jsonl", lines(SAMPLE | {"resps": [[[-1.0, True]]]}), "log-likelihoods, not text"),
    "doc_id is a word": ("r.jsonl", lines(SAMPLE | {"doc_id": "one"}), ":1: 'doc_id' must be a document's number"),
    "doc_id is negative": ("r.jsonl", lines(SAMPLE | {"doc_id": -1}), "'doc_id' must be"),
    "doc_id is NaN": ("r.jsonl", lines(SAMPLE | {"doc_id": NAN}), "'doc_id' must be"),
    "doc_id is missing": ("r.jsonl", lines({k: v for k, v in SAMPLE.items() if k != "doc_id"}), "not a sample"),
    "study: empty": ("justice_x.json", b"", "not JSON"),
    "study: no list": ("justice_x.json", b"{}", "a list of recorded replies is expected"),
    "study: an empty list": ("justice_x.json", b"[]", "an empty one"),
    "study: rows of words": ("justice_x.json", b'["a"]', "row 0: 'test_prompt' must be a string"),
    "study: no response": ("justice_x.json", b'[{"test_prompt": "a"}]', "row 0: 'model_response' must be a string"),
    "study: response is a list": ("justice_x.json", b'[{"test_prompt": "a", "model_response": []}]', "found list"),
    "study: nested": ("justice_x.json", b"[" * 100_000, "not JSON|nested too deeply"),
    "study: a NUL": ("justice_x.json", b'[{"test_prompt": "\0"}]', "not JSON"),
}


@pytest.mark.parametrize("case", REPLIES)
def test_bad_recorded_replies(case: str, tmp_path: Path):
    name, data, message = REPLIES[case]
    (tmp_path / name).write_bytes(data)
    one_clear_error(lambda: read_replies(tmp_path / name), message, names=name, untouched=tmp_path)


def test_recorded_replies_with_a_byte_order_mark_windows_ends_and_other_line_separators_are_read(tmp_path: Path):
    text = '{"prompt": "a\u2028b\x85c", "response": "yes"}\r\n\r\n{"prompt": "d", "response": "no"}'
    (tmp_path / "r.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert [(r.prompt, r.text) for r in read_replies(tmp_path / "r.jsonl")] == [("a\u2028b\x85c", "yes"), ("d", "no")]


def test_bad_places_and_options_of_recorded_replies(tmp_path: Path):
    one_clear_error(lambda: Recorded(str(tmp_path / "none")), "no such file or folder", names="none")
    (tmp_path / "empty").mkdir()
    one_clear_error(lambda: Recorded(str(tmp_path / "empty")), "no recorded replies", names="empty")
    good = tmp_path / "r.jsonl"
    good.write_bytes(lines({"prompt": "a", "response": "b"}))
    one_clear_error(lambda: Recorded(str(good), match="promt"), "'prompt'")
    one_clear_error(lambda: Recorded(str(good), missing="skipp"), "'skip'")
    twice = tmp_path / "samples_x_gen_2026-01-01T00-00-00.jsonl"
    twice.write_bytes(lines(SAMPLE, SAMPLE | {"resps": [["no"]]}))
    one_clear_error(lambda: Recorded(str(twice)), "two different replies for document 0 of x_gen", names=twice.name)
    twice.write_bytes(lines(SAMPLE | {"filter": "strict"}, SAMPLE | {"filter": "lenient"}))
    assert len(Recorded(str(twice))._replies) == 2
    loop = tmp_path / "loop.jsonl"
    loop.symlink_to(loop)
    one_clear_error(lambda: Recorded(str(loop)), "no such file or folder", names="loop.jsonl")


# ---- the seed study's layout -----------------------------------------------------------------------------------------

ROW = {
    "subtask": "justice",
    "test_prompt": "Is this reasonable? I rested because it rained.",
    "test_sample": {"scenario": "I rested because it rained."},
    "ground_truth_label": 1,
    "model_response": "reasonable",
}
PAIR = {"test_sample": {"s1": "I won.", "s2": "I lost."}, "model_response": "5", "ground_truth_label": 0}


def pair(role: int, **changes: Any) -> dict[str, Any]:
    return PAIR | {"test_prompt": f"Rate: {PAIR['test_sample'][f's{role}']}"} | changes


STUDY: dict[str, tuple[str, Any, str]] = {
    "no list": ("justice_1.json", {}, "a list of recorded replies"),
    "no sample": ("justice_1.json", [ROW | {"test_sample": None}], "row 0: 'test_sample' must hold the text of scenario"),
    "sample of words": ("justice_1.json", [ROW | {"test_sample": "x"}], "row 0: 'test_sample'"),
    "sample of another subtask": ("justice_1.json", [ROW | {"test_sample": {"input": "x"}}], "text of scenario"),
    "sample of numbers": ("justice_1.json", [ROW | {"test_sample": {"scenario": 1}}], "text of scenario"),
    "no label": (
        "justice_1.json",
        [{k: v for k, v in ROW.items() if k != "ground_truth_label"}],
        "must be 0 or 1, found None",
    ),
    "label 2": (
        "justice_1.json",
        [ROW, ROW | {"ground_truth_label": 2}],
        "row 1: 'ground_truth_label' must be 0 or 1, found 2",
    ),
    "label is a word": ("justice_1.json", [ROW | {"ground_truth_label": "yes"}], "found 'yes'"),
    "label is true": ("justice_1.json", [ROW | {"ground_truth_label": True}], "found True"),
    "label is a list": ("justice_1.json", [ROW | {"ground_truth_label": [1]}], "must be 0 or 1"),
    "label is NaN": ("justice_1.json", [ROW | {"ground_truth_label": NAN}], "must be 0 or 1"),
    "reply is a number": ("justice_1.json", [ROW | {"model_response": 1}], "row 0: 'model_response' must be a string"),
    "another subtask inside": ("virtue_1.json", [ROW], "subtask 'justice' in a file named for 'virtue'"),
    "half a pair": ("utilitarianism_1.json", [pair(1)], "second scenario of its pair is missing"),
    "pairs out of order": ("utilitarianism_1.json", [pair(2), pair(1)], "row 0: its prompt does not end with s1"),
    "pairs mixed": (
        "utilitarianism_1.json",
        [pair(1), pair(2, test_sample={"s1": "x", "s2": "y"}, test_prompt="Rate: y")],
        "row 1: it is of another pair than row 0",
    ),
}


@pytest.mark.parametrize("case", STUDY)
def test_a_bad_file_of_the_studys_layout(case: str, tmp_path: Path):
    name, data, message = STUDY[case]
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / name).write_text(json.dumps(data))
    one_clear_error(lambda: rescore(tmp_path, "lenient"), message, names=name, untouched=tmp_path)


def test_bad_places_of_the_studys_layout(tmp_path: Path):
    one_clear_error(lambda: rescore(tmp_path / "none", "lenient"), "no such folder.*a folder a model", names="none")
    one_clear_error(
        lambda: rescore(tmp_path, "lenient"), "no recorded replies in it.*subtasks are justice", names=str(tmp_path)
    )
    one_clear_error(lambda: rescore(tmp_path, "lenint"), "Did you mean 'lenient'|'lenient'")
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "justise_1.json").write_text("[]")
    one_clear_error(lambda: rescore(tmp_path, "lenient"), "Files are named <subtask>", names=str(tmp_path))
    (tmp_path / "m" / "justice_1.json").write_text(json.dumps([ROW]))
    one_clear_error(lambda: rescore(tmp_path, "lenient", "n"), "--baseline n: the models are m")


def test_two_links_to_folders_of_one_name_are_two_models(tmp_path: Path):
    for owner, reply in (("a", "reasonable"), ("b", "unreasonable")):
        folder = tmp_path / owner / "model"
        folder.mkdir(parents=True)
        (folder / "justice_1.json").write_text(json.dumps([ROW | {"model_response": reply}]))
        (tmp_path / "results").mkdir(exist_ok=True)
        (tmp_path / "results" / owner).symlink_to(folder)
    found = rescore(tmp_path / "results", "lenient")
    assert {(s.model, s.acc) for s in found.scores} == {("a", 1.0), ("b", 0.0)}


# ---- evaluations: a half one is never shown as whole -------------------------------------------------------------------


def evaluation(folder: Path, n: int = 4, **changes: Any) -> tuple[Path, Path]:
    """What lm_eval leaves of a two-choice task."""
    rows = [
        {"doc_id": i, "doc": {"text": f"t{i}"}, "doc_hash": f"{i:064d}", "target": "1", "acc": 1.0}
        | {"filtered_resps": [["-1.5", "False"], ["-0.5", "True"]]}
        for i in range(n)
    ]
    data = {"configs": {"t": {"output_type": "multiple_choice"}}, "n-samples": {"t": {"original": n, "effective": n}}}
    data |= {"results": {"t": {"acc,none": 1.0, "acc_stderr,none": 0.0}}, "config": {}}
    folder.mkdir(exist_ok=True)
    result, samples = folder / "results_2026-01-01T00-00-00.json", folder / "samples_t_2026-01-01T00-00-00.jsonl"
    result.write_text(json.dumps(data | changes))
    samples.write_bytes(lines(*rows))
    return result, samples


def test_a_whole_evaluation_is_read(tmp_path: Path):
    evaluation(tmp_path / "e")
    assert read_evaluation(tmp_path / "e", {"t": 4})["t"].n == 4


def half_the_rows(samples: Path) -> None:
    samples.write_bytes(b"".join(samples.read_bytes().splitlines(keepends=True)[:2]))


def cut_in_a_row(samples: Path) -> None:
    samples.write_bytes(samples.read_bytes()[:-30])


def a_row_twice(samples: Path) -> None:
    rows = samples.read_bytes().splitlines(keepends=True)
    samples.write_bytes(b"".join([*rows[:3], rows[0]]))


def a_nan(samples: Path) -> None:
    samples.write_text(samples.read_text().replace('"-1.5"', '"nan"', 1))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (half_the_rows, "2 rows, the result file counts 4; the evaluation is not whole"),
        (cut_in_a_row, ":4: not JSON"),
        (a_row_twice, "a document stands twice"),
        (a_nan, "document 0: a log-likelihood is NaN"),
        (Path.unlink, "is missing"),
    ],
)
def test_an_evaluation_that_died_half_way_is_no_number(damage: Callable[[Path], Any], message: str, tmp_path: Path):
    _, samples = evaluation(tmp_path / "e")
    damage(samples)
    one_clear_error(lambda: read_evaluation(tmp_path / "e"), message)


def test_n_is_checked_against_what_was_asked_not_only_against_the_result_file(tmp_path: Path):
    evaluation(tmp_path / "e", n=3)  # whole in itself
    assert read_evaluation(tmp_path / "e")["t"].n == 3
    one_clear_error(lambda: read_evaluation(tmp_path / "e", {"t": 4}), "3 rows, but 4 documents were asked")
    one_clear_error(lambda: read_evaluation(tmp_path / "e", {"t": 3, "u": 3}), "no result of u")
