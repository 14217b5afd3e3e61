"""questions.html: every question that was asked, with each model's answer, in one file that works from disk.

The page holds its data as JSON and builds what is shown with text nodes alone, so whatever stands in a row or a reply stays
text. `w2s view` writes it beside the report.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from trainers.harness.tasks import PromptStyle
from trainers.labels.gold import GOLD
from trainers.labels.kinds import kind_for
from trainers.labels.label_set import LABELS
from trainers.report.collected import Collected, Evaluations, about
from trainers.report.frames import Row, Table
from trainers.report.page import QUESTIONS, STAGES, stages_of
from trainers.report.report import head_of
from trainers.report.text import group_title
from trainers.steps.arm import Arm
from trainers.steps.evaluation import SafetyEvaluation
from trainers.store.stages import write_atomic
from w2s_tasks.results.read import Asked, TaskScores, read_asked, tied
from w2s_tasks.scoring.calibration import frame

Array = npt.NDArray[Any]
Json = dict[str, Any]

NEIGHBOURS = 3
"""Training rows that are shown beside a question."""
ALIKE = 0.15
"""Cosine of the words' TF-IDF from which on a training row is a neighbour."""
BLOCK = 512
"""Questions whose neighbours are looked for at once."""
DIGITS = 3


@dataclass(frozen=True)
class Question:
    """What a task asks once: a document, or a pair of them that is ranked."""

    text: str
    """Its own part of the prompt."""
    choices: tuple[str, ...]
    place: tuple[int, ...]
    """The documents' numbers among the samples."""


def write_questions(collected: Collected, folder: Path, out: Path | None = None) -> tuple[Path, int]:
    """Write the page of a run.

    Args:
        collected: its evaluations.
        folder: the run's.
        out: another file than ``questions.html`` there.

    Returns:
        The page, and how many questions it has.

    Raises:
        UserError: samples that are not laid out as lm_eval writes them.
    """
    data = page_data(collected) | {"report": out is None}
    path = out or folder / QUESTIONS
    write_atomic(path, render(data))
    return path.resolve(), sum(len(task["rows"]) for task in data["tasks"])


def render(data: Json) -> str:
    """The page as HTML text."""
    # Inside a script element only "</" and "<!--" would end or change it: no "<" is left.
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    template = files("trainers.report").joinpath("templates", "questions.html").read_text(encoding="utf-8")
    title = str(Markup.escape(f"{data['experiment']} – questions"))
    head = STAGES.format(data["stages"])
    return template.replace("{{stages}}", head).replace("{{title}}", title).replace("{{data}}", text)


COLUMNS = {
    "task": "The task's name.",
    "kind": "training task, or safety.",
    "question": "The question's number in its task.",
    "text": "Its own part of the prompt; text that nobody has checked.",
    "arm": "How the model came about: weak, zero_shot, student, ceiling, a control.",
    "method": "Label operations and loss that it was trained with; missing where nothing was trained.",
    "seed": "The repetition that it is of; missing where no seed changes it.",
    "mode": "How the answer was scored.",
    "gold": "The right choice; missing where rows are ranked or answers are no choices.",
    "answer": "The choice that the model gave; missing as well where its reply could not be read.",
    "right": "Whether it is right.",
    "reply": "The text that it generated; missing where choices were scored.",
}
"""Of the table of all answers."""


def question_table(collected: Collected) -> Table:
    """Every model's answer to every question, one row each."""
    rows = [row for evaluations, name, kind in _parts(collected) for row in _rows(collected, evaluations, name, kind)]
    return Table("One model's answer to one question.", rows, COLUMNS)


def _rows(collected: Collected, evaluations: Evaluations, name: str, kind: str) -> Iterator[Row]:
    task = _task(collected, evaluations, name, kind)
    for arm, answers in zip(_arms(collected, evaluations, name), task["arms"], strict=True):
        for i, row in enumerate(task["rows"]):
            choices = row.get("choices") or task["choices"] or ()
            predicted = None if answers["predicted"] is None else answers["predicted"][i]
            yield {
                "task": name,
                "kind": kind,
                "question": row["id"],
                "text": row["text"],
                **about(arm),
                "mode": answers["mode"],
                "gold": _choice(choices, row["gold"]),
                "answer": _choice(choices, predicted),
                "right": bool(answers["right"][i]),
                "reply": answers["replies"][i] if "replies" in answers else None,
            }


def _choice(choices: Sequence[str], number: int | None) -> str | None:
    return choices[number] if number is not None and 0 <= number < len(choices) else None


def _parts(collected: Collected) -> list[tuple[Evaluations, str, str]]:
    """The training task, then the safety tasks: evaluations, name, kind."""
    names = dict.fromkeys(task for scores in collected.safety.values() for task in scores)
    return [
        (collected.training, collected.task, "training task"),
        *((collected.safety, name, "safety") for name in names),
    ]


def _arms(collected: Collected, evaluations: Evaluations, name: str) -> list[Arm]:
    return [arm for arm in collected.arms() if name in evaluations.get(arm, {})]


def page_data(collected: Collected) -> Json:
    """All that the page shows."""
    tasks = [_task(collected, *part) for part in _parts(collected)]
    head = head_of(collected.run)
    rows = _training_rows(collected, tasks[0])
    return {"experiment": head.experiment, "stages": stages_of(head), "tasks": tasks, "training": rows}


def _task(collected: Collected, evaluations: Evaluations, name: str, kind: str) -> Json:
    arms = _arms(collected, evaluations, name)
    asked = {arm: _asked(collected, arm, evaluations[arm][name].task, evaluations is collected.training) for arm in arms}
    # The prompt with the fewest shots is the plainest.
    plain = min(asked.values(), key=lambda rows: sum(len(row.prompt) for row in rows))
    before, after, texts = _framed([row.prompt for row in plain])
    questions, like = _questions(plain, texts), evaluations[arms[0]][name]
    alike = len({question.choices for question in questions}) == 1
    rows = [
        {
            "id": unit.partition(":")[0],
            "text": question.text,
            "gold": None if like.gold is None else int(like.gold[i]),
            **({} if alike else {"choices": question.choices}),
            **({} if like.cluster is None else {"group": int(like.cluster[i])}),
        }
        for i, (unit, question) in enumerate(zip(like.units, questions, strict=True))
    ]
    return {
        "name": name,
        "kind": kind,
        "choices": list(questions[0].choices) if alike else None,
        "before": before,
        "after": after,
        "rows": rows,
        "arms": [_answers(arm, evaluations[arm][name], asked[arm], questions, collected) for arm in arms],
    }


def _asked(collected: Collected, arm: Arm, task: str, training: bool) -> list[Asked]:
    layout = collected.run.layout
    main = (s for s in layout.steps.values() if isinstance(s, SafetyEvaluation) and s.main and s.arm == arm)
    return read_asked(collected.run.folder_of(layout.evaluations[arm] if training else next(main)), task)


def _questions(rows: Sequence[Asked], texts: Sequence[str]) -> list[Question]:
    """Documents as they are; of ranked ones the pairs, the one that should come first above the other."""
    if all(row.pair is None for row in rows):
        return [Question(text, row.choices, (i,)) for i, (row, text) in enumerate(zip(rows, texts, strict=True))]
    pairs: dict[int, dict[int, int]] = {}
    for i, row in enumerate(rows):
        if row.pair is not None:
            pairs.setdefault(row.pair[0], {})[row.pair[1]] = i
    return [
        Question(f"{texts[both[1]]}\n\n– should be rated above –\n\n{texts[both[0]]}", (), (both[1], both[0]))
        for both in pairs.values()
        if len(both) == 2
    ]


def _framed(prompts: Sequence[str]) -> tuple[str, str, list[str]]:
    """What all prompts begin and end with, shots included, and each one's own part."""
    if len(set(prompts)) < 2:
        return "", "", list(prompts)
    before, after = frame(prompts)
    return before, after, [prompt[len(before) : len(prompt) - len(after)] for prompt in prompts]


def _answers(
    arm: Arm, scores: TaskScores, asked: Sequence[Asked], questions: Sequence[Question], collected: Collected
) -> Json:
    replies = [[asked[i].reply for i in question.place] for question in questions]
    found: Json = {
        "name": group_title((arm.name, arm.method)),
        "arm": arm.name,
        "seed": arm.seed,
        "mode": collected.mode(arm, scores),
        "right": scores.correct.astype(int).tolist(),
        "predicted": None if scores.predicted is None else scores.predicted.tolist(),
    }
    if scores.logliks is not None:
        sizes = [scores.choices] * scores.n if scores.sizes is None else scores.sizes.tolist()
        rounded = np.round(scores.logliks, DIGITS).tolist()
        found["logliks"] = [row[:size] for row, size in zip(rounded, sizes, strict=True)]
        answered = scores.parsed if scores.parsed is not None else np.ones(scores.n, dtype=bool)
        found["tied"] = np.flatnonzero(tied(scores.logliks, answered)).tolist()
    if scores.parsed is not None:
        found["unparsed"] = np.flatnonzero(~scores.parsed).tolist()
    ratings = [[asked[i].rating for i in question.place] for question in questions]
    if any(rating is not None for own in ratings for rating in own):
        found["said"] = [" : ".join("–" if rating is None else f"{rating:.2f}" for rating in own) for own in ratings]
    if any(reply is not None for own in replies for reply in own):
        found["replies"] = ["\n\n".join(reply or "" for reply in own) for own in replies]
    return found


# ---- training rows that are like a question ------------------------------------------------------------------------------


def _training_rows(collected: Collected, task: Json) -> Json:
    """The students' rows by seed, and for each question those that are most like it."""
    texts = [row["text"] for row in task["rows"]]
    found: Json = {}
    for seed, step in collected.run.layout.weak_labels.items():
        asked = collected.run.layout.task
        labels: Any = kind_for(asked).labels.load(collected.run.folder_of(step) / LABELS)
        gold = kind_for(asked).gold.load(collected.run.folder_of(step.split) / GOLD, asked)
        _, _, own = _framed(asked.prompts(asked.docs_of(labels.row_id), PromptStyle(0)))
        near = neighbours(texts, own)
        used = sorted({i for line in near for i, _ in line})
        number = {row: place for place, row in enumerate(used)}
        told = gold.told_beside(labels)
        found[str(seed)] = {
            "rows": [[own[i], said, round(sure, DIGITS), right] for i in used for said, sure, right in [told[i]]],
            "near": [[[number[i], round(alike, 2)] for i, alike in line] for line in near],
        }
    return found


def neighbours(texts: Sequence[str], others: Sequence[str]) -> list[list[tuple[int, float]]]:
    """For each text the others that share most of its rare words, with the cosine of their TF-IDF; the nearest first."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(sublinear_tf=True, stop_words="english")
    try:
        theirs = words.fit_transform(others)
    except ValueError:  # no word in any of them
        return [[] for _ in texts]
    found = []
    for start in range(0, len(texts), BLOCK):
        cosine = (words.transform(texts[start : start + BLOCK]) @ theirs.T).toarray()
        for row in cosine:
            nearest = np.argsort(-row, kind="stable")[:NEIGHBOURS]
            found.append([(int(i), float(row[i])) for i in nearest if row[i] >= ALIKE])
    return found
