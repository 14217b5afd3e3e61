"""100,000 rows of labels, 10,000 evaluation rows, sweeps of 200 cells: memory bounded, work linear, progress alive.

Nothing here asserts a time; the slow tests print what they measured.
"""

from __future__ import annotations

import cProfile
import csv
import fcntl
import itertools
import json
import os
import pstats
import pty
import random
import re
import struct
import subprocess
import sys
import termios
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import BAD, FILLER, GOOD, OWN_TASK

from trainers.commands import sweep as sw
from trainers.flow.progress import Progress
from trainers.harness import evaluate as hn
from trainers.harness.tasks import row_ids
from trainers.labels import splits
from trainers.labels.arms import noise_matched, permuted_labels
from trainers.labels.label_set import LabelSet
from trainers.labels.operations import METHOD_OPS
from trainers.store import stages as store
from w2s_tasks import register
from w2s_tasks.packing.plan import make_plan
from w2s_tasks.packing.tree import plan_passes
from w2s_tasks.results.read import read_evaluation

# ---- work grows with the rows, not with their square ---------------------------------------------------------------


def texts(n: int) -> list[str]:
    """n distinct texts with the words of the tests' task."""
    rng = random.Random(n)
    return [" ".join([*rng.choices(FILLER, k=6), *rng.choices(GOOD + BAD, k=2), str(i)]) for i in range(n)]


def label_set(n: int) -> LabelSet:
    """Random soft labels of two classes."""
    p = np.random.default_rng(0).uniform(0.01, 0.99, n)
    return LabelSet(tuple(f"{i:016x}-0" for i in range(n)), np.stack([p, 1 - p], axis=1))


def every_operation(n: int, folder: Path) -> None:
    labels, rng = label_set(n), np.random.default_rng(0)
    noise_matched(permuted_labels(labels, rng), rng, labels.hard)
    METHOD_OPS["balance"](METHOD_OPS["filter"](labels, rng, keep=0.5, by_class=True), rng)
    labels.hardened().save(folder / "labels.parquet")
    assert len(LabelSet.load(folder / "labels.parquet")) == n


def split_both_ways(n: int, folder: Path) -> None:
    for contained in (False, True):
        halves = splits.split_by_source(texts(n), 0.5, 0, contained=contained)
        assert len(halves.weak) + len(halves.transfer) + halves.dropped == n


def plan_of_passes(n: int, folder: Path) -> None:
    rng = random.Random(0)
    prompts = [[1, 2, 3, *(rng.randrange(9, 600) for _ in range(12)), 4, 5] for _ in range(n)]
    passes = plan_passes([(prompt, [choice]) for prompt in prompts for choice in (6, 7)], 256)
    assert make_plan(passes, in_pack=512, in_batch=256).tokens >= 12 * n


def samples_read(n: int, folder: Path) -> None:
    rows = (
        {"doc_id": i, "doc": {"text": "t"}, "doc_hash": f"{i:064d}", "target": "1", "acc": 1.0}
        | {"filtered_resps": [["-1.5", "False"], ["-0.5", "True"]]}
        for i in range(n)
    )
    (folder / f"samples_t_{n:09}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"configs": {"t": {"output_type": "multiple_choice"}}, "n-samples": {"t": {"original": n, "effective": n}}}
    (folder / f"results_{n:09}.json").write_text(json.dumps(data | {"results": {"t": {"acc,none": 1.0}}, "config": {}}))
    assert read_evaluation(folder, {"t": n})["t"].n == n


def calls(work: Callable[[], Any]) -> int:
    """How many functions are called, Python's and C's: the same on a slow machine and on a busy one."""
    profile = cProfile.Profile()
    profile.runcall(work)
    return int(pstats.Stats(profile).total_calls)  # type: ignore[attr-defined]


@pytest.mark.parametrize("work", [every_operation, split_both_ways, plan_of_passes, samples_read])
def test_four_times_the_rows_are_four_times_the_work(work: Callable[[int, Path], None], tmp_path: Path):
    work(100, tmp_path)  # imports and caches
    few, many = calls(lambda: work(1000, tmp_path)), calls(lambda: work(4000, tmp_path))
    assert many < 4.6 * few, f"{few} calls for 1000 rows, {many} for 4000"


def test_ids_of_equal_rows_stay_apart_without_being_compared():
    docs = [{"text": "the same", "label": 1}] * 3000
    few, many = calls(lambda: row_ids(docs[:750])), calls(lambda: row_ids(docs))
    assert many < 4.6 * few
    assert len(set(row_ids(docs))) == 3000


def test_a_tasks_templates_are_compiled_once_and_render_as_before(own_task: Path, monkeypatch: pytest.MonkeyPatch):
    register()
    from lm_eval import utils

    utils.env.from_string.cache_clear()
    compiled: list[str] = []
    compile_one = jinja2.Environment.compile
    monkeypatch.setattr(
        jinja2.Environment,
        "compile",
        lambda self, source, *a, **k: compiled.append(source) or compile_one(self, source, *a, **k),
    )
    task = hn.Harness([str(own_task)]).task("own_reviews")
    prompts = [task.pairs(doc, hn.PromptStyle(num_fewshot=2)) for doc in task.train_docs]
    assert len(prompts) == 240
    assert max(Counter(compiled).values()) == 1
    doc = task.train_docs[7]
    assert prompts[7][1][0].endswith(f"\n\nReview: {doc['text']}\nSentiment:")
    plain = jinja2.Environment().from_string("Review: {{text}}")  # noqa: S701 - as lm_eval has it
    assert plain.render(**doc) == utils.apply_template("Review: {{text}}", doc)
    before = utils.env.from_string
    register()
    assert utils.env.from_string is before


# ---- a large run ---------------------------------------------------------------------------------------------------

LARGE = """\
task: own_reviews
include_path: [own_tasks]
split: {{by: source, weak: 0.02, limit: {{weak: {weak}, transfer: {transfer}}}, seed: 0}}
weak: {{model: {encoder}, text: text, epochs: 2, lr: 2e-3, batch_size: 32}}
strong: {{model: {strong}, trainer: lora, r: 4, lr: 1e-2, batch_size: 32, trainer_args: {{max_steps: 20}}}}
methods: [xent, filter+balance+logconf]
arms: [zero_shot, student, ceiling]
"""
"""Every trained arm reads, renders and tokenizes all rows; 20 steps are enough to train on some of them."""


@dataclass(frozen=True)
class Measured:
    """What a run took, and what it showed on a terminal: (seconds since the start, text) each time it wrote."""

    rows: int
    folder: Path
    peak: int
    """Bytes of memory."""
    cpu: float
    """Seconds."""
    shown: list[tuple[float, str]]

    def counts(self, step: str, bar: str) -> list[int]:
        """The numbers of finished requests that a bar showed during a step."""
        found: list[int] = []
        now = ""
        for _, text in self.shown:
            for part in re.split(r"[\r\n]", text):
                head = re.search(r"\[ *\d+/\d+\] (.*) \.\.\.", part)
                now = head[1] if head else now
                number = re.search(rf"{bar}:.*?\| (\d+)/\d+ \[", part)
                if number and now.startswith(step):
                    found.append(int(number[1]))
        return found


def write_rows(path: Path, n: int, seed: int) -> None:
    rng = random.Random(seed)
    with path.open("w", newline="", encoding="utf-8") as f:
        table = csv.writer(f)
        table.writerow(["text", "label"])
        for i in range(n):
            label = rng.randint(0, 1)
            words = [*rng.choices(FILLER, k=rng.randint(3, 9)), *rng.choices(GOOD if label else BAD, k=2), str(i)]
            table.writerow([" ".join(words), label])


def on_a_terminal(command: list[str], folder: Path) -> tuple[list[tuple[float, str]], Any]:
    """Run a command whose standard error is a terminal; what it wrote there and when, and its resource usage."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    start, shown = time.monotonic(), []
    process = subprocess.Popen(command, cwd=folder, stderr=theirs, stdout=subprocess.DEVNULL)
    os.close(theirs)
    while True:
        try:
            data = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        shown.append((time.monotonic() - start, data.decode(errors="replace")))
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    os.close(ours)
    assert process.returncode == 0, "".join(text for _, text in shown)[-3000:]
    return shown, usage


def large_run(folder: Path, transfer: int, evaluated: int, encoder: Path, strong: Path) -> Measured:
    (folder / "own_tasks").mkdir(parents=True)
    write_rows(folder / "train.csv", round(transfer / 0.97), 1)
    write_rows(folder / "test.csv", evaluated, 2)
    task = OWN_TASK.format(folder=folder).replace("dataset_path: json", "dataset_path: csv").replace(".jsonl", ".csv")
    (folder / "own_tasks" / "own_reviews.yaml").write_text(task)
    config = LARGE.format(weak=transfer // 100, transfer=transfer, encoder=encoder, strong=strong)
    (folder / "large.yaml").write_text(config)
    shown, usage = on_a_terminal([sys.executable, "-m", "trainers.cli", "run", "large.yaml"], folder)
    return Measured(transfer, folder / "runs" / "large", usage.ru_maxrss * 1024, usage.ru_utime + usage.ru_stime, shown)


@pytest.mark.slow
def test_a_hundred_thousand_rows_of_labels_and_ten_thousand_of_evaluation(
    tmp_path: Path, encoder_folder: Path, causal_model: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
):
    models = encoder_folder, causal_model("llama")
    small = large_run(tmp_path / "small", 10_000, 1_000, *models)
    large = large_run(tmp_path / "large", 100_000, 10_000, *models)
    silence = max(b[0] - a[0] for a, b in itertools.pairwise(large.shown))
    per_row = (large.peak - small.peak) / (large.rows - small.rows)
    with capsys.disabled():
        sys.stdout.write(
            f"\n10,000 rows: {small.cpu:.0f} s of CPU, {small.peak / 2**20:.0f} MB; 100,000: {large.cpu:.0f} s, "
            f"{large.peak / 2**20:.0f} MB ({per_row / 2**10:.1f} kB a row); longest silence {silence:.0f} s\n"
        )

    # Nothing was left out, and nothing counted twice.
    report = json.loads((large.folder / "report.json").read_text())
    assert [a["n"] for a in report["arms"]] == [10_000] * 5
    assert {a["arm"] for a in report["arms"]} == {"weak", "zero_shot", "student", "ceiling"}
    (entry,) = report["weak_labels"]
    assert entry["n"] == 100_000
    sizes = sorted(pq.read_metadata(p).num_rows for p in (large.folder / "stages").glob("fit-*/labels.parquet"))
    assert sizes[0] == 1_000  # the weak supervisor's
    assert sizes[-2:] == [100_000, 100_000]
    assert 20_000 < sizes[1] < 100_000  # filtered and balanced

    # Memory: what a row adds is bounded; all of its copies (text, tokens, requests, labels, answers) are within 20 kB.
    assert per_row < 20 * 2**10

    # Progress: while rows are labelled and evaluated, the numbers move.
    for step, bar, total in (("weak labels", "classifying", 100_000), ("evaluate zero_shot", "scoring", 20_000)):
        counts = large.counts(step, bar)
        assert counts == sorted(counts)
        assert len(set(counts)) >= 5, f"{step}: {counts}"
        assert counts[-1] <= total


# ---- a large sweep ---------------------------------------------------------------------------------------------------

OTHERS = ("zero_shot", "ceiling", "random_labels", "noise_matched", "few_shot(2)")
ARMS = [["student", *some] for size in range(6) for some in itertools.combinations(OTHERS, size)][:25]
CELLS: sw.Grid = {"arms": ARMS, "method": ["xent", "harden", "logconf", "filter"], "seed": [0, 1]}
SETS = ["split.limit={weak: 48, transfer: 32}", "evaluate.limit=16"]


def swept(file: Path, runs: Path, grid: sw.Grid) -> tuple[sw.Sweep, list[sw.Outcome]]:
    sweep = sw.open_sweep(str(file), SETS, grid, runs)
    return sweep, list(sw.run_cells(sweep, sweep.cells, Progress(quiet=True, new_only=True)))


@dataclass
class Counted:
    """What a sweep did, filled in while it runs."""

    hashed: list[str]
    built: list[str]
    loaded: list[str]
    written: list[str]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    found = Counted([], [], [], [])

    def count(where: Any, name: str, into: list[str], about: Callable[..., str]) -> None:
        real = getattr(where, name)
        monkeypatch.setattr(where, name, lambda *a, **k: into.append(about(*a)) or real(*a, **k))

    count(store, "sha256_file", found.hashed, str)
    count(store.Store, "_build", found.built, lambda self, order: f"{order.kind}-{order.key}")
    count(hn.ModelPool, "load", found.loaded, lambda self, ref: str(ref.model))
    count(sw, "write_atomic", found.written, lambda path, text: path.name)
    return found


def test_finished_cells_are_passed_over_and_the_table_of_cells_is_written_once(
    experiment_file: Path, tmp_path: Path, counted: Counted
):
    grid: sw.Grid = {"arms": [["zero_shot"], ["student"]], "seed": [0]}
    _, first = swept(experiment_file, tmp_path / "runs", grid)
    assert counted.written == ["cell.json", "sweep.json"] * 2 + ["sweep.json"]
    before = json.loads((tmp_path / "runs/small/sweep.json").read_text())
    for seen in vars(counted).values():
        seen.clear()
    sweep, second = swept(experiment_file, tmp_path / "runs", grid)
    assert first == second
    assert vars(counted) == {"hashed": [], "built": [], "loaded": [], "written": ["sweep.json"]}
    assert json.loads((tmp_path / "runs/small/sweep.json").read_text()) == before

    # What another shard does to a cell in the meantime is seen.
    sweep.fail(sweep.cells[1], ValueError("elsewhere"))
    sweep.write()
    cells = json.loads((tmp_path / "runs/small/sweep.json").read_text())["cells"]
    assert [c["status"] for c in cells] == ["done", "failed"]
    assert cells[0] == before["cells"][0]


@pytest.mark.slow
def test_a_sweep_of_two_hundred_cells_is_resumed_without_building_or_hashing_again(
    experiment_file: Path, tmp_path: Path, counted: Counted, capsys: pytest.CaptureFixture[str]
):
    start = time.process_time()
    _, first = swept(experiment_file, tmp_path / "runs", CELLS)
    took = time.process_time() - start
    assert [o["status"] for o in first] == ["done"] * 200
    stages = {p.name for p in (tmp_path / "runs/small/stages").iterdir() if not p.name.startswith(".")}
    assert sorted(counted.built) == sorted(stages)  # each once, for all the cells that need it
    # For each seed a split, a supervisor, its labels, four students, three controls, and their evaluations.
    assert len(stages) == 2 * (1 + 1 + 1 + 4 + 3 + 8) + 2

    for seen in vars(counted).values():
        seen.clear()
    start = time.process_time()
    sweep, second = swept(experiment_file, tmp_path / "runs", CELLS)
    again = time.process_time() - start
    with capsys.disabled():
        sys.stdout.write(f"\n200 cells: {took:.0f} s of CPU; resumed in {again:.1f} s\n")
    assert second == first
    assert vars(counted) == {"hashed": [], "built": [], "loaded": [], "written": ["sweep.json"]}

    # Where reports are gone, each stage's files are hashed once for all the cells that stand on it.
    gone = [sweep.cells[i] for i in (0, 1, 8, 99, 198, 199)]
    for cell in gone:
        (sweep.folder_of(cell) / "report.json").unlink()
    _, third = swept(experiment_file, tmp_path / "runs", CELLS)
    assert third == first
    assert max(Counter(counted.hashed).values()) == 1
    assert not counted.built
    assert not counted.loaded
