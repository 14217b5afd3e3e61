"""GSM8K, MATH and ASDiv: solutions, to be written or to be checked.

To be checked is one solution a question. A coin, seeded by the question alone, decides between the data's own and one with
one step wrong (see `w2s_tasks.rows.carrying`); questions of which no wrong one can be made are in neither class. Or they are
a model's own: ``lm_eval --metadata '{"candidates": "FILE"}'`` reads them from JSON lines with the keys ``question`` and
``answer`` (a solution's text), several a question if need be, right or wrong by their final answers.

Each public function is a task's ``custom_dataset`` (see `w2s_tasks.rows.sources`). The data's test split is ``validation``.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets

from w2s_tasks.errors import UserError
from w2s_tasks.rows import gsm8k_steps, math_steps
from w2s_tasks.rows.final_answers import after_hashes, boxed, final_answer, require, same
from w2s_tasks.rows.forms import draws
from w2s_tasks.rows.nlp_suite import EVALUATED
from w2s_tasks.rows.public_sets import read_rows
from w2s_tasks.rows.sources import Splits, digest, load
from w2s_tasks.user_text import parse_json, read_text, shown

log = logging.getLogger(__name__)

SEED = 0
SPLITS = {"train": "train", "validation": "test"}
FEATURES = datasets.Features(
    {
        "question": datasets.Value("string"),
        "answer": datasets.Value("string"),
        "label": datasets.Value("int64"),
        "error": datasets.Value("string"),
        "w2s_group": datasets.Value("int64"),
    }
)
"""A solution to be checked; ``error`` is slip, operand or operation, or candidate, and empty where it is right."""

Doc = dict[str, Any]


# ---- solutions to be written -------------------------------------------------------------------------------------------


@functools.cache
def _gsm8k() -> Splits:
    loaded = load("openai/gsm8k", "main")
    return {split: datasets.Dataset.from_list(list(map(_gsm8k_row, loaded[own]))) for split, own in SPLITS.items()}


def _gsm8k_row(row: Mapping[str, str]) -> Doc:
    solution = gsm8k_steps.shown(row["answer"])
    return {"question": row["question"].strip(), "solution": solution, "final": after_hashes(solution)}


@functools.cache
def _math() -> Splits:
    loaded = load("hendrycks/competition_math")
    # Some copies are sorted by type: order by hash.
    rows = {s: sorted(_math_rows(loaded[own]), key=lambda row: digest(row["question"])) for s, own in SPLITS.items()}
    tested = {row["question"] for row in rows["validation"]}
    rows["train"] = [row for row in rows["train"] if row["question"] not in tested]
    return {split: datasets.Dataset.from_list(found) for split, found in rows.items()}


def _math_rows(data: Iterable[Mapping[str, str]]) -> Iterator[Doc]:
    """Without the two rows of the published set whose box is empty."""
    for row in data:
        if final := boxed(row["solution"]):
            question = row["problem"].strip()
            yield {
                "question": question,
                "solution": row["solution"],
                "final": final,
                "level": row["level"],
                "type": row["type"],
            }


def gsm8k(**_: Any) -> Splits:
    """GSM8K (Cobbe et al. 2021): question, solution without annotations, final; train 7,473, validation 1,319."""
    return _gsm8k()


def math(**_: Any) -> Splits:
    """MATH (Hendrycks et al. 2021): question, solution, final, level, type; train 7,498, validation 4,999.

    Raises:
        UserError: math-verify, which compares the answers, is not installed.
    """
    require()
    return _math()


def asdiv(**_: Any) -> Splits:
    """ASDiv (Miao et al. 2020) of a package index: passage, question, solution ("9 apples"), final; a third is evaluated.

    The split is by the hash of the story, as `w2s_nlp_asdiv_pypi` has it. Answers that are no single number are left out.
    """
    return _asdiv()


@functools.cache
def _asdiv() -> Splits:
    rows = sorted((row for row in map(_asdiv_row, read_rows("ASDiv")) if row["final"]), key=lambda r: digest(r["question"]))
    parts: dict[str, list[Doc]] = {"train": [], "validation": []}
    for row in rows:
        parts["train" if int(digest(row["passage"]), 16) % EVALUATED else "validation"].append(row)
    return {split: datasets.Dataset.from_list(found) for split, found in parts.items()}


def _asdiv_row(row: Mapping[str, str]) -> Doc:
    told = re.fullmatch(r"(\d+(?:\.\d+)?)(?: .*)?", row["answer"].strip())
    asked = {key: row[key].strip() for key in ("passage", "question")}
    return {**asked, "solution": row["answer"].strip(), "final": told[1] if told else ""}


# ---- solutions to be checked -------------------------------------------------------------------------------------------


def gsm8k_check(candidates: str | None = None, **_: Any) -> Splits:
    """Solutions of GSM8K's questions: question, answer, label (1 = right), error, w2s_group; train 6,072, validation 1,032.

    Raises:
        UserError: a candidates file that can't be read or has no row of the validation split.
    """
    return _gsm8k_check() if candidates is None else _of_file(candidates, _gsm8k)


def math_check(candidates: str | None = None, **_: Any) -> Splits:
    """Solutions of MATH's problems with a number for an answer; columns as `gsm8k_check`.

    Raises:
        UserError: as `gsm8k_check`.
    """
    return _math_check() if candidates is None else _of_file(candidates, _math)


@functools.cache
def _gsm8k_check() -> Splits:
    def altered(question: str, answer: str) -> tuple[str, str] | None:
        solution = gsm8k_steps.parsed(question, answer)
        return None if solution is None else solution.wrong(draws(SEED, "error", question, answer))

    loaded = load("openai/gsm8k", "main")
    pairs = {split: [(row["question"].strip(), row["answer"]) for row in loaded[own]] for split, own in SPLITS.items()}
    return _one_a_question("GSM8K", pairs, altered, gsm8k_steps.shown)


@functools.cache
def _math_check() -> Splits:
    def altered(question: str, answer: str) -> tuple[str, str] | None:
        solution = math_steps.parsed(question, answer)
        return None if solution is None else math_steps.wrong(solution, draws(SEED, "error", question, answer))

    pairs = {split: [(row["question"], row["solution"]) for row in rows] for split, rows in _math().items()}
    return _one_a_question("MATH", pairs, altered, str)


def _one_a_question(
    name: str,
    pairs: Mapping[str, list[tuple[str, str]]],
    altered: Callable[[str, str], tuple[str, str] | None],
    plain: Callable[[str], str],
) -> Splits:
    """The right or the altered solution of each question that has both."""
    splits, number = {}, 0
    for split, found in pairs.items():
        rows = []
        for question, answer in found:
            made = altered(question, answer)
            if made is None:
                continue
            right = draws(SEED, "check", question).random() < 0.5
            text, error = (plain(answer), "") if right else made
            rows.append({"question": question, "answer": text, "label": int(right), "error": error, "w2s_group": number})
            number += 1
        log.info(
            "%s, %s: %d questions, %d of them left out, since no error in them can be carried through",
            name,
            split,
            len(found),
            len(found) - len(rows),
        )
        splits[split] = _dataset(rows)
    return splits


def _dataset(rows: list[Doc]) -> datasets.Dataset:
    """Rows with their columns, where there is none as well."""
    return datasets.Dataset.from_dict({name: [row[name] for row in rows] for name in FEATURES}, features=FEATURES)


# ---- a model's own solutions -------------------------------------------------------------------------------------------


def _of_file(file: str, gold: Callable[[], Splits]) -> Splits:
    path = Path(file).expanduser()
    return _candidate_splits(path, read_text(path), gold)


@functools.lru_cache(maxsize=4)
def _candidate_splits(path: Path, text: str, gold: Callable[[], Splits]) -> Splits:
    """A row for each question that the file has solutions of; where it has right and wrong ones, the coin decides."""
    final = {row["question"]: row["final"] for rows in gold().values() for row in rows}
    by_question: dict[str, tuple[set[str], set[str]]] = {}
    open_ended = 0
    for line, question, answer in _candidates(path, text):
        if question not in final:
            raise UserError(f"{path}:{line}: no such question in the data set: {shown(question)}.")
        said = final_answer(answer)
        open_ended += said is None
        if said is not None:
            by_question.setdefault(question, (set(), set()))[same(final[question], said)].add(answer)
    splits, number = {}, 0
    for split, rows in gold().items():
        found = [_candidate(q, *by_question[q]) for q in rows["question"][:] if q in by_question]
        numbered = [{**row, "w2s_group": number + i} for i, row in enumerate(found)]
        number += len(found)
        splits[split] = _dataset(numbered)
        log.info("%s, %s: %d questions, %d solutions right", path, split, len(found), sum(row["label"] for row in found))
    if open_ended:
        log.warning("%s: %d solutions come to no final answer, and are left out", path, open_ended)
    if not len(splits["validation"]):
        raise UserError(f"{path}: no solution of a question of the test split, which is what is evaluated.")
    return splits


def _candidate(question: str, wrong: set[str], right: set[str]) -> Doc:
    rng = draws(SEED, "check", question)
    label = int(rng.random() < 0.5) if wrong and right else int(bool(right))
    answer = rng.choice(sorted(right if label else wrong))
    return {"question": question, "answer": answer, "label": label, "error": "" if label else "candidate"}


def _candidates(path: Path, text: str) -> Iterator[tuple[int, str, str]]:
    """Line number, question and solution of each line that is not empty."""
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        row = parse_json(line, f"{path}:{number}")
        given = [row.get(key) for key in ("question", "answer")] if isinstance(row, dict) else [None]
        texts = [value.strip() for value in given if isinstance(value, str) and value.strip()]
        if len(texts) != 2:
            raise UserError(f'{path}:{number}: not {{"question": text, "answer": text}}, but {shown(row)}.')
        yield number, texts[0], texts[1]
