"""A training whose numbers run away ends with the step's number and what to change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from trainers.config.reading import load
from trainers.fit.lora import Lora
from trainers.flow.alone import finetune_model
from trainers.flow.progress import Progress
from trainers.flow.run import Run, open_run
from trainers.report.report import read_report, show_report, write_report
from trainers.training.choice_trainer import ChoiceLogprobs
from trainers.training.loop import fit_choices
from w2s_tasks.errors import UserError


def _collate(rows: Any) -> dict[str, Any]:
    return {key: torch.tensor([row[key] for row in rows]) for key in ("x", "targets")}


def _plain(model: Any, batch: Any) -> torch.Tensor:
    scores: torch.Tensor = model(batch["x"])
    return scores.log_softmax(-1)


def _train(out: Path, factor: float, lr: float, parts: int, epochs: float = 1, scored: ChoiceLogprobs = _plain) -> list[str]:
    rows = [{"x": [1.0, float(i % 3)], "targets": [0.0, 1.0], "gold": 1} for i in range(16)]
    rows[5]["x"] = [factor, 0.0]
    settings = Lora(
        model="x",
        lr=lr,
        batch_size=4,
        holdout=0,
        epochs=epochs,
        warmup=0,
        trainer_args={"gradient_accumulation_steps": parts},
    )
    return fit_choices(
        torch.nn.Linear(2, 2),
        rows,
        collate=_collate,
        choice_logprobs=scored,
        settings=settings,
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


@pytest.mark.parametrize("parts", [1, 2])
def test_a_gradient_that_is_not_finite_ends_the_training_though_the_loss_is(tmp_path: Path, parts: int) -> None:
    """The square root of a distance has no slope at 0, where it begins."""

    def scored(model: Any, batch: Any) -> torch.Tensor:
        bias = model.bias - model.bias.detach()
        scores: torch.Tensor = model(batch["x"]) + bias.abs().sqrt()
        return scores.log_softmax(-1)

    with pytest.raises(UserError, match=r"student: the gradient of step 1 is infinite or NaN.*Lower the learning rate"):
        _train(tmp_path, 1.0, 1e-3, parts, scored=scored)
    assert not (tmp_path / "curves.json").exists()


def test_a_model_that_came_out_worse_is_kept_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (warning,) = _train(tmp_path, -9.0, 50, 1, epochs=0.25)
    assert warning.startswith("student: the model came out worse than it went in: on ")
    assert "Lower the learning rate (50)" in warning
    assert warning in caplog.text
    assert (tmp_path / "curves.json").exists()


@pytest.mark.parametrize("trainer", ["lora", "classifier"])
def test_a_model_that_tells_no_row_from_another_is_refused(
    trainer: str, own_task: Path, causal_model: Any, encoder_folder: Path, tmp_path: Path
) -> None:
    """Every loss is finite and exactly ln 2: nothing but the scores themselves tells."""
    model = causal_model("llama") if trainer == "lora" else encoder_folder
    sets = ["lr=1e8", "batch_size=8", *(["text=text"] if trainer == "classifier" else [])]
    alike = r"after step \d+ the model gives 16 different rows the same scores, and the model is"
    # Whether the weights are dead or infinite first depends on the processor's rounding.
    with pytest.raises(UserError, match=f"{alike}|is infinite or NaN"):
        finetune_model("own_reviews", str(model), trainer, None, tmp_path / "out", 48, sets, 0, [str(own_task)])
    assert not (tmp_path / "out").exists()


def test_rows_that_were_all_alike_to_the_model_before_are_not_the_trainings_fault(tmp_path: Path) -> None:
    def scored(model: Any, batch: Any) -> torch.Tensor:
        scores: torch.Tensor = model(batch["x"] * 0)
        return scores.log_softmax(-1)

    assert _train(tmp_path, 1.0, 1e-3, 1, scored=scored) == []


def test_a_run_keeps_its_other_stages_and_goes_on_with_a_lower_rate(experiment_file: Path, tmp_path: Path) -> None:
    def flow(lr: str) -> Run:
        sets = [f"strong.lr={lr}", "arms=[zero_shot, student]", "seeds=[3]"]
        return open_run(load(str(experiment_file), sets)[0], tmp_path / "runs")

    first = flow("1e30")
    with pytest.raises(UserError, match=r"^train student, seed 3: the loss of step 2 is infinite or NaN"):
        first.build(Progress(quiet=True))
    assert "fit/weak, seed 3" in first.stages
    assert "fit/student, seed 3" not in first.stages
    again = flow("1e-2")
    again.build(Progress(quiet=True))
    assert all(again.stages[name].reused for name in first.stages)
    assert write_report(again)[0].json()["notes"] == []


def test_a_warning_reaches_terminal_report_page_and_card(
    experiment_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = ["strong.lr=3", "strong.warmup=0", "arms=[student, ceiling]"]
    flow = open_run(load(str(experiment_file), sets)[0], tmp_path / "runs")
    flow.build(Progress(quiet=True))
    report = write_report(flow)[0].json()
    told = [note for note in report["notes"] if "came out worse than it went in" in note]
    assert told
    assert [n for arm in report["arms"] if arm["training"] for n in arm["training"]["warnings"]] == told
    show_report(read_report(flow.folder))
    assert told[0] in capsys.readouterr().out
    assert told[0] in (flow.folder / "report.html").read_text()
    assert any(told[0] in card.read_text() for card in (flow.folder / "model_cards").iterdir())
