"""Whether a training ran away: what stops it, and what is said of a model that came out worse than it went in.

Stopped before the step: a loss or gradient that is infinite or NaN (`Finite`). Refused at the end: weights that are not
finite, and a model that gives different rows the same scores, which no longer reads what it is shown. Told at the end: a
model whose loss is higher than before the training, or than that of one answer to everything (`Probe`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trainers.store import processes
from trainers.training.choice_trainer import ChoiceTrainer, Row, all_finite
from trainers.training.losses import ABSENT
from w2s_tasks.errors import UserError

PROBED = 16
"""Rows that are scored before and after a training."""
SAME = 1e-6
"""Scores that differ by less, in nats, are the same: float32 rounds about so much."""
RISEN, ABOVE_FIXED = 0.25, 0.5
"""Nats a row by which a loss has to be higher to be told, than before the training or than that of one answer to everything:
so few rows and steps leave about .2 of noise where all is well."""


def diverged(title: str, what: str, lr: float) -> str:
    """The sentence for a training that ran away."""
    return f"{title}: {what}, and the model is not used. Lower the learning rate ({lr:g}) or raise warmup."


class Finite(TrainerCallback):
    """Stops before the first optimizer step whose loss or gradient is not finite, in all processes together."""

    def __init__(self, trainer: ChoiceTrainer, title: str, lr: float) -> None:
        self.trainer, self.title, self.lr = trainer, title, lr

    def on_pre_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Look at the losses of the step's micro-batches, then at its gradients.

        Raises:
            UserError: one of them is infinite or NaN.
        """
        bad = [] if self.trainer.losses_finite else ["loss"]
        # A gradient scaler (fp16) leaves steps with infinite gradients out by itself, and looks for a smaller scale.
        if not bad and self.trainer.accelerator.scaler is None:
            grads = (p.grad for p in self.trainer.model.parameters() if p.grad is not None)
            bad = [] if all_finite(grads) else ["gradient"]
        found = processes.gather(bad)
        if found:
            what = f"the {found[0]} of step {state.global_step + 1} is infinite or NaN"
            raise UserError(diverged(self.title, what, self.lr))


class Probe:
    """Some training rows, scored before and after a training."""

    def __init__(self, trainer: ChoiceTrainer, rows: Sequence[Row]) -> None:
        """Score them by the model as it is before the training; rows that are alike stand there once."""
        self.trainer = trainer
        self.rows = list(itertools.islice(_unlike(rows), PROBED))
        self.before = self._scores()

    def _scores(self) -> torch.Tensor | None:
        """Shape [rows, choices]; None where the model can't be asked."""
        if self.trainer.is_fsdp_enabled or self.trainer.is_deepspeed_enabled:
            return None  # weights that are spread over devices are whole inside a training only
        try:
            return self.trainer.scores(self.rows)
        except torch.OutOfMemoryError:  # the training has its own answer to that
            return None

    def told(self, title: str, lr: float) -> list[str]:
        """What the user has to know of the trained model, a sentence each; empty where all is well.

        Raises:
            UserError: weights or scores that are not finite; a model that tells no row from another.
        """
        step = self.trainer.state.global_step
        if not all_finite(p.detach() for p in self.trainer.model.parameters() if p.requires_grad):
            raise UserError(diverged(title, f"a weight after step {step} is infinite or NaN", lr))
        after = None if self.before is None else self._scores()
        if self.before is None or after is None:
            return []
        if not all_finite([after]):
            raise UserError(diverged(title, f"a score after step {step} is infinite or NaN", lr))
        # Of a row that has one text alone, as good a score as all others' says that it is learnt.
        if after.shape[1] > 1 and self._constant(after) and not self._constant(self.before):
            what = f"after step {step} the model gives {len(self.rows)} different rows the same scores"
            raise UserError(diverged(title, what, lr))
        return self._worse(self.before, after, title, lr)

    def _worse(self, before: torch.Tensor, after: torch.Tensor, title: str, lr: float) -> list[str]:
        """Whether the training's own loss ended above where it began, and above that of the labels' shares for every row."""
        begun, ended = (self.trainer.mean_loss(self.rows, scores) for scores in (before, after))
        known = f"{begun:.2f} before"
        too_high = ended > begun + RISEN
        if float((after.exp().sum(-1) - 1).abs().max()) < 1e-3:  # else replies' tokens are learnt, not choices
            fixed = self.trainer.mean_loss(self.rows, self._one_answer(after))
            known += f" and {fixed:.2f} for one answer to every row"
            too_high |= ended >= begun and ended > fixed + ABOVE_FIXED
        if not too_high:
            return []
        return [
            f"{title}: the model came out worse than it went in: on {len(self.rows)} rows that it was trained on its loss "
            f"is {ended:.2f}, {known}. Lower the learning rate ({lr:g}) or raise warmup."
        ]

    def _constant(self, scores: torch.Tensor) -> bool:
        """Whether rows that are not alike have the same scores; no single row can tell.

        Where rows have choices of their own: whether all of a row's are alike.
        """
        if "choices" in self.rows[0]:
            return float((scores - self._one_answer(scores)).abs().max()) <= SAME
        return len(scores) > 1 and float((scores.amax(0) - scores.amin(0)).max()) <= SAME

    def _one_answer(self, scores: torch.Tensor) -> torch.Tensor:
        """The best log-probabilities that don't look at the row: the labels' shares; without classes, all choices alike."""
        if "choices" not in self.rows[0]:
            return self.trainer.prior.clamp(min=1e-9).log().expand_as(scores)
        sizes = torch.tensor([[row["choices"]] for row in self.rows])
        return (-sizes.float().log()).expand_as(scores).masked_fill(scores <= ABSENT, ABSENT)


def _unlike(rows: Sequence[Row]) -> Iterator[Row]:
    """The rows without those that show a model what an earlier one shows."""
    seen = set()
    for row in rows:
        shown = repr({key: value for key, value in row.items() if key not in ("targets", "gold")})
        if shown not in seen:
            seen.add(shown)
            yield row
