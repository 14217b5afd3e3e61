"""The arms of an experiment: ways to get a strong model, one entry each, with all that the rest needs to know of it.

An arm that is trained on labels made without a model is a function from labels to labels with `arm` above it; those that no
labels train, and those whose labels a model finds, are entries of `ARMS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from trainers.labels.kinds import AnyLabels
from trainers.labels.label_set import Array, LabelSet
from trainers.labels.operations import METHOD_OPS, LabelOp
from trainers.registry import Registry

UNSEEN = "; no gold label was seen"
"""Of a student's labels, unless its method was given some."""
Teacher = Literal["weak", "method", "gold", "all gold", "itself", "search"]
"""Where an arm's labels come from: the weak supervisor; it and what the student's method does; gold labels of the transfer
rows, or of all; the strong model untuned; labels that predict each other (`trainers.labels.unsupervised`)."""


@dataclass(frozen=True)
class Kind:
    """What an arm is."""

    colour: str
    """In figures; Okabe-Ito's and near them, told apart by colour-blind readers and in grey."""
    provenance: str
    """What its model learnt from, for model cards, with the fields weak, percent and n of the weak labels."""
    teacher: Teacher | None = None
    """None where nothing is trained for it."""
    model: Literal["weak", "strong"] = "strong"
    """The section of the experiment whose model it is."""
    labels: LabelOp | None = None
    """What makes its labels of its teacher's."""
    shots: Literal["gold", "weak", "random"] | None = None
    """Whose labels the examples in its prompt have, of which NAME(K) says how many; None for an arm without its own."""
    search: Literal["searched", "spread", "unsearched"] | None = None
    """Of the labels of a search, those that it takes: of the rows that were searched, of the others, or of all rows as they
    are before any step; None for all rows after it."""
    calibrated: bool = False
    """Whether its answers are given without the model's prior over the choices (`evaluate.calibration`)."""
    sees_gold: bool = False
    """Whether that takes the rows' gold labels, shape [n], as a third argument: a control, no student."""


ARMS: Registry[Kind] = Registry(
    "arm",
    space="method",
    zero_shot=Kind("#56b4e9", "no label: the model as it is"),
    zero_shot_calibrated=Kind(
        "#3b7ea1", "no label: the model as it is, without its prior over the choices (calibration)", calibrated=True
    ),
    few_shot=Kind("#0072b2", "no label: the model as it is, with examples in its prompt", shots="gold"),
    in_context=Kind(
        "#c44e52", "no training: labels of the weak supervisor ({weak}) on examples in its prompt", "weak", shots="weak"
    ),
    weak=Kind("#777777", "gold labels of the weak half of the training split", model="weak"),
    weak_untrained=Kind("#aaaaaa", "no label: the weak model as it is", model="weak"),
    self_labels=Kind("#6a5acd", "the untuned strong model's own zero-shot labels; no teacher", "itself"),
    unsupervised=Kind(
        "#8fb339", "labels that the untuned strong model finds mutually predictable (arXiv 2506.10139); no teacher", "search"
    ),
    unsupervised_searched=Kind(
        "#5f7a1f",
        "labels that the untuned strong model finds mutually predictable (arXiv 2506.10139), of the rows that were searched "
        "alone; no teacher",
        "search",
        search="searched",
    ),
    unsupervised_spread=Kind(
        "#c5d98f",
        "labels that the untuned strong model gives with rows in its prompt whose labels it finds mutually predictable "
        "(arXiv 2506.10139), without these rows; no teacher",
        "search",
        search="spread",
    ),
    unsupervised_unsearched=Kind(
        "#6b6b3a",
        "labels that the untuned strong model gives in context, beginning with a few random ones: a control",
        "search",
        search="unsearched",
    ),
)
"""What each name in `arms` stands for; the names of the others are their functions'."""


def arm(colour: str, provenance: str, teacher: Teacher = "weak", **more: Any) -> Callable[[LabelOp], LabelOp]:
    """Register an arm by the function that makes its labels of its teacher's; see `Kind`."""

    def register(function: LabelOp) -> LabelOp:
        ARMS.add(function.__name__, Kind(colour, provenance, teacher, labels=function, **more), function)
        return function

    return register


SHOTS = re.compile(r"(\w+)\(([1-9][0-9]*)\)")


def entry_of(name: str) -> str:
    """The name under which an arm is registered; few_shot(4) is a few_shot."""
    return name.partition("(")[0]


def kind_of(name: str) -> Kind:
    """The entry of an arm."""
    return ARMS[entry_of(name)]


def is_arm(name: str) -> bool:
    """Whether there is such an arm: an entry, or NAME(K) of one that has examples in its prompt."""
    sized = SHOTS.fullmatch(name)
    return name in ARMS or (sized is not None and sized[1] in ARMS and ARMS[sized[1]].shots is not None)


def is_plain(name: str) -> bool:
    """Whether an arm is a model that no label of this experiment teaches: untuned, prompted, or the supervisor itself."""
    return is_arm(name) and kind_of(name).teacher is None


def operation(name: str) -> LabelOp:
    """A label operation by its name: an arm's or a method's."""
    made = ARMS[name].labels if name in ARMS else METHOD_OPS[name]
    assert made is not None  # noqa: S101 - arms without an operation are in no list of operations
    return made


@arm(
    "#d55e00",
    "labels of the weak supervisor ({weak}), {percent} % right on these {n} rows" + UNSEEN,
    "method",
)
def student(labels: AnyLabels, rng: np.random.Generator) -> AnyLabels:
    """The labels as they are."""
    return labels


@arm(
    "#a89cf0",
    "the untuned strong model's own zero-shot labels, without its prior over the classes (arXiv 2309.17249); no teacher",
    "itself",
)
def self_labels_calibrated(labels: LabelSet, rng: np.random.Generator) -> LabelSet:
    """The untuned strong model's own labels, batch-calibrated: the control of what an even use of the classes does."""
    return METHOD_OPS["calibrate"](labels, rng)


@arm("#009e73", "gold labels of the {n} rows that the student learns from", "gold")
def ceiling(labels: AnyLabels, rng: np.random.Generator) -> AnyLabels:
    """The gold labels of the same rows."""
    return labels


@arm("#006d50", "gold labels of all rows", "all gold")
def ceiling_full(labels: AnyLabels, rng: np.random.Generator) -> AnyLabels:
    """The gold labels of all rows, the weak supervisor's too."""
    return labels


@arm("#cc79a7", "a uniformly random choice for each row: a control, not a useful model", "gold")
def random_labels(labels: LabelSet, rng: np.random.Generator) -> LabelSet:
    """A uniformly random choice for each row: what training on this many examples does without any information."""
    widest = labels.soft.shape[1]
    sizes = np.full(len(labels), widest) if labels.sizes is None else labels.sizes
    return labels.with_soft(np.eye(widest)[rng.integers(sizes)])


@arm("#7d4f6d", "no training: random choices on examples in its prompt: a control", "gold", shots="random")
def random_shots(labels: LabelSet, rng: np.random.Generator) -> LabelSet:
    """Rows with random choices in the prompt of the untuned strong model, of each choice as many: what any shots do.

    Much of what shots bring is the format and the words of the answers, not that they are right (Min et al. 2022, arXiv
    2202.12837). What `few_shot` or `in_context` gains over this arm with as many shots is what their labels tell.
    """
    return random_labels(labels, rng)


@arm("#e69f00", "the weak labels dealt out to other rows: a control, not a useful model")
def permuted_labels(labels: AnyLabels, rng: np.random.Generator) -> AnyLabels:
    """The weak labels dealt out to other rows: their marginal distribution without their information.

    Where rows have different numbers of choices, each row's probabilities are dealt out among its own choices.
    """
    return labels.permuted(rng)


@arm(
    "#a6761d", "gold labels with random errors drawn from the weak supervisor's confusion matrix: a control", sees_gold=True
)
def noise_matched(labels: LabelSet, rng: np.random.Generator, gold: Array) -> LabelSet:
    """The weak labels dealt out anew among the rows of each gold class: as wrong and as sure, but not systematically.

    That draws errors from the weak supervisor's confusion matrix without replacement: the matrix, and with it the accuracy
    and the class priors, stay exactly what they were; only which row of a class is mistaken is left to chance.

    Where rows have different numbers of choices there are no classes: which rows are mistaken is dealt out among all of
    them, and each row's probabilities among its own choices, the largest on the right one or on another.
    """
    if labels.sizes is not None:
        right = rng.permutation(labels.hard == gold)
        own = zip(labels.lists, gold.tolist(), right.tolist(), strict=True)
        return LabelSet.of(labels.row_id, [_dealt(row, place, ok, rng) for row, place, ok in own], classes=False)
    soft = labels.soft.copy()
    for right in np.unique(gold):
        rows = np.flatnonzero(gold == right)
        soft[rows] = labels.soft[rng.permutation(rows)]
    return labels.with_soft(soft)


@arm(
    "#8c6d31",
    "gold labels with errors drawn from the weak supervisor's confusion matrix, made hard: a control",
    sees_gold=True,
)
def noise_matched_hard(labels: LabelSet, rng: np.random.Generator, gold: Array) -> LabelSet:
    """`noise_matched` with all weight on the most probable choice: the control of a student of hard labels (`harden`)."""
    return noise_matched(labels, rng, gold).hardened()


BINS = 10
"""Of confidence, with about as many rows each, in `confidence_matched`."""


@arm(
    "#bcbd22",
    "the weak supervisor's confidence on every row, its errors dealt out among equally sure rows: a control",
    sees_gold=True,
)
def confidence_matched(labels: LabelSet, rng: np.random.Generator, gold: Array) -> LabelSet:
    """Each row keeps the supervisor's confidence; which of the equally sure rows of a gold class are mistaken is dealt out.

    `noise_matched` moves whole labels, so that a row's confidence is no longer its own, and a student that learns from the
    supervisor's doubt is not controlled for. Here what a row is taken for is permuted within tenths of confidence of its
    gold class: confusion matrix, confidence of every row and calibration stay, only the system in the errors goes. A row's
    other probabilities are kept; that of its new choice changes place with the largest.

    Where rows have different numbers of choices there are no classes: whether a row is mistaken is permuted within tenths
    of confidence, and its probabilities are dealt out as in `noise_matched`.
    """
    if labels.sizes is not None:
        right = labels.hard == gold
        for rows in _tenths(np.arange(len(labels)), labels.confidence[:, 0]):
            right[rows] = right[rng.permutation(rows)]
        own = zip(labels.lists, gold.tolist(), right.tolist(), strict=True)
        return LabelSet.of(labels.row_id, [_dealt(row, place, ok, rng) for row, place, ok in own], classes=False)
    old, new, soft = labels.hard, labels.hard.copy(), labels.soft.copy()
    for right in np.unique(gold):
        for rows in _tenths(np.flatnonzero(gold == right), labels.confidence[:, 0]):
            new[rows] = old[rng.permutation(rows)]
    every = np.arange(len(labels))
    soft[every, new], soft[every, old] = labels.soft[every, old], labels.soft[every, new]
    return labels.with_soft(soft)


def _tenths(rows: Array, confidence: Array) -> list[Array]:
    """Rows in groups of like confidence, the least sure first."""
    return [part for part in np.array_split(rows[np.argsort(confidence[rows], kind="stable")], BINS) if len(part)]


def _dealt(probabilities: list[float], gold: int, right: bool, rng: np.random.Generator) -> list[float]:
    """A row's probabilities among its choices at random, but the largest on the right one, or on one that is not."""
    dealt = rng.permutation(probabilities)
    top = gold if right else int(rng.choice([i for i in range(len(dealt)) if i != gold]))
    largest = int(dealt.argmax())
    dealt[[top, largest]] = dealt[[largest, top]]
    return [float(x) for x in dealt]
