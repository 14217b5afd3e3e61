"""Multiple choice from the log-probabilities that come with a generated answer.

A chat endpoint scores no prompt, but it tells the likeliest tokens at each position it writes. The probability of a choice
is the summed probability of the tokens that begin this choice and no other ('Yes', ' yes', '"yes', 'Y'), at the first
position where the choices diverge. Tokens that several choices begin with (a quote, white space, a shared first word) are a
lead-in: where greedy decoding takes one, scoring goes on at the next position, times the lead-in's probability.

A choice that is not among the listed tokens gets a floor: the tightest bound that the answer itself gives, so that it never
overtakes a choice that is listed. `Scores.floored` tells which.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from w2s_tasks.errors import UserError

MARKS = " \t\r\n\"'“”‘’«»*_`([{"
"""What may stand before an answer without being part of it: white space, quotes, Markdown emphasis, brackets."""
ENDS = MARKS + ".,;:!)]}"
LEAST = 1e-9
"""The least probability that is taken to be left outside the listed tokens: below it lies the rounding of their sum."""
UNTOLD = -9999.0
"""At or below it: what servers put where a token can't come (llama.cpp) or they don't tell (OpenAI, vLLM)."""


@dataclass(frozen=True)
class Position:
    """One generated token, its log-probability, and the likeliest tokens at its place, each with its log-probability."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Scores:
    """Log-probability of each choice; which of them are floors; the choice that greedy decoding began, if any.

    ``unfinished``: the answer ended inside a lead-in, so a longer one would tell more.
    """

    loglik: tuple[float, ...]
    floored: tuple[bool, ...]
    greedy: int | None
    unfinished: bool


def joined(first: Sequence[Position], second: Sequence[Position]) -> tuple[Position, ...]:
    """Positions of one answer, asked twice, with the tokens that either lists; up to where the two differ."""
    same = itertools.takewhile(lambda pair: pair[0].token == pair[1].token, zip(first, second, strict=False))
    return tuple(replace(p, top=(*p.top, *(t for t in q.top if t[0] not in dict(p.top)))) for p, q in same)


def _cores(choices: Sequence[str], level: int) -> list[str]:
    """Choices as they are compared: 0 without outer white space, 1 also without marks, 2 also without case."""
    if level == 0:
        return [c.strip() for c in choices]
    cores = [c.lstrip(MARKS).rstrip(ENDS) for c in choices]
    return cores if level == 1 else [c.casefold() for c in cores]


def _first_word(text: str) -> str:
    return next((w for w in text.split() if w), "")


def _shared_words(cores: Sequence[str]) -> str:
    """The whole words that all choices begin with."""
    columns = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*cores, strict=False))
    shared = "".join(column[0] for column in columns)
    return shared[: shared.rfind(" ") + 1]


def _alike(cores: Sequence[str]) -> tuple[int, int] | None:
    """Two choices that can't be told apart where the choices diverge, or None."""
    lead = len(_shared_words(cores))
    for (i, a), (j, b) in itertools.combinations(enumerate(cores), 2):
        if a.startswith(b) or b.startswith(a) or _first_word(a[lead:]) == _first_word(b[lead:]):
            return i, j
    return None


@dataclass(frozen=True)
class ChoiceSet:
    """The choices of a document, ready to be recognised in generated text."""

    cores: tuple[str, ...]
    level: int
    has_lead: bool
    """All choices begin with the same words or with a quote, so that the first token never tells them apart."""

    @classmethod
    def of(cls, choices: Sequence[str]) -> ChoiceSet:
        """Prepare the choices of a document (continuations as lm_eval renders them).

        Raises:
            UserError: two choices that can't be told apart where they diverge; the message names them.
        """
        return _prepared(tuple(choices))

    def compatible(self, text: str) -> list[int]:
        """Which choices the text can be the beginning of, or begins with; all of them for a mere lead-in."""
        text = _joined(text).lstrip(MARKS if self.level else None)
        text = text.casefold() if self.level == 2 else text
        data = text.encode("utf-8", "surrogateescape")
        return [i for i, core in enumerate(self.cores) if core.encode().startswith(data) or _begins_with(text, core)]

    def beginnings(self) -> list[str]:
        """How the parts that tell the choices apart may be written: with a blank or without, in the usual cases."""
        lead = len(_shared_words(self.cores))
        parts = [core[lead:] for core in self.cores]
        cased = [w for p in parts for w in ((p, p.capitalize(), p.upper()) if self.level == 2 else (p,))]
        return list(dict.fromkeys(f"{blank}{word}" for word in cased for blank in ("", " ")))

    def score(self, positions: Sequence[Position]) -> Scores:
        """Score all choices from the positions of one answer, generated greedily."""
        mass = [0.0] * len(self.cores)
        path, path_logprob, floor, unfinished = "", 0.0, math.log(LEAST), True
        greedy: int | None = None
        for position in positions:
            for token, logprob in _listed(position):
                found = self.compatible(path + token)
                if len(found) == 1:
                    mass[found[0]] += math.exp(path_logprob + logprob)
            floor = path_logprob + _bound(position)
            path, path_logprob = path + position.token, path_logprob + position.logprob
            found = self.compatible(path)
            if len(found) < 2:
                greedy, unfinished = (found[0] if found else None), False
                break
        listed = [math.log(m) if m > 0 else math.nan for m in mass]
        floor = min([floor, *(x for x in listed if not math.isnan(x))])
        floored = tuple(math.isnan(x) for x in listed)
        return Scores(tuple(floor if f else x for x, f in zip(listed, floored, strict=True)), floored, greedy, unfinished)


@functools.lru_cache(maxsize=4096)
def _prepared(choices: tuple[str, ...]) -> ChoiceSet:
    for level in (2, 1, 0):
        cores = _cores(choices, level)
        if all(cores) and _alike(cores) is None:
            quoted = level > 0 and all(c.strip()[:1] in MARKS for c in choices)
            return ChoiceSet(tuple(cores), level, quoted or bool(_shared_words(cores)))
    cores = _cores(choices, 0)
    first, second = _alike(cores) or (0, 0)
    if not all(cores) or first == second:
        raise UserError(f"an empty choice among {list(choices)!r}")
    raise UserError(f"{choices[first].strip()!r} and {choices[second].strip()!r} begin alike")


def _joined(text: str) -> str:
    """The text with the bytes of a character that came in pieces (surrogates, see `replies.token_text`) made one."""
    return text if text.isascii() else text.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")


def _begins_with(text: str, core: str) -> bool:
    """Whether the text is the choice and more, where the choice ends at a word's end."""
    return text.startswith(core) and (len(text) == len(core) or not text[len(core)].isalnum() or not core[-1].isalnum())


def _listed(position: Position) -> list[tuple[str, float]]:
    """The listed tokens with a value, the generated one among them: some servers list it only by itself."""
    listed = [(token, logprob) for token, logprob in position.top if logprob > UNTOLD]
    if any(token == position.token for token, _ in listed):
        return listed
    return [*listed, (position.token, position.logprob)]


def _bound(position: Position) -> float:
    """Log of the highest probability that a token which is not listed can have."""
    logprobs = [logprob for _, logprob in _listed(position)]
    left = 1.0 - sum(math.exp(x) for x in logprobs)
    return min([*logprobs, math.log(max(left, LEAST))])
