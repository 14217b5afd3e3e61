"""What a group says about its tasks holds in `w2s run`, and a task with two settings is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bad_input import one_clear_error

from trainers.config.reading import load
from trainers.fit import lora
from trainers.fit.lora import Lora
from trainers.flow.progress import Progress
from trainers.flow.run import Run, open_run
from trainers.harness import evaluate as hn
from trainers.report.report import write_report
from w2s_tasks.plugin.eval_arguments import checked
from w2s_tasks.plugin.manager import W2STaskManager
from w2s_tasks.plugin.task_settings import settings
from w2s_tasks.results.read import read_samples

GROUP = """\
group: asked
task:
  - task: own_reviews
    doc_to_text: "Verdict on {{text}}:"
    num_fewshot: 1
    description: "Judge films.\\n\\n"
    metric_list:
      - {metric: acc_norm, aggregation: mean, higher_is_better: true}
      - {metric: acc, aggregation: mean, higher_is_better: true}
"""
PLAIN = "group: plain\ntask: [own_reviews]\n"
TWICE = "group: twice\ntask:\n  - {task: own_reviews, num_fewshot: 0}\n  - {task: own_reviews, num_fewshot: 3}\n"
NESTED = "group: nested\ntask: [asked, plain]\n"
SAME = "group: same\ntask:\n  - own_reviews\n  - {task: own_reviews}\n"
TAGGED = "group: tagged\ntask:\n  - {task: own_reviews, target_delimiter: '\\n'}\n  - films\n"


@pytest.fixture
def groups(own_task: Path) -> Path:
    """`own_reviews`, with the tag `films`, and the groups above."""
    yaml = own_task / "own_reviews.yaml"
    yaml.write_text("tag: films\n" + yaml.read_text())
    for name, text in (("asked", GROUP), ("plain", PLAIN), ("twice", TWICE), ("nested", NESTED), ("tagged", TAGGED)):
        (own_task / f"{name}.yaml").write_text(text)
    (own_task / "same.yaml").write_text(SAME)
    return own_task


def evaluated(task: hn.HarnessTask, folder: Path, model: Path, out: Path, shots: int | None) -> tuple[dict[str, Any], Any]:
    """A row and the results of an evaluation of 4 rows by lm_eval itself."""
    ref = lora.base_ref(Lora(model=str(model)))
    hn.evaluate(hn.Harness([str(folder)]), hn.ModelPool(), ref, {task: 4}, out, style=hn.PromptStyle(shots))
    (samples,), (result,) = out.rglob("samples_*"), out.rglob("results_*")
    return read_samples(samples)[0], json.loads(result.read_text())["results"][task.name]


def test_lm_eval_asks_what_the_group_says(groups: Path, causal_model: Callable[[str], Path], tmp_path: Path):
    (task,) = hn.Harness([str(groups)]).load(["asked"])
    row, results = evaluated(task, groups, causal_model("llama"), tmp_path / "own", None)
    prompt = row["arguments"]["gen_args_0"]["arg_0"]
    assert prompt.startswith("Judge films.\n\nVerdict on ")
    assert prompt.count("Verdict on") == 2  # one shot
    assert "acc_norm,none" in results
    assert task.shots(hn.PromptStyle(None)) == 1
    # What training and labelling render is what was asked.
    assert task.pairs(row["doc"], hn.PromptStyle())[0][0] == f"Judge films.\n\nVerdict on {row['doc']['text']}:"


def test_the_number_of_shots_of_one_evaluation_is_not_kept_for_the_next(
    groups: Path, causal_model: Callable[[str], Path], tmp_path: Path
):
    (task,) = hn.Harness([str(groups)]).load(["asked"])
    for shots in (3, None):
        row, _ = evaluated(task, groups, causal_model("llama"), tmp_path / f"shots_{shots}", shots)
        assert row["arguments"]["gen_args_0"]["arg_0"].count("Verdict on") == (shots or 1) + 1


OVERRIDES = [
    "doc_to_text: 'Is {{text}} good?'",
    "doc_to_choice: ['bad', 'good']",
    "description: 'Judge. '",
    "target_delimiter: ''",
    "fewshot_delimiter: '\\n'",
    "gen_prefix: 'It is'",
    "metric_list: [{metric: acc_norm}]",
    "fewshot_config: {sampler: first_n}",
    "fewshot_config: {doc_to_text: 'Say {{text}}'}",
    "filter_list: [{name: f, filter: [{function: take_first}]}]",
    "repeats: 2",
    "generation_kwargs: {until: ['x']}",
    "metadata: {version: 2.0}",
]


@pytest.mark.parametrize("override", OVERRIDES)
def test_every_setting_of_a_group_changes_what_a_stage_is_found_by(override: str, groups: Path):
    (groups / "other.yaml").write_text(f"group: other\ntask:\n  - task: own_reviews\n    {override}\n")
    harness, style = hn.Harness([str(groups)]), hn.PromptStyle()
    assert harness.load(["other"])[0].renderer_hash(style) != harness.task("own_reviews").renderer_hash(style)


def test_a_hash_does_not_hang_on_what_was_hashed_before_or_on_where_the_task_is(groups: Path, tmp_path: Path):
    styles = [hn.PromptStyle(n) for n in (0, 2, 5)]
    forth, back = (hn.Harness([str(groups)]).task("own_reviews") for _ in range(2))
    assert [forth.renderer_hash(s) for s in styles] == [back.renderer_hash(s) for s in reversed(styles)][::-1]
    elsewhere = tmp_path / "elsewhere"
    groups.rename(elsewhere)
    yaml = elsewhere / "own_reviews.yaml"
    yaml.write_text(yaml.read_text().replace(str(groups), str(elsewhere)))
    moved = hn.Harness([str(elsewhere)]).task("own_reviews")
    assert [moved.renderer_hash(s) for s in styles] == [forth.renderer_hash(s) for s in styles]


@pytest.mark.parametrize(
    ("names", "setting"),
    [
        (["twice"], "num_fewshot"),
        (["nested"], "description"),
        (["tagged"], "target_delimiter"),
        (["asked", "plain"], "doc_to_text"),
        (["own_reviews", "asked"], "metric_list"),
        (["films", "asked"], "num_fewshot"),
    ],
)
def test_two_settings_of_one_task_are_refused_by_name(names: list[str], setting: str, groups: Path):
    message = one_clear_error(
        lambda: hn.Harness([str(groups)]).load(names), rf"named twice.*{setting}.*task: own_reviews_2", names="own_reviews"
    )
    assert "include" in message


def test_w2s_eval_refuses_them_too(groups: Path):
    manager = W2STaskManager(include_path=[str(groups)])
    one_clear_error(lambda: manager.load(["twice"]), "'own_reviews' is named twice, and its num_fewshot differ")
    one_clear_error(lambda: manager.load(["asked", "plain"]), "Duplicate task 'own_reviews'.*Name it once")
    assert checked(["--model", "dummy", "--tasks", "own_reviews"])


@pytest.mark.parametrize("names", [["same"], ["plain", "own_reviews"], ["plain", "same", "films"], ["asked", "asked"]])
def test_a_task_named_twice_with_one_setting_is_one_task(names: list[str], groups: Path):
    assert [task.name for task in hn.Harness([str(groups)]).load(names)] == ["own_reviews"]


def opened(file: Path, runs: Path, *sets: str) -> Run:
    base = ["split.limit={weak: 48, transfer: 32}", "arms=[zero_shot]", "evaluate.limit=8"]
    return open_run(load(str(file), [*base, *sets])[0], runs)


def test_the_training_task_and_the_group_that_asks_it_otherwise_are_two_evaluations(
    groups: Path, experiment_file: Path, tmp_path: Path
):
    flow = opened(experiment_file, tmp_path / "runs", "safety={tasks: [asked], limit: 6, num_fewshot: null}")
    flow.build(Progress(quiet=True))
    prompts = {}
    for kind in ("evaluate", "safety"):
        (samples,) = flow.stages[f"{kind}/zero_shot"].path.rglob("samples_*")
        prompts[kind] = read_samples(samples)[0]["arguments"]["gen_args_0"]["arg_0"]
    assert prompts["evaluate"].startswith("Review: ")
    assert prompts["safety"].startswith("Judge films.\n\nVerdict on ")
    report = write_report(flow)[0].json()
    assert [(entry["task"], entry["n"]) for entry in report["safety"]] == [("own_reviews", 6)]


def test_a_changed_group_is_evaluated_anew_and_nothing_else(groups: Path, experiment_file: Path, tmp_path: Path):
    sets = "safety={tasks: [asked], limit: 6, num_fewshot: null}"
    before = opened(experiment_file, tmp_path / "runs", sets)
    (groups / "asked.yaml").write_text(GROUP.replace("Verdict on", "Thoughts on"))
    after = opened(experiment_file, tmp_path / "runs", sets)
    assert [
        name for name, step in before.layout.steps.items() if before.key(step) != after.key(after.layout.steps[name])
    ] == ["safety/zero_shot"]


def test_shots_that_lm_eval_would_leave_out_are_refused(groups: Path, experiment_file: Path, tmp_path: Path):
    (groups / "none.yaml").write_text("group: none\ntask:\n  - {task: own_reviews, num_fewshot: 0}\n")
    one_clear_error(
        lambda: opened(experiment_file, tmp_path / "runs", "safety={tasks: [none], num_fewshot: [0, 4]}"),
        "without the 4 shots that are wanted: it says `num_fewshot: 0`",
        names="own_reviews",
    )
    opened(experiment_file, tmp_path / "runs", "safety={tasks: [none], num_fewshot: 0}")


def test_settings_hold_no_address_and_no_path(groups: Path):
    for name in ("own_reviews", "w2s_ethics_probe_justice", "w2s_ethics_probe_utilitarianism_gen"):
        text = json.dumps(settings(hn.Harness([str(groups)]).task(name).task, without=("dataset_kwargs",)))
        assert " at 0x" not in text
        assert str(groups) not in text
