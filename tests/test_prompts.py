"""Prompts: a task's paraphrases as tasks of their own, evaluations by them, and what they add to the error of a mean."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from bad_input import one_clear_error
from maintenance.coverage_prompts import PromptSetting, cover_prompts

from trainers.config.reading import load
from trainers.config.unused import unused
from trainers.flow import run as runs_of
from trainers.flow.layout import Layout, Tasks
from trainers.flow.progress import Progress
from trainers.harness import evaluate as hn
from trainers.report.report import build_report, write_report
from w2s_tasks import TASK_PATH
from w2s_tasks.plugin.manager import W2STaskManager
from w2s_tasks.results.components import crossed
from w2s_tasks.results.prompts import over_prompts, prompt_difference, prompt_sd
from w2s_tasks.results.stats import PAIR, paired_difference

GOOD_OR_BAD = {"doc_to_text": "{{text}}\nQuestion: Is this review good or bad?\nAnswer:", "doc_to_choice": ["bad", "good"]}
LIKED = {"doc_to_text": "{{text}}\nDid they like it?\nAnswer:", "doc_to_choice": ["no", "yes"]}


@pytest.fixture(autouse=True)
def _own_index_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(W2STaskManager, "_widen", lambda self: setattr(self, "_can_widen", False))


def state(folder: Path, prompts: Any, **settings: Any) -> Path:
    """Give the task `own_reviews` other prompts."""
    path = folder / "own_reviews.yaml"
    task = yaml.safe_load(path.read_text()) | settings
    task["metadata"] = {**(task.get("metadata") or {}), "prompts": prompts}
    path.write_text(yaml.safe_dump(task))
    return folder


def asked(folder: Path, number: int) -> hn.HarnessTask:
    """By its name, as every command does."""
    return hn.Harness([str(folder)]).task(f"own_reviews@prompt{number}")


# ---- tasks ----------------------------------------------------------------------------------------------------------------


def test_a_paraphrase_asks_the_same_rows_with_other_words_for_the_same_classes(own_task: Path):
    own = hn.Harness([str(own_task)]).task("own_reviews")
    before = own.renderer_hash(hn.PromptStyle())
    state(own_task, [GOOD_OR_BAD, LIKED])
    base, other = hn.Harness([str(own_task)]).task("own_reviews"), asked(own_task, 3)
    assert base.renderer_hash(hn.PromptStyle()) == before, "a task's own prompt is not changed by its paraphrases"
    docs = list(base.task.eval_docs)
    assert list(other.task.eval_docs) == docs
    assert [other.gold(doc) for doc in docs] == [base.gold(doc) for doc in docs]
    (context, first), (_, second) = other.pairs(docs[0], hn.PromptStyle(num_fewshot=6))
    assert (first, second) == (" no", " yes")
    assert context.endswith(f"{docs[0]['text']}\nDid they like it?\nAnswer:")
    shown = [line for line in context.splitlines() if line.startswith("Answer:")]
    assert set(shown[:6]) == {"Answer: no", "Answer: yes"}, "shots are asked and answered in the same words"
    same = base.asked_by(3)
    assert same.pairs(docs[0], hn.PromptStyle()) == other.pairs(docs[0], hn.PromptStyle())
    assert same.renderer_hash(hn.PromptStyle(2)) == other.renderer_hash(hn.PromptStyle(2)) != before
    assert base.asked_by(3) is same
    assert base.asked_by(1) is base


@pytest.mark.parametrize("target", ["{{ ['negative', 'positive'][label] }}", "{{label}}"])
def test_a_label_that_names_its_choice_still_does_in_other_words(own_task: Path, target: str):
    base = hn.Harness([str(state(own_task, [LIKED], doc_to_target=target))]).task("own_reviews")
    other = base.asked_by(2)
    docs = list(base.task.eval_docs)
    assert [other.gold(doc) for doc in docs] == [base.gold(doc) for doc in docs] == [doc["label"] for doc in docs]
    context = other.pairs(docs[0], hn.PromptStyle(num_fewshot=4))[0][0]
    assert {line for line in context.splitlines() if line.startswith("Answer: ")} == {"Answer: no", "Answer: yes"}


@pytest.mark.parametrize(
    ("prompts", "number", "message"),
    [
        ([], 2, r"only its own prompt, and prompt 2 is asked for.*metadata: \{prompts"),
        ([LIKED], 3, "only 2 prompts, and prompt 3 is asked for"),
        ([{"doc_to_txt": "x"}], 2, "prompt 2 of its metadata sets 'doc_to_txt'.*mean 'doc_to_text'"),
        ([{**LIKED, "doc_to_text": 3}], 2, "doc_to_text must be a text"),
        ([{**LIKED, "doc_to_choice": [False, True]}], 2, 'put quotes around them: \\["no", "yes"\\]'),
        ([{**LIKED, "doc_to_choice": ["a", "b", "c"]}], 2, "as many different ones are needed"),
        ([{**LIKED, "doc_to_choice": ["a", "a"]}], 2, "as many different ones are needed"),
        ([{**LIKED, "doc_to_choice": "{{ ['a', 'b'] }}"}], 2, "as a list of words"),
        ([{"doc_to_text": "{{sentence}}"}, {"doc_to_text": "{{ text.nothing() }}"}], 3, "can't be read"),
        ("LIKED", 2, "must be a list of prompts"),
        ([["x"]], 2, "must be a list of prompts"),
    ],
)
def test_a_paraphrase_that_is_none_is_refused(own_task: Path, prompts: Any, number: int, message: str):
    base = hn.Harness([str(state(own_task, prompts))]).task("own_reviews")
    one_clear_error(lambda: base.asked_by(number), message, names="own_reviews")


def test_groups_twins_and_unknown_endings_are_told():
    harness = hn.Harness()
    one_clear_error(lambda: harness.load(["w2s_ethics_probe@prompt2"]), "is a group; ask one of its tasks as TASK@prompt2")
    one_clear_error(
        lambda: harness.task("w2s_ethics_probe_justice_gen@prompt2"), "replies are read by those of the task's own"
    )
    one_clear_error(lambda: harness.load(["w2s_ethics_probe_justice@prompt1"]), "another prompt: prompt2, prompt3")


def test_a_form_has_paraphrases_of_its_own():
    task = hn.Harness().task("w2s_ethics_probe_justice@verify")
    other = task.asked_by(3)
    assert other.name == "w2s_ethics_probe_justice@verify@prompt3"
    assert other.classes == ["wrong", "correct"]
    assert list(other.task.eval_docs) == list(task.task.eval_docs)


def stated() -> dict[str, list[dict[str, Any]]]:
    """The paraphrases of this suite's YAMLs, by file."""

    class Loose(yaml.SafeLoader):
        pass

    Loose.add_constructor("!function", lambda loader, node: node.value)
    found = {}
    for path in [*TASK_PATH.rglob("*.yaml"), TASK_PATH / "nlp" / "_nlp_yaml"]:
        metadata = yaml.load(path.read_text(encoding="utf-8"), Loose).get("metadata") or {}  # noqa: S506
        if "prompts" in metadata:
            found[path.name] = metadata["prompts"]
    return found


def test_this_suites_paraphrases_come_in_pairs_and_their_words_differ_from_the_first_on():
    files = stated()
    assert len(files) >= 13
    for name, prompts in files.items():
        assert len(prompts) == 2, name
        for prompt in prompts:
            assert not prompt["doc_to_text"].endswith((" ", "\n")), name
            assert "\n\n" not in prompt["doc_to_text"], name  # what separates shots
            words = prompt.get("doc_to_choice", ["a", "b"])
            assert len({word[0] for word in words}) == len(words) or words == ["unjustified", "justified"], (name, words)
    assert files["w2s_moral_scenarios.yaml"] == files["w2s_moral_scenarios_parted.yaml"]
    assert files["_nlp_yaml"] == files["sst2.yaml"]


# ---- experiments ----------------------------------------------------------------------------------------------------------

SAFETY = "safety={tasks: [w2s_ethics_probe_justice], limit: 8, num_fewshot: [0, 1], prompts: 2}"


def test_a_layout_has_a_step_a_prompt_of_strong_models_at_the_end_of_training(experiment_file: Path, own_task: Path):
    state(own_task, [GOOD_OR_BAD, LIKED])
    sets = ["arms=[zero_shot, student, few_shot(2), in_context(2)]", "evaluate.checkpoints=[0.5]"]
    plain = Layout.load(load(str(experiment_file), [*sets, SAFETY.replace(", prompts: 2", "")])[0])
    config = load(str(experiment_file), [*sets, SAFETY, "evaluate.prompts=3", "evaluate.shot_seeds=[7]"])[0]
    layout = Layout.load(config)
    arms = ("zero_shot", "student, seed 0", "few_shot(2)", "in_context(2), seed 0")
    new = {f"evaluate@prompt{n}/{arm}" for n in (2, 3) for arm in arms}
    new |= {f"safety@prompt2/{arm}" for arm in arms[:2]} | {"evaluate@shots7/few_shot(2)"}
    assert set(layout.steps) - set(plain.steps) == new
    assert all(plain.steps[name].recipe() == layout.steps[name].recipe() for name in plain.steps)
    assert layout.evaluations.keys() == plain.evaluations.keys()
    step = layout.steps["evaluate@prompt3/student, seed 0"]
    assert (step.title, step.fit) == ("evaluate student, seed 0, prompt 3", layout.steps["fit/student, seed 0"])
    draw = layout.steps["evaluate@shots7/few_shot(2)"]
    usual = layout.steps["evaluate/few_shot(2)"].recipe()
    assert draw.recipe()["shot_seed"] == 7
    assert draw.recipe()["tasks"]["own_reviews"][0] != usual["tasks"]["own_reviews"][0]
    assert "shot_seed" not in usual
    named = Layout(config, Tasks.named(config, hn.Harness(config.include_path)))
    assert set(named.steps) == set(layout.steps), "a plan without the data has the same steps"


def test_too_few_prompts_are_refused_before_anything_is_trained(experiment_file: Path, own_task: Path):
    state(own_task, [LIKED])
    config = load(str(experiment_file), ["evaluate.prompts=3"])[0]
    one_clear_error(lambda: Layout.load(config), "only 2 prompts, and prompt 3", names="own_reviews")
    one_clear_error(lambda: load(str(experiment_file), ["evaluate.prompts=0"]), "evaluate.prompts")
    for seeds in ("[1, 1]", "[0, 1234]"):
        one_clear_error(lambda seeds=seeds: load(str(experiment_file), [f"evaluate.shot_seeds={seeds}"]), "each seed once")
    probe = ["evaluate.prompts=2", "strong.trainer=reward", "arms=[student, ceiling]"]
    one_clear_error(lambda: load(str(experiment_file), probe), "leave .*evaluate.prompts out")


def test_draws_of_shots_that_nobody_is_shown_are_told(experiment_file: Path):
    seeds = ["evaluate.shot_seeds=[0]", SAFETY.replace("prompts: 2", "shot_seeds: [0]")]
    told = unused(load(str(experiment_file), seeds)[0])
    assert [line.split()[0] for line in told] == ["evaluate.shot_seeds", "safety.shot_seeds"]
    assert not unused(load(str(experiment_file), [seeds[0], "arms=[few_shot(2), student]"])[0])
    assert not unused(load(str(experiment_file), [seeds[0], "evaluate.num_fewshot=1"])[0])


def test_a_report_tells_arms_by_prompt_and_keeps_its_headline(experiment_file: Path, own_task: Path, tmp_path: Path):
    state(own_task, [GOOD_OR_BAD, LIKED])
    sets = ["arms=[zero_shot, few_shot(2), student]", "evaluate.limit=30", "weak.epochs=1"]
    asked_otherwise = ["evaluate.prompts=2", "evaluate.shot_seeds=[0]", SAFETY]

    def run(*more: str) -> runs_of.Run:
        flow = runs_of.open_run(load(str(experiment_file), [*sets, *more])[0], tmp_path / "runs")
        flow.build(Progress(quiet=True))
        return flow

    plain = build_report(run()).json()
    flow = run(*asked_otherwise)
    report = write_report(flow)[0].json()
    for part in ("arms", "arm_means", "gains", "diagnostics"):
        assert report[part] == plain[part], part
    assert plain["prompts"] == plain["prompt_gaps"] == plain["prompt_texts"] == []
    assert [(e["task"], e["varied"], e["arm"], len(e["acc"])) for e in report["prompts"]] == [
        *(("own_reviews", "prompt", arm, 2) for arm in ("zero_shot", "few_shot(2)", "student")),
        *(("w2s_ethics_probe_justice", "prompt", arm, 2) for arm in ("zero_shot", "student")),
        ("own_reviews", "shots", "few_shot(2)", 2),
    ]
    means = {e["arm"]: e["acc"] for e in report["arm_means"]}
    for entry in (e for e in report["prompts"] if e["task"] == "own_reviews"):
        assert entry["acc"][0] == pytest.approx(means[entry["arm"]])
        assert entry["others"]["value"] == pytest.approx(np.mean(entry["acc"][1:]) - entry["acc"][0])
    gaps = {(e["task"], e["varied"], e["arm"], e["against"]): e for e in report["prompt_gaps"]}
    tuned = {(arm, base) for arm in ("few_shot(2)", "student") for base in ("weak", "zero_shot")} | {("zero_shot", "weak")}
    assert {key[2:] for key in gaps if key[:2] == ("own_reviews", "prompt")} == tuned
    assert {key[2:] for key in gaps if key[1] == "shots"} == {("few_shot(2)", "weak"), ("few_shot(2)", "zero_shot")}
    for (task, varied, arm, against), gap in gaps.items():
        rows = {e["arm"]: e["acc"] for e in report["prompts"] if (e["task"], e["varied"]) == (task, varied)}
        other = rows.get(against, [means[against]] * 2)
        assert gap["each"] == pytest.approx(np.subtract(rows[arm], other))
        assert gap["low"] <= gap["given"]["low"] <= gap["given"]["high"] <= gap["high"]
    assert [text["choices"] for text in report["prompt_texts"][:2]] == [["negative", "positive"], ["bad", "good"]]
    page = (flow.folder / "report.html").read_text(encoding="utf-8")
    assert "any prompt" in page
    assert "Is this review good or bad?" in page
    with (flow.folder / "tables" / "prompt_gaps.csv").open() as f:
        assert [row["against"] for row in csv.DictReader(f)][:3] == ["weak", "weak", "zero_shot"]
    assert all(stage.reused for stage in run(*asked_otherwise).stages.values())


# ---- statistics -----------------------------------------------------------------------------------------------------------


def test_the_component_of_prompts_is_that_of_the_analysis_of_variance():
    """By hand, from the mean squares of the three-way table."""
    rng = np.random.default_rng(0)
    z = rng.random((4, 3, 20)) + 0.5 * rng.random((4, 1, 1)) + 0.3 * rng.random((4, 3, 1)) + rng.random((4, 1, 20))
    p, s, n = z.shape
    mean = {axes: z.mean(axis=axes, keepdims=True) for axes in ((0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2))}
    of_prompt = mean[1, 2] - mean[0, 1, 2]
    by_seed = mean[2,] - mean[1, 2] - mean[0, 2] + mean[0, 1, 2]
    by_row = mean[1,] - mean[1, 2] - mean[0, 1] + mean[0, 1, 2]
    both = z - mean[0,] - mean[1,] - mean[2,] + mean[1, 2] + mean[0, 2] + mean[0, 1] - mean[0, 1, 2]
    squares = (
        s * n * (of_prompt**2).sum() / (p - 1)
        - n * (by_seed**2).sum() / ((p - 1) * (s - 1))
        - s * (by_row**2).sum() / ((p - 1) * (n - 1))
        + (both**2).sum() / ((p - 1) * (s - 1) * (n - 1))
    )
    found = over_prompts(z)
    assert found.component == pytest.approx(squares / (s * n))
    assert found.component > 0
    assert found.given.mean[0] == pytest.approx(z.mean())
    ones = over_prompts(z, np.arange(n))  # groups of one row each
    assert ones.component == pytest.approx(found.component)
    stacked = over_prompts(np.stack([z, 2 * z]))
    assert stacked.component == pytest.approx([found.component, 4 * found.component])
    assert stacked.half_width() == pytest.approx([found.half_width(), 2 * found.half_width()], rel=0.02)


@pytest.mark.parametrize("seeds", [1, 3])
def test_prompts_that_change_nothing_add_nothing(seeds: int):
    rng = np.random.default_rng(1)
    first, second = ((rng.random((seeds, 80)) < share).astype(float) for share in (0.8, 0.6))
    by_prompt = [np.repeat(x[None], 3, axis=0) for x in (first, second)]
    found = prompt_difference(*by_prompt)
    plain = paired_difference(first, second)
    assert found.sd == pytest.approx(0, abs=1e-7)
    assert (found.low, found.high) == pytest.approx((found.given.low, found.given.high))
    assert found.given.value == pytest.approx(plain.value)
    assert found.given.stderr == pytest.approx(plain.stderr)
    assert prompt_sd(by_prompt[0]) == pytest.approx(0, abs=1e-7)
    parts = over_prompts(by_prompt[0] - by_prompt[1], None, PAIR).given
    assert parts.half_width(np.ones(1)) == pytest.approx(crossed((first - second)[None], None, PAIR).half_width(np.ones(1)))
    with pytest.raises(ValueError, match="paired comparison"):
        prompt_difference(by_prompt[0], by_prompt[1][:2])


@pytest.mark.parametrize(
    "setting",
    [
        *(PromptSetting(p, s, 200, x) for p, s in ((2, 1), (3, 1), (3, 3)) for x in (0.0, 0.3)),
        PromptSetting(3, 1, 200, 0.3, 0.2, size=4),
        PromptSetting(3, 3, 800, 0.1, level=(0.4, 0.4)),
    ],
    ids=str,
)
def test_differences_over_prompts_cover(setting: PromptSetting):
    """A short form of scripts/coverage: with 400 repetitions the standard error of a coverage is 1.1 points."""
    found = cover_prompts(setting, repetitions=400)
    assert found.difference >= 0.915
    if setting.prompt == 0.3 and setting.seeds == 1:
        assert found.given_prompts < 0.8, "these prompts alone tell nothing of others"
        assert 0.09 < found.sd < 0.14  # .11 of a difference; with a seed's own response .13
