r"""MATH's solutions as steps: the equations of their formulas whose left side is arithmetic, ``3 \cdot 4 + 2 = 14``.

Only what can be checked counts: numbers, the four operations, powers, fractions and brackets on the left, one number on
the right, and both alike. A solution can be changed where its boxed answer is the result of such an equation, and its
changed text is read once more: of its equations a slip breaks one, another error none.
"""

from __future__ import annotations

import bisect
import random
import re
from collections.abc import Iterator, Sequence

from w2s_tasks.rows.carrying import NotComputedError, Number, Solution, Step, evaluate, numbers

FORMULA = re.compile(r"\\\[(.+?)\\\]|\\begin\{align\*?\}(.+?)\\end\{align\*?\}|\$\$(.+?)\$\$|\$(.+?)\$", re.DOTALL)
ENDS = re.compile(r"\\\\|&|\\q?quad\b|\\(?:text|mbox|implies|Rightarrow|approx|equiv|leq?|geq?|neq?|to)\b|[<>;:]|,\s")
"""Where a side of an equation ends that no equals sign ends."""
NESTED = r"((?:[^{}]|\{[^{}]*\})*)"
FRACTION = re.compile(rf"\\[dt]?frac\{{{NESTED}\}}\{{{NESTED}\}}")
PLAIN = (
    (re.compile(r"\\(?:left|right|displaystyle)\b|\\[,!; ]|~|\s"), ""),
    (re.compile(r"\\(?:cdot|times|ast)\b"), "*"),
    (re.compile(r"\\div\b"), "/"),
    (re.compile(r"[\[{]"), "("),
    (re.compile(r"[\]}]"), ")"),
    (re.compile(r"(?<=\))(?=[#(])|(?<=#)(?=\()"), "*"),  # factors side by side
)
COMMAND, SYMBOLIC = re.compile(r"\\[a-zA-Z]+"), re.compile(r"[a-zA-Z_|!]")
"""What shows quickly that a side is no arithmetic: most are not."""
VALUE = r"(?:\\?\$)?\s*([\d,]*\.?\d+)\s*(?:\\%|\^\{?\\circ\}?)?"
RESULT = re.compile(rf"\s*(?:\\boxed\{{\s*{VALUE}\s*\}}|{VALUE})[\s.,]*")
BOXED = re.compile(rf"\\boxed\{{\s*{VALUE}\s*\}}")


def form_of(latex: str, found: Sequence[Number], start: int = 0) -> str | None:
    """The form (see `carrying.evaluate`) of an expression in LaTeX; None where it is more than arithmetic of numbers.

    Args:
        latex: the expression.
        found: its numbers, as places in the whole text.
        start: where in that text it stands.
    """
    for number in reversed(found):
        latex = f"{latex[: number.start - start]}#{latex[number.end - start :]}"
    while (plain := FRACTION.sub(r"((\1)/(\2))", latex)) != latex:
        latex = plain
    for pattern, sign in PLAIN:
        latex = pattern.sub(sign, latex)
    return latex if re.fullmatch(r"[#+\-*/^()]+", latex) and "##" not in latex else None


def equations(text: str) -> Iterator[tuple[Step | None, bool]]:
    """The equations between two sides of arithmetic: its step where the right one is a number, and whether it holds."""
    found = numbers(text)
    for formula in FORMULA.finditer(text):
        start, end = formula.span(next(i for i in range(1, 5) if formula[i] is not None))
        signs = [m.start() + start for m in re.finditer("=", text[start:end])]
        for before, sign, after in zip([start - 1, *signs], signs, [*signs[1:], end], strict=False):
            left = ENDS.split(text[before + 1 : sign].rstrip(" \n&\\"))[-1]
            if SYMBOLIC.search(COMMAND.sub("", left)) or not left.strip():
                continue
            right = ENDS.split(text[sign + 1 : after])[0]
            shown, form = _side(left, found, text.rindex(left, before + 1, sign))
            if form is not None and len(shown) > 1:
                yield from _equation(found, (shown, form), (right, sign + 1))


def _side(latex: str, found: Sequence[Number], start: int) -> tuple[tuple[int, ...], str | None]:
    """The numbers of one side of an equation, and its form."""
    first = bisect.bisect_left(found, start, key=lambda number: number.start)
    shown = tuple(range(first, bisect.bisect_right(found, start + len(latex), first, key=lambda number: number.end)))
    return shown, form_of(latex, [found[i] for i in shown], start)


def _equation(
    found: Sequence[Number], left: tuple[tuple[int, ...], str], right: tuple[str, int]
) -> Iterator[tuple[Step | None, bool]]:
    operands, (latex, start) = tuple(found[i].value for i in left[0]), right
    single = RESULT.fullmatch(latex)
    try:
        value = evaluate(left[1], operands)
        if single is None:
            shown, form = _side(latex.rstrip(" \n.,"), found, start)
            if form is not None:
                yield None, value == evaluate(form, [found[i].value for i in shown])
            return
    except NotComputedError:
        return
    end = start + single.end(1 if single[1] else 2)
    result = bisect.bisect_left(found, end, key=lambda number: number.end)
    if result < len(found) and found[result].end == end:
        yield Step(left[1], operands, left[0], result, found[result].value), value == found[result].value


def parsed(problem: str, solution: str) -> Solution | None:
    """A solution with its steps; None where an equation does not hold, or the boxed answer is no step's result."""
    boxed = list(BOXED.finditer(solution))
    if len(boxed) != 1 or solution.count("boxed") != 1:
        return None
    found, read = numbers(solution), list(equations(solution))
    if not all(holds for _, holds in read):
        return None
    steps = tuple(step for step, _ in read if step is not None)
    final = next((i for i, number in enumerate(found) if number.end == boxed[0].end(1)), None)
    if final is None or found[final].value not in {step.value for step in steps}:
        return None
    return Solution(problem, solution, steps, final)


def wrong(solution: Solution, rng: random.Random) -> tuple[str, str] | None:
    """As `Solution.wrong`, of the errors after which the text read once more holds the equations that it should."""
    n = len(list(equations(solution.text)))

    def as_meant(text: str, kind: str) -> bool:
        read = [holds for _, holds in equations(text)]
        return len(read) == n and read.count(False) == (kind == "slip")

    return solution.wrong(rng, as_meant)
