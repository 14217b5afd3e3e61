"""The folders for lm-evaluation-harness: self-contained, the same tasks under other names, good by upstream's own test.

Upstream's test needs a checkout, which is cloned and never changed:
``W2S_UPSTREAM=DIR W2S_DATA=DIR python -m pytest tests/test_upstream.py``.
"""

from __future__ import annotations

import ast
import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chess_support
import lm_eval
import pytest
import yaml
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from w2s_tasks import TASK_PATH
from w2s_tasks.plugin.manager import W2STaskManager
from w2s_tasks.rows.chess_puzzles import HUB, LOCAL

SUBTASKS = ["justice", "deontology", "virtue", "utilitarianism", "commonsense", "commonsense_long"]
CONFIGS = SUBTASKS[:5]
CHOICES = [
    *("sst2_review", "boolq_passage", "chess_puzzles"),
    *(f"ethics_paper_{s}{h}" for s, h in itertools.product(SUBTASKS, ("", "_hard"))),
]
NAMES = [f"{name}{twin}" for name, twin in itertools.product(CHOICES, ("", "_gen"))]
TAGS = ["ethics_paper", "ethics_paper_gen", "ethics_paper_hard", "ethics_paper_hard_gen"]
FOLDERS = {
    "sst2_review": "w2s_sst2",
    "boolq_passage": "w2s_boolq",
    "chess_puzzles": "w2s_chess",
    "ethics_paper": "w2s_ethics",
}
"""Each with how its tasks begin here."""
STEREOSET = {"stereoset_preference": "w2s_stereoset", "stereoset_sense": "w2s_stereoset_sense"}
"""Whose rows are others here than there, and come from another place: see the end of this file."""
PREFERENCES = {f"preference_pairs_{part}": f"w2s_preference_{part}" for part in ("harmless", "harmless_both")}
"""Whose rows stand in another order there, that of the hub's file."""
ALL_FOLDERS = (*FOLDERS, "stereoset", "preference_pairs", "solution_check")
NEEDS = {"chess_puzzles": {"chess"}}
"""Packages beside lm_eval's own."""
OURS_ALONE = ("auroc", "d_prime", "criterion")
"""Scores that the pull requests leave out: reviewers get what the benchmarks report."""
OUT = Path(__file__).parents[1] / "scripts" / "upstream"


def home_name(name: str) -> str:
    """Our name of an exported task."""
    return next(name.replace(folder, ours) for folder, ours in FOLDERS.items() if name.startswith(folder))


class HashModel(LM):
    """Answers that only context and continuation decide: other prompts or choices give other answers."""

    REPLIES = ("yes", "No.", "wrong", "not wrong", "It is reasonable.", "unreasonable", "7", "3.", "positive", "I can't say")

    def _number(self, *parts: str) -> int:
        return int.from_bytes(hashlib.sha256("\0".join(parts).encode()).digest()[:6], "big")

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        return [(-self._number(*request.args) / 2**40, False) for request in requests]

    def generate_until(self, requests: list[Any]) -> list[str]:
        return [self.REPLIES[self._number(request.args[0]) % len(self.REPLIES)] for request in requests]

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        raise NotImplementedError


def evaluate(manager: TaskManager, names: list[str], **settings: Any) -> dict[str, Any]:
    """lm_eval on a hash model."""
    found: dict[str, Any] = lm_eval.simple_evaluate(
        HashModel(), tasks=names, task_manager=manager, bootstrap_iters=0, **settings
    )
    return found


def scores(manager: TaskManager, names: list[str], **settings: Any) -> dict[str, dict[str, Any]]:
    """What lm_eval reports for a hash model."""
    numbers = evaluate(manager, names, **settings)["results"].items()
    return {task: {k: v for k, v in row.items() if k not in ("alias", "name")} for task, row in numbers}


# ---- data: the probe in the layout of the hub, and the real sets ------------------------------------------------------


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _probe_rows(subtask: str, split: str) -> list[dict[str, Any]]:
    names = [subtask, f"{subtask}_long"] if subtask == "commonsense" else [subtask]
    files = [TASK_PATH.parent / "rows" / "ethics_probe" / f"{name}_{split}.jsonl" for name in names]
    return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small sets in the layout of the hub's: ETHICS from the probe, SST-2, BoolQ and chess puzzles made up."""
    root = tmp_path_factory.mktemp("data")
    ethics, splits = root / "hendrycks" / "ethics", ("train", "validation", "test")
    for subtask, split in itertools.product(CONFIGS, splits):
        _write(ethics / subtask / f"{split}.jsonl", _probe_rows(subtask, split))
    files = {c: [{"split": s, "path": f"{c}/{s}.jsonl"} for s in splits] for c in CONFIGS}
    configs = [{"config_name": c, "data_files": files[c]} for c in CONFIGS]
    (ethics / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n", encoding="utf-8")
    for split, n in (("train", 40), ("validation", 20)):
        reviews = [{"idx": i, "sentence": f"film {split} {i} ", "label": i * 7 % 5 % 2} for i in range(n)]
        _write(root / "stanfordnlp" / "sst2" / f"{split}.jsonl", reviews)
        asked = [{"question": f"is {i} {split}", "answer": i * 3 % 4 > 1, "passage": f"Passage {i // 2}."} for i in range(n)]
        _write(root / "google" / "boolq" / f"{split}.jsonl", asked)
    return chess_support.write(root, chess_support.puzzles(60))


def as_on_the_hub(root: Path, folder: Path) -> Path:
    """A working directory in which a hub's id is the set's folder below `root`."""
    for organisation in ("stanfordnlp", "google", "hendrycks"):
        (folder / organisation).symlink_to(root / organisation)
    (folder / "Lichess").mkdir()
    (folder / HUB).symlink_to(root / LOCAL)
    return folder


@pytest.fixture(params=["stand_in", pytest.param("real_data", marks=pytest.mark.slow)])
def data(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder that our tasks take by W2S_DATA and the exported ones by the working directory."""
    root: Path = request.getfixturevalue(request.param)
    monkeypatch.setenv("W2S_DATA", str(root))
    monkeypatch.chdir(as_on_the_hub(root, tmp_path_factory.mktemp("hub")))
    return root


@pytest.fixture
def exported() -> TaskManager:
    return TaskManager(include_path=[str(OUT / name) for name in FOLDERS], include_defaults=False)


# ---- the folders ------------------------------------------------------------------------------------------------------


def test_nothing_of_this_package_is_left_in_a_folder():
    folders = [OUT / name for name in (*ALL_FOLDERS, "afterwards")]
    for path in (p for folder in folders for p in folder.rglob("*") if p.is_file() and p.suffix != ".pyc"):
        assert not re.search("w2s|trainers", path.read_text(encoding="utf-8")), path
    for name in ALL_FOLDERS:
        tree = ast.parse((OUT / name / "utils.py").read_text(encoding="utf-8"))
        roots = {a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        roots |= {str(n.module).split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        assert roots <= set(sys.stdlib_module_names) | {"datasets", "numpy"} | NEEDS.get(name, set())


def test_all_tasks_are_there_and_have_a_version(exported: TaskManager):
    assert exported.all_subtasks == sorted(NAMES)
    assert all(entry.cfg["metadata"]["version"] for entry in exported.task_index.values() if entry.cfg)
    assert sorted(exported.all_tags) == sorted(TAGS)


def test_no_name_is_taken_upstream():
    taken = re.compile("|".join(ALL_FOLDERS))
    for path in (Path(lm_eval.__file__).parent / "tasks").rglob("*yaml"):
        assert not taken.search(path.read_text(encoding="utf-8", errors="replace")), path
        assert not taken.search(str(path))


def test_each_readme_follows_upstreams_template_and_names_its_tasks():
    for folder in ALL_FOLDERS:
        readme = (OUT / folder / "README.md").read_text(encoding="utf-8")
        sections = ["## Paper", "### Citation", "### Groups, Tags, and Tasks", "### Checklist", "### Changelog"]
        assert [line for line in readme.splitlines() if line in sections] == sections
        assert readme.count("* [x]") == 6
        assert "@" in readme
        assert "1.0: " in readme
        for name in (n for n in [*NAMES, *STEREOSET, *PREFERENCES] if n.startswith(folder) and not n.endswith("_gen")):
            assert f"`{name}`" in readme
    rows = (OUT / "tasks_README_lines.md").read_text(encoding="utf-8").splitlines()
    assert [row.count("|") for row in rows] == [4] * len(ALL_FOLDERS)


def test_groups_come_afterwards_with_every_task_once():
    groups = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in (OUT / "afterwards").rglob("*.yaml.txt")]
    assert sorted(g["group"] for g in groups) == sorted(f"{tag}_mean" for tag in TAGS)
    assert sorted(t for g in groups for t in g["task"]) == sorted(n for n in NAMES if n.startswith("ethics_paper"))


# ---- the same tasks ---------------------------------------------------------------------------------------------------


def test_documents_prompts_choices_and_targets_are_ours(exported: TaskManager, data: Path):
    manager = W2STaskManager()
    for name in NAMES:
        theirs, ours = exported.load([name])["tasks"][name], manager.load([home_name(name)])["tasks"][home_name(name)]
        pairs = list(zip(theirs.eval_docs, ours.eval_docs, strict=True))
        assert all(row == {key.removeprefix("w2s_"): value for key, value in own.items()} for row, own in pairs), name
        for task in (theirs, ours):
            task.set_fewshot_seed(1234)  # lm_eval's default; the exported shots are fixed in its order
        for (row, own), shots in itertools.product((pairs[0], pairs[1], pairs[-1]), (0, 1, 4, 8)):
            assert theirs.fewshot_context(row, num_fewshot=shots) == ours.fewshot_context(own, num_fewshot=shots)
            assert theirs.doc_to_choice(row) == ours.doc_to_choice(own)
            assert theirs.doc_to_target(row) == ours.doc_to_target(own)


@pytest.mark.parametrize("shots", [0, 4])
def test_scores_of_a_models_answers_are_ours(exported: TaskManager, data: Path, shots: int):
    theirs = scores(exported, NAMES, num_fewshot=shots, limit=40)
    ours = scores(W2STaskManager(), [home_name(name) for name in NAMES], num_fewshot=shots, limit=40)
    for name in NAMES:
        same = {key: value for key, value in ours[home_name(name)].items() if not key.startswith(OURS_ALONE)}
        assert repr(theirs[name]) == repr(same), name
    assert len({repr(row) for row in theirs.values()}) > 20


MOVES = ("{}", "**{}!**", "The best move is {}.", "{} wins.", "{}\nFEN: 8", "not {}", "{}??", "Kxa9", "Nothing", "{} or Qd1")


def test_replies_with_moves_are_scored_alike(exported: TaskManager, data: Path):
    name = "chess_puzzles_gen"
    theirs, ours = exported.load([name])["tasks"][name], W2STaskManager().load([home_name(name)])["tasks"][home_name(name)]
    seen = set()
    for row, own in itertools.islice(zip(theirs.eval_docs, ours.eval_docs, strict=True), 20):
        best, other = own["choices"][own["label"]], own["choices"][own["label"] - 1]
        for move, words in itertools.product((best, other, "Qa9", "Kb8"), MOVES):
            items = [(t, t.process_results(doc, [words.format(move)])) for t, doc in ((theirs, row), (ours, own))]
            told = [{m: t.aggregation()[m]([item[m]]) for m in item if not m.endswith("_stderr")} for t, item in items]
            assert told[0] == told[1], (move, words)
            seen.add(tuple(told[0].values()))
    assert len(seen) >= 5


# ---- lm_eval's own hendrycks_ethics -----------------------------------------------------------------------------------

STOCK = Path(lm_eval.__file__).parent / "tasks" / "hendrycks_ethics"


@pytest.fixture
def stock(data: Path, tmp_path: Path) -> W2STaskManager:
    """lm_eval's tasks on our rows (``stock_...``), and ours with its words (``w2s_stock_...``), through temporary YAMLs."""
    for name in ("justice", "deontology", "commonsense"):
        words = yaml.safe_load((STOCK / f"{name}.yaml").read_text(encoding="utf-8"))
        own = {"include": str(STOCK / f"{name}.yaml"), "task": f"stock_{name}", "test_split": "validation"}
        own["dataset_path"] = str(data / "hendrycks" / "ethics")
        (tmp_path / f"{own['task']}.yaml").write_text(yaml.safe_dump(own), encoding="utf-8")
        for kind in ("", "_long") if name == "commonsense" else ("",):
            same = {"include": str(TASK_PATH / "ethics" / f"{name}{kind}.yaml"), "task": f"w2s_stock_{name}{kind}"}
            same |= {key: words[key] for key in ("doc_to_text", "doc_to_choice") if key in words}
            (tmp_path / f"{same['task']}.yaml").write_text(yaml.safe_dump(same), encoding="utf-8")
    return W2STaskManager(include_path=[tmp_path])


def test_justice_is_asked_in_the_stock_tasks_words_and_answered_alike(stock: W2STaskManager):
    samples = evaluate(stock, ["stock_justice", "w2s_ethics_justice"])["samples"]
    pairs = list(zip(samples["stock_justice"], samples["w2s_ethics_justice"], strict=True))
    same = [(a, b) for a, b in pairs if a["arguments"] == b["arguments"]]
    assert (
        len(pairs) - len(same) <= 3
    )  # of the real rows, three end or begin with a space: we strip it, the stock task doesn't
    for theirs, ours in same:
        assert theirs["target"] == ours["target"]
        gold, answer, _ = ours["precision"]
        assert (theirs["doc"]["label"], theirs["acc"]) == (gold, float(gold == answer))


@pytest.mark.parametrize("name", ["justice", "deontology"])
def test_with_the_stock_tasks_words_the_number_is_the_same(stock: W2STaskManager, name: str):
    found = scores(stock, [f"stock_{name}", f"w2s_stock_{name}"])
    assert found[f"stock_{name}"]["acc,none"] == pytest.approx(found[f"w2s_stock_{name}"]["acc,none"], abs=1e-12)
    assert found[f"stock_{name}"]["sample_len"] == found[f"w2s_stock_{name}"]["sample_len"]


def test_stock_commonsense_is_our_short_and_long_together(stock: W2STaskManager):
    found = scores(stock, ["stock_commonsense", "w2s_stock_commonsense", "w2s_stock_commonsense_long"])
    rows = {name: row["sample_len"] for name, row in found.items()}
    right = {name: round(row["acc,none"] * rows[name]) for name, row in found.items()}
    for counts in (rows, right):
        assert counts["stock_commonsense"] == counts["w2s_stock_commonsense"] + counts["w2s_stock_commonsense_long"]


# ---- StereoSet --------------------------------------------------------------------------------------------------------


@pytest.fixture
def stereoset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TaskManager:
    """The exported tasks over the package's rows in the layout of the hub's set."""
    from w2s_tasks.rows.public_sets import read_rows

    kinds = {"stereotype": 1, "anti-stereotype": 0, "unrelated": 2}
    rows = [row for row in read_rows("StereoSet") if row["type"] == "intersentence"]
    hub = [
        {
            **{key: row[key] for key in ("target", "bias_type", "context")},
            "sentences": {"sentence": [row[k] for k in kinds], "gold_label": list(kinds.values())},
        }
        for row in rows
    ]
    folder = tmp_path / "McGill-NLP" / "stereoset"
    _write(folder / "intersentence" / "validation.jsonl", hub)
    files = [{"split": "validation", "path": "intersentence/validation.jsonl"}]
    card = yaml.safe_dump({"configs": [{"config_name": "intersentence", "data_files": files}]})
    (folder / "README.md").write_text(f"---\n{card}---\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return TaskManager(include_path=[str(OUT / "stereoset")], include_defaults=False)


@pytest.mark.pypi
def test_stereoset_asks_and_scores_the_same_there(stereoset: TaskManager):
    manager = W2STaskManager()
    model = HashModel()
    for name, home in STEREOSET.items():
        theirs, ours = stereoset.load([name])["tasks"][name], manager.load([home])["tasks"][home]
        there = {(theirs.fewshot_context(doc, 0), *doc["choices"]): doc for doc in theirs.eval_docs}
        mine = [*ours.dataset["train"], *ours.dataset["validation"]]
        assert len(mine) == len(theirs.eval_docs)
        items: tuple[list[Any], list[Any]] = ([], [])
        for doc in mine:
            prompt = ours.fewshot_context(doc, 0)
            other = there[prompt, *doc["choices"]]
            assert (theirs.doc_to_target(other), theirs.doc_to_choice(other)) == (doc["label"], doc["choices"])
            answers = [(-model._number(prompt, choice) / 2**40, False) for choice in doc["choices"]]
            own, their = ours.process_results(doc, answers), theirs.process_results(other, answers)
            assert {key: item[1] for key, item in their.items()} == {
                key: item[1] for key, item in own.items() if not key.startswith("mrr")
            }
            items[0].append(own)
            items[1].append(their)
        for metric in items[1][0]:
            values = [
                task.aggregation()[metric]([row[metric] for row in part])
                for task, part in zip((ours, theirs), items, strict=True)
            ]
            assert values[0] == pytest.approx(values[1]), metric


# ---- preference pairs -------------------------------------------------------------------------------------------------


def _pairs(name: str) -> list[dict[str, str]]:
    """Dialogues with two replies: several a prompt, some too long, some that are no pairs."""
    rows = []
    for i in range(60):
        asked = (
            f"\n\nHuman: {name} {i % 40}?\n\nAssistant: {'Which one? ' * (i % 7) * 40}\n\nHuman: Number {i}.\n\nAssistant:"
        )
        first, second = f"{asked} {i}", f"{asked} {'' if i == 8 else -i}"
        rows.append({"chosen": first, "rejected": first if i == 9 else second.replace("test 3", "test x")})
    return rows


@pytest.fixture(params=["made", pytest.param("real_data", marks=pytest.mark.slow)])
def preferences(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TaskManager:
    """The exported tasks, and ours, over made pairs in the layout of the hub's set, or over the real ones."""
    root = tmp_path
    if request.param == "made":
        for split in ("train", "test"):
            _write(root / "Anthropic" / "hh-rlhf" / "harmless-base" / f"{split}.jsonl", _pairs(split))
    else:
        root = request.getfixturevalue("real_data")
        if not (root / "Anthropic" / "hh-rlhf").is_dir():
            pytest.skip("needs Anthropic/hh-rlhf (harmless-base) in W2S_DATA")
    monkeypatch.setenv("W2S_DATA", str(root))
    monkeypatch.chdir(root)
    return TaskManager(include_path=[str(OUT / "preference_pairs")], include_defaults=False)


def test_preference_pairs_ask_and_score_the_same_there(preferences: TaskManager):
    manager, model = W2STaskManager(), HashModel()
    for name, home in PREFERENCES.items():
        theirs, ours = preferences.load([name])["tasks"][name], manager.load([home])["tasks"][home]
        there = {theirs.fewshot_context(doc, 0): doc for doc in theirs.eval_docs}
        assert len(ours.eval_docs) == len(theirs.eval_docs) == len(there)
        items: tuple[list[Any], list[Any]] = ([], [])
        for doc in ours.eval_docs:
            prompt = ours.fewshot_context(doc, 0)
            other = there[prompt]
            assert (theirs.doc_to_target(other), theirs.doc_to_choice(other)) == (doc["label"], ["A", "B"])
            answers = [(-model._number(prompt, letter) / 2**40, False) for letter in ("A", "B")]
            items[0].append(ours.process_results(doc, answers))
            items[1].append(theirs.process_results(other, answers))
        for metric in items[1][0]:
            mine, yours = (
                task.aggregation()[metric]([row[metric] for row in part])
                for task, part in zip((ours, theirs), items, strict=True)
            )
            assert mine == pytest.approx(yours), metric


# ---- GSM8K's solutions, checked ---------------------------------------------------------------------------------------


@pytest.fixture(params=["made_up", pytest.param("real_data", marks=pytest.mark.slow)])
def gsm8k(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TaskManager]:
    """The exported task over problems made up here, or the real ones, which our task reads as well."""
    from w2s_tasks.rows.solutions import _gsm8k_check

    root = tmp_path if request.param == "made_up" else request.getfixturevalue("real_data")
    if root == tmp_path:
        folder = root / "openai" / "gsm8k"
        for split, numbers in (("train", range(11, 41)), ("test", range(41, 56))):
            rows = [
                {
                    "question": f"Ann has {n} nuts and finds {2 * n + 3} more. She eats 13. How many are left?",
                    "answer": f"Ann has {n} + {2 * n + 3} = <<{n}+{2 * n + 3}={3 * n + 3}>>{3 * n + 3} nuts.\n"
                    f"{3 * n + 3} - 13 = <<{3 * n + 3}-13={3 * n - 10}>>{3 * n - 10} are left.\n#### {3 * n - 10}",
                }
                for n in numbers
            ]
            _write(folder / "main" / f"{split}.jsonl", rows)
        files = [{"split": split, "path": f"main/{split}.jsonl"} for split in ("train", "test")]
        card = yaml.safe_dump({"configs": [{"config_name": "main", "data_files": files}]})
        (folder / "README.md").write_text(f"---\n{card}---\n", encoding="utf-8")
    monkeypatch.setenv("W2S_DATA", str(root))
    monkeypatch.chdir(root)
    _gsm8k_check.cache_clear()
    yield TaskManager(include_path=[str(OUT / "solution_check")], include_defaults=False)
    _gsm8k_check.cache_clear()


def test_solutions_are_checked_alike_there(gsm8k: TaskManager):
    theirs = gsm8k.load(["solution_check"])["tasks"]["solution_check"]
    ours = W2STaskManager().load(["w2s_gsm8k_check"])["tasks"]["w2s_gsm8k_check"]
    for there, here in ((theirs.eval_docs, ours.eval_docs), (theirs.training_docs(), ours.training_docs())):
        assert list(there) == list(here.remove_columns("w2s_group"))
    for task in (theirs, ours):
        task.set_fewshot_seed(1234)
    doc, own = theirs.eval_docs[0], ours.eval_docs[0]
    for shots in (0, 1, 4, 8):
        assert theirs.fewshot_context(doc, num_fewshot=shots) == ours.fewshot_context(own, num_fewshot=shots)
    assert (theirs.doc_to_choice(doc), theirs.doc_to_target(doc)) == (ours.doc_to_choice(own), ours.doc_to_target(own))
    there, here = scores(gsm8k, ["solution_check"], limit=40), scores(W2STaskManager(), ["w2s_gsm8k_check"], limit=40)
    assert there["solution_check"]["acc,none"] == here["w2s_gsm8k_check"]["acc,none"]


# ---- upstream's own test ----------------------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path: Path, real_data: Path) -> Path:
    """A clone of the checkout in W2S_UPSTREAM with the folders in it, and the hub ids as folders."""
    upstream = os.environ.get("W2S_UPSTREAM")
    if not upstream:
        pytest.skip("needs a checkout of EleutherAI/lm-evaluation-harness: set W2S_UPSTREAM to its folder")
    clone = tmp_path / "upstream"
    subprocess.run(["git", "clone", "--quiet", "--shared", upstream, str(clone)], check=True)
    for name in FOLDERS:
        shutil.copytree(OUT / name, clone / "lm_eval" / "tasks" / name)
    return as_on_the_hub(real_data, clone)


def run_upstreams_test(checkout: Path, changed: list[str]) -> list[ET.Element]:
    """Run ``tests/test_tasks.py`` there, unchanged, on the changed files; return its cases."""
    unchanged = subprocess.run(["git", "diff", "--quiet", "HEAD"], cwd=checkout, check=False)
    assert unchanged.returncode == 0
    listed = checkout / ".github" / "outputs" / "tasks_all_changed_and_modified_files.txt"
    listed.parent.mkdir(exist_ok=True)
    listed.write_text(" ".join(changed), encoding="utf-8")
    # The rest of the file asks the hub for three sets that have nothing to do with the changed files.
    command = [sys.executable, "-m", "pytest", "-q", "tests/test_tasks.py::TestNewTasksElseDefault", "--junitxml=cases.xml"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(checkout)}
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    return list(ET.parse(checkout / "cases.xml").iter("testcase"))  # noqa: S314 - written just now


def passed_tasks(cases: list[ET.Element]) -> set[str]:
    """The names of the tasks of these cases, every one passed."""
    assert not [case for case in cases if len(case)]  # failure, error or skipped
    return {str(case.get("name")).partition("[")[2].rstrip("]") for case in cases}


def test_upstreams_own_test_passes_and_tests_every_task(checkout: Path):
    changed = [f"lm_eval/tasks/{path.relative_to(OUT)}" for name in FOLDERS for path in sorted((OUT / name).iterdir())]
    cases = run_upstreams_test(checkout, changed)
    assert passed_tasks(cases) == set(NAMES)
    assert len(cases) == 13 * len(NAMES)


def test_upstreams_own_test_passes_for_the_groups_afterwards(checkout: Path):
    added = []
    for path in (OUT / "afterwards").rglob("*.yaml.txt"):
        added.append(f"lm_eval/tasks/{path.relative_to(OUT / 'afterwards')}".removesuffix(".txt"))
        shutil.copy(path, checkout / added[-1])
    assert passed_tasks(run_upstreams_test(checkout, added)) == {n for n in NAMES if n.startswith("ethics_paper")}
