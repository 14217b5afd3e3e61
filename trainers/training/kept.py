"""Adapters kept part of the way through a training (`evaluate.checkpoints`), beside the one at its end.

While a training runs they stand among its checkpoints, which outlive a kill; at its end they are copied to
``at/<share>/adapter`` in the stage.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trainers.store import processes
from trainers.store.stages import CHECKPOINTS
from w2s_tasks.errors import UserError
from w2s_tasks.models.ref import check_folder

KEPT = "at"


def adapter_at(stage: Path, share: float) -> Path:
    """The folder of the adapter that a finished stage kept at this share of its steps."""
    return stage / KEPT / str(share) / "adapter"


def steps_of(shares: Sequence[float], last: int) -> dict[int, float]:
    """The optimizer steps nearest to these shares of a training.

    Args:
        shares: of the steps, between 0 and 1.
        last: the training's number of steps.

    Raises:
        UserError: so few steps that two shares are one step, or one is the start or the end.
    """
    steps = {round(share * last): share for share in shares}
    if len(steps) < len(shares) or not all(0 < step < last for step in steps):
        raise UserError(
            f"evaluate.checkpoints: {', '.join(f'{s:g}' for s in shares)} of a training of {last} steps are the steps "
            f"{', '.join(str(round(s * last)) for s in shares)}; each has to be one of its own after 0 and before {last}. "
            "Name fewer, or train for more steps."
        )
    return steps


class Keep(TrainerCallback):
    """Writes the adapter when certain steps of a training end."""

    def __init__(self, shares: Sequence[float], out: Path, save: Callable[[Path], None]) -> None:
        """Name the steps.

        Args:
            shares: of the optimizer steps, between 0 and 1.
            out: the stage's work folder.
            save: writes the model as it is into a folder.
        """
        self.shares, self.out, self.save = tuple(shares), out, save
        self._steps: dict[int, float] = {}

    @property
    def _folder(self) -> Path:
        return self.out / CHECKPOINTS

    def drop_uncovered(self) -> None:
        """Remove Trainer's checkpoints behind a step whose adapter is not there whole: training must pass it again."""
        for checkpoint in self._folder.glob("checkpoint-*") if processes.is_main() else ():
            try:
                state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
                steps = steps_of(self.shares, int(state["max_steps"]))
                for share in (s for step, s in steps.items() if step <= int(state["global_step"])):
                    check_folder(adapter_at(self._folder, share), "adapter_config.json")
            except (OSError, ValueError, KeyError, TypeError, UserError):
                shutil.rmtree(checkpoint)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Find the steps."""
        self._steps = steps_of(self.shares, state.max_steps)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Write the adapter, before Trainer writes its own checkpoint of this step; whole or not at all."""
        share = self._steps.get(state.global_step)
        if share is None or not processes.is_main():
            return
        final = adapter_at(self._folder, share)
        temporary = final.with_name(f".{final.name}.tmp")
        for old in (temporary, final):
            shutil.rmtree(old, ignore_errors=True)
        temporary.mkdir(parents=True)
        self.save(temporary)
        temporary.replace(final)

    def finish(self) -> None:
        """Put the kept adapters into the stage; the copies among the checkpoints stay until the stage is whole."""
        for share in self.shares if processes.is_main() else ():
            shutil.copytree(adapter_at(self._folder, share), adapter_at(self.out, share))
