"""Scale: `w2s-hf` on more and more documents; the time a document should fall or stay, memory should stay.

A fresh process for each size. The documents are rows of the training split of SST-2, rendered as evaluation requests; a
smaller size's documents begin a larger one's, so that their log-likelihoods can be compared. In the JSON the peer is the
suite itself at the smallest size: `ours_s` and `peer_s` are seconds a document at the largest and the smallest size.
"""

from __future__ import annotations

import statistics
from typing import Annotated, Any

import typer

from bench.comparison import Comparison, run, say
from bench.side import Reply, Side
from w2s_tasks import machine
from w2s_tasks.errors import UserError


def measure(size: int, repeats: int, threads: int, scorer: dict[str, Any]) -> tuple[list[float], Reply]:
    """Seconds a document of each run at one size, and the last run.

    Raises:
        UserError: the task has fewer rows.
    """
    from bench.scoring import Scorer

    with Side(f"ours at {size}", Scorer, threads=threads, docs=size, **scorer) as side:
        found = len(side.call("documents").value)
        if found < size:
            raise UserError(f"the task '{scorer['tasks'][0]}' has {found} training rows; --sizes asks for {size}.")
        replies = [side.call("score", range(size)) for _ in range(repeats)]
    times = [reply.seconds / size for reply in replies]
    peak = replies[-1].peak_mb
    say(f"{size} documents: {statistics.median(times):.4f} s a document, {peak:.0f} MB at most")
    return times, replies[-1]


def main(
    sizes: Annotated[str, typer.Option(help="Numbers of documents.")] = "100,1000,10000",
    task: Annotated[str | None, typer.Option(help="A task with a training split; SST-2 by default.")] = None,
    shots: Annotated[int, typer.Option(min=0, help="Few-shot examples; our tasks give every document the same.")] = 0,
    model: Annotated[str, typer.Option(help="A folder, a hub id, or pypi:NAME.")] = "pypi:smollm2-135m-instruct",
    repeats: Annotated[int, typer.Option(min=1, help="Runs of every size but the largest, which runs once.")] = 3,
    seed: Annotated[int, typer.Option(help="Of the choice of documents.")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="0 for all cores.")] = 0,
    include_path: Annotated[list[str] | None, typer.Option("--include_path", help="Folders with tasks of your own.")] = None,
) -> None:
    """Time an evaluation by w2s-hf at several sizes.

    \b
    scripts/bench_scale
    scripts/bench_scale --sizes 50,200,800 --shots 8
    """
    from bench.options import default_task, model_path, numbers
    from bench.scoring import compare

    counts = numbers(sizes, "--sizes")
    threads = threads or machine.cores()
    name = task or default_task()
    scorer: dict[str, Any] = {
        "engine": "w2s-hf",
        "model": model_path(model),
        "tasks": [name],
        "shots": shots,
        "seed": seed,
        "training": True,
        "include_path": include_path or [],
    }
    say(f"{name}: {sizes} documents, {shots} shots, {threads} threads")
    runs = [measure(size, repeats if size < counts[-1] else 1, threads, scorer) for size in counts]
    (small_times, small), (large_times, large) = runs[0], runs[-1]
    worst, agreement = compare(small.value, large.value[: counts[0]])
    print(
        Comparison(
            bench="scale",
            ours_runs_s=large_times,
            peer_runs_s=small_times,
            ours_tokens=large.tokens,
            peer_tokens=small.tokens,
            max_abs_diff=worst,
            same_predictions=agreement == 1,
            ours_peak_mb=large.peak_mb,
            peer_peak_mb=small.peak_mb,
            extra={
                "model": model,
                "task": name,
                "shots": shots,
                "threads": threads,
                "repeats": repeats,
                "seed": seed,
                "peer": f"itself at {counts[0]} documents",
                "docs": counts,
                "seconds_a_doc": [statistics.median(times) for times, _ in runs],
                "tokens_a_doc": [reply.tokens / size for (_, reply), size in zip(runs, counts, strict=True)],
                "peak_mb": [reply.peak_mb for _, reply in runs],
                "agreement": agreement,
            },
        ).json()
    )


if __name__ == "__main__":
    run(main)
