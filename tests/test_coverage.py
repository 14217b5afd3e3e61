"""Short forms of scripts/coverage: what intervals cover and tests find, simulated."""

from __future__ import annotations

import json

import pytest
from maintenance.coverage import BAND, MeanSetting, PairSetting, Setting, cover, cover_mean, cover_pair, main
from maintenance.coverage_answers import RankSetting, cover_rank
from maintenance.coverage_auroc import AurocSetting, cover_auroc


@pytest.mark.parametrize(
    "setting",
    [
        *(Setting(s, 200, gap) for gap in (0.02, 0.2) for s in (1, 3, 5, 10)),
        *(Setting(s, 400, 0.1, acc_sd=0.1) for s in (1, 3, 5, 10)),
        Setting(3, 400, 0.1, pgr_sd=0.5),
    ],
    ids=str,
)
def test_nominal_95_percent_intervals_cover_93_to_97_over_seeds(setting):
    """A short form of scripts/coverage; with 2,500 repetitions the standard error of a coverage is 0.44 points."""
    found = cover(setting, repetitions=2500)
    low, high = BAND[0] - 0.005, BAND[1] + 0.005
    # Where most repetitions leave PGR undefined, the set is all of the line in them: it holds the truth too often, never too
    # seldom, and the report gives no number.
    seldom = found.defined < 0.5
    for name in ("pgr", "gap", "student_to_weak"):
        assert low <= getattr(found, name) <= (1 if seldom and name == "pgr" else high), name


def test_rows_alone_do_not_cover_the_truth_over_seeds():
    found = cover(Setting(3, 400, 0.1, acc_sd=0.1), repetitions=400)
    assert found.rows_only < 0.3


MANY = [
    PairSetting(((100, 1),), 0.2, 0.1),
    PairSetting(((50, 4),), 0.2, 0.05, whole=1.0),
    PairSetting(((200, 1),), 0.25, 0.1, seeds=3, shared=1.0),
    PairSetting(((50, 4),), 0.25, 0.1, whole=0.5, seeds=3, shared=1.0),
]


FEW_DIFFER = [  # the settings in which intervals over rows, or over clusters without pseudo-clusters, fail most
    PairSetting(((25, 4),), 0.04),
    PairSetting(((20, 5),), 0.04),
    PairSetting(((50, 4),), 0.02),
    PairSetting(((8, 5),), 0.2, 0.05),
    PairSetting(((3, 30), (40, 3)), 0.2, 0.05),
    PairSetting(((3, 50), (60, 2)), 0.2, 0.05, whole=0.5),
    PairSetting(((100, 1),), 0.02, seeds=3),
    PairSetting(((25, 4),), 0.0, base=0.99),
]


@pytest.mark.parametrize("setting", [*MANY, *FEW_DIFFER], ids=str)
def test_differences_and_accuracies_cover_and_agree_with_their_tests(setting):
    """A short form of scripts/coverage: with 300 repetitions the standard error of a coverage is 1.3 points."""
    found = cover_pair(setting, repetitions=300)
    most = 0.99 if setting in MANY else 1.0  # where few units differ the interval is wider than it need be
    assert 0.91 <= found.difference <= most
    assert found.accuracy >= 0.91
    assert found.disagreement == 0
    if setting.whole == 1 and setting.cluster is not None and setting.lost:
        assert found.unclustered < 0.8


@pytest.mark.parametrize(
    "setting", [MeanSetting(1, 2, 0.0), MeanSetting(1, 3, 0.08), MeanSetting(3, 2, 0.05, 0.05)], ids=str
)
def test_means_over_tasks_cover(setting):
    found = cover_mean(setting, repetitions=200)
    assert found.difference >= 0.9
    assert found.accuracy is None or found.accuracy >= 0.9


def test_the_coverage_command_prints_json(capsys):
    main(["--json", "--repetitions", "2"])
    data = json.loads(capsys.readouterr().out)
    assert {row["setting"]["seeds"] for row in data["pgr"]} >= {1, 3, 5, 10}


@pytest.mark.parametrize(
    "setting",
    [RankSetting(5, 0.0), RankSetting(5, 0.9), RankSetting(8, 0.8), RankSetting(16, 0.95), RankSetting(15, 0.5, 3, 1.0)],
)
def test_rank_correlation_intervals_cover(setting):
    found = cover_rank(setting, repetitions=600)
    assert found.rho >= 0.93
    assert (found.rejected is None) == (setting.size > 1)


def test_a_rank_correlation_of_nothing_is_seldom_significant():
    assert cover_rank(RankSetting(12, 0.0), repetitions=1000).rejected <= 0.07


@pytest.mark.parametrize(
    "setting",
    [AurocSetting(24), AurocSetting(100, 0.15), AurocSetting(100, first=0.95, second=0.85), AurocSetting(200, size=4),
     AurocSetting(100, seeds=3, spread=0.1)],
    ids=str,
)  # fmt: skip
def test_intervals_of_auroc_and_its_differences_cover(setting):
    found = cover_auroc(setting, repetitions=250)
    assert found.area >= 0.91
    assert found.difference >= 0.91


def test_equal_aurocs_seldom_differ_significantly():
    assert cover_auroc(AurocSetting(100, first=0.7, second=0.7), repetitions=400).rejected <= 0.08
