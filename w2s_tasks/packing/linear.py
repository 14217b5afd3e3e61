"""Linear layers of float32 models on a CPU, through oneDNN where MKL leaves half of the processor unused.

PyTorch multiplies float32 matrices with MKL, which takes AVX-512 on Intel's processors only. oneDNN, which comes with
PyTorch too, takes it wherever it is. Measured on two cores, 256 to 1,024 rows of SmolLM2-135M's layers: 450 to 500 GFLOP/s
against 210 to 220 on an AMD EPYC of Zen 5; 200 to 213 against 173 to 198 on one of Zen 4, which does 512 bits in two halves;
`scripts/bench_linear` times a whole pass. Everywhere else layers stay as they are. What the processor is decides, not a
clock: two runs of a command compute the same.
"""

from __future__ import annotations

import functools
import platform
from pathlib import Path
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers import pytorch_utils


def _processor() -> str:
    """A text that somewhere tells who made the processor."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()


@functools.cache
def faster_here() -> bool:
    """Whether oneDNN's float32 kernels are wider than MKL's on this processor."""
    wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512") and "GenuineIntel" not in _processor()
    return wide and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _suits(x: torch.Tensor, weight: torch.Tensor) -> bool:
    return (
        faster_here()
        and x.device.type == weight.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and x.numel() > 0  # oneDNN refuses an empty product
    )


def without_gaps(weight: torch.Tensor) -> torch.Tensor:
    """A matrix whose rows or columns lie side by side in memory, a copy where they don't.

    For any other oneDNN has its reference kernel only, which takes several hundred times as long.
    """
    return weight if weight.is_contiguous() or weight.t().is_contiguous() else weight.contiguous()


def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``x weight^T + bias`` by the faster library, without a graph.

    Args:
        x: [..., in].
        weight: [out, in]; a transposed view is as fast, a view of a part of every row is copied first.
        bias: [out].

    Returns:
        Shape [..., out].
    """
    if not _suits(x, weight):
        return functional.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, without_gaps(weight), bias, "none", [], "")


class _Product(torch.autograd.Function):
    """`product` with its gradients."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x if weight.requires_grad else None, weight)
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        to_x = product(grad, weight.t()) if ctx.needs_input_grad[0] else None
        to_weight = product(rows.t(), x.reshape(-1, x.shape[-1]).t()) if ctx.needs_input_grad[1] else None
        return to_x, to_weight, rows.sum(0) if ctx.needs_input_grad[2] else None


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`torch.nn.functional.linear` by the faster library."""
    if not _suits(x, weight):
        return functional.linear(x, weight, bias)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
        return _Product.apply(x, weight, bias)
    return product(x, weight, bias)


class Linear(torch.nn.Linear):
    """A linear layer by the faster library."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """As the base class."""
        return linear(input, self.weight, self.bias)


class Conv1D(pytorch_utils.Conv1D):
    """GPT-2's linear layer, whose weight is [in, out], by the faster library."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As the base class."""
        return linear(x, self.weight.t(), self.bias)


FASTER: dict[type[torch.nn.Module], type[torch.nn.Module]] = {torch.nn.Linear: Linear, pytorch_utils.Conv1D: Conv1D}


def quicken(model: torch.nn.Module) -> None:
    """Let a model's linear layers use the faster library; parameters, names and files stay as they are."""
    if not faster_here():
        return
    for module in model.modules():
        faster = FASTER.get(type(module))
        if faster is not None:
            # Not a patched method: that would keep the module from being freed, and its copies would compute with it.
            module.__class__ = faster
