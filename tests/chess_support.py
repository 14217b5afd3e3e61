"""Made-up chess puzzles with the hub's columns: legal play at random, which is no good play but keeps the rules."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import chess


def puzzles(n: int, seed: int = 0, moves: int | None = None) -> list[dict[str, Any]]:
    """Puzzles of n games, with `moves` legal moves to choose from each where that is given: 20 are common at the start."""
    rng = random.Random(seed)
    found: list[dict[str, Any]] = []
    while len(found) < n:
        puzzle = _puzzle(rng, f"game{len(found):04}", plies=rng.randint(2, 40) if moves is None else rng.randint(1, 2))
        if puzzle and (moves is None or _legal_moves(puzzle) == moves):
            found.append(puzzle)
    return found


def _puzzle(rng: random.Random, game: str, plies: int) -> dict[str, Any] | None:
    board = chess.Board()
    for _ in range(plies):
        board.push(rng.choice(list(board.legal_moves)))
        if board.legal_moves.count() < 2:
            return None
    fen, opponent = board.fen(), rng.choice(list(board.legal_moves))
    board.push(opponent)
    mates = [move for move in board.legal_moves if "#" in board.san(move)]
    if board.legal_moves.count() - max(0, len(mates) - 1) < 2:
        return None
    return row(fen, f"{opponent} {rng.choice(mates or list(board.legal_moves))}", game)


def _legal_moves(puzzle: dict[str, Any]) -> int:
    board = chess.Board(puzzle["FEN"])
    board.push_uci(puzzle["Moves"].split()[0])
    return board.legal_moves.count()


def row(fen: str, moves: str, game: str, **more: Any) -> dict[str, Any]:
    """A row of the hub's set."""
    url = f"https://lichess.org/{game}/black#12"
    return {"PuzzleId": game[3:], "FEN": fen, "Moves": moves, "Rating": 1500, "Themes": "short", "GameUrl": url, **more}


def write(root: Path, rows: list[dict[str, Any]], name: str = "lichess/chess_puzzles") -> Path:
    """Write rows as a data set below `root`, and return `root`."""
    path = root / name / "train.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return root
