"""Documents, shots and scores of the tasks `chess_puzzles`."""

from __future__ import annotations

import functools
import hashlib
import importlib
import logging
import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np


if TYPE_CHECKING:
    import chess
    import datasets


eval_logger = logging.getLogger(__name__)

Doc = dict[str, Any]
Item = tuple[int, float]
"""(game, value of the row)"""

HUB = "Lichess/chess-puzzles"
SHOTS = 256
"""Training rows that shots are drawn from."""
SEED = 1234  # lm_eval's default few-shot seed
GAME = re.compile(r"lichess\.org/(\w{8})")


@functools.cache
def _chess() -> Any:
    """python-chess, imported where it is needed: tasks are listed without it."""
    try:
        return importlib.import_module("chess")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "chess_puzzles needs the package chess (python-chess): pip install chess"
        ) from error


# ---- one puzzle


class NoPuzzleError(ValueError):
    """Why a row is no puzzle by the rules."""


def digest(text: str) -> str:
    """Hex sha256 of a text: an order that depends on nothing else."""
    return hashlib.sha256(text.encode()).hexdigest()


def _shuffled(fen: str, choices: Sequence[str]) -> list[str]:
    """The choices in an order that the position and they decide."""
    order = list(choices)
    random.Random("\x1f".join(("0", "shuffle", fen, *choices))).shuffle(order)
    return order


def _played(fen: str, moves: str) -> tuple[chess.Board, str, chess.Move]:
    """The position to solve, the opponent's move that led to it, and the answer."""
    try:
        board = _chess().Board(fen)
        opponent, best = (_chess().Move.from_uci(move) for move in moves.split()[:2])
    except ValueError as error:
        raise NoPuzzleError("a position or moves that can't be read") from error
    if not board.is_valid():
        raise NoPuzzleError("a position that no game leads to")
    if opponent not in board.legal_moves:
        raise NoPuzzleError("an opponent's move that is not legal")
    dots = "." if board.turn else "..."
    last = f"{board.fullmove_number}{dots} {board.san(opponent)}"
    board.push(opponent)
    if best not in board.legal_moves:
        raise NoPuzzleError("an answer that is not legal")
    return board, last, best


def _choices(board: chess.Board, best: chess.Move) -> tuple[list[str], int]:
    """The legal moves in an order that tells nothing, without marks of check and mate, and the best one's place.

    Where several moves mate at once each of them is right; all but the answer are left out.
    """
    texts = {move: board.san(move) for move in board.legal_moves}
    mates = {move for move, text in texts.items() if text.endswith("#")}
    if mates and best not in mates:
        raise NoPuzzleError("a mate at once that is not the answer")
    shown = sorted(
        text.rstrip("+#")
        for move, text in texts.items()
        if move == best or move not in mates
    )
    if len(shown) < 2:
        raise NoPuzzleError("a single move to choose from")
    choices = _shuffled(board.fen(), shown)
    return choices, choices.index(texts[best].rstrip("+#"))


def _pieces(board: chess.Board, white: bool) -> str:
    """A side's pieces and their squares as problems are printed: "Kg1 Qd1 Ra1 Rf1 a2 b2"."""
    kinds = "KQRBNP"
    placed = sorted(
        (kinds.index(piece.symbol().upper()), _chess().square_name(square))
        for square, piece in board.piece_map().items()
        if piece.color == white
    )
    return " ".join(f"{kinds[kind].rstrip('P')}{square}" for kind, square in placed)


def _row(puzzle: Doc, game: str) -> Doc:
    board, last, best = _played(str(puzzle["FEN"]), str(puzzle["Moves"]))
    choices, label = _choices(board, best)
    return {
        "puzzle": puzzle.get("PuzzleId"),
        "fen": board.fen(),
        "position": f"White: {_pieces(board, True)}\nBlack: {_pieces(board, False)}",
        "last": last,
        "turn": "White" if board.turn else "Black",
        "choices": choices,
        "label": label,
        "rating": puzzle.get("Rating"),
        "themes": puzzle.get("Themes"),
        "game": game,
        "group": int(digest(game)[:12], 16),
    }


# ---- all puzzles


def _games(data: datasets.Dataset) -> list[str]:
    """The game of each puzzle, or its position where the address tells none."""
    found = (GAME.search(url or "") for url in data["GameUrl"][:])
    return [
        match[1] if match else str(fen)
        for match, fen in zip(found, data["FEN"][:], strict=True)
    ]


def _sample(data: datasets.Dataset, rows: int) -> Iterable[tuple[Doc, str]]:
    """The first puzzles in the order of their games' hashes: the same whatever order they came in."""
    games, positions = _games(data), data["FEN"][:]
    order = sorted(
        range(len(data)), key=lambda i: (digest(games[i]), str(positions[i]))
    )
    chosen = order[:rows]
    return zip(data.select(chosen), (games[i] for i in chosen), strict=True)


def _distinct_rows(
    puzzles: Iterable[tuple[Doc, str]],
) -> tuple[list[Doc], Counter[str]]:
    """The rows of puzzles, each position once, and how many were left out for which reason."""
    rows: dict[str, Doc] = {}
    left_out: Counter[str] = Counter()
    for puzzle, game in puzzles:
        try:
            row = _row(puzzle, game)
        except NoPuzzleError as error:
            left_out[str(error)] += 1
            continue
        position = " ".join(row["fen"].split()[:4])  # without the counters of moves
        if position in rows:
            left_out["a position that another puzzle has"] += 1
        rows.setdefault(position, row)
    return list(rows.values()), left_out


def puzzles(rows: int = 10_000, **_: Any) -> dict[str, datasets.Dataset]:
    """`rows` puzzles in train (seven in ten, by their game's hash) and validation."""
    import datasets

    data = datasets.load_dataset(HUB, split="train")
    found, left_out = _distinct_rows(_sample(data, rows))
    if left_out:
        eval_logger.warning("%s: puzzles left out: %s", HUB, dict(left_out))
    splits: dict[str, list[Doc]] = {"train": [], "validation": []}
    for row in sorted(found, key=lambda row: digest(row["fen"])):
        held_out = int(digest(row["game"]), 16) % 10 < 3
        splits["validation" if held_out else "train"].append(row)
    return {split: datasets.Dataset.from_list(part) for split, part in splits.items()}


def shots(docs: datasets.Dataset) -> list[Doc]:
    """Fixed shots: the first n of a seeded order serve every document."""
    found = list(docs.select(range(min(SHOTS, len(docs)))))
    random.Random(SEED).shuffle(found)
    return found


# ---- the choice


def _with_errors(doc: Doc, values: dict[str, float]) -> dict[str, Item]:
    return {
        key: (int(doc["group"]), value)
        for name, value in values.items()
        for key in (name, f"{name}_stderr")
    }


def choice(doc: Doc, results: Sequence[tuple[float, bool]]) -> dict[str, Item]:
    """Accuracy and reciprocal rank; of equal choices the first counts as chosen."""
    logliks, right = np.array([loglik for loglik, _ in results]), int(doc["label"])
    if np.isnan(logliks).any():
        return _with_errors(doc, {"acc": math.nan, "mrr": math.nan})
    if (logliks == -math.inf).all():  # no answer
        return _with_errors(doc, {"acc": 0.0, "mrr": 1 / len(logliks)})
    alike = float((logliks == logliks[right]).sum())
    rank = 1 + float((logliks > logliks[right]).sum()) + (alike - 1) / 2
    return _with_errors(doc, {"acc": float(logliks.argmax() == right), "mrr": 1 / rank})


# ---- the reply

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
    text = reply.replace("’", "'").replace("‘", "'")
    text = re.sub(r"[\"“”«»*`_]|(?<!\w)'|'(?!\w)", "", text)
    return NUMBER.sub("", text).strip()


def strict(reply: str) -> str | None:
    """The move that a reply's first line is, but for its number, marks, Markdown and the prompt's cue."""
    line = _plain(reply).partition("\n")[0].strip()
    cue = r"(?i:(?:(?:best )?move|answer)\s*:\s*)?"
    found = re.fullmatch(rf"{cue}({MOVE}){MARK}\s?\.?", line)
    return found[1] if found else None


def lenient(reply: str, board: chess.Board) -> str | None:
    """What the reply begins with, what it states, or the only move that it mentions and that can be played."""
    plain = ECHO.split(_plain(reply))[0]
    opening = re.match(rf"\W*({MOVE}){MARK}", plain)
    if opening and not TAKEN_BACK.match(plain, opening.end()):
        return opening[1]
    sentences = SENTENCE_ENDS.split(plain)
    stated = [move for sentence in sentences for move in _stated(sentence)]
    mentioned = [move for sentence in sentences for move in _mentioned(sentence)]
    return _single(board, stated or mentioned)


def _stated(sentence: str) -> Iterator[str]:
    for found in STATED.finditer(sentence):
        left_open = OPEN.search(sentence, 0, found.start())
        if not left_open and not TAKEN_BACK.match(sentence, found.end()):
            yield found[1]


def _mentioned(sentence: str) -> Iterator[str]:
    for found in re.finditer(rf"({MOVE}){MARK}", sentence):
        before = sentence[: found.start()]
        left_open = (len(found[1]) == 2 and SQUARE.search(before)) or OPEN.search(
            before
        )
        if not left_open and not TAKEN_BACK.match(sentence, found.end()):
            yield found[1]


def _single(board: chess.Board, moves: Sequence[str]) -> str | None:
    """The one move that is named, under whatever names; one that can't be played only where no other is."""
    playable = {move: text for text in moves if (move := _legal(board, text))}
    found = list(playable.values()) or sorted(set(moves))
    return found[0] if len(found) == 1 else None


def _legal(board: chess.Board, text: str) -> chess.Move | None:
    """The legal move of that name, or None where there is none or there are several."""
    try:
        return board.parse_san(text)
    except ValueError:
        return None


def _mates(board: chess.Board, move: chess.Move) -> bool:
    board.push(move)
    mate = board.is_checkmate()
    board.pop()
    return mate


def _right(board: chess.Board, answer: chess.Move, text: str | None) -> float:
    """1 for the answer or, where that mates, any mate."""
    move = _legal(board, text) if text else None
    if move is None:
        return 0.0
    mate = _mates(board, answer) and _mates(board, move)
    return float(move == answer or mate)


def reply(doc: Doc, results: Sequence[str]) -> dict[str, Item]:
    """What a reply names, read strictly and leniently, and judged by the rules."""
    board = _chess().Board(doc["fen"])
    answer = board.parse_san(doc["choices"][doc["label"]])
    named, exactly = lenient(results[0], board), strict(results[0])
    values = {
        "acc": _right(board, answer, named),
        "acc_strict": _right(board, answer, exactly),
        "unparsed": float(named is None),
        "unparsed_strict": float(exactly is None),
        "illegal": float(named is not None and _legal(board, named) is None),
    }
    return _with_errors(doc, values)


# ---- aggregation


def mean(items: Sequence[Item]) -> float:
    """Mean over rows."""
    return float(np.mean([value for _, value in items]))


def mean_stderr(items: Sequence[Item]) -> float:
    """Its standard error, clustered by game (CR2)."""
    values = np.array([value for _, value in items], dtype=float)
    _, index, sizes = np.unique(
        [group for group, _ in items], return_inverse=True, return_counts=True
    )
    if len(sizes) < 2:
        return math.nan
    sums = np.bincount(index, weights=values - values.mean())
    return float(math.sqrt((sums**2 / (1 - sizes / len(values))).sum()) / len(values))
