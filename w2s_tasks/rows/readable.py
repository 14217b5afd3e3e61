"""Tasks whose results could not be read row by row afterwards, and labels that lm_eval can't score, told before any work."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from lm_eval.api.task import ConfigurableTask

from w2s_tasks.user_text import one_line, shown

GENERATED = (
    "its replies are not scored as this suite's generated-text tasks (..._gen) score them, so they could not be read row by "
    "row; use multiple_choice"
)
WHOLE = "{{{{ '%d' % {column} }}}}"
NONE = -1
"""The place of a label that is none of the choices."""


def place_of(target: Any, choices: Callable[[], Sequence[str]]) -> int | None:
    """Index of the choice that a target means to lm_eval; -1 where its text is none of them, None where it is no label."""
    if isinstance(target, str):
        texts = list(choices())
        return texts.index(target) if target in texts else NONE
    whole = isinstance(target, int) or (isinstance(target, float) and target.is_integer())
    return int(target) if whole else None


def unreadable(task: ConfigurableTask) -> str | None:
    """Why the rows of a task's evaluation could not be read, with the remedy; None where they can."""
    config = task.config
    metrics = {m.get("metric") for m in config.metric_list or ()}
    if task.OUTPUT_TYPE not in ("multiple_choice", "generate_until"):
        return f"its output_type is {task.OUTPUT_TYPE}; use multiple_choice"
    if len(config.filter_list or ()) > 1:
        return f"it has {len(config.filter_list)} filters, so that every row stands there as often; keep one of them"
    if config.repeats != 1:
        return f"it asks every row {config.repeats} times; set repeats: 1"
    if task.OUTPUT_TYPE != "multiple_choice":
        return misscored(task)
    if task.multiple_target:
        return "it has several right answers a document; let doc_to_target name one"
    if task.multiple_input:
        return "its choices stand in the prompts (doc_to_text is a number); put them into doc_to_choice"
    if "acc_mutual_info" in metrics:
        return "acc_mutual_info scores every choice twice; leave that metric out"
    if metrics and "acc" not in metrics:
        return "it has no metric acc, which every comparison is made of; add it to metric_list"
    return misscored(task)


def _given(acc: Any) -> float | None:
    """What a row's `acc` says: 0 or 1, alone or after its group; NaN for a rating of a pair; None where it can't be read."""
    if isinstance(acc, list | tuple):
        return float("nan") if len(acc) == 3 else _given(acc[1]) if len(acc) == 2 else None
    return float(acc) if isinstance(acc, int | float | np.number) else None


def misscored(task: ConfigurableTask) -> str | None:
    """Why the scores of a task's own `process_results` could not be read; found on row 0 with made-up answers."""
    score, doc = task.config.process_results, task.eval_docs[0]
    if task.OUTPUT_TYPE == "generate_until" and not callable(score):
        return GENERATED
    if not callable(score):
        return None
    try:
        if task.OUTPUT_TYPE == "generate_until":
            acc = score(doc, ["?"]).get("acc")
            return None if isinstance(acc, list | tuple) and len(acc) == 4 else GENERATED
        n = len(task.doc_to_choice(doc))
        told = [_given(score(doc, [(-1.0 - (i != best), i == best) for i in range(n)]).get("acc")) for best in range(n)]
    except Exception as error:  # noqa: BLE001 - a user's function raises anything; it is told
        return f"its process_results fails on row 0: {type(error).__name__}: {one_line(error)}"
    if None in told:
        return "its process_results gives no `acc` that is 0 or 1 a row, which every comparison is made of"
    target, choices = task.doc_to_target(doc), task.doc_to_choice(doc)
    gold = place_of(target, lambda: choices)
    if not any(map(math.isnan, filter(None, told))) and told != [float(best == gold) for best in range(n)]:
        said = dict(zip(choices, told, strict=True))
        return (
            "its process_results gives `acc` to other answers than doc_to_target names, and both must agree: in row 0 it "
            f"gives {shown(said)}, where the right answer is {shown(target)}"
        )
    return None


def whole_labels(task: ConfigurableTask) -> None:
    """Let labels that are whole floats (pandas writes 1.0 where a label is missing elsewhere) count choices, as 1 does."""
    column = task.config.doc_to_target
    features = getattr(task.task_docs, "features", None) or {}
    kind = str(getattr(features.get(column) if isinstance(column, str) else None, "dtype", ""))
    if not kind.startswith("float") or not task.config.doc_to_choice:
        return
    splits = [task.dataset[s] for s in task.dataset if column in task.dataset[s].column_names]
    if all(v is not None and float(v).is_integer() for split in splits for v in split[column]):
        template = WHOLE.format(column=column)
        task.config.doc_to_target = template
        if task.fewshot_cfg.doc_to_target == column:
            task.fewshot_cfg.doc_to_target = template
