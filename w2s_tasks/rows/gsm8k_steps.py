"""GSM8K's solutions as steps: what their calculator annotations ``<<48/2=24>>`` say, and where it stands in the text."""

from __future__ import annotations

import re

from w2s_tasks.rows.carrying import NUMBER, NotComputedError, Number, Solution, Step, evaluate, exact, numbers

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
        if step is None or (step.shown is None and _line(text, found[step.result].start).count("=") > 1):
            return None
        steps.append(step)
    final = len(found) - 1
    if not steps or not text.partition(FINAL)[2] or found[final].value not in {step.value for step in steps}:
        return None
    return Solution(question, text, tuple(steps), final)


def _line(text: str, end: int) -> str:
    """What of a line stands before a place."""
    return text[text.rfind("\n", 0, end) + 1 : end]


def _step(annotation: str, text: list[Number], place: int) -> Step | None:
    expression, _, result = annotation.replace(" ", "").partition("=")
    form, operands = NUMBER.sub("#", expression), tuple(number.value for number in numbers(expression))
    try:
        value = evaluate(form, operands)
        same = value == exact(result) == text[place].value
    except (NotComputedError, ValueError, ZeroDivisionError):
        return None
    before = range(place - len(operands), place)
    told = before.start >= 0 and tuple(text[i].value for i in before) == operands
    return Step(form, operands, tuple(before) if told else None, place, value) if same else None
