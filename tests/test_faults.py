"""SIGTERM, a full or read-only disk, two processes on one run folder, a clock set back: nothing lost, nothing half used."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from watched_run import STEP, Watched, content, forked, numbers

from trainers.config.reading import load
from trainers.flow.progress import Progress
from trainers.flow.run import Run, open_run
from trainers.report.report import recomputed, write_report
from trainers.store import disk, stopping
from trainers.store import stages as st
from trainers.training.checkpoints import newest_checkpoint
from w2s_tasks.errors import UserError

SMALL = ("arms=[student]", "evaluate.limit=20")


def arguments(config: Path, runs: Path, *sets: str) -> list[str]:
    more = [word for s in (*SMALL, *sets) for word in ("--set", s)]
    return ["run", str(config), "--runs-dir", str(runs), "--quiet", *more]


@dataclass
class Done:
    code: int | None
    output: str


def ended(process: BaseProcess, output: Path) -> Done:
    process.join(300)
    return Done(process.exitcode, output.read_text(encoding="utf-8"))


def w2s(words: list[str], prepare: Callable[[], None] | None = None) -> Done:
    """`w2s WORDS` in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "output"
        return ended(forked(words, output, prepare), output)


def in_process(config: Path, runs: Path, *sets: str) -> Run:
    flow = open_run(load(str(config), [*SMALL, *sets])[0], runs)
    flow.build(Progress(quiet=True))
    write_report(flow)
    return flow


def one_error(done: Done, message: str) -> None:
    assert done.code == 2, done.output[-3000:]
    assert re.search(message, done.output), done.output[-3000:]
    assert "Traceback" not in done.output


# ---- SIGTERM ----------------------------------------------------------------------------------------------------------


def test_sigterm_in_training_writes_a_checkpoint_and_the_same_command_goes_on(experiment_file: Path, tmp_path: Path):
    long = ("weak.epochs=60", "weak.trainer_args={save_steps: 1000}")  # no regular checkpoint before the last step
    run, output = tmp_path / "cut" / "small", tmp_path / "output"
    process = Watched(arguments(experiment_file, run.parent, *long), run, output)
    assert process.process.pid is not None
    for moment in process.follow():
        if moment.verb == STEP and moment.path.endswith("/step-30"):
            os.kill(process.process.pid, signal.SIGTERM)
    assert process.ended() == stopping.EXIT_CODE == 143
    errors = output.read_text(encoding="utf-8")
    assert "the same command goes on" in errors
    assert "Traceback" not in errors
    stages = run / "stages"
    (folder,) = stages.glob(".work-fit-*/checkpoints")
    newest = newest_checkpoint(folder)
    assert newest is not None
    assert int(newest.name.removeprefix("checkpoint-")) in range(30, 300)
    assert not list(stages.glob("fit-*"))  # the half-trained model is no stage
    flow = in_process(experiment_file, run.parent, *long)
    whole = in_process(experiment_file, tmp_path / "whole", *long)
    assert content(flow.folder) == content(whole.folder)
    assert numbers(flow.folder) == numbers(whole.folder)


def test_training_that_ends_early_is_no_model(experiment_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As transformers' own enable_jit_checkpoint would end it: train() returns as if all was done."""
    from trainers.training import loop as training

    original = training.Bar.on_step_end

    def stop(self: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
        original(self, args, state, control, **more)
        control.should_training_stop = state.global_step >= 3

    monkeypatch.setattr(training.Bar, "on_step_end", stop)
    with pytest.raises(UserError, match=r"ended at step 3 of \d+; a model that is half trained is not used"):
        in_process(experiment_file, tmp_path / "runs")
    assert not list((tmp_path / "runs" / "small" / "stages").glob("fit-*"))


def test_sigterm_outside_training_ends_at_once_and_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(stopping.Terminated), stopping.on_signals():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before
    with stopping.on_signals():
        with stopping.training():
            signal.raise_signal(signal.SIGTERM)
            assert stopping.asked()
        with pytest.raises(stopping.Terminated):  # a second one does not wait
            signal.raise_signal(signal.SIGTERM)
    assert not stopping.asked()


# ---- disks --------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A tmpfs of a size; skips where mounting is not allowed."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("mounting a tmpfs is not allowed here; the limit on file sizes below tests the same path")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.skipif(shutil.which("mount") is None, reason="needs mount")
@pytest.mark.parametrize(
    "size", ["300k", pytest.param("40k", marks=pytest.mark.slow), pytest.param("900k", marks=pytest.mark.slow)]
)
def test_a_full_disk_is_one_clear_error_and_the_same_command_goes_on_after(experiment_file: Path, tmp_path: Path, size: str):
    whole = in_process(experiment_file, tmp_path / "whole")
    with small_disk(tmp_path / "disk", size) as folder:
        one_error(w2s(arguments(experiment_file, folder / "runs")), "the disk is full|can't be written")
        assert not (folder / "runs" / "small" / "report.json").exists()
        subprocess.run(["mount", "-o", "remount,size=200m", str(folder)], check=True)
        done = w2s(arguments(experiment_file, folder / "runs"))
        assert done.code == 0, done.output
        assert content(folder / "runs" / "small") == content(whole.folder)
        assert numbers(folder / "runs" / "small") == numbers(whole.folder)


@pytest.mark.parametrize("limit", [20_000, pytest.param(90_000, marks=pytest.mark.slow)])
def test_a_limit_on_file_sizes_is_one_clear_error(experiment_file: Path, tmp_path: Path, limit: int):
    prepare = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit))
    done = w2s(arguments(experiment_file, tmp_path / "runs"), prepare)
    one_error(done, "the disk is full, or a quota or size limit was met")
    assert not (tmp_path / "runs" / "small" / "report.json").exists()
    for stage in (tmp_path / "runs" / "small" / "stages").glob("[!.]*"):
        assert st.whole(stage)[0] is not None


def test_a_read_only_run_folder_is_one_clear_error(experiment_file: Path, tmp_path: Path):
    with small_disk(tmp_path / "disk", "200m") as folder:
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        one_error(
            w2s(arguments(experiment_file, folder / "runs")),
            r"read-only|can't be written.*--runs-dir|no permission to write",
        )
        subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)
        in_process(experiment_file, folder / "runs")
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        one_error(w2s(arguments(experiment_file, folder / "runs")), r"--runs-dir.*read-only disk")


def test_what_is_a_problem_of_the_disk_and_what_is_not():
    assert disk.problem(OSError(28, "No space left on device", "x")) is not None
    assert disk.problem(RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")) is not None
    assert "x/y" in (disk.problem(PermissionError(13, "Permission denied", "x/y")) or "")
    chained = ValueError("while saving")
    chained.__cause__ = OSError(122, "Disk quota exceeded")
    assert disk.problem(chained) is not None
    assert disk.problem(ValueError("a bug")) is None
    assert disk.problem(FileNotFoundError(2, "No such file", "x")) is None


# ---- two processes --------------------------------------------------------------------------------------------------------


def test_two_processes_on_one_run_folder_both_end_whole_and_do_no_work_twice(experiment_file: Path, tmp_path: Path):
    runs = tmp_path / "runs"
    outputs = [tmp_path / name for name in "ab"]
    both = [forked(arguments(experiment_file, runs), output) for output in outputs]
    for process, output in zip(both, outputs, strict=True):
        done = ended(process, output)
        assert done.code == 0, done.output
    whole = in_process(experiment_file, tmp_path / "whole")
    assert content(runs / "small") == content(whole.folder)
    assert numbers(runs / "small") == numbers(whole.folder)
    names = [p.name for p in (runs / "small" / "stages").iterdir() if not p.name.startswith(".lock")]
    assert sorted(names) == sorted(p.name for p in (whole.folder / "stages").iterdir() if not p.name.startswith(".lock"))
    assert not [p for p in (runs / "small").iterdir() if p.name.endswith(".tmp")]


def test_a_folder_where_another_process_builds_is_not_deleted(experiment_file: Path, tmp_path: Path):
    folder = tmp_path / "runs" / "small"
    stages = folder / "stages"
    (stages / ".work-fit-0123").mkdir(parents=True)
    code = "import sys, filelock; l = filelock.FileLock(sys.argv[1]); l.acquire(); print('held', flush=True); input()"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(stages / ".lock-fit-0123")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        done = w2s([*arguments(experiment_file, tmp_path / "runs"), "--if-exists", "delete"])
        one_error(done, "another process is building fit-0123 .*not deleted")
        assert (stages / ".work-fit-0123").is_dir()
    finally:
        holder.communicate("\n", timeout=30)
    assert st.busy(folder) is None
    link = tmp_path / "linked" / "small"
    link.parent.mkdir()
    link.symlink_to(folder)
    done = w2s([*arguments(experiment_file, tmp_path / "linked"), "--if-exists", "delete"])
    one_error(done, "is a link; not deleted")
    assert folder.is_dir()


def test_two_writers_of_one_file_leave_one_whole(tmp_path: Path):
    code = (
        "import sys; from pathlib import Path; from trainers.store.stages import write_atomic\n"
        "for i in range(300): write_atomic(Path(sys.argv[1]), sys.argv[2] * 20000)"
    )
    path = tmp_path / "report.json"
    both = [subprocess.Popen([sys.executable, "-c", code, str(path), letter]) for letter in "ab"]
    seen = set()
    while any(p.poll() is None for p in both):
        if path.exists():
            seen.add(path.read_text())
    assert [p.returncode for p in both] == [0, 0]
    assert seen <= {"a" * 20000, "b" * 20000}
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


# ---- artefacts and clocks ------------------------------------------------------------------------------------------


def test_altered_stages_are_never_used_by_a_report_that_is_computed_anew(experiment_file: Path, tmp_path: Path):
    flow = in_process(experiment_file, tmp_path / "runs")
    samples = next(flow.stages["evaluate/student, seed 0"].path.rglob("samples_*.jsonl"))
    text = samples.read_text(encoding="utf-8")
    samples.write_text(text.replace('"acc": 0.0', '"acc": 1.0'), encoding="utf-8")
    altered = samples.read_text(encoding="utf-8") != text
    if not altered:
        samples.write_text(text.replace('"acc": 1.0', '"acc": 0.0'), encoding="utf-8")
    with pytest.raises(UserError, match=r"samples_own_reviews.* is not as its manifest says; w2s run builds"):
        recomputed(flow.folder)
    again = in_process(experiment_file, tmp_path / "runs")
    assert [n for n, s in again.stages.items() if not s.reused] == ["evaluate/student, seed 0"]


@pytest.mark.parametrize(
    "manifest", ["[]", "{}", '{"files": []}', '{"files": {}, "seconds": "x"}', '{"files": {"../x": "0"}, "seconds": 1}']
)
def test_a_stage_with_another_manifest_is_built_anew(tmp_path: Path, manifest: str):
    store = st.Store(tmp_path)

    def build(out: Path) -> None:
        (out / "data.txt").write_text("x")

    stage = store.build("x", {"a": 1}, build)
    (stage.path / "manifest.json").write_text(manifest)
    assert not store.build("x", {"a": 1}, build).reused


TEN_YEARS = 10 * 365 * 86400


def set_back() -> None:
    now, gmtime = time.time, time.gmtime
    time.time = lambda: now() - TEN_YEARS
    time.gmtime = lambda seconds=None: gmtime(time.time() if seconds is None else seconds)


def test_a_clock_set_back_changes_nothing(experiment_file: Path, tmp_path: Path):
    whole = in_process(experiment_file, tmp_path / "whole")
    runs = tmp_path / "runs"
    flow = in_process(experiment_file, runs)
    kept = [s.path for n, s in flow.stages.items() if not n.startswith("evaluate")]
    for name, stage in flow.stages.items():
        if name.startswith("evaluate"):
            shutil.rmtree(stage.path)
    future = time.time() + TEN_YEARS
    for path in runs.rglob("*"):
        os.utime(path, (future, future))
    done = w2s(arguments(experiment_file, runs), set_back)
    assert done.code == 0, done.output
    assert content(runs / "small") == content(whole.folder)
    assert all((p / "manifest.json").stat().st_mtime == pytest.approx(future, abs=2) for p in kept)


def test_new_checkpoints_are_kept_where_older_ones_are_from_a_later_time(
    experiment_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Trainer deletes the checkpoints with the oldest times, which after a clock was set back are the newest."""
    from trainers.training import loop as training

    original = training.Bar.on_step_end
    checkpoints: Path = tmp_path
    for last, kept in ((60, {24, 48}), (110, {72, 96})):

        def stop(self: Any, args: Any, state: Any, control: Any, end: int = last, **more: Any) -> None:
            original(self, args, state, control, **more)
            if state.global_step == end:
                raise KeyboardInterrupt

        monkeypatch.setattr(training.Bar, "on_step_end", stop)
        with pytest.raises(KeyboardInterrupt):
            in_process(experiment_file, tmp_path / "runs", "weak.epochs=20")
        (checkpoints,) = (tmp_path / "runs" / "small" / "stages").glob(".work-fit-*/checkpoints")
        assert {int(p.name.split("-")[1]) for p in checkpoints.iterdir()} == kept
        for path in checkpoints.iterdir():
            os.utime(path, (path.stat().st_mtime + TEN_YEARS,) * 2)


def test_a_lock_that_a_killed_process_left_stops_nobody(tmp_path: Path):
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / ".lock-fit-1").write_text("")
    assert st.busy(tmp_path) is None
    with FileLock(tmp_path / "stages" / ".lock-fit-1"):
        pass
