"""Calibrated scores: how much likelier a choice is on a row than the model finds it anyway.

A model prefers some answers whatever it is asked. Its prior over the choices, a constant for each, is taken from every row's
log-likelihoods, and what is left is what the row itself says. Three ways to know the prior, none of which sees a label:

* ``batch``: the mean of its probabilities over the rows asked (Zhou et al. 2023, arXiv 2309.17249, eq. 3). Takes classes to
  be about equally frequent among these rows.
* ``contextual``: its probabilities where the row's own text is "N/A", "[MASK]" or empty (Zhao et al. 2021, arXiv 2102.09690,
  section 5).
* ``domain``: the log-likelihood of each choice after the end of the prompt alone ("Answer:"), domain-conditional PMI
  (Holtzman et al. 2021, arXiv 2104.08315, eq. 4). The only one for rows that have choices of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax, logsumexp

Array = npt.NDArray[Any]
Calibration = Literal["batch", "contextual", "domain"]
CONTENT_FREE = ("N/A", "[MASK]", "")


def mean_prior(logliks: Array) -> Array:
    """Log of the mean probabilities over rows, shape [rows, choices] -> [choices]."""
    return np.asarray(logsumexp(log_softmax(logliks, axis=1), axis=0) - np.log(len(logliks)))


def batch_calibrated(logliks: Array) -> Array:
    """Log-probabilities of the choices after batch calibration, shape [rows, choices]."""
    prior = mean_prior(logliks)
    # A class that has no probability on any row keeps none.
    return np.asarray(log_softmax(logliks - np.where(np.isfinite(prior), prior, 0), axis=1))


def frame(prompts: Iterable[str]) -> tuple[str, str]:
    """What all prompts of a task begin and end with: its template and its shots, without the rows' own texts.

    Texts that begin or end alike by chance are cut back to whole words.
    """
    texts = set(prompts)
    before = _beginning(texts)
    after = _beginning({text[len(before) :][::-1] for text in texts})[::-1]
    return re.sub(r"\w+$", "", before), re.sub(r"^\w+", "", after)


def _beginning(texts: Iterable[str]) -> str:
    """The longest text that all of some texts begin with."""
    first, last = min(texts), max(texts)
    same = (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)
    return first[: next(same, len(first))]


def content_free(prompts: Sequence[str]) -> list[str]:
    """The prompts of a task with nothing in them: in the place of the row's text what `CONTENT_FREE` says."""
    before, after = frame(prompts)
    return [before + text + after for text in CONTENT_FREE]


def premise(prompts: Sequence[str]) -> str:
    """The end of a task's prompts, after which its answers come: the last line that all of them have in common."""
    after = frame(prompts)[1]
    return after[after.rstrip().rfind("\n") + 1 :] if after.strip() else ""
