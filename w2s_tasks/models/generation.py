"""``generate_until`` through packed decoding: greedy with the replies that lm_eval's ``hf`` gives, and sampled."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text

from w2s_tasks import notebook, packing

log = logging.getLogger(__name__)

UNDERSTOOD = {"until", "max_gen_toks", "do_sample", "temperature"}
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "num_beams": (None, 1),
    "no_repeat_ngram_size": (None, 0),
    "encoder_repetition_penalty": (None, 1.0),
    "bad_words_ids": (None,),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "exponential_decay_length_penalty": (None,),
    "suppress_tokens": (None, []),
    "begin_suppress_tokens": (None, []),
    "sequence_bias": (None,),
    "guidance_scale": (None, 1.0),
    "watermarking_config": (None,),
    "renormalize_logits": (None, False),
}
"""Values of a model's generation config under which greedy decoding takes the most likely token."""


@dataclass(frozen=True)
class Greedy:
    """What one group of requests asks for."""

    until: list[str]
    limit: int


def greedy_settings(lm: Any, settings: dict[str, Any]) -> Greedy | None:
    """The settings of a request as packed decoding can follow them; None where lm_eval's own path has to."""
    wanted = normalize_gen_kwargs(settings, lm.max_gen_toks)
    if wanted.get("do_sample") or set(wanted) - UNDERSTOOD or lm.think_end_token is not None:
        return None
    config = lm._model.generation_config
    if any(getattr(config, key, None) not in neutral for key, neutral in NEUTRAL.items()):
        return None
    eos = lm.tok_decode(lm.eot_token_id, skip_special_tokens=False)
    return Greedy(handle_stop_sequences(wanted["until"], eos=eos), wanted["max_gen_toks"])


Pick = Callable[[torch.Tensor, list[tuple[int, list[int]]]], torch.Tensor]
"""Logits [prompts, vocabulary], and each prompt's index with what it has generated, to the next tokens, shape [prompts]."""


def _most_likely(logits: torch.Tensor, _: list[tuple[int, list[int]]]) -> torch.Tensor:
    return logits.argmax(dim=-1)


def _penalised(penalty: float, prompts: Sequence[Sequence[int]], pick: Pick) -> Pick:
    """Picks after the repetition penalty that a model's generation config asks for."""
    from transformers import RepetitionPenaltyLogitsProcessor

    processor = RepetitionPenaltyLogitsProcessor(penalty)

    def chosen(logits: torch.Tensor, at: list[tuple[int, list[int]]]) -> torch.Tensor:
        rows = [
            processor(torch.tensor([[*prompts[i], *text]], device=logits.device), row[None].float())
            for (i, text), row in zip(at, logits, strict=True)
        ]
        return pick(torch.cat(rows), at)

    return chosen


def decoded(
    lm: Any, contexts: Sequence[str], wanted: Greedy, done: Callable[[list[int]], object], pick: Pick = _most_likely
) -> list[str] | None:
    """Replies to contexts by packed decoding; None where it can't follow the model.

    Args:
        lm: the ``w2s-hf`` model.
        contexts: prompts; equal ones are run once, under the first one's index.
        wanted: where a reply ends.
        done: called with the indices of equal contexts when their reply is there.
        pick: the next tokens.
    """
    room = lm.max_length - wanted.limit
    if room <= 0:
        return None  # lm_eval's own path says what is wrong
    prompts = [tokens[-room:] for tokens in lm.tokenize(list(contexts))]
    if not all(prompts):
        return None
    config = lm._model.generation_config
    ending = config.eos_token_id if config.eos_token_id is not None else lm.eot_token_id
    endings = set(ending) if isinstance(ending, list) else {ending}
    stops = [term for term in wanted.until if term]
    penalty = getattr(config, "repetition_penalty", None) or 1.0

    def finished(text: list[int]) -> bool:
        if text[-1] in endings:
            return True
        decoded = lm.tok_decode(text)
        return any(term in decoded for term in stops)

    texts = packing.generate(
        lm._model,
        prompts,
        limit=wanted.limit,
        finished=finished,
        budget=lm.token_budget,
        done=lambda same, _: done(same),
        choose=pick if penalty == 1.0 else _penalised(penalty, prompts, pick),
    )
    return [postprocess_generated_text(lm.tok_decode(text), wanted.until, None) for text in texts]


def generate_until(lm: Any, requests: list[Instance], fallback: Any, *, disable_tqdm: bool) -> list[str]:
    """Reply to requests of `generate_until`; groups that packed decoding can't follow go to `fallback`.

    Args:
        lm: the ``w2s-hf`` model.
        requests: instances with (context, generation settings).
        fallback: lm_eval's own way, a function of a list of requests.
        disable_tqdm: whether the progress bar is off.
    """
    groups: dict[str, list[int]] = {}
    for i, request in enumerate(requests):
        groups.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(i)
    replies: list[str] = [""] * len(requests)
    with notebook.bar(total=len(requests), disable=disable_tqdm or lm.rank != 0, desc="generating", unit="req") as bar:
        for indices in groups.values():
            part = [requests[i] for i in indices]
            wanted = greedy_settings(lm, part[0].args[1])
            contexts = [request.args[0] for request in part]
            found = decoded(lm, contexts, wanted, lambda same: bar.update(len(same))) if wanted else None
            if found is None:
                log.info("generation of %d replies goes lm_eval's own way", len(part))
                found = fallback(part)
            else:
                for request, reply in zip(part, found, strict=True):
                    lm.cache_hook.add_partial("generate_until", request.args, reply)
            for i, reply in zip(indices, found, strict=True):
                replies[i] = reply
    return replies
