"""Every loss against values computed by hand, and its gradient against the formula and against finite differences."""

from __future__ import annotations

import functools
import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from trainers.config.method_args import known
from trainers.fit import lora
from trainers.fit.lora import Lora
from trainers.harness import evaluate as hn
from trainers.labels.gold import gold_labels
from trainers.training.losses import FLOOR, LOSSES, State, logconf, prior_threshold, warmed_up

P = torch.tensor([[0.7, 0.3], [0.2, 0.8], [0.45, 0.55]], dtype=torch.float64)
Y = torch.tensor([[1.0, 0.0], [0.6, 0.4], [0.1, 0.9]], dtype=torch.float64)
LATE = State(progress=1.0, prior=torch.tensor([0.5, 0.5], dtype=torch.float64))


def _ce(target: Tensor, p: Tensor = P) -> list[float]:
    return [
        -sum(t * math.log(q) for t, q in zip(a, b, strict=True) if t)
        for a, b in zip(target.tolist(), p.tolist(), strict=True)
    ]


def _logits() -> Tensor:
    return torch.tensor([[0.9, -0.4], [-1.1, 0.3], [0.2, 0.1]], dtype=torch.float64, requires_grad=True)


def test_xent_by_hand_soft_and_hard():
    found = LOSSES["xent"](P.log(), Y, LATE)
    assert found.tolist() == pytest.approx([-math.log(0.7), -0.6 * math.log(0.2) - 0.4 * math.log(0.8), _ce(Y)[2]])


def test_logconf_mixes_in_the_hard_label_above_the_prior_quantile():
    # Of p_1 = .3, .8, .55 the median is .55; the shares above it are the prior's, ties going to the first choice.
    found = LOSSES["logconf"](P.log(), Y, LATE)
    own = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    assert found.tolist() == pytest.approx(_ce(0.5 * Y + 0.5 * own))


def test_logconf_takes_the_threshold_at_the_prior_not_at_one_half():
    p1 = torch.linspace(0.55, 0.95, 9, dtype=torch.float64)  # the student calls all of them class 1
    p = torch.stack([1 - p1, p1], dim=1)
    y = torch.full((9, 2), 0.5, dtype=torch.float64)
    state = State(1.0, torch.tensor([0.75, 0.25], dtype=torch.float64))
    losses = logconf(p.log(), y, state, alpha=1.0)
    is_one = torch.isclose(losses, -p1.log())
    assert is_one.tolist() == [False] * 7 + [True] * 2
    assert prior_threshold(p, state.prior)[1].item() == pytest.approx(0.85)  # three quarters of the way


def test_logconf_with_three_choices_gives_each_the_prior_share():
    torch.manual_seed(0)
    p = torch.randn(600, 3, dtype=torch.float64).add(torch.tensor([2.0, 0.0, -1.0])).softmax(-1)
    y = torch.full((600, 3), 1 / 3, dtype=torch.float64)
    losses = logconf(p.log(), y, State(1.0, torch.full((3,), 1 / 3, dtype=torch.float64)), alpha=1.0)
    own = torch.stack([torch.isclose(losses, -p[:, c].log()) for c in range(3)]).double().mean(dim=1)
    assert own.tolist() == pytest.approx([1 / 3] * 3, abs=0.08)
    assert p.argmax(-1).bincount(minlength=3).div(600).tolist() == pytest.approx([0.86, 0.12, 0.02], abs=0.06)


def test_the_confidence_weight_rises_linearly_without_a_jump():
    values = [warmed_up(0.5, k / 100, 0.2) for k in range(101)]
    assert values[0] == 0
    assert values[10] == pytest.approx(0.25)
    assert values[20:] == [0.5] * 81
    assert max(b - a for a, b in itertools.pairwise(values)) == pytest.approx(0.025)
    at_start = LOSSES["logconf"](P.log(), Y, State(0.0, LATE.prior))
    assert at_start.tolist() == pytest.approx(_ce(Y))


def test_without_a_warm_up_the_weight_is_whole_from_the_start_and_a_new_training_has_no_progress():
    assert warmed_up(0.5, 0.0, 0.0) == 0.5
    assert LOSSES["entropy"](P.log(), Y, State()).tolist() == pytest.approx(_ce(Y))


def test_without_a_given_prior_logconf_takes_the_mean_label_of_its_rows():
    # Of p_1 = .9, .8, .6, .3, .2 the shares y_1 = .2 and y_0 = .8 leave one row above the threshold .82 of class 1.
    p1 = torch.tensor([0.9, 0.8, 0.6, 0.3, 0.2], dtype=torch.float64)
    y1 = torch.tensor([0.4, 0.1, 0.2, 0.0, 0.3], dtype=torch.float64)
    p, y = (torch.stack([1 - x, x], dim=1) for x in (p1, y1))
    own = torch.tensor([[0.0, 1.0], *[[1.0, 0.0]] * 4], dtype=torch.float64)
    assert logconf(p.log(), y, State(1.0), alpha=1.0).tolist() == pytest.approx(_ce(own, p))


def test_logconf_takes_the_quantile_over_the_whole_step():
    # Alone, the row stands on its own threshold; among the step's it is below that of class 1, or above it.
    p = torch.tensor([[0.4, 0.6]], dtype=torch.float64)
    half = torch.tensor([0.5, 0.5], dtype=torch.float64)
    for others, own in ((0.9, [1.0, 0.0]), (0.1, [0.0, 1.0])):
        step = torch.cat([p, torch.tensor([[1 - others, others]] * 4, dtype=torch.float64)])
        found = logconf(p.log(), Y[:1], State(1.0, half, step), alpha=1.0)
        assert found.tolist() == pytest.approx(_ce(torch.tensor([own], dtype=torch.float64), p))


def test_entropy_mixes_in_the_soft_label():
    assert LOSSES["entropy"](P.log(), Y, LATE, alpha=0.75).tolist() == pytest.approx(_ce(0.25 * Y + 0.75 * P))
    assert LOSSES["entropy"](P.log(), Y, State(0.1), alpha=0.5).tolist() == pytest.approx(_ce(0.75 * Y + 0.25 * P))


def test_product_is_the_normalised_product_of_experts():
    # Second row: .2^2 * .6 = .024 against .8^2 * .4 = .256.
    target = torch.tensor([[1.0, 0.0], [0.024 / 0.28, 0.256 / 0.28], [0.0, 0.0]], dtype=torch.float64)
    a, b = 0.45**2 * 0.1, 0.55**2 * 0.9
    target[2] = torch.tensor([a / (a + b), b / (a + b)])
    assert LOSSES["product"](P.log(), Y, LATE, alpha=1.0, beta=2.0).tolist() == pytest.approx(_ce(target))


def test_window_counts_unsure_rows_only():
    assert LOSSES["window"](P.log(), Y, LATE, radius=0.15).tolist() == pytest.approx([0.0, 0.0, _ce(Y)[2]])
    assert LOSSES["window"](P.log(), Y, LATE).tolist() == pytest.approx([0.0, 0.0, _ce(Y)[2]])  # the published radius
    at_the_edge = torch.full((1, 2), 0.5, dtype=torch.float64)
    assert LOSSES["window"](at_the_edge.log(), Y[:1], LATE, radius=0.0).tolist() == [0.0]
    three = torch.tensor([[0.4, 0.3, 0.3], [0.5, 0.3, 0.2]], dtype=torch.float64)
    y = torch.eye(3, dtype=torch.float64)[:2]
    assert LOSSES["window"](three.log(), y, LATE, radius=0.15).tolist() == pytest.approx([-math.log(0.4), 0.0])


def test_reverse_kl_by_hand_and_finite_for_hard_labels():
    found = LOSSES["reverse_kl"](P.log(), Y, LATE).tolist()
    low, high = FLOOR / (1 + FLOOR), 1 / (1 + FLOOR)
    assert found[0] == pytest.approx(0.7 * math.log(0.7 / high) + 0.3 * math.log(0.3 / low))
    assert found[1] == pytest.approx(0.2 * math.log(0.2 / 0.6) + 0.8 * math.log(0.8 / 0.4))
    assert LOSSES["reverse_kl"](Y[1:].log(), Y[1:], LATE).tolist() == pytest.approx([0.0, 0.0])


def test_adaptive_confidence_by_hand():
    # b = exp(CE to own) / (exp(CE to own) + exp(CE to label)) = (1/p_own) / (1/p_own + 1/p_label) at temperature 1.
    found = LOSSES["adaptive_confidence"](P.log(), Y, LATE).tolist()
    assert found[0] == pytest.approx(0.5 * -math.log(0.7) + 0.5 * -math.log(0.7))  # agree: 1/2
    b = (1 / 0.8) / (1 / 0.8 + 1 / 0.2)
    assert b == pytest.approx(0.2)
    assert found[1] == pytest.approx((1 - b) * _ce(Y)[1] + b * -math.log(0.8))
    hot = LOSSES["adaptive_confidence"](P.log(), Y, LATE, temperature=1e6).tolist()
    assert hot[1] == pytest.approx(0.5 * _ce(Y)[1] + 0.5 * -math.log(0.8), abs=1e-5)


def _target_of(name: str, p: Tensor) -> Tensor:
    """The target q, held fixed, of the losses that are CE(p, q): their gradient in the logits is p - q."""
    own = torch.nn.functional.one_hot(p.argmax(-1), 2).double()
    if name == "xent":
        return Y
    if name == "logconf":
        threshold = torch.quantile(p[:, 1], 0.5)
        one = (p[:, 1] > threshold).double()
        return 0.5 * Y + 0.5 * torch.stack([1 - one, one], dim=1)
    if name == "entropy":
        return 0.5 * Y + 0.5 * p
    if name == "product":
        return p * Y / (p * Y).sum(-1, keepdim=True)
    b = (1 / p.max(-1).values) / (1 / p.max(-1).values + 1 / p.gather(1, Y.argmax(-1, keepdim=True)).squeeze(1))
    return (1 - b)[:, None] * Y + b[:, None] * own


@pytest.mark.parametrize("name", ["xent", "logconf", "entropy", "product", "adaptive_confidence"])
def test_the_gradient_is_student_minus_target_so_nothing_flows_through_self_labels(name: str):
    logits = _logits()
    LOSSES[name](logits.log_softmax(-1), Y, LATE).sum().backward()
    p = logits.detach().softmax(-1)
    assert logits.grad is not None
    assert torch.allclose(logits.grad, p - _target_of(name, p), atol=1e-12)


def test_the_gradient_of_window_is_that_of_xent_inside_and_zero_outside():
    logits = _logits()
    LOSSES["window"](logits.log_softmax(-1), Y, LATE, radius=0.2).sum().backward()
    p = logits.detach().softmax(-1)
    inside = (p.max(-1).values < 0.7).double()[:, None]
    assert inside.sum().item() == 1
    assert logits.grad is not None
    assert torch.allclose(logits.grad, inside * (p - Y), atol=1e-12)


@pytest.mark.parametrize("name", ["xent", "window", "reverse_kl"])
def test_the_gradient_is_that_of_finite_differences(name: str):
    """For losses without a detached part; the others' finite differences would move the target too."""
    loss = functools.partial(LOSSES[name], targets=Y, state=LATE)
    assert torch.autograd.gradcheck(lambda z: loss(z.log_softmax(-1)), (_logits(),))


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_every_loss_is_one_finite_value_a_row_under_its_default_settings(name: str):
    hard = torch.eye(2, dtype=torch.float64)[[0, 1, 1]]
    for targets in (Y, hard):
        logits = _logits()
        losses = LOSSES[name](logits.log_softmax(-1), targets, State(0.3, targets.mean(0)), **known()().of(name))
        assert losses.shape == (3,)
        losses.mean().backward()
        assert logits.grad is not None
        assert torch.isfinite(losses).all()
        assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("name", ["logconf", "entropy", "adaptive_confidence"])
def test_the_loss_of_a_step_does_not_depend_on_how_it_is_cut(own_task: Path, causal_model, tmp_path: Path, name: str):
    task = hn.Harness([str(own_task)]).task("own_reviews")
    labels = gold_labels(task.train_ids[:60], [task.gold(d) for d in task.train_docs[:60]], 2)
    curves = []
    for parts in (1, 4):
        settings = Lora(
            model=str(causal_model("llama")),
            r=4,
            lr=1e-2,
            batch_size=20,
            holdout=0,
            trainer_args={"gradient_accumulation_steps": parts},
        )
        out = tmp_path / str(parts)
        out.mkdir()
        # A weight of .9 after one step of three makes the self-labels decide most.
        args = {"alpha": 0.9, "warmup": 0.3} if name != "adaptive_confidence" else {}
        lora.fit(task, task.train_docs[:60], labels, settings, out, pool=hn.ModelPool(), method=name, loss_args=args)
        curves.append([p["loss"] for p in json.loads((out / "curves.json").read_text())])
    assert curves[0] == pytest.approx(curves[1], abs=1e-4)


def test_a_product_without_the_labels_expert_is_the_student_alone():
    logprobs = torch.tensor([[0.3, 0.7], [0.9, 0.1]]).log().requires_grad_()
    hard = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    found = LOSSES["product"](logprobs, hard, State(0.5), alpha=0.0)
    probs = logprobs.detach().exp()
    assert torch.allclose(found, -(probs * probs.log()).sum(dim=-1))


def test_entropy_is_xent_with_a_smaller_gradient():
    logits = torch.tensor([[0.2, -0.4], [1.0, 0.3]], requires_grad=True)
    labels = torch.tensor([[0.8, 0.2], [0.1, 0.9]])
    gradients = []
    for loss in (LOSSES["entropy"], LOSSES["xent"]):
        (gradient,) = torch.autograd.grad(loss(logits.log_softmax(-1), labels, State(1.0)).sum(), logits)
        gradients.append(gradient)
    assert torch.allclose(gradients[0], 0.5 * gradients[1])


DEFAULTS = {
    "logconf": {"alpha": 0.5, "warmup": 0.2},
    "entropy": {"alpha": 0.5, "warmup": 0.2},
    "product": {"alpha": 1.0, "beta": 1.0},
    "window": {"radius": 0.15},
    "adaptive_confidence": {"temperature": 1.0},
    "xent": {},
    "reverse_kl": {},
    "filter": {"keep": 0.5, "by_class": True},
    "harden": {},
    "balance": {},
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_an_experiments_settings_of_a_part_are_its_functions_keywords(name: str):
    assert known()().of(name) == DEFAULTS[name]


@pytest.mark.parametrize(
    ("name", "key", "taken", "refused"),
    [
        *((loss, key, (0, 1), (-0.01, 1.01)) for loss in ("logconf", "entropy") for key in ("alpha", "warmup")),
        ("product", "alpha", (0, 0.5, 9), (-0.01,)),
        ("product", "beta", (0, 0.5, 9), (-0.01,)),
        ("window", "radius", (0.01, 0.99), (0, 1)),
        ("adaptive_confidence", "temperature", (0.01, 9), (0, -1)),
        ("filter", "keep", (0.01, 1), (0, 1.01)),
    ],
)
def test_settings_out_of_bounds_are_refused(name: str, key: str, taken: tuple[float, ...], refused: tuple[float, ...]):
    for value in taken:
        assert known().model_validate({name: {key: value}}).of(name)[key] == value
    for value in refused:
        with pytest.raises(ValidationError):
            known().model_validate({name: {key: value}})
    with pytest.raises(ValidationError):
        known().model_validate({name: {"unknown": 1}})
