"""What the engine `ray` costs a step: many cells of four steps that only write a small file, beside Ray's own bare tasks.

Both sides write the same files on the same cluster of loopback nodes, with the same dependencies between the steps. Ours
goes through the store as every run does: a lock, a manifest with hashes, a rename. A second call finds all of it done.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer

from bench.comparison import rounded, run
from trainers.config.resources import StepResources
from trainers.flow.jobs import Job
from trainers.flow.worker import Built
from trainers.store.stages import Store, recipe_key

STEPS = ("split", "fit", "labels", "evaluate")
MEASURED = 10
"""How often the driver's memory is looked at."""
WARM = 50
"""Cells that are run before the clock starts."""


@dataclass(frozen=True)
class Side:
    """One side's figures."""

    seconds: float
    steps_a_second: float
    memory_mb: list[float]
    """The driver's, on the way."""


def recipe(cell: int, step: int) -> dict[str, Any]:
    """Of one step: those of a cell stand on each other."""
    return {"kind": STEPS[step], "cell": cell}


def text(cell: int, step: int) -> str:
    """What a step writes."""
    return f"{STEPS[step]} of cell {cell}\n"


def _write(cell: int, step: int, out: Path) -> None:
    (out / "result.txt").write_text(text(cell, step), encoding="utf-8")


def _build(root: str, cell: int, step: int) -> Built:
    stage = Store(Path(root)).build(STEPS[step], recipe(cell, step), partial(_write, cell, step))
    return Built(stage.seconds, stage.reused)


def jobs(root: Path, cells: int) -> Iterator[Job]:
    """Four jobs a cell."""
    store = Store(root)
    for cell in range(cells):
        names = [f"{kind}-{recipe_key(recipe(cell, step))}" for step, kind in enumerate(STEPS)]
        for step, name in enumerate(names):
            there = partial(store.has, *name.split("-"))
            call = partial(_build, str(root), cell, step)
            inputs = (names[step - 1],) if step else ()
            yield Job(name, name, inputs, call, there, StepResources(cpus=1), light=step == 0)


def _bare(root: str, cell: int, step: int, *inputs: object) -> None:
    folder = Path(root) / f"{cell}-{STEPS[step]}"
    folder.mkdir()
    _write(cell, step, folder)


def bare(root: Path, cells: int, window: int) -> Iterator[int]:
    """The same files by Ray alone, as many tasks at once; gives the number of those that are finished."""
    import ray

    task = ray.remote(num_cpus=1)(_bare)
    root.mkdir()
    running: list[Any] = []
    finished = 0
    for cell in range(cells):
        last: list[Any] = []
        for step in range(len(STEPS)):
            last = [task.remote(str(root), cell, step, *last)]
            running += last
        while len(running) >= window:
            done, running = ray.wait(running, num_returns=len(running) // 2)
            ray.get(done)
            finished += len(done)
            yield finished
    ray.get(running)
    yield finished + len(running)


def measured(counts: Iterator[int], total: int) -> Side:
    """Time a side, and look at this process's memory on the way."""
    process, start = psutil.Process(), time.perf_counter()
    memory: list[float] = []
    for count in counts:
        if count * MEASURED >= total * (len(memory) + 1):
            memory.append(process.memory_info().rss / 1e6)
    seconds = time.perf_counter() - start
    return Side(seconds, total / seconds, memory)


def check(root: Path, cells: int) -> None:
    """Every stage is there with what its step writes."""
    store = Store(root)
    for cell in range(cells):
        for step, kind in enumerate(STEPS):
            stage = store.find(kind, recipe_key(recipe(cell, step)))
            if stage is None or (stage.path / "result.txt").read_text(encoding="utf-8") != text(cell, step):
                raise SystemExit(f"cell {cell}, {kind}: not as it was written")


def add_node(cluster: Any, address: str, cores: int) -> Any:
    """Let a node of a loopback address join a cluster of `ray.cluster_utils`; Ray itself does not take 127.0.0.1 for one."""
    return cluster.add_node(node_ip_address=address, num_cpus=cores, object_store_memory=80 * 2**20, include_dashboard=False)


def _cluster(nodes: int) -> Any:
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    for number in range(nodes + 1):  # the first one has no cores and dispatches
        add_node(cluster, f"127.0.0.{2 + number}", 1 if number else 0)
    cluster.wait_for_nodes()
    return cluster


def measure(cells: int, nodes: int, place: Path | None) -> dict[str, Any]:
    """All figures."""
    from trainers.flow import ray_engine

    total, cluster = cells * len(STEPS), _cluster(nodes)
    try:
        with tempfile.TemporaryDirectory(dir=place) as folder, ray_engine.cluster(str(cluster.address)):
            root = Path(folder)

            def ours(name: str = "ours", cells: int = cells) -> Iterator[int]:
                for number, outcome in enumerate(ray_engine.Dispatch().outcomes(jobs(root / name, cells)), start=1):
                    if outcome.error is not None:
                        raise SystemExit(str(ray_engine.reason(outcome)))
                    yield number

            list(bare(root / "warm", WARM, ray_engine.WINDOW))  # workers start
            list(ours("warm too", WARM))  # and load our modules
            peer = measured(bare(root / "bare", cells, ray_engine.WINDOW), total)
            first = measured(ours(), total)
            again = measured(ours(), total)
            check(root / "ours", cells)
    finally:
        cluster.shutdown()
    ratio = first.seconds / peer.seconds
    sides = {"ray": asdict(peer), "w2s": asdict(first), "w2s again": asdict(again)}
    overhead = (first.seconds - peer.seconds) / total * 1000
    return {"cells": cells, "steps": total, "nodes": nodes, **sides, "ratio": ratio, "ms_more_a_step": overhead}


def main(
    cells: Annotated[int, typer.Option(min=1, help="Cells of four steps.")] = 10_000,
    nodes: Annotated[int, typer.Option(min=1, max=100, help="Loopback nodes of one core.")] = 4,
    folder: Annotated[
        Path | None, typer.Option(help="Where both sides write; a file system in memory leaves a disk out.")
    ] = None,
) -> None:
    """The engine `ray` beside Ray's own bare tasks: steps a second, the driver's memory, and a second call.

    \b
    scripts/bench_engine
    scripts/bench_engine --cells 1000 --folder /dev/shm
    """
    typer.echo(json.dumps(rounded(measure(cells, nodes, folder))))


if __name__ == "__main__":
    run(main)
