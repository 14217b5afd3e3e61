"""A strong model that learns tasks of its own before any arm is trained: the base that has something to lose.

The published study's model knew nothing of its safety tasks that training on another task could take away. Here a LoRA
adapter learns the gold labels of those tasks, one mixture of all their rows, and is merged into the base; every arm, the
untuned one among them, starts from the result.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from trainers.fit.language_model import LanguageModel, Learning, Prepare, base_ref
from trainers.fit.lora import Lora, with_adapter
from trainers.harness.pool import ModelPool
from trainers.harness.tasks import HarnessTask
from trainers.labels.label_set import LabelSet
from trainers.training.rows import Row
from w2s_tasks.errors import UserError

MODEL = "model"
"""The folder of the prepared model in its stage."""
RANK = 16
"""Of the adapter that is merged, where the strong model has none of its own."""


def drawn(task: HarnessTask, rows: int) -> tuple[list[dict[str, Any]], LabelSet]:
    """Training documents of a task with their gold labels; the same ones every time.

    Raises:
        UserError: a task that can't be trained on.
    """
    task.check_trainable()
    if task.generates:
        raise UserError(f"strong.prepare.tasks: '{task.name}' is generate_until; name multiple_choice tasks.")
    order = list(range(len(task.train_docs)))
    random.Random(0).shuffle(order)  # noqa: S311
    chosen = sorted(order[:rows])
    docs = [task.train_docs[i] for i in chosen]
    sizes = [len(task.choices_of(doc)) for doc in docs]
    soft = [np.eye(size)[task.gold(doc)].tolist() for doc, size in zip(docs, sizes, strict=True)]
    return docs, LabelSet.of([str(i) for i in chosen], soft, classes=False)


def mixture(parts: Sequence[Learning]) -> Learning:
    """What several tasks teach, as rows with choices of their own."""
    widest = max(len(row["targets"]) for part in parts for row in part.rows)
    return replace(parts[0], rows=[_widened(row, widest) for part in parts for row in part.rows])


def _widened(row: Row, widest: int) -> Row:
    own = len(row["requests"])
    return {**row, "choices": own, "targets": [*row["targets"], *[0.0] * (widest - len(row["targets"]))]}


def prepared(tasks: Sequence[HarnessTask], settings: LanguageModel, prepare: Prepare, out: Path, pool: ModelPool) -> None:
    """Train the adapter, merge it, and write ``model/`` with its tokenizer, ``curves.json`` and ``training.json``.

    Args:
        tasks: of `prepare`.
        settings: the strong model's: base, prompts, objective, batch size.
        prepare: rows, epochs and rate.
        out: the folder to fill.
        pool: loads the base, and gives it away.

    Raises:
        UserError: a task that can't be trained on, a training that ran away.
    """
    from transformers import set_seed

    lm: Any = pool.take(base_ref(settings))
    kept = {name: getattr(settings, name) for name in ("model", "objective", "chat_template", "system_prompt", "batch_size")}
    own = Lora(**kept, r=getattr(settings, "r", RANK), lr=prepare.lr, epochs=prepare.epochs)
    parts = [Learning.of(task, *drawn(task, prepare.rows), own, lm) for task in tasks]
    set_seed(0)
    model = with_adapter(lm.language_model, own)
    learning = mixture(parts)
    learning.train(model, own, out, method="xent", seed=0, title="prepare the strong model")
    merged = model.merge_and_unload()
    merged.save_pretrained(str(out / MODEL))
    lm.tokenizer.save_pretrained(str(out / MODEL))
