"""``calibrate=batch|contextual|domain`` of ``w2s-hf``: an evaluation whose log-likelihoods have the model's prior taken out.

Every task's requests are calibrated apart, and by what they hold alone: no task has to know of it. See
`w2s_tasks.scoring.calibration` for the three ways.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, get_args

import numpy as np
from lm_eval.api.instance import Instance

from w2s_tasks.errors import UserError, nearest
from w2s_tasks.scoring.calibration import Array, Calibration, content_free, mean_prior, premise
from w2s_tasks.user_text import shown

Answers = list[tuple[float, bool]]
Score = Callable[[list[Instance]], Answers]
KINDS = get_args(Calibration)


def checked(how: Any) -> Calibration | None:
    """One of the ways, or None.

    Raises:
        UserError: another word.
    """
    if how is None or how in KINDS:
        return how
    raise UserError(f"calibrate={shown(how)}: no such calibration.{nearest(str(how), KINDS)} Known: {', '.join(KINDS)}.")


def calibrated(how: Calibration, requests: Sequence[Instance], answers: Answers, score: Score) -> Answers:
    """The answers with each choice's prior taken out.

    Args:
        how: the way.
        requests: of one or more tasks, each document's choices in order.
        answers: theirs, as the model gave them.
        score: asks the model more.

    Raises:
        UserError: a task that this way does not fit.
    """
    found = list(answers)
    for task, documents in _tasks(requests).items():
        own, given = ([[part[i] for i in document] for document in documents] for part in (requests, answers))
        numbers = [number for document in documents for number in document]
        for number, prior in zip(numbers, _priors(how, task, own, given, score), strict=True):
            found[number] = answers[number][0] - prior, answers[number][1]
    return found


def _tasks(requests: Sequence[Instance]) -> dict[str, list[list[int]]]:
    """By task the numbers of every document's requests."""
    by_document: dict[tuple[str, Any], list[int]] = defaultdict(list)
    for number, request in enumerate(requests):
        by_document[str(request.task_name), request.doc_id].append(number)
    tasks: dict[str, list[list[int]]] = defaultdict(list)
    for (task, _), numbers in by_document.items():
        tasks[task].append(numbers)
    return tasks


def _priors(
    how: Calibration, task: str, documents: list[list[Instance]], answers: list[Answers], score: Score
) -> Iterator[float]:
    """The prior of each request's choice, document by document."""
    prompts = [document[0].args[0] for document in documents]
    if any(request.args[0] != prompt for prompt, document in zip(prompts, documents, strict=True) for request in document):
        raise UserError(
            f"calibrate={how}: the choices of {task} are prompts, or it scores them without a prompt as well; there is no "
            "prior over its choices."
        )
    if len(set(prompts)) < 2:
        raise UserError(f"calibrate={how}: {task} has one prompt here; a prior is known from several. Ask more documents.")
    if how == "domain":
        yield from _after_premise(premise(prompts), task, documents, score)
        return
    choices = [request.args[1] for request in documents[0]]
    if any([request.args[1] for request in document] != choices for document in documents):
        raise UserError(
            f"calibrate={how}: the rows of {task} have choices of their own, over which there is no prior; calibrate=domain "
            "is for those."
        )
    prior = mean_prior(np.array([[loglik for loglik, _ in own] for own in answers])) if how == "batch" else None
    if prior is None:
        prior = _content_free_prior(content_free(prompts), choices, score)
    for _ in documents:
        yield from prior.tolist()


def _content_free_prior(prompts: Sequence[str], choices: Sequence[str], score: Score) -> Array:
    asked = score([_request(prompt, choice) for prompt in prompts for choice in choices])
    logliks = np.array([loglik for loglik, _ in asked]).reshape(len(prompts), len(choices))
    return mean_prior(logliks)


def _after_premise(text: str, task: str, documents: list[list[Instance]], score: Score) -> Iterator[float]:
    if not text:
        raise UserError(f"calibrate=domain: the prompts of {task} have no end in common, so no premise.")
    choices = list(dict.fromkeys(request.args[1] for document in documents for request in document))
    known = dict(zip(choices, (loglik for loglik, _ in score([_request(text, choice) for choice in choices])), strict=True))
    for document in documents:
        yield from (known[request.args[1]] for request in document)


def _request(prompt: str, choice: str) -> Instance:
    return Instance("loglikelihood", doc={}, arguments=(prompt, choice), idx=0)
