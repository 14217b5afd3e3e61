"""Start-up: `w2s eval` against the stock `lm_eval run`, a dummy model on ten rows.

Whole commands are timed as processes; both write their results, which have to be the same (the dummy's answers come from
lm_eval's seed). The path of our tasks is found before the clock starts. Both run offline: lm_eval asks the hub for the
tokenizer of a dummy model, and how long the hub takes to answer, or not to, is no property of either side.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.comparison import Comparison, alternate, run, say
from w2s_tasks.errors import UserError


@dataclass(frozen=True)
class Finished:
    """One run of a command."""

    seconds: float
    peak_mb: float


def program(name: str) -> str:
    path = Path(sys.executable).with_name(name)
    if not path.is_file():
        raise UserError(f"no command '{name}' beside {sys.executable}: install this project into that environment.")
    return str(path)


def time_command(command: Sequence[str]) -> Finished:
    """Run a command to its end, as `time_commands`."""
    (finished,) = time_commands([command], os.environ)
    say(f"{Path(command[0]).name}: {finished.seconds:.1f} s")
    return finished


def time_commands(commands: Sequence[Sequence[str]], environment: Mapping[str, str]) -> list[Finished]:
    """Run commands at once to their ends, offline: of each its peak memory, and seconds until it and those before it ended.

    Raises:
        UserError: one failed; with the end of what it said.
    """
    with contextlib.ExitStack() as files:
        said = [files.enter_context(tempfile.TemporaryFile()) for _ in commands]
        start, offline = time.perf_counter(), {**environment, "HF_HUB_OFFLINE": "1"}
        running = [
            subprocess.Popen(command, stdout=file, stderr=file, env=offline)
            for command, file in zip(commands, said, strict=True)
        ]
        finished = [_wait(process, start) for process in running]
        for process, command, file in zip(running, commands, said, strict=True):
            if process.returncode:
                file.seek(0)
                end = file.read().decode(errors="replace")[-2000:]
                raise UserError(f"{' '.join(command)} ended with code {process.returncode}:\n{end}")
    return finished


def _wait(process: subprocess.Popen[bytes], start: float) -> Finished:
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    kilobytes = usage.ru_maxrss if sys.platform != "darwin" else usage.ru_maxrss / 2**10
    return Finished(time.perf_counter() - start, kilobytes / 2**10)


def read_results(folder: Path) -> tuple[dict[str, Any], list[Any]]:
    """The metrics of the newest result file below a folder, and every row's answers.

    Raises:
        UserError: no result was written.
    """
    files = sorted(folder.rglob("results_*.json"), key=lambda path: path.stat().st_mtime)
    if not files:
        raise UserError(f"lm_eval wrote no result below {folder}.")
    results = json.loads(files[-1].read_text(encoding="utf-8"))
    samples = sorted(folder.rglob("samples_*.jsonl"), key=lambda path: path.stat().st_mtime)[-1]
    rows = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    metrics = {
        f"{task}/{metric}": value
        for task, entries in results["results"].items()
        for metric, value in entries.items()
        if isinstance(value, int | float)
    }
    counts = {f"{task}/n": entry["effective"] for task, entry in results["n-samples"].items()}
    return {**metrics, **counts}, [[row["doc_id"], row["resps"], row["target"]] for row in rows]


def difference(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    """The largest difference of a metric; infinite where one side lacks a metric."""
    if ours.keys() != theirs.keys():
        return float("inf")
    return max(abs(ours[key] - theirs[key]) for key in ours)


def main(
    task: Annotated[str, typer.Option(help="One of this suite's tasks.")] = "w2s_sst2",
    limit: Annotated[int, typer.Option(min=1, help="Rows.")] = 10,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each side; their median counts.")] = 5,
) -> None:
    """Time the start of an evaluation: w2s eval against the stock lm_eval run.

    \b
    scripts/bench_startup
    scripts/bench_startup --task w2s_ethics_probe_justice --repeats 3
    """
    from w2s_tasks import TASK_PATH

    flags = ["--model", "dummy", "--tasks", task, "--limit", str(limit), "--log_samples", "--output_path"]
    ours = [program("w2s"), "eval", *flags]
    peer = [program("lm_eval"), "run", "--include_path", str(TASK_PATH), *flags]
    say(f"{task}: {limit} rows, a dummy model, {repeats} runs of each")
    with tempfile.TemporaryDirectory() as temporary:
        mine, theirs = (Path(temporary) / side for side in ("ours", "peer"))
        first, second = alternate(
            lambda _: time_command([*ours, str(mine)]), lambda _: time_command([*peer, str(theirs)]), repeats
        )
        (metrics, rows), (other_metrics, other_rows) = read_results(mine), read_results(theirs)
    shown = " ".join(flags[:-2])
    print(
        Comparison(
            bench="startup",
            ours_runs_s=[one.seconds for one in first],
            peer_runs_s=[one.seconds for one in second],
            ours_tokens=0,
            peer_tokens=0,
            max_abs_diff=difference(metrics, other_metrics),
            same_predictions=rows == other_rows,
            ours_peak_mb=max(one.peak_mb for one in first),
            peer_peak_mb=max(one.peak_mb for one in second),
            extra={
                "task": task,
                "docs": len(rows),
                "repeats": repeats,
                "ours": f"w2s eval {shown} --log_samples --output_path DIR",
                "peer": f'lm_eval run --include_path "$(w2s tasks --path)" {shown} --log_samples --output_path DIR',
            },
        ).json()
    )


if __name__ == "__main__":
    run(main)
