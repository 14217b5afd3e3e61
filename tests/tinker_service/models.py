"""Base models and what is trained on them: LoRA as matrices beside frozen linear layers, added by hooks.

It is written without PEFT on purpose, so that a test which compares both compares two implementations.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from loopback.models import load_model
from safetensors.torch import load_file, save_file
from tinker import types

from .wire import Row, UserFault

ALPHA = 32
"""The service's LoRA alpha, whatever the rank."""
ROWS = 8
"""How many rows are run at once; their losses are summed, so it changes nothing."""


class Base:
    """A base model: frozen, in float32, shared by all runs."""

    def __init__(self, folder: Path) -> None:
        with torch.random.fork_rng(devices=[]):  # the initial weights that loading overwrites are drawn
            self.model = load_model(folder).eval().requires_grad_(False)
        self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
        self.context: int = self.model.config.max_position_embeddings
        head = self.model.get_output_embeddings()
        self.head = next(name for name, module in self.model.named_modules() if module is head)
        given = self.model.config.eos_token_id
        self.ends = {self.tokenizer.eos_token_id, *(given if isinstance(given, list) else [given])} - {None}

    def layers(self, config: types.LoraConfig) -> dict[str, torch.nn.Linear]:
        """The linear layers that a configuration trains, by name."""

        def trained(name: str) -> bool:
            if name == self.head:
                return config.train_unembed
            return (config.train_mlp and ".mlp." in name) or (
                config.train_attn and ("attn." in name or "attention." in name)
            )

        modules = self.model.named_modules()
        return {name: module for name, module in modules if isinstance(module, torch.nn.Linear) and trained(name)}

    def check(self, length: int) -> None:
        """Refuse a text that is longer than the model's context.

        Raises:
            UserFault: With both lengths.
        """
        if length > self.context:
            raise UserFault(f"{length} tokens are more than the {self.context} of this model's context")

    def passes(self, adapter: Adapter, rows: Sequence[Row], *, backward: bool) -> list[torch.Tensor]:
        """The log-probabilities of each row's targets (``[T, K]``); `backward` adds to the adapter's gradients."""
        found = []
        for row in rows:
            self.check(len(row.tokens))
        for start in range(0, len(rows), ROWS):
            part = rows[start : start + ROWS]
            width = max(len(row.tokens) for row in part)
            # To the right of a text, under causal attention, padding changes nothing.
            ids = torch.tensor([row.tokens + [0] * (width - len(row.tokens)) for row in part])
            with adapter.on(self), torch.set_grad_enabled(backward):
                scores = self.model(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)
                chosen = [s[: len(row.tokens)].gather(-1, row.targets) for s, row in zip(scores, part, strict=True)]
                if backward:
                    torch.stack([-(row.weights * c).sum() for row, c in zip(part, chosen, strict=True)]).sum().backward()
            found += [c.detach() for c in chosen]
        return found

    @torch.no_grad()
    def read(self, adapter: Adapter | None, tokens: Sequence[int], cache: Any = None) -> tuple[torch.Tensor, Any]:
        """The log-probabilities of what follows each token (``[T, V]``), and the cache to go on from."""
        with adapter.on(self) if adapter else contextlib.nullcontext():
            out = self.model(input_ids=torch.tensor([tokens]), past_key_values=cache, use_cache=True)
        return out.logits[0].float().log_softmax(-1), out.past_key_values

    def write(
        self, adapter: Adapter | None, read: tuple[torch.Tensor, Any], asked: types.SamplingParams, seed: int
    ) -> Written:
        """One sample after what was read."""
        generator = torch.Generator().manual_seed(seed)
        scores, cache = read[0][-1], copy.deepcopy(read[1])
        tokens: list[int] = []
        kept: list[torch.Tensor] = []
        while True:
            tokens.append(_draw(scores, asked, generator))
            kept.append(scores)
            if self._ended(tokens, asked.stop):
                return Written(tokens, torch.stack(kept), stopped=True)
            if len(tokens) == asked.max_tokens:
                return Written(tokens, torch.stack(kept), stopped=False)
            rows, cache = self.read(adapter, tokens[-1:], cache)
            scores = rows[-1]

    def _ended(self, tokens: Sequence[int], stop: Any) -> bool:
        if stop is None:
            return tokens[-1] in self.ends
        stops = [stop] if isinstance(stop, str) else stop
        text = self.tokenizer.decode(tokens) if any(isinstance(s, str) for s in stops) else ""
        return any(s in text if isinstance(s, str) else s == tokens[-1] for s in stops)


@dataclass(frozen=True)
class Written:
    """A sample: its tokens, the stop included, and the log-probabilities of all tokens at each place (``[T, V]``)."""

    tokens: list[int]
    scores: torch.Tensor
    stopped: bool

    @property
    def logprobs(self) -> torch.Tensor:
        """Those of its own tokens, before temperature."""
        return self.scores.gather(-1, torch.tensor(self.tokens)[:, None])[:, 0]


def _draw(scores: torch.Tensor, asked: types.SamplingParams, generator: torch.Generator) -> int:
    if not asked.temperature:
        return int(scores.argmax())
    chances = (scores / asked.temperature).softmax(-1)
    ordered, ids = chances.sort(descending=True)
    kept = ordered.cumsum(-1) - ordered < asked.top_p
    if asked.top_k > 0:
        kept[asked.top_k :] = False
    return int(ids[torch.multinomial(ordered * kept, 1, generator=generator)])


class Adapter:
    """LoRA of one run: for each layer A ``[r, in]`` and B ``[out, r]``; it adds alpha / r times B A x."""

    def __init__(self, matrices: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
        self.matrices = matrices
        self.rank = next(iter(matrices.values()))[0].shape[0]

    @classmethod
    def new(cls, base: Base, config: types.LoraConfig) -> Adapter:
        """A fresh one: B is zero, A is uniform with the bound 1 / sqrt(in), drawn from the configuration's seed."""
        generator = torch.Generator()
        generator.manual_seed(config.seed) if config.seed is not None else generator.seed()
        matrices = {}
        for name, layer in base.layers(config).items():
            bound = 1 / math.sqrt(layer.in_features)
            a = (torch.rand(config.rank, layer.in_features, generator=generator) * 2 - 1) * bound
            matrices[name] = (a, torch.zeros(layer.out_features, config.rank))
        return cls(matrices)

    @classmethod
    def load(cls, folder: Path) -> Adapter:
        """The one that was saved in a folder."""
        tensors = load_file(folder / "adapter.safetensors")
        names = dict.fromkeys(key.rsplit(".", 1)[0] for key in tensors)
        return cls({name: (tensors[f"{name}.A"], tensors[f"{name}.B"]) for name in names})

    def save(self, folder: Path) -> None:
        """Write it into a folder."""
        save_file({key: tensor.detach().contiguous() for key, tensor in self.named()}, folder / "adapter.safetensors")

    def named(self) -> Iterator[tuple[str, torch.Tensor]]:
        """All matrices by name."""
        for name, (a, b) in self.matrices.items():
            yield f"{name}.A", a
            yield f"{name}.B", b

    def copy(self) -> Adapter:
        """The matrices as they are now, apart from the run."""
        return Adapter({name: (a.detach().clone(), b.detach().clone()) for name, (a, b) in self.matrices.items()})

    @contextlib.contextmanager
    def on(self, base: Base) -> Iterator[None]:
        """Add it to the base model's layers."""
        scale = ALPHA / self.rank

        def hook(a: torch.Tensor, b: torch.Tensor) -> Any:
            return lambda _, inputs, output: output + (inputs[0] @ a.T @ b.T) * scale

        modules = dict(base.model.named_modules())
        hooks = [modules[name].register_forward_hook(hook(a, b)) for name, (a, b) in self.matrices.items()]
        try:
            yield
        finally:
            for handle in hooks:
                handle.remove()


class Trained:
    """A run in memory: its adapter with gradients, and Adam."""

    def __init__(self, base: Base, adapter: Adapter) -> None:
        self.base, self.adapter = base, adapter
        for _, tensor in adapter.named():
            tensor.requires_grad_(True)
        self.optimizer = torch.optim.AdamW([tensor for _, tensor in adapter.named()])

    def step(self, params: types.AdamParams) -> None:
        """One step of Adam with the gradients so far, which are gone after it."""
        tensors = [tensor for _, tensor in self.adapter.named()]
        if params.grad_clip_norm > 0:
            torch.nn.utils.clip_grad_norm_(tensors, params.grad_clip_norm)
        self.optimizer.param_groups[0].update(
            lr=params.learning_rate, betas=(params.beta1, params.beta2), eps=params.eps, weight_decay=params.weight_decay
        )
        self.optimizer.step()
        self.optimizer.zero_grad()

    def save(self, folder: Path) -> None:
        """Write the adapter and Adam's state into a folder."""
        self.adapter.save(folder)
        state = self.optimizer.state
        kept = {f"{name}.{key}": value for name, t in self.adapter.named() if t in state for key, value in state[t].items()}
        save_file(kept, folder / "optimizer.safetensors")

    @classmethod
    def load(cls, base: Base, folder: Path, *, optimizer: bool) -> Trained:
        """A run that goes on from a folder, with Adam's state or without."""
        run = cls(base, Adapter.load(folder))
        saved = load_file(folder / "optimizer.safetensors") if optimizer else {}
        for name, tensor in run.adapter.named():
            state = {key: saved[f"{name}.{key}"] for key in ("step", "exp_avg", "exp_avg_sq") if f"{name}.{key}" in saved}
            if state:
                run.optimizer.state[tensor] = state
        return run
