"""What all local trainers share: one training of a `ChoiceTrainer`, from rows to weights, with curves and checkpoints."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_type_hints

import torch
from pydantic import TypeAdapter, ValidationError
from transformers import (
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from trainers.store import processes, stopping
from trainers.store.stages import CHECKPOINTS, write_atomic
from trainers.training.checkpoints import Checkpoints, newest_checkpoint, order_checkpoints
from trainers.training.choice_trainer import ChoiceLogprobs, ChoiceTrainer, Cut
from trainers.training.diverged import Finite, Probe
from trainers.training.kept import Keep
from trainers.training.losses import LOSSES, WHOLE_STEP
from trainers.training.rows import Collate, Row
from trainers.training.settings import LocalSettings, held_back
from w2s_tasks import notebook
from w2s_tasks.errors import UserError
from w2s_tasks.user_text import one_line, shown

log = logging.getLogger(__name__)

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
        self.bar = notebook.bar(
            total=state.max_steps,
            initial=state.global_step,
            desc=self.title,
            unit="step",
            disable=not processes.is_main(),
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


def hold_out(rows: list[Row], share: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Split off at most 200 rows for the evaluation curve; the same rows for every arm of a seed."""
    n = held_back(len(rows), share)
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)  # noqa: S311
    return [rows[i] for i in order[n:]], [rows[i] for i in order[:n]]


def curve_every(steps: int) -> int:
    """Optimizer steps between two scorings of held-back rows, and between two checkpoints."""
    return max(1, steps // CURVE_POINTS)


def _arguments(settings: LocalSettings, out: Path, rows: int, has_eval: bool, seed: int) -> TrainingArguments:
    steps = settings.steps_over(rows)
    every = curve_every(steps)
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
        "learning_rate": settings.lr,
        "lr_scheduler_type": settings.schedule,
        "warmup_steps": round(settings.warmup * steps),
        "weight_decay": settings.weight_decay,
        "seed": seed,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "eval_strategy": "steps" if has_eval else "no",
        "eval_steps": every,
        "save_strategy": "steps",
        "save_steps": every,
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


def check_arguments(settings: LocalSettings) -> None:
    """Refuse `trainer_args` that transformers does not take, before anything is trained.

    Raises:
        UserError: with the argument.
    """
    _arguments(settings, Path(), settings.batch_size, settings.holdout > 0, seed=0)


@contextlib.contextmanager
def _blaming(settings: LocalSettings) -> Iterator[None]:
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


def _refuse_shards(trainer: ChoiceTrainer) -> None:
    """Refuse a launch that cuts the model into shards: processes have other numbers of packs, so their passes don't meet.

    Raises:
        UserError: FSDP or DeepSpeed is on.
    """
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise UserError(
            "FSDP and DeepSpeed are not supported: every process needs the whole base. Launch without them (several GPUs "
            "share the rows), and make room: model_args: {load_in_4bit: true}, trainer_args: {gradient_checkpointing: true}."
        )


def fit_choices(
    model: torch.nn.Module,
    rows: list[Row],
    *,
    collate: Collate,
    choice_logprobs: ChoiceLogprobs,
    settings: LocalSettings,
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
        rows: each with ``targets`` (label distribution), ``gold`` (for the curve), ``choices`` where rows have different
            numbers of them (targets are 0 behind the last), and what `collate` needs.
        collate: rows to a batch with ``targets`` of shape [rows, choices].
        choice_logprobs: model and batch to normalised log-probabilities, shape [rows, choices].
        settings: epochs, batch size and the rest.
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
    args = _arguments(settings, out, len(train), bool(held), seed)
    trainer = ChoiceTrainer(
        model=model,
        args=args,
        train_dataset=train,
        eval_dataset=held or None,
        data_collator=collate,
        choice_logprobs=choice_logprobs,
        loss=functools.partial(LOSSES[method], **(loss_args or {})),
        prior=torch.tensor([row["targets"] for row in train]).mean(dim=0),
        classes="choices" not in train[0],
        whole_step=method in WHOLE_STEP,
        cut=cut,
        callbacks=[Bar(title), Checkpoints()],
    )
    _refuse_shards(trainer)
    for noisy in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(noisy)
    trainer.add_callback(Finite(trainer, title, settings.lr))
    if keep:
        keep.drop_uncovered()
        trainer.add_callback(keep)
    probe = Probe(trainer, train)
    try:
        with _blaming(settings):
            _train(trainer, out / CHECKPOINTS, title)
    finally:
        if getattr(args, CHECKPOINTING):  # the base stays loaded for other trainings
            getattr(model, f"{CHECKPOINTING}_disable")()
    if stopping.asked():
        raise stopping.ending()  # the signal came with the last step: trained again from the newest checkpoint
    if trainer.state.global_step < trainer.state.max_steps:
        raise UserError(
            f"{title}: training ended at step {trainer.state.global_step} of {trainer.state.max_steps}; a model that is "
            "half trained is not used. Take what stops it out of trainer_args (e.g. enable_jit_checkpoint) and run again."
        )
    warnings = probe.told(title, settings.lr)
    for warning in warnings if processes.is_main() else ():
        log.warning(warning)
    if keep:
        keep.finish()
    shown = ("step", "epoch", "loss", "learning_rate", "eval_loss", "eval_accuracy", "eval_agreement", "eval_rows")
    curve = [{k: entry[k] for k in shown if k in entry} for entry in trainer.state.log_history]
    write_atomic(out / "curves.json", json.dumps([c for c in curve if "loss" in c or "eval_loss" in c]))
    return warnings
