"""Wrong answers to questions whose right answer is a number: the number of another question's answer.

A number that is made up from the right one (one more, twice as much, a random one) can be told without the question: true
answers end in 0 and 5 more often, small ones are more frequent. Numbers that are right elsewhere have the same look.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

from w2s_tasks.rows.forms import draws

NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
ONE_NUMBER = re.compile(r"[^\d/:;]*?(-?\d+(?:\.\d+)?)(?![\d.,:/])[^\d/:;]*")
"""An answer that holds one number and no ratio, time, fraction or list of answers."""

Pools = dict[str, list[str]]


def number_of(answer: str) -> str | None:
    """The one number of an answer as it is written; None where there is none, or several."""
    found = ONE_NUMBER.fullmatch(answer.strip())
    return found[1] if found else None


def _size(number: str) -> str:
    """What two numbers share that look alike: their digits before and after the point ("12.5" and "90.1")."""
    return re.sub(r"\d", "0", number)


def pools(answers: Iterable[str]) -> Pools:
    """The numbers of all answers by their look, each as often as it occurs, sorted so that no order of the rows matters."""
    found: Pools = defaultdict(list)
    for number in filter(None, map(number_of, answers)):
        found[_size(number)].append(number)
    return {size: sorted(numbers) for size, numbers in found.items()}


def wrong_answer(question: str, answer: str, known: Pools, seed: int = 0) -> str | None:
    """The answer with another's number in place of its own, drawn by the question's text.

    Args:
        question: with all that belongs to it, since it decides the draw.
        answer: the right one.
        known: of `pools`, over the whole set.
        seed: of the draw.

    Returns:
        None where the answer has no number, or no other answer has one that looks like it.
    """
    number = number_of(answer)
    others = [other for other in known.get(_size(number), ()) if other != number] if number else []
    if not others or number is None:
        return None
    other = draws(seed, "number", question, answer).choice(others)
    return NUMBER.sub(lambda _: other, answer, count=1)
