"""LoRA layers with fewer passes over memory while they are trained.

PEFT computes ``Wx + s B(Ax)`` as five operations, most of which write a tensor as large as the layer's output, and autograd
writes as many back. Here the low-rank part is added into the output, and its gradient into the input's, by the matrix
product itself. The same numbers to rounding; the same parameters, so checkpoints and adapters don't know of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from peft.tuners import lora

from w2s_tasks.models.linear import Linear, product


class _LoraLinear(torch.autograd.Function):
    """``Wx + b + s B(Ax)`` with frozen W and b; x of shape [..., in]."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        low = rows @ a.T
        out = product(rows, weight, bias).addmm_(low, b.T, alpha=scaling)
        ctx.save_for_backward(rows, low, weight, a, b)
        ctx.scaling, ctx.shape = scaling, x.shape
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, low, weight, a, b = ctx.saved_tensors
        grad = grads[0].reshape(-1, weight.shape[0])
        back = (grad @ b).mul_(ctx.scaling)
        to_x = product(grad, weight.t()).addmm_(back, a).view(ctx.shape) if ctx.needs_input_grad[0] else None
        return to_x, None, None, back.T @ rows, (grad.T @ low).mul_(ctx.scaling), None


def _adapter(layer: lora.Linear) -> str | None:
    """The one adapter of a layer that is plain LoRA on a plain linear layer; None for everything else that PEFT can do."""
    base, names = layer.get_base_layer(), layer.active_adapters
    if type(base) not in (torch.nn.Linear, Linear) or len(names) != 1 or names[0] not in layer.lora_A:
        return None
    name = names[0]
    plain = not layer.lora_variant and isinstance(layer.lora_dropout[name], torch.nn.Identity)
    biased = layer.lora_A[name].bias is not None or layer.lora_B[name].bias is not None
    return name if plain and not biased and not base.weight.requires_grad else None


def _forward(layer: lora.Linear, name: str) -> Callable[..., torch.Tensor]:
    original = layer.forward
    base, a, b, scaling = layer.get_base_layer(), layer.lora_A[name], layer.lora_B[name], layer.scaling[name]

    def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        as_it_is = not (args or kwargs or layer.disable_adapters or layer.merged or torch.is_autocast_enabled(x.device.type))
        if as_it_is and x.dtype == base.weight.dtype == a.weight.dtype == b.weight.dtype:
            out: torch.Tensor = _LoraLinear.apply(x, base.weight, base.bias, a.weight, b.weight, scaling)
            return out
        return original(x, *args, **kwargs)

    return forward


@contextlib.contextmanager
def fewer_passes(model: torch.nn.Module) -> Iterator[None]:
    """While inside, plain LoRA layers run as one function; mixed precision and other variants run as PEFT has them."""
    changed = []
    for layer in model.modules():
        if isinstance(layer, lora.Linear) and (name := _adapter(layer)):
            layer.forward = _forward(layer, name)
            changed.append(layer)
    try:
        yield
    finally:
        for layer in changed:
            del layer.forward
