"""Contention: `w2s eval` and `w2s finetune` alone and two at once, as they are and as they would be by OpenMP's default.

Whole commands are timed as processes, offline, in turns; of two at once the time until both have ended counts. All runs of a
kind have to give the same: an evaluation its rows' log-likelihoods, a training its adapter.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.comparison import rounded, run, say
from bench.startup import program, read_results, time_commands
from w2s_tasks import machine

DEFAULT = {"KMP_BLOCKTIME": "200"}
"""Leaves how threads wait to GNU OpenMP: the commands take it for the user's decision, and that library does not read it."""
ALONE, TWO = 1.03, 2.0
"""Targets: a command alone over what it takes by the default, and two at once over one alone."""


@dataclass
class Times:
    """Seconds of a kind of command, a run each."""

    alone: list[float] = field(default_factory=list)
    two_at_once: list[float] = field(default_factory=list)
    alone_by_default: list[float] = field(default_factory=list)
    two_at_once_by_default: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Medians, the ratios, and whether they are within the targets."""
        medians = {f"{name}_s": statistics.median(values) for name, values in vars(self).items()}
        alone = medians["alone_s"] / medians["alone_by_default_s"]
        two = medians["two_at_once_s"] / medians["alone_s"]
        by_default = medians["two_at_once_by_default_s"] / medians["alone_by_default_s"]
        ratios = {"alone_over_default": alone, "two_over_alone": two, "two_over_alone_by_default": by_default}
        return {**medians, **ratios, "within_targets": alone <= ALONE and two <= TWO, "runs_s": vars(self)}


def clean() -> dict[str, str]:
    """This environment, with nothing in it about how threads wait or how many there are."""
    return {name: value for name, value in os.environ.items() if name not in machine.WAITING + machine.NUMBER}


def measure(name: str, command: Sequence[str], folder: Path, repeats: int) -> tuple[Times, list[Path]]:
    """Run a command alone and two at once, with the setting and without, in turns.

    Args:
        name: for messages and folders.
        command: it; the folder that it writes comes last.
        folder: where those folders are.
        repeats: how often.

    Returns:
        The times, and every folder that was written.
    """
    times, written = Times(), list[Path]()
    for kind, seconds in list(vars(times).items()) * repeats:
        places = [folder / f"{name}-{len(written) + i}" for i in range(2 if kind.startswith("two") else 1)]
        environment = clean() | (DEFAULT if kind.endswith("default") else {})
        seconds.append(max(one.seconds for one in time_commands([[*command, str(place)] for place in places], environment)))
        say(f"{name}, {kind.replace('_', ' ')}: {seconds[-1]:.1f} s")
        written += places
    return times, written


def logliks(folder: Path) -> dict[str, float]:
    """Every choice's log-likelihood of an evaluation."""
    _, rows = read_results(folder)
    return {f"{doc}.{i}": float(reply[0][0]) for doc, replies, _ in rows for i, reply in enumerate(replies)}


def weights(folder: Path) -> dict[str, float]:
    """Every number of a trained adapter."""
    from safetensors.numpy import load_file

    tensors = load_file(folder / "adapter" / "adapter_model.safetensors")
    return {f"{name}.{i}": value for name, tensor in tensors.items() for i, value in enumerate(tensor.ravel().tolist())}


def spread(read: Callable[[Path], Mapping[str, float]], folders: Sequence[Path]) -> float:
    """The largest difference of a number between the first folder and another; infinite where one lacks it."""
    first, *others = map(read, folders)
    if any(other.keys() != first.keys() for other in others):
        return float("inf")
    return max((abs(other[key] - first[key]) for other in others for key in first), default=0.0)


def main(
    rows: Annotated[int, typer.Option(min=1, help="Documents that are evaluated.")] = 150,
    train_rows: Annotated[int, typer.Option("--train-rows", min=1, help="Rows that are trained on, 32 a step.")] = 64,
    task: Annotated[str | None, typer.Option(help="A trainable task; SST-2, or movie reviews without W2S_DATA.")] = None,
    model: Annotated[str, typer.Option(help="A folder, a hub id, or pypi:NAME.")] = "pypi:smollm2-135m-instruct",
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each kind; their median counts.")] = 3,
    include_path: Annotated[str | None, typer.Option("--include_path", help="A folder with tasks of your own.")] = None,
) -> None:
    """Time an evaluation and a training alone and two at once, with threads that sleep and by OpenMP's default.

    \b
    scripts/bench_contention
    scripts/bench_contention --rows 20 --train-rows 32 --repeats 1
    """
    from bench.options import default_task

    name = task or default_task()
    about = ["--task", name, "--model", model, "--limit", str(train_rows)]
    asked = ["--model", "w2s-hf", "--model_args", json.dumps({"pretrained": model}), "--tasks", name, "--limit", str(rows)]
    own = ["--include_path", include_path] if include_path else []
    say(f"{name}: {rows} rows evaluated, {train_rows} trained on, {machine.cores()} cores, {repeats} runs of each kind")
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        evaluate = [program("w2s"), "eval", *asked, *own, "--log_samples", "--output_path"]
        train = [program("w2s"), "finetune", *about, *own, "--out"]
        evaluating, evaluated = measure("eval", evaluate, home, repeats)
        training, trained = measure("train", train, home, repeats)
        difference = {"eval": spread(logliks, evaluated), "train": spread(weights, trained)}
    line = {
        "bench": "contention",
        "eval": evaluating.summary(),
        "train": training.summary(),
        "max_abs_diff": difference,
        "same_results": not any(difference.values()),
        "cores": machine.cores(),
        "task": name,
        "model": model,
        "rows": rows,
        "train_rows": train_rows,
        "repeats": repeats,
        "setting": f"GOMP_SPINCOUNT={machine.SPINS}",
    }
    print(json.dumps(rounded(line)))


if __name__ == "__main__":
    run(main)
