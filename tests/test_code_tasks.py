"""Tasks about programs: the set that `w2s build` makes, and programs that a model writes, on problems made here."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lm_eval.api.model import LM
from test_harder_experiments import small_report
from test_public_sets import lm_eval

from w2s_tasks import TASK_PATH, sandbox
from w2s_tasks.errors import MissingDataError, UserError
from w2s_tasks.plugin.manager import W2STaskManager
from w2s_tasks.results.read import read_evaluation
from w2s_tasks.rows import code_check, programs
from w2s_tasks.rows.readable import unreadable
from w2s_tasks.scoring import programs as scoring
from w2s_tasks.scoring.generated import UNPARSED

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="programs are run on Linux alone")

N = 8


def problem(i: int) -> dict[str, str]:
    """A row of HumanEval's schema: add a number to each of a list's."""
    return {
        "task_id": f"Made/{i}",
        "prompt": f'from typing import List\n\n\ndef plus{i}(xs: List[int]):\n    """ Each of xs plus {i}.\n    """\n',
        "canonical_solution": f"    found = []\n    for x in xs:\n        found.append(x + {i})\n    return found\n",
        "test": f"def check(candidate):\n    assert candidate([1, 5]) == [{i + 1}, {i + 5}]\n    assert not candidate([])\n",
        "entry_point": f"plus{i}",
    }


def task_of_mbpp(i: int) -> dict[str, Any]:
    """A row of MBPP's schema."""
    return {
        "task_id": i,
        "text": f"Write a function to multiply by {i}.",
        "code": f"def helper(x):\r\n  return x\r\ndef times(x):\r\n  return helper(x) * {i}",
        "test_list": [f"assert times({k}) == {i * k}" for k in (1, 2, 3)],
        "test_setup_code": "",
        "challenge_test_list": [],
    }


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_humaneval(root: Path, rows: list[dict[str, Any]]) -> None:
    write(root / "openai" / "openai_humaneval" / "test.jsonl", rows)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """$W2S_DATA with both sets, of made rows, and an empty cache."""
    root = tmp_path / "data"
    write_humaneval(root, [problem(i) for i in range(1, N + 1)])
    mbpp = root / "google-research-datasets" / "mbpp"
    ids = {"prompt": range(1, 6), "train": range(10, 18), "validation": range(20, 23), "test": range(30, 36)}
    for split, numbers in ids.items():
        write(mbpp / f"{split}.jsonl", [task_of_mbpp(i) for i in numbers])
    files = "".join(f"  - {{split: {split}, path: {split}.jsonl}}\n" for split in ids)
    (mbpp / "README.md").write_text(f"---\nconfigs:\n- config_name: full\n  data_files:\n{files}---\n")
    monkeypatch.setenv("W2S_DATA", str(root))
    monkeypatch.setenv("W2S_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(code_check, "WRONG", 2)
    return root


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The programs that the sandbox ran."""
    ran: list[str] = []
    run = sandbox.run

    def noted(program: str, *args: Any) -> sandbox.Outcome:
        ran.append(program)
        return run(program, *args)

    monkeypatch.setattr(sandbox, "run", noted)
    return ran


# --- the built set ---------------------------------------------------------------------------------------------------------


def test_a_built_set_goes_through_a_whole_experiment(
    made: Path, tmp_path: Path, encoder_folder: Path, causal_model: Callable[[str], Path]
):
    write(made / "google-research-datasets" / "mbpp" / "train.jsonl", [task_of_mbpp(i) for i in range(40, 60)])
    code_check.build("code_check_mbpp")
    report = small_report(tmp_path, "w2s_code_check_mbpp", encoder_folder, causal_model("llama"), rows=8, asked=6)
    assert report["weak_labels"][0]["n"] == 8


def test_a_set_is_built_once_and_what_it_says_is_so(made: Path, runs: list[str]):
    folder, before = code_check.build("code_check")
    assert not before
    assert code_check.counts(folder) == (N, N)
    number = len(runs)
    assert code_check.build("code_check") == (folder, True)
    assert len(runs) == number
    tests = {row["task_id"]: programs.humaneval_tests(row) for row in (problem(i) for i in range(1, N + 1))}
    for one in code_check.read("code_check")[:4]:
        assert sandbox.run(one["right"], tests[one["name"]]).passed
        assert len({wrong["program"] for wrong in one["wrong"]} | {one["right"]}) == 1 + len(one["wrong"])
        for wrong in one["wrong"]:
            assert sandbox.run(wrong["program"], tests[one["name"]]).ended == "AssertionError"
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == [folder.name]


def test_an_interrupted_build_goes_on(made: Path, runs: list[str], monkeypatch: pytest.MonkeyPatch):
    built, begun = code_check.built, []

    def stopped(one: programs.Problem, *args: Any) -> Any:
        begun.append(one.name)
        if len(begun) == 6:
            raise KeyboardInterrupt
        return built(one, *args)

    monkeypatch.setattr(code_check, "built", stopped)
    monkeypatch.setattr(code_check, "code_hash", lambda roots: "code")  # the wrapper is no other code
    with pytest.raises(KeyboardInterrupt):
        code_check.build("code_check")
    with pytest.raises(MissingDataError, match="is not built here"):
        code_check.read("code_check")
    (cut,) = (Path(code_check.cache_dir()) / "built").glob(".*.begun/problems.jsonl")
    cut.write_text(cut.read_text() + '{"name": "Made/')  # the last line was cut
    first = set(begun)
    folder, before = code_check.build("code_check")
    assert not before
    assert code_check.counts(folder) == (N, N)
    assert len(set(begun[6:]) & first) <= 3  # what had not ended in order is done again
    names = [line["name"] for line in map(json.loads, (folder / code_check.FILE).read_text().splitlines())]
    assert names == [f"Made/{i}" for i in range(1, N + 1)]
    monkeypatch.setenv("W2S_CACHE", str(made / "other"))
    monkeypatch.setattr(code_check.machine, "cores", lambda: 1)
    again, _ = code_check.build("code_check")  # neither the stop nor the number of threads shows
    assert (folder / code_check.FILE).read_bytes() == (again / code_check.FILE).read_bytes()


def test_a_program_that_fails_its_tests_and_one_without_wrong_ones_are_left_out(made: Path):
    rows = [problem(i) for i in range(1, 5)]
    rows[0]["canonical_solution"] = "    return xs\n"
    rows[1]["test"] = "def check(candidate):\n    assert True\n"  # every mutant passes
    rows[2]["canonical_solution"] = "    return (\n"
    write_humaneval(made, rows)
    folder, _ = code_check.build("code_check")
    assert code_check.counts(folder) == (1, 3)
    assert [one["name"] for one in code_check.read("code_check")] == ["Made/4"]


def test_what_was_built_from_other_data_or_is_damaged_is_not_read(made: Path):
    with pytest.raises(MissingDataError, match=r"not built here.*w2s build code_check --confirm_run_unsafe_code"):
        code_check.code_check()
    folder, _ = code_check.build("code_check")
    code_check.code_check()
    text = (folder / code_check.FILE).read_text()
    (folder / code_check.FILE).write_text(text.replace("found", "lost"))
    with pytest.raises(MissingDataError, match="w2s build"):
        code_check.code_check()
    assert code_check.build("code_check") == (folder, False)
    assert (folder / code_check.FILE).read_text() == text
    write_humaneval(made, [problem(i) for i in range(2, N + 1)])
    programs.load.__globals__["_load"].cache_clear()
    with pytest.raises(MissingDataError, match="was built from other data"):
        code_check.code_check()


def test_no_flag_no_name_no_data_and_no_columns_are_told(made: Path, monkeypatch: pytest.MonkeyPatch, runs: list[str]):
    from w2s_tasks import cli

    with pytest.raises(UserError, match="--confirm_run_unsafe_code"):
        cli.build("code_check")
    with pytest.raises(UserError, match="Did you mean 'code_check'"):
        cli.build("code_chek", confirm_run_unsafe_code=True)
    write_humaneval(made / "other", [{"prompt": "x"}])
    monkeypatch.setenv("W2S_DATA", str(made / "other"))
    with pytest.raises(UserError, match="no canonical_solution, entry_point, task_id, test"):
        cli.build("code_check", confirm_run_unsafe_code=True)
    monkeypatch.setenv("W2S_DATA", str(made / "nothing"))
    with pytest.raises(MissingDataError, match="openai/openai_humaneval"):
        cli.build("code_check", confirm_run_unsafe_code=True)
    assert runs == []


def test_rows_one_by_a_coin_or_both_and_no_problem_on_two_sides(made: Path):
    code_check.build("code_check")
    single, pairs = code_check.code_check(), code_check.code_check(variants=2)
    for splits, size in ((single, 1), (pairs, 2)):
        rows = [row for data in splits.values() for row in data]
        assert not set(splits["train"]["problem"]) & set(splits["validation"]["problem"])
        assert set(Counter(row["w2s_group"] for row in rows).values()) == {size}
        assert all((row["operator"] == "") == bool(row["label"]) for row in rows)
        assert '"""' in rows[0]["problem"]
        assert '"""' not in rows[0]["program"]
    assert {row["label"] for data in single.values() for row in data} == {0, 1}
    assert np.mean([row["label"] for data in pairs.values() for row in data]) == 0.5
    seen = {(row["task_id"], row["program"]) for data in pairs.values() for row in data}
    assert {(row["task_id"], row["program"]) for data in single.values() for row in data} <= seen


def test_mbpps_own_splits_and_functions_are_taken(made: Path):
    found = programs.mbpp_problems()
    assert Counter(one.split for one in found) == {"train": 13, "validation": 9}
    assert {one.function for one in found} == {"times"}
    assert found[0].statement.startswith("# Write a function to multiply by")
    assert "# Example: assert times(1) ==" in found[0].statement
    code_check.build("code_check_mbpp")
    assert len(code_check.code_check("code_check_mbpp")["validation"]) == 9


MARKS = "<= >= < > == != not and or + - * / % 0 1 2 ( [ : return if else for max min True False".split()


def surface(program: str) -> list[int]:
    """What can be counted without understanding: length, lines, words, operators and keywords."""
    return [len(program), program.count("\n"), len(program.split()), *(program.count(mark) for mark in MARKS)]


@pytest.mark.slow
def test_surface_features_tell_next_to_nothing_on_humaneval(
    real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    monkeypatch.setenv("W2S_CACHE", str(tmp_path))
    folder, _ = code_check.build("code_check")
    kept, problems = code_check.counts(folder)
    assert problems == 164
    assert kept > 145
    for variants in (1, 2):
        rows = [row for data in code_check.code_check(variants=variants).values() for row in data]
        labels, groups = (np.array([row[column] for row in rows]) for column in ("label", "w2s_group"))
        features = np.array([surface(row["program"]) for row in rows], float)
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
        folds = {"groups": groups, "cv": GroupKFold(10), "method": "predict_proba"}
        told = cross_val_predict(model, features, labels, **folds)[:, 1]
        assert 0.4 < roc_auc_score(labels, told) < 0.6
        for column in range(3):
            assert 0.4 < roc_auc_score(labels, features[:, column]) < 0.6


# --- programs that a model writes ------------------------------------------------------------------------------------------

ROW = problem(3)
BODY = ROW["canonical_solution"]
WRONG = BODY.replace("+", "-")
PASSES, FAILS = scoring.PASSES, scoring.FAILS


@pytest.mark.parametrize(
    ("reply", "found", "strict"),
    [
        ("\n" + BODY, PASSES, PASSES),
        ("\n" + WRONG, FAILS, FAILS),
        (BODY, PASSES, UNPARSED),  # goes on in the docstring's line
        (BODY.lstrip(), PASSES, UNPARSED),
        (f"\n{BODY}\nThis function adds three.", PASSES, UNPARSED),
        (f"Sure:\n```python\n{ROW['prompt']}{BODY}```\nIt adds.", PASSES, UNPARSED),
        (f"Sure:\n```python\n{ROW['prompt']}{WRONG}```", FAILS, UNPARSED),
        (f"```\n{BODY}```", PASSES, UNPARSED),
        (f"```python\n{ROW['prompt']}{BODY}", PASSES, UNPARSED),  # cut before the block's end
        (f"First:\n```\npip install x\n```\nthen\n```python\n{ROW['prompt']}{BODY}```", PASSES, UNPARSED),
        ("\n\ndef plus3(xs):\n    return [x + 3 for x in xs]", PASSES, PASSES),
        ("", UNPARSED, UNPARSED),
        ("   \n", UNPARSED, UNPARSED),
        ("?", UNPARSED, UNPARSED),
        ("\n    return '\ud800'", UNPARSED, UNPARSED),
        ("\n    import sys; sys.exit(0)", FAILS, FAILS),
        ("\n    \0", UNPARSED, UNPARSED),
        ("\n    return " + "(" * 5000, UNPARSED, UNPARSED),
        ("\n    pass\nimport os; os._exit(0)", FAILS, FAILS),
    ],
)
def test_a_reply_is_read_leniently_and_as_it_stands(reply: str, found: int, strict: int):
    item = scoring.humaneval(ROW, [reply])
    assert item["acc"] == item["unparsed_stderr"] == (1, found, strict, -1)


class Replies(LM):
    """Gives every prompt that holds a key its reply, through lm_eval's own stop sequences."""

    def __init__(self, replies: dict[str, str]) -> None:
        super().__init__()
        self.replies, self.prompts = replies, []  # type: ignore[var-annotated]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        found = []
        for request in requests:
            prompt, settings = request.args
            self.prompts.append(prompt)
            reply = next(reply for key, reply in self.replies.items() if key in prompt.rsplit("\n\nYou are", 1)[-1])
            for stop in settings["until"]:
                reply = reply.partition(stop)[0]
            found.append(reply)
        return found

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
        return [(-float(len(request.args[0]) % 7) - len(request.args[1]), False) for request in requests]

    loglikelihood_rolling = loglikelihood


def test_right_and_wrong_completions_through_all_of_lm_eval(made: Path, tmp_path: Path):
    replies = {f"def plus{i}(": f"\n{problem(i)['canonical_solution']}\nprint(plus{i}([1]))" for i in range(1, N + 1)}
    replies["def plus2("] = "\n    return xs"
    replies["def plus3("] = "I can't."
    replies["def plus4("] = f"```python\n{problem(4)['prompt']}{problem(4)['canonical_solution']}```"
    names = ["w2s_humaneval", "w2s_humaneval_instruct"]
    results = lm_eval(names, tmp_path / "out", Replies(replies), confirm_run_unsafe_code=True)
    read = read_evaluation(tmp_path / "out", dict.fromkeys(names, N))
    for name, right in (("w2s_humaneval", N - 3), ("w2s_humaneval_instruct", N - 2)):  # "\ndef" cuts the block there
        scores = read[name]
        assert scores.metrics["acc"] == results[name]["acc,none"] == scores.correct.mean() == right / N
        assert scores.stderr["acc"] == results[name]["acc_stderr,none"] > 0
        assert (
            scores.unparsed == results[name]["unparsed,none"] == 1 - (1.0 if scores.parsed is None else scores.parsed.mean())
        )
        assert scores.generated
    assert results["w2s_humaneval"]["acc_strict,none"] == (N - 3) / N


def test_without_the_flag_nothing_is_run(made: Path, tmp_path: Path, runs: list[str]):
    with pytest.raises(ValueError, match="marked as unsafe"):
        lm_eval(["w2s_humaneval"], tmp_path, Replies({"": "\n    return xs"}))
    with pytest.raises(ValueError, match="marked as unsafe"):
        lm_eval(["w2s_mbpp"], tmp_path, Replies({"": "x"}))
    tasks = W2STaskManager().load(["w2s_humaneval", "w2s_humaneval_instruct", "w2s_mbpp"])["tasks"]
    assert [unreadable(task) for task in tasks.values()] == [None] * 3  # a trial of the scoring runs nothing either
    assert runs == []


def test_the_commands_flag_reaches_lm_eval(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from typer.testing import CliRunner

    from trainers.cli import app

    asked = ["eval", "--model", "dummy", "--tasks", "w2s_humaneval", "--limit", "2", "--output_path", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    refused = CliRunner().invoke(app, asked)
    assert isinstance(refused.exception, UserError)
    assert "marked as unsafe" in str(refused.exception)
    done = CliRunner().invoke(app, [*asked, "--log_samples", "--confirm_run_unsafe_code"])
    assert done.exit_code == 0, done.output
    assert read_evaluation(tmp_path / "out")["w2s_humaneval"].metrics["acc"] == 0.0  # the dummy says lol


def test_mbpp_has_its_papers_shots_and_is_scored(made: Path, tmp_path: Path):
    replies = {f"multiply by {i}.": f"\n{task_of_mbpp(i)['code']}\n[DONE] and so on" for i in range(30, 36)}
    replies["multiply by 31."] = "\ndef times(x):\n    return 0\n[DONE]"
    replies["multiply by 32."] = "```python\ndef times(x):\n    return x * 32\n```"
    model = Replies(replies)
    results = lm_eval(["w2s_mbpp"], tmp_path, model, confirm_run_unsafe_code=True)["w2s_mbpp"]
    assert (results["acc,none"], results["acc_strict,none"]) == (5 / 6, 4 / 6)
    assert read_evaluation(tmp_path)["w2s_mbpp"].correct.sum() == 5
    first = model.prompts[0]
    assert [f"multiply by {i}." in first for i in (2, 3, 4)] == [True] * 3
    assert first.count("[DONE]") == 3
    assert "\r" not in first
    assert first.endswith("\n[BEGIN]")


def test_the_built_tasks_are_scored_as_they_are_read(made: Path, tmp_path: Path):
    code_check.build("code_check")
    names = ["w2s_code_check", "w2s_code_check_pairs"]
    results = lm_eval(names, tmp_path, Replies({}))
    read = read_evaluation(tmp_path)
    for name in names:
        assert read[name].metrics["acc"] == results[name]["acc,none"] == pytest.approx(read[name].correct.mean())
    assert read["w2s_code_check"].cluster is None
    assert len(set(read["w2s_code_check_pairs"].cluster)) * 2 == read["w2s_code_check_pairs"].n
    assert "em,none" in results["w2s_code_check_pairs"]
    task = W2STaskManager().load(["w2s_code_check"])["tasks"]["w2s_code_check"]
    task.set_fewshot_seed(1234)
    assert task.fewshot_context(task.eval_docs[0], 2).count("Does this function pass its tests?\nAnswer: ") == 2


def test_the_readme_names_the_papers():
    text = (TASK_PATH / "code" / "README.md").read_text(encoding="utf-8")
    for paper in ("2107.03374", "2108.07732", "Checklist", "Changelog"):
        assert paper in text


def test_an_experiment_with_programs_is_refused_without_the_flag_and_runs_with_it(
    real_data: Path,
    experiment_file: Path,
    causal_model: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    from typer.testing import CliRunner

    from trainers.cli import app as trainers_app
    from w2s_tasks.sandbox import consent

    monkeypatch.delenv(consent.VARIABLE, raising=False)
    wide = shutil.copytree(causal_model("llama"), tmp_path / "wide")
    for name, key in (("config.json", "max_position_embeddings"), ("tokenizer_config.json", "model_max_length")):
        settings = json.loads((wide / name).read_text())
        (wide / name).write_text(json.dumps({**settings, key: 2048}))  # a program is longer than the small models' windows
    safety = ["--set", "safety={tasks: [w2s_humaneval], limit: 2}", "--set", "arms=[zero_shot]", "--set", "evaluate.limit=4"]
    safety += ["--set", f"strong.model={wide}"]
    asked = ["run", str(experiment_file), "--runs-dir", str(tmp_path / "runs"), "--quiet", *safety]
    refused = CliRunner().invoke(trainers_app, asked)
    assert refused.exit_code != 0
    assert "w2s_humaneval' runs programs that a model writes" in str(refused.exception)
    assert not list((tmp_path / "runs").rglob("model.safetensors"))  # before anything is trained
    done = CliRunner().invoke(trainers_app, [*asked, "--confirm_run_unsafe_code"])
    assert done.exit_code == 0, done.output + str(done.exception)
