"""Mutants of programs: what each operator changes, and that nothing but the change tells."""

from __future__ import annotations

import ast
import difflib

import pytest

from w2s_tasks.rows.code_check import in_turn
from w2s_tasks.rows.mutants import OPERATORS, mutants, normal

PROGRAM = '''
import math

def helper(x):
    """Not touched."""
    return x < 1

def f(xs, n=3):
    """What it does."""
    # a comment
    total = 0
    for i in range(1, n + 1):
        if xs[i] >= total and helper(n):
            total += xs[i - 1] * 2
            continue
        else:
            total = max(total, n)
    return total if xs else not True
'''


def changes(source: str, function: str, operator: str) -> set[str]:
    """The lines that an operator's mutants have and the program has not."""
    program = normal(source)
    found = set()
    for mutant in mutants(program, function):
        if mutant.operator == operator:
            lines = difflib.ndiff(program.splitlines(), mutant.program.splitlines())
            found.add(" | ".join(" ".join(line[2:].split()) for line in lines if line[0] == "+") or "(less)")
    return found


def of(body: str, operator: str) -> set[str]:
    return changes(f"def f(a, b, xs):\n    {body}", "f", operator)


@pytest.mark.parametrize(
    ("operator", "body", "expected"),
    [
        ("comparison", "return a < b", {"return a <= b", "return a > b"}),
        ("comparison", "return a in xs", {"return a not in xs"}),
        ("comparison", "return a == b", {"return a != b", "return a <= b", "return a >= b"}),
        ("comparison", "return a is None", {"return a is not None"}),
        ("arithmetic", "return a + b", {"return a - b"}),
        ("arithmetic", "a -= b", {"a += b"}),
        ("boolean", "return a and b", {"return a or b"}),
        ("boolean", "return a if b else xs", {"return a if not b else xs"}),
        ("boolean", "return a if not b else xs", {"return a if b else xs"}),
        ("constant", "return 5", {"return 6", "return 4"}),
        ("constant", "return True", {"return False"}),
        ("constant", "return 'text'", set()),
        ("constant", "return xs[-1]", {"return xs[-2]"}),  # minus zero gives itself away
        ("constant", "a += 1; return a", {"a += 2"}),
        ("constant", "return a ** 2", {"return a ** 3"}),
        ("constant", "return a // 2", {"return a // 3"}),
        ("arithmetic", "return a % 1", {"return a * 1"}),
        ("constant", "return xs[::-1]", set()),
        ("bound", "return xs[a:]", {"return xs[a + 1:]", "return xs[a - 1:]"}),
        ("bound", "return range(a + 1)", {"return range(a)"}),
        ("bound", "return range(0, a)", {"return range(0, a + 1)", "return range(0, a - 1)"}),
        ("bound", "return xs[a]", {"return xs[a + 1]", "return xs[a - 1]"}),
        ("removal", "a = 1; return a", {"(less)"}),
        ("removal", "return a", set()),  # no function loses its return
        ("order", "return pow(a, b)", {"return pow(b, a)"}),
        ("order", "return a - b", {"return b - a"}),
        ("name", "return min(a, b)", {"return max(a, b)"}),
        ("name", "return a.upper()", {"return a.lower()"}),
    ],
)
def test_what_an_operator_changes(operator: str, body: str, expected: set[str]):
    assert of(body, operator) == expected


def test_jumps_are_taken_for_one_another():
    source = "def f(xs):\n    for x in xs:\n        if x:\n            break\n"
    assert changes(source, "f", "jump") == {"continue"}


def test_an_else_branch_is_left_out_and_branches_are_swapped():
    source = "def f(a):\n    if a:\n        b = 1\n    else:\n        b = 2\n    return b\n"
    program = normal(source)
    texts = [m.program for m in mutants(program, "f")]
    assert any("else" not in text and "b = 1" in text for text in texts)
    assert any(text.index("b = 2") < text.index("b = 1") for text in texts if "b = 2" in text and "b = 1" in text)


def test_each_operator_has_its_mutants_and_only_the_function_changes():
    program = normal(PROGRAM)
    found = mutants(program, "f")
    assert {m.operator for m in found} == set(OPERATORS)
    before = ast.unparse(ast.parse(program).body[:2])
    for mutant in found:
        tree = ast.parse(mutant.program)
        assert ast.unparse(tree.body[:2]) == before
        assert ast.unparse(tree.body[2].args) == "xs, n=3"  # type: ignore[attr-defined]


def test_mutants_differ_from_the_program_and_from_each_other_and_are_written_alike():
    program = normal(PROGRAM)
    texts = [m.program for m in mutants(program, "f")]
    assert len(set(texts)) == len(texts)
    assert program not in texts
    assert all(normal(text) == text for text in [program, *texts])  # the writing tells nothing
    assert not any("-0" in text or "pass" in text for text in texts)
    assert "comment" not in program
    assert "What it does" not in program


def test_mutants_are_the_same_each_time_and_their_order_depends_on_the_problem():
    program = normal(PROGRAM)
    assert mutants(program, "f") == mutants(program, "f")
    found = mutants(program, "f")
    assert in_turn(found, "one") == in_turn(found, "one") != in_turn(found, "other")
    assert set(in_turn(found, "one")) == set(found)
    kinds = [m.operator for m in in_turn(found, "one")]
    assert len(set(kinds[: len(OPERATORS)])) == len(OPERATORS)  # one of each first


def test_a_docstring_alone_leaves_a_program():
    assert normal('def f():\n    """Only words."""') == "def f():\n    pass"
    with pytest.raises(SyntaxError):
        normal("def f(:")
