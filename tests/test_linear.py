"""Linear layers by oneDNN compute what PyTorch's own compute, gradients too, and are taken only where they are faster."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional
from transformers import pytorch_utils

from w2s_tasks.packing import linear

pytestmark = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")),
    reason="this build of torch has no oneDNN",
)


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take oneDNN whatever the processor."""
    monkeypatch.setattr(linear, "faster_here", lambda: True)


SHAPES = [((3, 7, 24), 40), ((1, 1, 24), 40), ((5, 24), 1), ((4, 1), 6), ((1, 33), 2), ((0, 24), 8), ((200, 576), 1536)]


@pytest.mark.parametrize(("shape", "out"), SHAPES)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_outputs_and_gradients_are_those_of_pytorch(
    shape: tuple[int, ...], out: int, biased: bool, frozen: bool, everywhere: None
):
    torch.manual_seed(0)
    x, weight = torch.randn(*shape), torch.randn(out, shape[-1]) / shape[-1] ** 0.5
    bias = torch.randn(out) if biased else None
    grad = torch.randn(*shape[:-1], out)

    def run(function: object) -> list[torch.Tensor]:
        leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_(not frozen)]
        if bias is not None:
            leaves.append(bias.clone().requires_grad_(not frozen))
        result = function(*leaves)  # type: ignore[operator]
        result.backward(grad)
        return [result.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]

    ours, theirs = run(linear.linear), run(functional.linear)
    assert len(ours) == len(theirs) == (2 if frozen else 3 + biased)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=5e-5)


def test_a_gradient_that_is_one_number_expanded(everywhere: None):
    x, weight = torch.randn(6, 24, requires_grad=True), torch.randn(8, 24, requires_grad=True)
    found = torch.autograd.grad(linear.linear(x, weight).sum(), (x, weight))
    expected = torch.autograd.grad(functional.linear(x, weight).sum(), (x, weight))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_weight_with_gaps_between_its_rows_is_closed_up_first(
    everywhere: None, monkeypatch: pytest.MonkeyPatch, transposed: bool
):
    """As keys are, a head's part of every token's row: oneDNN would take its reference kernel."""
    whole = torch.randn(20, 3, 8)
    weight = whole[:, 1].t() if transposed else whole[:, 1]
    x = torch.randn(5, weight.shape[1])
    given: list[torch.Tensor] = []
    original = linear.without_gaps
    monkeypatch.setattr(linear, "without_gaps", lambda w: given.append(original(w)) or given[-1])
    assert torch.allclose(linear.product(x, weight), functional.linear(x, weight), atol=1e-5)
    (used,) = given
    assert used.is_contiguous() or used.t().is_contiguous()
    for kept in (torch.randn(4, 6), torch.randn(6, 4).t()):
        assert original(kept) is kept


def test_strided_rows_and_gpt2s_layer(everywhere: None):
    layer = pytorch_utils.Conv1D(40, 24)
    torch.nn.init.normal_(layer.weight)
    x = torch.randn(24, 9).t()
    expected = layer(x)
    linear.quicken(layer)
    assert type(layer) is linear.Conv1D
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
    layer(x).square().sum().backward()
    found, layer.weight.grad = layer.weight.grad, None
    pytorch_utils.Conv1D.forward(layer, x).square().sum().backward()
    torch.testing.assert_close(found, layer.weight.grad, rtol=1e-4, atol=1e-4)


def test_a_model_keeps_its_parameters_and_copies_compute_with_their_own(everywhere: None):
    class Own(torch.nn.Linear):
        pass

    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4), Own(4, 2))
    names, x = list(model.state_dict()), torch.randn(3, 4)
    expected = model(x)
    linear.quicken(model)
    assert [type(m) for m in model] == [linear.Linear, torch.nn.LayerNorm, Own]
    assert list(model.state_dict()) == names
    torch.testing.assert_close(model(x), expected)
    other = copy.deepcopy(model)
    torch.nn.init.zeros_(other[0].weight)
    torch.testing.assert_close(model(x), expected)
    assert not torch.allclose(other(x), expected)


def test_other_types_and_mixed_precision_run_as_pytorch_has_them(everywhere: None):
    x, weight = torch.randn(3, 24), torch.randn(8, 24)
    assert linear.linear(x.double(), weight.double()).dtype == torch.float64
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear.linear(x, weight).dtype == torch.bfloat16
    with pytest.raises(RuntimeError):
        linear.linear(x, weight.double())


@pytest.mark.parametrize(
    ("capability", "processor", "faster"),
    [
        ("AVX512", "vendor_id : AuthenticAMD\ncpu family\t: 26\nmodel\t\t: 2", True),
        ("AVX512", "AMD64 Family 26 Model 36 Stepping 0, AuthenticAMD", True),
        ("AVX512", "vendor_id : GenuineIntel\ncpu family\t: 6", False),
        ("AVX2", "vendor_id : AuthenticAMD\ncpu family\t: 26", False),
        ("DEFAULT", "Apple", False),
    ],
)
def test_taken_only_where_mkl_is_held_back(capability: str, processor: str, faster: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(linear, "_processor", lambda: processor)
    linear.faster_here.cache_clear()
    try:
        assert linear.faster_here() is faster
        layer = torch.nn.Linear(2, 2)
        linear.quicken(layer)
        assert type(layer) is (linear.Linear if faster else torch.nn.Linear)
    finally:
        linear.faster_here.cache_clear()
