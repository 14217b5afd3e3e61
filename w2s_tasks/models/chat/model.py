"""lm_eval's interface to a model behind an OpenAI-compatible endpoint.

Multiple choice takes one request a document (mode ``first_token``, see `choices`), or, where the endpoint gives no
log-probabilities, one constrained answer (mode ``generated``). ``get_model_info`` puts the mode, the share of floored rows
and the tokens into lm_eval's result file. The first document of each task is asked alone: it tells what the endpoint takes.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from w2s_tasks.errors import UserError, nearest
from w2s_tasks.models import prices as price_tables
from w2s_tasks.models.chat import wire
from w2s_tasks.models.chat.choices import ChoiceSet, Position, Scores, joined
from w2s_tasks.models.chat.client import Connection, default_variable
from w2s_tasks.models.chat.replies import RefusedError, Reply
from w2s_tasks.models.chat.store import AnswerStore, store_path
from w2s_tasks.models.chat.transport import Meter, Policy, Sender
from w2s_tasks.models.chat.wire import Conversation, Dialect, Endpoint, Request, Writer
from w2s_tasks.models.chat.written import ended_early, ignores_schema, parse_choice
from w2s_tasks.models.vllm.server import MOST_TOKENS, Server
from w2s_tasks.scoring import no_answer, system_place

log = logging.getLogger(__name__)

MODES = ("auto", "first_token", "generated")
LEAD_TOKENS = 5
"""Tokens to ask for where a lead-in stands before the choices."""
PROBES = 3
ADAPTATIONS = 6
UNCHOSEN = -100.0
"""In mode generated there is no probability: 0 for the chosen choice, this for the others."""
WARN_UNLISTED = 0.1
SHOWN = 200
THINKS = (
    'thinks before it answers, so that its first token is no answer. Turn that off (extra={"reasoning_effort": "none"} at '
    'Ollama, extra={"chat_template_kwargs": {"enable_thinking": false}} at vLLM, SGLang and llama.cpp), or let it think and '
    "ask for its answer as text: mode=generated,answer_tokens=4000."
)
SECONDS_TO_TELL = 10.0
"""For a server that may know nothing of tokens."""

Build = Callable[[Writer], Request]


@dataclass(frozen=True)
class Document:
    """A multiple-choice document as it arrives from lm_eval: one request a choice, gathered."""

    task: str
    number: int | None
    context: str
    choices: tuple[str, ...]
    rows: tuple[tuple[int, int], ...]
    """(row of the request, index of its choice)."""

    @property
    def where(self) -> str:
        """For messages."""
        return f"{self.task}, document {self.number}"


@dataclass
class TaskReport:
    """How one task's multiple choice was scored."""

    mode: str
    documents: int
    floored: float = 0.0
    """Share of documents with a choice outside the listed tokens, scored at the floor."""
    unlisted: float = 0.0
    """Share of documents without any listed choice; in mode generated: whose answer is no choice. They have no answer, which
    is wrong whatever the right one is (see `w2s_tasks.scoring.no_answer`)."""
    refused: float = 0.0
    """Share of documents whose answer the model refused or the endpoint withheld; a part of `unlisted`."""
    second_requests: int = 0


def _where(request: Instance) -> str:
    return f"{request.task_name}, document {request.doc_id}"


def gathered(requests: Sequence[Instance]) -> list[Document]:
    """The documents behind lm_eval's requests for choices, in order.

    Raises:
        UserError: requests that are no choices between continuations of one prompt.
    """
    groups: dict[tuple[str | None, int | str | None], list[int]] = defaultdict(list)
    for row, request in enumerate(requests):
        number = request.doc_id if request.doc_id is not None else str(request.args[0])
        groups[request.task_name, number].append(row)
    return [_document(requests, rows) for rows in groups.values()]


def _document(requests: Sequence[Instance], rows: Sequence[int]) -> Document:
    first = requests[rows[0]]
    contexts = {str(requests[r].args[0]) for r in rows}
    by_index = {requests[r].idx: str(requests[r].args[1]) for r in rows}
    if len(contexts) > 1:
        raise UserError(
            f"{_where(first)}: the choices stand in the prompts ({len(contexts)} of them), or unconditional likelihoods are "
            "asked for (acc_mutual_info). An endpoint that scores no prompt can't answer that; use w2s-hf."
        )
    if len(by_index) < 2:
        raise UserError(f"{_where(first)}: the likelihood of one given text, which such endpoints don't tell; use w2s-hf.")
    order = {index: place for place, index in enumerate(sorted(by_index))}
    return Document(
        str(first.task_name),
        first.doc_id,
        first.args[0],
        tuple(by_index[i] for i in sorted(by_index)),
        tuple((r, order[requests[r].idx]) for r in rows),
    )


def _choice_set(document: Document) -> ChoiceSet:
    try:
        return ChoiceSet.of(document.choices)
    except UserError as error:
        raise UserError(
            f"{document.where}: choices that can't be told apart by their first tokens: {error}. mode=generated asks for "
            "one of them as text; w2s-hf scores them whole."
        ) from None


def _by_task(documents: Sequence[Document]) -> Iterator[tuple[str, list[int]]]:
    places: dict[str, list[int]] = defaultdict(list)
    for i, document in enumerate(documents):
        places[document.task].append(i)
    yield from places.items()


def _chosen(found: int | None, n: int) -> Scores:
    """The scores of a choice that was written out."""
    if found is None:
        return _no_answer(n)
    return Scores(
        tuple(0.0 if i == found else UNCHOSEN for i in range(n)), tuple(i != found for i in range(n)), found, False
    )


def _no_answer(n: int) -> Scores:
    """The scores of a document that was not answered: refused, withheld, or with none of its choices in sight."""
    return Scores((no_answer.LOGLIK,) * n, (True,) * n, None, False)


def _extra(given: Mapping[str, Any] | str | None) -> dict[str, Any]:
    if not given:
        return {}
    try:
        extra = json.loads(given) if isinstance(given, str) else dict(given)
    except (ValueError, TypeError) as error:
        raise UserError(f"extra takes a JSON object of fields for every request: {error}.") from error
    own = {"model", "messages", "prompt", "logprobs", "top_logprobs", "temperature", "stream", "n"} & set(extra)
    if own:
        raise UserError(f"extra can't hold {', '.join(sorted(own))}: the task and the other arguments decide that.")
    return extra


def _one_of(name: str, value: str, known: Sequence[str]) -> str:
    if value not in known:
        raise UserError(f"{name}={value}: {' or '.join(known)} is expected.{nearest(str(value), known)}")
    return value


class W2SChat(LM):
    """A chat (or completions) endpoint as an lm_eval model."""

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        endpoint: str = "chat",
        mode: str = "auto",
        api_key_env: str | None = None,
        api_version: str | None = None,
        top_logprobs: int | None = None,
        answer_tokens: int = 32,
        max_gen_toks: int = 256,
        num_concurrent: int = 32,
        max_retries: int = 12,
        backoff: float = 0.5,
        timeout: float = 600,
        max_cost: float | None = None,
        prices: str | None = None,
        batch: bool = False,
        store: str | None = None,
        send_temperature: bool = True,
        extra: Mapping[str, Any] | str | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        **unknown: Any,
    ) -> None:
        """Open an endpoint; nothing is sent yet.

        Args:
            model: the model's name at the endpoint (on Azure the deployment's).
            base_url: the address, usually ending in /v1; by default ``$OPENAI_BASE_URL``, else OpenAI's.
            endpoint: ``chat``, or ``completions`` for plain prompts (a base model).
            mode: for multiple choice: ``first_token``, ``generated``, or ``auto``, the first where the endpoint can.
            api_key_env: the NAME of the environment variable with the key; OPENAI_API_KEY (AZURE_OPENAI_API_KEY).
            api_version: of Azure's dated API; makes base_url the Azure endpoint.
            top_logprobs: log-probabilities to ask for; by default 20, the most that OpenAI gives (5 for completions). Other
                servers often give more.
            answer_tokens: tokens of an answer in mode ``generated``; thousands for a model that reasons first.
            max_gen_toks: tokens of generated text where the task does not say.
            num_concurrent: the most requests in flight.
            max_retries: of one request.
            backoff: seconds before the first retry, doubled from one to the next, jittered.
            timeout: seconds for one answer.
            max_cost: USD that this run may spend; needs a price.
            prices: a YAML file with prices (see `w2s_tasks.models.prices`).
            batch: ask through the Batch API: half the price, within 24 hours.
            store: a folder for answers; by default in the cache.
            send_temperature: False for models that refuse one (they sample at their own).
            extra: fields for every request's body, such as ``{"chat_template_kwargs": {"enable_thinking": false}}``.
            batch_size: taken from lm_eval's command line, unused, as are `max_batch_size` and `device`.
            max_batch_size: unused.
            device: unused.
            unknown: refused.

        Raises:
            UserError: an unknown or impossible argument, a missing key, or a budget for a model without a price.
        """
        super().__init__()
        no_answer.count_as_wrong()
        self._refuse(unknown)
        kind: wire.Kind = (
            "completions" if _one_of("endpoint", endpoint, ("chat", "completions")) == "completions" else "chat"
        )
        self.mode = _one_of("mode", mode, MODES)
        self.endpoint = Endpoint(
            wire.resolve_base_url(base_url, azure=bool(api_version)),
            str(model),
            kind,
            str(api_version) if api_version else None,
        )
        self.connection = Connection(self.endpoint, api_key_env or default_variable(api_version), float(timeout))
        self.extra, self.answer_tokens, self.max_gen_toks = _extra(extra), int(answer_tokens), int(max_gen_toks)
        self.dialect = Dialect(
            limit="max_completion_tokens" if self.endpoint.is_openai and kind == "chat" else "max_tokens",
            top=wire.default_top(self.endpoint) if top_logprobs is None else int(top_logprobs),
            temperature=bool(send_temperature),
        )
        table = price_tables.table(prices)
        self.price_date = table.as_of
        self.meter = Meter(table.tokens(self.endpoint.model), None if max_cost is None else float(max_cost))
        if max_cost is not None and self.meter.price is None:
            raise UserError(
                f"max_cost needs a price, and none is known for '{model}': put it into a file (prices=FILE or "
                f"${price_tables.ENVIRONMENT}; the form is in w2s_tasks/models/prices.py)."
            )
        self.answers = AnswerStore(store_path(self.endpoint.base_url, self.endpoint.model, store))
        policy = Policy(max(1, int(num_concurrent)), max(0, int(max_retries)), float(backoff), float(timeout))
        self._sender = Sender(self.connection, self.answers, self.meter, policy)
        self._batch = bool(batch)
        self._reports: dict[str, TaskReport] = {}
        self._served: set[str] = set()
        self._without_logprobs = "its answers hold none"

    def _refuse(self, unknown: Mapping[str, Any]) -> None:
        for name in unknown:
            if "key" in name or "token" in name or "secret" in name:
                raise UserError(
                    f"'{name}' is no argument of w2s-chat: keys are read from the environment (api_key_env=NAME)."
                )
            known = [k for k in W2SChat.__init__.__annotations__ if k not in ("return", "unknown")]
            raise UserError(f"w2s-chat has no argument '{name}'.{nearest(name, known)} It has: {', '.join(known)}.")

    # ---- asking ------------------------------------------------------------------------------------------------------

    @property
    def _writer(self) -> Writer:
        return Writer(self.endpoint, self.dialect, self.extra)

    def _reply(self, request: Request) -> Reply:
        reply = self.answers.get(request.key(self.endpoint))
        if reply is None:
            raise RuntimeError("an answer is missing from the store")
        self._served.add(reply.model)
        return reply

    def _probe(self, build: Build) -> Reply | None:
        """Ask one request, learning the dialect from what is refused; None where there are no log-probabilities."""
        for _ in range(ADAPTATIONS):
            request = build(self._writer)
            try:
                self._sender.ask([request], "first request", quiet=True)
                return self._reply(request)
            except RefusedError as refusal:
                dialect = wire.adapted(self.dialect, refusal)
                if dialect is None or dialect == self.dialect:
                    raise self.connection.explain(refusal) from None
                log.info("the endpoint refuses: %s; trying %s", refusal.message, dialect)
                self.dialect = dialect
                if dialect.top == 0 and "logprobs" in request.body:
                    self._without_logprobs = refusal.message
                    return None
        raise UserError(f"{self.endpoint.base_url} refused {ADAPTATIONS} forms of a request; the last: {request.body}")

    def _refuses(self, request: Request) -> bool:
        """Whether the endpoint refuses a request that it need not take; where not, its answer is stored."""
        try:
            self._sender.ask([request], "first request", quiet=True)
        except RefusedError as refusal:
            log.info("the endpoint does not take %s: %s", sorted(request.body), refusal.message)
            return True
        return False

    def _ask(self, requests: Sequence[Request], title: str, quiet: bool) -> list[Reply]:
        try:
            if self._batch:
                from w2s_tasks.models.chat.batch import BatchSender

                BatchSender(self.connection, self.answers, self.meter, self._sender.policy).ask(requests, title, quiet=quiet)
            else:
                self._sender.ask(requests, title, quiet=quiet)
        except RefusedError as refusal:
            raise self.connection.explain(refusal) from None
        return [self._reply(request) for request in requests]

    # ---- multiple choice ---------------------------------------------------------------------------------------------

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Score the choices of each document: log-probability, and whether the model's own answer is that choice.

        Raises:
            UserError: choices that can't be told apart, or what the endpoint refuses.
        """
        documents = gathered(requests)
        scores = None
        if self.mode != "generated":
            scores = self._first_token(documents, disable_tqdm)
        if scores is None:
            scores = self._generated(documents, disable_tqdm)
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for document, score in zip(documents, scores, strict=True):
            for row, choice in document.rows:
                answers[row] = (score.loglik[choice], score.greedy == choice)
        self._tell()
        self._tell_served()
        return answers

    def _plan(self, documents: Sequence[Document], sets: Sequence[ChoiceSet]) -> list[int] | None:
        """Tokens to ask for each document; None where the endpoint gives no log-probabilities."""
        plan = [1] * len(documents)
        for _, places in _by_task(documents):
            first = sets[places[0]]
            tokens = LEAD_TOKENS if first.has_lead else 1
            replies: list[Reply] = []
            for place in places[:PROBES]:
                reply = self._probe(partial(Writer.first_token, context=documents[place].context, tokens=tokens))
                if reply is None:
                    return None
                if reply.refusal is not None:  # tells nothing about log-probabilities
                    continue
                replies.append(reply)
                if scored := self._scored(reply):
                    if sets[place].score(scored).unfinished and reply.is_cut:
                        tokens = LEAD_TOKENS
                    break
            if replies and replies[-1].positions is None:
                self.dialect = replace(self.dialect, top=0)
                return None
            if replies and not self._scored(replies[-1]):
                raise UserError(f"'{self.endpoint.model}' at {self.endpoint.base_url} {THINKS}")
            for place in places:
                plan[place] = tokens
        return plan

    def _first_token(self, documents: Sequence[Document], quiet: bool) -> list[Scores] | None:
        sets = [_choice_set(d) for d in documents]
        plan = self._plan(documents, sets) if self.dialect.top else None
        if plan is None:
            if self.mode == "first_token":
                raise UserError(
                    f"'{self.endpoint.model}' at {self.endpoint.base_url} gives no log-probabilities, as mode=first_token "
                    f"needs ({self._without_logprobs}); mode=generated asks for the answer as text."
                )
            log.warning(
                "'%s' gives no log-probabilities (%s): the choices are asked for as text (mode generated)",
                self.endpoint.model,
                self._without_logprobs,
            )
            return None
        requests = [self._writer.first_token(d.context, n) for d, n in zip(documents, plan, strict=True)]
        replies = self._ask(requests, "first token", quiet)
        self._check_scored(documents, replies)
        scores = [s.score(self._scored(r)) for s, r in zip(sets, replies, strict=True)]
        # Where the answer ended inside a lead-in, such as a quote, a longer one tells the choices apart.
        rows = zip(plan, scores, replies, strict=True)
        again = [i for i, (n, s, r) in enumerate(rows) if n < LEAD_TOKENS and s.unfinished and r.is_cut]
        longer = [self._writer.first_token(documents[i].context, LEAD_TOKENS) for i in again]
        for i, reply in zip(again, self._ask(longer, "after the lead-in", quiet) if longer else (), strict=True):
            scores[i], replies[i] = sets[i].score(self._scored(reply)), reply
        tokens = [LEAD_TOKENS if i in set(again) else n for i, n in enumerate(plan)]
        named = self._name_floored(documents, sets, tokens, scores, replies, quiet)
        for task, places in _by_task(documents):
            part = [scores[i] for i in places]
            self._reports[task] = TaskReport(
                "first_token",
                len(part),
                sum(any(s.floored) for s in part) / len(part),
                sum(all(s.floored) for s in part) / len(part),
                sum(replies[i].refusal is not None for i in places) / len(part),
                len(set(places) & set(again)) + len(set(places) & set(named)),
            )
        return [_no_answer(len(s.loglik)) if all(s.floored) else s for s in scores]

    def _name_floored(
        self,
        documents: Sequence[Document],
        sets: Sequence[ChoiceSet],
        tokens: Sequence[int],
        scores: list[Scores],
        replies: Sequence[Reply],
        quiet: bool,
    ) -> list[int]:
        """Ask again, where a server takes the names of tokens (vLLM), for choices that were not listed; which documents."""
        places = [i for i, s in enumerate(scores) if any(s.floored) and self._scored(replies[i])]
        if not places or self._batch or self.endpoint.is_openai:
            return []
        requests = {}
        for i in places:
            ids = self._beginnings(sets[i])
            if 0 < len(ids) <= MOST_TOKENS:
                requests[i] = self._writer.first_token(documents[i].context, tokens[i], ids)
        if not requests:
            return []
        first = next(iter(requests))
        if self._refuses(requests[first]):
            return []
        if joined(replies[first].positions or (), self._reply(requests[first]).positions or ()) == replies[first].positions:
            return []  # the names were passed over
        for i, reply in zip(requests, self._ask(list(requests.values()), "unlisted choices", quiet), strict=True):
            exact = sets[i].score(joined(replies[i].positions or (), reply.positions or ()))
            if not any(exact.floored):  # a floor would be that of the likeliest tokens alone
                scores[i] = exact
        return list(requests)

    @functools.lru_cache(maxsize=4096)  # noqa: B019 - one model a process
    def _beginnings(self, choices: ChoiceSet) -> tuple[int, ...]:
        """The first tokens of what a set's choices begin with, as a server of vLLM's tells them; none elsewhere."""
        server = Server(self.endpoint.base_url, self.connection.access.api_key_env, SECONDS_TO_TELL)
        told: dict[int, None] = {}
        with contextlib.suppress(UserError):
            for text in choices.beginnings():
                tokens = server.tokens(text, self.endpoint.model)
                if tokens is None:
                    break
                told[tokens[0]] = None
            else:
                return tuple(told)
        return ()

    def _check_scored(self, documents: Sequence[Document], replies: Sequence[Reply]) -> None:
        """Refuse answers that hold text but, unlike the first ones, no log-probabilities: nothing tells what was chosen."""
        bare = [d for d, r in zip(documents, replies, strict=True) if r.text and r.positions is None]
        if bare:
            raise UserError(
                f"{self.endpoint.base_url} gave {len(bare)} of {len(replies)} answers without log-probabilities, though its "
                f"first ones had them (the first: {bare[0].where}). mode=generated asks for every answer as text."
            )

    def _generated(self, documents: Sequence[Document], quiet: bool) -> list[Scores]:
        builds = [partial(Writer.choice, context=d.context, choices=d.choices, tokens=self.answer_tokens) for d in documents]
        for _, places in _by_task(documents):
            reply, choices = self._probe(builds[places[0]]), documents[places[0]].choices
            if reply and ignores_schema(reply) and parse_choice(self._said(reply), choices) is None:
                self.dialect = replace(self.dialect, schema="")
        replies = self._ask([build(self._writer) for build in builds], "choosing", quiet)
        chosen = [parse_choice(self._said(r), d.choices) for r, d in zip(replies, documents, strict=True)]
        again = self._again(builds, replies, chosen, quiet)
        for i, reply in again.items():
            replies[i], chosen[i] = reply, parse_choice(self._said(reply), documents[i].choices)
        for task, places in _by_task(documents):
            missing = sum(chosen[i] is None for i in places) / len(places)
            refused = sum(replies[i].refusal is not None for i in places) / len(places)
            second = len(again.keys() & set(places))
            self._reports[task] = TaskReport(
                "generated", len(places), unlisted=missing, refused=refused, second_requests=second
            )
        self._warn_if_cut(replies, "answer_tokens")
        return [_chosen(found, len(d.choices)) for found, d in zip(chosen, documents, strict=True)]

    def _again(
        self, builds: Sequence[Build], replies: Sequence[Reply], chosen: Sequence[int | None], quiet: bool
    ) -> dict[int, Reply]:
        """Second answers where the first names no choice: blanks filled it to its limit, or the schema was passed over."""
        if not self.dialect.schema or self.endpoint.kind != "chat":
            return {}
        bare = replace(self._writer, dialect=replace(self.dialect, schema="string"))
        words = replace(self._writer, dialect=replace(self.dialect, schema=""))
        none = [i for i, found in enumerate(chosen) if found is None]
        requests = {i: builds[i](words) for i in none if ignores_schema(replies[i])}
        cut = [i for i in none if i not in requests and ended_early(replies[i])]
        if cut:
            writer = words if self._refuses(builds[cut[0]](bare)) else bare
            requests |= {i: builds[i](writer) for i in cut}
        asked = self._ask([*requests.values()], "once more", quiet) if requests else []
        return dict(zip(requests, asked, strict=True))

    # ---- thoughts ----------------------------------------------------------------------------------------------------

    @property
    def _thinking_off(self) -> bool:
        """Whether `extra` asks for no thoughts. What a server then still calls one is the answer (vLLM's issue 17609)."""
        given = self.extra.get("chat_template_kwargs")
        switches = given if isinstance(given, Mapping) else {}
        off = any(switches.get(name) is False for name in ("enable_thinking", "thinking"))
        return off or self.extra.get("reasoning_effort") == "none"

    def _scored(self, reply: Reply) -> Sequence[Position]:
        """The positions of a reply's answer; none where they are a thought's."""
        return () if reply.thought is not None and not self._thinking_off else reply.positions or ()

    def _said(self, reply: Reply) -> str | None:
        """The text of a reply's answer, which some servers call a thought where a schema left no room for any."""
        thought = (reply.thought or "").strip()
        misnamed = thought and not (reply.text or "").strip() and (self._thinking_off or thought.startswith("{"))
        return thought if misnamed else reply.text

    # ---- telling -----------------------------------------------------------------------------------------------------

    def _tell(self) -> None:
        """One line about rows that are scored at the floor, and one where the model seems to answer something else."""
        told = [
            f"{task} {report.floored:.1%} (none listed: {report.unlisted:.1%}) of {report.documents}"
            for task, report in self._reports.items()
            if report.mode == "first_token" and report.floored
        ]
        if told:
            log.warning(
                "documents with a choice outside the top %d, scored at its floor: %s", self.dialect.top, "; ".join(told)
            )
        none = [
            f"{task} {report.unlisted:.1%} (refused or withheld: {report.refused:.1%}) of {report.documents}"
            for task, report in self._reports.items()
            if report.unlisted
        ]
        if none:
            log.warning("documents without an answer, which count as wrong: %s", "; ".join(none))
        lost = [t for t, r in self._reports.items() if r.unlisted - r.refused > WARN_UNLISTED]
        if lost:
            log.warning(
                "the model often begins with something that is none of the choices (%s). Shots (--num_fewshot 4), a larger "
                "top_logprobs where the server allows it, or for a model that thinks first "
                'extra={"chat_template_kwargs": {"enable_thinking": false}} help.',
                ", ".join(lost),
            )

    def _tell_served(self) -> None:
        """A warning where a model of another name answered: LM Studio asks the one that is loaded, whichever was named."""
        plain = [re.sub(r"[\W_]", "", name).casefold() for name in (self.endpoint.model.rpartition("/")[2], *self._served)]
        others = [n for n, p in zip(self._served, plain[1:], strict=True) if p and p not in plain[0] and plain[0] not in p]
        if others and not self.connection.access.is_azure:
            log.warning("'%s' was asked for, and %s answered", self.endpoint.model, " and ".join(sorted(others)))

    # ---- text --------------------------------------------------------------------------------------------------------

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Text for each request, up to the task's stop strings; empty where it was refused or withheld, which is told.

        Raises:
            UserError: what the endpoint refuses, or a task with images.
        """
        if any(len(r.args) > 2 for r in requests):
            raise UserError(f"{requests[0].task_name}: images and sound are not sent; use lm_eval's own API models.")
        seen: Counter[str] = Counter()
        builds: list[Build] = []
        for request in requests:
            context, settings = request.args
            same = json.dumps([str(context), settings], sort_keys=True, default=str)
            repeat, seen[same] = seen[same], seen[same] + 1
            builds.append(
                partial(Writer.text, context=context, settings=settings, default_tokens=self.max_gen_toks, repeat=repeat)
            )
        self._probe(builds[0])
        replies = self._ask([build(self._writer) for build in builds], "generating", disable_tqdm)
        self._warn_if_cut(replies, "max_gen_toks")
        self._tell_served()
        by_task: dict[str, list[Reply]] = defaultdict(list)
        for request, reply in zip(requests, replies, strict=True):
            by_task[str(request.task_name)].append(reply)
        for task, part in by_task.items():
            share = sum(r.refusal is not None for r in part) / len(part)
            self._reports[task] = TaskReport("generated", len(part), unlisted=share, refused=share)
        return [
            wire.cut(self._said(reply) or "", wire.stops(request.args[1].get("until")))
            for request, reply in zip(requests, replies, strict=True)
        ]

    def _warn_if_cut(self, replies: Sequence[Reply], name: str) -> None:
        empty = sum(not (self._said(r) or "").strip() and (r.is_cut or r.thought is not None) for r in replies)
        refused = [r.refusal for r in replies if r.refusal is not None]
        if empty:
            log.warning("%d answers ended before any text: a model that reasons first needs a larger %s", empty, name)
        if refused:
            log.warning(
                "%d of %d answers were refused or withheld and count as none; the first: %s",
                len(refused),
                len(replies),
                refused[0][:SHOWN],
            )

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Refused: such endpoints don't score given text.

        Raises:
            UserError: always.
        """
        raise UserError(f"{requests[0].task_name} asks for the likelihood of a whole text, which such endpoints don't tell.")

    # ---- what lm_eval asks for ---------------------------------------------------------------------------------------

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The messages, as they will be sent: the endpoint applies its own template.

        Raises:
            UserError: the task begins the assistant's answer (gen_prefix), and `extra` does not make the server go on.
        """
        if not add_generation_prompt and not self.extra.get("continue_final_message"):
            raise UserError(
                "this task begins the assistant's answer (gen_prefix), which chat endpoints don't go on with. vLLM and "
                'SGLang do: extra={"continue_final_message": true, "add_generation_prompt": false}.'
            )
        return Conversation.of(chat_history)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Empty: the template is the endpoint's."""
        return ""

    @property
    def tokenizer_name(self) -> str:
        """For the fingerprint of lm_eval's request cache."""
        return f"messages:{self.endpoint.base_url}:{self.endpoint.model}"

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Refuse lm_eval's answer cache, whose keys lack the model.

        Raises:
            UserError: --use_cache was given.
        """
        if getattr(cache_hook, "dbdict", None) is not None:
            raise UserError(
                "--use_cache: lm_eval's cache does not tell models apart. Leave it out: w2s-chat keeps every answer itself."
            )
        super().set_cache_hook(cache_hook)

    def get_model_info(self) -> dict[str, Any]:
        """What lm_eval adds to ``config`` of its result file: the mode of scoring, how it went, tokens and cost."""
        modes = sorted({report.mode for report in self._reports.values()})
        return {
            "scoring_mode": "+".join(modes) or "generated",
            system_place.KEY: system_place.MESSAGE,
            "model_endpoint": self.endpoint.base_url,
            "model_name_asked": self.endpoint.model,
            "model_name_served": sorted(filter(None, self._served)),
            "scoring": {task: asdict(report) for task, report in self._reports.items()},
            "dialect": asdict(self.dialect),
            "api_usage": {
                "requests": self.meter.requests,
                "prompt_tokens": self.meter.prompt,
                "completion_tokens": self.meter.completion,
                "cost_usd": round(self.meter.cost, 6) if self.meter.price else None,
                "prices_as_of": self.price_date.isoformat() if self.meter.price else None,
            },
        }
