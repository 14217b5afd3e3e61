"""Labels that a model gives: its log-likelihoods of the choices, normalised over them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from lm_eval.api.model import LM

from trainers.harness.tasks import HarnessTask, PromptStyle
from trainers.labels.label_set import LabelSet
from trainers.store import processes
from w2s_tasks.errors import UserError
from w2s_tasks.scoring import no_answer

log = logging.getLogger(__name__)


def label(lm: LM, task: HarnessTask, docs: Sequence[Mapping[str, Any]], ids: Sequence[str], style: PromptStyle) -> LabelSet:
    """Let a model label documents: its log-likelihoods of the choices, normalised over them.

    A row that the model refused to answer gets no label: it is left out, which is told.

    Args:
        lm: any lm_eval model that scores continuations.
        task: whose prompts and choices.
        docs: the rows to label.
        ids: their row ids.
        style: how to prompt.

    Raises:
        UserError: the model answered no row.
    """
    share = -(-len(docs) // processes.count())  # each process labels a stretch
    own = docs[processes.index() * share : (processes.index() + 1) * share]
    answers = lm.loglikelihood(task.requests(own, style, lm)) if len(own) else []
    logliks = np.array(processes.gather([float(a[0]) for a in answers]))
    rows = dict(zip(ids, np.split(logliks, np.cumsum(task.sizes(docs))[:-1]), strict=True))
    answered = {i: row for i, row in rows.items() if not no_answer.is_none(row)}
    if len(answered) < len(rows):
        _tell_unanswered(task.name, [i for i in ids if i not in answered], len(ids))
    weights = [np.exp(row - row.max()) for row in answered.values()]
    return LabelSet.of(tuple(answered), [(w / w.sum()).tolist() for w in weights])


def _tell_unanswered(task: str, ids: Sequence[str], n: int) -> None:
    """Say which rows have no label because the model did not answer them."""
    share = f"{len(ids)} of {n} rows ({100 * len(ids) / n:.1f} %)"
    said = f"{task}: the model refused, or answered with none of the choices, {share}"
    if len(ids) == n:
        raise UserError(f"{said}: there are no labels. Another model or prompt (shots, a system prompt) may answer.")
    log.warning("%s: they get no label and are left out; the first: %s", said, ", ".join(ids[:3]))
