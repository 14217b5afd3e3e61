"""Chess puzzles: rows by the rules of chess, moves read from replies, and scores that our reader and lm_eval agree on."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chess
import numpy as np
import pytest
from chess_support import puzzles, row, write
from lm_eval.api.model import LM
from test_public_sets import lm_eval

from w2s_tasks import TASK_PATH
from w2s_tasks.errors import MissingDataError, UserError
from w2s_tasks.plugin.manager import W2STaskManager
from w2s_tasks.results.diagnostics import confusion
from w2s_tasks.results.read import read_evaluation
from w2s_tasks.rows import chess_puzzles
from w2s_tasks.rows.readable import unreadable
from w2s_tasks.scoring import chess_moves
from w2s_tasks.scoring.generated import UNPARSED, NoReply

CASTLING = ("r3k2r/p6p/8/8/8/8/P6P/R3K2R b KQkq - 0 1", "h7h6 e1g1")
PROMOTION = ("8/P6k/8/8/8/8/7K/8 b - - 0 1", "h7g7 a7a8q")
EN_PASSANT = ("4k3/3p4/8/4P3/8/8/8/4K3 b - - 0 1", "d7d5 e5d6")
EVASION = ("r3k3/8/8/8/8/8/3P4/4K3 b - - 0 1", "a8a1 e1f2")
TWO_MATES = ("6k1/8/6K1/8/8/8/8/RR6 b - - 0 1", "g8h8 a1a8")
TWO_ROOKS = ("6k1/8/8/8/8/8/8/R3K2R b - - 0 1", "g8f7 h1h7")
FILLER, MANY = puzzles(60), puzzles(100, seed=3)

Doc = dict[str, Any]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[Doc]], Path]:
    """Rows become the data set."""

    def put(rows: list[Doc]) -> Path:
        monkeypatch.setenv("W2S_DATA", str(write(tmp_path, rows)))
        return tmp_path

    return put


def made(fen: str, moves: str) -> Doc:
    """The row of one puzzle."""
    return chess_puzzles._row(row(fen, moves, "abcdefgh"), "abcdefgh")


def best(doc: Doc) -> str:
    """Its answer."""
    return str(doc["choices"][doc["label"]])


# ---- rules ------------------------------------------------------------------------------------------------------------


def test_the_opponents_move_is_played_and_the_position_said():
    doc = made(*CASTLING)
    assert doc["fen"] == "r3k2r/p7/7p/8/8/8/P6P/R3K2R w KQkq - 0 2"
    assert doc["position"] == "White: Ke1 Ra1 Rh1 a2 h2\nBlack: Ke8 Ra8 Rh8 a7 h6"
    assert (doc["last"], doc["turn"]) == ("1... h6", "White")


def test_castling_promotion_and_en_passant_are_among_the_choices():
    castling, promotion, passing = made(*CASTLING), made(*PROMOTION), made(*EN_PASSANT)
    assert {"O-O", "O-O-O"} <= set(castling["choices"])
    assert best(castling) == "O-O"
    assert {"a8=Q", "a8=R", "a8=B", "a8=N"} <= set(promotion["choices"])
    assert best(promotion) == "a8=Q"
    assert best(passing) == "exd6"


def test_a_side_in_check_can_only_leave_it():
    doc = made(*EVASION)
    assert sorted(doc["choices"]) == ["Ke2", "Kf2"]
    assert best(doc) == "Kf2"


def test_no_choice_says_that_it_checks_or_mates():
    for doc in [made(*TWO_ROOKS), *(chess_puzzles._row(puzzle, "g") for puzzle in FILLER)]:
        assert not re.search(r"[+#]", "".join(doc["choices"]))
        board = chess.Board(doc["fen"])
        assert len({board.parse_san(text) for text in doc["choices"]}) == len(doc["choices"])  # and none is two moves


def test_one_of_several_mates_is_a_choice():
    doc = made(*TWO_MATES)
    assert best(doc) == "Ra8"
    assert "Rb8" not in doc["choices"]
    with pytest.raises(chess_puzzles.NoPuzzleError, match="a mate at once that is not the answer"):
        made(TWO_MATES[0], "g8h8 a1a2")


def test_places_among_the_choices_tell_nothing_and_depend_on_the_row_alone():
    docs = [chess_puzzles._row(puzzle, "g") for puzzle in MANY]
    depth = np.mean([(doc["label"] + 0.5) / len(doc["choices"]) for doc in docs])
    assert abs(depth - 0.5) < 0.08
    assert [chess_puzzles._row(puzzle, "g") for puzzle in reversed(MANY)] == docs[::-1]


# ---- data -------------------------------------------------------------------------------------------------------------

BROKEN = {
    "a position or moves that can't be read": [
        ("<script>", "e2e4 e7e5"),
        (chess.STARTING_FEN, "e2e4"),
        (None, None),
        ("", ""),
    ],
    "a position that no game leads to": [("8/8/8/8/8/8/8/8 w - - 0 1", "e2e4 e7e5")],
    "an opponent's move that is not legal": [(chess.STARTING_FEN, "e2e5 e7e5"), (chess.STARTING_FEN, "0000 e7e5")],
    "an answer that is not legal": [(chess.STARTING_FEN, "e2e4 e7e4")],
    "a single move to choose from": [("r3k3/8/8/8/8/8/3P1P2/4K3 b - - 0 1", "a8a1 e1e2")],
    "a mate at once that is not the answer": [(TWO_MATES[0], "g8h8 a1a2")],
}


def test_rows_that_break_the_rules_are_left_out_and_counted(data: Callable, caplog: pytest.LogCaptureFixture):
    bad = [row(*what, f"bad{i}xxxx") for i, what in enumerate(w for many in BROKEN.values() for w in many)]
    data([*bad, *FILLER, {**FILLER[0], "GameUrl": None}])
    splits = chess_puzzles.puzzles()
    assert sum(map(len, splits.values())) == len(FILLER)
    assert f"{len(bad) + 1} of {len(bad) + 61} puzzles left out" in caplog.text
    for reason, rows in {**BROKEN, "a position that another puzzle has": [0]}.items():
        assert f"{len(rows)} with {reason}" in caplog.text


@pytest.mark.parametrize("rows", [[row("x", "y", "abcdefgh")] * 3, FILLER[:1]])
def test_a_set_with_too_few_good_rows_is_refused(data: Callable, rows: list[Doc]):
    data(rows)
    with pytest.raises(UserError, match=r"\d puzzles of \d rows are good by the rules, too few"):
        chess_puzzles.puzzles()


def test_what_is_missing_is_told(data: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data([{"FEN": puzzle["FEN"]} for puzzle in FILLER])
    with pytest.raises(UserError, match="no column Moves"):
        chess_puzzles.puzzles()
    with pytest.raises(UserError, match="rows must be a number from 1 on, got 0"):
        chess_puzzles.puzzles(rows=0)
    monkeypatch.setenv("W2S_DATA", str(tmp_path / "empty"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(MissingDataError, match="Lichess/chess-puzzles is not to be had"):
        chess_puzzles.puzzles()
    monkeypatch.setitem(sys.modules, "chess", None)
    with pytest.raises(UserError, match=re.escape("pip install 'w2s-harness[tasks]'")):
        chess_puzzles.puzzles()


def test_a_game_is_on_one_side_and_one_cluster(data: Callable):
    twins = [{**puzzle, "GameUrl": f"https://lichess.org/game{i % 30:04}#3"} for i, puzzle in enumerate(puzzles(60, seed=5))]
    data(twins)
    splits = chess_puzzles.puzzles()
    games = {split: dict(zip(rows["game"], rows["w2s_group"], strict=True)) for split, rows in splits.items()}
    assert not set(games["train"]) & set(games["validation"])
    assert len({*games["train"].values(), *games["validation"].values()}) == 30
    assert all(len(set(rows["game"])) < len(rows) for rows in splits.values())


def test_a_limit_takes_the_same_puzzles_in_whatever_order_they_come(data: Callable, tmp_path: Path):
    data(FILLER)
    few, more = ({p for rows in chess_puzzles.puzzles(rows=n).values() for p in rows["puzzle"]} for n in (20, 30))
    assert len(few) == 20
    assert few < more
    whole = {split: rows.to_list() for split, rows in chess_puzzles.puzzles().items()}
    chess_puzzles._splits.cache_clear()
    from w2s_tasks.rows import sources

    sources._load.cache_clear()
    write(tmp_path, FILLER[::-1])
    assert {split: rows.to_list() for split, rows in chess_puzzles.puzzles().items()} == whole


@pytest.mark.parametrize(
    ("columns", "game"),
    [({"GameUrl": "https://lichess.org/q2SFqfYD/black#97"}, "q2SFqfYD"), ({"GameId": "zzzz1234"}, "zzzz1234"), ({}, None)],
)
def test_the_game_comes_from_the_column_that_tells_it(columns: Doc, game: str | None):
    import datasets

    plain = {key: value for key, value in FILLER[0].items() if key != "GameUrl"}
    assert chess_puzzles._games(datasets.Dataset.from_list([{**plain, **columns}])) == [game or plain["FEN"]]


def test_the_published_rows_are_all_good_by_the_rules(real_data: Path):
    splits = chess_puzzles.puzzles()
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 693, "validation": 307}
    for rows in splits.values():
        for doc in rows.select(range(100)):
            board = chess.Board(doc["fen"])
            assert len(doc["choices"]) == board.legal_moves.count() - max(0, _mates(board) - 1)


def _mates(board: chess.Board) -> int:
    return sum("#" in board.san(move) for move in board.legal_moves)


# ---- replies ----------------------------------------------------------------------------------------------------------

KNIGHTS = chess.Board("r1bqkbnr/pppp1ppp/2n5/4p3/4P3/8/PPPP1PPP/RNBQKBNR w KQkq - 2 3")


@pytest.mark.parametrize(
    ("reply", "read", "exactly"),
    [
        ("Nf3", "Nf3", "Nf3"),
        (" Nf3", "Nf3", "Nf3"),
        ("**Nf3!**", "Nf3", "Nf3"),
        ("`g1f3`", "g1f3", "g1f3"),
        ("Ng1-f3.", "Ng1-f3", "Ng1-f3"),
        ("Best move: 3. Nf3+", "Nf3", "Nf3"),
        ("3.Nf3", "Nf3", "Nf3"),
        ("Nf3 Nf6 4. Bb5 a6", "Nf3", None),
        ("Nf3, attacking the pawn on e5", "Nf3", None),
        ("Nf3\nBest move: Qh5", "Nf3", "Nf3"),
        ("The best move is Nf3.", "Nf3", None),
        ("The best move for White in this position is **3. Nf3**, not Qh5.", "Nf3", None),
        ("White should play Bc4 here.", "Bc4", None),
        ("Nf3 is a mistake. The best move is Bc4.", "Bc4", None),
        ("I would develop with Nf3 (g1f3).", "Nf3", None),
        ("Developing the knight with Nf3 attacks e5.", "Nf3", None),
        ("Qxe5 wins", "Qxe5", None),  # a move that can't be played is a move
        ("Nf3??", None, None),
        ("Nf3 is not the best move.", None, None),
        ("I would not play Nf3.", None, None),
        ("Nf3 or Bc4", "Nf3", None),
        ("Both Nf3 and Bc4 are good.", None, None),
        ("If White plays Nf3, Black defends.", None, None),
        ("The knight on f3 is strong.", None, None),
        ("I like chess.", None, None),
        ("\nFEN: 8/8 w\nWhite: Kg1 a2", None, None),
        ("", None, None),
        ("\x00\ud83d" * 50, None, None),
    ],
)
def test_a_reply_is_read_for_the_one_move_that_it_names(reply: str, read: str | None, exactly: str | None):
    found = chess_moves.lenient(reply, KNIGHTS)
    assert found == read or (found is not None and read is not None and _same(found, read))
    assert chess_moves.strict(reply, KNIGHTS) == exactly


def _same(one: str, other: str) -> bool:
    return KNIGHTS.parse_san(one) == KNIGHTS.parse_san(other)


@pytest.mark.parametrize(
    ("puzzle", "reply", "right", "illegal"),
    [
        (CASTLING, "O-O", 1, 0),
        (CASTLING, "0-0", 1, 0),
        (CASTLING, "e1g1", 1, 0),
        (CASTLING, "O-O-O", 0, 0),
        (PROMOTION, "a8=Q", 1, 0),
        (PROMOTION, "a8Q", 1, 0),
        (PROMOTION, "a7a8q", 1, 0),
        (PROMOTION, "a8=N", 0, 0),
        (EN_PASSANT, "exd6", 1, 0),
        (EN_PASSANT, "exd6 e.p.", 1, 0),
        (EVASION, "d2d3", 0, 1),
        (TWO_MATES, "Ra8#", 1, 0),
        (TWO_MATES, "Rb8#", 1, 0),  # another mate
        (TWO_MATES, "Rh1", 0, 0),
        (TWO_MATES, "Qb8#", 0, 1),
        (TWO_ROOKS, "Rxh7+", 1, 0),
        (TWO_ROOKS, "Rf1+", 0, 0),
        (TWO_ROOKS, "Rd9", UNPARSED, 0),
    ],
)
def test_a_move_is_judged_by_the_rules(puzzle: tuple[str, str], reply: str, right: int, illegal: int):
    item = chess_moves.reply(made(*puzzle), [reply])
    assert item["acc"][:2] == (1, right)
    assert item["illegal"][1] == illegal
    assert len({group for *_, group in (item["acc"], item["acc_strict"])}) == 1


def test_a_prompt_without_a_recorded_reply_is_not_scored():
    assert chess_moves.reply(made(*CASTLING), [NoReply("")]) == {}


def test_scores_of_the_choice_by_hand():
    doc = {"choices": ["Nf3", "O-O", "exd8=Q"], "label": 2, "w2s_group": 7}
    assert chess_moves.choice(doc, [(-2.0, False), (-4.0, False), (-3.0, False)])["mrr"] == (7, 1 / 2)
    assert chess_moves.choice(doc, [(-2.0, False), (-4.0, False), (-1.0, False)])["acc"] == (7, 1.0)
    assert chess_moves.choice(doc, [(-3.0, False)] * 3)["acc"] == (7, 0.0)  # the first of equal ones
    silent = chess_moves.choice(doc, [(-math.inf, False)] * 3)
    assert (silent["acc"], silent["mrr"]) == ((7, 0.0), (7, 1 / 3))
    assert math.isnan(chess_moves.choice(doc, [(math.nan, False), (-1.0, False), (-1.0, False)])["acc"][1])


# ---- under lm_eval ----------------------------------------------------------------------------------------------------


class Player(LM):
    """Prefers moves by their text, and replies in one of five ways by the prompt's length."""

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        return [(-float(hash_of(*request.args)), False) for request in requests]

    def generate_until(self, requests: list[Any]) -> list[str]:
        return [self._reply(request.args[0]) for request in requests]

    def _reply(self, prompt: str) -> str:
        board = chess.Board(re.findall("FEN: (.*)", prompt)[-1])
        first, *_, last = board.legal_moves
        kinds = (board.san(first), f"The best move is **{board.san(last)}**.", last.uci(), "Kxa9", "Ka1-a8, of course")
        return kinds[hash_of(prompt) % len(kinds)]

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        raise NotImplementedError


def hash_of(*texts: str) -> int:
    """A number that only the texts decide."""
    return int(chess_puzzles.digest("\0".join(texts))[:8], 16)


@pytest.mark.parametrize("moves", [20, None])
def test_the_choices_scores_are_lm_evals_own(data: Callable, tmp_path: Path, moves: int | None):
    data(puzzles(30, moves=moves))
    results = lm_eval(["w2s_chess"], tmp_path / "out", Player())["w2s_chess"]
    scores = read_evaluation(tmp_path / "out")["w2s_chess"]
    assert scores.correct.mean() == pytest.approx(results["acc,none"])
    assert scores.metrics["mrr"] > 1 / 40
    assert scores.cluster is not None
    assert not scores.classes


@pytest.mark.parametrize("shots", [0, 3])
def test_the_replies_scores_are_lm_evals_own(data: Callable, tmp_path: Path, shots: int):
    data(FILLER)
    results = lm_eval(["w2s_chess_gen"], tmp_path / "out", Player(), num_fewshot=shots)["w2s_chess_gen"]
    scores = read_evaluation(tmp_path / "out")["w2s_chess_gen"]
    assert scores.correct.mean() == pytest.approx(results["acc,none"])
    assert scores.unparsed == pytest.approx(results["unparsed,none"])
    table = confusion(scores)  # right and wrong, not classes
    assert table is None or table.sum() == scores.n
    assert 0 < results["illegal,none"] < 1 - results["unparsed,none"]
    assert 0 < results["unparsed,none"] < results["unparsed_strict,none"]


def test_shots_are_other_puzzles_the_same_for_all_and_by_the_seed(data: Callable):
    data(FILLER)
    tasks = W2STaskManager().load(["w2s_chess", "w2s_chess_gen"])["tasks"]
    heads = set()
    for task in tasks.values():
        task.set_fewshot_seed(1234)
        for doc in task.eval_docs:
            text = task.fewshot_context(doc, 4)
            heads.add(text.rpartition("\n\n")[0])
            assert text.endswith(" to move. Best move:")
    assert len(heads) == 1
    shown = re.findall("FEN: (.*)\n(?:.*\n){3}.*Best move: (.*)", heads.pop())
    answers = {doc["fen"]: best(doc) for doc in tasks["w2s_chess"].dataset["train"]}
    assert len(shown) == 4
    assert all(answers[fen] == move for fen, move in shown)


def test_the_tasks_can_be_read_row_by_row(data: Callable):
    data(FILLER)
    for task in W2STaskManager().load(["w2s_chess", "w2s_chess_gen"])["tasks"].values():
        assert unreadable(task) is None


def test_the_readme_names_the_paper_and_the_licence():
    text = (TASK_PATH / "chess" / "README.md").read_text(encoding="utf-8")
    assert "2312.09390" in text
    assert "CC0" in text
    assert "@" in text
