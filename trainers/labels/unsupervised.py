"""The arm `unsupervised`: labels without any teacher, chosen so that they predict each other (2506.10139).

Internal coherence maximization (Wen et al. 2025, "Unsupervised Elicitation of Language Models"): find labels y of rows x
that maximise U = alpha * mean_i log P(y_i | x_i, the other labelled rows) under the untuned strong model, which sees the
others as few-shot examples. Algorithm 1 there: a few rows start with random labels; then again and again a row is drawn,
given its most likely label in that context, and the change is kept if U rises, else with probability exp(dU / T), while T
falls as T0 / (1 + beta log n). What is different here, and why:

- **Contexts.** The paper puts all other labelled rows into every context. Here rows are cut into groups, and each group's
  labels are predicted from the labelled rows of the next group only. A changed label therefore asks for one group anew, and
  `w2s_tasks.packing` runs its shared context once: about 750 tokens a step for 64 short rows, instead of 90,000.
- **Degenerate labellings.** The same label everywhere predicts itself well. The paper rules that out by logical constraints
  between rows (two claims that can't both be true), which a classification task like SST-2 does not have. Here every
  prediction is divided by its mean over the rows asked in the same context (batch calibration, Zhou et al. 2309.17249): if
  a context makes one label likely whatever the row, that cancels. It assumes classes of about equal size.
- **The sign.** Flipped labels predict each other nearly as well as right ones do; what breaks the tie is what the answers'
  words ("positive") mean to the model. A search that began with unlucky random labels can end flipped, and single changes
  don't lead out. So at its end the labels are scored under every other naming of the classes too, and the best naming is
  kept. With answers that mean nothing ("A", "B") nothing breaks the tie, and the labels can come out flipped.

Rows beyond the searched ones are labelled by the same rule, from the searched groups as contexts. All labels are hard. The
arms `unsupervised_searched` and `unsupervised_spread` learn from one part alone.

What the search adds tells `unsupervised_unsearched`, which is all of this but the steps: the same random labels on the same
few rows, the same groups, calibration and spread. The rows that would be searched get their likeliest label in the context
of the random ones, so that the others have as many shots before them as after a search. No naming is chosen either, for that
is a step of the search by the same score. What is in these labels comes of random shots, the answers' words and an even use
of the classes.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field, model_validator

from trainers.harness.tasks import HarnessTask, PromptStyle
from trainers.labels.label_set import Array, LabelSet
from trainers.section import Section
from trainers.store.stages import CHECKPOINTS, write_atomic
from w2s_tasks import notebook, packing
from w2s_tasks.errors import UserError
from w2s_tasks.scoring.calibration import batch_calibrated

Predict = Callable[[Sequence[tuple[int, int]], Sequence[int]], Array]
"""(rows with labels as context, rows asked) -> log-probabilities of the choices, shape [rows asked, choices]."""

NONE = -1
MOST_RENAMED = 4


class Unsupervised(Section):
    """The arm unsupervised: labels that make each other likely to the untuned strong model (Wen et al., 2506.10139)."""

    rows: int = Field(default=64, ge=4)
    """Transfer rows whose labels are searched; the others are labelled from them, in context."""
    groups: int = Field(default=4, ge=2)
    """The rows are cut into so many groups; each is the context from which another one's labels are predicted."""
    initial: int = Field(default=8, ge=2)
    """Rows that begin with random labels."""
    steps: int = Field(default=256, ge=1)
    """Rows drawn; a step costs nothing where the drawn row has its most likely label already."""
    alpha: float = Field(default=50.0, gt=0)
    """Weight of the mean log-probability in the score, before the temperature divides it."""
    start_temperature: float = Field(default=10.0, gt=0)
    """Temperature of the first acceptance."""
    final_temperature: float = Field(default=0.01, gt=0)
    """The temperature never falls below."""
    cooling: float = Field(default=2.0, gt=0)
    """beta in T = start / (1 + beta log n)."""
    calibrate: bool = True
    """Divide by each context's mean prediction first: without it the same label everywhere is the likeliest."""

    @model_validator(mode="after")
    def _fits(self) -> Unsupervised:
        if self.rows < 2 * self.groups:
            raise ValueError(f"{self.rows} rows can't be cut into {self.groups} groups of at least 2")
        if self.initial > self.rows:
            raise ValueError(f"initial: {self.initial} random labels for {self.rows} rows")
        return self

    def parts(self, labels: LabelSet) -> dict[str, LabelSet]:
        """The labels of the rows that were searched, which are the first, and of those to which they were spread."""
        rows = np.arange(len(labels))
        return {"searched": labels.take(rows[: self.rows]), "spread": labels.take(rows[self.rows :])}

    @property
    def unsearched(self) -> Unsupervised:
        """The same without a step; what only steps use is as by default, so that it changes nothing."""
        kept = self.model_dump(include={"rows", "groups", "initial", "calibrate"})
        return Unsupervised(**kept).model_copy(update={"steps": 0})


class InContext:
    """Predictions of an untuned language model with labelled rows as few-shot examples, rendered as lm_eval renders shots.

    Prompts are plain text, whatever the chat template of training and evaluation: completing a list of examples is what a
    pretrained model is asked for here.
    """

    def __init__(self, task: HarnessTask, lm: Any, docs: Sequence[dict[str, Any]]) -> None:
        self._lm = lm
        self._description = str(task.task.config.description or "")
        self._delimiter = str(task.task.config.fewshot_delimiter)
        pairs = [task.pairs(doc, PromptStyle()) for doc in docs]
        self._prompts = [p[0][0].removeprefix(self._description) for p in pairs]
        self._answers = [[answer for _, answer in p] for p in pairs]

    def __call__(self, context: Sequence[tuple[int, int]], rows: Sequence[int]) -> Array:
        """Log-probabilities of the choices of `rows`.

        Raises:
            UserError: the context does not fit the model's window.
        """
        shots = "".join(self._prompts[i] + self._answers[i][label] + self._delimiter for i, label in context)
        texts = [(self._description + shots + self._prompts[i], answer) for i in rows for answer in self._answers[i]]
        requests = self._lm.encode(texts)
        longest = max(len(a) + len(b) for a, b in requests)
        if longest > self._lm.max_length + 1:
            raise UserError(
                f"unsupervised: a context of {len(context)} rows takes {longest} tokens, the model's window is "
                f"{self._lm.max_length}. Take fewer unsupervised.rows, or more unsupervised.groups."
            )
        with torch.inference_mode():
            scores = packing.score(self._lm.language_model, requests, max_length=self._lm.max_length)
        return scores.loglik.view(len(rows), -1).double().log_softmax(-1).numpy(force=True)


@dataclass
class Search:
    """The labels so far: `labels[i]` is a choice or -1; `logprobs[i]` is row i's prediction from its present context."""

    settings: Unsupervised
    predict: Predict
    labels: Array
    logprobs: Array
    rng: np.random.Generator
    step: int = 0
    trace: list[tuple[int, float, int]] | None = None

    @classmethod
    def start(cls, settings: Unsupervised, predict: Predict, choices: int, rng: np.random.Generator) -> Search:
        """A few random labels, as many of each choice as possible in every group."""
        labels = np.full(settings.rows, NONE)
        for group in range(settings.groups):
            first = np.arange(group, settings.initial, settings.groups)
            labels[first] = rng.permutation(np.resize(np.arange(choices), len(first)))
        search = cls(settings, predict, labels, np.zeros((settings.rows, choices)), rng, trace=[])
        for group in range(settings.groups):
            search.logprobs[search.members(group)] = search.asked(group, labels)
        return search

    def members(self, group: int) -> Array:
        """The rows of a group."""
        return np.arange(group % self.settings.groups, self.settings.rows, self.settings.groups)

    def context_of(self, group: int, labels: Array) -> list[tuple[int, int]]:
        """The labelled rows of the next group: the context from which a group's labels are predicted."""
        return [(int(i), int(labels[i])) for i in self.members(group + 1) if labels[i] != NONE]

    def asked(self, group: int, labels: Array, rows: Sequence[int] | None = None) -> Array:
        """Predictions of a group's rows (or of other rows, from that group's context), calibrated where asked for."""
        found = self.predict(self.context_of(group, labels), self.members(group).tolist() if rows is None else rows)
        return batch_calibrated(found) if self.settings.calibrate else found

    def score(self, labels: Array, logprobs: Array) -> float:
        """U: alpha times the mean log-probability of the labelled rows' labels."""
        rows = np.flatnonzero(labels != NONE)
        return float(self.settings.alpha * logprobs[rows, labels[rows]].mean())

    def temperature(self) -> float:
        """T = max(T_min, T_0 / (1 + beta log n)) at step n."""
        s = self.settings
        return max(s.final_temperature, s.start_temperature / (1 + s.cooling * math.log(max(1, self.step))))

    def advance(self) -> bool:
        """One step of Algorithm 1; whether the model was asked."""
        self.step += 1
        row = int(self.rng.integers(self.settings.rows))
        label = int(self.logprobs[row].argmax())
        if self.labels[row] == label:
            return False
        labels, logprobs = self.labels.copy(), self.logprobs.copy()
        labels[row] = label
        # The row's own group is the context of the group before it, and of no other.
        before = (row - 1) % self.settings.groups
        logprobs[self.members(before)] = self.asked(before, labels)
        change = self.score(labels, logprobs) - self.score(self.labels, self.logprobs)
        if change > 0 or self.rng.random() < math.exp(change / self.temperature()):
            self.labels, self.logprobs = labels, logprobs
        if self.trace is not None:
            self.trace.append((self.step, self.score(self.labels, self.logprobs), int((self.labels != NONE).sum())))
        return True

    def rename(self) -> None:
        """Keep the naming of the classes under which the labels score best: a flipped labelling is a local maximum.

        Not tried for more than four choices, whose namings are too many.
        """
        choices = self.logprobs.shape[1]
        for names in itertools.permutations(range(choices)) if choices <= MOST_RENAMED else ():
            labels = np.where(self.labels == NONE, NONE, np.array(names)[self.labels])
            logprobs = np.empty_like(self.logprobs)
            for group in range(self.settings.groups):
                logprobs[self.members(group)] = self.asked(group, labels)
            if self.score(labels, logprobs) > self.score(self.labels, self.logprobs):
                self.labels, self.logprobs = labels, logprobs

    def finished(self) -> Array:
        """The labels, rows that were never labelled with their most likely one; shape [rows]."""
        return np.where(self.labels == NONE, self.logprobs.argmax(axis=1), self.labels)

    def save(self, path: Path) -> None:
        """Write the state, so that a killed search goes on from here."""
        state = {
            "step": self.step,
            "labels": self.labels.tolist(),
            "logprobs": self.logprobs.tolist(),
            "rng": self.rng.bit_generator.state,
            "trace": self.trace,
        }
        write_atomic(path, json.dumps(state))

    @classmethod
    def load(cls, path: Path, settings: Unsupervised, predict: Predict) -> Search:
        """Read a saved state."""
        state = json.loads(path.read_text(encoding="utf-8"))
        rng = np.random.default_rng()
        rng.bit_generator.state = state["rng"]
        trace = [tuple(point) for point in state["trace"]]
        return cls(settings, predict, np.array(state["labels"]), np.array(state["logprobs"]), rng, state["step"], trace)


def find_labels(
    settings: Unsupervised, predict: Predict, rows: int, choices: int, rng: np.random.Generator, work: Path, title: str
) -> tuple[Array, Search]:
    """Search labels of the first rows, then label the others in their context.

    Args:
        settings: of the search.
        predict: the model.
        rows: how many rows there are in all.
        choices: choices a row.
        rng: for the random labels, the rows drawn and the acceptances.
        work: where the state is kept for a resume.
        title: of the progress bar.

    Returns:
        The labels, shape [rows], and the search.

    Raises:
        UserError: fewer rows than the search needs.
    """
    if rows < settings.rows:
        raise UserError(f"unsupervised.rows: {settings.rows} rows to search, the transfer half has {rows}.")
    saved = work / "search.json"
    work.mkdir(parents=True, exist_ok=True)
    search = Search.load(saved, settings, predict) if saved.is_file() else Search.start(settings, predict, choices, rng)
    with notebook.bar(total=settings.steps, initial=search.step, desc=title, unit="step") as bar:
        while search.step < settings.steps:
            asked = search.advance()
            bar.update()
            if asked:
                search.save(saved)
    if settings.steps:
        search.rename()  # a part of the search: it asks which labelling predicts itself best
    labels = np.full(rows, NONE)
    labels[: settings.rows] = search.finished()
    for group in range(settings.groups):
        rest = list(range(settings.rows + group, rows, settings.groups))
        if rest:
            labels[rest] = search.asked(group, labels[: settings.rows], rest).argmax(axis=1)
    return labels, search


def label_without_teacher(
    task: HarnessTask,
    lm: Any,
    docs: Sequence[dict[str, Any]],
    ids: Sequence[str],
    settings: Unsupervised,
    seed: int,
    out: Path,
) -> LabelSet:
    """Label documents by internal coherence alone.

    Writes search.json into `out`: the score by step, and the rows that were searched with their labels.

    Args:
        task: whose prompts and choices.
        lm: the untuned strong model, loaded.
        docs: the documents.
        ids: their row ids.
        settings: of the search.
        seed: of its random choices.
        out: the stage's work folder.
    """
    choices = len(task.classes)
    labels, search = find_labels(
        settings,
        InContext(task, lm, docs),
        len(docs),
        choices,
        np.random.default_rng(seed),
        out / CHECKPOINTS,
        "search labels",
    )
    trace = [dict(zip(("step", "score", "labelled"), point, strict=True)) for point in search.trace or []]
    found = {"row_id": list(ids[: settings.rows]), "labels": search.finished().tolist()}
    write_atomic(out / "search.json", json.dumps({"trace": trace, **found}))
    return LabelSet(tuple(ids), np.eye(choices)[labels])
