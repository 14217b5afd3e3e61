"""Gains over the supervisor and method against method: by hand, and intervals that cover where differences are not zero."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from trainers.report.section import Report
from trainers.report.sections.methods import MethodPair, Methods
from w2s_tasks.results.components import crossed
from w2s_tasks.results.gains import APART, errors_removed, pgr_difference
from w2s_tasks.results.gap import gap_components, in_fieller_set
from w2s_tasks.results.stats import Difference

SIMULATIONS = 2000


def rows(*counts: tuple[int, ...]) -> np.ndarray:
    """Models' correctness, one seed each, from how many questions have each pattern: (count, first, second, ...)."""
    patterns = np.concatenate([np.repeat([pattern], count, axis=0) for count, *pattern in counts]).astype(float)
    return patterns.T[:, None, :]


def test_the_share_of_errors_removed_by_hand():
    weak, student = rows((60, 1, 1), (10, 1, 0), (20, 0, 1), (10, 0, 0))
    found = errors_removed(weak, student)
    assert found.value == pytest.approx((80 - 70) / 30)
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.value < found.high < 1
    worse = errors_removed(student, weak)
    assert worse.value == pytest.approx(-10 / 20)
    perfect, same = np.ones((1, 50)), np.ones((1, 50))
    assert errors_removed(perfect, same).value is None  # no error to remove


def test_a_difference_in_pgr_by_hand():
    weak, ceiling, first, second = rows(
        (60, 1, 1, 1, 1), (20, 0, 1, 1, 0), (10, 0, 1, 0, 0), (5, 0, 1, 0, 1), (5, 0, 0, 0, 0)
    )
    found = pgr_difference(first, second, weak, ceiling)
    assert found.value == pytest.approx((20 - 5) / 35)
    back = pgr_difference(second, first, weak, ceiling)
    assert back.value == pytest.approx(-15 / 35)
    assert (back.low, back.high) == pytest.approx((-found.high, -found.low))  # type: ignore[operator]
    assert pgr_difference(first, second, weak, weak).value is None  # no gap


def simulated(accuracy: list[float], seeds: int, n: int, spread: float, rng: np.random.Generator) -> np.ndarray:
    """Correctness of models whose questions are of common difficulty, shape [models, simulations, seeds, n].

    ``spread``: the standard deviation that a seed adds to the threshold of every model but the first.
    """
    from scipy.stats import norm

    difficulty = rng.standard_normal((SIMULATIONS, 1, n))
    out = []
    for number, share in enumerate(accuracy):
        own = rng.standard_normal((SIMULATIONS, seeds, n))
        moved = spread * rng.standard_normal((SIMULATIONS, seeds, 1)) if number else 0.0
        latent = np.sqrt(0.5) * (difficulty + own) + moved
        out.append(latent < norm.ppf(share) * np.sqrt(1 + (spread**2 if number else 0.0)))
    return np.stack(out).astype(float)


@pytest.mark.parametrize(("seeds", "spread"), [(1, 0.0), (3, 0.1), (5, 0.1)])
@pytest.mark.parametrize("accuracy", [(0.7, 0.8), (0.7, 0.7), (0.6, 0.9), (0.8, 0.75)])
def test_the_interval_of_errors_removed_covers(seeds: int, spread: float, accuracy: tuple[float, float]):
    weak, student = simulated(list(accuracy), seeds, 200, spread, np.random.default_rng(seeds))
    parts = gap_components(weak, student, np.ones_like(weak))
    truth = (accuracy[1] - accuracy[0]) / (1 - accuracy[0])
    covered = float(in_fieller_set(parts, np.array([truth])).mean())
    assert 0.935 <= covered <= 0.985, covered


@pytest.mark.parametrize(("seeds", "spread"), [(1, 0.0), (3, 0.1), (5, 0.1)])
@pytest.mark.parametrize("accuracy", [(0.6, 0.75, 0.75, 0.85), (0.6, 0.8, 0.7, 0.9), (0.65, 0.65, 0.75, 0.85)])
def test_the_interval_of_a_difference_in_pgr_covers(seeds: int, spread: float, accuracy: tuple[float, ...]):
    weak, first, second, ceiling = simulated(list(accuracy), seeds, 300, spread, np.random.default_rng(7 + seeds))
    parts = crossed(np.stack([first - second, ceiling - weak], axis=-3), None, APART)
    truth = (accuracy[1] - accuracy[2]) / (accuracy[3] - accuracy[0])
    covered = float(in_fieller_set(parts, np.array([truth])).mean())
    assert 0.935 <= covered <= 0.985, covered


def pair(first: str, second: str, value: float, p: float) -> MethodPair:
    difference = Difference(value, 0.01, value - 0.02, value + 0.02, p, 100, 3)
    return MethodPair(first=first, second=second, seeds=[0], difference=difference, p_holm=p, pgr=None, pgr_ci95=None)


def test_what_is_said_of_methods():
    told = list(Methods(gains=[], method_pairs=[pair("a", "b", 0.03, 0.01), pair("a", "c", -0.05, 0.02)]).verdicts())
    assert told[0].startswith("a is better than b by 3.0 points (Holm p 0.010 over 2 pairs")
    assert told[1].startswith("c is better than a by 5.0 points")
    (same,) = Methods(gains=[], method_pairs=[pair("a", "b", 0.01, 0.4)]).verdicts()
    assert same == (
        "No method differs significantly from another one (1 pair, Holm); differences of up to 3.0 points are not excluded."
    )
    assert list(Methods(gains=[], method_pairs=[]).verdicts()) == []


def test_a_run_of_two_methods_compares_them(experiment_file: Path, tmp_path: Path):
    from trainers.config.reading import load
    from trainers.flow.progress import Progress
    from trainers.flow.run import open_run
    from trainers.report.report import write_report

    sets = ["methods=[xent,logconf,relabel]", "seeds=[0,1]", "arms=[zero_shot,student,ceiling,random_labels]"]
    run = open_run(load(str(experiment_file), sets)[0], tmp_path)
    run.build(Progress(quiet=True))
    report, path = write_report(run)
    found = Report.read(json.loads(path.read_text()), path).of(Methods)
    means = {(m["arm"], m["method"]): m["acc"] for m in report.json()["arm_means"]}
    assert [(p.first, p.second) for p in found.method_pairs] == [
        ("xent", "logconf"),
        ("xent", "relabel"),
        ("logconf", "relabel"),
    ]
    for one in found.method_pairs:
        assert one.difference.value == pytest.approx(means["student", one.first] - means["student", one.second])
        assert one.p_holm >= one.difference.p
    gains = {gain.group: gain for gain in found.gains}
    assert set(gains) == {group for group in means if group[0] != "weak"}
    for group, gain in gains.items():
        assert gain.to_weak.value == pytest.approx(means[group] - means["weak", "xent"])
        assert (gain.to_zero_shot is None) == (group[0] == "zero_shot")
        assert gain.errors_removed == pytest.approx(gain.to_weak.value / (1 - means["weak", "xent"]))
    page = (run.folder / "report.html").read_text()
    assert "Gains, and method against method" in page
