"""The two kinds of labels, and the one place that tells which a task has: a distribution over choices, or a text."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints

from trainers.harness.tasks import HarnessTask
from trainers.labels.gold import Gold, GoldTexts
from trainers.labels.label_set import LabelSet
from trainers.labels.text_labels import TextLabels

AnyLabels = LabelSet | TextLabels


@dataclass(frozen=True)
class LabelKind:
    """A kind of labels, with the gold labels that go with it."""

    labels: type[AnyLabels]
    gold: type[Gold] | type[GoldTexts]


CHOICES, TEXTS = LabelKind(LabelSet, Gold), LabelKind(TextLabels, GoldTexts)


def kind_for(task: HarnessTask) -> LabelKind:
    """What kind of labels a task has."""
    return TEXTS if task.generates else CHOICES


def takes(operation: Callable[..., Any], labels: type[AnyLabels]) -> bool:
    """Whether an operation takes labels of a kind: what its first argument is annotated with; choices without annotation."""
    first = next(iter(inspect.signature(operation).parameters))
    hint = get_type_hints(operation).get(first, LabelSet)
    return labels in (get_args(hint) or (hint,))
