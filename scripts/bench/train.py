"""LoRA fine-tuning: this suite's trainer against the one that a user would take otherwise.

``--format chat`` trains replies behind a system prompt, against TRL's SFTTrainer with completion-only loss; ``--format
plain`` trains a task's choices, against transformers' Trainer on a sequence classifier with padded batches. Tokenization and
the whole training are timed, loading the model is not. `max_abs_diff` is the largest difference of a step's loss,
`same_predictions` whether both final weights answer held-out rows alike, scored in the same way. `floor_s` is the time that
our tokens alone need at the speed of one long forward pass, there and back: frozen weights get no gradient, so the way back
costs as much. Adapters, logits and the loss are not in it.
"""

from __future__ import annotations

import importlib.util
import statistics
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.comparison import Comparison, alternate, run, say
from bench.options import MODEL_HELP, Precision, model_path, numbers
from bench.side import Reply, Side
from w2s_tasks import machine
from w2s_tasks.errors import UserError

SYSTEM_PROMPT = (
    "Analyze these sentences and provide the sentiment it is trying to convey. Only use the following two sentiments, "
    "positive as 1, negative as 0, as your reply. "
)
"""The seed study's; see w2s_tasks/sst2."""
EXACT = 1e-3
"""How far a loss may be off for a variant of the peer to count as the same computation."""
THERE_AND_BACK = 2
PACKING = "off: it puts other rows into a step, so the losses are not comparable; padding_free, which keeps them, was tried"


class Format(StrEnum):
    """What is trained, and against whom."""

    chat = "chat"
    plain = "plain"


def need_trl() -> None:
    """Refuse where TRL is missing."""
    if importlib.util.find_spec("trl") is None:
        raise UserError("--format chat compares with TRL: pip install 'w2s-harness[bench]'.")


def variants(batches: list[int], rows: int, chat: bool) -> list[tuple[int, bool]]:
    """The peer's settings to try, (rows a forward pass, padding-free); a step must be whole micro-batches."""
    fitting = [batch for batch in batches if rows % batch == 0]
    if not fitting:
        raise UserError(f"--peer-batch: none of {batches} divides the {rows} rows of an optimizer step.")
    return [(batch, free) for free in ((False, True) if chat else (False,)) for batch in fitting]


def name_of(batch: int, free: bool) -> str:
    """A variant's key in the JSON."""
    return f"{batch} padding_free" if free else str(batch)


def search(peer: Side, tried: list[tuple[int, bool]], rows: int, folder: Path) -> dict[str, float | None]:
    """Seconds a row of each variant over one optimizer step; None where its loss is not that of the others."""
    found: dict[str, float | None] = {}
    expected: float | None = None
    for batch, free in [tried[0], *tried]:  # the first one twice: a process's first pass is slower
        peer.call("prepare")
        name = name_of(batch, free)
        reply = peer.call("fit", rows, batch, free, folder / f"search-{name}".replace(" ", "-"))
        loss = reply.value.losses[0]
        expected = loss if expected is None else expected
        found[name] = reply.seconds / rows if abs(loss - expected) < EXACT else None
        say(f"peer, {name} rows a pass: {reply.seconds / rows:.3f} s a row, first loss {loss:.5f}")
    return found


def fit_ours(side: Side, rows: int, out: Path) -> Reply:
    """One whole training of ours."""
    reply = side.call("fit", rows, out)
    say(f"ours: {reply.seconds:.1f} s, last loss {reply.value.losses[-1]:.4f}")
    return reply


def fit_peer(side: Side, rows: int, variant: tuple[int, bool], out: Path) -> Reply:
    """One whole training of the peer, on a fresh base."""
    side.call("prepare")
    reply = side.call("fit", rows, *variant, out)
    say(f"peer: {reply.seconds:.1f} s, last loss {reply.value.losses[-1]:.4f}")
    return reply


def result(side: Side, mine: list[Reply], theirs: list[Reply], heldout: int, settings: dict[str, Any]) -> Comparison:
    """Compare losses and the final weights' predictions; `side` is ours, which scores both adapters."""
    ours, peer = mine[-1], theirs[-1]
    answers, accuracy = side.call("predict", ours.value.adapter, heldout).value
    others, peer_accuracy = side.call("predict", peer.value.adapter, heldout).value
    agreement = sum(a == b for a, b in zip(answers, others, strict=True)) / len(answers)
    floor = THERE_AND_BACK * ours.tokens * side.call("seconds_a_token").value
    seconds = statistics.median(reply.seconds for reply in mine)
    pairs = list(zip(ours.value.losses, peer.value.losses, strict=True))
    measured = {
        "steps": len(pairs),
        "heldout_rows": len(answers),
        "agreement": agreement,
        "ours_accuracy": accuracy,
        "peer_accuracy": peer_accuracy,
        "first_loss": pairs[0][0],
        "last_loss": pairs[-1][0],
        "floor_s": floor,
        "over_floor": seconds / floor,
    }
    return Comparison(
        bench="train",
        ours_runs_s=[reply.seconds for reply in mine],
        peer_runs_s=[reply.seconds for reply in theirs],
        ours_tokens=ours.tokens,
        peer_tokens=peer.tokens,
        max_abs_diff=max(abs(a - b) for a, b in pairs),
        same_predictions=agreement == 1,
        ours_peak_mb=ours.peak_mb,
        peer_peak_mb=peer.peak_mb,
        extra={**settings, **measured},
    )


def main(
    format: Annotated[Format, typer.Option(help="chat: against TRL; plain: against a sequence classifier.")] = Format.chat,
    task: Annotated[str | None, typer.Option(help="A trainable task; SST-2 in the format's own prompts by default.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="Training rows, at random; whole optimizer steps.")] = 512,
    model: Annotated[str, typer.Option(help=MODEL_HELP)] = "pypi:smollm2-135m-instruct",
    system_prompt: Annotated[str, typer.Option(help="Of --format chat.")] = SYSTEM_PROMPT,
    r: Annotated[int, typer.Option(min=1, help="LoRA rank, on all linear layers.")] = 16,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 2e-4,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows an optimizer step.")] = 32,
    peer_batch: Annotated[str, typer.Option(help="Rows a forward pass to try for the peer.")] = "4,8,16,32",
    heldout: Annotated[int, typer.Option(min=1, help="Rows whose predictions are compared.")] = 200,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each side; their median counts.")] = 2,
    seed: Annotated[int, typer.Option(help="Of rows, order and adapter.")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="Of both sides; 0 for all cores.")] = 0,
    dtype: Annotated[Precision, typer.Option(help="Of both sides' weights; adapters are float32.")] = Precision.float32,
    include_path: Annotated[list[str] | None, typer.Option("--include_path", help="Folders with tasks of your own.")] = None,
) -> None:
    """Time a LoRA fine-tuning by this suite and by its peer, and compare losses and predictions.

    \b
    scripts/bench_train --format chat
    scripts/bench_train --format plain
    scripts/bench_train --format plain --task w2s_movie_reviews --rows 256
    """
    from bench.training import ChatPeer, Ours, PlainPeer, Recipe

    chat = format is Format.chat
    if chat:
        need_trl()
    if rows % batch_size:
        raise UserError(f"--rows {rows} is no multiple of --batch-size {batch_size}: the last step would differ in size.")
    tried = variants(numbers(peer_batch, "--peer-batch"), batch_size, chat)
    recipe = Recipe(
        chat=chat,
        model=model_path(model),
        task=task or ("bench_sst2_chat" if chat else "w2s_sst2"),
        rows=rows,
        r=r,
        lr=lr,
        batch_size=batch_size,
        seed=seed,
        system_prompt=system_prompt if chat else None,
        include_path=[str(Path(__file__).parent / "tasks"), *(include_path or [])],
        dtype=dtype.value,
    )
    threads = threads or machine.cores()
    say(f"{recipe.task}, {format}: {rows} rows, LoRA r {r}, {threads} threads")
    peer_class = ChatPeer if chat else PlainPeer
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        best, found = tried[0], dict[str, float | None]()
        if len(tried) > 1:
            # In a process of its own: the largest batch that is tried must not count as the peer's peak memory.
            with Side("peer (search)", peer_class, threads=threads, recipe=recipe) as side:
                found = search(side, tried, batch_size, folder)
            best = min((v for v in tried if found[name_of(*v)] is not None), key=lambda v: found[name_of(*v)] or 0.0)
        settings = {
            "format": format.value,
            "model": model,
            "task": recipe.task,
            "rows": rows,
            "r": r,
            "lr": lr,
            "dtype": dtype.value,
            "batch_size": batch_size,
            "threads": threads,
            "repeats": repeats,
            "seed": seed,
            "peer": "trl SFTTrainer" if chat else "transformers Trainer, sequence classification",
            "peer_batch": name_of(*best),
            "peer_batch_search": found,
            **({"peer_packing": PACKING} if chat else {}),
        }
        with (
            Side("ours", Ours, threads=threads, recipe=recipe) as ours,
            Side("peer", peer_class, threads=threads, recipe=recipe) as peer,
        ):
            mine, theirs = alternate(
                lambda i: fit_ours(ours, rows, folder / f"ours-{i}"),
                lambda i: fit_peer(peer, rows, best, folder / f"peer-{i}"),
                repeats,
            )
            comparison = result(ours, mine, theirs, heldout, settings)
    print(comparison.json())


if __name__ == "__main__":
    run(main)
