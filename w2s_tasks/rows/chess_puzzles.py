"""Lichess's chess puzzles as a choice among the legal moves: which move is best?

The hub's `Lichess/chess-puzzles` has millions of rows; a folder ``lichess/chess_puzzles`` with its columns does as well.
A puzzle's first move is the opponent's, the second is the answer. python-chess plays the one and checks the other.

Moves are written in SAN without the marks of check and mate: these say what a player has to see (of 1,000 puzzles 68 % are
answered by a check, and any check at random would be right in 34 % of them, any legal move in 4 %).
"""

from __future__ import annotations

import functools
import logging
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import datasets

from w2s_tasks.errors import UserError
from w2s_tasks.rows.forms import cluster, shuffled
from w2s_tasks.rows.sources import Splits, digest, load, local_folder

log = logging.getLogger(__name__)

Doc = dict[str, Any]

LOCAL, HUB = "lichess/chess_puzzles", "Lichess/chess-puzzles"
ROWS = 10_000
"""Puzzles that are taken where more are to be had: finding the legal moves of so many takes some eight seconds."""
SHOTS = 256
"""Training rows that shots are drawn from: lm_eval copies them all each time it builds a task."""
GAME = re.compile(r"lichess\.org/(\w{8})")
MARKS = "+#"


class NoPuzzleError(ValueError):
    """Why a row is no puzzle by the rules."""


def rules() -> Any:
    """The module ``chess``.

    Raises:
        UserError: it is not installed.
    """
    try:
        import chess
    except ModuleNotFoundError as error:
        raise UserError("chess puzzles need the package chess (python-chess): pip install 'w2s-harness[tasks]'.") from error
    return chess


# ---- one puzzle -------------------------------------------------------------------------------------------------------


def _played(fen: str, moves: str) -> tuple[Any, str, Any]:
    """The position to solve, the opponent's move that led to it ("19. Rxa7"), and the answer."""
    chess = rules()
    try:
        board = chess.Board(fen)
        opponent, best = (chess.Move.from_uci(move) for move in moves.split()[:2])
    except ValueError as error:
        raise NoPuzzleError("a position or moves that can't be read") from error
    if not board.is_valid():
        raise NoPuzzleError("a position that no game leads to")
    if opponent not in board.legal_moves:
        raise NoPuzzleError("an opponent's move that is not legal")
    last = f"{board.fullmove_number}{'.' if board.turn else '...'} {board.san(opponent)}"
    board.push(opponent)
    if best not in board.legal_moves:
        raise NoPuzzleError("an answer that is not legal")
    return board, last, best


def _choices(board: Any, best: Any) -> tuple[list[str], int]:
    """The legal moves in an order that tells nothing, and the place of the best one.

    Where several moves mate at once each of them is right, and a task has one right choice: the others are left out.
    """
    texts = {move: board.san(move) for move in board.legal_moves}
    mates = {move for move, text in texts.items() if text.endswith("#")}
    if mates and best not in mates:
        raise NoPuzzleError("a mate at once that is not the answer")
    shown = sorted(text.rstrip(MARKS) for move, text in texts.items() if move == best or move not in mates)
    if len(shown) < 2:
        raise NoPuzzleError("a single move to choose from")
    choices = [shown[place] for place in shuffled(board.fen(), shown)]
    return choices, choices.index(texts[best].rstrip(MARKS))


def _pieces(board: Any, white: bool) -> str:
    """A side's pieces and their squares as problems are printed: "Kg1 Qd1 Ra1 Rf1 a2 b2"."""
    kinds = "KQRBNP"
    placed = sorted(
        (kinds.index(piece.symbol().upper()), rules().square_name(square))
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
        "w2s_group": cluster(game),
    }


# ---- all puzzles ------------------------------------------------------------------------------------------------------


def _games(data: datasets.Dataset) -> list[str]:
    """The game of each puzzle, or its position where no column tells the game."""
    names: Sequence[str | None] = [None] * len(data)
    if "GameId" in data.column_names:
        names = data["GameId"][:]
    elif "GameUrl" in data.column_names:
        found = (GAME.search(url or "") for url in data["GameUrl"][:])
        names = [match[1] if match else None for match in found]
    return [name or str(fen) for name, fen in zip(names, data["FEN"][:], strict=True)]


def _sample(data: datasets.Dataset, rows: int) -> Iterable[tuple[Doc, str]]:
    """The first `rows` puzzles and their games in the order of the games' hashes: the same whatever order they came in."""
    games, positions = _games(data), data["FEN"][:]
    chosen = sorted(range(len(data)), key=lambda i: (digest(games[i]), str(positions[i])))[:rows]
    return zip(data.select(chosen), (games[i] for i in chosen), strict=True)


def _distinct_rows(puzzles: Iterable[tuple[Doc, str]]) -> tuple[list[Doc], Counter[str]]:
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


@functools.cache
def _splits(source: str, folder: Path | None, rows: int) -> Splits:
    data = datasets.concatenate_datasets(list(load(source).values()))
    missing = {"FEN", "Moves"} - set(data.column_names)
    if missing:
        raise UserError(f"{folder or source}: no column {' and '.join(sorted(missing))}; the hub's {HUB} has FEN and Moves.")
    found, left_out = _distinct_rows(_sample(data, rows))
    if left_out:
        reasons = ", ".join(f"{n} with {reason}" for reason, n in left_out.most_common())
        log.warning("%s: %d of %d puzzles left out: %s", folder or source, left_out.total(), min(rows, len(data)), reasons)
    by_split: dict[str, list[Doc]] = {"train": [], "validation": []}
    for row in sorted(found, key=lambda row: digest(row["fen"])):
        by_split["validation" if int(digest(row["game"]), 16) % 10 < 3 else "train"].append(row)
    if not all(by_split.values()):
        raise UserError(
            f"{folder or source}: {len(found)} puzzles of {len(data)} rows are good by the rules, too few to have some for "
            "training and some for evaluation."
        )
    return {split: datasets.Dataset.from_list(part) for split, part in by_split.items()}


def puzzles(rows: int = ROWS, **_: Any) -> Splits:
    """Puzzles of Lichess: which of the legal moves is best?

    Columns fen (with the opponent's move played), position (pieces and their squares), last (that move), turn, choices (the
    legal moves), label, rating, themes, game, w2s_group. By its game's hash a puzzle is in train (seven in ten) or
    validation; rows follow their positions' hashes, so that the first n are a sample.

    Args:
        rows: puzzles to take at most, the same whatever order they came in.

    Raises:
        MissingDataError: neither the folder nor the hub is to be had.
        UserError: python-chess, a column or the puzzles are missing.
    """
    if not isinstance(rows, int) or rows < 1:
        raise UserError(f"metadata: rows must be a number from 1 on, got {rows!r}")
    rules()
    source = LOCAL if local_folder(LOCAL) else HUB
    return _splits(source, local_folder(source), rows)


def shots(docs: datasets.Dataset) -> list[Doc]:
    """The training rows that shots are drawn from: the first ones, which are a sample."""
    return list(docs.select(range(min(SHOTS, len(docs)))))
