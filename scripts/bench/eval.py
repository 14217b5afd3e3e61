"""Evaluation: `w2s-hf` against lm_eval's `hf`, on the same documents, shots and weights; on a server see `bench.served`.

Both score the same requests; tokenization is inside the timed part. `hf` runs at its best batch size, found by a search.
It may run on a sample of each task's documents, its time and tokens scaled to all of them; the JSON says so. `floor_s` is
the time that our tokens alone need at the speed of one long forward pass.
"""

from __future__ import annotations

import random
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Annotated, Any

import typer

from bench.comparison import Comparison, alternate, run, say
from bench.options import MODEL_HELP, Precision, model_path, numbers
from bench.side import Reply, Side
from w2s_tasks import machine


class Peer(StrEnum):
    """What ours is compared with."""

    hf = "hf"
    vllm = "vllm"


PEER_SECONDS = 600.0
"""What all repeats of the peer may take together, where the size of its sample is left to us."""
LEAST_SAMPLE = 16


@dataclass(frozen=True)
class PeerRun:
    """One run of the peer, scaled to all documents."""

    answers: dict[int, list[tuple[float, bool]]]
    seconds: float
    tokens: float
    peak_mb: float


def search_batch(peer: Side, documents: Sequence[int], batches: Sequence[int]) -> dict[int, float | None]:
    """Seconds a document at each batch size; None where the logits would not fit; ends when it gets clearly slower."""
    found: dict[int, float | None] = {}
    peer.call("score", documents[:1], 1)  # the first pass of a process is slower
    room = peer.call("room_mb").value
    for batch in batches:
        some = documents[: max(4, batch)]
        if batch > 1 and batch * peer.call("logits_mb", some).value > room:
            found[batch] = None
            continue
        found[batch] = seconds = peer.call("score", some, batch).seconds / len(some)
        say(f"peer, batch {batch}: {seconds:.3f} s a document")
        if seconds > 1.2 * fastest(found)[1]:
            break
    return found


def searchable(peer: Side, order: Sequence[int], largest: int) -> Sequence[int]:
    """Documents short enough for the largest batch, so that one task of long texts does not decide for all the others."""
    room = peer.call("room_mb").value / largest
    return [i for i in order[: 4 * largest] if peer.call("logits_mb", [i]).value <= room] or order


def find_batch(names: Sequence[str], batches: Sequence[int], common: dict[str, Any]) -> dict[int, float | None]:
    """Search in a process of its own: the largest batch that is tried must not count as the peer's peak memory."""
    from bench.scoring import Scorer

    order = random.Random(common["seed"]).sample(range(len(names)), len(names))  # noqa: S311 - a sample, not a secret
    with Side("peer (search)", Scorer, engine="hf", **common) as side:
        return search_batch(side, searchable(side, order, batches[-1]), batches)


def fastest(found: dict[int, float | None]) -> tuple[int, float]:
    """The best batch size of a search and its seconds a document."""
    return min(((b, s) for b, s in found.items() if s is not None), key=lambda entry: entry[1])


def sample_size(asked: int, total: int, tasks: int, seconds_a_doc: float, repeats: int) -> int:
    """How many documents the peer runs: what was asked for, or what fits its time."""
    if asked:
        return min(asked, total)
    affordable = int(PEER_SECONDS / (repeats * seconds_a_doc))
    return min(total, max(affordable, LEAST_SAMPLE, 2 * tasks))


def stratified(tasks: Sequence[str], size: int, seed: int) -> dict[str, list[int]]:
    """A random sample of about `size` documents: the same share of every task, one at least."""
    names = list(dict.fromkeys(tasks))
    rng = random.Random(seed)  # noqa: S311 - a sample, not a secret
    sample = {}
    for name in names:
        members = [i for i, task in enumerate(tasks) if task == name]
        count = max(1, round(size * len(members) / len(tasks)))
        sample[name] = sorted(rng.sample(members, min(count, len(members))))
    return sample


def run_peer(peer: Side, sample: dict[str, list[int]], sizes: Counter[str], batches: dict[str, int]) -> PeerRun:
    """Score a sample task by task, and scale each task's time and tokens to all its documents."""
    answers: dict[int, list[tuple[float, bool]]] = {}
    seconds = tokens = peak = 0.0
    for name, documents in sample.items():
        reply = peer.call("score", documents, batches[name])
        answers.update(zip(documents, reply.value, strict=True))
        scale = sizes[name] / len(documents)
        seconds, tokens, peak = seconds + scale * reply.seconds, tokens + scale * reply.tokens, reply.peak_mb
    say(f"peer: {seconds:.1f} s")
    return PeerRun(answers, seconds, tokens, peak)


def fitting(peer: Side, sample: dict[str, list[int]], best: int) -> dict[str, int]:
    """The batch size for each task: the best one, smaller where its logits would not fit."""
    room = peer.call("room_mb").value
    need = {name: peer.call("logits_mb", documents).value for name, documents in sample.items()}
    return {name: max(1, min(best, int(room / need[name]))) for name in sample}


def run_ours(ours: Side, documents: Sequence[int]) -> Reply:
    """Score all documents."""
    reply = ours.call("score", documents)
    say(f"ours: {reply.seconds:.1f} s")
    return reply


def result(
    mine: list[Reply], theirs: list[PeerRun], seconds_a_token: float, total: int, settings: dict[str, Any]
) -> Comparison:
    """Put the runs of both sides together."""
    from bench.scoring import compare

    ours, peer = mine[-1], theirs[-1]
    sampled = sorted(peer.answers)
    worst, agreement = compare([ours.value[i] for i in sampled], [peer.answers[i] for i in sampled])
    floor = ours.tokens * seconds_a_token
    seconds = statistics.median(reply.seconds for reply in mine)
    measured = {
        "agreement": agreement,
        "compared_docs": len(sampled),
        "peer_sampled_docs": len(sampled) if len(sampled) < total else None,
        "floor_s": floor,
        "over_floor": seconds / floor,
        "ours_first_run_tokens": mine[0].tokens,
    }
    return Comparison(
        bench="eval",
        ours_runs_s=[reply.seconds for reply in mine],
        peer_runs_s=[one.seconds for one in theirs],
        ours_tokens=ours.tokens,
        peer_tokens=round(peer.tokens),
        max_abs_diff=worst,
        same_predictions=agreement == 1,
        ours_peak_mb=ours.peak_mb,
        peer_peak_mb=peer.peak_mb,
        extra={**settings, **measured},
    )


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
