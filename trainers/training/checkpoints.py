"""Checkpoints of a training: written at the end of a step, read only where they are whole."""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import safe_globals

from trainers.store import processes, stopping

log = logging.getLogger(__name__)


def _whole(checkpoint: Path) -> bool:
    """Whether every file that a resume needs is there and readable."""
    random_states = list(checkpoint.glob("rng_state*.pth"))  # one a process
    weights = list(checkpoint.glob("*.safetensors"))
    needed = [checkpoint / name for name in ("trainer_state.json", "optimizer.pt", "scheduler.pt")]
    if not random_states or not weights or not all(path.is_file() for path in needed):
        return False
    try:
        for path in checkpoint.glob("*.json"):
            json.loads(path.read_text(encoding="utf-8"))
        with safe_globals():
            for path in (*needed[1:], *random_states):
                torch.load(path, map_location="cpu", weights_only=True)
        for path in weights:
            with safe_open(path, framework="pt") as f:
                f.keys()
    except (OSError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        log.warning("%s is not whole (%s); an older checkpoint is taken", checkpoint.name, error)
        return False
    return True


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])


def order_checkpoints(folder: Path) -> None:
    """Make the checkpoints' file times follow their steps.

    Trainer deletes those with the oldest times; after a clock was set back these would be the newest checkpoints.
    """
    for checkpoint in folder.glob("checkpoint-*"):
        os.utime(checkpoint, (_step(checkpoint),) * 2)


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that is whole; Trainer's own choice is the highest number, whole or not."""
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=_step, reverse=True):
        if _whole(checkpoint):
            return checkpoint
        shutil.rmtree(checkpoint)
    return None


class Checkpoints(TrainerCallback):
    """After SIGTERM or Ctrl-C: a checkpoint at the end of the step. Several processes end at once, at their last one."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Ask for the checkpoint; `on_save` ends training once it is written."""
        if stopping.asked():
            if processes.count() > 1:
                raise stopping.ending()
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """End here where a signal asked for this checkpoint."""
        if processes.is_main():
            order_checkpoints(Path(str(args.output_dir)))
        if stopping.asked():
            raise stopping.ending()
