"""An evaluation that died half-way is never shown as whole, and n is checked against the task."""

from __future__ import annotations

import json
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from bad_input import one_clear_error
from lm_eval.loggers import EvaluationTracker

from trainers.commands import sweep as sw
from trainers.config.reading import load
from trainers.flow.progress import Progress
from trainers.flow.run import Run, open_run
from trainers.report.report import read_report, recomputed, write_report
from trainers.store.stages import MANIFEST
from w2s_tasks.models.packed_hf import W2SHF
from w2s_tasks.rows.assets import sha256_file

SETS = ["split.limit={weak: 48, transfer: 32}", "arms=[zero_shot]"]


def opened(file: Path, runs: Path, *sets: str) -> Run:
    return open_run(load(str(file), [*SETS, *sets])[0], runs)


def finished(file: Path, runs: Path, *sets: str) -> dict[str, Any]:
    flow = opened(file, runs, *sets)
    flow.build(Progress(quiet=True))
    return write_report(flow)[0].json()


def accuracies(report: dict[str, Any]) -> list[tuple[str, int, float]]:
    return [(a["arm"], a["n"], a["metrics"]["acc"]) for a in report["arms"]]


# ---- it dies -----------------------------------------------------------------------------------------------------


class Died(RuntimeError):
    """What a lost device or a bug raises."""


def dies_half_way(self: W2SHF, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
    scored(self, requests[: len(requests) // 2], disable_tqdm)
    raise Died("the device is gone")


def answers_half(self: W2SHF, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
    return scored(self, requests[: len(requests) // 2], disable_tqdm)


scored = W2SHF.loglikelihood


@pytest.mark.parametrize(("broken", "error"), [(dies_half_way, Died), (answers_half, ValueError)])
def test_half_the_answers_are_no_evaluation(
    broken: Callable[..., Any],
    error: type[Exception],
    experiment_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(W2SHF, "loglikelihood", broken)
    flow = opened(experiment_file, tmp_path / "runs")
    with pytest.raises(error):
        flow.build(Progress(quiet=True))
    assert not list(flow.folder.glob("stages/evaluate-*"))
    one_clear_error(lambda: read_report(flow.folder), "not a readable report")
    monkeypatch.undo()
    report = finished(experiment_file, tmp_path / "runs")
    assert [n for _, n, _ in accuracies(report)] == [60, 60]
    assert accuracies(report) == accuracies(finished(experiment_file, tmp_path / "undisturbed"))


def test_an_earlier_report_stays_what_it_was_where_a_larger_evaluation_dies(
    experiment_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    before = finished(experiment_file, tmp_path / "runs", "evaluate.limit=16")
    monkeypatch.setattr(W2SHF, "loglikelihood", dies_half_way)
    with pytest.raises(Died):
        opened(experiment_file, tmp_path / "runs").build(Progress(quiet=True))
    shown = read_report(tmp_path / "runs" / "small").json()
    assert accuracies(shown) == accuracies(before)
    assert {n for _, n, _ in accuracies(shown)} == {16}
    assert shown["config"]["evaluate"]["limit"] == 16


def test_a_cell_that_dies_has_no_numbers(experiment_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(W2SHF, "loglikelihood", dies_half_way)
    sweep = sw.open_sweep(str(experiment_file), SETS, {"seed": [0]}, tmp_path / "runs")
    list(sw.run_cells(sweep, sweep.cells, Progress(quiet=True, new_only=True)))
    (cell,) = json.loads((tmp_path / "runs/small/sweep.json").read_text())["cells"]
    assert cell["status"] == "failed"
    assert "the device is gone" in cell["error"]
    assert not {"arms", "gaps", "pgr", "report"} & cell.keys()


# ---- its files are not whole -------------------------------------------------------------------------------------


@contextmanager
def small_files_only(size: int) -> Iterator[None]:
    """Writes beyond `size` bytes of a file fail, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("method", ["save_results_samples", "save_results_aggregated"])
def test_what_lm_eval_could_not_write_and_kept_to_itself_is_found(
    method: str, experiment_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    real = getattr(EvaluationTracker, method)

    def on_a_full_disk(self: EvaluationTracker, **arguments: Any) -> None:
        with small_files_only(2000):
            real(self, **arguments)  # logs the error and goes on

    monkeypatch.setattr(EvaluationTracker, method, on_a_full_disk)
    flow = opened(experiment_file, tmp_path / "runs")
    one_clear_error(lambda: flow.build(Progress(quiet=True)), "could not be saved in .*Could not save .*File too large")
    assert not list(flow.folder.glob("stages/evaluate-*"))
    monkeypatch.undo()
    assert [n for _, n, _ in accuracies(finished(experiment_file, tmp_path / "runs"))] == [60, 60]


def alter(stage: Path, pattern: str, change: Callable[[str], str]) -> None:
    """Change a file of a finished stage and its hash in the manifest, so that only its content can tell."""
    (file,) = stage.rglob(pattern)
    file.write_text(change(file.read_text(encoding="utf-8")), encoding="utf-8")
    manifest = json.loads((stage / MANIFEST).read_text())
    manifest["files"][file.relative_to(stage).as_posix()] = sha256_file(file)
    (stage / MANIFEST).write_text(json.dumps(manifest))


def without_a_third(text: str) -> str:
    return "".join(text.splitlines(keepends=True)[:40])


def counting_fewer(text: str) -> str:
    data = json.loads(text)
    data["n-samples"]["own_reviews"]["effective"] = 40
    return json.dumps(data)


def better(text: str) -> str:
    data = json.loads(text)
    data["results"]["own_reviews"]["acc,none"] = 0.99
    return json.dumps(data)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([("samples_*", without_a_third)], "40 rows, the result file counts 60; the evaluation is not whole"),
        (
            [("samples_*", without_a_third), ("results_*", counting_fewer)],
            "40 rows, but 60 documents were asked; the evaluation is not whole",
        ),
        ([("results_*", better)], "of its 60 rows is 0.* its result file says 0.9900"),
    ],
)
def test_n_and_accuracy_of_a_finished_stage_are_checked_against_the_task_and_the_rows(
    changes: list[tuple[str, Callable[[str], str]]], message: str, experiment_file: Path, tmp_path: Path
):
    finished(experiment_file, tmp_path / "runs")
    folder = tmp_path / "runs" / "small"
    report = (folder / "report.json").read_text()
    stage = folder / "stages" / json.loads(report)["stages"]["evaluate/zero_shot"]
    for pattern, change in changes:
        alter(stage, pattern, change)
    one_clear_error(lambda: recomputed(folder), message)
    one_clear_error(lambda: finished(experiment_file, tmp_path / "runs"), message)
    assert (folder / "report.json").read_text() == report
