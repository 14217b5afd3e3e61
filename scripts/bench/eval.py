"""Evaluation: `w2s-hf` against lm_eval's `hf`, on the same documents, shots and weights; on a server see `bench.served`.

Both score the same requests; tokenization is inside the timed part. `hf` runs at its best batch size, found by a search.
It may run on a sample of each task's documents, its time and tokens scaled to all of them; the JSON says so. `floor_s` is
the time that our tokens alone need at the speed of one long forward pass.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from enum import StrEnum
from typing import Annotated, Any

import typer

from bench.comparison import alternate, run, say
from bench.options import MODEL_HELP, Precision, model_path, numbers
from bench.runs import (
    fastest,
    find_batch,
    fitting,
    result,
    run_ours,
    run_peer,
    sample_size,
    stratified,
)
from bench.side import Side
from w2s_tasks import machine


class Peer(StrEnum):
    """What ours is compared with."""

    hf = "hf"
    vllm = "vllm"


def main(
    task: Annotated[list[str] | None, typer.Option(help="A task or group (repeatable).")] = None,
    docs: Annotated[int, typer.Option(min=1, help="Documents a task, at random.")] = 200,
    shots: Annotated[int, typer.Option(min=0, help="Few-shot examples; our tasks give every document the same.")] = 32,
    model: Annotated[str, typer.Option(help=MODEL_HELP)] = "pypi:smollm2-135m-instruct",
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each side; their median counts.")] = 3,
    peer_docs: Annotated[
        int, typer.Option(min=0, help="Documents that the peer runs, its time scaled to all; 0: as many as 10 minutes take.")
    ] = 0,
    peer_batch: Annotated[str, typer.Option(help="Batch sizes to try for the peer.")] = "1,4,8,16",
    seed: Annotated[int, typer.Option(help="Of the choice of documents.")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="Of both sides; 0 for all cores.")] = 0,
    dtype: Annotated[Precision, typer.Option(help="Of both sides' weights.")] = Precision.float32,
    include_path: Annotated[list[str] | None, typer.Option("--include_path", help="Folders with tasks of your own.")] = None,
    peer: Annotated[Peer, typer.Option(help="hf: w2s-hf against it. vllm: w2s-vllm against local-completions.")] = Peer.hf,
    base_url: Annotated[str | None, typer.Option(help="The server of --peer vllm; by default $VLLM_BASE_URL.")] = None,
    concurrent: Annotated[int, typer.Option(min=1, help="Requests in flight to the server, of both sides.")] = 32,
) -> None:
    """Time an evaluation by w2s-hf and by lm_eval's hf, and compare their log-likelihoods.

    \b
    scripts/bench_eval --task w2s_ethics_justice --docs 200 --shots 32
    scripts/bench_eval --task w2s_sst2 --shots 0
    scripts/bench_eval --task w2s_ethics_all --docs 50 --shots 32 --peer-docs 24
    scripts/bench_eval --model random:1b --dtype bfloat16 --peer-batch 16,32,64   # on a GPU
    scripts/bench_eval --peer vllm --base-url http://localhost:8000/v1 --shots 8 --docs 50   # see bench/served.py
    """
    from bench.scoring import Scorer

    tasks = task or ["w2s_ethics_justice"]
    batches = numbers(peer_batch, "--peer-batch")
    threads = threads or machine.cores()
    common: dict[str, Any] = {
        "model": model_path(model),
        "tasks": tasks,
        "docs": docs,
        "shots": shots,
        "seed": seed,
        "include_path": include_path or [],
        "threads": threads,
        "dtype": dtype.value,
    }
    say(f"{', '.join(tasks)}: {docs} documents a task, {shots} shots, {threads} threads")
    if peer is Peer.vllm:
        from bench.served import compare_served
        from w2s_tasks.models.vllm.server import server_url

        served = compare_served(common, server_url(base_url), concurrent, batches, peer_docs, repeats)
        named = {
            "model": model,
            "task": ",".join(tasks),
            "shots": shots,
            "threads": threads,
            "repeats": repeats,
            "seed": seed,
        }
        print(replace(served, extra={**named, **served.extra}).json())
        return
    with Side("ours", Scorer, engine="w2s-hf", **common) as ours, Side("peer", Scorer, engine="hf", **common) as theirs_side:
        names = ours.call("documents").value
        found = find_batch(names, batches, common)
        best, seconds = fastest(found)
        sample = stratified(names, sample_size(peer_docs, len(names), len(set(names)), seconds, repeats), seed)
        fits = fitting(theirs_side, sample, best)
        mine, theirs = alternate(
            lambda _: run_ours(ours, range(len(names))),
            lambda _: run_peer(theirs_side, sample, Counter(names), fits),
            repeats,
        )
        seconds_a_token = ours.call("seconds_a_token").value
    settings = {
        "model": model,
        "task": ",".join(tasks),
        "docs": len(names),
        "shots": shots,
        "dtype": dtype.value,
        "device": mine[0].device,
        "threads": threads,
        "repeats": repeats,
        "seed": seed,
        "peer": "lm_eval hf",
        "peer_batch": best,
        "peer_batch_search": {str(batch): seconds for batch, seconds in found.items()},
    }
    print(result(mine, theirs, seconds_a_token, len(names), settings).json())


if __name__ == "__main__":
    run(main)
