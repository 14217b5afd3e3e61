"""Runs of a benchmark of evaluation: the best batch size, a sample of documents, both sides' times, the comparison."""

from __future__ import annotations

import random
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.comparison import Comparison, say
from bench.side import Reply, Side

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
