"""Replies drawn from a model, with their log-probabilities, by packed decoding.

What is drawn follows from each request's own random numbers, one a token: the first token whose cumulative probability
passes the number (inversion). So a reply hangs neither on the other requests nor on their order, as far as the model's
probabilities don't (packs of another composition round otherwise, by about 1e-6).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from w2s_tasks.errors import UserError
from w2s_tasks.models.generation import decoded, greedy_settings

SAMPLING = ("do_sample", "temperature", "top_p", "top_k", "min_p")
"""Settings of generation that say how tokens are drawn."""


@dataclass(frozen=True)
class Sample:
    """A reply, and its mean log-probability a token under the model itself, at temperature 1."""

    text: str
    logprob: float


class _Draw:
    """Draws tokens, and keeps their log-probabilities."""

    def __init__(self, rngs: Sequence[random.Random], temperature: float, limit: int) -> None:
        self.numbers = [[rng.random() for _ in range(limit)] for rng in rngs] if temperature else []
        self.temperature = temperature
        self.logprobs: list[list[float]] = [[] for _ in rngs]

    def __call__(self, logits: torch.Tensor, at: list[tuple[int, list[int]]]) -> torch.Tensor:
        logits = logits.float()
        tokens = self._drawn(logits, at) if self.temperature else logits.argmax(dim=-1)
        own = logits.log_softmax(dim=-1).gather(1, tokens[:, None])[:, 0]
        for (i, text), logprob in zip(at, own.tolist(), strict=True):
            self.logprobs[i][len(text) :] = [logprob]
        return tokens

    def _drawn(self, logits: torch.Tensor, at: list[tuple[int, list[int]]]) -> torch.Tensor:
        scaled = logits / self.temperature
        # Apple's GPUs have no float64; a sum of 10^5 probabilities needs it.
        below = scaled.softmax(dim=-1).to("cpu" if scaled.device.type == "mps" else scaled.device).double().cumsum(dim=-1)
        numbers = torch.tensor([self.numbers[i][len(text)] for i, text in at], dtype=below.dtype, device=below.device)
        drawn = torch.searchsorted(below, numbers[:, None] * below[:, -1:], right=True)[:, 0]
        return drawn.clamp(max=logits.shape[1] - 1).to(logits.device)


def sample(
    lm: Any, contexts: Sequence[str], settings: dict[str, Any], temperature: float, rngs: Sequence[random.Random]
) -> list[Sample]:
    """One reply to each context.

    Args:
        lm: the ``w2s-hf`` model.
        contexts: prompts; equal ones must have equal random numbers, for they are run once.
        settings: a request's own, as ``until`` and ``max_gen_toks``; how it wants to be sampled is not followed.
        temperature: of the distribution that is drawn from; 0 for the likeliest token.
        rngs: one a context.

    Raises:
        UserError: a model whose replies can't be drawn here, or whose window is shorter than a reply.
    """
    own = {key: value for key, value in settings.items() if key not in SAMPLING}
    wanted = greedy_settings(lm, own | {"do_sample": False})
    if wanted is None or lm.backend != "causal" or lm.mixed_precision_dtype is not None:
        raise UserError(
            f"{lm.pretrained}: its replies can't be sampled: that needs a causal language model without autocast whose "
            "generation config, and the task's generation_kwargs, ask for nothing but how a reply ends and is drawn "
            "(which labels: generate says itself), and a repetition penalty."
        )
    draw = _Draw(rngs, temperature, wanted.limit)
    first: dict[int, int] = {}
    texts = decoded(lm, contexts, wanted, lambda same: first.update(dict.fromkeys(same, same[0])), draw)
    if texts is None:
        raise UserError(
            f"{lm.pretrained}: a reply of {wanted.limit} tokens (max_gen_toks) leaves no room for a prompt in its window of "
            f"{lm.max_length}, or a prompt is empty. Use a model with a longer window, or a smaller max_gen_toks."
        )
    logprobs = [draw.logprobs[first[i]] for i in range(len(texts))]
    return [Sample(text.strip(), sum(own) / len(own)) for text, own in zip(texts, logprobs, strict=True)]
