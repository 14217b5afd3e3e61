"""A LoRA layer that runs as one function gives PEFT's outputs and gradients; what it can't do stays PEFT's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from trainers.lora_layers import fewer_passes


class Net(torch.nn.Module):
    """Two linear layers, one with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.up = torch.nn.Linear(6, 10)
        self.down = torch.nn.Linear(10, 5, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.relu(self.up(x)))


class Gated(torch.nn.Module):
    """A gated MLP as most decoders have it; `twice` is what its parts' names don't tell."""

    def __init__(self, activation: torch.nn.Module, twice: bool = False) -> None:
        super().__init__()
        self.gate_proj = torch.nn.Linear(6, 10, bias=False)
        self.up_proj = torch.nn.Linear(6, 10, bias=False)
        self.down_proj = torch.nn.Linear(10, 5)
        self.act_fn, self.twice = activation, twice

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
        return 2 * out if self.twice else out


class Writing(Net):
    """Goes on to write into what its layers gave, whole and in part, as Gemma 3n does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.up(x)
        hidden[..., :3] += 1
        out: torch.Tensor = self.down(torch.relu(hidden))
        out.mul_(2)
        return out


class Outer(torch.nn.Module):
    """A block around a gated MLP, whose output it writes into."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = Gated(torch.nn.SiLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.mlp(x)
        out[..., 0] *= 3
        return out


def made(net: torch.nn.Module | None = None, **settings: Any) -> Any:
    torch.manual_seed(0)
    names = ["up", "down", "gate_proj", "up_proj", "down_proj"]
    model: Any = get_peft_model(net or Net(), LoraConfig(r=3, lora_alpha=5, target_modules=names, **settings))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_()
    return model.train()


def outcome(model: Any, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    x.grad = None
    out = model(x)
    (out * torch.linspace(-1, 1, out.shape[-1])).sum().backward()
    assert x.grad is not None
    return out.detach(), {"x": x.grad.clone()} | {
        n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None
    }


def ours(model: Any) -> int:
    return sum("forward" in vars(layer) for layer in model.modules())


def assert_same(model: Any, layers: int) -> None:
    x = torch.randn(2, 7, 6, generator=torch.Generator().manual_seed(3)).requires_grad_()
    torch.manual_seed(1)
    expected = outcome(model, x)
    with fewer_passes(model):
        assert ours(model) == layers
        torch.manual_seed(1)
        found = outcome(model, x)
    assert ours(model) == 0
    assert torch.allclose(found[0], expected[0], atol=1e-5)
    assert found[1].keys() == expected[1].keys()
    assert all(torch.allclose(found[1][name], grad, atol=1e-5) for name, grad in expected[1].items())


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"rank_pattern": {"down": 2}}])
def test_outputs_and_gradients_are_those_of_peft(settings: dict[str, Any]):
    assert_same(made(**settings), layers=2)


@pytest.mark.parametrize(("net", "layers"), [(Writing, 2), (Outer, 4)])
def test_a_model_may_write_into_what_a_layer_gave(net: type[torch.nn.Module], layers: int):
    torch.manual_seed(2)
    assert_same(made(net()), layers=layers)


@pytest.mark.parametrize("activation", [torch.nn.SiLU(), torch.nn.GELU("tanh"), torch.nn.ReLU()])
def test_a_gated_mlp_keeps_less_and_gives_the_same(activation: torch.nn.Module):
    torch.manual_seed(2)
    assert_same(made(Gated(activation)), layers=4)


@pytest.mark.parametrize("settings", [{"target_modules": ["gate_proj", "up_proj"]}, {"lora_dropout": 0.5}])
def test_a_gated_mlp_without_plain_lora_below_stays_as_it_is(settings: dict[str, Any]):
    torch.manual_seed(2)
    model = get_peft_model(Gated(torch.nn.SiLU()), LoraConfig(r=3, **({"target_modules": ["down_proj"]} | settings)))
    assert_same(model, layers=2 if "target_modules" in settings else 0)


def test_a_module_that_only_looks_like_a_gated_mlp_stays_as_it_is():
    torch.manual_seed(2)
    assert_same(made(Gated(torch.nn.SiLU(), twice=True)), layers=3)


@pytest.mark.parametrize("settings", [{"lora_dropout": 0.5}, {"use_dora": True}, {"lora_bias": True}])
def test_other_variants_stay_those_of_peft(settings: dict[str, Any]):
    assert_same(made(**settings), layers=0)


@pytest.mark.parametrize("state", ["disabled", "merged", "bfloat16 base", "autocast"])
def test_other_states_run_as_peft_has_them(state: str):
    model, x = made(), torch.randn(4, 6)
    if state == "merged":
        model.merge_adapter()
    if state == "bfloat16 base":
        for layer in (model.base_model.model.up, model.base_model.model.down):
            layer.get_base_layer().to(torch.bfloat16)
        x = x.bfloat16()

    def run() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=state == "autocast"):
            if state == "disabled":
                with model.disable_adapter():
                    return model(x)
            return model(x)

    expected = run()
    with fewer_passes(model):
        assert ours(model) == 2
        assert torch.equal(run(), expected)


def test_a_layer_is_given_back_where_training_ends_in_an_error():
    model = made()
    with pytest.raises(RuntimeError), fewer_passes(model):
        raise RuntimeError
    assert ours(model) == 0
