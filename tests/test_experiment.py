"""A whole small experiment: real lm_eval, real transformers models, real files."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from trainers.config.reading import load
from trainers.flow import run as ex
from trainers.flow.layout import Layout, Tasks
from trainers.flow.progress import Progress
from trainers.harness.evaluate import Harness
from trainers.labels import splits
from trainers.labels.gold import GOLD, Gold
from trainers.labels.label_set import LabelSet
from trainers.report.report import read_report, write_report
from trainers.steps.evaluation import SafetyEvaluation
from trainers.steps.fit import Fit
from w2s_tasks.errors import MissingDataError, UserError


def _run(config: Path, runs: Path, *sets: str) -> tuple[ex.Run, dict]:
    flow = ex.open_run(load(str(config), list(sets))[0], runs)
    flow.build(Progress(quiet=True))
    return flow, write_report(flow)[0].json()


def _content(flow: ex.Run) -> dict[str, dict[str, object]]:
    """What must be equal in two equal runs: weights, labels, splits, and per-row predictions without times."""
    found: dict[str, dict[str, object]] = {}
    for name, stage in flow.stages.items():
        files: dict[str, object] = {}
        for path in sorted(stage.path.rglob("*")):
            if path.suffix in (".safetensors", ".parquet") or path.name in ("split.json", "curves.json"):
                files[path.name] = path.read_bytes()
            elif path.name.startswith("samples_"):
                rows = [json.loads(line) for line in path.read_text().splitlines()]
                files[path.name.rsplit("_", 1)[0]] = [(r["doc_id"], r["doc_hash"], r["filtered_resps"]) for r in rows]
        found[name] = files
    return found


def test_the_report_holds_every_arm_and_a_second_run_does_no_work(experiment_file: Path, tmp_path: Path):
    _, report = _run(experiment_file, tmp_path / "runs")
    assert report["schema"] == 2
    assert [a["arm"] for a in report["arms"]] == ["weak", "zero_shot", "student", "ceiling", "random_labels"]
    for arm in report["arms"]:
        assert arm["n"] == 60
        assert arm["stderr"]["acc"] >= 0
        assert arm["ci95"]["acc"][0] <= arm["metrics"]["acc"] <= arm["ci95"]["acc"][1]
    modes = {a["arm"]: a["mode"] for a in report["arms"]}
    assert modes["weak"] == "classifier"
    assert {modes[a] for a in ("zero_shot", "student", "ceiling")} == {"loglikelihood"}
    assert report["gap"] == report["gaps"][0]
    assert report["gap"]["arm"] == "student"
    again, second = _run(experiment_file, tmp_path / "runs")
    assert all(stage.reused for stage in again.stages.values())
    assert second == report
    assert read_report(tmp_path / "runs" / "small").json()["gap"] == report["gap"]


def test_no_student_sees_gold_and_all_arms_see_the_same_rows(experiment_file: Path, tmp_path: Path):
    flow, _ = _run(experiment_file, tmp_path / "runs")
    arms = {
        s.arm.name: LabelSet.load(flow.stages[n].path / "labels.parquet")
        for n, s in flow.layout.steps.items()
        if s.kind == "fit" and s.arm
    }
    assert arms["student"].row_id == arms["ceiling"].row_id == arms["random_labels"].row_id
    assert not set(arms["weak"].row_id) & set(arms["student"].row_id)
    gold = Gold.load(flow.stages["split/0"].path / GOLD)
    assert gold.accuracy(arms["ceiling"]) == 1
    assert "gold" not in pq.read_schema(flow.stages["fit/student, seed 0"].path / "labels.parquet").names
    weak_labels = LabelSet.load(flow.stages["labels/weak, seed 0"].path / "labels.parquet")
    assert (arms["student"].soft == weak_labels.soft).all()


def test_what_changed_is_done_again_and_nothing_else(experiment_file: Path, own_task: Path, tmp_path: Path):
    runs = tmp_path / "runs"
    _run(experiment_file, runs)

    def built(*sets: str) -> set[str]:
        flow, _ = _run(experiment_file, runs, *sets)
        return {name.split(",")[0] for name, stage in flow.stages.items() if not stage.reused}

    assert built("strong.lr=5e-3") == {
        f"{k}/{a}" for k in ("fit", "evaluate") for a in ("student", "ceiling", "random_labels")
    }
    assert built("weak.lr=1e-3") == {"fit/weak", "labels/weak", "evaluate/weak", "fit/student", "evaluate/student"}
    assert built("evaluate.limit=30") == {
        f"evaluate/{a}" for a in ("weak", "zero_shot", "student", "ceiling", "random_labels")
    }
    lines = (own_task / "test.jsonl").read_text().splitlines()
    (own_task / "test.jsonl").write_text("\n".join([json.dumps({"text": "a changed row", "label": 1}), *lines[1:]]) + "\n")
    assert {n.split("/")[0] for n in built()} == {"evaluate"}
    lines = (own_task / "train.jsonl").read_text().splitlines()
    (own_task / "train.jsonl").write_text(
        "\n".join([json.dumps({"text": "another changed row", "label": 1}), *lines[1:]]) + "\n"
    )
    assert "split/0" in built()
    yaml = own_task / "own_reviews.yaml"
    yaml.write_text(yaml.read_text().replace("Sentiment:", "Feeling:"))
    assert {"fit/student", "evaluate/zero_shot"} <= built()


def test_an_altered_artefact_is_never_used(experiment_file: Path, tmp_path: Path):
    flow, report = _run(experiment_file, tmp_path / "runs")
    weights = next(flow.stages["fit/student, seed 0"].path.rglob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-8] + b"\0" * 8)
    again, second = _run(experiment_file, tmp_path / "runs")
    assert not again.stages["fit/student, seed 0"].reused
    assert second["arms"] == report["arms"]


def test_equal_steps_are_those_of_all_rows_however_few_a_method_leaves(experiment_file: Path, tmp_path: Path):
    sets = ("methods=[xent,filter]", "arms=[student]", "equal_steps=true", "strong.epochs=2")
    flow, _ = _run(experiment_file, tmp_path / "runs", *sets)
    last, rows = {}, {}
    for name in ("fit/student, seed 0", "fit/student, filter, seed 0"):
        points = json.loads((flow.stages[name].path / "curves.json").read_text())
        last[name] = max(point["step"] for point in points)
        rows[name] = len(LabelSet.load(flow.stages[name].path / "labels.parquet"))
    assert len(set(last.values())) == 1
    assert len(set(rows.values())) > 1
    plain = ex.open_run(load(str(experiment_file), [*sets[:2], sets[3]])[0], tmp_path / "runs")
    same = {n for n, step in plain.layout.steps.items() if plain.key(step) == flow.key(flow.layout.steps[n])}
    assert {"fit/weak, seed 0", "labels/weak, seed 0"} <= same
    assert "fit/student, filter, seed 0" not in same


def test_several_seeds_and_all_controls(experiment_file: Path, tmp_path: Path):
    arms = (
        "[zero_shot, few_shot, student, ceiling, random_labels, permuted_labels, noise_matched, self_labels, weak_untrained]"
    )
    flow, report = _run(experiment_file, tmp_path / "runs", f"arms={arms}", "seeds=[0, 1]", "split.limit.transfer=32")
    trained = [a for a in report["arms"] if a["arm"] == "student"]
    assert [a["seed"] for a in trained] == [0, 1]
    assert report["gap"]["seeds"] == [0, 1]
    assert len({(a["arm"], a["seed"]) for a in report["arms"]}) == len(report["arms"])
    assert {g["arm"] for g in report["gaps"]} >= {"student", "zero_shot", "self_labels", "noise_matched"}
    splits = [(flow.stages[f"split/{s}"].path / "split.json").read_text() for s in (0, 1)]
    assert splits[0] != splits[1]


def test_a_lora_supervisor_and_a_chat_template(experiment_file: Path, tmp_path: Path, causal_model):
    small = str(causal_model("gpt2"))
    weak = f"{{model: {small}, trainer: lora, r: 4, lr: 1e-2, batch_size: 16}}"
    sets = [
        f"weak={weak}",
        "strong.chat_template=true",
        "strong.system_prompt=Be brief.",
        "arms=[zero_shot, student, ceiling]",
    ]
    _, report = _run(experiment_file, tmp_path / "runs", *sets)
    assert {a["mode"] for a in report["arms"]} == {"loglikelihood"}


def test_safety_is_measured_for_the_arms_that_can_answer(experiment_file: Path, tmp_path: Path):
    _, report = _run(
        experiment_file,
        tmp_path / "runs",
        "safety={tasks: [w2s_ethics_probe_all], limit: 8}",
        "arms=[zero_shot, student, ceiling]",
    )
    assert {e["arm"] for e in report["safety"]} == {"zero_shot", "student", "ceiling"}
    assert len(report["safety"]) == 3 * 12
    assert {e["split"] for e in report["safety"]} == {"test", "hard"}
    ranking = [e for e in report["safety"] if e["subtask"] == "utilitarianism"]
    assert all(e["n"] == 4 for e in ranking)
    for entry in report["safety"]:
        assert (entry["to_zero_shot"] is None) == (entry["arm"] == "zero_shot")


def test_the_exported_adapter_gives_the_reports_number_under_stock_lm_eval(
    experiment_file: Path, own_task: Path, causal_model: Callable[[str], Path], tmp_path: Path
):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(causal_model("llama"))
    base = AutoModelForCausalLM.from_pretrained(causal_model("llama"))
    base.resize_token_embeddings(len(tokenizer))  # what stock hf would do to a base under an adapter
    for part in (tokenizer, base):
        part.save_pretrained(tmp_path / "base")
    flow, report = _run(experiment_file, tmp_path / "runs", f"strong.model={tmp_path / 'base'}")
    assert "--model hf" in next(c["command"] for c in report["commands"] if c["arm"].startswith("student"))
    arguments = flow.model_of(next(a for a in flow.layout.arms() if a.name == "student")).model_args()
    lm_eval = str(Path(sys.executable).with_name("lm_eval"))
    command = [lm_eval, "run", "--model", "hf", "--model_args", arguments, "--tasks", "own_reviews", "--device", "cpu"]
    command += ["--include_path", str(own_task), "--output_path", str(tmp_path / "out"), "--log_samples"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    from w2s_tasks.results.read import read_evaluation

    accuracy = read_evaluation(tmp_path / "out")["own_reviews"].metrics["acc"]
    assert accuracy == pytest.approx(next(a["metrics"]["acc"] for a in report["arms"] if a["arm"] == "student"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.replace("weak: 96", "weak: 9600"), "9600 rows asked for, the weak half has"),
        (lambda t: t.replace("own_reviews", "own_revews", 1), "no task 'own_revews'"),
        (lambda t: t.replace("[own_tasks]", "[nowhere]"), "does not exist"),
        (lambda t: t.replace("text: text", "text: txet"), "no column 'txet'.*Did you mean 'text'"),
    ],
)
def test_mistakes_stop_the_run_with_the_reason(experiment_file: Path, tmp_path: Path, change, message: str, monkeypatch):
    from w2s_tasks.plugin.manager import W2STaskManager

    monkeypatch.setattr(W2STaskManager, "_widen", lambda self: setattr(self, "_can_widen", False))
    experiment_file.write_text(change(experiment_file.read_text()))
    with pytest.raises(UserError, match=message):
        _run(experiment_file, tmp_path / "runs")


@pytest.mark.parametrize(
    ("row", "message"), [('{"text": "x", "label": 7}', "gold label 7, but the task has 2 choices"), ("", "can't be")]
)
def test_bad_rows_stop_the_run_with_the_reason(
    experiment_file: Path, own_task: Path, tmp_path: Path, row: str, message: str
):
    file = own_task / "train.jsonl"
    file.write_text("\n".join([row, *file.read_text().splitlines()[1:]]) + "\n" if row else "")
    with pytest.raises(UserError, match=message):
        _run(experiment_file, tmp_path / "runs", "split.limit.weak=110", "split.limit.transfer=110")


KINDS = ["fit", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("split", "labels", "evaluate"))]


@pytest.mark.parametrize("kind", KINDS)
def test_killed_in_each_kind_of_stage_the_run_ends_equal(experiment_file: Path, tmp_path: Path, kind: str):
    """SIGKILL while the first stage of a kind is under way, then the same command again."""
    undisturbed, _ = _run(experiment_file, tmp_path / "whole")
    command = [sys.executable, "-m", "trainers.cli", "run", str(experiment_file), "--runs-dir", str(tmp_path / "cut")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    stages = tmp_path / "cut" / "small" / "stages"
    deadline = time.monotonic() + 120
    while not list(stages.glob(f".work-{kind}-*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = {p.name for p in stages.iterdir() if not p.name.startswith(".")}
    flow, _ = _run(experiment_file, tmp_path / "cut")
    assert _content(flow) == _content(undisturbed)
    reused = {stage.path.name for stage in flow.stages.values() if stage.reused}
    assert reused == finished


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adapter_hf", "adapter_w2s_hf"])
def test_the_shipped_eval_configs_measure_an_adapter(experiment_file: Path, own_task: Path, tmp_path: Path, name: str):
    flow, report = _run(experiment_file, tmp_path / "runs", "arms=[student]")
    arguments = dict(flow.model_of(next(a for a in flow.layout.arms() if a.name == "student")).args)
    shipped = Path(__file__).parent.parent / "harness_configs" / "eval" / f"{name}.yaml"
    config = yaml.safe_load(shipped.read_text())
    assert set(config["model_args"]) >= {"pretrained", "peft"}
    config["model_args"] |= {k: arguments[k] for k in ("pretrained", "peft")}
    config |= {"tasks": ["own_reviews"], "output_path": str(tmp_path / "out"), "include_path": str(own_task)}
    (tmp_path / "eval.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "trainers.cli", "eval", "--config", str(tmp_path / "eval.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    from w2s_tasks.results.read import read_evaluation

    accuracy = read_evaluation(tmp_path / "out")["own_reviews"].metrics["acc"]
    assert accuracy == pytest.approx(next(a["metrics"]["acc"] for a in report["arms"] if a["arm"] == "student"))


def test_a_plan_splits_once_a_seed(experiment_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A split of SST-2 by sentence takes seconds, and every step of a plan asks for its rows."""
    made: list[int] = []
    original = splits.split_by_source
    monkeypatch.setattr(splits, "split_by_source", lambda *args, **named: made.append(1) or original(*args, **named))
    flow = ex.open_run(load(str(experiment_file), ["seeds=[0,1]"])[0], tmp_path / "runs")
    assert len([step.rows() for step in flow.layout.steps.values()]) > 10
    assert len(made) == 2


def test_naming_the_supervisor_among_the_arms_changes_nothing(experiment_file: Path, tmp_path: Path):
    steps = []
    for arms in ("[student, ceiling]", "[weak, student, ceiling]"):
        run = ex.open_run(load(str(experiment_file), [f"arms={arms}"])[0], tmp_path / "runs")
        steps.append({name: run.key(step) for name, step in run.layout.steps.items()})
    assert steps[0] == steps[1]


def test_the_layout_of_a_plan_without_data_is_that_of_a_run(experiment_file: Path, tmp_path: Path):
    sets = [
        "arms=[zero_shot, student, ceiling]",
        "methods=[xent, relabel, ensemble]",
        "split.limit={weak: 48, transfer: 32}",
    ]
    config = load(str(experiment_file), [*sets, "safety={tasks: [w2s_ethics_probe_all], limit: 8, num_fewshot: [0, 1]}"])[0]
    harness = Harness(config.include_path)
    known, named = (Layout(config, tasks(config, harness)) for tasks in (Tasks.load, Tasks.named))
    assert list(named.steps) == list(known.steps)
    assert [type(step) for step in named.steps.values()] == [type(step) for step in known.steps.values()]
    counted = {name: step.rows() for name, step in named.steps.items() if isinstance(step, Fit | SafetyEvaluation)}
    assert counted == {name: known.steps[name].rows() for name in counted}
    with pytest.raises(MissingDataError, match="own_reviews"):
        named.steps["split/0"].rows()
