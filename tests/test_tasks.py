"""The task pack: every task loads, renders as documented, and runs under the stock lm_eval."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from w2s_tasks import TASK_PATH
from w2s_tasks.plugin.manager import W2STaskManager
from w2s_tasks.results.read import read_evaluation
from w2s_tasks.rows import sources

PROBE = TASK_PATH.parent / "rows" / "ethics_probe"
SUBTASKS = ("justice", "deontology", "virtue", "utilitarianism", "commonsense", "commonsense_long")


def _lm_eval(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lm_eval")), "run", "--include_path", str(TASK_PATH), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))


def _load(*names: str) -> dict:
    return W2STaskManager().load(list(names))["tasks"]


# ---- the probe ------------------------------------------------------------------------------------------------


def _probe(subtask: str, split: str) -> list[dict]:
    return [json.loads(line) for line in (PROBE / f"{subtask}_{split}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("subtask", SUBTASKS)
def test_the_probe_has_its_sizes_and_balanced_labels(subtask: str):
    for split, n in (("train", 40), ("validation", 24), ("test", 16)):
        rows = _probe(subtask, split)
        assert len(rows) == n
        if subtask != "utilitarianism":
            assert Counter(r["label"] for r in rows) == {0: n // 2, 1: n // 2}
        assert len({json.dumps(r) for r in rows}) == n


@pytest.mark.parametrize("subtask", SUBTASKS)
def test_the_probes_test_and_hard_rows_are_not_told_by_length(subtask: str):
    lengths = {s: [len(" ".join(map(str, r.values()))) for r in _probe(subtask, s)] for s in ("validation", "test")}
    means = {s: sum(v) / len(v) for s, v in lengths.items()}
    assert means["test"] == pytest.approx(means["validation"], rel=0.15)


@pytest.mark.parametrize("subtask", SUBTASKS)
def test_no_text_of_the_probe_stands_in_two_splits(subtask: str):
    texts = [
        {str(v) for r in _probe(subtask, s) for k, v in r.items() if k not in ("label", "is_short", "edited")}
        for s in ("train", "validation", "test")
    ]
    assert not texts[0] & texts[1]
    assert not texts[1] & texts[2]
    assert not texts[0] & texts[2]


def test_the_probe_renders_like_the_benchmark():
    tasks = _load("w2s_ethics_probe_all")
    assert len(tasks) == 12
    for name, task in tasks.items():
        task.set_fewshot_seed(1234)
        for shots in (0, 4):
            context = task.fewshot_context(task.eval_docs[0], shots)
            assert not context.endswith(" ")
            assert context.count({"utilitarianism": "Rating:", "virtue": "Answer:"}.get(name.split("_")[3], "\n")) >= shots
        assert name.startswith("w2s_ethics_probe_")


# ---- prompts --------------------------------------------------------------------------------------------------


def test_prompts_follow_the_papers_formats():
    tasks = _load("w2s_ethics_probe")
    first = {
        name.removeprefix("w2s_ethics_probe_"): task.fewshot_context(task.eval_docs[0], 0) for name, task in tasks.items()
    }
    assert first["justice"].startswith('Question: Would most people believe this reasonable or unreasonable to say? "')
    assert first["justice"].endswith('"\nAnswer:')
    assert "\nScenario: " in first["deontology"]
    assert "\nExcuse: " in first["deontology"]
    assert first["virtue"].startswith("The following is a list of sentences and traits")
    assert first["commonsense"].endswith("\nReaction: this is")
    assert first["commonsense_long"].startswith('"""')
    assert first["commonsense_long"].endswith('"""\nVerdict:')
    assert first["utilitarianism"].endswith('"\nRating:')
    assert (
        tasks["w2s_ethics_probe_utilitarianism"].doc_to_choice(tasks["w2s_ethics_probe_utilitarianism"].eval_docs[0])[0]
        == "1"
    )


def test_shots_follow_the_seed_and_stay_the_same_for_every_document():
    task = _load("w2s_ethics_probe_justice")["w2s_ethics_probe_justice"]

    def shots(seed: int, doc: int) -> str:
        task.set_fewshot_seed(seed)
        return task.fewshot_context(task.eval_docs[doc], 4).rsplit("\n\n", 1)[0]

    assert shots(1, 0) == shots(1, 5)
    assert shots(1, 0) != shots(2, 0)


def test_thirty_two_shots_work_and_long_texts_get_eight():
    tasks = _load("w2s_ethics_probe")
    for name, task in tasks.items():
        task.set_fewshot_seed(1234)
        cue = {"virtue": "\nQuestion:", "utilitarianism": "\nRating:"}.get(name.split("_")[3], "\n\n")
        expected = 8 if name.endswith("long") else 32
        assert task.fewshot_context(task.eval_docs[0], 32).count(cue) >= expected
        assert len(task.sampler.sample(32)) == expected


def test_real_tasks_have_their_published_sizes(real_data: Path):
    tasks = _load("w2s_sst2", "w2s_boolq", "w2s_ethics_all")
    sizes = {name: len(task.eval_docs) for name, task in tasks.items()}
    assert sizes["w2s_sst2"] == 872
    assert sizes["w2s_boolq"] == 3270
    assert sizes["w2s_ethics_justice"] == 2704
    assert sizes["w2s_ethics_virtue_hard"] == 4780
    assert sizes["w2s_ethics_commonsense"] + sizes["w2s_ethics_commonsense_long"] == 3885
    assert sizes["w2s_ethics_utilitarianism"] == 2 * 4807


def test_a_partial_copy_is_told(real_data: Path, caplog: pytest.LogCaptureFixture):
    from w2s_tasks.rows import sources

    sources._load.cache_clear()
    sources.ethics("commonsense")
    assert "6717 rows here, 13910 in the published set" in caplog.text


def test_missing_data_names_every_place(tmp_path: Path):
    command = [sys.executable, "-m", "trainers.cli", "eval", "--model", "dummy", "--tasks", "w2s_sst2", "--limit", "2"]
    env = {k: v for k, v in os.environ.items() if k != "W2S_DATA"} | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env, cwd=tmp_path)
    assert done.returncode == 2
    assert "stanfordnlp/sst2 is not to be had: $W2S_DATA is not set; the hub:" in done.stderr
    assert "Traceback" not in done.stderr


# ---- the stock command ----------------------------------------------------------------------------------------


def test_the_stock_lm_eval_runs_the_probe_from_the_include_path(tmp_path: Path):
    done = _lm_eval(
        "--tasks",
        "w2s_ethics_probe_all",
        "--model",
        "dummy",
        "--output_path",
        str(tmp_path),
        "--log_samples",
        "--num_fewshot",
        "2",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    scores = read_evaluation(tmp_path)
    assert len(scores) == 12
    assert all(s.stderr["acc"] >= 0 for s in scores.values())
    assert scores["w2s_ethics_probe_utilitarianism"].n == 24
    assert "|w2s_ethics_probe_all" in done.stdout.replace(" ", "")


def test_the_stock_lm_eval_runs_sst2_and_ethics_from_the_include_path(real_data: Path, tmp_path: Path):
    arguments = [
        "--tasks",
        "w2s_sst2,w2s_ethics_all",
        "--model",
        "dummy",
        "--limit",
        "20",
        "--output_path",
        str(tmp_path),
        "--log_samples",
    ]
    done = _lm_eval(*arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    scores = read_evaluation(tmp_path)
    assert set(scores["w2s_sst2"].metrics) >= {"acc", "precision", "recall", "f1", "balanced_acc", "mcc"}
    assert set(scores["w2s_sst2"].stderr) >= {"acc", "precision", "recall", "f1"}
    assert scores["w2s_ethics_justice"].cluster is not None
    assert scores["w2s_ethics_justice"].metrics["em"] <= scores["w2s_ethics_justice"].metrics["acc"]
    assert scores["w2s_ethics_utilitarianism"].n == 10


@pytest.mark.slow
@pytest.mark.pypi
def test_the_stock_lm_eval_runs_smollm2_and_agrees_with_ours(real_data: Path, smollm2: str, tmp_path: Path):
    arguments = ["--tasks", "w2s_sst2,w2s_ethics_justice", "--limit", "8", "--log_samples"]
    stock = _lm_eval(
        "--model",
        "hf",
        "--model_args",
        f"pretrained={smollm2},dtype=float32",
        "--device",
        "cpu",
        *arguments,
        "--output_path",
        str(tmp_path / "a"),
    )
    assert stock.returncode == 0, stock.stderr[-3000:]
    command = [sys.executable, "-m", "trainers.cli", "eval", "--model", "w2s-hf", "--model_args", f"pretrained={smollm2}"]
    ours = subprocess.run(
        [*command, *arguments, "--output_path", str(tmp_path / "b")], capture_output=True, text=True, check=False
    )
    assert ours.returncode == 0, ours.stderr[-3000:]
    first, second = read_evaluation(tmp_path / "a"), read_evaluation(tmp_path / "b")
    for task in first:
        assert abs(first[task].logliks - second[task].logliks).max() < 1e-4
        assert first[task].metrics == pytest.approx(second[task].metrics)


def test_cut_result_files_are_refused(tmp_path: Path):
    from w2s_tasks.errors import UserError

    with pytest.raises(UserError, match=r"no results_\*\.json"):
        read_evaluation(tmp_path)
    done = _lm_eval(
        "--tasks", "w2s_ethics_probe_justice", "--model", "dummy", "--output_path", str(tmp_path), "--log_samples"
    )
    assert done.returncode == 0
    samples = next(tmp_path.rglob("samples_*.jsonl"))
    lines = samples.read_text().splitlines()
    samples.write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(UserError, match="23 rows, the result file counts 24"):
        read_evaluation(tmp_path)
    samples.write_text("\n".join([*lines[:-1], lines[-1][:50]]))
    with pytest.raises(UserError, match=r":24: not JSON"):
        read_evaluation(tmp_path)


def test_a_changed_folder_and_another_of_the_same_name_give_their_own_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """datasets knows a folder with a README by its name alone, and gave the first one's rows for all."""
    card = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: train.jsonl\n---\n"

    def rows_of(root: str) -> list[str]:
        monkeypatch.setenv("W2S_DATA", str(tmp_path / root))
        sources._load.cache_clear()
        return sources.load("org/name")["train"]["text"][:]

    for root in ("one", "two"):
        folder = tmp_path / root / "org" / "name"
        folder.mkdir(parents=True)
        (folder / "README.md").write_text(card)
        (folder / "train.jsonl").write_text(json.dumps({"text": root}) + "\n")
    assert (rows_of("one"), rows_of("two")) == (["one"], ["two"])
    (tmp_path / "two" / "org" / "name" / "train.jsonl").write_text(json.dumps({"text": "changed"}) + "\n")
    assert rows_of("two") == ["changed"]


def test_a_users_own_folder_of_data_gives_its_rows_as_they_are_now(tmp_path: Path):
    def rows_of(root: str) -> list[str]:
        manager = W2STaskManager(include_path=str(tmp_path / root / "tasks"), include_defaults=False)
        return manager.load(["mine"])["tasks"]["mine"].dataset["test"]["text"][:]

    card = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: test\n    path: test.jsonl\n---\n"
    for root in ("one", "two"):
        data, tasks = tmp_path / root / "data", tmp_path / root / "tasks"
        data.mkdir(parents=True)
        tasks.mkdir()
        (data / "README.md").write_text(card)
        (data / "test.jsonl").write_text(json.dumps({"text": root, "label": 0}) + "\n")
        (tasks / "mine.yaml").write_text(
            f"task: mine\ndataset_path: {data}\noutput_type: multiple_choice\ntest_split: test\n"
            'doc_to_text: "{{text}}"\ndoc_to_choice: ["a", "b"]\ndoc_to_target: label\n'
        )
    assert (rows_of("one"), rows_of("two")) == (["one"], ["two"])
    (tmp_path / "two" / "data" / "test.jsonl").write_text(json.dumps({"text": "changed", "label": 1}) + "\n")
    assert rows_of("two") == ["changed"]
