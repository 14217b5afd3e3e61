"""`w2s power`: statsmodels' and the report's own numbers, drawn experiments, a pilot's report, mistakes of the user."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from trainers.commands.power import of_report
from w2s_tasks.errors import UserError
from w2s_tasks.results.planning import Expected, drawn, planned, seeds_needed, shared_variance
from w2s_tasks.results.stats import paired_difference

EXPECTED = Expected(0.75, 0.80, 0.88, discordance=0.18, seed_sd=0.02)


def test_drawn_models_have_the_accuracies_and_differ_as_often_as_asked():
    rng = np.random.default_rng(0)
    accuracies = np.broadcast_to(np.array([0.8, 0.8, 0.6])[None, :, None], (40, 3, 2))
    rows = drawn(accuracies, 2000, Expected(0.8, 0.8, 0.8, discordance=0.15), rng)
    assert rows.mean(axis=(0, 2, 3)) == pytest.approx([0.8, 0.8, 0.6], abs=0.01)
    assert (rows[:, 0] != rows[:, 1]).mean() == pytest.approx(0.15, abs=0.01)
    assert (rows[:, 0, 0] != rows[:, 0, 1]).mean() < 0.12  # two trainings of one model differ less


def test_independent_models_can_not_differ_more_than_they_do():
    assert shared_variance(2 * 0.75 * 0.25, 0.75) == 0
    assert 0.7 < shared_variance(0.1, 0.75) < 1
    with pytest.raises(ValueError, match="differ on 38% of them; 45% is not"):
        shared_variance(0.45, 0.75)


def test_with_one_seed_power_is_that_of_mcnemars_test():
    """By simulation through the report's own test."""
    rng = np.random.default_rng(4)
    accuracies = np.broadcast_to(np.array([0.80, 0.75])[None, :, None], (400, 2, 1))
    pairs = drawn(accuracies, 400, EXPECTED, rng)[:, :, 0]
    found = np.mean([paired_difference(first, second).p < 0.05 for first, second in pairs])
    assert planned(EXPECTED, 400, 1).power == pytest.approx(found, abs=0.08)


def test_with_several_seeds_power_is_that_of_the_reports_test():
    rng = np.random.default_rng(5)
    accuracies = np.array([0.80, 0.75])[None, :, None] + 0.02 * rng.standard_normal((400, 2, 4))
    pairs = drawn(accuracies, 400, EXPECTED, rng)
    found = np.mean([paired_difference(first, second).p < 0.05 for first, second in pairs])
    assert planned(EXPECTED, 400, 4).power == pytest.approx(found, abs=0.08)


def test_what_is_called_detectable_is_found_four_times_in_five():
    plan = planned(EXPECTED, 600, 5)
    assert plan.detectable is not None
    expected = Expected(0.75, 0.80, 0.88, discordance=0.18, seed_sd=0.02, difference=plan.detectable)
    assert planned(expected, 600, 5, draws=800).power == pytest.approx(0.8, abs=0.1)


def test_more_of_anything_shows_more():
    few, many = planned(EXPECTED, 200, 3), planned(EXPECTED, 2000, 10)
    assert few.power < many.power
    assert few.gate <= many.gate
    assert (few.pgr_width or 9) > (many.pgr_width or 9)
    assert (few.detectable or 1) > (many.detectable or 1)
    family = planned(Expected(**{**vars(EXPECTED), "tests": 24}), 600, 5)
    assert family.power < planned(EXPECTED, 600, 5).power
    equal = [planned(Expected(**{**vars(EXPECTED), "margin": m}), 600, 5).equal for m in (0.02, 0.08)]
    assert (equal[0] or 0) < (equal[1] or 0)
    alone, among = (planned(Expected(**{**vars(EXPECTED), "margin": 0.06, "tests": t}), 600, 5).equal for t in (1, 24))
    assert (alone or 0) > (among or 0)


def test_without_a_gap_the_gate_stays_shut():
    assert planned(Expected(0.8, 0.8, 0.8), 400, 3).gate < 0.05
    below = planned(Expected(0.9, 0.8, 0.7, discordance=0.15), 400, 3)
    assert (below.gate, below.pgr_width) == (0, None)


def test_the_seeds_that_a_difference_takes():
    needed = seeds_needed(Expected(0.75, 0.80, 0.88, seed_sd=0.02), 800)
    assert needed is not None
    assert 3 <= needed <= 10
    assert planned(EXPECTED, 800, needed + 2).power > 0.7
    assert seeds_needed(Expected(0.75, 0.755, 0.88, seed_sd=0.05), 200) is None


def test_a_pilots_report_says_what_to_expect(run_folder: Path):
    pilot = of_report(str(run_folder))
    assert 0 < pilot.expected.weak < 1
    assert pilot.n > 0
    assert pilot.notes[0].startswith("pilot: ")


def test_a_folder_without_a_report(tmp_path: Path):
    with pytest.raises(UserError, match="not a readable report"):
        of_report(str(tmp_path))


def w2s(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "trainers.cli", "power", *arguments], capture_output=True, text=True, check=False
    )


def test_accuracies_near_one_are_planned_with_what_models_of_them_can_differ_on():
    done = w2s("--weak", ".95", "--student", ".97", "--ceiling", ".99", "--n", "200", "--seeds", "2")
    assert done.returncode == 0, done.stderr


def test_the_command_prints_a_table_and_says_how_many_seeds():
    done = w2s("--weak", ".75", "--student", ".8", "--ceiling", ".88", "--n", "300", "--seeds", "1,3", "--margin", ".03")
    assert done.returncode == 0, done.stderr
    assert "equal within 3" in done.stdout
    assert "seeds for 80% power" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--weak, --student and --ceiling, or a pilot's run folder"),
        (("--weak", ".7", "--student", ".7", "--ceiling", ".8", "--seeds", "a"), "whole numbers from 1"),
        (("--weak", ".7", "--student", ".7", "--ceiling", ".8", "--discordance", ".45"), "is not between 0 and that"),
        (("nowhere",), "not a readable report"),
        (("--weak", ".7", "--student", ".7", "--ceiling", ".8", "--difference", "nan"), "less than or equal to 0.99"),
    ],
)
def test_mistakes_are_one_clear_error(arguments: tuple[str, ...], message: str):
    done = w2s(*arguments)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
