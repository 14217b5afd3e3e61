"""A process that asks the stand-in some questions and can be killed: python chat_client.py BASE_URL STORE N [batch]."""

from __future__ import annotations

import sys
from pathlib import Path

from w2s_tasks.models.chat.batch import BatchSender
from w2s_tasks.models.chat.client import Connection
from w2s_tasks.models.chat.store import AnswerStore
from w2s_tasks.models.chat.transport import Meter, Policy, Sender
from w2s_tasks.models.chat.wire import Dialect, Endpoint, Request, Writer


def questions(n: int) -> list[Request]:
    """Different requests to `tiny`."""
    writer = Writer(Endpoint("", "tiny"), Dialect())
    return [writer.first_token(f"Review: film {i}\nSentiment:") for i in range(n)]


def ask(base_url: str, store: Path, requests: list[Request], *, batch: bool = False, concurrency: int = 4) -> None:
    """Ask them with quick retries; the answers go into the file `store`."""
    connection = Connection(Endpoint(base_url, "tiny"), "OPENAI_API_KEY", 60)
    kind = BatchSender if batch else Sender
    kind(connection, AnswerStore(store), Meter(None), Policy(concurrency, backoff=0.01)).ask(requests, "test", quiet=True)


if __name__ == "__main__":
    ask(sys.argv[1], Path(sys.argv[2]), questions(int(sys.argv[3])), batch=len(sys.argv) > 4)
