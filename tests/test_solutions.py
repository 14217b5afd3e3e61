"""Solutions of GSM8K and MATH: errors carried through by hand, on the real data, and those of a candidates file."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from test_public_sets import lm_eval

from w2s_tasks import TASK_PATH
from w2s_tasks.errors import UserError
from w2s_tasks.plugin.manager import W2STaskManager
from w2s_tasks.results.read import read_evaluation
from w2s_tasks.rows import gsm8k_steps, math_steps, solutions
from w2s_tasks.rows.carrying import Change, NotComputedError, Solution, evaluate, numbers
from w2s_tasks.rows.final_answers import after_hashes, boxed, same, value
from w2s_tasks.scoring import maths

CHECKS = ["w2s_gsm8k_check", "w2s_gsm8k_check_claim", "w2s_math_check", "w2s_math_check_claim"]
QUESTION = "Ann has 21 nuts and finds 14 more. She eats 13 of them and sells half of the rest. How many are left?"
ANSWER = (
    "Ann has 21 + 14 = <<21+14=35>>35 nuts.\nShe eats some, so 35 - 13 = <<35-13=22>>22 are there.\n"
    "Of these 22 nuts, 22 / 2 = <<22/2=11>>11 are left.\n#### 11"
)


def solution(answer: str = ANSWER, question: str = QUESTION) -> Solution:
    """Its steps."""
    found = gsm8k_steps.parsed(question, answer)
    assert found is not None
    return found


# ---- arithmetic -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "operands", "expected"),
    [
        ("#+#*#", (1, 2, 3), 7),
        ("(#+#)*#", (1, 2, 3), 9),
        ("#/#/#", (1, 2, 2), Fraction(1, 4)),
        ("#-#-#", (9, 2, 3), 4),
        ("-#^#", (2, 2), -4),
        ("#^-#", (2, 2), Fraction(1, 4)),
        ("#*#", (Fraction(1, 10), 3), Fraction(3, 10)),
        ("#/#", (6, 3), 2),
    ],
)
def test_expressions_are_exact(form: str, operands: tuple, expected: Any):
    found = evaluate(form, operands)
    assert found == expected
    assert type(found) is type(expected)  # whole values are ints


@pytest.mark.parametrize("form", ["", "#/#", "#+", "(#", "##", "#^#", "#)", "x", "#+#+#"])
def test_what_is_no_expression_is_told(form: str):
    with pytest.raises(NotComputedError):
        evaluate(form, (99, 0) if form != "#^#" else (9, 99))


def test_numbers_of_a_text():
    text = "He pays $1,234.50 for 3x-4 of 1,2 and .5; a_1 and v2, 7."
    assert [n.text for n in numbers(text)] == ["1,234.50", "3", "4", "1", "2", ".5", "7"]
    assert numbers("9" * 5000) == []


def test_a_number_is_rewritten_in_its_own_format_only():
    def rewritten(text: str, other: Fraction | int) -> str | None:
        return numbers(text)[0].rewritten(other)

    assert rewritten("1,500", 2600) == "2,600"
    assert rewritten("6.00", 7) == "7.00"
    assert rewritten(".5", Fraction(1, 4)) is None  # another number of decimals
    assert rewritten("0.25", Fraction(3, 4)) == "0.75"
    assert rewritten("17.5", 18) is None
    for other in (100, 0, -5, Fraction(1, 3)):  # another length, a sign, no end
        assert rewritten("50", other) is None


# ---- carried through, by hand ------------------------------------------------------------------------------------------


def test_a_slip_is_carried_to_the_final_answer():
    assert solution().changed(Change(0, 37)) == (
        "Ann has 21 + 14 = 37 nuts.\nShe eats some, so 37 - 13 = 24 are there.\n"
        "Of these 24 nuts, 24 / 2 = 12 are left.\n#### 12"
    )


def test_a_number_is_mistaken_for_another_given_one_and_all_that_stands_on_it_changes():
    named = solution(question=QUESTION.replace("Ann has", "Ann, who is 31, has"))
    found = {change.edit[2]: named.changed(change) for change in named.mistaken(0) if change.edit and change.edit[0] == 8}
    assert found == {
        "31": "Ann has 31 + 14 = 45 nuts.\nShe eats some, so 45 - 13 = 32 are there.\n"
        "Of these 32 nuts, 32 / 2 = 16 are left.\n#### 16"
    }


def test_a_confused_sign_is_carried_through():
    (plus,), (times,) = solution().confused(1), solution().confused(2)
    assert solution().changed(plus) == (
        "Ann has 21 + 14 = 35 nuts.\nShe eats some, so 35 + 13 = 48 are there.\n"
        "Of these 48 nuts, 48 / 2 = 24 are left.\n#### 24"
    )
    assert str(solution().changed(times)).endswith("22 * 2 = 44 are left.\n#### 44")
    for text, sign in (("6 x 2 = <<6*2=12>>12", "/"), ("6 × 2 = <<6*2=12>>12", "÷"), ("$6 – $2 = $<<6-2=4>>4", "+")):
        assert [c.edit[2] for c in solution(f"{text}\n#### {text[-2:].strip('>')}").confused(0) if c.edit] == [sign]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("3*4 = <<3*4=12>>12\nAnd 7 + 5 = <<7+5=12>>12\n12/4 = <<12/4=3>>3\n#### 3", "the value is two results"),
        ("8+5 = <<8+5=13>>13\nSo 15 of them, 13*2 = <<13*2=26>>26\nor 13% of 50.\n#### 26", "15 stands on nothing"),
        ("9*4 = <<9*4=36>>36\n80-36 = <<80-36=44>>44 and then 44 + 77 = 121\n#### 44", "121 is computed in no step"),
    ],
)
def test_a_number_that_can_not_be_followed_makes_no_wrong_solution(answer: str, why: str):
    found = solution(answer, "Of 3, 4, 5, 7, 8, 9, 12 and 80?")
    assert found.changed(Change(0, found.steps[0].value + 2)) is None, why


@pytest.mark.parametrize(
    "answer",
    [
        "3*4 = <<3*4=13>>13\n#### 13",
        "10/3 = <<10/3=3.33>>3.33\n#### 3.33",
        "12\n#### 12",
        "3*4 = <<3*4=12>>12\n#### 15",
        "3*4 = <<3*4=12>>twelve\n#### 12",
        "3*4 = <<three*4=12>>12\n#### 12",
        "1/0 = <<1/0=1>>1\n#### 1",
        "1 = <<2=1/0>>1\n#### 1",
        "3*4 = <<3*4=12>>12",
        "8*4+2 = 32+2 = <<8*4+2=34>>34\n#### 34",
        "",
    ],
)
def test_solutions_that_are_not_exact_are_left_out(answer: str):
    assert gsm8k_steps.parsed(QUESTION, answer) is None


def test_draws_follow_the_row_alone():
    one, again, other = (solution().wrong(random.Random(seed)) for seed in (1, 1, 2))
    assert one == again
    assert {solution().wrong(random.Random(i)) for i in range(30)} >= {one, other}
    assert len({solution().wrong(random.Random(i)) for i in range(30)}) > 4


# ---- LaTeX -------------------------------------------------------------------------------------------------------------


def test_equations_of_formulas_are_read():
    text = (
        r"We have $x = 3 \cdot 4 + \frac{6}{2} = 15$ and \[(1+2)(3) = 3^2 = 9.\] Then \begin{align*} y &= 15 - 9 \\"
        "\n"
        r" &= \boxed{6}. \end{align*} But $2n = 8$ and $f(3) = 9$, $3 + 4 \approx 7$, and $1 + 1 = 3$."
    )
    read = list(math_steps.equations(text))
    assert [step.form for step, _ in read if step] == ["#*#+((#)/(#))", "#^#", "#-#", "#+#"]
    assert [holds for _, holds in read] == [True, True, True, True, False]


def test_an_error_in_latex_is_carried_to_the_box():
    found = math_steps.parsed("What is 8 less than 7 times 5?", r"First, $7 \cdot 5 = 35$. So $35 - 8 = \boxed{27}$.")
    assert found is not None
    assert found.changed(Change(0, 36)) == r"First, $7 \cdot 5 = 36$. So $36 - 8 = \boxed{28}$."
    assert math_steps.parsed("?", r"$3 + 4 = 7$ so \boxed{7} or \boxed{8}") is None
    assert math_steps.parsed("?", r"$3 + 4 = 7$ so $\boxed{x}$") is None
    assert math_steps.parsed("?", r"$3 + 4 = 8$ so $\boxed{8}$") is None


# ---- the real data -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gsm8k() -> dict[str, datasets.Dataset]:
    return _real(solutions.gsm8k_check)


@pytest.fixture(scope="module")
def math() -> dict[str, datasets.Dataset]:
    return _real(solutions.math_check)


def _real(source: Callable[[], dict[str, datasets.Dataset]]) -> dict[str, datasets.Dataset]:
    import os

    root = os.environ.get("W2S_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("needs the real data sets: set W2S_DATA to their folder")
    return source()


def _rows(splits: dict[str, datasets.Dataset]) -> list[dict[str, Any]]:
    return [row for split in splits.values() for row in split.to_list()]


def features(text: str) -> list[float]:
    """What of a solution can be seen without reading it: lengths, digits, signs, formats."""
    found = numbers(text)
    final, ends = found[-1].text, [n.text[-1] for n in found]
    sizes = [np.log10(float(n.value) + 1) for n in found]
    return [
        *(len(text), len(text.split()), text.count("\n"), len(found), sum(map(str.isdigit, text))),
        *(text.count(sign) for sign in "+-*/x×–$%,."),
        *(text.count(str(d)) for d in range(10)),
        *(final[-1] == str(d) for d in range(10)),
        *(final[0] == str(d) for d in range(1, 10)),
        *(np.mean([end in few for end in ends]) for few in ("0", "5", "02468")),
        *(np.mean([n.text[0] == "1" for n in found]), max(sizes), np.mean(sizes), sizes[-1], len(final)),
        *(len({n.text for n in found}) / len(found), sum("." in n.text for n in found)),
    ]


def overlap(question: str, text: str) -> list[float]:
    """How much of a question's numbers is in a solution."""
    given, found = {n.value for n in numbers(question)}, [n.value for n in numbers(text)]
    return [np.mean([v in given for v in found]), found[-1] in given, len(given & set(found)) / max(1, len(given))]


def auroc(columns: list[list[float]], labels: list[int]) -> float:
    """Of a linear discriminant, in five folds."""
    from sklearn.metrics import roc_auc_score

    seen, gold = np.array(columns, float), np.array(labels)
    seen = np.column_stack([(seen - seen.mean(0)) / (seen.std(0) + 1e-9), np.ones(len(seen))])
    leaning = np.empty(len(seen))
    for fold in range(5):
        held = np.arange(len(seen)) % 5 == fold
        leaning[held] = seen[held] @ np.linalg.lstsq(seen[~held], gold[~held], rcond=None)[0]
    return float(roc_auc_score(gold, leaning))


@pytest.mark.parametrize("name", ["gsm8k", "math"])
def test_nothing_on_the_surface_tells_wrong_from_right(name: str, request: pytest.FixtureRequest):
    rows = _rows(request.getfixturevalue(name))
    seen = [features(row["answer"]) + overlap(row["question"], row["answer"]) for row in rows]
    assert 0.45 < auroc(seen, [row["label"] for row in rows]) < 0.55


def test_gsm8ks_wrong_solutions_are_wrong_and_its_right_ones_the_datas(gsm8k: dict[str, datasets.Dataset]):
    assert {split: len(rows) for split, rows in gsm8k.items()} == {"train": 6072, "validation": 1032}
    own = {row["question"]: row for row in _rows(solutions.gsm8k())}
    for row in _rows(gsm8k):
        text, final = row["answer"], own[row["question"]]["final"]
        assert "<<" not in text
        assert (text == own[row["question"]]["solution"]) == bool(row["label"]) == (row["error"] == "")
        assert (value(str(after_hashes(text))) == value(final)) == bool(row["label"])
        assert len(text) == len(own[row["question"]]["solution"])
    _is_fair(gsm8k)


def test_maths_wrong_solutions_are_wrong_and_its_right_ones_the_datas(math: dict[str, datasets.Dataset]):
    assert {split: len(rows) for split, rows in math.items()} == {"train": 1519, "validation": 994}
    own = {row["question"]: row for row in _rows(solutions.math())}
    for row in _rows(math):
        text, final = row["answer"], own[row["question"]]["final"]
        assert (text == own[row["question"]]["solution"]) == bool(row["label"]) == (row["error"] == "")
        assert same(final, str(boxed(text))) == bool(row["label"])
        broken = [holds for _, holds in math_steps.equations(text)].count(False)
        assert broken == (row["error"] == "slip")
    _is_fair(math)
    assert all(len(set(split["type"][:200])) == 7 for split in solutions.math().values())  # no order but the hash's


def _is_fair(splits: dict[str, datasets.Dataset]) -> None:
    assert not set(splits["train"]["question"]) & set(splits["validation"]["question"])
    groups = [group for split in splits.values() for group in split["w2s_group"]]
    assert len(set(groups)) == len(groups)
    for split in splits.values():
        assert 0.47 < np.mean(split["label"]) < 0.53
        kinds = Counter(split["error"])
        assert min(kinds[kind] for kind in ("slip", "operand", "operation")) > 0.02 * len(split)


def test_in_gsm8k_a_slip_breaks_one_equation_and_another_error_none(gsm8k: dict[str, datasets.Dataset]):
    """Read from the text as it is shown, not from the annotations that the errors were made with."""
    import re

    number = r"\$?(\d+(?:\.\d+)?)"
    equation = re.compile(rf"(?<![*/+x-] )(?<![\w.*/+$-]){number} ?([-+*x/]) ?{number} ?= ?{number}(?![\d,.%])")
    broken: dict[str, list[int]] = {}
    for row in _rows(gsm8k):
        found = equation.findall(row["answer"])
        sums = [
            (evaluate(f"#{sign.replace('x', '*')}#", [Fraction(one), Fraction(other)]), result)
            for one, sign, other, result in found
            if other.strip("0.")
        ]
        broken.setdefault(row["error"], []).append(sum(told != Fraction(result) for told, result in sums))
    shares = {kind: np.mean(np.array(counts) > 0) for kind, counts in broken.items()}
    assert shares["slip"] > 0.5
    assert max(shares[kind] for kind in ("operand", "operation")) <= shares[""] < 0.01  # "17/3 = 5 and 2/3", "204,000/340"


def test_rows_do_not_depend_on_their_order_or_number(gsm8k: dict[str, datasets.Dataset], monkeypatch: pytest.MonkeyPatch):
    loaded = solutions.load("openai/gsm8k", "main")
    few = {split: loaded[split].select(range(60, 20, -1)) for split in ("train", "test")}
    monkeypatch.setattr(solutions, "load", lambda *_: few)
    solutions._gsm8k_check.cache_clear()
    try:
        again = solutions.gsm8k_check()
    finally:
        solutions._gsm8k_check.cache_clear()
    whole = {row["question"]: (row["answer"], row["label"]) for row in _rows(gsm8k)}
    assert len(again["train"]) > 20
    assert all(whole[row["question"]] == (row["answer"], row["label"]) for row in _rows(again))


# ---- a model's own solutions -------------------------------------------------------------------------------------------


@pytest.fixture
def own_data(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Four questions of a made-up GSM8K."""
    rows = [
        {"question": f"What is {n} and {n}?", "answer": f"{n}+{n}=<<{n}+{n}={2 * n}>>{2 * n}\n#### {2 * n}"}
        for n in (21, 34, 47, 58)
    ]
    data = {split: datasets.Dataset.from_list(rows[i : i + 2]) for split, i in (("train", 0), ("test", 2))}
    monkeypatch.setattr(solutions, "load", lambda *_: data)
    made = (solutions._gsm8k, solutions._gsm8k_check, solutions._candidate_splits)
    for cached in made:
        cached.cache_clear()
    yield
    for cached in made:
        cached.cache_clear()


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return str(path)


def said(n: int, answer: str) -> dict[str, str]:
    return {"question": f"What is {n} and {n}?", "answer": answer}


def test_candidates_are_right_or_wrong_by_their_final_answers(own_data: None, tmp_path: Path):
    rows = [
        said(47, "It is \\boxed{94}."),
        said(58, "So the answer is 115."),
        said(58, "I can't say."),
        "",
        said(21, "#### 42"),
    ]
    splits = solutions.gsm8k_check(candidates=write(tmp_path / "c.jsonl", rows))
    assert [(r["answer"], r["label"], r["error"]) for r in splits["validation"]] == [
        ("It is \\boxed{94}.", 1, ""),
        ("So the answer is 115.", 0, "candidate"),
    ]
    assert splits["train"]["label"][:] == [1]
    both = [said(n, text) for n in (21, 34, 47, 58) for text in (f"#### {2 * n}", "#### 1", "#### 2")]
    one = solutions.gsm8k_check(candidates=write(tmp_path / "d.jsonl", both))
    other = solutions.gsm8k_check(candidates=write(tmp_path / "e.jsonl", both[::-1]))
    assert _rows(one) == _rows(other)
    assert len(_rows(one)) == 4  # one solution a question


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([said(99, "#### 1")], "c.jsonl:1: no such question"),
        ([said(47, "#### 94"), "{"], "c.jsonl:2"),
        ([said(47, "#### 94"), ["a"]], "c.jsonl:2: not"),
        ([{"question": "What is 47 and 47?"}], "c.jsonl:1: not"),
        ([{"question": "What is 47 and 47?", "answer": ""}], "c.jsonl:1: not"),
        ([{"question": "What is 47 and 47?", "answer": 94}], "c.jsonl:1: not"),
        ([], "no solution of a question of the test split"),
        ([said(47, "Nobody knows.")], "no solution of a question of the test split"),
        ([said(21, "#### 42")], "no solution of a question of the test split"),
    ],
)
def test_a_bad_candidates_file_is_told(own_data: None, tmp_path: Path, rows: list[Any], message: str):
    with pytest.raises(UserError, match=message):
        solutions.gsm8k_check(candidates=write(tmp_path / "c.jsonl", rows))


def test_a_missing_candidates_file_is_told(own_data: None, tmp_path: Path):
    with pytest.raises(UserError, match=r"nothing\.jsonl"):
        solutions.gsm8k_check(candidates=str(tmp_path / "nothing.jsonl"))


def test_candidates_reach_the_task_as_metadata(own_data: None, tmp_path: Path):
    file = write(tmp_path / "c.jsonl", [said(47, "#### 94"), said(58, "#### 117")])
    task = W2STaskManager(metadata={"candidates": file}).load(["w2s_gsm8k_check"])["tasks"]["w2s_gsm8k_check"]
    assert [doc["answer"] for doc in task.eval_docs] == ["#### 94", "#### 117"]
    assert task.fewshot_context(task.eval_docs[0], 0) == "Question: What is 47 and 47?\nAnswer: #### 94\nLabel:"


def test_a_task_of_ones_own_names_the_file_in_its_yaml(own_data: None, tmp_path: Path):
    file = write(tmp_path / "c.jsonl", [said(n, f"#### {2 * n}") for n in (21, 47)])
    own: dict[str, Any] = {"include": str(TASK_PATH / "gsm8k" / "w2s_gsm8k_check.yaml"), "task": "own_check"}
    own["metadata"] = {"version": 1.0, "candidates": file}
    (tmp_path / "own_check.yaml").write_text(json.dumps(own), encoding="utf-8")
    task = W2STaskManager(include_path=tmp_path).load(["own_check"])["tasks"]["own_check"]
    assert [doc["answer"] for docs in (task.training_docs(), task.eval_docs) for doc in docs] == ["#### 42", "#### 94"]


# ---- the tasks ---------------------------------------------------------------------------------------------------------


def test_scores_are_lm_evals_own_and_their_rows_are_read_as_such(tmp_path: Path, real_data: Path):
    names = [*CHECKS, "w2s_gsm8k", "w2s_math"]
    results = lm_eval(names, tmp_path, limit=24)
    found = read_evaluation(tmp_path)
    for name in names:
        assert found[name].correct.mean() == pytest.approx(results[name]["acc,none"])
        assert found[name].generated == (name in ("w2s_gsm8k", "w2s_math"))
    assert found["w2s_gsm8k"].unparsed == 1.0  # it says lol
    checked = [found[name].gold for name in CHECKS[:2]]
    assert np.array_equal(*checked)  # the same rows in both forms


def test_shots_are_whole_solutions_in_the_format_that_is_asked_for(real_data: Path):
    for name, mark in (("w2s_gsm8k", "\n#### "), ("w2s_math", "\\boxed{")):
        task = W2STaskManager().load([name])["tasks"][name]
        task.set_fewshot_seed(1234)
        one, other = (task.fewshot_context(task.eval_docs[i], 2) for i in (0, 1))
        assert one.partition("\n\n")[2].count(mark) == 2
        assert "<<" not in one
        assert one.rsplit("\n\n", 1)[0][:200] == other.rsplit("\n\n", 1)[0][:200]
        assert task.doc_to_target(task.eval_docs[0]) == task.eval_docs[0]["solution"]
        assert task.fewshot_context(task.eval_docs[0], 0).startswith("Solve each problem step by step.")


def test_every_readme_names_its_tasks_and_papers():
    for folder in ("gsm8k", "math"):
        text = (TASK_PATH / folder / "README.md").read_text(encoding="utf-8")
        assert "https://" in text
        assert "@" in text
        for path in (TASK_PATH / folder).glob("*.yaml"):
            assert f"`{path.stem}`" in text


@pytest.mark.pypi
def test_asdivs_answers_are_read_as_its_numbers_and_no_story_is_on_both_sides():
    splits = solutions.asdiv()
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 1411, "validation": 748}
    assert not set(splits["train"]["passage"]) & set(splits["validation"]["passage"])
    for doc in splits["validation"]:
        right = maths.asdiv(doc, [f" {doc['solution']}"])
        assert right["acc"] == right["acc_strict"] == (maths.RIGHT, 1, 1, -1)
    assert maths.asdiv(doc, [f"It is {doc['final']}"])["acc_strict"] == (maths.RIGHT, 1, -1, -1)
    assert maths.asdiv(doc, [f"{doc['final']}1 apples"])["acc_strict"] == (maths.RIGHT, 0, 0, -1)
    assert maths.asdiv(doc, [f"1 + {doc['final']} - 1 = {doc['final']} apples"])["acc"][1] == 1
    assert maths.asdiv(doc, ["none"])["unparsed"] == (maths.RIGHT, -1, -1, -1)
