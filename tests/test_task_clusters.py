"""Questions of one source are clusters: BoolQ's passages and commonsense's contrast pairs, as choices and as text."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from maintenance.coverage_pairs import answered, cover, dyadic_effect
from test_public_sets import lm_eval

from w2s_tasks.plugin.manager import W2STaskManager
from w2s_tasks.results.read import read_evaluation
from w2s_tasks.rows import sources
from w2s_tasks.scoring import generated, metrics

PASSAGES = ["Water boils.", "Iron rusts.", "Water boils.", "Birds sing.", "Iron rusts.", "Water boils."]
SCENARIOS = [
    "I gave my neighbour the keys before she left.",
    "I gave my neighbour no keys before she left.",
    "I fed the dog.",
    "I took a book from the shelf and read it.",
    "I took a book from the shelf and tore it up.",
    'So | a long story, which is in another task: "no".',
]
CLUSTERS = {"w2s_boolq": [0, 1, 0, 2, 1, 0], "w2s_ethics_commonsense": [0, 0, 1, 2, 2]}


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small sets in the hub's layout."""
    root, splits = tmp_path / "data", ("train", "validation", "test")
    asked = [{"question": f"is it {i}", "answer": i % 2 == 0, "passage": text} for i, text in enumerate(PASSAGES)]
    ethics = [{"label": i % 2, "input": text} for i, text in enumerate(SCENARIOS)]
    for split in splits:
        _write(root / "google" / "boolq" / f"{split}.jsonl", asked)
        _write(root / "hendrycks" / "ethics" / "commonsense" / f"{split}.jsonl", ethics)
    files = [{"split": split, "path": f"commonsense/{split}.jsonl"} for split in splits]
    card = yaml.safe_dump({"configs": [{"config_name": "commonsense", "data_files": files}]})
    (root / "hendrycks" / "ethics" / "README.md").write_text(f"---\n{card}---\n", encoding="utf-8")
    monkeypatch.setenv("W2S_DATA", str(root))
    return root


def test_questions_of_one_source_are_one_cluster_for_lm_eval_and_for_a_report(made: Path, tmp_path: Path):
    names = [f"{name}{twin}" for name, twin in itertools.product(CLUSTERS, ("", "_gen"))]
    results, found = lm_eval(names, tmp_path / "out"), read_evaluation(tmp_path / "out")
    for name in names:
        scores, clusters = found[name], CLUSTERS[name.removesuffix("_gen")]
        assert scores.cluster is not None
        assert scores.cluster.tolist() == clusters
        expected = metrics.clustered_stderr(scores.correct, np.array(clusters))
        assert results[name]["acc_stderr,none"] == pytest.approx(expected)
        assert results[name]["acc,none"] == pytest.approx(scores.correct.mean())
        assert not [key for key in results[name] if key.startswith("em,")]  # the papers have no exact match there


def test_training_rows_and_long_scenarios_have_no_clusters(made: Path):
    assert "w2s_group" not in sources.boolq()["train"].column_names
    for subtask, splits in (("commonsense", ["train"]), ("commonsense_long", ["train", "validation", "test"])):
        rows = sources.ethics(subtask)
        assert all("w2s_group" not in rows[split].column_names for split in splits)


def test_a_limit_that_parts_a_cluster_is_read(made: Path, tmp_path: Path):
    lm_eval(["w2s_ethics_commonsense", "w2s_boolq"], tmp_path / "out", limit=4)
    found = read_evaluation(tmp_path / "out")
    assert found["w2s_ethics_commonsense"].cluster.tolist() == [0, 0, 1, 2]
    assert found["w2s_boolq"].stderr["acc"] > 0


@pytest.mark.parametrize(
    ("name", "clusters", "largest"),
    [("w2s_boolq", 2938, 9), ("w2s_ethics_commonsense", 1187, 2), ("w2s_ethics_commonsense_hard", 939, 4)],
)
def test_the_real_clusters_are_as_the_readmes_say(real_data: Path, name: str, clusters: int, largest: int):
    manager = W2STaskManager()
    task, twin = (manager.load([n])["tasks"][n] for n in (name, f"{name}_gen"))
    groups = task.eval_docs["w2s_group"][:]
    sizes = np.bincount(groups)
    assert (len(sizes), sizes.max()) == (clusters, largest)
    assert groups == twin.eval_docs["w2s_group"][:]


def test_twins_give_the_cluster_and_exact_match_only_where_it_is_the_papers():
    doc = {"label": 1, "w2s_group": 7}
    clustered = generated.clustered_wrong(doc, ["wrong"]), generated.clustered_yes_no(doc, ["yes"])
    assert all(scores["acc"] == (1, 1, 1, 7) and "em" not in scores for scores in clustered)
    grouped = generated.grouped_yes_no(doc, ["yes"]), generated.grouped_reasonable(doc, ["reasonable"])
    assert all(scores["acc"] == scores["em"] == scores["em_stderr"] == (1, 1, 1, 7) for scores in grouped)
    assert (
        generated.grouped_yes_no(doc, [generated.NoReply()]) == generated.clustered_wrong(doc, [generated.NoReply()]) == {}
    )


def test_choices_give_the_cluster_and_exact_match_only_where_it_is_the_papers():
    doc, answers = {"label": 1, "w2s_group": 7}, [(-2.0, False), (-1.0, True)]
    clustered, grouped = metrics.clustered_binary(doc, answers), metrics.grouped_binary(doc, answers)
    assert clustered["acc"] == clustered["acc_stderr"] == (7, 1.0)
    assert clustered["f1"] == (1, 1, 7)
    assert {key: grouped[key] for key in clustered} == clustered
    assert grouped.keys() - clustered.keys() == {"em", "em_stderr"}


# ---- pairs that share scenarios -----------------------------------------------------------------------------------------


def test_the_dyadic_variance_is_the_sum_over_pairs_that_share_a_scenario():
    rng = np.random.default_rng(0)
    pairs = rng.integers(0, 12, size=(40, 2))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    pairs = np.concatenate([pairs, pairs[:3], pairs[3:5, ::-1]])  # some twice, some the other way round
    correct = (rng.random(len(pairs)) < 0.6).astype(float)
    away = correct - correct.mean()
    shares = np.array([[bool(set(one) & set(other)) for other in pairs.tolist()] for one in pairs.tolist()])
    assert dyadic_effect(correct, pairs) == pytest.approx(away @ shares @ away / (away @ away))


def test_simulated_models_have_their_accuracies_and_intervals_of_pairs_that_share_nothing_hold():
    apart = np.arange(1200).reshape(600, 2)
    rng = np.random.default_rng(1)
    found = np.mean([answered(apart, (0.8, 0.65), rng).mean(axis=1) for _ in range(60)], axis=0)
    assert found == pytest.approx([0.8, 0.65], abs=0.01)
    covered = cover(apart, (0.8, 0.65), 250)
    assert 0.91 < covered.accuracy < 0.99
    assert 0.91 < covered.difference < 0.99
    assert covered.dyadic == pytest.approx(1)
