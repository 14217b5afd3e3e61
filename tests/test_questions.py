"""`w2s view`: the page of all questions holds what lm_eval wrote, and does in a real browser what its controls say."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_untrusted import opened

from trainers.report.collected import collect
from trainers.report.questions import neighbours, page_data, render, write_questions
from trainers.report.report import present, read_report, reopened
from w2s_tasks.errors import UserError
from w2s_tasks.results.read import read_asked, read_evaluation

HOSTILE = "</script><script>document.title='PWNED'</script><img src=x onerror=\"document.title='PWNED'\"><!--"


@pytest.fixture(scope="module")
def data(run_folder: Path) -> dict[str, Any]:
    return page_data(collect(reopened(run_folder)))


def driven(page: str, folder: Path, script: str) -> tuple[str, Any]:
    """The page's DOM after a script of the test's, and what the script gave."""
    own = f"<script>(async () => {{ const out = await (async () => {{ {script} }})();"
    own += " document.body.dataset.out = JSON.stringify(out ?? null); })();</script>"
    dom = opened(page.replace("</body>", f"{own}</body>"), folder)
    found = re.search(r'<body data-out="([^"]*)"', dom)
    assert found, dom[-1500:]
    return dom, json.loads(unescape(found[1]))


# ---- what it holds ----------------------------------------------------------------------------------------------------


def test_every_question_and_answer_is_what_lm_eval_wrote(run_folder: Path, data: dict[str, Any]):
    run = reopened(run_folder)
    training = data["tasks"][0]
    for arm, own in zip(run.layout.arms(), training["arms"], strict=True):
        folder = run.folder_of(run.layout.evaluations[arm])
        scores = next(iter(read_evaluation(folder).values()))
        assert (own["arm"], own["seed"]) == (arm.name, arm.seed)
        assert own["right"] == scores.correct.astype(int).tolist()
        assert scores.logliks is not None
        assert np.array(own["logliks"]) == pytest.approx(scores.logliks, abs=1e-3)
        asked = read_asked(folder, scores.task)
        before, after = training["before"], training["after"]
        assert [before + row["text"] + after for row in training["rows"]] == [a.prompt for a in asked]
    names = {task["name"] for task in data["tasks"]}
    assert names >= {"w2s_ethics_probe_justice", "w2s_ethics_probe_utilitarianism"}


def test_pairs_are_one_question_with_both_ratings(data: dict[str, Any]):
    task = next(t for t in data["tasks"] if t["name"] == "w2s_ethics_probe_utilitarianism")
    assert all("– should be rated above –" in row["text"] for row in task["rows"])
    for arm in task["arms"]:
        for said, right in zip(arm["said"], arm["right"], strict=True):
            above, below = map(float, said.split(" : "))
            assert above >= below if right else above <= below


def test_generated_answers_stand_as_they_came(data: dict[str, Any]):
    generated = [t for t in data["tasks"] if any(a["mode"] == "generated" for a in t["arms"])]
    for task in generated:
        assert all(len(a["replies"]) == len(task["rows"]) for a in task["arms"])


def test_neighbours_share_rare_words():
    others = ["the cat sat on the mat", "stocks fell sharply on Monday", "a cat and a mat"]
    found = neighbours(["my cat ruined the mat", "nothing alike here", ""], others)
    assert {i for i, _ in found[0]} == {0, 2}
    assert found[1:] == [[], []]
    assert neighbours(["x"], ["", "the"]) == [[]]


def test_training_rows_have_their_weak_and_gold_labels(run_folder: Path, data: dict[str, Any]):
    choices = len(data["tasks"][0]["choices"])
    for seed in data["training"].values():
        assert len(seed["near"]) == len(data["tasks"][0]["rows"])
        assert all(0 <= weak < choices and 0 <= gold < choices and 0 < sure <= 1 for _, weak, sure, gold in seed["rows"])


# ---- in a browser -----------------------------------------------------------------------------------------------------


def expected(task: dict[str, Any], show: str, name: str) -> int:
    """How many questions a filter leaves, by its words."""
    seed = next(a["seed"] for a in task["arms"] if a["seed"] is not None)
    arms = {a["name"]: a for a in task["arms"] if a["seed"] in (None, seed)}
    arm, weak, top, base = arms[name], arms["weak"], arms["ceiling"], arms["zero_shot"]
    rules = {
        "all": lambda i: True,
        "below": lambda i: not arm["right"][i] and top["right"][i],
        "gain": lambda i: not weak["right"][i] and arm["right"][i],
        "loss": lambda i: weak["right"][i] and not arm["right"][i],
        "changed": lambda i: arm["predicted"][i] != base["predicted"][i],
        "wrong": lambda i: not arm["right"][i],
        "unparsed": lambda i: arm["predicted"][i] < 0,
        "tied": lambda i: i in arm["tied"],
        "split": lambda i: len({a["predicted"][i] for a in arms.values()}) > 1,
    }
    return sum(bool(rules[show](i)) for i in range(len(task["rows"])))


def test_every_filter_leaves_what_it_says(data: dict[str, Any], tmp_path: Path):
    script = """
      const found = {};
      for (const option of $("show").options) {
        $("show").value = option.value; $("show").dispatchEvent(new Event("change"));
        found[option.value] = Number($("count").textContent.split(" ")[0]);
      }
      return [$("arm").value, found];"""
    _, (arm, found) = driven(render(data), tmp_path, script)
    assert arm.startswith("student")
    assert found == {show: expected(data["tasks"][0], show, arm) for show in found}
    assert len(found) == 9
    assert found["wrong"] > 0


def test_keys_search_order_and_an_address_that_survives_a_reload(data: dict[str, Any], tmp_path: Path):
    task = data["tasks"][0]
    word = max((w for row in task["rows"] for w in row["text"].split()), key=len)
    script = f"""
      const key = (name) => document.dispatchEvent(new KeyboardEvent("keydown", {{ key: name, bubbles: true }}));
      const row = () => new URLSearchParams(location.hash.slice(1)).get("row");
      const seen = [row()]; key("j"); key("j"); seen.push(row()); key("k"); seen.push(row());
      key("/"); const focused = document.activeElement.id;
      $("search").value = {json.dumps(word.upper())}; $("search").dispatchEvent(new Event("input"));
      await new Promise((done) => setTimeout(done, 300));
      const searched = [$("count").textContent, list.innerText];
      $("search").value = ""; $("order").value = "up"; $("order").dispatchEvent(new Event("change"));
      const first = found[0], margins = found.map((i) => margin(arm, i));
      document.activeElement.blur(); key("j"); key("j"); key("j");
      const hash = location.hash, text = detail.innerText;
      location.hash = ""; await new Promise((done) => setTimeout(done, 50));
      location.hash = hash; await new Promise((done) => setTimeout(done, 50));
      return {{ seen, focused, searched, margins, hash, same: detail.innerText === text, order: $("order").value }};"""
    _, out = driven(render(data), tmp_path, script)
    ids = [row["id"] for row in task["rows"]]
    assert out["seen"] == [ids[0], ids[2], ids[1]]
    assert out["focused"] == "search"
    hits = sum(word.lower() in row["text"].lower() for row in task["rows"])
    assert out["searched"][0] == f"{hits} of {len(ids)}"
    assert word.lower() in out["searched"][1].lower()
    assert out["margins"] == sorted(out["margins"])
    assert out["same"]
    assert "order=up" in out["hash"]


def test_every_task_and_seed_can_be_opened(data: dict[str, Any], tmp_path: Path):
    script = """
      const found = [];
      for (const option of $("task").options) {
        $("task").value = option.value; $("task").dispatchEvent(new Event("change"));
        for (const seed of [...$("seed").options].map((o) => o.value)) {
          $("seed").value = seed; $("seed").dispatchEvent(new Event("change"));
          found.push([option.value, seed, $("count").textContent, detail.querySelectorAll("tbody tr").length]);
        }
      }
      return found;"""
    _, found = driven(render(data), tmp_path, script)
    for task in data["tasks"]:
        seeds = {a["seed"] for a in task["arms"]} - {None}
        own = [line for line in found if line[0] == task["name"]]
        assert len(own) == max(1, len(seeds))
        for _, seed, count, lines in own:
            assert count == f"{len(task['rows'])} of {len(task['rows'])}"
            assert lines == sum(a["seed"] is None or str(a["seed"]) == seed for a in task["arms"])


def test_hostile_text_stays_text(tmp_path: Path):
    arm = {"name": HOSTILE, "arm": "student", "seed": 0, "mode": "generated", "right": [0], "predicted": [0]}
    task = {
        "name": HOSTILE,
        "kind": "training task",
        "choices": [HOSTILE, "\u2028"],
        "before": HOSTILE,
        "after": HOSTILE,
        "rows": [{"id": HOSTILE, "text": HOSTILE, "gold": 1}],
        "arms": [{**arm, "logliks": [[-1.0, -2.0]], "replies": [HOSTILE]}],
    }
    near = {"0": {"rows": [[HOSTILE, 0, 0.5, 1]], "near": [[[0, 0.5]]]}}
    page = render({"experiment": HOSTILE, "stages": "x", "tasks": [task], "training": near})
    dom, text = driven(page, tmp_path, "return detail.innerText;")
    title = re.search(r"<title>(.*?)</title>", dom)
    assert title is not None
    assert title[1] != "PWNED"
    assert "<img" not in dom.replace("\\u003cimg", "")
    assert text.count("PWNED") >= 5  # it stands there to be read


def test_five_thousand_questions_are_drawn_as_they_are_scrolled_to(tmp_path: Path):
    rng = np.random.default_rng(0)
    logliks = rng.normal(size=(8, 5000, 2)).round(3)
    arms = [
        {
            "name": f"arm {k}",
            "arm": ("weak", "zero_shot", "student", "ceiling")[k % 4],
            "seed": None,
            "mode": "loglikelihood",
            "predicted": logliks[k].argmax(axis=1).tolist(),
            "right": rng.integers(2, size=5000).tolist(),
            "logliks": logliks[k].tolist(),
        }
        for k in range(8)
    ]
    rows = [{"id": str(i), "text": f"question number {i} " + "words " * 30, "gold": i % 2} for i in range(5000)]
    task = {
        "name": "t",
        "kind": "training task",
        "choices": ["a", "b"],
        "before": "",
        "after": "",
        "rows": rows,
        "arms": arms,
    }
    script = """
      const drawn = inner.children.length;
      list.scrollTop = list.scrollHeight; list.dispatchEvent(new Event("scroll"));  // a busy machine's frame comes late
      return [drawn, inner.children.length, list.innerText.includes("question number 4999"),
              Number(document.documentElement.dataset.ready)];"""
    _, (first, later, last, ready) = driven(
        render({"experiment": "x", "stages": "x", "tasks": [task], "training": {}}), tmp_path, script
    )
    assert 0 < first < 80
    assert 0 < later < 80
    assert last
    assert ready >= 0


# ---- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_writes_the_page_and_the_report_links_to_it(run_folder: Path, tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    command = [sys.executable, "-m", "trainers.cli", "view", str(run)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert str(run / "questions.html") in done.stdout
    assert 'href="questions.html"' in (run / "report.html").read_text(encoding="utf-8")
    nowhere = subprocess.run([*command[:-1], str(tmp_path)], capture_output=True, text=True, check=False)
    assert nowhere.returncode == 2
    assert "not a readable report" in nowhere.stderr


def test_a_page_of_other_stages_is_not_linked(run_folder: Path, tmp_path: Path):
    report = read_report(run_folder)
    path, _ = write_questions(collect(reopened(run_folder)), tmp_path)
    present(report, tmp_path)
    assert 'href="questions.html"' in (tmp_path / "report.html").read_text(encoding="utf-8")
    stages = {**report.head.stages, "one more": "fit-0"}
    present(replace(report, head=replace(report.head, stages=stages)), tmp_path)
    assert "questions.html" not in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert path.is_file()


def test_a_report_without_the_page_has_no_link_to_it(run_folder: Path, tmp_path: Path):
    present(read_report(run_folder), tmp_path)
    assert "questions.html" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_altered_samples_are_one_clear_error(run_folder: Path, tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    opened_run = reopened(run)
    collected = collect(opened_run)
    for file in run.glob("stages/evaluate-*/**/samples_*.jsonl"):
        file.write_text(file.read_text().replace('"arguments"', '"argument"'))
    with pytest.raises(UserError, match="not laid out as lm_eval writes"):
        write_questions(collected, run)
