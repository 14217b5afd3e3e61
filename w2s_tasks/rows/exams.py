"""Exam questions in their own form: SciQ with its choices as text, MMLU's moral scenarios with letters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import datasets

from w2s_tasks.rows.families import agreeing, connected, words
from w2s_tasks.rows.forms import shuffled
from w2s_tasks.rows.sources import Splits, digest, load

Row = dict[str, Any]

LETTERS = ("A", "B", "C", "D")
VARIANTS = 0.7
"""Share of words in which variants of a scenario agree at their ends: of 785 pairs that ETHICS' files tell this finds 640,
and its largest cluster has 34 questions, as theirs; at .5 half of all questions would be one."""


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
    """MMLU's moral scenarios (Hendrycks et al. 2021): question, options, choices (letters), label, w2s_group.

    Each question is about two scenarios of ETHICS, most of which have a twin in another question that differs in a few words
    and in its label: questions that such twins connect are one cluster. `shots` holds the 5 development and 100 validation
    rows, of which 90 have a twin among the test rows; there are no training rows.

    Args:
        parted: cut the test rows by their clusters' hashes, about two thirds to `train`, so that a model can learn on the
            one part and be measured on the other.
    """
    loaded = load("cais/mmlu", "moral_scenarios")
    docs = [doc for split in ("dev", "validation", "test") for doc in loaded[split].to_list()]
    twins = _twins([_scenarios(doc) for doc in docs])
    rows = [_moral_question(doc, group) for doc, group in zip(docs, connected(len(docs), twins), strict=True)]
    others = len(docs) - len(loaded["test"])
    test = rows[others:]
    splits = {"shots": rows[:others], "test": test}
    if parted:
        ordered = sorted(test, key=lambda row: (digest(docs[row["w2s_group"]]["question"]), digest(row["question"])))
        cut = next(i for i in range(2 * len(test) // 3, len(test)) if _begins(ordered, i))
        splits |= {"train": ordered[:cut], "test": sorted(ordered[cut:], key=lambda row: digest(row["question"]))}
    return {split: datasets.Dataset.from_list(found) for split, found in splits.items()}


def _begins(rows: list[Row], place: int) -> bool:
    """Whether another cluster begins at a place of ordered rows."""
    return bool(rows[place]["w2s_group"] != rows[place - 1]["w2s_group"])


def _moral_question(doc: Row, group: int) -> Row:
    same = {"question": doc["question"].strip(), "options": list(doc["choices"]), "choices": list(LETTERS)}
    return {**same, "label": int(doc["answer"]), "w2s_group": group}


def _scenarios(doc: Row) -> list[list[str]]:
    """The words of a question's two scenarios."""
    first, _, second = doc["question"].partition("Scenario 2 |")
    return [words(first.partition("Scenario 1 |")[2]), words(second)]


def _twins(questions: Sequence[list[list[str]]]) -> set[tuple[int, int]]:
    """The pairs of questions, the earlier first, that hold variants of one scenario.

    Variants agree in `VARIANTS` of the shorter one's words at their ends, five or more.
    """
    alike: dict[tuple[str, ...], list[tuple[int, list[str]]]] = defaultdict(list)
    found = set()
    for row, scenarios in enumerate(questions):
        for text in scenarios:
            for key in (("first", *text[:3]), ("last", *text[-3:])):
                for other, known in alike[key]:
                    if agreeing(known, text) >= max(5, VARIANTS * min(len(known), len(text))):
                        found.add((other, row))
                alike[key].append((row, text))
    return found
