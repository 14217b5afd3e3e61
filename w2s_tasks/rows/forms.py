"""One question asked in other forms: is this answer right, which of two is better, the same choices in another order.

What a form draws (a distractor, a side, an order) follows from a seed and the row's own text, so that it is the same for
every model, every limit and every order of the rows.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence


def draws(seed: int, *texts: str) -> random.Random:
    """The random numbers of a row: its texts and a seed, and nothing else, decide them."""
    return random.Random("\x1f".join((str(seed), *texts)))  # noqa: S311 - a fixed choice, not a secret


def cluster(text: str) -> int:
    """A number for the rows of one source, by its text: exact as a float, which scores hold it as."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16)


def verified(question: str, choices: Sequence[str], gold: int, seed: int = 0) -> tuple[str, int]:
    """An answer to a question, and whether it is right: the balanced true/false form of Burns et al. (2312.09390, A.1).

    A coin decides between the right choice and one of the others, all of them equally likely.

    Args:
        question: what the choices answer.
        choices: two or more.
        gold: index of the right one.
        seed: of the coin and the distractor.

    Returns:
        The answer, and 1 where it is right, else 0.
    """
    rng = draws(seed, "verify", question, *choices)
    right = rng.random() < 0.5
    wrong = [i for i in range(len(choices)) if i != gold]
    return choices[gold if right else rng.choice(wrong)], int(right)


def paired(question: str, better: str, worse: str, seed: int = 0) -> tuple[tuple[str, str], int]:
    """Two answers on sides that a coin decides, and the side of the better one, 0 or 1."""
    side = int(draws(seed, "pair", question, better, worse).random() < 0.5)
    return ((worse, better) if side else (better, worse)), side


def shuffled(question: str, choices: Sequence[str], seed: int = 0) -> list[int]:
    """An order of the choices: the place in `choices` of each that is shown."""
    order = list(range(len(choices)))
    draws(seed, "shuffle", question, *choices).shuffle(order)
    return order
