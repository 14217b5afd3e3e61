"""A bench runs every pair of task and supervisor, keeps their reports, and pools what they say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from trainers.cli import app
from trainers.commands.bench import open_bench
from trainers.config.bench import Endpoint, load_bench, merged
from trainers.config.reading import load, shipped
from trainers.report.bench import claim_p
from trainers.report.pooled import Cell, Contrast, contrast, difference, effect, recovered
from trainers.report.sections.joint import Joint, JointArm
from w2s_tasks.errors import UserError
from w2s_tasks.results.pooling import pooled
from w2s_tasks.results.ranks import Rank, ranks

BENCH = """\
include_path: [own_tasks]
task: own_reviews
split: {{limit: {{weak: 48, transfer: 32}}}}
strong: {{model: {strong}, r: 4, lr: 1e-2, batch_size: 16}}
methods: [xent, harden]
arms: [zero_shot, student, ceiling]
seeds: [0]
evaluate: {{limit: 16}}
safety: {{tasks: [own_reviews], limit: 8}}
bench:
  tasks: {{a: {{split: {{seed: 1}}}}, b: {{split: {{seed: 2}}}}, c: {{split: {{seed: 3}}}}}}
  supervisors:
    encoder: {{weak: {{model: {encoder}, text: text, lr: 2e-3}}}}
    decoder: {{weak: {{model: {strong}, trainer: lora, r: 4, lr: 1e-2}}, tasks: [a], methods: [xent]}}
  pairs: {{a.encoder: {{weak: {{epochs: 2}}}}}}
  endpoints:
    - {{method: harden, against: zero_shot}}
    - {{arm: ceiling, against: student, against_method: harden, claim: not_below, margin: 0.9}}
    - {{method: xent, supervisor: decoder}}
"""


@pytest.fixture
def bench_file(tmp_path: Path, own_task: Path, encoder_folder: Path, causal_model: Callable[[str], Path]) -> Path:
    path = tmp_path / "small_bench.yaml"
    path.write_text(BENCH.format(encoder=encoder_folder, strong=causal_model("llama")), encoding="utf-8")
    return path


def test_experiments_are_the_common_keys_with_supervisors_tasks_and_pairs(bench_file: Path) -> None:
    title, bench, found = load_bench(str(bench_file), ["seeds=[4]"])
    assert title == "small_bench"
    assert list(found) == [("a", "encoder"), ("b", "encoder"), ("c", "encoder"), ("a", "decoder")]
    assert [one.seeds for one in found.values()] == [[4]] * 4
    assert [one.split.seed for one in found.values()] == [1, 2, 3, 1]
    assert [one.weak.trainer for one in found.values()] == ["classifier"] * 3 + ["lora"]
    assert [getattr(one.weak, "epochs", None) for one in found.values()][:2] == [2, 1] or found[
        "a", "encoder"
    ].weak.epochs == 2
    assert found["a", "decoder"].methods == ["xent"]
    assert merged({"weak": {"trainer": "lora", "r": 4}}, {"weak": {"trainer": "probe"}}) == {"weak": {"trainer": "probe"}}
    assert len(bench.endpoints) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("pairs: {a.encoder", "pairs: {a.encode"), r"bench.pairs: no 'a.encode'. Did you mean 'a.encoder'"),
        (("tasks: [a]", "tasks: [d]"), r"bench.supervisors.decoder.tasks: no 'd'"),
        (("supervisor: decoder", "supervisor: deco"), r"bench.endpoints: supervisor: no 'deco'"),
        (("claim: not_below, margin: 0.9", "claim: not_below"), r"not_below and equal need one"),
        (("split: {seed: 2}", "splits: {seed: 2}"), r"b.encoder: the experiment: splits: unknown key"),
        (("bench:\n", "benches:\n"), r"no section `bench`"),
    ],
)
def test_what_does_not_fit_is_named(bench_file: Path, change: tuple[str, str], message: str) -> None:
    bench_file.write_text(bench_file.read_text().replace(*change))
    with pytest.raises(UserError, match=message):
        load_bench(str(bench_file))


def test_the_shipped_bench_is_one_and_no_experiment() -> None:
    _, bench, found = load_bench("w2s_bench_small")
    assert len(found) == len(bench.cells()) == 7
    assert all(len(one.seeds) == 5 and "confidence_matched" in one.arms for one in found.values())
    assert "w2s_bench_small" not in shipped()
    with pytest.raises(UserError, match="run it with w2s bench"):
        load("w2s_bench_small")


def test_pieces_are_kept_and_the_report_is_of_those_alone(bench_file: Path, tmp_path: Path) -> None:
    kept, command = tmp_path / "kept", ["bench", str(bench_file), "--quiet", "--reports", str(tmp_path / "kept")]
    first = CliRunner().invoke(app, [*command, "--runs-dir", str(tmp_path / "one"), "--shard", "1/2"])
    assert first.exit_code == 0, first.output
    assert sorted(path.name for path in kept.iterdir()) == ["a.encoder.json", "bench.json", "c.encoder.json"]
    assert "Not there yet: b.encoder, a.decoder" in first.output
    second = CliRunner().invoke(app, [*command, "--runs-dir", str(tmp_path / "two")])
    assert second.exit_code == 0, second.output
    assert sorted(path.name for path in (tmp_path / "two" / "small_bench" / "cells").iterdir()) == ["a.decoder", "b.encoder"]

    again = CliRunner().invoke(app, [*command, "--runs-dir", str(tmp_path / "three"), "--report"])
    assert again.exit_code == 0, again.output
    report = json.loads((kept / "bench.json").read_text())
    assert report == json.loads((tmp_path / "three" / "small_bench" / "bench.json").read_text())
    assert report["missing"] == []
    ran = (str(tmp_path / "one"), str(tmp_path / "two"))
    assert not any(folder in path.read_text() for folder in ran for path in kept.iterdir())
    assert [one["tasks"] for one in report["endpoints"]] == [3, 3, 1]
    assert [one["p_holm"] is None for one in report["endpoints"]] == [False, False, True]
    gains = {(pair["arm"], pair["method"]): pair for pair in report["gains"]}
    student = gains["student", "harden"]["effect"]
    for task in student["tasks"]:
        own = json.loads((kept / f"{task['task']}.encoder.json").read_text())
        means = {(mean["arm"], mean["method"]): mean["acc"] for mean in own["arm_means"]}
        assert task["value"] == pytest.approx(means["student", "harden"] - means["weak", "xent"])
    assert {pair["safety"] for pair in report["safety"]} == {"own_reviews"}

    other = CliRunner().invoke(app, [*command, "--set", "seeds=[0, 1, 2]", "--dry-run"])
    assert isinstance(other.exception, UserError)
    assert "of another configuration of a.encoder" in str(other.exception)


def joint(effect: np.ndarray, rng: np.random.Generator, seeds: int = 5, n: int = 300) -> Joint:
    """Three arms (weak, student, ceiling) with these true accuracies, two sources of error."""
    own = np.diag([0.02, 0.02, 0.01]) ** 2 / seeds
    asked = np.full((3, 3), 0.015**2) + np.diag([0.01**2] * 3)
    found = rng.multivariate_normal(effect, own + asked)
    return Joint(
        task="t",
        n=n,
        seeds=seeds,
        arms=[JointArm(arm=arm, method=m) for arm, m in (("weak", "xent"), ("student", "xent"), ("ceiling", "xent"))],
        accuracy=found.tolist(),
        seed_covariance=own.tolist(),
        question_covariance=asked.tolist(),
    )


@pytest.mark.parametrize(("tau", "tasks"), [(0.0, 4), (0.05, 4), (0.1, 4), (0.05, 8)])
def test_intervals_over_tasks_hold_what_they_say(tau: float, tasks: int) -> None:
    rng = np.random.default_rng([tasks, int(100 * tau)])
    mean, new = [], []
    for _ in range(250):
        own = 0.03 + tau * rng.standard_normal(tasks)
        v = np.full(tasks, 0.018**2)
        found = pooled(own + np.sqrt(v) * rng.standard_normal(tasks), v)
        mean.append(found.overall.low <= 0.03 <= found.overall.high)
        new.append(found.new_task.low <= 0.03 + tau * rng.standard_normal() <= found.new_task.high)
    assert np.mean(mean) > 0.91
    assert np.mean(new) > 0.91


def test_an_error_that_all_tasks_share_is_not_made_smaller_by_pooling() -> None:
    rng = np.random.default_rng(5)
    hits = []
    for _ in range(250):
        common = 0.03 * rng.standard_normal()
        found = pooled(-0.05 + common + 0.01 * rng.standard_normal(6), np.full(6, 0.01**2), shared=0.03**2)
        hits.append(found.overall.low <= -0.05 <= found.overall.high)
    assert 0.91 < np.mean(hits) < 1


def test_a_pgr_over_tasks_covers_the_true_one() -> None:
    rng = np.random.default_rng(8)
    hits = []
    for _ in range(60):
        cells = []
        for task in "abcd":
            gap = 0.1 + 0.02 * rng.standard_normal()
            cells.append(Cell(task, "s", joint(np.array([0.7, 0.7 + 0.4 * gap, 0.7 + gap]), rng), ()))
        found = recovered(cells, ("student", "xent"), ("ceiling", None))
        if found is not None:
            low, high = (-9.0 if x is None and i == 0 else 9.0 if x is None else x for i, x in enumerate(found[1]))
            hits.append(low <= 0.4 <= high)
    assert len(hits) > 40
    assert np.mean(hits) > 0.9


def test_no_gap_no_pgr_and_no_mean_over_two_tasks() -> None:
    rng = np.random.default_rng(2)
    cells = [Cell(task, "s", joint(np.array([0.7, 0.71, 0.7]), rng), ()) for task in "abcd"]
    assert recovered(cells, ("student", "xent"), ("ceiling", None)) is None
    two = [found for cell in cells[:2] if (found := contrast(cell, difference(("student", None), ("weak", None))))]
    assert effect(two) is None
    with pytest.raises(ValueError, match="at least 3"):
        pooled([0.1, 0.2], [0.01, 0.01])


def test_estimates_are_drawn_towards_the_mean_the_more_the_less_is_known_of_them() -> None:
    found = pooled([0.0, 0.02, 0.04, 0.30], [1e-4, 1e-4, 1e-4, 0.02])
    assert found.overall.low < found.overall.mean < found.overall.high
    assert abs(found.each[0].mean - 0.0) < 0.01
    assert found.each[3].mean < 0.15
    assert found.new_task.high - found.new_task.low > found.overall.high - found.overall.low


def test_claims_are_one_sided_but_for_a_difference() -> None:
    contrasts = [Contrast("a", v, 1e-4, 1e-4, 5) for v in (0.030, 0.034, 0.028, 0.031)]
    asked: dict[str, Any] = {"contrasts": contrasts, "shared": False}
    above, differs = claim_p(Endpoint(), **asked), claim_p(Endpoint(claim="differs"), **asked)
    assert differs == pytest.approx(2 * above)
    assert claim_p(Endpoint(claim="not_below", margin=0.05), **asked) < above
    assert claim_p(Endpoint(claim="equal", margin=0.01), **asked) > 0.5
    assert claim_p(Endpoint(claim="equal", margin=0.2), **asked) < 0.05


def test_ranks_are_open_where_pairs_cannot_be_told_apart() -> None:
    values = {"a": 0.9, "b": 0.8, "c": 0.79}

    def compare(first: str, second: str) -> tuple[float, float]:
        gap = values[first] - values[second]
        return gap, 0.001 if abs(gap) > 0.05 else 0.6

    assert ranks(list(values), compare) == {"a": Rank(1, 1), "b": Rank(2, 3), "c": Rank(2, 3)}


def test_an_interrupted_bench_keeps_what_is_finished(bench_file: Path, tmp_path: Path) -> None:
    found = open_bench(str(bench_file), [], tmp_path / "runs", reports=tmp_path / "kept")
    report, path = found.report()
    assert len(report.missing) == 4
    assert path.is_file()
    assert not (tmp_path / "kept").exists()
