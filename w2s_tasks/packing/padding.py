"""Which models' rows may stand side by side, padded on the right: tried as packs are (`trial`).

Under causal attention nothing sees what comes after it, so padding changes no score. An encoder without its decoder's mask
looks ahead, and some architectures lay out a batch by its longest row.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch

from w2s_tasks.packing.forward import score_batch
from w2s_tasks.packing.regimes import positions_of
from w2s_tasks.packing.tree import Pass
from w2s_tasks.packing.trial import (
    REACH,
    SCORED,
    by_text,
    compared,
    device_of,
    known,
    same_chances,
    tell,
)


@contextlib.contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Without dropout; every module's mode comes back."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _try_padding(model: torch.nn.Module, rows: Sequence[Pass]) -> str:
    """Why rows can't stand side by side; empty where each scores the same alone. The longest comes first."""
    device = device_of(model)
    with torch.no_grad(), _evaluating(model), same_chances(device):
        reason = compared(
            model,
            len(rows) * len(rows[0].tokens),
            lambda: [by_text([score_batch(model, rows, device)])],
            lambda: [by_text(score_batch(model, [item], device) for item in rows)],
        )
    return reason.replace("packed", "padded")


def _rows(batch: Sequence[Pass], longest: int) -> list[Pass]:
    """A batch's longest row, or its beginning, with beginnings of it that take a little and much padding."""
    tokens = batch[0].tokens[:longest]
    lengths = dict.fromkeys(max(1, len(tokens) * share // 8) for share in (8, 7, 4))
    return [Pass(tokens[:length], ((i, tokens[:length][-SCORED:]),)) for i, length in enumerate(lengths)]


def padded(model: torch.nn.Module, batches: list[list[Pass]]) -> list[list[Pass]]:
    """The batches, or rows one at a time where a row's score would depend on what stands beside it."""
    several = [batch for batch in batches if len(batch) > 1]
    state = known(model)
    if several and not state.alone:
        batch = max(several, key=lambda b: len(b[0].tokens))
        longest = len(batch[0].tokens)
        short = bool(state.driven) and not positions_of(model).adaptive
        if longest > state.padded and not (short and state.padded):
            rows = [batch[0], batch[-1]] if positions_of(model).adaptive else _rows(batch, REACH if short else longest)
            reason = _try_padding(getattr(model, "module", model), rows)
            state.padded, state.alone = longest, bool(reason)
            if reason:
                tell(model, "can't be batched", reason, "its rows are run one at a time")
    return [[item] for batch in batches for item in batch] if state.alone else batches
