"""The evaluation side: documents of tasks, rendered by lm_eval, scored by `w2s-hf` or by lm_eval's own `hf`."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from bench.floor import seconds_a_token
from bench.side import Worker
from trainers.harness.evaluate import Harness, HarnessTask, PromptStyle
from w2s_tasks import machine
from w2s_tasks.errors import UserError

Answers = list[list[tuple[float, bool]]]
"""For each document (log-likelihood, is greedy) of each of its requests."""


def choose(task: HarnessTask, count: int, seed: int, *, training: bool) -> list[dict[str, Any]]:
    """Documents of a task at random, `count` at most; those of a smaller count begin those of a larger one."""
    docs = task.train_docs if training else task.task.eval_docs
    order = list(range(len(docs)))
    random.Random(seed).shuffle(order)  # noqa: S311 - a sample, not a secret
    return [docs[i] for i in order[:count]]


class Scorer(Worker):
    """Scores documents with one engine, as `lm_eval` would hand them over."""

    def __init__(
        self,
        engine: str,
        model: str,
        tasks: Sequence[str],
        docs: int,
        shots: int,
        seed: int,
        *,
        training: bool = False,
        include_path: Sequence[str] = (),
        dtype: str = "float32",
    ) -> None:
        """Load the model and render the documents.

        Args:
            engine: w2s-hf or hf.
            model: a folder or a hub id.
            tasks: tasks and groups.
            docs: documents a task, at random.
            shots: few-shot examples; the suite's tasks give every document the same.
            seed: of the choice of documents.
            training: whether to take the training split instead of the evaluation split.
            include_path: folders with more tasks.
            dtype: of the weights.
        """
        super().__init__()
        style = PromptStyle(shots)
        self.tasks: list[str] = []
        self.requests: list[list[Any]] = []
        for task in Harness(include_path).load(tasks):
            if task.task.OUTPUT_TYPE not in ("multiple_choice", "loglikelihood"):
                raise UserError(f"the task '{task.name}' generates text; this benchmark compares log-likelihoods.")
            for doc in choose(task, docs, seed, training=training):
                self.tasks.append(task.name)
                self.requests.append(task.requests([doc], style))
        self.lm = self.open(engine, model, dtype)

    def open(self, engine: str, model: str, dtype: str) -> Any:
        """The lm_eval model, its tokens counted."""
        lm = _load(engine, model, dtype)
        self.meter.attach(lm.model)
        return lm

    def documents(self) -> list[str]:
        """The task of each document."""
        return self.tasks

    def score(self, documents: Sequence[int], batch: int | None = None) -> Answers:
        """Log-likelihoods of some documents' requests, tokenization included; `batch` is rows a pass, for `hf`."""
        if batch is not None:
            self.lm.batch_size_per_gpu = batch
        flat = [request for i in documents for request in self.requests[i]]
        answers = iter(self.lm.loglikelihood(flat, disable_tqdm=True))
        return [[next(answers) for _ in self.requests[i]] for i in documents]

    def logits_mb(self, documents: Sequence[int]) -> float:
        """Memory that `hf` needs for one row of the longest document: logits of all positions and their log-softmax."""
        texts = [request.args[0] + request.args[1] for i in documents for request in self.requests[i]]
        longest = max(map(len, self.lm.tokenizer(texts)["input_ids"]))
        return 2 * 4 * min(longest, self.lm.max_length) * self.lm.config.get_text_config().vocab_size / 2**20

    def room_mb(self) -> float:
        """Half of the memory that is free on the model's device: what `hf` may fill with logits."""
        import psutil
        import torch

        device = self.lm.model.device
        if device.type == "cuda":
            return float(torch.cuda.mem_get_info(device)[0]) / 2**20 / 2
        return min(float(psutil.virtual_memory().available), machine.memory()) / 2**20 / 2

    def seconds_a_token(self) -> float:
        """What a token costs at the least."""
        return seconds_a_token(self.lm.model)


def _load(engine: str, model: str, dtype: str) -> Any:
    if engine == "w2s-hf":
        from w2s_tasks.models.packed_hf import W2SHF

        return W2SHF(model, dtype=dtype)
    from lm_eval.models.huggingface import HFLM

    from w2s_tasks.models.packed_hf import usable_device

    return HFLM(model, device=usable_device(None), dtype=dtype, batch_size=1)


def compare(ours: Answers, theirs: Answers) -> tuple[float, float]:
    """The largest difference of a log-likelihood, and the share of documents with equal argmax and equal is_greedy."""
    worst, same = 0.0, 0
    for mine, other in zip(ours, theirs, strict=True):
        worst = max(worst, *(abs(a - b) for (a, _), (b, _) in zip(mine, other, strict=True)))
        best = [max(range(len(answer)), key=lambda i: answer[i][0]) for answer in (mine, other)]
        greedy = [[g for _, g in answer] for answer in (mine, other)]
        same += best[0] == best[1] and greedy[0] == greedy[1]
    return worst, same / len(ours)
