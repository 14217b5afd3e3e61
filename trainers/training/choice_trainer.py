"""transformers' Trainer over a loss on the choices.

A trainer gives rows (a dict each, with ``targets``: the label distribution) and a function from a batch to the model's
log-probabilities over the choices. The loss of an optimizer step is the mean over all its rows, however they are cut into
micro-batches.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from transformers import Trainer, TrainerControl

from trainers.store import processes
from trainers.training.losses import Loss, State
from trainers.training.rows import Row, weighted

ChoiceLogprobs = Callable[[torch.nn.Module, dict[str, Any]], torch.Tensor]
Cut = Callable[[torch.nn.Module, dict[str, Any]], list[list[int]]]


def all_finite(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether no entry is infinite or NaN."""
    return all(bool(torch.isfinite(t).all()) for t in tensors)


class ChoiceTrainer(Trainer):
    """transformers' Trainer with a loss over a task's choices."""

    control: TrainerControl

    def __init__(
        self,
        *args: Any,
        choice_logprobs: ChoiceLogprobs,
        loss: Loss,
        prior: torch.Tensor,
        classes: bool,
        whole_step: bool,
        cut: Cut | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs["data_collator"] = functools.partial(weighted, kwargs["data_collator"])
        super().__init__(*args, **kwargs)
        self._choice_logprobs, self._loss, self._cut = choice_logprobs, loss, cut
        self.prior, self._classes, self._whole_step = prior, classes, whole_step
        self._step_probs: torch.Tensor | None = None
        self.losses_finite = True
        """Whether every loss so far was: a step's micro-batches are judged before its optimizer step."""
        # Our loss is a sum over rows divided by the rows of the whole step, so accumulation must not divide again.
        self.loss_is_scaled_for_ga = True

    def _score(self, model: torch.nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        return self._choice_logprobs(model, {k: v for k, v in batch.items() if k not in ("targets", "real", "weight")})

    def _probs_of_step(self, parts: list[dict[str, Any]]) -> torch.Tensor | None:
        """The student's probabilities of all rows of a step, before it: None where one micro-batch is the whole step.

        Costs a forward pass without gradients over the step's rows; only for losses that need a statistic of the step.
        """
        if not self._whole_step or (len(parts) == 1 and self.args.world_size == 1):
            return None
        self.model.eval()
        with torch.no_grad():
            probs = torch.cat([self._score(self.model, self._prepare_inputs(dict(part))).exp() for part in parts])
        self.model.train()
        real = torch.cat([part.get("real", torch.ones(len(part["targets"]))) for part in parts]) > 0
        return torch.tensor(processes.gather(probs[real.to(probs.device)].tolist()), device=probs.device)

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> torch.Tensor | None:
        # Called once an optimizer step, with all its micro-batches.
        self._mark_copies(batch_samples[-1])
        self._step_probs = self._probs_of_step(batch_samples)
        rows = torch.stack([batch.get("real", torch.ones(len(batch["targets"]))).sum() for batch in batch_samples])
        rows = rows.sum().to(device)
        if self.args.world_size > 1:
            # Gradients are averaged over processes, so the divisor is the mean number of rows a process.
            rows = self.accelerator.gather(rows).mean()
        return rows

    def _mark_copies(self, batch: dict[str, Any]) -> None:
        """Mark rows that accelerate copied so that every process has as many in the last step; they must not count."""
        left = self.accelerator.gradient_state.remainder
        if self.args.world_size == 1 or not self.accelerator.gradient_state.end_of_dataloader or left <= 0:
            return
        rows = len(batch["targets"])
        place = self.args.process_index * rows + torch.arange(rows)
        batch["real"] = (place < left).float()

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Forward and backward, part after part where the rows can be cut: only one part's activations are in memory."""
        parts = [list(range(len(inputs["targets"])))]
        if self._cut is not None and not self._whole_step:
            parts = self._cut(model, inputs)
        if len(parts) == 1:
            return super().training_step(model, inputs, num_items_in_batch)
        rows = num_items_in_batch if num_items_in_batch is not None else len(inputs["targets"])
        losses = []
        for part in parts:
            # Processes may have different numbers of parts, so gradients are exchanged once, with the last one.
            alone = contextlib.nullcontext() if part is parts[-1] else self.accelerator.no_sync(model)
            with alone:
                losses.append(super().training_step(model, _rows_of(inputs, part), rows))
        return torch.stack(losses).sum()

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Sum of the rows' losses over the number of rows in the optimizer step."""
        targets = inputs["targets"]
        logprobs = self._score(model, inputs)
        progress = self.state.global_step / max(1, self.state.max_steps)
        state = State(progress, self.prior.to(logprobs), self._step_probs, classes=self._classes)
        losses = self._loss(logprobs, targets.to(logprobs), state)
        for factor in ("weight", "real"):
            if factor in inputs:
                losses = losses * inputs[factor].to(losses)
        loss = losses.sum() / (num_items_in_batch if num_items_in_batch is not None else len(losses))
        self.losses_finite = self.losses_finite and all_finite([loss.detach()])
        return (loss, {"logprobs": logprobs}) if return_outputs else loss

    def scores(self, rows: Sequence[Row]) -> torch.Tensor:
        """Log-probabilities that the model as it is gives the rows' choices, shape [rows, choices], on the CPU."""
        training = self.model.training
        self.model.eval()
        with torch.no_grad():
            logprobs = self._score(self.model, self._prepare_inputs(self.data_collator(rows)))
        self.model.train(training)
        return logprobs.float().cpu()

    def mean_loss(self, rows: Sequence[Row], logprobs: torch.Tensor) -> float:
        """The training's own loss at its end, a row, of such log-probabilities of rows."""
        targets = torch.tensor([row["targets"] for row in rows])
        losses = self._loss(logprobs, targets, State(1.0, self.prior, None, classes=self._classes))
        return float((losses * torch.tensor([row.get("weight", 1.0) for row in rows])).mean())

    def evaluate(self, eval_dataset: Any = None, **_: Any) -> dict[str, float]:
        """On the rows that were held back: cross-entropy to and agreement with the labels, and accuracy against gold.

        The first two know the labels trained on only, so that a checkpoint may be chosen by them. Texts have the first
        alone.
        """
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        size = self.args.per_device_eval_batch_size
        logprobs = torch.cat([self.scores(rows[start : start + size]) for start in range(0, len(rows), size)])
        metrics = held_back_metrics(logprobs, rows)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def held_back_metrics(logprobs: torch.Tensor, rows: Sequence[Row]) -> dict[str, float]:
    """Cross-entropy to and agreement with the labels of rows, and accuracy against gold; texts have the first alone.

    Args:
        logprobs: the model's, shape [rows, choices].
        rows: as in `trainers.training.rows`.
    """
    targets = torch.tensor([row["targets"] for row in rows])
    metrics: dict[str, float] = {"eval_loss": float(-(targets * logprobs).sum(-1).mean()), "eval_rows": len(rows)}
    if "gold" in rows[0]:
        chosen = logprobs.argmax(-1)
        metrics["eval_accuracy"] = float((chosen == torch.tensor([row["gold"] for row in rows])).float().mean())
        metrics["eval_agreement"] = float((chosen == targets.argmax(-1)).float().mean())
    return metrics


def _rows_of(batch: Mapping[str, Any], part: Sequence[int]) -> dict[str, Any]:
    """Some rows of a batch, whose entries are lists and tensors over the rows."""
    return {key: [value[i] for i in part] if isinstance(value, list) else value[part] for key, value in batch.items()}
