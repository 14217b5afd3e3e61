"""`w2s label` and `w2s finetune`: one stage alone, outside an experiment."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from trainers.config.reading import set_value
from trainers.fit.trainer import TRAINERS, training_code, training_style
from trainers.flow import commands
from trainers.harness import evaluate as hn
from trainers.labels.ask import label
from trainers.labels.gold import Gold, gold_labels
from trainers.labels.label_set import LabelSet
from trainers.section import Section
from trainers.store import processes
from trainers.store.stages import CHECKPOINTS, recipe_key
from w2s_tasks.code_scope import code_hash
from w2s_tasks.errors import UserError, nearest
from w2s_tasks.keys import refuse
from w2s_tasks.models.ref import ModelRef
from w2s_tasks.models.texts import reads_prompt
from w2s_tasks.paths import ROOM, check_place


def _task(name: str, include_path: Sequence[str]) -> hn.HarnessTask:
    task = hn.Harness(include_path).task(name)
    task.check_trainable()
    if task.generates:
        raise UserError(
            f"the answers of '{name}' are generated, so that its labels are solutions: train on it in an experiment, with "
            "labels: generate (w2s run). This command knows choices alone."
        )
    return task


def label_rows(
    task_name: str,
    model: str,
    args: dict[str, Any],
    out: Path,
    limit: int | None,
    num_fewshot: int,
    include_path: Sequence[str],
) -> tuple[LabelSet, float]:
    """Label the first rows of a training split and write the label set; also the share of labels that are right.

    Raises:
        UserError: an unknown model or task, or a file that can't be written.
    """
    from lm_eval.api.registry import model_registry

    refuse(args, "--model_args")
    check_place(out, "--out", behind=len("..tmp"))
    if out.is_dir():
        raise UserError(f"{out} is a folder; --out names the file to write, e.g. {out / 'labels.parquet'}.")
    task = _task(task_name, include_path)
    if model not in model_registry:
        raise UserError(f"no model '{model}' in lm_eval.{nearest(model, list(model_registry))}")
    docs, ids = task.train_docs[:limit], task.train_ids[:limit]
    lm = hn.ModelPool().load(ModelRef(model, args))
    if num_fewshot and not reads_prompt(read := getattr(lm, "text", None)):
        raise UserError(f"--num_fewshot: this classifier reads {read!r} of each row, not the prompt; leave it out.")
    labels = label(lm, task, docs, ids, hn.PromptStyle(num_fewshot))
    temporary = out.with_name(f".{out.name}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        labels.save(temporary)
        temporary.replace(out)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UserError(f"{out} can't be written: {error.strerror or error}.") from error
    return labels, Gold.told(task, ids, docs).accuracy(labels)


def _settings(kind: type[Section], model: str, assignments: Sequence[str]) -> Any:
    data: dict[str, Any] = {"model": model}
    for assignment in assignments:
        set_value(data, assignment)
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        hint = nearest(key, kind.model_fields) if first["type"] == "extra_forbidden" else ""
        raise UserError(f"--set {key}: {first['msg']}.{hint}") from error


def _chosen(task: hn.HarnessTask, labels: Path | None, limit: int | None) -> tuple[list[dict[str, Any]], LabelSet]:
    """The label set and its documents, matched by row id."""
    if labels is None:
        ids, docs = task.train_ids[:limit], task.train_docs[:limit]
        return docs, gold_labels(ids, [task.gold(doc) for doc in docs], len(task.classes) or task.sizes(docs))
    found = LabelSet.load(labels)
    if limit is not None:
        found = found.take(range(min(limit, len(found))))
    known = set(task.train_ids)
    missing = [i for i in found.row_id if i not in known]
    if missing:
        raise UserError(
            f"{labels}: row {missing[0]} is not in the training split of '{task.name}'; were these labels made for it?"
        )
    docs = task.docs_of(found.row_id)
    for i, soft, choices in zip(found.row_id, found.lists, task.sizes(docs), strict=True):
        if len(soft) != choices:
            raise UserError(
                f"{labels}: row {i} has a label over {len(soft)} choices, in '{task.name}' it has {choices}; "
                "made for another task?"
            )
    return docs, found


def finetune_model(
    task_name: str,
    model: str,
    trainer: str,
    labels: Path | None,
    out: Path,
    limit: int | None,
    assignments: Sequence[str],
    seed: int,
    include_path: Sequence[str],
) -> str:
    """Train one model into a new folder; nothing is there if it fails.

    A training that was killed or interrupted goes on when the same command runs again.

    Returns:
        The command that evaluates the model.

    Raises:
        UserError: the folder exists, an unknown trainer or setting, labels of another task.
    """
    if trainer not in TRAINERS:
        raise UserError(f"no trainer '{trainer}'.{nearest(trainer, TRAINERS)} Known: {', '.join(TRAINERS)}.")
    check_place(out, "--out", behind=len(".-") + 16, below=ROOM)  # the work folder beside it has its key in its name
    if out.exists():
        raise UserError(f"{out} exists; choose a new folder for --out.")
    fit = TRAINERS[trainer].fit
    settings = _settings(TRAINERS[trainer].settings, model, assignments)
    task = _task(task_name, include_path)
    docs, found = _chosen(task, labels, limit)
    out.parent.mkdir(parents=True, exist_ok=True)
    recipe = [
        code_hash(training_code(settings, "xent")),
        task_name,
        trainer,
        settings.model_dump(),
        seed,
        found.row_id,
        found.lists,
    ]
    work = out.with_name(f".{out.name}-{recipe_key({'finetune': recipe})}")
    work.mkdir(exist_ok=True)
    try:
        ref = fit(task, docs, found, settings, work, pool=hn.ModelPool(), seed=seed, title=f"train {trainer}")
    except UserError:
        if not (work / CHECKPOINTS).exists():  # else the next run goes on from there
            shutil.rmtree(work, ignore_errors=True)
        raise
    if processes.is_main():
        shutil.rmtree(work / CHECKPOINTS, ignore_errors=True)
        ref.save(work)
        work.replace(out)
    processes.wait()
    return commands.evaluation(ModelRef.load(out), hn.Harness(include_path), task_name, training_style(settings))
