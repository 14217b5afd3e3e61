"""Sends many requests at once: an adaptive limit, retries with back-off, a budget, and every answer stored at once.

A library such as tenacity repeats one call by itself; here a 429 slows down all that are in flight, and one refusal or an
empty budget ends them all, with what is finished kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import re
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from tqdm import tqdm

from w2s_tasks.errors import UserError
from w2s_tasks.models.chat.client import Connection
from w2s_tasks.models.chat.replies import BadReplyError, RefusedError, Reply, Usage, read_body
from w2s_tasks.models.chat.store import AnswerStore
from w2s_tasks.models.chat.wire import Endpoint, Request
from w2s_tasks.models.prices import TokenPrice
from w2s_tasks.models.service import retry_after

if TYPE_CHECKING:
    import openai

log = logging.getLogger(__name__)
T = TypeVar("T")

START = 8
"""Requests in flight at first; the limit then grows by one for each window without a 429, and halves at one."""
LONGEST_WAIT = 60.0
NEVER_REACHED = 3
"""Attempts at an address that refuses connections and has never answered."""
CHARACTERS_A_TOKEN = 3.0
"""A cautious guess, for what a request will cost before it is answered."""
RETRIED = frozenset({408, 409, 425, 429})
UNREADABLE = 5
"""Attempts at a request whose answers come with status 200 and are none: the cause is rarely a passing one."""
HOPELESS = re.compile(
    r"logprobs|response_format|grammar|unexpected endpoint|validation error|per[- ]day\b|\bdaily\b"
    r"|insufficient[_ ](?:quota|credit|balance)",
    re.I,
)
"""What some servers answer with status 500, 429 or even 200 although asking again, within minutes, changes nothing."""
DROPPED = (
    " Some servers end the connection without a word at what they don't take: their own log tells (mlx_lm's lists at most "
    "10 log-probabilities, top_logprobs=10)."
)
TOLD_BY = 20
"""Failures whose first characters are the same are told once."""
PASSING_CAUSES = frozenset({"ReadError", "WriteError", "RemoteProtocolError", "ConnectError", "CloseError", "PoolTimeout"})
"""Failures of a connection that another attempt may not meet; any other (an endless redirect, a body that does not unpack)
is one of the server's answers."""


class AdaptiveLimit:
    """How many requests may be in flight: additive increase, multiplicative decrease (as TCP's congestion window)."""

    def __init__(self, maximum: int, start: int = START) -> None:
        self.maximum, self.size = maximum, float(min(start, maximum))
        self.in_flight, self.throttled = 0, 0
        self._not_before = self._last_cut = 0.0
        self._changed = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for a place, and for the end of a pause that the endpoint asked for."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.in_flight < max(1, int(self.size)))
            self.in_flight += 1
        try:
            while (pause := self._not_before - time.monotonic()) > 0:
                await asyncio.sleep(pause)
            yield
        finally:
            async with self._changed:
                self.in_flight -= 1
                self._changed.notify_all()

    def succeeded(self) -> None:
        """An answer came."""
        self.size = min(float(self.maximum), self.size + 1 / max(1.0, self.size))

    def too_many(self, pause: float) -> None:
        """A 429 came: halve, once for all requests of one window, and send nothing for a while."""
        self.throttled += 1
        now = time.monotonic()
        if now >= self._last_cut + max(1.0, pause):
            self.size, self._last_cut = max(1.0, self.size / 2), now
        self._not_before = max(self._not_before, now + pause)


@dataclass
class Meter:
    """Tokens and money of this process's requests. `price` is None where the table doesn't know the model."""

    price: TokenPrice | None
    max_cost: float | None = None
    requests: int = 0
    prompt: int = 0
    completion: int = 0
    cost: float = 0.0
    reserved: int = 0
    """Requests for which money is set aside."""
    _amount: float = 0.0

    def estimate(self, request: Request, *, batch: bool = False) -> float:
        """An upper guess of a request's cost in USD; 0 without a price."""
        if self.price is None:
            return 0.0
        body = request.body
        content = body.get("prompt") or "".join(f"{m['role']} {m['content']}\n" for m in body.get("messages", ()))
        written = body.get("max_tokens") or body.get("max_completion_tokens") or 0
        return self.price.cost(int(len(content) / CHARACTERS_A_TOKEN) + 8, int(written), batch=batch)

    def reserve(self, amount: float) -> bool:
        """Set the amount aside, or tell that it does not fit into the budget."""
        if self.max_cost is not None and self.cost + self._amount + amount > self.max_cost:
            return False
        self.reserved += 1
        self._amount += amount
        return True

    def release(self, amount: float) -> None:
        """The amount is no longer set aside."""
        self.reserved -= 1
        self._amount = self._amount - amount if self.reserved else 0.0

    def add(self, usage: Usage, *, batch: bool = False) -> None:
        """Count an answer."""
        self.requests += 1
        self.prompt += usage.prompt
        self.completion += usage.completion
        if self.price is not None:
            self.cost += self.price.cost(usage.prompt, usage.completion, cached=usage.cached, batch=batch)

    def __str__(self) -> str:
        money = f", ${self.cost:.4f}" if self.price is not None else ""
        return f"{_short(self.prompt)} tokens in, {_short(self.completion)} out{money}"


def _short(n: int) -> str:
    return str(n) if n < 10_000 else f"{n / 1e3:.0f}k" if n < 10_000_000 else f"{n / 1e6:.1f}M"


@dataclass
class Policy:
    """How hard to try: requests in flight, retries of one request, seconds before the first, seconds for one answer."""

    concurrency: int = 32
    retries: int = 12
    backoff: float = 0.5
    timeout: float = 600.0
    start: int = START
    """Requests in flight at first."""


@dataclass
class _FailedError(Exception):
    """One attempt that may be repeated."""

    reason: str
    wait: float | None = None
    throttled: bool = False
    unreachable: bool = False
    unreadable: bool = False


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine, also where an event loop runs already (a notebook)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    result: list[T] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            result.append(asyncio.run(coroutine))
        except BaseException as error:  # noqa: BLE001 - raised again by the caller
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return result[0]


class Sender:
    """Sends requests to one endpoint and stores the answers."""

    def __init__(self, connection: Connection, store: AnswerStore, meter: Meter, policy: Policy) -> None:
        self.connection, self.store, self.meter, self.policy = connection, store, meter, policy
        self._answered = False
        self._told: set[str] = set()
        self._random = random.Random()  # noqa: S311 - spreads retries in time

    @property
    def endpoint(self) -> Endpoint:
        """Where requests go."""
        return self.connection.endpoint

    def ask(self, requests: Sequence[Request], title: str, *, quiet: bool = False) -> None:
        """Get an answer for every request that the store lacks, each asked once however often it occurs.

        Raises:
            RefusedError: the endpoint refused a request (4xx); the others in flight were finished and stored.
            UserError: the budget is used up, or a request failed too often; what is finished is stored.
        """
        keyed = {request.key(self.endpoint): request for request in requests}
        missing = [(key, request) for key, request in keyed.items() if self.store.get(key) is None]
        if missing:
            with self.store, _bar(title, len(keyed), len(keyed) - len(missing), quiet) as bar:
                run(self._run(missing, bar))

    async def _run(self, missing: Sequence[tuple[str, Request]], bar: tqdm[Any]) -> None:
        queue, limit, errors = deque(missing), AdaptiveLimit(self.policy.concurrency, self.policy.start), list[Exception]()

        async def work(client: openai.AsyncOpenAI) -> None:
            while queue and not errors:
                key, request = queue.popleft()
                amount = self.meter.estimate(request)
                while not self.meter.reserve(amount):
                    if not self.meter.reserved and not errors:
                        errors.append(self._over_budget(len(queue) + 1, len(missing)))
                    if errors:
                        return
                    await asyncio.sleep(0.05)
                try:
                    reply = await self._answer(client, request, limit, errors)
                except (RefusedError, UserError) as error:
                    errors.append(error)
                    return
                finally:
                    self.meter.release(amount)
                if reply is None:
                    return
                self.store.add(key, reply)
                self.meter.add(reply.usage)
                bar.set_postfix_str(str(self.meter), refresh=False)
                bar.update()

        async with self.connection.open_async() as client:
            await asyncio.gather(*(work(client) for _ in range(min(self.policy.concurrency, len(queue)))))
        if errors:
            raise errors[0]

    async def _answer(
        self, client: openai.AsyncOpenAI, request: Request, limit: AdaptiveLimit, errors: Sequence[Exception]
    ) -> Reply | None:
        """One answer, with retries; None where another request's error ended the run meanwhile."""
        failure, unreadable = _FailedError(""), 0
        for attempt in range(self.policy.retries + 1):
            async with limit.slot():
                if errors:
                    return None
                try:
                    reply = await self._once(client, request)
                except _FailedError as error:
                    failure = error
                    unreadable += error.unreadable
                    if error.throttled:
                        limit.too_many(error.wait or self.policy.backoff)
                else:
                    limit.succeeded()
                    self._answered = True
                    return reply
            if self._is_hopeless(failure, attempt + 1, unreadable):
                break
            if attempt:
                self._tell(failure)
            # The place in flight is given back while this request waits, so that others can go.
            await asyncio.sleep(self._pause(attempt, failure))
        raise UserError(self._gave_up(failure, attempt + 1))

    def _is_hopeless(self, failure: _FailedError, attempts: int, unreadable: int) -> bool:
        """Whether a request is given up after so many attempts, so many of them with an answer that was none."""
        if attempts > self.policy.retries:
            return True
        if failure.unreadable:
            return unreadable >= (UNREADABLE if self._answered else NEVER_REACHED)
        return failure.unreachable and not self._answered and attempts >= NEVER_REACHED

    def _tell(self, failure: _FailedError) -> None:
        """Say what the endpoint answers while requests wait for their next attempt, each kind of it once."""
        if failure.reason[:TOLD_BY] not in self._told:
            self._told.add(failure.reason[:TOLD_BY])
            log.warning("%s: %s Asking again.", self.endpoint.base_url, failure.reason)

    def _pause(self, attempt: int, failure: _FailedError) -> float:
        longest = min(LONGEST_WAIT, self.policy.backoff * 2**attempt)
        jittered = longest * self._random.uniform(0.5, 1.0)
        return jittered if failure.wait is None else failure.wait + min(jittered, 1.0)

    def _gave_up(self, failure: _FailedError, attempts: int) -> str:
        if failure.unreachable and not self._answered:
            return (
                f"nothing answers at {self.endpoint.base_url} ({failure.reason}). Is the server running, the address right?"
            )
        return (
            f"{self.endpoint.base_url} failed {attempts} times for one request; the last time: "
            f"{failure.reason} {len(self.store)} answers are stored; run the same command again to go on."
        )

    def _over_budget(self, missing: int, total: int) -> UserError:
        return UserError(
            f"the budget max_cost={self.meter.max_cost} USD does not cover the next request: {self.meter} in this run; "
            f"{total - missing} of the {total} missing answers are stored now. Run again with a higher max_cost: what is "
            "stored is not asked again."
        )

    async def _once(self, client: openai.AsyncOpenAI, request: Request) -> Reply:
        """One attempt."""
        import openai

        try:
            # The SDK's timeout is for each read; a body that trickles would never end.
            response = await asyncio.wait_for(_post(client, self.endpoint.kind, request.body), self.policy.timeout)
        except openai.APIStatusError as error:
            return self._judged(self.connection.refused(error), error.response.headers)
        except (openai.APITimeoutError, TimeoutError):
            raise _FailedError(f"no answer within {self.policy.timeout:g} s.") from None
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            name = type(cause).__name__
            reason = self.connection.access.safe(f"{name}: {cause}"[:300])
            dropped = name == "RemoteProtocolError" and not self._answered
            raise _FailedError(
                f"{reason}.{DROPPED}" if dropped else reason,
                unreachable=name == "ConnectError",
                unreadable=dropped or name not in PASSING_CAUSES,
            ) from None
        try:
            return read_body(self.endpoint.kind, response.content)
        except RefusedError as refusal:
            said = replace(refusal, message=self.connection.access.safe(refusal.message)[:500])
            return self._judged(said, response.headers)
        except BadReplyError as error:
            said_instead = self.connection.access.safe(str(error))[:400]
            raise _FailedError(
                f"status {response.status_code}, and the body is no answer of such an endpoint ({said_instead})."
                + self.connection.redirected(response),
                unreadable=True,
            ) from None

    def _judged(self, refusal: RefusedError, headers: Any) -> Reply:
        """No answer, where the content was refused.

        Raises:
            RefusedError: asking again changes nothing.
            _FailedError: it may.
        """
        if refusal.filtered:
            return Reply.withheld(refusal.message)
        if is_final(refusal):
            raise refusal from None
        raise _FailedError(
            f"{refusal.status}: {refusal.message}",
            retry_after(headers),
            throttled=refusal.status == 429,
            unreadable=refusal.status == 200,
        ) from None


def is_final(refusal: RefusedError) -> bool:
    """Whether asking again changes nothing; an error that came as an answer and has no number may pass."""
    hopeless = refusal.code == "insufficient_quota" or HOPELESS.search(refusal.message)
    return bool(hopeless) or (refusal.status != 200 and refusal.status < 500 and refusal.status not in RETRIED)


async def _post(client: openai.AsyncOpenAI, kind: str, body: Mapping[str, Any]) -> Any:
    """Send a body through the SDK; fields that its signature lacks (a server's own) go along unchanged."""
    rest = {k: v for k, v in body.items() if k not in ("model", "messages", "prompt")}
    if kind == "chat":
        chat = client.chat.completions.with_raw_response
        raw = await chat.create(model=body["model"], messages=body["messages"], extra_body=rest)
        return raw.http_response
    plain = await client.completions.with_raw_response.create(model=body["model"], prompt=body["prompt"], extra_body=rest)
    return plain.http_response


def _bar(title: str, total: int, done: int, quiet: bool) -> tqdm[Any]:
    return tqdm(total=total, initial=done, desc=title, unit="req", disable=quiet or None, leave=False)
