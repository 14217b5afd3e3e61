"""Result files row by row: what is counted, what is right, what was not answered, and which choice is gold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bad_input import one_clear_error

from w2s_tasks.results.compare import compared, main
from w2s_tasks.results.gold import gold_of
from w2s_tasks.results.read import TaskScores, read_documents, read_evaluation

Row = dict[str, Any]
DATE = "2026-01-01T00-00-00"


def row(number: int, logliks: list[float], target: Any, acc: Any, **more: Any) -> Row:
    """A line of a sample file, as lm_eval has it."""
    arguments = {f"gen_args_{i}": {"arg_0": "Q", "arg_1": f" {c}"} for i, c in enumerate("abcd"[: len(logliks)])}
    found = {"doc_id": number, "doc": {"text": f"t{number}"}, "doc_hash": f"{number:02d}".ljust(64, "x"), "target": target}
    return found | {"acc": acc, "arguments": arguments, "filtered_resps": [[str(x), "False"] for x in logliks]} | more


def written(folder: Path, rows: list[Row], results: Row, task: Row | None = None, date: str = DATE, **data: Any) -> Path:
    """One evaluation of the task `t`."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = {"configs": {"t": {"output_type": "multiple_choice"} | (task or {})}, "results": {"t": results}}
    whole |= {"n-samples": {"t": {"original": len(rows), "effective": len(rows)}}} | data
    (folder / f"results_{date}.json").write_text(json.dumps(whole))
    (folder / f"samples_t_{date}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


def unit(number: int, name: Any = None) -> str:
    return f"{number if name is None else name}:{number:02d}xxxxxxxxxx"


CHOICES = [  # three choices; three questions that were answered, one with a tie, one of which nothing came back
    row(3, [-4.0, -1.0, -9.0], "1", 1.0),
    row(0, [-1.0, -2.0, -3.0], "0", 1.0),
    row(2, [-5.0, -1.5, -1.5], "2", 0.0),
    row(1, [-1.0, -2.0, -3.0], "2", 0.0),
    row(4, [-np.inf] * 3, "0", 0.0),
]


def test_choices_are_read_in_the_order_of_the_documents(tmp_path: Path):
    results = {"alias": "t", "acc,none": 0.4, "acc_stderr,none": 0.2, "em,none": 0, "em_stderr,none": float("nan"), "n": 7}
    results |= {"em_stderr_stderr,none": 0.5, "f1_stderr,none": "N/A"}
    found = read_evaluation(written(tmp_path, CHOICES, results))["t"]
    assert (found.task, found.n, found.choices) == ("t", 5, 3)
    assert (found.metrics, found.stderr) == ({"acc": 0.4, "em": 0.0}, {"acc": 0.2})
    assert found.units == tuple(unit(i) for i in range(5))
    assert found.predicted.tolist() == [0, 0, 1, 1, -1]  # of equal log-likelihoods the first
    assert found.gold.tolist() == [0, 2, 2, 1, 0]
    assert found.correct.tolist() == [1, 0, 0, 1, 0]
    assert found.logliks.tolist() == [[-1, -2, -3], [-1, -2, -3], [-5, -1.5, -1.5], [-4, -1, -9], [0, 0, 0]]
    assert (found.unparsed, found.ties) == (pytest.approx(0.2), pytest.approx(0.2))
    assert found.parsed.tolist() == [True, True, True, True, False]
    assert (found.cluster, found.generated, found.mode, found.system_prompt) == (None, False, None, None)
    assert [doc["text"] for doc in read_documents(tmp_path, "t")] == [f"t{i}" for i in range(5)]


def test_where_all_is_answered_nothing_is_told_of_parsing(tmp_path: Path):
    about = {"config": {"scoring": {"t": {"mode": "first_token"}}, "system_prompt": "in the first user turn"}}
    found = read_evaluation(written(tmp_path, CHOICES[:2], {"acc,none": 1.0}, system_instruction="Judge.", **about))["t"]
    assert (found.unparsed, found.parsed, found.ties, found.metrics) == (0, None, 0, {"acc": 1.0})
    assert (found.mode, found.system_prompt) == ("first_token", "in the first user turn")


def test_a_broken_model_is_told_with_its_document(tmp_path: Path):
    rows = [*CHOICES[:2], row(2, [-1.0, float("nan"), -2.0], "1", 0.0), CHOICES[3]]
    message = "t, document 2: a log-likelihood is NaN"
    one_clear_error(lambda: read_evaluation(written(tmp_path, rows, {"acc,none": 0.5})), message)


def test_groups_are_what_the_score_says(tmp_path: Path):
    """A grouped task's score is (group, right); where the group is named in the document is nobody's business."""
    rows = [row(i, [-1.0, -2.0], "0", [group, 1]) for i, group in enumerate((7, 7, 3))]
    found = read_evaluation(written(tmp_path, rows, {"acc,none": 1.0}))["t"]
    assert found.cluster.tolist() == [7, 7, 3]
    written(tmp_path, [*rows[:2], rows[2] | {"target": "1"}], {"acc,none": 1.0})
    one_clear_error(lambda: read_evaluation(tmp_path), "mean accuracy of its 3 rows is 0.6667, its result file says 1.0")


def rated(number: int, pair: int, role: int, rating: float, loglik: float = -1.0) -> Row:
    return row(number, [loglik, loglik - 1], "0", [pair, role, rating])


RATED = [rated(0, 4, 1, 0.9), rated(1, 4, 0, 0.2), rated(2, 5, 0, 0.5), rated(3, 5, 1, 0.5), rated(4, 6, 1, 0.1),
         rated(5, 6, 0, 0.4), rated(6, 7, 1, 1.9), rated(7, 7, 0, 0.8), rated(8, 9, 1, 0.3)]  # fmt: skip


def test_what_is_counted_in_a_ranking_are_whole_pairs(tmp_path: Path):
    found = read_evaluation(written(tmp_path, RATED, {"acc,none": 0.5}))["t"]
    assert (found.n, found.correct.tolist(), found.ties) == (4, [1, 0, 0, 1], 0.25)
    assert found.units == (unit(1, 4), unit(3, 5), unit(5, 6), unit(7, 7))
    assert (found.predicted, found.gold, found.logliks, found.unparsed, found.parsed) == (None, None, None, 0, None)
    assert found.choices == 2
    silent = [*RATED[:3], rated(3, 5, 1, 0.5, -np.inf), *RATED[4:]]
    found = read_evaluation(written(tmp_path, silent, {"acc,none": 0.5}))["t"]
    assert (found.unparsed, found.parsed.tolist()) == (0.25, [True, False, True, True])
    one_clear_error(
        lambda: read_evaluation(written(tmp_path, [*RATED[:5], rated(5, 6, 0, np.nan), *RATED[6:]], {"acc,none": 0.5})),
        "pair 6: a rating is NaN",
    )


GENERATED = {"output_type": "generate_until"}


def test_generated_answers_have_the_choice_that_was_parsed(tmp_path: Path):
    """A score is (gold, lenient, strict, group); -1 where a reply did not parse, or where a document is of no group."""
    scores = [[0, 0, -1, -1], [1, 0, 0, -1], [1, -1, -1, -1], [1, 1, 1, -1]]
    rows = [row(i, [0.0], "x", score) for i, score in enumerate(scores)]
    found = read_evaluation(
        written(tmp_path, rows, {"acc,none": 0.5, "unparsed,none": 0.25, "share_0,none": 0.5}, GENERATED)
    )["t"]
    assert (found.predicted.tolist(), found.gold.tolist()) == ([0, 0, -1, 1], [0, 1, 1, 1])
    assert (found.correct.tolist(), found.parsed.tolist()) == ([1, 0, 0, 1], [True, True, False, True])
    assert (found.generated, found.unparsed, found.ties, found.cluster, found.choices) == (True, 0.25, 0, None, 2)
    texts = read_evaluation(written(tmp_path, rows, {"acc,none": 0.5, "unparsed,none": 0.25}, GENERATED))["t"]
    assert (texts.predicted, texts.gold, texts.correct.tolist()) == (None, None, [1, 0, 0, 1])  # right or wrong, no class
    rows = [row(i, [0.0], "x", [*scores[i][:3], group]) for i, group in enumerate((8, 8, 2, -1))]
    found = read_evaluation(written(tmp_path, rows, {"acc,none": 0.5}, GENERATED))["t"]
    assert found.cluster.tolist() == [8, 8, 2, -4]  # a document of no group is one of its own
    assert found.unparsed == 0


def test_generated_ratings_are_counted_in_pairs(tmp_path: Path):
    """A score is (pair, whether the more pleasant one, lenient, strict)."""
    scores = [[2, 1, 9, 9], [2, 0, 3, 3], [1, 0, -1, -1], [1, 1, 5, 5], [0, 1, 4, 4], [0, 0, 4, 4]]
    rows = [row(i, [0.0], "x", score) for i, score in enumerate(scores)]
    results = {"acc,none": 1 / 3, "unparsed,none": 1 / 6, "pairs,none": 3}
    found = read_evaluation(written(tmp_path, rows, results, GENERATED))["t"]
    assert (found.n, found.correct.tolist(), found.parsed.tolist()) == (3, [1, 0, 1 - 1], [True, False, True])
    assert found.units == (unit(1, 2), unit(3, 1), unit(5, 0))
    assert (found.generated, found.unparsed, found.predicted) == (True, 1 / 6, None)


def test_other_peoples_generated_tasks_are_refused(tmp_path: Path):
    for score in (1.0, [1, 2, 3], [1, 2, 3, 4, 5]):
        written(tmp_path, [row(0, [0.0], "x", score)], {"exact_match,none": 1.0}, GENERATED)
        one_clear_error(lambda: read_evaluation(tmp_path), "generated-text tasks")


def test_choices_that_vary_in_number_stand_at_their_own_rows(tmp_path: Path):
    none = [float("-inf")] * 2
    rows = [row(0, [-1.0, -2.0], "0", 1.0), row(1, [-3.0, -2.0, -1.0], "2", 1.0), row(2, none, "0", 0.0)]
    found = read_evaluation(written(tmp_path, rows, {"acc,none": 2 / 3}))["t"]
    assert found.predicted.tolist() == [0, 2, -1]
    assert found.sizes.tolist() == [2, 3, 2]
    assert found.logliks.tolist() == [[-1, -2, float("-inf")], [-3, -2, -1], [0, 0, float("-inf")]]
    assert found.unparsed == pytest.approx(1 / 3)


@pytest.mark.parametrize(("said", "taken"), [(0.4, True), (0.4 + 1e-8, True), (0.41, False), (0.399, False), (-0.4, False)])
def test_an_accuracy_is_that_of_its_rows(said: float, taken: bool, tmp_path: Path):
    written(tmp_path, CHOICES, {"acc,none": said})
    if taken:
        assert read_evaluation(tmp_path)["t"].metrics["acc"] == said
    else:
        one_clear_error(lambda: read_evaluation(tmp_path), "mean accuracy of its 5 rows is 0.4000")


def test_a_row_whose_own_score_differs_from_the_likeliest_choice_counts_as_lm_eval_says(tmp_path: Path):
    """lm_eval's own mean is the mean of its own scores, whatever is counted here."""
    rows = [*CHOICES[:4], CHOICES[4] | {"acc": 1.0}]
    assert read_evaluation(written(tmp_path, rows, {"acc,none": 0.6}))["t"].correct.mean() == pytest.approx(0.4)
    assert read_evaluation(written(tmp_path, rows, {"f1,none": 0.1}))["t"].metrics == {"f1": 0.1}


def test_the_newest_evaluation_is_the_one_with_the_latest_date_in_whatever_folder(tmp_path: Path):
    written(tmp_path / "z", CHOICES[:2], {"acc,none": 1.0}, date="2026-01-01T00-00-00")
    written(tmp_path / "a", CHOICES[:4], {"acc,none": 0.5}, date="2026-02-01T00-00-00")
    written(tmp_path / "a", CHOICES, {"acc,none": 0.4}, date="2025-12-31T00-00-00")
    assert read_evaluation(tmp_path)["t"].n == 4
    assert len(read_documents(tmp_path, "t")) == 4
    one_clear_error(lambda: read_evaluation(tmp_path / "nowhere"), "no results_")


def test_a_row_that_is_cut_off_is_named_by_its_line(tmp_path: Path):
    written(tmp_path, CHOICES, {"acc,none": 0.4})
    samples = tmp_path / f"samples_t_{DATE}.jsonl"
    samples.write_text(samples.read_text()[:-9])
    one_clear_error(lambda: read_evaluation(tmp_path), f"samples_t_{DATE}.jsonl:5: ")


def test_what_was_asked_has_to_be_there(tmp_path: Path):
    written(tmp_path, CHOICES, {"acc,none": 0.4})
    assert read_evaluation(tmp_path, {"t": 5})["t"].n == read_evaluation(tmp_path, {})["t"].n == 5
    one_clear_error(lambda: read_evaluation(tmp_path, {"t": 6}), "5 rows, but 6 documents were asked")
    one_clear_error(lambda: read_evaluation(tmp_path, {"t": 5, "u": 5}), "no result of u")
    written(tmp_path, [*CHOICES[:4], CHOICES[0]], {"acc,none": 0.6})
    one_clear_error(lambda: read_evaluation(tmp_path), "stands twice")
    written(tmp_path, CHOICES, {"acc,none": 0.4}, **{"n-samples": {"t": {"effective": 6}}})
    one_clear_error(lambda: read_evaluation(tmp_path), "5 rows, the result file counts 6")
    (tmp_path / f"samples_t_{DATE}.jsonl").unlink()
    one_clear_error(lambda: read_evaluation(tmp_path), "is missing")


# ---- gold -----------------------------------------------------------------------------------------------------------------

COLUMN = {"doc_to_target": "label"}


@pytest.mark.parametrize(
    ("config", "label", "target", "gold"),
    [
        (COLUMN, 1, "1", 1),
        (COLUMN, True, "True", 1),
        (COLUMN, 2.0, "2.0", 2),
        (COLUMN, "b", "b", 1),
        (COLUMN | {"target_delimiter": ""}, " b", " b", 1),
        (COLUMN, "2", "2", 3),  # a column's text names a choice, be it of digits
        ({"doc_to_target": "{{label}}"}, "2", "2", 2),  # rendered digits count them
        ({"doc_to_target": "{{label}}"}, "a", "a", 0),
        ({"doc_to_target": "{{label}}"}, "True", "True", 1),
        ({"doc_to_target": "{{label}}"}, "False", "False", 0),
        ({"doc_to_target": "elsewhere"}, "b", "1", 1),  # no column of the document
        ({"doc_to_target": 0}, "b", "0", 0),
        ({}, "b", 1, 1),
    ],
)
def test_the_right_choice_is_the_one_lm_eval_means(config: Row, label: Any, target: Any, gold: int):
    line = row(0, [0.0] * 4, target, 1.0, doc={"label": label})
    line["arguments"]["gen_args_3"]["arg_1"] = " 2"
    assert gold_of(config, line) == gold


def test_a_choice_may_itself_be_called_true():
    line = row(0, [0.0] * 2, "True", 1.0)
    line["arguments"]["gen_args_0"]["arg_1"] = " True"
    assert gold_of({}, line) == 0
    line["arguments"]["gen_args_0"]["arg_1"] = "True"  # as under a chat template
    assert gold_of({}, line) == 0


@pytest.mark.parametrize(("config", "label"), [(COLUMN, "x"), (COLUMN, "True"), (COLUMN, 0.5), ({}, "x"), ({}, "-1")])
def test_a_label_that_is_no_choice_is_named(config: Row, label: Any):
    line = row(5, [0.0] * 2, str(label), 1.0, doc={"label": label})
    one_clear_error(lambda: gold_of(config, line), f"document 5: its label '{label}' is none of the choices")


# ---- two evaluations ------------------------------------------------------------------------------------------------------


def test_two_evaluations_are_compared_row_by_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    written(tmp_path / "a", CHOICES, {"acc,none": 0.4})
    better = [r | {"filtered_resps": [["-1.0", ""], ["-2.0", ""], ["-0.5", ""]]} if r["doc_id"] == 1 else r for r in CHOICES]
    better[3]["acc"] = 1.0
    written(tmp_path / "b", better, {"acc,none": 0.6})
    main(tmp_path / "b", tmp_path / "a")
    told = capsys.readouterr().out.strip()
    assert told.startswith("t: n 5, accuracy 60.0% and 40.0%, difference +20.0% ± 24.1%, same answer 80.0%")
    assert told.endswith(f"log-likelihoods differ by {2.5 / 15:.4f} on average")
    first = read_evaluation(tmp_path / "a")["t"]
    bare = TaskScores("t", 5, {}, {}, first.units, first.correct)
    for pair in ((first, bare), (bare, first), (bare, bare)):
        assert compared(*pair).endswith("difference +0.0% ± 20.2%")
    other = TaskScores("t", 5, {}, {}, first.units[::-1], first.correct)
    one_clear_error(lambda: compared(first, other), "different questions")
