"""Scores of chess moves: chosen among the legal ones by log-likelihood, or named in a reply.

A move is one event however long its text, and no legal move but castling (O-O, O-O-O) begins another: plain log-likelihoods
rank moves, and dividing by the length would favour long ones. So the score of the choice is ``acc``.

A reply is read strictly (its first line is a move and nothing else) and leniently (it names one move, wherever), in SAN,
UCI or long notation, and judged by the rules on the board: right is the puzzle's answer or, where that mates, any move that
mates. ``unparsed`` counts replies that name no move or several, ``illegal`` those whose move can't be played.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from w2s_tasks.rows.chess_puzzles import rules
from w2s_tasks.scoring.free_text import Item, reciprocal_rank
from w2s_tasks.scoring.generated import UNPARSED, Answered, NoReply
from w2s_tasks.scoring.metrics import Results
from w2s_tasks.scoring.no_answer import is_none

Doc = dict[str, Any]

WRONG, RIGHT = 0, 1
"""What a reply's move is: replies that name a wrong move are alike here, whichever it is."""

# ---- the choice -------------------------------------------------------------------------------------------------------


def choice(doc: Doc, results: Results) -> dict[str, Any]:
    """``process_results``: columns choices, label, w2s_group; accuracy and mean reciprocal rank."""
    logliks, right = np.array([loglik for loglik, _ in results]), int(doc["label"])
    if np.isnan(logliks).any():
        acc = reciprocal = math.nan
    elif is_none(logliks):
        acc, reciprocal = 0.0, 1 / len(logliks)
    else:
        # Of equal choices the first counts as chosen, as in lm_eval.
        acc, reciprocal = float(logliks.argmax() == right), reciprocal_rank(logliks, right)
    return _with_errors({"acc": (int(doc["w2s_group"]), acc), "mrr": (int(doc["w2s_group"]), reciprocal)})


def _with_errors(items: dict[str, Any]) -> dict[str, Any]:
    return {key: item for name, item in items.items() for key in (name, f"{name}_stderr")}


# ---- the reply --------------------------------------------------------------------------------------------------------

MOVE = r"(?<![\w-])(?:[O0]-[O0](?:-[O0])?|[KQRBN]?[a-h]?[1-8]?[x-]?[a-h][1-8](?:=?[QRBNqrbn])?)(?!-?\w)"
MARK = r"[+#]{0,2}(?:\s?!{1,2})?"
SQUARE = re.compile(r"\b(?:on|at|to|from|the|square|of|and)\s+$", re.IGNORECASE)
"""What makes "e4" a square that is spoken of and no pawn's move."""
NUMBER = re.compile(rf"(?<![\w.])\d{{1,3}}\s*(?:\.{{1,3}}|…)\s*(?={MOVE})")
ECHO = re.compile(r"\n\s*(?:FEN|White|Black|Last move|Best move)\s*:")
"""Where a reply goes on with a puzzle of its own, after the prompt's examples."""
SENTENCE_ENDS = re.compile(r"(?<=[.!?])\s+|\n+")
STATED = re.compile(
    rf"(?i:\b(?:move|answer|solution|choice)\b(?:\s+[\w']+){{0,6}}?\s*(?::|\bis|\bwould be|\bshould be)\s*:?\s*"
    rf"(?:(?:to\s+)?play(?:ing)?\s+)?|\b(?:play|plays|playing|choose|pick|recommend|suggest|go with)\s+)({MOVE})"
)
OPEN = re.compile(
    r"\b(?:not|never|no|avoid|after|if|when|instead of|rather than|than|allows?|stops?|prevents?|threatens?|threatening"
    r"|against)\b|n't\b",
    re.IGNORECASE,
)
"""Words before a move that leave it open, deny it or give it to the other side."""
TAKEN_BACK = re.compile(
    r"\s*\?|\s*(?:is|was|looks|seems|would be|might be|may be|could be)\s+(?:\w+\s+){0,2}?"
    r"(?:not|bad|wrong|weak|illegal|impossible|losing|mistake|blunder)\b"
    r"|\s*(?:loses|fails|blunders|isn't|wasn't|doesn't|won't|wouldn't|can't|cannot)\b",
    re.IGNORECASE,
)
"""What after a move leaves nothing of it: "Nf3 is a mistake", "Nf3??"."""


def _plain(reply: str) -> str:
    """Without quotes, Markdown and the numbers of moves; line breaks stay."""
    text = re.sub(r"[\"“”«»*`_]|(?<!\w)'|'(?!\w)", "", reply.replace("’", "'").replace("‘", "'"))
    return NUMBER.sub("", text).strip()


def strict(reply: str, board: Any) -> str | None:
    """The move that a reply's first line is, but for its number, marks, Markdown and the prompt's cue.

    Args:
        reply: the model's text.
        board: the position, which the strict reading does not need.

    Returns:
        The move as it stands there, or None.
    """
    line = _plain(reply).partition("\n")[0].strip()
    found = re.fullmatch(rf"(?i:(?:(?:best )?move|answer)\s*:\s*)?({MOVE}){MARK}\s?\.?", line)
    return found[1] if found else None


def lenient(reply: str, board: Any) -> str | None:
    """The move that a reply names, if it is one.

    In this order: what `strict` reads; what the reply begins with; what it states ("The best move is Nf3"); the only move
    that it mentions, those left aside that can't be played.

    Args:
        reply: the model's text.
        board: the position.

    Returns:
        The move as it stands there, or None.
    """
    plain = ECHO.split(_plain(reply))[0]
    opening = re.match(rf"\W*({MOVE}){MARK}", plain)
    if opening and not TAKEN_BACK.match(plain, opening.end()):
        return opening[1]
    sentences = SENTENCE_ENDS.split(plain)
    return _single(board, [s for s in sentences for s in _stated(s)] or [m for s in sentences for m in _mentioned(s)])


def _stated(sentence: str) -> Iterator[str]:
    for found in STATED.finditer(sentence):
        if not OPEN.search(sentence, 0, found.start()) and not TAKEN_BACK.match(sentence, found.end()):
            yield found[1]


def _mentioned(sentence: str) -> Iterator[str]:
    for found in re.finditer(rf"({MOVE}){MARK}", sentence):
        before = sentence[: found.start()]
        square = len(found[1]) == 2 and SQUARE.search(before)
        if not square and not OPEN.search(before) and not TAKEN_BACK.match(sentence, found.end()):
            yield found[1]


def _single(board: Any, moves: Sequence[str]) -> str | None:
    """The one move that is named, under whatever names; one that can't be played only where no other is."""
    playable = {move: text for text in moves if (move := _legal(board, text))}
    found = list(playable.values()) or sorted(set(moves))
    return found[0] if len(found) == 1 else None


def _legal(board: Any, text: str) -> Any:
    """The legal move of that name, or None where there is none or there are several."""
    try:
        return board.parse_san(text)
    except ValueError:
        return None


def _mates(board: Any, move: Any) -> bool:
    board.push(move)
    mate = bool(board.is_checkmate())
    board.pop()
    return mate


def _judged(board: Any, answer: Any, text: str | None) -> int:
    if text is None:
        return UNPARSED
    move = _legal(board, text)
    if move is None:
        return WRONG
    return RIGHT if move == answer or (_mates(board, answer) and _mates(board, move)) else WRONG


def reply(doc: Doc, results: Sequence[str]) -> dict[str, Any]:
    """``process_results`` of generated text: columns fen, choices, label, w2s_group."""
    text, group = results[0], int(doc["w2s_group"])
    if isinstance(text, NoReply):
        return {}
    board = rules().Board(doc["fen"])
    answer = board.parse_san(doc["choices"][doc["label"]])
    judged = functools.partial(_judged, board, answer)
    named = lenient(text, board)
    item: Answered = (RIGHT, judged(named), judged(strict(text, board)), group)
    illegal: Item = (group, float(named is not None and _legal(board, named) is None))
    scores = dict.fromkeys(("acc", "acc_strict", "unparsed", "unparsed_strict"), item)
    return _with_errors({**scores, "illegal": illegal})
