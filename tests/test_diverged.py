"""A training whose numbers run away ends with the step's number and what to change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from trainers.config import Strong
from trainers.training import fit_choices
from w2s_tasks.errors import UserError


def _collate(rows: Any) -> dict[str, Any]:
    return {key: torch.tensor([row[key] for row in rows]) for key in ("x", "targets")}


def _train(out: Path, factor: float, lr: float, parts: int, epochs: float = 1) -> None:
    rows = [{"x": [1.0, float(i % 3)], "targets": [0.0, 1.0], "gold": 1} for i in range(16)]
    rows[5]["x"] = [factor, 0.0]
    settings = Strong(
        model="x", batch_size=4, holdout=0, epochs=epochs, warmup=0, trainer_args={"gradient_accumulation_steps": parts}
    )
    fit_choices(
        torch.nn.Linear(2, 2),
        rows,
        collate=_collate,
        choice_logprobs=lambda model, batch: model(batch["x"]).log_softmax(-1),
        settings=settings,
        lr=lr,
        method="xent",
        out=out,
        seed=0,
        title="student",
    )


@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_first_loss_that_is_not_finite_ends_the_training(tmp_path: Path, value: float, parts: int) -> None:
    with pytest.raises(UserError, match=r"student: the loss of step [1-4] is infinite or NaN.*Lower the learning rate"):
        _train(tmp_path, value, 1e-3, parts)
    assert not (tmp_path / "curves.json").exists()


def test_weights_that_the_last_step_made_infinite_are_not_used(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is infinite or NaN"):
        _train(tmp_path, 1.0, 1e39, 1, epochs=0.25)
    assert not (tmp_path / "curves.json").exists()


def test_a_training_that_stays_finite_is_kept(tmp_path: Path) -> None:
    _train(tmp_path, 1.0, 1e-3, 2)
    assert (tmp_path / "curves.json").exists()
