"""An evaluation's answers without the model's prior, and how much of its probability is on the choices at all."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from w2s_tasks.results.read import TaskScores
from w2s_tasks.scoring.calibration import mean_prior
from w2s_tasks.scoring.metrics import NO_ANSWER

SAME = 1e-9
"""Log-likelihoods that differ by no more are equal."""


def calibrated(scores: TaskScores) -> TaskScores | None:
    """The same rows, answered after batch calibration (`scoring.calibration`); None where choices are no classes.

    The prior is known from these very rows, without their labels; it takes the classes to be about equally frequent among
    them. A row without an answer stays wrong and tells nothing of the prior.
    """
    if scores.logliks is None or scores.gold is None or scores.predicted is None or not scores.classes:
        return None
    answered = scores.predicted != NO_ANSWER
    if not answered.any() or scores.mode == "generated":  # decisions have no probabilities
        return None
    logliks = np.where(answered[:, None], scores.logliks - mean_prior(scores.logliks[answered]), scores.logliks)
    # A model that finds all rows alike is left without a preference: then its plain answer stays.
    apart = np.ptp(logliks, axis=1) > SAME
    predicted = np.where(answered & apart, logliks.argmax(axis=1), scores.predicted)
    return replace(scores, logliks=logliks, predicted=predicted, correct=(predicted == scores.gold).astype(float))


def mass(scores: TaskScores) -> float | None:
    """The probability of all choices together, what the model does not spend on anything else: a mean over rows.

    None where answers are not scored by the likelihood of classes.
    """
    if scores.logliks is None or scores.predicted is None or not scores.classes:
        return None
    answered = scores.predicted != NO_ANSWER
    return float(np.exp(scores.logliks[answered]).sum(axis=1).mean()) if answered.any() else None
