"""Which masks a model's attention layers get: whether what they see is known at every length, without running long texts.

Most architectures hand their masks to an attention function of transformers. If every layer gets the very mask that it was
given for a pack, and for a plain text one made by transformers' rules, then its windows are known: they are in those rules,
which can be asked about any two places. What can't be watched in this way has to be tried at the lengths that are run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from w2s_tasks.packing.masks import text_config, watchers

Rule = Callable[..., torch.Tensor]
"""Batch, head, place of the query, place of the key -> whether it is seen."""
FAR = 2**20
"""A place beyond every text."""


def _same(one: Any, other: Any) -> bool:
    """Whether a mask is another, or its copy on the device of some layers."""
    if one is other:
        return True
    tensors = isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)
    return tensors and one.shape == other.shape and torch.equal(one.cpu(), other.cpu())


def _sees_later(rule: Rule) -> bool:
    """Whether a rule lets a token see what comes later, or speaks of the very text only that it was made for."""
    try:
        rule(*(torch.tensor(i) for i in (0, 0, FAR, 0)))
        return bool(rule(*(torch.tensor(i) for i in (0, 0, 0, 1))))
    except IndexError:  # it looks up each place of that text, as which picture it belongs to
        return True


@dataclass
class Witness:
    """What the attention layers were given during some forward passes."""

    packed: set[int] = field(default_factory=set)
    """Layers that got the mask of a pack."""
    plain: set[int] = field(default_factory=set)
    """Layers that got a mask of transformers' rules, or none, which is causal."""
    strange: bool = False
    """Whether a layer got any other mask."""
    rules: list[Rule] = field(default_factory=list)
    windows: set[int] = field(default_factory=set)
    """Windows that were told to the attention function."""
    _given: list[Any] = field(default_factory=list)
    _made: list[Any] = field(default_factory=list)

    def given(self, mask: Any) -> None:
        """A mask was made for a pack."""
        self._given.append(mask)

    def attended(self, layer: torch.nn.Module, mask: Any, window: Any) -> None:
        """A layer calls its attention function."""
        if isinstance(window, int):
            self.windows.add(window)
        if any(_same(mask, given) for given in self._given):
            self.packed.add(id(layer))
        elif mask is None or any(_same(mask, made) for made in self._made):
            self.plain.add(id(layer))
        else:
            self.strange = True

    def made(self, mask: Any, rule: Rule | None) -> None:
        """A mask was made by a rule."""
        self._made.append(mask)
        if rule is None or _sees_later(rule):
            self.strange = True
        else:
            self.rules.append(rule)

    def forget_masks(self) -> None:
        """Let go of the masks; the rules are what is kept."""
        self._given.clear()
        self._made.clear()

    def driven(self, model: torch.nn.Module) -> bool:
        """Whether masks alone decide what each layer sees, in packs and in plain texts."""
        layers = getattr(text_config(model), "num_hidden_layers", None)
        return not self.strange and layers is not None and self.packed == self.plain and len(self.packed) >= layers

    def hides_from(self, length: int) -> set[int]:
        """The first places of a text of this many tokens that its first token is hidden from, one for each rule."""
        zero = torch.tensor(0)
        places = torch.arange(length)
        found: set[int] = {window for window in self.windows if window < length}
        for rule in self.rules:
            hidden = (~rule(zero, zero, places, zero)).nonzero()
            found |= {int(hidden[0])} if len(hidden) else set()
        return found


@contextmanager
def watching(witness: Witness) -> Iterator[None]:
    """While inside, `witness` is told of every attention function that is called and every mask that is made."""
    from transformers import AttentionInterface, AttentionMaskInterface

    choose, mask_for = AttentionInterface.get_interface, AttentionMaskInterface.__getitem__

    def attention(self: Any, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        function = choose(self, *args, **kwargs)

        def watched(layer: torch.nn.Module, *inputs: Any, **named: Any) -> Any:
            mask = inputs[3] if len(inputs) > 3 else named.get("attention_mask")
            witness.attended(layer, mask, named.get("sliding_window"))
            return function(layer, *inputs, **named)

        return watched

    def masks(self: Any, name: str) -> Callable[..., Any]:
        function = mask_for(self, name)

        def watched(*inputs: Any, **named: Any) -> Any:
            mask = function(*inputs, **named)
            witness.made(mask, named.get("mask_function"))
            return mask

        return watched

    own = "__getitem__" in vars(AttentionMaskInterface)
    watchers.append(witness.given)
    AttentionInterface.get_interface, AttentionMaskInterface.__getitem__ = attention, masks
    try:
        yield
    finally:
        watchers.remove(witness.given)
        AttentionInterface.get_interface = choose
        if own:
            AttentionMaskInterface.__getitem__ = mask_for
        else:
            del AttentionMaskInterface.__getitem__
        witness.forget_masks()
