"""The Batch API: half the price, within 24 hours; killed at any point, a second run finds the batches of the first.

Every step is written down before it is taken: input file -> upload -> look for a batch of these very requests -> create,
without automatic retry -> id. Answers are matched by ``custom_id`` (the key of the answer store); what expired or failed is
sent again in a new batch.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tqdm import tqdm

from w2s_tasks.errors import UserError
from w2s_tasks.models.chat.client import Connection
from w2s_tasks.models.chat.replies import BadReplyError, RefusedError, Reply, error_in, read_body, refusal_of, words
from w2s_tasks.models.chat.states import Standing, standing
from w2s_tasks.models.chat.store import AnswerStore
from w2s_tasks.models.chat.transport import RETRIED, UNREADABLE, Meter, Policy, is_final
from w2s_tasks.models.chat.wire import Request
from w2s_tasks.models.service import retry_after

if TYPE_CHECKING:
    import openai
    from openai.types import Batch

log = logging.getLogger(__name__)
T = TypeVar("T")

MAX_REQUESTS = 50_000
MAX_BYTES = 200_000_000
"""The service's limits for one batch."""
ROUNDS = 4
"""How often requests without an answer are sent again before giving up."""
LONGEST_POLL = 60.0
LONGEST_BATCH = 48 * 3600.0
"""Seconds after which waiting for batches ends; the service promises 24 hours."""
PUZZLED = 20
"""Looks in a row at a batch that tell no state which this program knows, after which it asks the user (some ten minutes)."""
PASSING = frozenset(
    {"batch_expired", "batch_cancelled", "batch_canceled", "request_timeout", "server_error", "rate_limit_exceeded"}
)
"""Errors of a batch's line after which its request is sent again."""
METADATA = "w2s_chunk"
SEARCHED = 1000
"""How many of the account's newest batches are searched for one of ours."""


@dataclass(frozen=True)
class Chunk:
    """The requests of one batch: their input file, named by its hash."""

    path: Path
    sha: str

    @property
    def keys(self) -> list[str]:
        """The answers' keys, from the file."""
        with self.path.open(encoding="utf-8") as f:
            return [json.loads(line)["custom_id"] for line in f]


class Ledger:
    """What was begun, line by line beside the answer store: chunk -> uploaded file -> batch -> done."""

    def __init__(self, store: Path) -> None:
        self.path = store.with_suffix(".batches.jsonl")
        self.folder = store.with_suffix(".batches")

    def write(self, **event: str) -> None:
        """Add a line; on disk before this returns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as f:
            f.write(json.dumps(event) + "\n")

    def _events(self) -> Iterator[dict[str, str]]:
        if self.path.is_file():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                try:
                    yield json.loads(line)
                except ValueError:
                    continue

    def done(self) -> set[str]:
        """Batches whose answers were collected."""
        return {e["batch"] for e in self._events() if e.get("state") == "done"}

    def open_batches(self) -> dict[str, str]:
        """Batch -> chunk, of those that were created and not collected."""
        begun = {e["batch"]: e["chunk"] for e in self._events() if e.get("state") == "created"}
        return {batch: chunk for batch, chunk in begun.items() if batch not in self.done()}

    def file_of(self, chunk: str) -> str | None:
        """The uploaded file of a chunk."""
        return next((e["file"] for e in self._events() if e.get("state") == "uploaded" and e["chunk"] == chunk), None)

    def tidy(self) -> None:
        """Remove the input files once no batch is open."""
        if not self.open_batches() and self.folder.is_dir():
            for path in self.folder.iterdir():
                path.unlink()
            self.folder.rmdir()

    def chunk(self, sha: str) -> Chunk:
        """A chunk by its hash."""
        return Chunk(self.folder / f"{sha}.jsonl", sha)

    def save(self, lines: Sequence[bytes]) -> Chunk:
        """Write a chunk's input file."""
        data = b"".join(lines)
        chunk = self.chunk(hashlib.sha256(data).hexdigest()[:32])
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = chunk.path.with_suffix(".tmp")
        temporary.write_bytes(data)
        temporary.replace(chunk.path)
        return chunk


def split(lines: Sequence[bytes], max_requests: int = MAX_REQUESTS, max_bytes: int = MAX_BYTES) -> Iterator[list[bytes]]:
    """Input lines in as few files as the service's limits allow."""
    part: list[bytes] = []
    size = 0
    for line in lines:
        if part and (len(part) >= max_requests or size + len(line) > max_bytes):
            yield part
            part, size = [], 0
        part.append(line)
        size += len(line)
    if part:
        yield part


def _batch(answer: Batch) -> Batch:
    """The batch that an answer tells of; ValueError, with what it says, where it tells of none."""
    if not (isinstance(getattr(answer, "status", None), str) and getattr(answer, "id", None)):
        raise ValueError(f"the answer is no batch: {words(str(answer).encode())}")
    return answer


class BatchSender:
    """Gets answers through the Batch API."""

    def __init__(self, connection: Connection, store: AnswerStore, meter: Meter, policy: Policy) -> None:
        self.connection, self.store, self.meter, self.policy = connection, store, meter, policy
        self.ledger = Ledger(store.path)
        self._refusal: RefusedError | None = None
        self._left: RefusedError | None = None
        """What stood last in the place of an answer."""

    def ask(self, requests: Sequence[Request], title: str, *, quiet: bool = False) -> None:
        """Get an answer for every request that the store lacks; waits until the service is done.

        Raises:
            RefusedError: the service refused a request; all others are stored.
            UserError: a batch failed as a whole, the budget is too small, or requests stay without an answer.
        """
        keyed = {request.key(self.connection.endpoint): request for request in requests}
        with self.store, self.connection.open() as client:
            self._resume(client, keyed, title, quiet)
            for _ in range(ROUNDS):
                missing = {key: request for key, request in keyed.items() if self.store.get(key) is None}
                if not missing:
                    break
                self._check_budget(missing)
                self._collect(client, [self._submit(client, chunk) for chunk in self._chunks(missing)], title, quiet)
                if self._refusal:
                    raise self._refusal
        self.ledger.tidy()
        left = sum(self.store.get(key) is None for key in keyed)
        if left:
            said = f"; the last said: {self._left.message}" if self._left else ""
            raise UserError(
                f"{left} of {len(keyed)} requests came back from the Batch API without an answer {ROUNDS} times{said}. Run "
                "again later, or without batch=true; what is stored is not asked again."
            )

    def _check_budget(self, missing: Mapping[str, Request]) -> None:
        estimate = sum(self.meter.estimate(r, batch=True) for r in missing.values())
        if self.meter.max_cost is not None and self.meter.cost + estimate > self.meter.max_cost:
            raise UserError(
                f"{len(missing)} requests would cost up to ${estimate:.4f} as a batch, more than is left of max_cost="
                f"{self.meter.max_cost} USD ({self.meter} so far). Nothing was sent."
            )

    def _resume(self, client: openai.OpenAI, keyed: Mapping[str, Request], title: str, quiet: bool) -> None:
        """Collect batches of an earlier run that hold answers which are missing here."""
        found = []
        for batch, sha in self.ledger.open_batches().items():
            chunk = self.ledger.chunk(sha)
            if chunk.path.is_file() and any(k in keyed and self.store.get(k) is None for k in chunk.keys):
                found.append(batch)
        if found:
            log.info("going on with %d batches of an earlier run", len(found))
            self._collect(client, found, title, quiet)

    def _chunks(self, missing: Mapping[str, Request]) -> list[Chunk]:
        def line(key: str, request: Request) -> bytes:
            data = {"custom_id": key, "method": "POST", "url": f"/v1{request.path}", "body": dict(request.body)}
            return json.dumps(data, ensure_ascii=False).encode("utf-8", "replace") + b"\n"

        lines = [line(key, request) for key, request in sorted(missing.items())]
        return [self.ledger.save(part) for part in split(lines)]

    # ---- one batch ---------------------------------------------------------------------------------------------------

    def _submit(self, client: openai.OpenAI, chunk: Chunk) -> str:
        """The batch of a chunk: an earlier one that lives, or a new one. Never two."""
        import openai

        file = self.ledger.file_of(chunk.sha)
        if file is None:
            upload = (f"w2s-{chunk.sha}.jsonl", chunk.path.read_bytes())
            file = self._patiently(lambda: str(client.files.create(file=upload, purpose="batch").id))
            self.ledger.write(state="uploaded", chunk=chunk.sha, file=file)
        for attempt in range(self.policy.retries + 1):
            batch = self._find(client, chunk.sha)
            if batch is None:
                try:
                    made = client.batches.create(
                        completion_window="24h",
                        endpoint=json.loads(chunk.path.open(encoding="utf-8").readline())["url"],
                        input_file_id=file,
                        metadata={METADATA: chunk.sha},
                    )
                    batch = _batch(made).id
                except (openai.APIError, ValueError) as error:
                    # Perhaps it was created and the answer was lost: look before asking again.
                    self._wait_or_raise(error, attempt)
                    continue
            self.ledger.write(state="created", chunk=chunk.sha, batch=batch)
            return batch
        raise UserError(f"{self.connection.endpoint.base_url} created no batch in {self.policy.retries + 1} attempts.")

    def _find(self, client: openai.OpenAI, sha: str) -> str | None:
        """A batch of these very requests that is neither dead nor collected, among the account's newest."""

        def search() -> str | None:
            done = self.ledger.done()
            for number, batch in enumerate(client.batches.list(limit=100)):
                mine = (batch.metadata or {}).get(METADATA) == sha
                # One that is being cancelled still has answers, but not those that are missing.
                alive = not standing(batch.status).ended or standing(batch.status) is Standing.SUCCEEDED
                if mine and alive and not str(batch.status).startswith("cancel") and batch.id not in done:
                    return batch.id
                if number >= SEARCHED:
                    break
            return None

        return self._patiently(search)

    def _collect(self, client: openai.OpenAI, batches: Sequence[str], title: str, quiet: bool) -> None:
        """Wait for batches and store their answers as each one ends."""
        waiting, pause, deadline = list(batches), self.policy.backoff, time.monotonic() + LONGEST_BATCH
        finished: dict[str, int] = {}
        puzzled: dict[str, int] = {}
        with tqdm(desc=f"{title} (batch)", unit="req", disable=quiet or None, leave=False) as bar:
            while waiting:
                for name in list(waiting):
                    batch = self._patiently(lambda n=name: _batch(client.batches.retrieve(n)))  # type: ignore[misc]
                    counts = batch.request_counts
                    finished[name] = (counts.completed or 0) + (counts.failed or 0) if counts else 0
                    bar.n = sum(finished.values())
                    bar.set_postfix_str(f"{batch.status}, {self.meter}")
                    place = standing(batch.status)
                    puzzled[name] = puzzled.get(name, 0) + 1 if place is Standing.UNKNOWN else 0
                    self._check_progress(batch, puzzled[name], deadline)
                    if place.ended:
                        waiting.remove(name)
                        self._store_answers(client, batch, place)
                if waiting:
                    time.sleep(pause)
                    pause = min(LONGEST_POLL, pause * 1.5)

    def _check_progress(self, batch: Batch, puzzled: int, deadline: float) -> None:
        """Stop waiting for a batch that says nothing known, or lasts longer than any may."""
        who = f"{self.connection.endpoint.base_url}: the batch {batch.id}"
        if puzzled == 1:
            log.warning("%s is '%s', a state that this program does not know; looking on.", who, batch.status)
        if puzzled >= PUZZLED:
            raise UserError(
                f"{who} is '{batch.status}', not known here as running, nor as an end. Look at it on the service's pages; "
                "the same command goes on with it."
            )
        if time.monotonic() > deadline:
            raise UserError(
                f"{who} is still '{batch.status}' after {LONGEST_BATCH / 3600:g} hours. It was not cancelled: the same "
                "command goes on waiting for it."
            )

    def _store_answers(self, client: openai.OpenAI, batch: Batch, place: Standing) -> None:
        if place is Standing.FAILED:
            errors = (batch.errors.data if batch.errors else None) or []
            reason = "; ".join(self.connection.access.safe(str(e.message)) for e in errors[:3]) or "no reason given"
            self.ledger.write(state="done", batch=batch.id)
            raise UserError(f"the service refused the batch {batch.id} as a whole: {reason} Nothing of it was answered.")
        for file in (batch.output_file_id, batch.error_file_id):
            if file:
                content = self._patiently(lambda f=file: client.files.content(f).content)  # type: ignore[misc]
                for line in content.split(b"\n"):
                    self._store_line(line)
        self.ledger.write(state="done", batch=batch.id)

    def _store_line(self, line: bytes) -> None:
        """Store one line's answer; a line without one leaves its request missing."""
        if not line.strip():
            return
        try:
            data = json.loads(line)
            key = str(data["custom_id"])
            reply = self._line_reply(data)
        except RefusedError as error:
            self._left = replace(error, message=self.connection.access.safe(error.message)[:500])
            passing = error.code in PASSING or error.status in RETRIED or error.status >= 500
            if not passing or is_final(error):
                self._refusal = self._left
            return
        except (ValueError, KeyError, TypeError, AttributeError, BadReplyError) as error:
            said = self.connection.access.safe(str(error))[:300]
            self._left = RefusedError(200, said)
            log.warning("a line of a batch can't be read (%s: %s); its request is sent again", type(error).__name__, said)
            return
        if self.store.get(key) is None:
            self.store.add(key, reply)
            self.meter.add(reply.usage, batch=True)

    def _line_reply(self, data: Mapping[str, Any]) -> Reply:
        """The answer of a batch's line.

        Raises:
            RefusedError: an error stands in its place.
            BadReplyError: neither does.
        """
        response, error = data.get("response") or {}, data.get("error")
        body = response.get("body")
        raw = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        status = int(response.get("status_code") or 200)
        try:
            if error:
                raise error_in({"error": error}) or BadReplyError(str(error))
            if status >= 400:
                raise refusal_of(status, raw)
            return read_body(self.connection.endpoint.kind, raw)
        except RefusedError as refusal:
            if refusal.filtered:
                return Reply.withheld(refusal.message)
            raise

    # ---- patience ----------------------------------------------------------------------------------------------------

    def _patiently(self, call: Callable[[], T]) -> T:
        """Repeat a call that changes nothing (or nothing that costs) while it fails for passing reasons."""
        import openai

        for attempt in range(self.policy.retries + 1):
            try:
                return call()
            except (openai.APIError, ValueError, TypeError, AttributeError) as error:  # or the SDK's own, on another shape
                self._wait_or_raise(error, attempt)
        raise AssertionError("not reached")  # the last attempt raised

    def _wait_or_raise(self, error: Exception, attempt: int) -> None:
        import openai

        wait = None
        if isinstance(error, openai.APIStatusError):
            refusal = self.connection.refused(error)
            if error.status_code < 500 and error.status_code not in RETRIED:
                raise refusal from None
            wait = retry_after(error.response.headers)
        most = self.policy.retries if isinstance(error, openai.APIError) else min(UNREADABLE - 1, self.policy.retries)
        if attempt >= most:
            reason = self.connection.access.safe(str(error))[:300]
            raise UserError(f"{self.connection.endpoint.base_url} failed {attempt + 1} times: {reason}") from None
        longest = min(LONGEST_POLL, self.policy.backoff * 2**attempt)
        time.sleep(longest if wait is None else wait)
