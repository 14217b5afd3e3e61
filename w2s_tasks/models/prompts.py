"""Prompts of models whose tokenizer is here: chat templates and tokens, exactly as lm_eval's ``hf`` makes them.

`Prompts` stands before a class of lm_eval's (``HFLM`` or `TokenizerLM`), whether the weights are in this process (`w2s-hf`)
or behind a server (`w2s-vllm`, `w2s-tinker`): all score the same tokens.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.utils import maybe_delimit
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import has_bos_prefix

from w2s_tasks import packing
from w2s_tasks.errors import UserError
from w2s_tasks.packing import tokens
from w2s_tasks.scoring import system_place
from w2s_tasks.user_text import shown

log = logging.getLogger(__name__)

Encoded = tuple[tuple[str, str] | None, packing.Tokens, packing.Tokens]


def refuse_without_template(tokenizer: Any, name: str) -> None:
    """Refuse a chat where the tokenizer has no template for one.

    Raises:
        UserError: says how to prompt the model otherwise.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            f"{name} has no chat template: it is no chat model, or its tokenizer was saved without. Leave the template out "
            "(chat_template: false; no --apply_chat_template), or use a model that has one."
        )


def _refuse_unembedded(encoded: Mapping[str, Sequence[int]], embedded: int, tokenizer: Any, name: str) -> None:
    """Refuse tokens beyond a model's embeddings: its tokenizer has learnt more than the model."""
    for text, ids in encoded.items():
        if ids and max(ids) >= embedded:
            token = tokenizer.convert_ids_to_tokens(max(ids))
            raise UserError(
                f"{name}: its tokenizer makes {token!r} of {shown(text)}, for which the model has no embedding (it has "
                f"{embedded:,}, the tokenizer {len(tokenizer):,} tokens). Use the tokenizer that the model was trained with."
            )


class Prompts(TemplateLM):
    """What a model with a tokenizer makes of messages and strings."""

    tokenizer: Any
    add_bos_token: bool | None
    _name: str
    """The model's, for messages."""

    @property
    def embedded(self) -> int:
        """Tokens that the model has an embedding for."""
        return len(self.tokenizer)

    @functools.cached_property
    def folds_system(self) -> bool:
        """Whether the chat template refuses a system message or leaves its text out; told once."""
        messages = [{"role": "system", "content": "w2sprobe"}, {"role": "user", "content": "x"}]
        try:
            folds = "w2sprobe" not in self.tokenizer.apply_chat_template(messages, tokenize=False)
        except jinja2.exceptions.TemplateError:
            folds = True
        if folds:
            log.warning(
                "the chat template of %s has no system role: system prompt and description begin the first user turn, in "
                "training, labelling and evaluation alike",
                self._name,
            )
        return folds

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template that `apply_chat_template` fills, as lm_eval records it.

        Raises:
            UserError: as there.
        """
        if chat_template:
            refuse_without_template(self.tokenizer, self._name)
        return super().chat_template(chat_template)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Messages as text; a system message that the template would drop stands at the beginning of the first user turn.

        Raises:
            UserError: the tokenizer has no template.
        """
        refuse_without_template(self.tokenizer, self._name)
        if chat_history[0]["role"] == "system" and self.folds_system:
            system, first, *rest = chat_history
            content = maybe_delimit(system["content"], first["content"], "\n\n")
            chat_history = [{**first, "content": content}, *rest]
        return super().apply_chat_template(chat_history, add_generation_prompt)

    def tokenize(self, strings: Sequence[str]) -> list[list[int]]:
        """Encode strings as `tok_encode` does, all at once; what they have in common is encoded once."""
        # Without a beginning or end of text there is no prefix that a string could bring.
        prefix = None if self.prefix_token_id is None else self.tokenizer.decode(self.prefix_token_id)
        special = {} if self.add_bos_token is None else {"add_special_tokens": self.add_bos_token}
        known: dict[str, list[int]] = {}
        # A string that brings its own beginning-of-sequence token gets no second one.
        for has_prefix in (False, True):
            some = [s for s in dict.fromkeys(strings) if has_bos_prefix(s, prefix) == has_prefix]
            settings = {"add_special_tokens": False} if has_prefix else special
            if some:
                known.update(zip(some, tokens.encode_all(self.tokenizer, some, settings), strict=True))
        if self.embedded < len(self.tokenizer):
            _refuse_unembedded(known, self.embedded, self.tokenizer, self._name)
        return [known[s] for s in strings]

    def encode(
        self, pairs: Sequence[tuple[str, str]], place: Callable[[int], str] = "request {}".format
    ) -> list[packing.Request]:
        """Encode (context, continuation) strings exactly as `loglikelihood` of lm_eval does.

        The tokens of a continuation are those that follow the context's in the encoding of both together; spaces at a
        context's end belong to the continuation. A context of white space alone is none.

        Args:
            pairs: the strings.
            place: says where the i-th of them comes from.

        Raises:
            UserError: a continuation of no token of its own, or no context where the tokenizer has nothing to begin with.
        """
        encoded = self._encoded(pairs, place)
        for i, (_, continuation) in enumerate(encoded):
            if not continuation:
                context, text = pairs[i]
                raise UserError(
                    f"{place(i)}: the choice {shown(text)} has no token of its own after the prompt, which ends "
                    f"{context[-40:]!r}, so it has no likelihood: it is empty, or {self._name}'s tokenizer joins it to the "
                    "prompt's last word. Change the choice, or put a space or line end between the two (target_delimiter)."
                )
        return encoded

    def _encoded(self, pairs: Sequence[tuple[str, str]], place: Callable[[int], str]) -> list[packing.Request]:
        if self.backend != "causal":
            return [
                self._encode_pair(*pair) if pair[0] else self._without_context(pair[1], place(i))
                for i, pair in enumerate(pairs)
            ]
        contexts = [context.rstrip() for context, _ in pairs]
        wholes = [context + continuation for context, continuation in pairs]
        filled = [i for i, (context, _) in enumerate(pairs) if context]
        encoded = self.tokenize([contexts[i] for i in filled] + [wholes[i] for i in filled])
        start, whole = dict(zip(filled, encoded, strict=False)), dict(zip(filled, encoded[len(filled) :], strict=True))
        return [
            (start[i], whole[i][len(start[i]) :]) if start.get(i) else self._without_context("".join(pairs[i]), place(i))
            for i in range(len(pairs))
        ]

    def _without_context(self, continuation: str, place: str) -> packing.Request:
        if self.prefix_token_id is None:
            raise UserError(
                f"{place}: the prompt is empty, and {self._name}'s tokenizer has neither a beginning nor an end of text to "
                "stand before the first token. Give the prompt a word, or the model prefix_token_id=N."
            )
        encoded: list[int] = self.tok_encode(continuation, add_special_tokens=False)
        if not encoded:
            return [self.prefix_token_id], []
        # As in lm_eval: a continuation that starts with the prefix token brings its own context.
        if self.prefix_token_id != encoded[0]:
            return [self.prefix_token_id], encoded
        return encoded[:1], encoded[1:]

    def _tell_cut(self, requests: Sequence[Encoded]) -> None:
        """Warn of requests that are longer than what is read of them."""
        cut = sum(len(context) + len(continuation) - 1 > self.max_length for _, context, continuation in requests)
        if cut:
            log.warning(
                "%d of %d requests are longer than %d tokens, what the model takes where it is; they are cut from the left",
                cut,
                len(requests),
                self.max_length,
            )

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation given its context, and whether greedy decoding would give it."""
        pairs: list[tuple[str, str]] = [request.args for request in requests]
        encoded = self.encode(pairs, lambda i: f"{requests[i].task_name}, document {requests[i].doc_id}")
        keyed: list[Encoded] = [(pair, c, t) for pair, (c, t) in zip(pairs, encoded, strict=True)]
        return self._loglikelihood_tokens(keyed, disable_tqdm)


class TokenizerLM(TemplateLM):
    """What lm_eval's ``hf`` does with its tokenizer alone."""

    chat_template_args: Mapping[str, Any]
    custom_prefix_token_id: int | None

    tok_encode = HFLM.tok_encode
    prefix_token_id = HFLM.prefix_token_id
    eot_token_id = HFLM.eot_token_id
    tokenizer_name = HFLM.tokenizer_name
    apply_chat_template = HFLM.apply_chat_template


def room_for_prompt(request: Instance, written: int, longest: int) -> int:
    """Tokens that a prompt may have beside so many that are written.

    Raises:
        UserError: none.
    """
    if written >= longest:
        raise UserError(
            f"{request.task_name}: {written} tokens of text leave no room for a prompt in {longest}; lower max_gen_toks."
        )
    return longest - written


def asked_where(lm: Prompts, base_url: str, name: str, meter: Any) -> dict[str, Any]:
    """What lm_eval adds to ``config`` of its result file for a model elsewhere: where it was asked, under which name.

    Args:
        lm: the model.
        base_url: its server's address.
        name: under which it was asked.
        meter: of its requests and tokens.
    """
    folded = {system_place.KEY: system_place.FOLDED} if lm.__dict__.get("folds_system") else {}
    usage = {"requests": meter.requests, "prompt_tokens": meter.prompt, "completion_tokens": meter.completion}
    return {"model_endpoint": base_url, "model_name_asked": name, "api_usage": usage, **folded}
