"""Labels that a model gives: its log-likelihoods of the choices, normalised over them.

Where labels are solutions it is asked by `trainers.labels.solutions`.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from lm_eval.api.model import LM

from trainers.harness.tasks import HarnessTask, PromptStyle
from trainers.labels.kinds import AnyLabels
from trainers.labels.label_set import LabelSet
from trainers.store import processes
from w2s_tasks.errors import UserError
from w2s_tasks.scoring import no_answer

log = logging.getLogger(__name__)

Docs = Sequence[Mapping[str, Any]]


class Asking(Protocol):
    """How a model is asked for labels."""

    @property
    def hard(self) -> bool:
        """Whether its probabilities become decisions."""

    def recipe(self, seed: int) -> dict[str, Any]:
        """All of it that labels depend on; `seed` is the experiment's."""

    def ask(
        self, lm: Any, task: HarnessTask, docs: Docs, ids: Sequence[str], style: PromptStyle, seed: int, out: Path
    ) -> AnyLabels:
        """Labels of documents; `out` is the stage's folder, where a killed labelling goes on."""


@dataclass(frozen=True)
class OverChoices:
    """Asks for probabilities over the choices."""

    hard: bool = False
    """All weight on the most probable one."""

    def recipe(self, seed: int) -> dict[str, Any]:
        """Whether they are decisions; nothing is drawn."""
        return {"hard": self.hard}

    def ask(
        self, lm: Any, task: HarnessTask, docs: Docs, ids: Sequence[str], style: PromptStyle, seed: int, out: Path
    ) -> LabelSet:
        """As `label`."""
        labels = label(lm, task, docs, ids, style)
        return labels.hardened() if self.hard else labels


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
    tell_unanswered(f"{task.name}: the model refused, or answered with none of the choices,", answered, ids)
    weights = [np.exp(row - row.max()) for row in answered.values()]
    return LabelSet.of(tuple(answered), [(w / w.sum()).tolist() for w in weights], bool(task.classes))


def tell_unanswered(what: str, answered: Collection[str], ids: Sequence[str]) -> None:
    """Say which rows have no label, and why.

    Args:
        what: the reason, before how many.
        answered: the ids of the rows that have one.
        ids: of all rows.

    Raises:
        UserError: none has.
    """
    without = [i for i in ids if i not in answered]
    said = f"{what} {len(without)} of {len(ids)} rows ({100 * len(without) / max(1, len(ids)):.1f} %)"
    if ids and not answered:
        raise UserError(f"{said}: there are no labels. Another model or prompt (shots, a system prompt) may answer.")
    if without:
        log.warning("%s: they get no label and are left out; the first: %s", said, ", ".join(without[:3]))
