"""Greedy decoding of many prompts side by side in one row, behind the trunk that they share.

Every step runs one new token of every unfinished prompt. A token sees the trunk, its prompt's path in the prefix tree and
the tokens that its own prompt has generated, so no key or value is copied for a row and nothing is padded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from w2s_tasks.packing import masks
from w2s_tasks.packing.budget import decoding_tokens
from w2s_tasks.packing.forward import narrows, run_trunk
from w2s_tasks.packing.plan import Group, Plan, cut_packs, find_trunks
from w2s_tasks.packing.tree import Pass, Request, lay_out, plan_passes
from w2s_tasks.packing.trial import can_pack

Finished = Callable[[list[int]], bool]
Choose = Callable[[torch.Tensor, list[tuple[int, list[int]]]], torch.Tensor]


class _Decoding:
    """One pack of prompts while it is decoded."""

    def __init__(self, model: torch.nn.Module, pack: Sequence[Pass], trunk: Sequence[int], cache: Any) -> None:
        self.model, self.cache = model, cache
        self.device = next(model.parameters()).device
        self.layout = lay_out(pack, len(trunk))
        sight = masks.tree_sight(self.layout, len(trunk), self.device)
        self.leaves = torch.tensor([tail[-1] for tail in self.layout.tails], device=self.device)
        self.seen = sight[self.leaves]  # [prompts, keys]: what a prompt's next token sees
        row = torch.tensor(self.layout.positions, device=self.device)
        self.keys = torch.cat([torch.arange(len(trunk), device=self.device), row])
        self.positions = row[self.leaves]
        self.first_mask = masks.additive(model, sight, row, self.keys)

    def first(self) -> torch.Tensor:
        """Run the prompts; logits of their last tokens, [prompts, vocabulary]."""
        row = torch.tensor([self.layout.tokens], device=self.device)
        places = torch.tensor([self.layout.positions], device=self.device)
        return self._forward(row, places, self.first_mask, self.leaves)

    def step(self, tokens: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
        """Run one token of every prompt that goes on (`active` indexes the prompts of the last step)."""
        own = torch.eye(len(tokens), dtype=torch.bool, device=self.device)
        self.seen = torch.cat([self.seen[active], own], dim=1)
        self.positions = self.positions[active] + 1
        self.keys = torch.cat([self.keys, self.positions])
        mask = masks.additive(self.model, self.seen, self.positions, self.keys)
        every = torch.arange(len(tokens), device=self.device)
        return self._forward(tokens[None], self.positions[None], mask, every)

    def _forward(self, tokens: torch.Tensor, positions: torch.Tensor, mask: Any, at: torch.Tensor) -> torch.Tensor:
        inputs = {
            "input_ids": tokens,
            "position_ids": positions,
            "attention_mask": mask,
            "past_key_values": self.cache,
            "use_cache": True,
        }
        narrow: dict[str, Any] = {}
        if narrows(self.model):
            narrow["logits_to_keep"], at = torch.unique(at, return_inverse=True)
        logits: torch.Tensor = self.model(**inputs, **narrow).logits
        return logits[0, at]


def _decode(state: _Decoding, names: Sequence[int], limit: int, finished: Finished, choose: Choose) -> list[list[int]]:
    texts: list[list[int]] = [[] for _ in names]
    going = list(range(len(texts)))
    logits = state.first()
    while True:
        tokens = choose(logits, [(names[i], texts[i]) for i in going])
        for i, token in zip(going, tokens.tolist(), strict=True):
            texts[i].append(token)
        on = [k for k, i in enumerate(going) if len(texts[i]) < limit and not finished(texts[i])]
        going = [going[k] for k in on]
        if not going:
            return texts
        active = torch.tensor(on, device=state.device)
        logits = state.step(tokens[active], active)


def _most_likely(logits: torch.Tensor, _: list[tuple[int, list[int]]]) -> torch.Tensor:
    return logits.argmax(dim=-1)


def plan_prompts(prompts: Sequence[Sequence[int]], budget: int) -> Plan:
    """Group prompts by trunk and cut them into packs; here everything is packed, whatever is shared."""
    # A prompt is a pass that predicts one token: its last token has to be run.
    requests: list[Request] = [(prompt, (0,)) for prompt in prompts]
    ordered = sorted(plan_passes(requests, max(map(len, prompts))), key=lambda p: p.tokens)
    groups: list[Group] = []
    loose: list[Pass] = []
    for start, end, trunk in find_trunks(ordered, budget):
        part = ordered[start:end]
        if trunk:
            groups.append(Group(part[0].tokens[:trunk], tuple(cut_packs(part, trunk, budget))))
        else:
            loose += part
    if loose:
        groups.append(Group((), tuple(cut_packs(loose, 0, budget))))
    return Plan(groups)


@torch.inference_mode()
def generate(
    model: torch.nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    limit: int,
    finished: Finished,
    choose: Choose = _most_likely,
    budget: int | None = None,
    done: Callable[[list[int], list[int]], object] | None = None,
) -> list[list[int]] | None:
    """Decode prompts greedily.

    Args:
        model: a causal language model of transformers, bare or with a PEFT adapter.
        prompts: token ids of each, not empty.
        limit: tokens to generate at most.
        finished: whether the tokens generated so far end a text; called after each.
        choose: logits [prompts, vocabulary], the index of each prompt and what it has generated, to the next tokens.
        budget: prompt tokens a pack.
        done: called with the indices of equal prompts and the tokens that they led to.

    Returns:
        The generated tokens of each prompt, the ending one included; None where the model can't be packed.
    """
    from transformers import DynamicCache

    device = next(model.parameters()).device
    plan = plan_prompts(prompts, budget or decoding_tokens(model, device))
    if not all(can_pack(model, group, device) for group in plan.groups):
        return None
    texts: list[list[int]] = [[] for _ in prompts]
    for group in plan.groups:
        cache = run_trunk(model, group.trunk, device) or DynamicCache()
        for pack in group.packs:
            names = [item.scores[0][0] for item in pack]
            found = _decode(_Decoding(model, pack, group.trunk, cache), names, limit, finished, choose)
            cache.crop(-(cache.get_seq_length() - len(group.trunk)))
            for item, text in zip(pack, found, strict=True):
                same = [i for i, _ in item.scores]
                for i in same:
                    texts[i] = text
                if done:
                    done(same, text)
    return texts
