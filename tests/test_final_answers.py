"""Final answers: where a solution states them, which ones are the same, and the scores of generated solutions."""

from __future__ import annotations

import builtins
import importlib.util
import threading
from fractions import Fraction
from typing import Any

import pytest

from w2s_tasks.errors import UserError
from w2s_tasks.rows.final_answers import after_hashes, boxed, final_answer, last_number, require, same, value
from w2s_tasks.scoring import maths
from w2s_tasks.scoring.generated import NO_GROUP, NoReply


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("so 3 * 4 = 12\n#### 12", "12"),
        ("#### 12\nNo: #### 13", "13"),
        (r"\boxed{1} and then \boxed{\sqrt{\frac{3}{4}}}", r"\sqrt{\frac{3}{4}}"),
        (r"\boxed{5}, that is #### 6", "6"),
        (r"#### 6, that is \boxed{5}", "5"),
        (r"\boxed 7.", "7"),
        (r"\fbox{8}", "8"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"a broken \boxed{12", "12"),
        ("The answer is 18 eggs. It took 3 days.", "18 eggs"),
        ("The final answer is: $5.", "5"),
        ("Answer: **42**", "42"),
        ("He pays 12*3=36 dollars", "36"),
        ("It falls to -5.", "-5"),
        ("18 - 3", "3"),
        ("$1,234.50 in all", "$1,234.50"),
        ("?", None),
        ("", None),
        ("####", None),
        (r"\boxed{}", None),
        ("nobody knows", None),
    ],
)
def test_a_solution_states_its_answer(text: str, expected: str | None):
    assert final_answer(text) == expected


def test_a_format_is_read_alone():
    assert after_hashes(r"\boxed{5} is 6") is None
    assert boxed("#### 6") is None
    assert last_number("none") is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1/2", "0.5"),
        (r"\frac12", ".50"),
        (r"-\dfrac{3}{4}", "-0.75"),
        ("1,000", "1000"),
        (r"1{,}000", "1000"),
        ("$5", "5"),
        (r"\$5.00", "5"),
        (r"50\%", "50"),
        ("3 apples", "3"),
        (r"12\text{ cm}^2", "12"),
        ("10 miles per hour", "10"),
        (r"60^\circ", "60"),
        ("2 1/2", "5/2"),
        ("-2 1 / 2 hours", "-2.5"),
        (r"3 \frac{3}{8}", "27/8"),
        (r"\dfrac 3 8", "3/8"),
        ("18 a day", "18"),
        ("- 5", "-5"),
        (r"5\ \text{cm}", "5 cm"),
        ("−4", "-4"),
        ("x = 5", "5"),
        ("7.", "7"),
        (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}"),
        ("1+x^2", "x^2+1"),
        (r"\text{Sunday}", "Sunday"),
        ("(1,2)", "(1, 2)"),
    ],
)
def test_answers_are_the_same(one: str, other: str):
    assert same(one, other)
    assert same(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1/2", "2"),
        ("5", "-5"),
        ("1,2", "12"),
        ("5x", "5"),
        ("5 x", "5"),
        ("3 i", "3"),
        ("3 pi", "3"),
        ("3 4", "34"),
        (r"3\ 4", "34"),
        (r"3 \text{ and } 4", "34"),
        ("2 1/2", "21/2"),
        ("2 1/0", "2"),
        ("0.333", "1/3"),
        (r"\frac{1}{0}", "1"),
        ("(1,2)", "(2,1)"),
        (r"\sqrt{2}", "1.4"),
        ("no answer", "5"),
        ("9^{9^{9^9}}", "3"),
        ("(((((((9999999!)!)!)!)!)!)!)", "3"),
        ("1" * 5000, "2" * 5000),
        ("", "5"),
    ],
)
def test_answers_differ(one: str, other: str):
    assert not same(one, other)


def test_values_are_exact():
    assert value("0.1") == Fraction(1, 10)
    assert value(r"\frac{10}{4}") == Fraction(5, 2)
    assert value("a") is None


def test_answers_are_compared_outside_the_main_thread():
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(same(r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}")))
    thread.start()
    thread.join()
    assert found == [True]


def test_a_missing_math_verify_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'w2s-harness\[tasks\]'"):
        require()
    with pytest.raises(UserError, match="math-verify"):
        same(r"\sqrt{2}", r"\sqrt{3}")
    assert same("1/2", "0.5")  # numbers need none


def test_math_verify_is_imported_only_where_it_is_needed(monkeypatch: pytest.MonkeyPatch):
    real = builtins.__import__

    def refusing(name: str, *args: Any, **kwargs: Any) -> Any:
        assert not name.startswith("math_verify")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refusing)
    assert maths.gsm8k({"final": "1,000"}, [r"\boxed{x^2 + 1000}"])["acc"] == (1, 1, -1, NO_GROUP)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("#### 18", (1, 1)),
        ("The answer is 18 eggs a day.", (1, -1)),
        ("#### 17\nsorry, 18", (0, 0)),
        (r"\boxed{18.0}", (1, -1)),
        ("The answer is not known.", (-1, -1)),
        ("lol", (-1, -1)),
        ("", (-1, -1)),
    ],
)
def test_gsm8ks_replies_are_scored(reply: str, expected: tuple[int, int]):
    item = maths.gsm8k({"final": "18"}, [reply])["acc"]
    assert item == (1, *expected, NO_GROUP)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (r"so \boxed{\frac{1}{\sqrt2}}", (1, 1)),
        (r"The answer is $\frac{1}{\sqrt{2}}$.", (1, -1)),
        (r"\boxed{\sqrt 2}", (0, 0)),
        ("hm", (-1, -1)),
    ],
)
def test_maths_replies_are_scored(reply: str, expected: tuple[int, int]):
    item = maths.math({"final": r"\frac{\sqrt{2}}{2}"}, [reply])["acc"]
    assert item == (1, *expected, NO_GROUP)


def test_a_skipped_reply_is_not_scored():
    assert maths.gsm8k({"final": "1"}, [NoReply()]) == {}
