"""Programming problems with tests: HumanEval and MBPP, as their hubs have them and as one kind of `Problem`."""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import datasets

from w2s_tasks import sandbox
from w2s_tasks.errors import UserError
from w2s_tasks.rows.mutants import normal
from w2s_tasks.rows.sources import Splits, digest, load

Doc = dict[str, Any]

SIDES = {"train": "train", "prompt": "train", "validation": "validation", "test": "validation"}
"""Where MBPP's splits go."""
SHOTS = (2, 3, 4)
"""MBPP's task ids of the shots in its paper's prompt (Austin et al. 2021, section 3)."""


@dataclass(frozen=True)
class Problem:
    """A problem, a program that solves it, as `normal` writes it, and tests that raise where a program does not."""

    name: str
    statement: str
    program: str
    function: str
    tests: str
    split: str


def humaneval_tests(row: Doc) -> str:
    """HumanEval's tests, run on the function that was asked for."""
    return f"{row['test']}\ncheck({row['entry_point']})\n"


def mbpp_tests(row: Doc) -> str:
    """MBPP's tests: what they need, then one assertion a line."""
    return "\n".join([row["test_setup_code"], *row["test_list"], *row["challenge_test_list"], ""])


HUMANEVAL, HUMANEVAL_COLUMNS = "openai/openai_humaneval", {"task_id", "prompt", "canonical_solution", "test", "entry_point"}
MBPP, MBPP_COLUMNS = "google-research-datasets/mbpp", {"task_id", "text", "code", "test_list", "test_setup_code"}


def _loaded(path: str, config: str | None, splits: Iterable[str], columns: set[str]) -> datasets.DatasetDict:
    """A data set that has these splits and columns.

    Raises:
        UserError: it has not; `MissingDataError` where there is none.
    """
    loaded = load(path, config)
    for split in splits:
        lacking = {split} - set(loaded) or columns - set(loaded[split].column_names)
        if lacking:
            raise UserError(f"{path}: this copy has no {', '.join(sorted(lacking))} (of its split {split}).")
    return loaded


def _humaneval() -> datasets.Dataset:
    return _loaded(HUMANEVAL, None, ["test"], HUMANEVAL_COLUMNS)["test"]


def _mbpp() -> datasets.DatasetDict:
    return _loaded(MBPP, "full", SIDES, MBPP_COLUMNS | {"challenge_test_list"})


def _fair(data: datasets.Dataset, column: str) -> datasets.Dataset:
    """By the hash of a text, so that the first n are a sample of all: the files go from easy to hard."""
    texts = data[column][:]
    return data.select(sorted(range(len(data)), key=lambda i: digest(texts[i])))


def humaneval(**_: Any) -> Splits:
    """HumanEval (Chen et al. 2021), 164 rows: task_id, prompt, canonical_solution, test, entry_point.

    Raises:
        UserError: programs can't be run safely here.
    """
    sandbox.check()
    return {"test": _fair(_humaneval(), "prompt")}


def mbpp(**_: Any) -> Splits:
    """MBPP (Austin et al. 2021), test 500, validation 90, train 374, prompt 10 rows, of which the paper's shots come first.

    Raises:
        UserError: programs can't be run safely here.
    """
    sandbox.check()
    loaded = _mbpp()
    ids = loaded["prompt"]["task_id"][:]
    shots = sorted(range(len(ids)), key=lambda i: (ids[i] not in SHOTS, ids[i]))
    return {"prompt": loaded["prompt"].select(shots)} | {
        split: _fair(loaded[split], "text") for split in ("train", "validation", "test")
    }


def humaneval_problems() -> list[Problem]:
    """HumanEval's, of whose statements the hash says which half they are in."""
    return list(_parsed(_humaneval(), _of_humaneval))


def _of_humaneval(row: Doc) -> Problem:
    side = "train" if int(digest(row["prompt"]), 16) % 2 else "validation"
    program = normal(row["prompt"] + row["canonical_solution"])
    return Problem(row["task_id"], row["prompt"].strip(), program, row["entry_point"], humaneval_tests(row), side)


def mbpp_problems() -> list[Problem]:
    """MBPP's: its train and prompt splits are ``train``, its validation and test splits ``validation``."""
    loaded = _mbpp()
    return [p for split, side in SIDES.items() for p in _parsed(loaded[split], partial(_of_mbpp, side))]


def _of_mbpp(side: str, row: Doc) -> Problem:
    said = [*row["text"].strip().splitlines(), f"Example: {row['test_list'][0]}"]
    statement = "\n".join(f"# {line}" for line in said)
    return Problem(f"MBPP/{row['task_id']}", statement, normal(row["code"]), mbpp_function(row), mbpp_tests(row), side)


def _parsed(rows: Iterable[Doc], made: Callable[[Doc], Problem]) -> Iterator[Problem]:
    """The rows' problems, without those whose program or tests are none."""
    for row in rows:
        with contextlib.suppress(SyntaxError):
            yield made(row)


def mbpp_function(row: Doc) -> str:
    """The function that MBPP's tests call, of those that its program defines; the last one where they name none.

    Raises:
        SyntaxError: the program or the tests are none.
    """
    defined = [s.name for s in ast.parse(row["code"]).body if isinstance(s, ast.FunctionDef)]
    called = [node.id for node in ast.walk(ast.parse("\n".join(row["test_list"]))) if isinstance(node, ast.Name)]
    return next((name for name in called if name in defined), defined[-1] if defined else "")
