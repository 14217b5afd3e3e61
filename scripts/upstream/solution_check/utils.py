"""Documents and shots of the task `solution_check`: GSM8K's solutions, right, or with one step wrong.

One step of a worked solution changed as people err, and carried through every later step in exact arithmetic.

A solution is text with numbers in it and steps, each of which is an expression and the number that comes out. One step is
changed:

* slip: its result is off by one or two, by one in a higher digit, or has two digits the other way round;
* operand: one of its numbers is mistaken for another one, a given one for a given one, a computed one for a computed one;
* operation: plus and minus, or times and divided by, are confused.

What stands on it is computed anew, and every other step stays right: a slip leaves one equation that does not hold, the
others none. So that nothing but the mathematics tells a wrong solution from a right one, a number that changes keeps its
format (length, decimals, separators, its end in zeros for a slip) and is one of the question's numbers after the change if
it was one before; values are drawn by how frequent such numbers are (as 1/value: Benford 1938; by their last digit); and a
number is mistaken only where it stays in the text elsewhere or the other one is new in it. Where a number can't be followed
through the text, because it could be two things or stands on something that is not computed, there is no wrong solution.
"""

import functools
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    import datasets

# Annotations are no strings here: a data class would look for this module, which lm_eval loads under no name.


Exact = int | Fraction
"""An exact value; a whole one is an int, which is ten times as fast."""
NUMBER = re.compile(r"(?<![\w.])(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?!\d)")
"""A number in a text, without its sign."""
NAMES = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
)
TIMES = {
    "half": 2,
    "twice": 2,
    "double": 2,
    "third": 3,
    "thrice": 3,
    "triple": 3,
    "quarter": 4,
    "dozen": 12,
}
WORDS = {name: n for n, name in enumerate(NAMES)} | TIMES
"""Numbers that texts write as words."""
COMMON = frozenset((0, 1, 2, 3, 4, 5, 7, 10, 12, 24, 30, 52, 60, 100, 365, 1000))
"""Numbers that a solution may hold for reasons of its own: days, hours, per cent."""
PLUS_MINUS = {"+": "-", "-": "+", "–": "+", "−": "+"}
TIMES_OVER = {"*": "/", "/": "*", "x": "/", "×": "÷", "÷": "×"}
CONFUSED = PLUS_MINUS | TIMES_OVER
"""What a sign of a text is mistaken for."""
ENDS = (4, 9, 17, 8, 14, 17, 14, 4, 12, 4)
"""How often in a hundred each digit is the last one but zeros of a result: counted in the training split of GSM8K."""
LARGEST_POWER = 20
LONGEST = 40


class NotComputedError(Exception):
    """An expression that is no arithmetic of numbers, or has no value."""


@dataclass(frozen=True)
class Number:
    """A number where it stands in a text, and its exact value."""

    start: int
    end: int
    text: str
    value: Exact

    def rewritten(self, value: Exact) -> str | None:
        """The text of another value in this one's format; None where it has another length, more decimals or a sign."""
        decimals = len(self.text.partition(".")[2])
        scaled = value * 10**decimals
        if (
            scaled.denominator != 1
            or scaled <= 0
            or (decimals and _decimals(value) != _decimals(self.value))
        ):
            return None
        whole, part = divmod(int(scaled), 10**decimals)
        text = f"{whole:,}" if "," in self.text else str(whole)
        text = f"{text}.{part:0{decimals}}" if decimals else text
        text = text.removeprefix("0") if self.text.startswith(".") else text
        return text if len(text) == len(self.text) else None


def exact(text: str) -> Exact:
    """The value of a number's text.

    Raises:
        ValueError: no number.
    """
    plain = text.replace(",", "")
    return int(plain) if plain.isdecimal() else _whole(Fraction(plain))


def _whole(value: Exact) -> Exact:
    return value.numerator if value.denominator == 1 else value


def numbers(text: str) -> list[Number]:
    """The numbers of a text in their order; a chain of hundreds of digits is none."""
    found = (m for m in NUMBER.finditer(text) if len(m[0]) <= LONGEST)
    return [Number(m.start(), m.end(), m[0], exact(m[0])) for m in found]


def _decimals(value: Exact) -> int:
    """How many decimals a value of finitely many needs."""
    return next(d for d in range(99) if (value * 10**d).denominator == 1)


# ---- steps ----


@dataclass(frozen=True)
class Step:
    """An expression and its result.

    Attributes:
        form: the expression with ``#`` in the place of every number: ``#*(#+#)``.
        operands: its numbers, in order.
        shown: which of the text's numbers they are; None where the text puts the step otherwise.
        result: which of the text's numbers is the result.
        value: what comes out.
    """

    form: str
    operands: tuple[Exact, ...]
    shown: tuple[int, ...] | None
    result: int
    value: Exact


def evaluate(form: str, operands: Sequence[Exact]) -> Exact:
    """The value of an expression in which ``#`` stands for one operand after the other.

    Signs: + - * / ^ and brackets; a power's exponent is a whole number of at most 20 either way.

    Raises:
        NotComputedError: no such expression, a division by zero, or another power.
    """
    try:
        return _Expression(form, operands).whole()
    except ZeroDivisionError as error:
        raise NotComputedError(form) from error


class _Expression:
    """A recursive descent through a form."""

    def __init__(self, form: str, operands: Sequence[Exact]) -> None:
        self.form, self.place, self.operands = form, 0, iter(operands)

    def taken(self, signs: str) -> str:
        """The next sign where it is one of these, and the place behind it."""
        sign = self.form[self.place : self.place + 1]
        if not sign or sign not in signs:
            return ""
        self.place += 1
        return sign

    def whole(self) -> Exact:
        value = self.terms()
        if self.place < len(self.form):
            raise NotComputedError(self.form)
        return value

    def terms(self) -> Exact:
        value = self.factors()
        while sign := self.taken("+-"):
            value = value + self.factors() if sign == "+" else value - self.factors()
        return value

    def factors(self) -> Exact:
        value = self.signed()
        while sign := self.taken("*/"):
            other = self.signed()
            value = _whole(value * other if sign == "*" else Fraction(value) / other)
        return value

    def signed(self) -> Exact:
        return -self.signed() if self.taken("-") else self.power()

    def power(self) -> Exact:
        base = self.atom()
        if not self.taken("^"):
            return base
        exponent = self.signed()
        if not isinstance(exponent, int) or abs(exponent) > LARGEST_POWER:
            raise NotComputedError(self.form)
        return _whole(Fraction(base) ** exponent)

    def operand(self) -> Exact:
        value = next(self.operands, None)
        if value is None:
            raise NotComputedError(self.form)
        return value

    def atom(self) -> Exact:
        if self.taken("#"):
            return self.operand()
        if not self.taken("("):
            raise NotComputedError(self.form)
        value = self.terms()
        if not self.taken(")"):
            raise NotComputedError(self.form)
        return value


def _computed(form: str, operands: Sequence[Exact]) -> Exact | None:
    try:
        return evaluate(form, operands)
    except NotComputedError:
        return None


# ---- a solution and its errors ----


@dataclass(frozen=True)
class Change:
    """What one step gives after an error, and the error itself where it stands in the text: (start, end, new text)."""

    step: int
    value: Exact
    edit: tuple[int, int, str] | None = None


@dataclass(frozen=True)
class Solution:
    """A worked solution whose steps are known.

    Attributes:
        question: what it answers.
        text: as it is shown.
        steps: in the order in which their results stand in the text.
        final: which of the text's numbers is the final answer.
    """

    question: str
    text: str
    steps: tuple[Step, ...]
    final: int

    @functools.cached_property
    def numbers(self) -> list[Number]:
        """The text's numbers."""
        return numbers(self.text)

    @functools.cached_property
    def given(self) -> set[Exact]:
        """The question's numbers, those written as words included."""
        words = re.findall(r"[a-z]+", self.question.casefold())
        return {number.value for number in numbers(self.question)} | {
            WORDS[w] for w in words if w in WORDS
        }

    def wrong(
        self,
        rng: random.Random,
        accepted: Callable[[str, str], bool] = lambda text, kind: True,
    ) -> tuple[str, str] | None:
        """A wrong solution and the kind of its error, or None where none can be made.

        The kinds come in a random order, and the first one of which an error can be carried through is taken.

        Args:
            rng: the row's draws.
            accepted: whether a text with an error of this kind will do.
        """
        kinds = {
            "slip": self.slips,
            "operand": self.mistaken,
            "operation": self.confused,
        }
        for kind in rng.sample(sorted(kinds), len(kinds)):
            changes = [
                change
                for i in range(len(self.steps))
                for change in kinds[kind](i)
                if change.value > 0
            ]
            while changes:
                place = rng.choices(
                    range(len(changes)), [frequency(change.value) for change in changes]
                )[0]
                text = self.changed(changes.pop(place))
                if text is not None and accepted(text, kind):
                    return text, kind
        return None

    # ---- the three kinds ----

    def slips(self, step: int) -> Iterator[Change]:
        """A result off by one or two, or by one in a higher digit (a carry), or with two digits the other way round."""
        text = self.numbers[self.steps[step].result].text.replace(",", "")
        digits = text.replace(".", "")
        significant = digits.rstrip("0")
        unit = _whole(
            Fraction(
                10 ** (len(digits) - len(significant)),
                10 ** len(text.partition(".")[2]),
            )
        )
        if not significant:  # nothing was left of it
            return
        found = {int(significant) + n for n in (-2, -1, 1, 2)}
        found |= {
            int(significant) + n * 10**place
            for place in range(1, len(significant))
            for n in (-1, 1)
        }
        for i in range(len(significant) - 1):
            found.add(
                int(
                    significant[:i]
                    + significant[i + 1]
                    + significant[i]
                    + significant[i + 2 :]
                )
            )
        for other in sorted(found - {int(significant)}):
            if other % 10:  # as many zeros at its end as before
                yield Change(step, other * unit)

    def mistaken(self, step: int) -> Iterator[Change]:
        """One of a step's numbers taken for another one of its sort."""
        own, values = self.steps[step], [number.value for number in self.numbers]
        computed = {earlier.value for earlier in self.steps[:step]} - self.given
        for place, shown in enumerate(own.shown or ()):
            old, here = own.operands[place], self.numbers[shown]
            for other in sorted(
                self.given if old in self.given else computed if old in computed else ()
            ):
                new = here.rewritten(other)
                if (
                    new is None
                    or other == old
                    or (values.count(old) == 1 and other in values)
                ):
                    continue
                value = _computed(
                    own.form, (*own.operands[:place], other, *own.operands[place + 1 :])
                )
                if value is not None:
                    yield Change(step, value, (here.start, here.end, new))

    def confused(self, step: int) -> Iterator[Change]:
        """One of a step's signs taken for its opposite."""
        own = self.steps[step]
        places = [i for i, sign in enumerate(own.form) if sign == "#"]
        for left, a, b in zip(
            places, own.shown or (), (own.shown or ())[1:], strict=False
        ):
            start, between = (
                self.numbers[a].end,
                self.text[self.numbers[a].end : self.numbers[b].start],
            )
            sign, found = between.strip(" $"), own.form[left + 1]
            if (
                sign not in CONFUSED
                or found not in CONFUSED
                or own.form[left + 2] != "#"
            ):
                continue
            value = _computed(
                f"{own.form[: left + 1]}{CONFUSED[found]}{own.form[left + 2 :]}",
                own.operands,
            )
            if value is not None:
                start += between.index(sign)
                yield Change(step, value, (start, start + len(sign), CONFUSED[sign]))

    # ---- carrying it through ----

    def values(self, change: Change) -> dict[Exact, Exact] | None:
        """What every value that stands on a changed step becomes, old to new; None where one would become two things."""
        changed = {self.steps[change.step].value: change.value}
        for step in self.steps[change.step + 1 :]:
            if changed.keys().isdisjoint(step.operands):
                continue
            value = _computed(
                step.form, [changed.get(operand, operand) for operand in step.operands]
            )
            if value is None or changed.setdefault(step.value, value) != value:
                return None
        return changed

    def changed(self, change: Change) -> str | None:
        """The text after a change; None where it can't be carried through or tells itself, or the final answer stays."""
        changed, final = self.values(change), self.numbers[self.final].value
        if changed is None or changed.get(final, final) == final:
            return None
        if any(
            (old in self.given) != (new in self.given) for old, new in changed.items()
        ):
            return None
        own = self.steps[change.step].shown or ()
        edits = [] if change.edit is None else [change.edit]
        for i, number in enumerate(self.numbers):
            if number.value in changed and i not in own:
                new = number.rewritten(changed[number.value])
                if new is None:
                    return None
                edits.append((number.start, number.end, new))
        if not self._explained(change.step) or not all(
            self._followed(old, change.step) for old in changed
        ):
            return None
        return _edited(self.text, edits)

    def _followed(self, old: Exact, first: int) -> bool:
        """Whether every number of that value in the text is the one result, and nothing else."""
        results = [step.result for step in self.steps if step.value == old]
        if len(results) != 1:
            return False
        mentioned = any(
            n.value == old and i not in (results[0], self.final)
            for i, n in enumerate(self.numbers)
        )
        used = any(old in step.operands for step in self.steps)
        before = (
            operand for step in self.steps[: first + 1] for operand in step.operands
        )
        return not (mentioned or used) or old not in self.given | COMMON | set(before)

    def _explained(self, first: int) -> bool:
        """Whether every number behind the changed result was given, is a result, or stood before it."""
        place = self.steps[first].result
        known = self.given | COMMON | {step.value for step in self.steps}
        known |= {number.value for number in self.numbers[:place]}
        later = {
            operand for step in self.steps[first + 1 :] for operand in step.operands
        }
        return later | {number.value for number in self.numbers[place:]} <= known


def frequency(value: Exact) -> float:
    """How frequent a result like this one is among right ones, up to a factor: by its size and its last digit but zeros."""
    ends = str(int(value * 10**6)).rstrip("0")[-1:]
    return ENDS[int(ends or 0)] / float(value)


def _edited(text: str, edits: Sequence[tuple[int, int, str]]) -> str:
    for start, end, new in sorted(edits, reverse=True):
        text = text[:start] + new + text[end:]
    return text


# ---- GSM8K's solutions ----

ANNOTATION = re.compile(r"<<([^<>]*)>>")
FINAL = "#### "


def shown(answer: str) -> str:
    """A solution as it is shown: without its annotations."""
    return ANNOTATION.sub("", answer)


def parsed(question: str, answer: str) -> Solution | None:
    """A solution with its steps.

    None where an annotation is no exact arithmetic, the text computes more than it (``8*4+2 = 32+2 = <<8*4+2=34>>34``), or
    the answer is no step's result.
    """
    text = shown(answer)
    found = numbers(text)
    by_start = {number.start: i for i, number in enumerate(found)}
    steps: list[Step] = []
    removed = 0
    for annotation in ANNOTATION.finditer(answer):
        place = by_start.get(annotation.start() - removed)
        removed += len(annotation[0])
        step = None if place is None else _step(annotation[1], found, place)
        if step is None or (
            step.shown is None and _line(text, found[step.result].start).count("=") > 1
        ):
            return None
        steps.append(step)
    final = len(found) - 1
    if (
        not steps
        or not text.partition(FINAL)[2]
        or found[final].value not in {step.value for step in steps}
    ):
        return None
    return Solution(question, text, tuple(steps), final)


def _line(text: str, end: int) -> str:
    """What of a line stands before a place."""
    return text[text.rfind("\n", 0, end) + 1 : end]


def _step(annotation: str, text: list[Number], place: int) -> Step | None:
    expression, _, result = annotation.replace(" ", "").partition("=")
    form, operands = (
        NUMBER.sub("#", expression),
        tuple(number.value for number in numbers(expression)),
    )
    try:
        value = evaluate(form, operands)
        same = value == exact(result) == text[place].value
    except (NotComputedError, ValueError, ZeroDivisionError):
        return None
    before = range(place - len(operands), place)
    told = before.start >= 0 and tuple(text[i].value for i in before) == operands
    return (
        Step(form, operands, tuple(before) if told else None, place, value)
        if same
        else None
    )


# ---- documents and shots ----

SEED = 0
SHOT_SEED = 1234  # lm_eval's default few-shot seed
POOL_PER_CLASS = 256


def draws(*texts: str) -> random.Random:
    """The random numbers of a row: its texts and the seed, and nothing else, decide them."""
    return random.Random("\x1f".join((str(SEED), *texts)))


def _checked(row: dict[str, str]) -> dict[str, Any] | None:
    """The right solution of a question or a wrong one, by a coin; None where no wrong one can be made."""
    question, answer = row["question"].strip(), row["answer"]
    solution = parsed(question, answer)
    made = solution and solution.wrong(draws("error", question, answer))
    if made is None:
        return None
    right = draws("check", question).random() < 0.5
    text, error = (shown(answer), "") if right else made
    return {"question": question, "answer": text, "label": int(right), "error": error}


def checked(docs: "datasets.Dataset") -> "datasets.Dataset":
    """One solution a question: question, answer, label (1 = right) and the kind of the error."""
    import datasets

    return datasets.Dataset.from_list([row for row in map(_checked, docs) if row])


def shots(docs: "datasets.Dataset") -> list[dict[str, Any]]:
    """Fixed, balanced, interleaved shots: the first n serve every document."""
    rows = list(checked(docs))
    by_class: dict[int, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        by_class[row["label"]].append(i)
    rng = random.Random(0)
    chosen = sorted(
        i
        for found in by_class.values()
        for i in rng.sample(found, min(POOL_PER_CLASS, len(found)))
    )
    classes = [
        [rows[i] for i in chosen if rows[i]["label"] == label] for label in (0, 1)
    ]
    rng = random.Random(SHOT_SEED)
    for found in classes:
        rng.shuffle(found)
    return [row for block in zip(*classes) for row in rng.sample(block, len(block))]
