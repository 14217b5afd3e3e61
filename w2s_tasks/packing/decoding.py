"""Greedy decoding of many prompts side by side in one row, behind the trunk that they share.

Every step runs one new token of every unfinished prompt. A token sees the trunk, its prompt's path in the prefix tree and
the tokens that its own prompt has generated, so no key or value is copied for a row and nothing is padded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from w2s_tasks.packing import masks
from w2s_tasks.packing.budget import decoding_tokens
from w2s_tasks.packing.forward import narrows, run_trunk
from w2s_tasks.packing.plan import Group, Plan, cut_packs, find_trunks
from w2s_tasks.packing.regimes import positions_of
from w2s_tasks.packing.tree import Pass, Request, lay_out, plan_passes
from w2s_tasks.packing.trial import NOT, Values, Way, try_groups

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


def _run_group(
    model: torch.nn.Module, group: Group, limit: int, finished: Finished, choose: Choose
) -> Iterator[tuple[Sequence[Pass], list[list[int]]]]:
    """Run the trunk once and decode pack after pack behind it."""
    from transformers import DynamicCache

    cache = run_trunk(model, group.trunk, next(model.parameters()).device) or DynamicCache()
    for pack in group.packs:
        names = [item.scores[0][0] for item in pack]
        yield pack, _decode(_Decoding(model, pack, group.trunk, cache), names, limit, finished, choose)
        cache.crop(-(cache.get_seq_length() - len(group.trunk)))


def _most_likely(logits: torch.Tensor, _: list[tuple[int, list[int]]]) -> torch.Tensor:
    return logits.argmax(dim=-1)


TRIED = 3
"""Steps that are compared when a model is tried: the prompt's, and two behind generated tokens."""


def _given_tokens(model: torch.nn.Module, item: Pass) -> list[int]:
    """Tokens that a trial puts behind a text, whatever the model would write; none that ends a reply."""
    endings = getattr(masks.inner(model).generation_config, "eos_token_id", None)
    endings = endings if isinstance(endings, list) else [endings]
    return [token for token in (*item.scores[0][1], *range(8)) if token not in endings][:TRIED]


class _Recorder:
    """Chooses the given tokens, and keeps what the model made of them."""

    def __init__(self, given: dict[int, list[int]]) -> None:
        self.given = given
        self.found: dict[tuple[int, int], torch.Tensor] = {}

    def __call__(self, logits: torch.Tensor, texts: list[tuple[int, list[int]]]) -> torch.Tensor:
        tokens = [self.given[name][len(text)] for name, text in texts]
        for row, (name, text), token in zip(logits.float().log_softmax(-1), texts, tokens, strict=True):
            self.found[name, len(text)] = row[token]
        return torch.tensor(tokens, device=logits.device)

    @property
    def values(self) -> Values:
        return [torch.stack([self.found[at] for at in sorted(self.found)])]


def _unending(_: list[int]) -> bool:
    return False


def _decode_packed(model: torch.nn.Module, group: Group, kind: str) -> Values:
    del kind  # always a dense mask
    recorder = _Recorder({item.scores[0][0]: _given_tokens(model, item) for pack in group.packs for item in pack})
    for _ in _run_group(model, group, TRIED, _unending, recorder):
        pass
    return recorder.values


def _decode_plain(model: torch.nn.Module, passes: Sequence[Pass]) -> Values:
    recorder = _Recorder({item.scores[0][0]: _given_tokens(model, item) for item in passes})
    for item in passes:
        _decode_alone(model, item.tokens, item.scores[0][0], TRIED, _unending, recorder)
    return recorder.values


def _decode_alone(
    model: torch.nn.Module, prompt: Sequence[int], name: int, limit: int, finished: Finished, choose: Choose
) -> list[int]:
    """By transformers' own generation, as lm_eval's hf does it for a batch of one."""
    start = len(prompt)
    ids = torch.tensor([list(prompt)], device=next(model.parameters()).device)

    def chosen(ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        token = choose(logits, [(name, ids[0, start:].tolist())])
        return torch.full_like(logits, -torch.inf).index_fill_(1, token, 0.0)

    def ended(ids: torch.Tensor, _: Any) -> torch.Tensor:
        return torch.tensor([finished(ids[0, start:].tolist())], device=ids.device)

    generate: Any = model.generate
    out = generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_length=start + limit,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,  # where a model asks for one, `choose` has it
        use_cache=True,
        pad_token_id=0,
        logits_processor=[chosen],
        stopping_criteria=[ended],
    )
    return out[0, start:].tolist()


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


def _plan_decoding(model: torch.nn.Module, prompts: Sequence[Sequence[int]], limit: int, budget: int | None) -> Plan:
    """Packs of prompts; none where the model can't be packed."""
    if not prompts:
        return Plan()
    device = next(model.parameters()).device
    plan = plan_prompts(prompts, budget or decoding_tokens(model, device))
    way = Way("decoding", _decode_packed, _decode_plain, more=limit)
    packable = all(try_groups(model, [group], device, way, (masks.DENSE,)) != NOT for group in plan.groups)
    return plan if packable else Plan()


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
) -> list[list[int]]:
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
        The generated tokens of each prompt, the ending one included. Prompts are decoded one after the other where the model
        can't be packed, and where they grow into other position tables (`regimes`).
    """
    positions = positions_of(model)
    able = [i for i, prompt in enumerate(prompts) if positions.first(len(prompt) + limit)]
    plan = _plan_decoding(model, [prompts[i] for i in able], limit, budget)

    def chosen(logits: torch.Tensor, at: list[tuple[int, list[int]]]) -> torch.Tensor:
        return choose(logits, [(able[i], text) for i, text in at])

    texts: dict[int, list[int]] = {}
    for group in plan.groups:
        for pack, found in _run_group(model, group, limit, finished, chosen):
            for item, text in zip(pack, found, strict=True):
                same = [able[i] for i, _ in item.scores]
                texts |= dict.fromkeys(same, text)
                if done:
                    done(same, text)
    for i in [i for i in range(len(prompts)) if i not in texts]:
        texts[i] = _decode_alone(model, prompts[i], i, limit, finished, choose)
        if done:
            done([i], texts[i])
    return [texts[i] for i in range(len(prompts))]
