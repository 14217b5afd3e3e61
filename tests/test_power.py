"""The power of the tests in use: over all outcomes, against t tests, and by simulation."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import multinomial, nct, t

from w2s_tasks.results.components import critical
from w2s_tasks.results.power import Design, detectable, power_of_one, power_over_seeds
from w2s_tasks.results.stats import difference_of, paired_components, paired_difference, sign_flip_p


def _over_all_outcomes(n: int, degrees: float, discordance: float, difference: float, level: float) -> float:
    """Chance that the tests themselves find it: every number of wins and losses, times its probability."""
    chance = [(discordance + difference) / 2, (discordance - difference) / 2, 1 - discordance]
    total = 0.0
    for wins in range(n + 1):
        for losses in range(n + 1 - wins):
            first = np.array([1.0] * wins + [0.0] * (n - wins))
            second = np.array([0.0] * wins + [1.0] * losses + [0.0] * (n - wins - losses))
            parts = replace(paired_components(first, second), row_df=np.asarray(degrees))
            found = difference_of(parts, n, exact=sign_flip_p(first - second))
            if found.p < level and found.value > 0:
                total += multinomial.pmf([wins, losses, n - wins - losses], n, chance)
    return total


@pytest.mark.parametrize(
    ("n", "degrees", "discordance", "difference", "level"),
    [
        *((2, 1, 0.5, 0.4, 0.9), (11, 10, 0.6, 0.4, 0.05), (12, 11, 0.9, 0.5, 0.3)),
        *((13, 12, 0.5, 0.5, 0.01), (14, 13, 0.0, 0.7, 0.05)),
        *((13, 2, 0.7, 0.6, 0.05), (12, 1.4, 0.5, 0.4, 0.3), (12, 3, 0.9, 0.8, 0.05)),
    ],
)
def test_the_power_of_one_comparison_is_that_of_the_tests_over_all_outcomes(n, degrees, discordance, difference, level):
    """The last three stand on few clusters: there the t interval is harder to leave than McNemar's test."""
    expected = _over_all_outcomes(n, degrees, max(discordance, difference), difference, level)
    assert power_of_one(Design(n, degrees, discordance), difference, level) == pytest.approx(expected)
    assert power_of_one(Design(n + 0.9, degrees, discordance), difference, level) == pytest.approx(expected)
    assert expected > 0.05


def test_one_row_shows_nothing_and_no_more_rows_differ_than_there_are():
    assert power_of_one(Design(0.4, 1, 0.5), 0.4, 0.9) == power_of_one(Design(1.6, 1, 0.5), 0.4, 0.9) == 0
    assert power_of_one(Design(30, 29, 1.7), 0.4, 0.05) == power_of_one(Design(30, 29, 1.0), 0.4, 0.05)


@pytest.mark.parametrize("seeds", [2, 5])
def test_where_questions_do_not_matter_the_power_over_seeds_is_that_of_a_t_test(seeds):
    """A t test of as many values as there are seeds; the questions' own error is of the order of 1e-12."""
    variance, level = 0.03**2 / seeds, 0.02
    found = power_over_seeds(Design(1e12, 1e12, 0.1, seeds - 1, variance, 0.0), 0.05, level)
    bar = t.isf(level / 2, seeds - 1)
    assert found == pytest.approx(nct.sf(bar, seeds - 1, 0.05 / math.sqrt(variance)), rel=1e-6)


@pytest.mark.parametrize(
    ("seen", "used"),
    # A difference of .15 is at least .15 of the questions that differ, whatever was seen: .15 (1 - .15) / 200.
    [(0.0009, 0.0009), (0.0006, 0.15 * 0.85 / 200), (0.0, 0.15 * 0.85 / 200)],
)
def test_the_power_over_seeds_has_the_degrees_of_freedom_of_both_sources(seen, used):
    seeds, difference = 0.0004, 0.15
    found = power_over_seeds(Design(200, 40, 0.2, 3, seeds, seen), difference, 0.05)
    degrees = (seeds + used) ** 2 / (seeds**2 / 3 + used**2 / 40)
    bar = float(critical(np.array(seeds), np.array(used), 3, 40, 0.95))
    assert found == pytest.approx(nct.sf(bar, degrees, difference / math.sqrt(seeds + used)))


@pytest.mark.parametrize("design", [Design(80, 79, 0.2), Design(80, 79, 0.2, 2, 1e-4, 0.002)])
@pytest.mark.parametrize(("power", "level"), [(0.8, 0.05), (0.5, 0.01)])
def test_the_detectable_difference_is_the_smallest_with_the_power(design, power, level):
    found, power_at = detectable(design, power=power, level=level), power_over_seeds if design.seed_df else power_of_one
    assert power_at(design, found, level) >= power > power_at(design, found - 1e-9, level)
    if (power, level) == (0.8, 0.05):
        assert detectable(design) == found


def test_a_difference_of_everything_is_found_for_certain():
    assert detectable(Design(50, 49, 0.1), power=1.0) <= 1
    assert power_of_one(Design(50, 49, 0.1), 1.0, 0.05) == 1
    assert Design(50, 49, 0.1) == Design(50, 49, 0.1, 0, 0.0, 0.0)  # one seed has no spread


def _found(first: np.ndarray, second: np.ndarray, level: float, cluster: np.ndarray | None = None) -> bool:
    return paired_difference(first.astype(float), second.astype(float), cluster).p < level


@pytest.mark.parametrize(("n", "discordance", "level"), [(400, 0.2, 0.05), (100, 0.1, 0.05 / 24), (60, 0.0, 0.05)])
def test_the_detectable_difference_is_found_in_80_percent_by_the_test_in_use(n, discordance, level):
    difference = detectable(Design(n, n - 1, discordance), level=level)
    share = max(discordance, difference)
    rng = np.random.default_rng(8)
    found = 0
    for _ in range(600):
        draw = rng.random(n)
        found += _found(draw < (share + difference) / 2, (draw >= (share + difference) / 2) & (draw < share), level)
    assert 0.76 < found / 600 < 0.86


def test_groups_that_change_as_wholes_are_what_a_difference_is_detected_with():
    """40 groups of 4: the difference that is found in 80 % is that of 40 questions, not of 160."""
    groups, size = 40, 4
    alone, grouped = (detectable(Design(n, groups - 1, 0.3)) for n in (groups * size, groups))
    assert grouped > 1.6 * alone
    rng, cluster = np.random.default_rng(9), np.repeat(np.arange(groups), size)
    share, found = max(0.3, grouped), 0
    for _ in range(400):
        draw = rng.random(groups)[cluster]
        first, second = draw < (share + grouped) / 2, (draw >= (share + grouped) / 2) & (draw < share)
        found += _found(first, second, 0.05, cluster)
    assert 0.74 < found / 400 < 0.88


@pytest.mark.parametrize("seeds", [3, 6])
def test_the_spread_over_seeds_is_part_of_what_can_be_detected(seeds):
    rng, n, spread = np.random.default_rng(10), 400, 0.05
    rows = 0.2 / n
    design = Design(n, n - 1, 0.2, seeds - 1, spread**2 / seeds, rows)
    difference = detectable(design)
    assert difference > 1.3 * detectable(Design(n, n - 1, 0.2))
    found, repetitions = 0, 300
    for _ in range(repetitions):
        shift = difference + spread * rng.standard_normal((seeds, 1))
        draw = rng.random(n)[None]
        first, second = draw < (0.2 + shift) / 2, (draw >= (0.2 + shift) / 2) & (draw < 0.2)
        found += _found(first, second, 0.05)
    assert 0.7 < found / repetitions < 0.9


def test_few_questions_show_only_large_differences():
    assert detectable(Design(24, 23, 0.0)) > 0.25
    assert detectable(Design(3000, 2999, 0.1)) < 0.02
    assert detectable(Design(3, 2, 0.5)) is None
    assert detectable(Design(5, 4, 0.0)) is None  # five questions that all differ one way have p = .06
    assert detectable(Design(400, 399, 0.3)) > detectable(Design(400, 399, 0.1))
    assert power_of_one(Design(400, 399, 0.2), 0.1, 0.05) > power_of_one(Design(400, 399, 0.2), 0.1, 0.01)
    several = Design(400, 399, 0.2, 2, 1e-9, 0.2 / 400)
    assert power_over_seeds(several, 0.1, 0.05) == pytest.approx(power_of_one(Design(400, 399, 0.2), 0.1, 0.05), abs=0.05)
