"""Tasks whose results could not be read row by row afterwards, and labels that lm_eval can't score, told before any work."""

from __future__ import annotations

from typing import Any

from lm_eval.api.task import ConfigurableTask

WHOLE = "{{{{ '%d' % {column} }}}}"


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
        return None
    if task.multiple_target:
        return "it has several right answers a document; let doc_to_target name one"
    if task.multiple_input:
        return "its choices stand in the prompts (doc_to_text is a number); put them into doc_to_choice"
    if "acc_mutual_info" in metrics:
        return "acc_mutual_info scores every choice twice; leave that metric out"
    if metrics and "acc" not in metrics:
        return "it has no metric acc, which every comparison is made of; add it to metric_list"
    return None


def varying_choices(task: ConfigurableTask, docs: Any) -> str | None:
    """Rows with other numbers of choices than row 0, as a reason; None where all have as many."""
    if task.OUTPUT_TYPE != "multiple_choice" or isinstance(task.config.doc_to_choice, list | dict):
        return None
    first = None
    for row, doc in enumerate(docs):
        n = len(task.doc_to_choice(doc))
        first = n if first is None else first
        if n != first:
            return f"row 0 has {first} choices and row {row} has {n}; rows of different numbers of choices are not supported"
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
