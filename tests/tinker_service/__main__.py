"""As a process: ``python -m tinker_service --folder F --models name=folder --port P``, with `tests` on the path."""

from __future__ import annotations

import argparse
import threading
from pathlib import Path

from tinker_service import Service

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--folder", type=Path, required=True)
parser.add_argument("--models", nargs="+", required=True, metavar="NAME=FOLDER")
parser.add_argument("--port", type=int, default=0)
asked = parser.parse_args()
models = {name: Path(folder) for name, _, folder in (pair.partition("=") for pair in asked.models)}
with Service(models, asked.folder, port=asked.port) as service:
    print(service.base_url, flush=True)  # noqa: T201 - who started it reads the address
    threading.Event().wait()
