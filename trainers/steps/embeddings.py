"""Hidden states of rows in a model, for methods that compare rows: filters by neighbours, selection by overlap."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from trainers.fit.heads import own_texts
from trainers.fit.trainer import training_style
from trainers.harness.tasks import HarnessTask, PromptStyle
from trainers.labels import splits
from trainers.steps.fit import Asking, model_of
from trainers.steps.source import Split
from trainers.steps.step import Ground, Step
from trainers.store import processes
from trainers.store.stages import write_atomic
from w2s_tasks.models.texts import Pooling

Array = np.ndarray[Any, np.dtype[np.float32]]
STATES, ROWS = "hidden.npy", "row_ids.json"
READING = ("trainer", "model_args", "text", "max_length", "chat_template", "system_prompt")
WITH_STATES = ("w2s-hf", "w2s-classifier")
"""Models of lm_eval's registry whose hidden states are here."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Embeddings(Asking):
    """A model's hidden states of the transfer rows' prompts: a trained one's, or an untuned one's."""

    kind: ClassVar[str] = "embeddings"
    split: Split
    layer: int = -1
    """Behind which layer; 0 for the embeddings, -1 for the last."""
    pooling: Pooling | None = None
    """None for the last token's, in encoders for the mean over a prompt's tokens."""

    @property
    def _read_by(self) -> dict[str, Any]:
        """All of an untuned model's settings that its states hang on."""
        return self.settings.model_dump(include=set(READING), exclude_none=True)

    @property
    def _which(self) -> str:
        return f"layer {self.layer}, {self.pooling or 'pooled'}, seed {self.split.seed}"

    @property
    def name(self) -> str:
        """By its model and layer."""
        whose = self.fit.model if self.fit else f"{self.settings.model} {json.dumps(self._read_by, default=str)}"
        return f"embeddings/{whose}, {self._which}"

    @property
    def title(self) -> str:
        """By its model and layer."""
        return f"hidden states of {self.fit.model if self.fit else f'the untuned {self.settings.model}'}, {self._which}"

    @property
    def inputs(self) -> tuple[Step, ...]:
        """Who reads, where a step trained it, and the rows."""
        return (*super().inputs, self.split)

    def recipe(self) -> dict[str, Any]:
        """The layer, how its states are pooled, and the prompts; of an untuned model its arguments."""
        style = training_style(self.settings)
        recipe = {"layer": self.layer, "pooling": self.pooling, "renderer": self.task.renderer_hash(style)}
        return recipe if self.fit else recipe | {"read by": self._read_by}

    def rows(self) -> int:
        """The transfer rows."""
        return self.split.size("transfer")

    def build(self, ground: Ground, out: Path) -> None:
        """Read the rows' prompts, in one process: the model runs over each once."""
        if not processes.is_main():
            return
        from w2s_tasks.models.hidden import hidden_states

        ids = splits.read(ground.folder_of(self.split), "transfer")
        lm = ground.pool.load(model_of(self.fit, self.settings, self.task, ground))
        texts = read_texts(lm, self.task, self.task.docs_of(ids), training_style(self.settings))
        np.save(out / STATES, hidden_states(lm, texts, layer=self.layer, pooling=self.pooling), allow_pickle=False)
        write_atomic(out / ROWS, json.dumps(ids))


def read_texts(lm: Any, task: HarnessTask, docs: Sequence[dict[str, Any]], style: PromptStyle) -> list[Any]:
    """What a model reads of documents: the prompt as lm_eval gives it; a classifier what its `text` names."""
    from w2s_tasks.models.classifier import W2SClassifier

    if isinstance(lm, W2SClassifier):
        return list(own_texts(task, docs, lm.text, style))
    return [task.pairs(doc, style, lm)[0][0] for doc in docs]


def read_embeddings(step: Embeddings, ground: Ground) -> tuple[list[str], Array]:
    """The row ids and the vectors of a step that is built.

    Returns:
        The ids, and float32 of shape [rows, width] in their order.
    """
    folder = ground.folder_of(step)
    return json.loads((folder / ROWS).read_text(encoding="utf-8")), np.load(folder / STATES, allow_pickle=False)
