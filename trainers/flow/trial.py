"""A dry call of an experiment's losses, label operations and arms on a few made rows, before hours of training."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from trainers.config.experiment import Experiment
from trainers.config.methods import parse_method
from trainers.harness.tasks import HarnessTask
from trainers.labels.arms import ARMS, operation
from trainers.labels.kinds import AnyLabels
from trainers.labels.label_set import Array, LabelSet
from trainers.labels.operations import METHOD_OPS
from trainers.labels.text_labels import TextLabels
from trainers.registry import place_of
from trainers.steps.computed import Computed, blaming, called
from trainers.steps.embeddings import Embeddings
from trainers.steps.source import needs_gold
from trainers.steps.step import Step
from trainers.steps.teachers import MODEL_OPS
from trainers.training.losses import ABSENT, LOSSES, WHOLE_STEP, State
from trainers.training.rows import normalised
from w2s_tasks import code_scope
from w2s_tasks.errors import UserError

ROWS, WIDTH = 24, 16
"""Made rows, and numbers in a hidden state."""
GOLD_NAMES = frozenset({"gold", "solution", "Gold", "GoldTexts", "GOLD", "gold_labels", "doc_to_target"})
"""What a user's code gets at gold labels by."""


def try_parts(config: Experiment, task: HarnessTask) -> None:
    """Call every loss, operation and arm that makes labels once, and look at what it gives.

    Raises:
        UserError: one raises, gives something of another shape, values that are not finite, labels of other rows, or reads
            gold labels without saying so; with file and line.
    """
    methods = [parse_method(method) for method in config.methods] if "student" in config.arms else []
    arms = [arm for arm in config.arms if arm in ARMS and ARMS[arm].labels]
    labels, gold = _rows_of(task)
    for name in [op for method in methods for op in method.ops if op in METHOD_OPS] + arms:
        _try_operation(name, labels, gold, config.method_args.of(name) if name in METHOD_OPS else {})
    for name in dict.fromkeys(op for method in methods for op in method.ops if op in MODEL_OPS):
        if not MODEL_OPS[name].sees_gold:
            _refuse_gold(name, MODEL_OPS[name].steps)
    if isinstance(labels, LabelSet):
        for loss in dict.fromkeys(method.loss for method in methods):
            _try_loss(loss, labels, config.method_args.of(loss))


def try_computed(steps: Iterable[Step], task: HarnessTask) -> None:
    """Call the functions of steps that compute labels, on made rows, labels and hidden states.

    Raises:
        UserError: as `try_parts`.
    """
    for step in (step for step in steps if isinstance(step, Computed)):
        labels, gold = _rows_of(task)
        states = np.random.default_rng(1).normal(size=(len(labels), WIDTH)).astype(np.float32)
        given = [states if isinstance(one, Embeddings) else labels for one in step.given]
        more = (gold,) if step.gold else ()
        called(step.function, step.whose, labels, *given, np.random.default_rng(0), *more, **step.settings)


def _rows_of(task: HarnessTask) -> tuple[AnyLabels, Array]:
    sizes = [len(task.classes)] * ROWS if task.classes else [2, 3, 4] * (ROWS // 3)
    return _labels(sizes, bool(task.classes), texts=task.generates)


def _labels(sizes: list[int], classes: bool, *, texts: bool) -> tuple[AnyLabels, Array]:
    """Labels of made rows, with what is right."""
    rng = np.random.default_rng(0)
    ids = [f"trial row {i}" for i in range(len(sizes))]
    gold = np.array([i % size for i, size in enumerate(sizes)])
    if texts:
        return TextLabels.of({i: (f"It is {n}.", str(n), -1.0 - n, 0.5) for n, i in enumerate(ids)}), gold
    return LabelSet.of(ids, [rng.dirichlet(np.ones(size)).tolist() for size in sizes], classes), gold


def _wrong(name: str, function: Callable[..., Any], what: str) -> UserError:
    return UserError(f"{place_of(function)}: {name} {what}.")


def _try_loss(name: str, labels: LabelSet, settings: dict[str, Any]) -> None:
    """On soft and hard labels, at the beginning and the end of a training."""
    loss, sizes = LOSSES[name], labels.present.sum(axis=1).tolist()
    _refuse_gold(name, loss)
    for soft, progress in ((labels.soft, 0.0), (labels.hardened().soft, 1.0)):
        targets = torch.tensor(soft, dtype=torch.float32)
        scores = torch.linspace(-2, 2, sum(sizes)).requires_grad_()
        logprobs = normalised(scores, targets, sizes)
        batch = logprobs.detach().exp() if name in WHOLE_STEP else None
        state = State(progress, targets.mean(dim=0), batch, classes=labels.sizes is None)
        with blaming(name, loss):
            values = loss(logprobs, targets, state, **settings)
        if not isinstance(values, torch.Tensor) or values.shape != (len(labels),):
            what = f"a tensor of shape {list(values.shape)}" if isinstance(values, torch.Tensor) else type(values).__name__
            raise _wrong(name, loss, f"gives {what}; a loss gives one value a row, shape [{len(labels)}] here")
        if not bool(torch.isfinite(values).all()):
            row = int(torch.isfinite(values).logical_not().nonzero()[0])
            about = f"log-probabilities {_told(logprobs[row])}, label {_told(targets[row])}"
            raise _wrong(name, loss, f"is {float(values[row].detach())} for a row with {about}")
        if not values.requires_grad:
            raise _wrong(name, loss, "does not depend on the student's log-probabilities, so that nothing could be learnt")
        with blaming(name, loss):
            values.sum().backward()
        if scores.grad is None or not bool(torch.isfinite(scores.grad).all()):
            raise _wrong(name, loss, "has a gradient that is not finite")


def _told(row: torch.Tensor) -> str:
    return "[" + ", ".join(f"{x:.3g}" for x in row.tolist() if x > ABSENT) + "]"


def _try_operation(name: str, labels: AnyLabels, gold: Array, settings: dict[str, Any]) -> None:
    function = operation(name)
    told = needs_gold(name)
    if not told:
        taken = [p for p in inspect.signature(function).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
        if len(taken) > 2:
            what = (
                f"takes {taken[2].name} beside labels and rng. Settings stand behind a *; gold labels are for what says so "
                "(@needs_gold above an operation, sees_gold=True for an arm)"
            )
            raise _wrong(name, function, what)
        _refuse_gold(name, function)
    called(function, name, labels, labels, np.random.default_rng(0), *((gold,) if told else ()), **settings)


def _refuse_gold(name: str, function: Callable[..., Any]) -> None:
    """Refuse a user's code that reads gold labels and does not say so.

    Its source is searched for the names by which it could; so this finds mistakes, not ill will.
    """
    place = code_scope.mentioned(function, GOLD_NAMES)
    if place is not None:
        raise UserError(
            f"{place}: {name} reads gold labels. A student must not see them: say so where it is registered "
            "(sees_gold=True, or @needs_gold above a label operation), and the report says it too."
        )
