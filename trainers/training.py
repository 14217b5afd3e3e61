"""What all local trainers share: transformers' Trainer over a loss on the choices, curves, checkpoints, progress.

A trainer gives rows (a dict each, with ``targets``: the label distribution) and a function from a batch to the model's
log-probabilities over the choices. The loss of an optimizer step is the mean over all its rows, however they are cut into
micro-batches.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import math
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import torch
from pydantic import TypeAdapter, ValidationError
from tqdm import tqdm
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from trainers import processes, stopping
from trainers.checkpoints import Checkpoints, newest_checkpoint, order_checkpoints
from trainers.config import Trainable
from trainers.diverged import Finite, Probe, all_finite
from trainers.kept import Keep
from trainers.losses import LOSSES, WHOLE_STEP, Loss, State
from trainers.store import CHECKPOINTS, write_atomic
from w2s_tasks.errors import UserError
from w2s_tasks.user_text import one_line, shown

log = logging.getLogger(__name__)

Row = dict[str, Any]
Collate = Callable[[Sequence[Row]], dict[str, Any]]
ChoiceLogprobs = Callable[[torch.nn.Module, dict[str, Any]], torch.Tensor]
Cut = Callable[[torch.nn.Module, dict[str, Any]], list[list[int]]]
CURVE_POINTS = 5
CHECKPOINTING = next(
    name for name in ("activation_checkpointing", "gradient_checkpointing") if name in TrainingArguments.__dataclass_fields__
)
"""The setting that recomputes activations instead of keeping them; transformers 5 renamed it."""
CHOSEN_BY = {"holdout_loss": "eval_loss", "holdout_agreement": "eval_agreement"}


class Bar(TrainerCallback):
    """One progress bar for the optimizer steps, with the last loss."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.bar: Any = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Open the bar where training goes on from."""
        self.bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc=self.title,
            unit="step",
            leave=False,
            disable=None if processes.is_main() else True,
        )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Move the bar."""
        self.bar.update(state.global_step - self.bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **_: Any,
    ) -> None:
        if self.bar is not None and logs and "loss" in logs:
            self.bar.set_postfix(loss=f"{float(logs['loss']):.3f}")

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Close the bar."""
        self.bar.close()


class ChoiceTrainer(Trainer):
    """transformers' Trainer with a loss over a task's choices."""

    control: TrainerControl

    def __init__(
        self,
        *args: Any,
        choice_logprobs: ChoiceLogprobs,
        loss: Loss,
        prior: torch.Tensor,
        whole_step: bool,
        cut: Cut | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._choice_logprobs, self._loss, self._cut = choice_logprobs, loss, cut
        self.prior, self._whole_step = prior, whole_step
        self._step_probs: torch.Tensor | None = None
        self.losses_finite = True
        """Whether every loss so far was: a step's micro-batches are judged before its optimizer step."""
        # Our loss is a sum over rows divided by the rows of the whole step, so accumulation must not divide again.
        self.loss_is_scaled_for_ga = True

    def _score(self, model: torch.nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        return self._choice_logprobs(model, {k: v for k, v in batch.items() if k not in ("targets", "real")})

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
        losses = self._loss(logprobs, targets.to(logprobs), State(progress, self.prior.to(logprobs), self._step_probs))
        if "real" in inputs:
            losses = losses * inputs["real"].to(losses)
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
        return float(self._loss(logprobs, targets, State(1.0, self.prior, None)).mean())

    def evaluate(self, eval_dataset: Any = None, **_: Any) -> dict[str, float]:
        """On the rows that were held back: cross-entropy to and agreement with the labels, and accuracy against gold.

        The first two know the labels trained on only, so that a checkpoint may be chosen by them.
        """
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        self.model.eval()
        losses: list[torch.Tensor] = []
        right, agreed = 0, 0
        size = self.args.per_device_eval_batch_size
        with torch.no_grad():
            for start in range(0, len(rows), size):
                chunk = rows[start : start + size]
                batch = self._prepare_inputs(self.data_collator(chunk))
                logprobs = self._score(self.model, batch)
                losses.append(-(batch["targets"].to(logprobs) * logprobs).sum(-1))
                right += int((logprobs.argmax(-1).cpu() == torch.tensor([r["gold"] for r in chunk])).sum())
                agreed += int((logprobs.argmax(-1) == batch["targets"].to(logprobs).argmax(-1)).sum())
        metrics: dict[str, float] = {
            "eval_loss": float(torch.cat(losses).mean()),
            "eval_accuracy": right / len(rows),
            "eval_agreement": agreed / len(rows),
            "eval_rows": len(rows),
        }
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.model.train()
        return metrics


def _rows_of(batch: Mapping[str, Any], part: Sequence[int]) -> dict[str, Any]:
    """Some rows of a batch; a list holds as many entries for every row, one row after the other."""
    rows = len(batch["targets"])
    taken: dict[str, Any] = {}
    for key, value in batch.items():
        each = len(value) // rows
        taken[key] = [value[i * each + j] for i in part for j in range(each)] if isinstance(value, list) else value[part]
    return taken


def hold_out(rows: list[Row], share: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Split off at most 200 rows for the evaluation curve; the same rows for every arm of a seed."""
    n = min(200, int(len(rows) * share))
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)  # noqa: S311
    return [rows[i] for i in order[n:]], [rows[i] for i in order[:n]]


def _arguments(settings: Trainable, lr: float, out: Path, rows: int, has_eval: bool, seed: int) -> TrainingArguments:
    steps = max(1, math.ceil(math.ceil(rows / settings.batch_size) * settings.epochs))
    every = max(1, steps // CURVE_POINTS)
    parts = int(settings.trainer_args.get("gradient_accumulation_steps", 1)) * int(os.environ.get("WORLD_SIZE", "1"))
    if settings.batch_size % parts:
        raise UserError(
            f"batch_size {settings.batch_size} is the rows of an optimizer step; it can't be cut into {parts} equal parts "
            "(gradient_accumulation_steps x processes)."
        )
    values: dict[str, Any] = {
        "output_dir": str(out / CHECKPOINTS),
        "num_train_epochs": settings.epochs,
        "per_device_train_batch_size": settings.batch_size // parts,
        "per_device_eval_batch_size": 64,
        "learning_rate": lr,
        "lr_scheduler_type": settings.schedule,
        "warmup_steps": round(settings.warmup * steps),
        "weight_decay": settings.weight_decay,
        "seed": seed,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "eval_strategy": "steps" if has_eval else "no",
        "eval_steps": every,
        "save_strategy": "steps",
        "save_steps": max(1, every),
        "save_total_limit": 2,
        "disable_tqdm": True,
        "report_to": "none",
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        "restore_callback_states_from_checkpoint": False,
        # A step runs as many forward passes as its packs need, not the same number in every process.
        "ddp_find_unused_parameters": False,
        "ddp_broadcast_buffers": False,
    }
    if settings.checkpoint != "last":
        values |= {
            "load_best_model_at_end": True,
            "metric_for_best_model": CHOSEN_BY[settings.checkpoint],
            "greater_is_better": settings.checkpoint == "holdout_agreement",
        }
    hints = get_type_hints(TrainingArguments)
    try:
        for key, value in settings.trainer_args.items():
            TypeAdapter(hints[key]).validate_python(value)
        return TrainingArguments(**{**values, **settings.trainer_args})
    except ValidationError as error:
        raise UserError(f"trainer_args: {key}: {error.errors()[0]['msg']} (got {shown(value)}).") from error
    except Exception as error:  # transformers, accelerate and what they import check in ways of their own
        raise UserError(f"trainer_args: transformers refuses {shown(settings.trainer_args)}: {one_line(error)}") from error


def check_arguments(settings: Trainable, lr: float) -> None:
    """Refuse `trainer_args` that transformers does not take, before anything is trained.

    Raises:
        UserError: with the argument.
    """
    _arguments(settings, lr, Path(), settings.batch_size, settings.holdout > 0, seed=0)


@contextlib.contextmanager
def _blaming(settings: Trainable) -> Iterator[None]:
    """Name `trainer_args` where a training fails under some: optimizers and schedules look at theirs when they are made."""
    try:
        yield
    except (UserError, torch.OutOfMemoryError, OSError):
        raise
    except Exception as error:
        if not settings.trainer_args:
            raise
        log.info("what the training raised", exc_info=True)
        raise UserError(
            f"trainer_args {shown(settings.trainer_args)}: the training ended with {type(error).__name__}: {one_line(error)}"
        ) from error


def _train(trainer: ChoiceTrainer, checkpoints: Path, title: str) -> None:
    """Train from the newest whole checkpoint; where memory does not do, again with gradient checkpointing.

    Raises:
        UserError: out of memory all the same.
    """
    checkpoint = processes.agree(newest_checkpoint(checkpoints) if processes.is_main() else None)
    if checkpoint:
        if processes.is_main():
            order_checkpoints(checkpoints)
        log.info("%s: going on from %s", title, checkpoint.name)
    try:
        with stopping.training():
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except torch.OutOfMemoryError as error:
        untouched = trainer.state.global_step == 0 or newest_checkpoint(checkpoints) is not None
        if getattr(trainer.args, CHECKPOINTING) or not untouched or processes.count() > 1:
            raise UserError(
                f"{title}: out of memory. Cut the step with trainer_args: {{gradient_accumulation_steps: 4}}, or set "
                "trainer_args: {gradient_checkpointing: true}."
            ) from error
        log.warning("%s: out of memory; going on with gradient checkpointing, which gives the same numbers slower", title)
        setattr(trainer.args, CHECKPOINTING, True)
        _train(trainer, checkpoints, title)


def fit_choices(
    model: torch.nn.Module,
    rows: list[Row],
    *,
    collate: Collate,
    choice_logprobs: ChoiceLogprobs,
    settings: Trainable,
    lr: float,
    method: str,
    loss_args: Mapping[str, Any] | None = None,
    out: Path,
    seed: int,
    title: str,
    cut: Cut | None = None,
    keep: Keep | None = None,
) -> list[str]:
    """Train `model` in place and write curves.json; goes on from the newest whole checkpoint in `out`.

    Args:
        model: what the optimizer sees.
        rows: each with ``targets`` (label distribution), ``gold`` (for the curve) and what `collate` needs.
        collate: rows to a batch with ``targets`` of shape [rows, choices].
        choice_logprobs: model and batch to normalised log-probabilities, shape [rows, choices].
        settings: epochs, batch size and the rest.
        lr: peak learning rate.
        method: a name in `LOSSES`.
        loss_args: its settings.
        out: the stage's work folder.
        seed: order of the rows, dropout.
        title: of the progress bar.
        cut: model and batch to the row numbers of the parts that a step may be run in; None for one part.
        keep: writes the model at certain steps too.

    Returns:
        What the user has to know of the trained model, a sentence each.

    Raises:
        UserError: no rows, settings that can't be used, a training that ran away or ended early.
    """
    train, held = hold_out(rows, settings.holdout, seed)
    if not train:
        raise UserError("nothing to train on: the label set is empty.")
    if settings.checkpoint != "last" and not held:
        raise UserError(
            f"checkpoint: {settings.checkpoint} needs held-back rows; {settings.holdout:g} of {len(rows)} rows is none. "
            "Raise holdout."
        )
    args = _arguments(settings, lr, out, len(train), bool(held), seed)
    trainer = ChoiceTrainer(
        model=model,
        args=args,
        train_dataset=train,
        eval_dataset=held or None,
        data_collator=collate,
        choice_logprobs=choice_logprobs,
        loss=functools.partial(LOSSES[method], **(loss_args or {})),
        prior=torch.tensor([row["targets"] for row in train]).mean(dim=0),
        whole_step=method in WHOLE_STEP,
        cut=cut,
        callbacks=[Bar(title), Checkpoints()],
    )
    for noisy in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(noisy)
    trainer.add_callback(Finite(trainer, title, lr))
    if keep:
        keep.drop_uncovered()
        trainer.add_callback(keep)
    probe = Probe(trainer, train)
    with _blaming(settings):
        _train(trainer, out / CHECKPOINTS, title)
    if stopping.asked():
        raise stopping.Terminated  # the signal came with the last step: trained again from the newest checkpoint
    if trainer.state.global_step < trainer.state.max_steps:
        raise UserError(
            f"{title}: training ended at step {trainer.state.global_step} of {trainer.state.max_steps}; a model that is "
            "half trained is not used. Take what stops it out of trainer_args (e.g. enable_jit_checkpoint) and run again."
        )
    warnings = probe.told(title, lr)
    for warning in warnings if processes.is_main() else ():
        log.warning(warning)
    if keep:
        keep.finish()
    shown = ("step", "epoch", "loss", "learning_rate", "eval_loss", "eval_accuracy", "eval_agreement", "eval_rows")
    curve = [{k: entry[k] for k in shown if k in entry} for entry in trainer.state.log_history]
    write_atomic(out / "curves.json", json.dumps([c for c in curve if "loss" in c or "eval_loss" in c]))
    return warnings
