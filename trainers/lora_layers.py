"""LoRA layers with fewer passes over memory, and less of it, while they are trained.

PEFT computes ``Wx + s B(Ax)`` as five operations, most of which write a tensor as large as the layer's output, and autograd
writes as many back. Here the low-rank part is added into the output, and its gradient into the input's, by the matrix
product itself. In a gated MLP, ``W(act(gate) * up)``, autograd keeps four tensors of the MLP's width; here it keeps the
gate and what it gates, and computes the others again. The same numbers to rounding; the same parameters, so checkpoints
and adapters don't know of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners import lora

from w2s_tasks.models.linear import Linear, product

Activation = Callable[[torch.Tensor], torch.Tensor]


def _output(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, a: torch.Tensor, b: torch.Tensor, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """``Wx + b + s B(Ax)`` for x of shape [..., in], and ``Ax``, [rows, r].

    The first is no view of another tensor, for a model may go on to write into it.
    """
    rows = _rows(x)
    low = product(rows, a)
    out = product(rows, weight, bias).addmm_(low, b.T, alpha=scaling)
    # What PyTorch's own products end with: a plain view that a function gives may not be written into.
    return torch.ops.aten._unsafe_view(out, [*x.shape[:-1], len(weight)]), low


def _rows(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(-1, x.shape[-1])


def _outer(thin: torch.Tensor, wide: torch.Tensor) -> torch.Tensor:
    """``thin^T wide``, [r, width]: the narrow matrix first, for kernels share the work out over the wide one."""
    return product(thin.t(), wide.t())


def _to_rows(grad: torch.Tensor, back: torch.Tensor, weight: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """Gradient of `_output` by its rows; `grad` is [rows, out] and `back` is ``s grad B``."""
    return product(grad, weight.t()).addmm_(back, a)


class _LoraLinear(torch.autograd.Function):
    """A LoRA layer with frozen W and b; x of shape [..., in]."""

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
        out, low = _output(x, weight, bias, a, b, scaling)
        ctx.save_for_backward(_rows(x), low, weight, a, b)
        ctx.scaling, ctx.shape = scaling, x.shape
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, low, weight, a, b = ctx.saved_tensors
        grad = _rows(grads[0])
        back = product(grad, b.t()).mul_(ctx.scaling)
        to_x = _to_rows(grad, back, weight, a).view(ctx.shape) if ctx.needs_input_grad[0] else None
        return to_x, None, None, _outer(back, rows), _outer(low, grad).t() * ctx.scaling, None


class _GatedLoraLinear(torch.autograd.Function):
    """A LoRA layer of ``act(gate) * up``, both [..., in], which is not kept."""

    @staticmethod
    def forward(
        ctx: Any,
        gate: torch.Tensor,
        up: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scaling: float,
        activation: Activation,
    ) -> torch.Tensor:
        out, low = _output(activation(gate) * up, weight, bias, a, b, scaling)
        ctx.save_for_backward(gate, up, low, weight, a, b)
        ctx.scaling, ctx.activation = scaling, activation
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gate, up, low, weight, a, b = ctx.saved_tensors
        with torch.enable_grad():
            inputs = gate.detach().requires_grad_(), up.detach().requires_grad_()
            gated = ctx.activation(inputs[0]) * inputs[1]
        grad = _rows(grads[0])
        back = product(grad, b.t()).mul_(ctx.scaling)
        to_gate, to_up = torch.autograd.grad(gated, inputs, _to_rows(grad, back, weight, a).view(gated.shape))
        to_a = _outer(back, gated.detach().reshape(-1, weight.shape[1]))
        return to_gate, to_up, None, None, to_a, _outer(low, grad).t() * ctx.scaling, None, None


@dataclass(frozen=True)
class _Plain:
    """A layer that is plain LoRA on a plain linear layer, with one adapter."""

    layer: lora.Linear
    name: str

    def suits(self, x: torch.Tensor) -> bool:
        """Whether it runs as it is on this input: no mixed precision, adapter on and not merged."""
        layer = self.layer
        dtypes = {x.dtype, *(module.weight.dtype for module in self._parts)}
        return not (layer.disable_adapters or layer.merged or torch.is_autocast_enabled(x.device.type)) and len(dtypes) == 1

    @property
    def _parts(self) -> tuple[Any, Any, Any]:
        return self.layer.get_base_layer(), self.layer.lora_A[self.name], self.layer.lora_B[self.name]

    @property
    def values(self) -> tuple[Any, ...]:
        """W, b, A, B and s."""
        base, a, b = self._parts
        return base.weight, base.bias, a.weight, b.weight, self.layer.scaling[self.name]


def _plain(layer: object) -> _Plain | None:
    """None for everything else that PEFT can do."""
    if not isinstance(layer, lora.Linear):
        return None
    base, names = layer.get_base_layer(), layer.active_adapters
    if type(base) not in (torch.nn.Linear, Linear) or len(names) != 1 or names[0] not in layer.lora_A:
        return None
    name = names[0]
    plain = not layer.lora_variant and isinstance(layer.lora_dropout[name], torch.nn.Identity)
    biased = layer.lora_A[name].bias is not None or layer.lora_B[name].bias is not None
    return _Plain(layer, name) if plain and not biased and not base.weight.requires_grad else None


def _linear_forward(plain: _Plain) -> Callable[..., torch.Tensor]:
    original = plain.layer.forward

    def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args or kwargs or not plain.suits(x):
            return original(x, *args, **kwargs)
        out: torch.Tensor = _LoraLinear.apply(x, *plain.values)
        return out

    return forward


def _gated_forward(mlp: Any, down: _Plain) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(x: torch.Tensor) -> torch.Tensor:
        gate, up = mlp.gate_proj(x), mlp.up_proj(x)
        if not (down.suits(gate) and torch.is_grad_enabled()):
            kept: torch.Tensor = mlp.down_proj(mlp.act_fn(gate) * up)
            return kept
        out: torch.Tensor = _GatedLoraLinear.apply(gate, up, *down.values, mlp.act_fn)
        return out

    return forward


def _is_gated(mlp: Any, forward: Callable[[torch.Tensor], torch.Tensor]) -> bool:
    """Whether a module is the gated MLP that its parts' names promise: it is asked about one row."""
    weight = mlp.gate_proj.weight
    row = torch.linspace(-1, 1, weight.shape[1], device=weight.device, dtype=weight.dtype)[None, None]
    try:
        with torch.random.fork_rng(devices=[]):
            expected = mlp(row)
            return torch.allclose(forward(row), expected, rtol=1e-3, atol=1e-3 * float(expected.detach().abs().max()))
    except (TypeError, RuntimeError, AttributeError):
        return False


def _gated(mlp: Any) -> Callable[[torch.Tensor], torch.Tensor] | None:
    if not {"gate_proj", "up_proj", "down_proj", "act_fn"} <= dict(mlp.named_children()).keys():
        return None
    down = _plain(mlp.down_proj)
    forward = _gated_forward(mlp, down) if down else None
    return forward if forward and _is_gated(mlp, forward) else None


@contextlib.contextmanager
def fewer_passes(model: torch.nn.Module) -> Iterator[None]:
    """While inside, plain LoRA layers and gated MLPs over them run as one function; all else runs as PEFT has it."""
    changed: list[Any] = []
    try:
        for module in model.modules():
            plain = _plain(module)
            forward = _linear_forward(plain) if plain else _gated(module)
            if forward:
                changed.append(module)
                module.forward = forward
        yield
    finally:
        for module in changed:
            del module.forward
