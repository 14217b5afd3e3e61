"""Servers that answer as `tests/exchanges` holds it, over real HTTP: one case of one file at a time."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "exchanges"


def asks_for(path: str, body: Mapping[str, Any]) -> str:
    """What a request is for: the name under which a case holds its answers."""
    if path.endswith("/models"):
        return "models"
    if path.endswith("/tokenize"):
        return "tokens"
    if "logprob_token_ids" in body:
        return "names"
    if "logprobs" in body:
        return "log-probabilities"
    schema = body.get("response_format", {}).get("json_schema", {}).get("schema", {})
    return str(schema.get("type", ""))


@dataclass
class Recorded:
    """A running server: its address, the model that it was asked for, and what it was asked."""

    base_url: str
    model: str
    asked: list[str] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)


@contextlib.contextmanager
def answering(name: str, case: str) -> Iterator[Recorded]:
    """Play a case: the answers to each kind of request in order, the last of them for ever."""
    data = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    answers = {kind: list(given) for kind, given in data["cases"][case].items()}

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.do_POST()

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or b"{}")
            kind = asks_for(self.path, body)
            server.asked.append(kind)
            server.bodies.append(body)
            given = answers.get(kind, [{"status": 404, "body": {"detail": "Not Found"}}])
            answer = given.pop(0) if len(given) > 1 else given[0]
            if "drop" in answer:
                self.close_connection = True
                return
            out = json.dumps(answer["body"]).encode()
            self.send_response(answer["status"])
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(out)))
            self.end_headers()
            self.wfile.write(out)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing on stderr."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.daemon_threads = True
        server = Recorded(f"http://127.0.0.1:{running.server_address[1]}/v1", data["model"])
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        running.shutdown()
