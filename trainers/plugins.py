"""What a plug-in registers, for its authors: ``from trainers.plugins import loss, label_op, arm``.

A plug-in is a Python file or module. What it defines with one of these decorators is there under its name in experiment
files, as the suite's own is, which is defined with the same ones::

    loss            a training loss, one value a row            trainers.training.losses
    whole_step      marks a loss that looks at a whole step
    label_op        labels to labels, without a model           trainers.labels.operations
    needs_confidence, needs_gold
                    mark operations that rank soft labels, or that are given gold ones
    model_op        labels by steps that train or ask a model   trainers.steps.teachers
    arm             a way to get a strong model, or a control   trainers.labels.arms
    trainer         a way to train a model                      trainers.fit.trainer
    section         a part of the report                        trainers.report.section

The other names are what these take and give. All are imported when they are asked for.
"""

from __future__ import annotations

import importlib
from typing import Any

PLACES = {
    "trainer": "trainers.fit.trainer",
    "arm": "trainers.labels.arms",
    "LabelSet": "trainers.labels.label_set",
    "label_op": "trainers.labels.operations",
    "needs_confidence": "trainers.labels.operations",
    "needs_gold": "trainers.labels.operations",
    "TextLabels": "trainers.labels.text_labels",
    "load_plugin": "trainers.plugin_loader",
    "Section": "trainers.report.section",
    "section": "trainers.report.section",
    "Settings": "trainers.section",
    "Labels": "trainers.steps.source",
    "Source": "trainers.steps.source",
    "read_labels": "trainers.steps.source",
    "Repetition": "trainers.steps.teachers",
    "answers_of": "trainers.steps.teachers",
    "computed": "trainers.steps.teachers",
    "embeddings_of": "trainers.steps.teachers",
    "model_op": "trainers.steps.teachers",
    "trained": "trainers.steps.teachers",
    "LOSSES": "trainers.training.losses",
    "State": "trainers.training.losses",
    "loss": "trainers.training.losses",
    "whole_step": "trainers.training.losses",
    "UserError": "w2s_tasks.errors",
}
"""Where each name is defined; `plugins.pyi` tells type checkers and editors the same."""

__all__ = sorted(PLACES)


def __getattr__(name: str) -> Any:
    if name not in PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(PLACES[name]), name)


def __dir__() -> list[str]:
    return __all__
