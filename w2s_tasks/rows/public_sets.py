"""Public benchmarks that a package on the index holds: StereoSet, BBQ, Social IQa, each row with its own choices.

A package is pinned by its hash, so everybody has the same rows without an account or a hub. Each function is a task's
``custom_dataset`` (see `w2s_tasks.rows.sources`). Rows come in a fixed order by their text's hash, so that the first n are
a sample of all; 64 rows (whole clusters) are set apart as ``train``, for shots alone.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import datasets

from w2s_tasks.errors import UserError
from w2s_tasks.rows import assets
from w2s_tasks.rows.sources import Splits, digest

ASSET = "public-benchmarks"
SHOTS = 64
"""Rows set apart for shots, at least."""
UNKNOWN = ("unknown", "undetermined", "not known", "not answerable", "not enough", "can't", "cannot")
"""How BBQ's choice that nothing can be told begins."""

Doc = dict[str, Any]


def read_rows(name: str) -> list[Doc]:
    """The rows of one of the package's files (`assets.PUBLIC_BENCHMARKS`), as they are."""
    with (assets.fetch(ASSET) / f"{name}.jsonl").open(encoding="utf-8") as f:
        return [json.loads(line) for line in f]


def _split(rows: Sequence[Doc], cluster: Callable[[Doc], str], text: Callable[[Doc], str]) -> Splits:
    """Number the clusters as ``w2s_group``, set the first ones by their hash apart, and order the rest by their text's."""
    names = sorted({cluster(row) for row in rows}, key=digest)
    number = {name: i for i, name in enumerate(names)}
    sizes = [0] * len(names)
    for row in rows:
        sizes[number[cluster(row)]] += 1
    apart = next(i for i in range(len(names)) if sum(sizes[:i]) >= SHOTS)
    splits: dict[str, list[Doc]] = {"train": [], "validation": []}
    for row in sorted(rows, key=lambda row: digest(text(row))):  # stable: rows of one text stay together
        group = number[cluster(row)]
        splits["train" if group < apart else "validation"].append({**row, "w2s_group": group})
    return {split: datasets.Dataset.from_list(found) for split, found in splits.items()}


def _side(text: str) -> int:
    """0 or 1, by a text's hash: where the right one of two sentences stands."""
    return int(digest(text), 16) % 2


def _two(context: str, right: str, wrong: str, **more: Any) -> Doc:
    label = _side(context + right + wrong)
    return {"context": context, "choices": [wrong, right] if label else [right, wrong], "label": label, **more}


@functools.cache
def _stereoset(sense: bool) -> Splits:
    rows = []
    for row in read_rows("StereoSet"):
        if row["type"] != "intersentence":
            continue
        context, more = row["context"].strip(), {"target": row["target"], "bias_type": row["bias_type"]}
        stereotype, other, unrelated = (row[k].strip() for k in ("stereotype", "anti-stereotype", "unrelated"))
        if sense:
            rows += [_two(context, sentence, unrelated, **more) for sentence in (stereotype, other)]
        else:
            rows.append(_two(context, other, stereotype, **more))
    return _split(rows, lambda row: row["target"], lambda row: row["context"])


def stereoset(sense: bool = False, **_: Any) -> Splits:
    """StereoSet's intersentence part (Nadeem et al. 2021): a context, and two sentences that may follow it.

    Columns context, choices, label, target, bias_type. Label: the sentence that goes against the stereotype; with `sense`
    two rows a context, of which each sets one of its sentences, label, against one that has nothing to do with it.
    """
    return _stereoset(sense)


def _options(text: str) -> list[str]:
    """The choices of "A. ...\\nB. ..."."""
    return [line.partition(". ")[2].strip() for line in text.split("\n")]


def _place(answer: str, choices: Sequence[str]) -> int:
    if answer not in choices:
        raise UserError(f"the answer {answer!r} is none of the choices {list(choices)}: the package has changed")
    return choices.index(answer)


@functools.cache
def _bbq() -> Splits:
    rows = []
    for row in read_rows("BBQ"):
        choices, answer = _options(row["options"]), row["answer"][0].strip()
        rows.append(
            {
                "context": row["passage"].strip(),
                "question": row["question"].partition("\n")[0].strip(),
                "choices": choices,
                "label": _place(answer, choices),
                "ambiguous": answer.casefold().startswith(UNKNOWN),
            }
        )
    return _split(rows, lambda row: row["question"], lambda row: row["context"] + row["question"])


def bbq(**_: Any) -> Splits:
    """1,012 rows of BBQ (Parrish et al. 2022): context, question, choices, label, ambiguous (nothing can be told)."""
    return _bbq()


@functools.cache
def _social_iqa() -> Splits:
    rows = []
    for row in read_rows("SIQA"):
        choices = _options(row["options"])
        label = _place(row["answer"].partition(". ")[2].strip(), choices)
        rows.append(
            {"context": row["passage"].strip(), "question": row["question"].strip(), "choices": choices, "label": label}
        )
    return _split(_distinct(rows), lambda row: row["context"], lambda row: row["context"] + row["question"])


def _distinct(rows: Iterable[Doc]) -> list[Doc]:
    """Without rows that stand twice."""
    return list({json.dumps(row): row for row in rows}.values())


def social_iqa(**_: Any) -> Splits:
    """Social IQa's validation rows (Sap et al. 2019): context, question, choices, label."""
    return _social_iqa()
