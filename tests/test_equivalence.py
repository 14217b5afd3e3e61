"""Tests against a margin: two of scipy's t tests, size and power simulated where models do differ, the primary endpoint."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bad_input import one_clear_error
from scipy.stats import ttest_1samp
from test_discrimination import two_choice

from trainers.commands.sweep import open_sweep, parse_grid, run_cells
from trainers.config.primary import Primary as Endpoint
from trainers.config.reading import load
from trainers.flow import run as ex
from trainers.flow import stamp
from trainers.flow.progress import Progress
from trainers.report.collected import collect
from trainers.report.report import read_report, write_report
from trainers.report.sections.primary import Primary, _p
from w2s_tasks.results.components import crossed
from w2s_tasks.results.equivalence import equivalence
from w2s_tasks.results.planning import Expected, drawn
from w2s_tasks.results.safety import adjusted, changes
from w2s_tasks.results.stats import PAIR, paired_components, paired_difference

RNG = np.random.default_rng(11)


def test_without_pseudo_rows_it_is_two_one_sided_t_tests():
    first, second = RNG.normal(0.02, 0.3, 200), RNG.normal(0, 0.3, 200)
    found = equivalence(crossed((first - second)[None, None]), 0.08)
    lower = ttest_1samp(first - second, -0.08, alternative="greater").pvalue
    upper = ttest_1samp(first - second, 0.08, alternative="less").pvalue
    # Ours divides by n where the t test divides by n - 1.
    assert found.not_below == pytest.approx(lower, rel=0.05)
    assert found.equal == pytest.approx(max(lower, upper), rel=0.05)


def test_the_one_sided_tests_are_those_of_the_interval():
    first, second = (RNG.integers(2, size=300).astype(float) for _ in range(2))
    parts = paired_components(first, second)
    mean, half = float(parts.mean[0]), float(parts.half_width(np.ones(1), 0.9))
    edge = abs(mean) + half
    assert equivalence(parts, edge + 1e-6).equal < 0.05 < equivalence(parts, edge - 1e-6).equal
    assert equivalence(parts, half - mean + 1e-6).not_below < 0.05 or half - mean < 0


def rejected(difference: float, n: int, seeds: int, *, margin: float, cluster: Any = None, draws: int = 600) -> float:
    """Share of drawn experiments that call two models equal which differ by so much."""
    expected = Expected(0.75, 0.75, 0.75, discordance=0.12, seed_sd=0.01)
    accuracies = np.array([0.75 + difference, 0.75])[None, :, None] + 0.01 * RNG.standard_normal((draws, 2, seeds))
    if seeds == 1:  # the truth is that of these weights
        accuracies = np.broadcast_to(np.array([0.75 + difference, 0.75])[None, :, None], (draws, 2, 1))
    first, second = np.moveaxis(drawn(accuracies, n, expected, RNG), 1, 0)
    if cluster is not None:
        first, second = first[..., cluster], second[..., cluster]
    calls = (crossed((a - b)[None], cluster, PAIR) for a, b in zip(first, second, strict=True))
    return float(np.mean([equivalence(parts, margin).equal < 0.05 for parts in calls]))


@pytest.mark.parametrize(("n", "seeds"), [(100, 1), (400, 1), (400, 3), (400, 5)])
@pytest.mark.parametrize("sign", [-1, 1])
def test_models_that_differ_by_the_margin_are_seldom_called_equal(n: int, seeds: int, sign: int):
    """The nominal 5 %; 600 draws have a standard error of 0.9 points."""
    assert rejected(sign * 0.05, n, seeds, margin=0.05) <= 0.075


def test_models_that_differ_by_the_margin_in_clusters_are_seldom_called_equal():
    assert rejected(0.05, 100, 1, margin=0.05, cluster=np.repeat(np.arange(100), 4)) <= 0.075


def test_models_that_are_equal_are_often_called_so_where_there_are_questions_enough():
    assert rejected(0.0, 2000, 1, margin=0.05) > 0.95
    assert rejected(0.0, 24, 1, margin=0.05) < 0.05  # two dozen questions show nothing


def test_the_tasks_of_an_arm_are_a_family():
    gold = RNG.integers(2, size=500)
    margin = RNG.normal(gold - 0.5, 1.0)
    plain = {name: two_choice(margin, gold) for name in ("a", "b", "c")}
    turned = {name: two_choice(margin + RNG.normal(0, 0.1, 500), gold) for name in plain}
    found = changes([turned], [plain], 0.05)
    family = adjusted([*found, *changes([turned], [plain])])  # those to the ceiling have no margin
    assert [c.p_equal is None for c in family] == [False] * 3 + [True] * 3
    ordered = sorted(zip(found, family, strict=False), key=lambda pair: pair[0].p_equal or 0)
    assert ordered[0][1].p_equal == pytest.approx(3 * (ordered[0][0].p_equal or 0))


# ---- the primary endpoint ---------------------------------------------------------------------------------------------


PRIMARY = "primary={arm: student, against: zero_shot, claim: equal, margin: 0.4}"
SMALL = ["split.limit={weak: 32, transfer: 16}", "evaluate.limit=16", "weak.epochs=1", "arms=[zero_shot, student, ceiling]"]


def begun(file: Path, runs: Path, *sets: str) -> ex.Run:
    run = ex.open_run(load(str(file), [*SMALL, *sets])[0], runs)
    stamp.stamp(run.layout.config, run.folder)
    return run


def test_the_endpoint_is_named_before_the_run_and_first_in_the_report(experiment_file: Path, tmp_path: Path):
    run = begun(experiment_file, tmp_path / "runs", PRIMARY)
    run.build(Progress(quiet=True))
    report, path = write_report(run)
    section = report.of(Primary)
    assert section.primary is not None
    assert section.primary_named is not None
    assert (section.primary_named.evaluations, section.primary_named.changes) == (0, 0)
    assert section.primary.shown == (section.primary.p < 0.05)
    low, high = section.primary.ci90
    assert section.primary.shown == (low is not None and high is not None and low > -0.4 and high < 0.4)
    assert next(iter(report.sections)) is Primary
    page = (path.parent / "report.html").read_text(encoding="utf-8")
    assert "within 40 points of each other" in page
    assert "before any evaluation was there" in page

    # The same again leaves no stamp; other settings do; another endpoint comes too late, and the report says so.
    begun(experiment_file, tmp_path / "runs", PRIMARY)
    assert len(stamp.read(run.folder).starts) == 1
    begun(experiment_file, tmp_path / "runs", PRIMARY, "evaluate.limit=12")
    assert len(stamp.read(run.folder).starts) == 2
    again = begun(experiment_file, tmp_path / "runs", "primary={claim: above}")
    again.build(Progress(quiet=True))
    report, _ = write_report(again)
    named = report.of(Primary).primary_named
    assert named is not None
    assert named.evaluations > 0
    assert any("exploratory too" in getattr(block, "text", "") for block in report.of(Primary).terminal(report))


def test_without_an_endpoint_there_is_no_section(report: dict[str, Any]):
    assert report["primary"] is None


def test_altered_stamps_are_one_clear_error(tmp_path: Path):
    (tmp_path / stamp.STAMPS).write_text('[{"time": 3}]')
    one_clear_error(lambda: stamp.read(tmp_path), "cut or altered, so nobody can tell when", names=stamp.STAMPS)


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ("primary={claim: equal}", "claim: equal needs a margin"),
        ("primary={claim: above, margin: 0.1}", "margin: above has none"),
        ("primary={arm: studnet}", r"primary\.arm: no arm .studnet. here.*Did you mean"),
        ("primary={against: student}", "can't be compared with itself"),
        ("primary={method: logconf}", r"primary\.method: no method .logconf. here"),
        ("primary={claim: equal, margin: 2}", "less than 1"),
    ],
)
def test_mistakes_in_an_endpoint_are_one_clear_error(experiment_file: Path, sets: str, message: str):
    one_clear_error(lambda: load(str(experiment_file), [sets]), message)


def test_an_endpoint_on_a_task_that_is_not_there(experiment_file: Path, tmp_path: Path):
    config = load(
        str(experiment_file), ["primary={task: w2s_ethics_probe_justise}", "safety={tasks: [w2s_ethics_probe_justice]}"]
    )[0]
    one_clear_error(lambda: ex.open_run(config, tmp_path), r"primary\.task: no task .*Did you mean")


SAFETY = "safety={tasks: [w2s_ethics_probe_utilitarianism, w2s_ethics_probe_justice], limit: 8}"


@pytest.mark.parametrize(
    ("endpoint", "message"),
    [
        ("{task: w2s_ethics_probe_utilitarianism, measure: auroc}", "are no fixed classes; use accuracy"),
        ("{task: w2s_ethics_probe_justice, against: weak}", "weak is not evaluated on w2s_ethics_probe_justice"),
        ("{task: w2s_ethics_probe_justice, against: few_shot}", r"few_shot is not evaluated on"),
    ],
)
def test_an_endpoint_that_nothing_answers_is_refused_before_anything_is_built(
    experiment_file: Path, tmp_path: Path, endpoint: str, message: str
):
    sets = [SAFETY, "arms=[zero_shot, few_shot, student, ceiling]", f"primary={endpoint}"]
    config = load(str(experiment_file), sets)[0]
    one_clear_error(lambda: ex.open_run(config, tmp_path), message, untouched=tmp_path)


def test_an_endpoint_without_an_answer_does_not_take_the_report_with_it(experiment_file: Path, tmp_path: Path):
    """Rows of one class: that there is no AUROC is known only afterwards."""
    run = begun(experiment_file, tmp_path / "runs", "primary={measure: auroc}")
    run.build(Progress(quiet=True))
    collected = collect(run)
    one_class = {
        arm: {task: replace(one, gold=np.zeros(one.n, dtype=int)) for task, one in scores.items()}
        for arm, scores in collected.training.items()
    }
    section = Primary.form(replace(collected, training=one_class))
    assert section.primary is None
    assert "has no AUROC" in (section.primary_problem or "")
    assert section.primary_named is not None


def test_a_deleted_run_was_there(experiment_file: Path, tmp_path: Path):
    run = begun(experiment_file, tmp_path / "runs", PRIMARY)
    run.build(Progress(quiet=True))
    count = len([*run.folder.glob("stages/evaluate-*")])
    with stamp.kept(run.folder):
        shutil.rmtree(run.folder)
    again = begun(experiment_file, tmp_path / "runs", "primary={claim: above}")
    starts = stamp.read(again.folder).starts
    assert [start.evaluations for start in starts] == [0, count]


def test_a_sweep_is_stamped_once_with_the_endpoints_of_its_cells(experiment_file: Path, tmp_path: Path):
    def sweep() -> list[dict[str, Any]]:
        sets = [*SMALL, "evaluate.limit=8"]
        grid = parse_grid(["primary={claim: above},{claim: differs}"])
        opened = open_sweep(str(experiment_file), sets, grid, tmp_path / "runs")
        return list(run_cells(opened, opened.cells, Progress(quiet=True)))

    outcomes = sweep()
    assert [o["status"] for o in outcomes] == ["done", "done"]
    (folder,) = (tmp_path / "runs").iterdir()
    (start,) = stamp.read(folder).starts
    assert [endpoint["claim"] for endpoint in start.primary] == ["above", "differs"]
    assert start.evaluations == 0
    for cell in (folder / "cells").iterdir():
        named = read_report(cell).of(Primary).primary_named
        assert named is not None
        assert (named.time, named.evaluations) == (start.time, 0)
    sweep()
    assert len(stamp.read(folder).starts) == 1


def test_above_with_one_seed_asks_the_exact_test_too():
    first, second = np.ones(6), np.zeros(6)
    above = Endpoint(claim="above")
    better, worse = paired_difference(first, second), paired_difference(second, first)
    assert _p(above, paired_components(first, second), better) == pytest.approx(0.5**6)
    assert _p(above, paired_components(second, first), worse) > 0.9


def test_the_stamp_stands_in_the_report_of_a_run_that_is_read_again(experiment_file: Path, tmp_path: Path):
    run = begun(experiment_file, tmp_path / "runs", PRIMARY)
    run.build(Progress(quiet=True))
    _, path = write_report(run)
    named = read_report(path).of(Primary).primary_named
    assert named is not None
    assert named.experiment == stamp.read(run.folder).starts[0].experiment
