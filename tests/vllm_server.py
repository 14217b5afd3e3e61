"""A real vLLM server on this machine's CPU for `tests/test_vllm.py`; `scripts/test --vllm` makes its environment."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from ports import free_port

PYTHON = "W2S_VLLM_PYTHON"
"""The interpreter of an environment with vLLM."""
SECONDS = 900
"""To wait for a server: two busy cores take minutes."""
ENVIRONMENT = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    "HF_HUB_OFFLINE": "1",
}
OPTIONS = "--dtype float32 --enforce-eager --enable-prefix-caching --enable-lora --max-lora-rank 8 --max-model-len 2048"


@contextlib.contextmanager
def running(model: str, log: Path) -> Iterator[str]:
    """Start a server with a model as `base`; its address. It is ended with all its processes."""
    port = free_port()
    command = [os.environ[PYTHON], "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--port", str(port)]
    command += ["--served-model-name", "base", "--host", "127.0.0.1", *OPTIONS.split()]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, env=clean | ENVIRONMENT, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        _wait(process, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}:\n{log.read_text(errors='replace')[-3000:]}")
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):  # noqa: S310 - loopback
            return
        time.sleep(1)
    raise RuntimeError(f"the server was not ready within {SECONDS} s:\n{log.read_text(errors='replace')[-3000:]}")
