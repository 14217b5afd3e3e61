"""Names of training methods: what happens to the weak labels, then the loss, joined by ``+``.

``logconf`` is a loss on the weak labels as they are; ``filter`` keeps the labels of which the supervisor is sure and
trains with cross-entropy; ``bootstrap+filter+logconf`` does all three, from left to right. Settings of each part are in
`trainers.config.experiment.MethodArgs`.
"""

from __future__ import annotations

from dataclasses import dataclass

from trainers.labels.kinds import AnyLabels, takes
from trainers.labels.operations import METHOD_OPS, NEEDS_CONFIDENCE, NEEDS_GOLD
from trainers.steps.teachers import MODEL_OPS
from trainers.training.losses import LOSSES
from w2s_tasks.errors import nearest


def parts() -> tuple[str, ...]:
    """The names that a method's name is made of: losses, operations, operations with models."""
    return (*LOSSES, *METHOD_OPS, *MODEL_OPS)


@dataclass(frozen=True)
class Method:
    """A parsed name: operations on the labels in order, and a loss."""

    ops: tuple[str, ...] = ()
    loss: str = "xent"

    @property
    def sees_gold(self) -> bool:
        """Whether an operation of it is given gold labels of rows that the student learns."""
        return any(op in NEEDS_GOLD or (op in MODEL_OPS and MODEL_OPS[op].sees_gold) for op in self.ops)


def takes_labels(op: str, kind: type[AnyLabels]) -> bool:
    """Whether an operation takes labels of a kind."""
    return kind in MODEL_OPS[op].kinds if op in MODEL_OPS else takes(METHOD_OPS[op], kind)


def parse_method(name: str) -> Method:
    """Read a method's name.

    Raises:
        ValueError: an unknown part, two losses, a part twice, or parts in an order that makes no sense.
    """
    named, known = name.split("+"), parts()
    for part in named:
        if part not in known:
            raise ValueError(
                f"no method '{part}'.{nearest(part, known)} Known: {', '.join(known)}; join several by +. One of your own "
                "needs its plug-in: --plugin FILE."
            )
    if len(set(named)) != len(named):
        raise ValueError(f"'{name}' names a part twice")
    losses = [p for p in named if p in LOSSES]
    if len(losses) > 1:
        raise ValueError(f"'{name}' has two losses, {losses[0]} and {losses[1]}")
    ops = tuple(p for p in named if p not in LOSSES)
    if losses and named[-1] != losses[0]:
        raise ValueError(f"'{name}': the loss comes last, as in {'+'.join((*ops, losses[0]))}")
    late = next((op for op in ops[1:] if op in MODEL_OPS and MODEL_OPS[op].first), None)
    if late:
        raise ValueError(f"'{name}': {late} comes first, because its members label all rows")
    hardened = ops.index("harden") if "harden" in ops else len(ops)
    unsure = next((p for p in ops[hardened:] if p in NEEDS_CONFIDENCE), None)
    if unsure:
        raise ValueError(f"'{name}': {unsure} needs soft labels, so it comes before harden")
    return Method(ops, losses[0] if losses else "xent")
