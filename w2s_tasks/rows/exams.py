"""Exam questions in their own form: SciQ with its choices as text, MMLU's moral scenarios with letters."""

from __future__ import annotations

from typing import Any

import datasets

from w2s_tasks.rows.forms import shuffled
from w2s_tasks.rows.sources import Splits, digest, load

Row = dict[str, Any]

LETTERS = ("A", "B", "C", "D")


def _science_question(doc: Row) -> Row | None:
    """A question with its choices in an order of its own; None where one is missing or stands twice."""
    question = doc["question"].strip()
    choices = [str(doc[name] or "").strip() for name in ("correct_answer", "distractor1", "distractor2", "distractor3")]
    if not question or not all(choices) or len({choice.casefold() for choice in choices}) < len(choices):
        return None
    order = shuffled(question, choices)
    return {"question": question, "choices": [choices[i] for i in order], "label": order.index(0)}


def sciq(**_: Any) -> Splits:
    """SciQ (Welbl et al. 2017): question, choices, label, w2s_group (one a question); train, and test as published.

    On the hub the right answer is a column of its own, so its place is drawn here, by the question's text. Rows come in the
    order of their questions' hashes; a training row whose question is also tested is left out. `support` is not used: not
    every copy has it.
    """
    loaded = load("allenai/sciq")
    rows = {
        split: sorted(filter(None, map(_science_question, loaded[split].to_list())), key=lambda row: digest(row["question"]))
        for split in ("train", "test")
    }
    tested = {row["question"].casefold() for row in rows["test"]}
    rows["train"] = [row for row in rows["train"] if row["question"].casefold() not in tested]
    number: dict[str, int] = {}
    return {
        split: datasets.Dataset.from_list(
            [{**row, "w2s_group": number.setdefault(row["question"].casefold(), len(number))} for row in found]
        )
        for split, found in rows.items()
    }


def moral_scenarios(parted: bool = False, **_: Any) -> Splits:
    """MMLU's moral scenarios (Hendrycks et al. 2021): question, options, choices (letters), label; shots and test.

    Each question is about two scenarios, and none of them occurs again, so each row is a cluster (``w2s_group``) of its own.
    `shots` holds the 5 development and 100 validation rows; there are no training rows.

    Args:
        parted: cut the test rows by their questions' hashes, two thirds to `train`, so that a model can learn on the one
            part and be measured on the other.
    """
    loaded = load("cais/mmlu", "moral_scenarios")
    docs = {"shots": [*loaded["dev"].to_list(), *loaded["validation"].to_list()], "test": loaded["test"].to_list()}
    if parted:
        rows = sorted(docs["test"], key=lambda doc: digest(doc["question"].strip()))
        docs |= {"train": rows[: 2 * len(rows) // 3], "test": rows[2 * len(rows) // 3 :]}
    return {split: datasets.Dataset.from_list([_scenarios(i, doc) for i, doc in enumerate(d)]) for split, d in docs.items()}


def _scenarios(number: int, doc: Row) -> Row:
    same = {"question": doc["question"].strip(), "options": list(doc["choices"]), "choices": list(LETTERS)}
    return {**same, "label": int(doc["answer"]), "w2s_group": number}
