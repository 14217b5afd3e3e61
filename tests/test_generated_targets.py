"""Solutions as labels: sampled, put to the vote, learnt; every arm and method of a task whose answers are generated."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sums import write_experiment, write_sums

from trainers.config.reading import load
from trainers.fit import language_model, lora
from trainers.fit.lora import Lora
from trainers.fit.trainer import answering_code
from trainers.flow.alone import finetune_model, label_rows
from trainers.flow.layout import Layout
from trainers.flow.progress import Progress
from trainers.flow.run import Run, open_run
from trainers.harness.evaluate import Harness
from trainers.harness.tasks import HarnessTask, PromptStyle
from trainers.labels import solutions
from trainers.labels.ask import OverChoices
from trainers.labels.gold import GOLD, GoldTexts
from trainers.labels.kinds import takes
from trainers.labels.label_set import LABELS, LabelSet
from trainers.labels.operations import METHOD_OPS, most_confident
from trainers.labels.relabel import prompted
from trainers.labels.solutions import GREEDY, SAMPLES, Generate, Solutions, majority
from trainers.labels.text_labels import TextLabels
from trainers.report.collected import collect
from trainers.report.questions import page_data
from trainers.report.report import write_report
from trainers.steps.answers import Answers
from trainers.steps.teachers import Agreeing
from w2s_tasks import code_scope
from w2s_tasks.errors import UserError
from w2s_tasks.models.packed_hf import W2SHF
from w2s_tasks.models.sampling import Sample, sample
from w2s_tasks.rows.forms import draws
from w2s_tasks.scoring import maths
from w2s_tasks.scoring.replies import AnswerReader, reader_of

METHODS = ["xent", "filter", "agree", "relabel"]
ARMS = ["zero_shot", "few_shot(2)", "student", "ceiling", "ceiling_full", "permuted_labels", "self_labels"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the task, the model and the experiment."""
    return write_experiment(tmp_path_factory.mktemp("generated") / "sums").parent


@pytest.fixture(scope="module")
def task(place: Path) -> HarnessTask:
    return Harness([str(place / "own_tasks")]).task("own_sums")


@pytest.fixture(scope="module")
def lm(place: Path) -> W2SHF:
    return W2SHF(str(place / "model"), device="cpu")


def opened(place: Path, *sets: str, runs: str = "runs") -> Run:
    return open_run(load(str(place / "sums.yaml"), list(sets))[0], place / runs)


@pytest.fixture(scope="module")
def everything(place: Path) -> tuple[Run, dict[str, Any]]:
    """A run of every arm and method, and its report."""
    flow = opened(place, f"methods={METHODS}", f"arms=[{', '.join(ARMS)}]")
    flow.build(Progress(quiet=True))
    return flow, write_report(flow)[0].json()


def labels_of(flow: Run, step: str) -> TextLabels:
    return TextLabels.load(flow.stages[f"{step}, seed 0"].path / LABELS)


def samples_of(flow: Run, step: str) -> dict[str, list[tuple[str, float]]]:
    lines = (flow.stages[f"{step}, seed 0"].path / SAMPLES).read_text("utf-8").splitlines()
    return {row["row_id"]: [tuple(one) for one in row["samples"]] for row in map(json.loads, lines)}


# ---- a whole experiment --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_arm_and_method_is_in_the_report(everything: tuple[Run, dict[str, Any]]):
    flow, report = everything
    arms = [(arm["arm"], arm["method"]) for arm in report["arms"]]
    assert {name for name, _ in arms} == {"weak", *ARMS}
    assert [method for name, method in arms if name == "student"] == METHODS
    assert {arm["mode"] for arm in report["arms"]} == {"generated"}
    assert {arm["n"] for arm in report["arms"]} == {30}
    assert {gap["method"] for gap in report["gaps"] if gap["arm"] == "student"} == set(METHODS)
    for sections in ("discrimination", "auroc_gaps", "diagnostics", "disagreements"):
        assert report[sections] == [], sections
    assert all(arm["confusion"] is None for arm in report["arms"])
    html = (flow.folder / "report.html").read_text("utf-8")
    assert "Confusion" not in html
    assert len(list((flow.folder / "model_cards").glob("*.md"))) == 1 + len(METHODS) + 4


def test_accuracy_is_lm_evals_own(everything: tuple[Run, dict[str, Any]]):
    flow, report = everything
    for arm in report["arms"]:
        evaluation = next(s for a, s in flow.layout.evaluations.items() if (a.name, a.method) == (arm["arm"], arm["method"]))
        (file,) = flow.folder_of(evaluation).rglob("results_*.json")
        assert arm["metrics"]["acc"] == json.loads(file.read_text())["results"]["own_sums"]["acc,none"]


def test_weak_labels_are_judged_by_their_answers(everything: tuple[Run, dict[str, Any]]):
    flow, report = everything
    labels, docs = labels_of(flow, "labels/weak"), flow.layout.task
    right = [int(said) == doc["a"] + doc["b"] for said, doc in zip(labels.answer, docs.docs_of(labels.row_id), strict=True)]
    (told,) = report["weak_labels"]
    assert told["acc"] == pytest.approx(np.mean(right))
    assert told["n"] + told["unlabelled"] == 20


def test_the_questions_page_shows_replies_and_training_rows(everything: tuple[Run, dict[str, Any]]):
    data = page_data(collect(everything[0]))
    (shown,) = data["tasks"]
    assert all(row["gold"] is None for row in shown["rows"])
    assert all("####" in "".join(arm["replies"]) for arm in shown["arms"] if arm["arm"] == "weak")
    for row in data["training"]["0"]["rows"]:
        assert isinstance(row[1], str)
        assert isinstance(row[3], str)


def test_labels_are_the_vote_over_the_samples(everything: tuple[Run, dict[str, Any]]):
    flow, _ = everything
    labels, samples = labels_of(flow, "labels/weak"), samples_of(flow, "labels/weak")
    assert len(samples) == 20
    assert {len(row) for row in samples.values()} == {3}
    for i, solution, said, logprob, agreement in zip(
        labels.row_id, labels.solution, labels.answer, labels.logprob, labels.agreement, strict=True
    ):
        answers = [text.rpartition("#### ")[2].split()[0] for text, _ in samples[i] if "#### " in text]
        count = Counter(answers)
        assert count[said] == max(count.values())
        assert agreement == pytest.approx(count[said] / 3)
        assert logprob == max(value for text, value in samples[i] if text.endswith(f"#### {said}"))
        assert (solution, logprob) in samples[i]


def test_no_student_sees_gold_and_controls_are_what_they_say(everything: tuple[Run, dict[str, Any]]):
    flow, _ = everything
    weak, student, ceiling = (labels_of(flow, step) for step in ("labels/weak", "fit/student", "fit/ceiling"))
    supervisor, dealt, own = (labels_of(flow, f"fit/{arm}") for arm in ("weak", "permuted_labels", "self_labels"))
    assert not set(supervisor.row_id) & set(student.row_id)
    assert (student.row_id, student.solution) == (weak.row_id, weak.solution)
    gold = GoldTexts.load(flow.stages["split/0"].path / GOLD, flow.layout.task)
    assert ceiling.solution == tuple(gold.right[i] for i in ceiling.row_id)
    assert gold.accuracy(ceiling) == gold.accuracy(supervisor) == 1
    assert Counter(dealt.solution) == Counter(weak.solution)
    assert dealt.solution != weak.solution
    assert dealt.row_id == weak.row_id
    assert len(labels_of(flow, "fit/ceiling_full")) == 44
    untuned = samples_of(flow, "labels/self_labels")
    assert all(said in [text for text, _ in untuned[i]] for i, said in zip(own.row_id, own.solution, strict=True))
    names = pq.read_schema(flow.stages["fit/student, seed 0"].path / LABELS).names
    assert names == ["row_id", "solution", "answer", "logprob", "agreement"]


def test_methods_choose_the_rows_that_they_say(everything: tuple[Run, dict[str, Any]]):
    flow, _ = everything
    weak, kept, agreed = (labels_of(flow, step) for step in ("labels/weak", "fit/student, filter", "fit/student, agree"))
    sure = dict(zip(weak.row_id, weak.confidence.tolist(), strict=True))
    assert len(kept) == -(-len(weak) // 2)
    assert min(sure[i] for i in kept.row_id) >= max(sure[i] for i in weak.row_id if i not in kept.row_id)
    strong = {i: row[0][0].rpartition("#### ")[2] for i, row in samples_of(flow, "labels/agree").items()}
    same = [i for i, said in zip(weak.row_id, weak.answer, strict=True) if strong[i].split()[:1] == [said]]
    assert list(agreed.row_id) == same
    assert set(zip(agreed.row_id, agreed.solution, strict=True)) <= set(zip(weak.row_id, weak.solution, strict=True))
    second = labels_of(flow, "fit/student, relabel")
    assert second.row_id[: len(kept)] == kept.row_id
    again = samples_of(flow, "labels/relabel")
    assert set(again) == set(weak.row_id) - set(kept.row_id)
    for i, solution in list(zip(second.row_id, second.solution, strict=True))[len(kept) :]:
        assert solution in [text for text, _ in again[i]]


def test_what_changed_is_done_again_and_nothing_else(everything: tuple[Run, dict[str, Any]], place: Path):
    flow, _ = everything
    sets = [f"methods={METHODS}", f"arms=[{', '.join(ARMS)}]"]

    def changed(*more: str) -> set[str]:
        other = opened(place, *sets, *more)
        return {name.partition(",")[0] for name, step in other.layout.steps.items() if other.key(step) != flow.key(step)}

    assert changed() == set()
    hang = {"labels/weak", "fit/student", "evaluate/student", "fit/permuted_labels", "evaluate/permuted_labels"}
    hang |= {"labels/self_labels", "fit/self_labels", "evaluate/self_labels"}
    hang |= {"labels/agree", "labels/relabel", "fit/relabel"}
    assert changed("generate.samples=2") == changed("generate.temperature=0.8") == hang
    assert changed("method_args.agree.shots=2") == {"labels/agree", "fit/student", "evaluate/student"}


def test_the_reader_of_answers_counts_for_the_keys_of_labels(
    everything: tuple[Run, dict[str, Any]], place: Path, tmp_path: Path
):
    flow, _ = everything
    tasks = write_sums(tmp_path / "own_tasks")
    scoring = tasks / "sums_scoring.py"
    scoring.write_text(scoring.read_text("utf-8").replace("found[-1]", "found[0]"), "utf-8")
    for part in ("train", "test"):  # the same rows at the same place
        yaml = (tasks / "own_sums.yaml").read_text("utf-8")
        (tasks / "own_sums.yaml").write_text(yaml.replace(f"{tasks}/{part}", f"{place / 'own_tasks'}/{part}"), "utf-8")
    other = opened(place, f"include_path=[{tasks}]")
    step = "labels/weak, seed 0"
    assert other.key(other.layout.steps[step]) != flow.key(flow.layout.steps[step])


def test_labels_over_choices_hang_on_no_code_of_sampling():
    def modules(*roots: Any) -> set[str]:
        return {name for name, found in code_scope.reached(roots).items() if found}

    sampling = {"w2s_tasks.models.sampling", "trainers.labels.solutions"}
    assert not sampling & modules(Answers.build, OverChoices.ask, lora.fit, *answering_code(Lora(model="m")))
    assert sampling <= modules(Answers.build, Solutions.ask)
    assert sampling <= modules(Agreeing.build)


# ---- the vote ------------------------------------------------------------------------------------------------------------

PLAIN = AnswerReader(lambda reply: reply.partition("=")[2])


@pytest.mark.parametrize(
    ("samples", "label"),
    [
        ([("a=1", -1.0), ("b=2", -0.1), ("c=1", -2.0)], ("a=1", "1", -1.0, 2 / 3)),
        ([("a=1", -2.0), ("b=1", -0.5), ("c=2", -0.1)], ("b=1", "1", -0.5, 2 / 3)),
        ([("a=1", -1.0), ("b=2", -0.5)], ("b=2", "2", -0.5, 1 / 2)),
        # 1 has the likeliest single sample, 2 the higher mean.
        ([("a=1", -0.1), ("b=1", -2.0), ("c=2", -0.5), ("d=2", -0.7)], ("c=2", "2", -0.5, 1 / 2)),
        ([("a=1", -0.5), ("b=2", -0.5)], ("a=1", "1", -0.5, 1 / 2)),
        ([("none", -0.1), ("b=2", -3.0), ("no", -0.1), ("=", -0.1)], ("b=2", "2", -3.0, 1 / 4)),
        ([("none", -0.1), ("= ", -0.2)], None),
        ([("a= 1 ", -0.1)], ("a= 1 ", "1", -0.1, 1.0)),
    ],
    ids=["majority", "likeliest", "tie of one", "tie of means", "tie of all", "few answers", "no answer", "one sample"],
)
def test_the_majority_by_hand(samples: list[tuple[str, float]], label: tuple[str, str, float, float] | None):
    assert majority([Sample(*one) for one in samples], PLAIN) == label


def test_answers_that_the_task_takes_for_one_are_counted_together():
    samples = [Sample(r"It is \boxed{\frac12}", -1.0), Sample(r"\boxed{3}", -0.1), Sample("So the answer is 0.5.", -0.5)]
    reader = reader_of(maths.math)
    assert reader is not None
    assert majority(samples, reader) == ("So the answer is 0.5.", "0.5", -0.5, pytest.approx(2 / 3))
    gsm8k = reader_of(maths.gsm8k)
    assert gsm8k is not None
    assert majority([Sample("#### $1,000", -1.0), Sample("#### 1000 eggs", -2.0), Sample("7", -0.1)], gsm8k) == (
        "#### $1,000",
        "$1,000",
        -1.0,
        pytest.approx(2 / 3),
    )
    assert gsm8k.of("no number here") is None


def test_a_reader_that_fails_on_a_reply_is_told_with_it():
    reader = AnswerReader(lambda reply: reply.split("=")[1], lambda one, other: int(one) == int(other))
    with pytest.raises(UserError, match=r"fails on 'nothing'.*IndexError"):
        majority([Sample("nothing", -1.0)], reader)
    with pytest.raises(UserError, match=r"fails on '1', 'x'.*ValueError"):
        majority([Sample("a=1", -1.0), Sample("b=x", -1.0)], reader)


def test_rows_without_an_answer_get_no_label_and_are_told(
    task: HarnessTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    replies = {"Sum: 1": "#### 3", "Sum: 2": "I don't know"}

    def given(lm: Any, contexts: list[str], *_: Any) -> list[Sample]:
        return [Sample(next((r for begin, r in replies.items() if c.startswith(begin)), "?"), -1.0) for c in contexts]

    monkeypatch.setattr(solutions, "sample", given)
    requests = [("Sum: 1 + 2", {}), ("Sum: 2 + 2", {})]
    labels = Solutions(GREEDY).vote(None, task, requests, ["a", "b"], 0, tmp_path)
    assert (labels.row_id, labels.answer) == (("a",), ("3",))
    assert "1 of 2 rows (50.0 %)" in caplog.text
    with pytest.raises(UserError, match=r"1 of 1 rows.*no labels"):
        Solutions(GREEDY).vote(None, task, requests[1:], ["c"], 0, tmp_path)
    assert len(Solutions(GREEDY).vote(None, task, [], [], 0, tmp_path)) == 0


# ---- sampling ------------------------------------------------------------------------------------------------------------


def drawn(lm: W2SHF, contexts: list[str], temperature: float = 1.0, seed: int = 0, limit: int = 16) -> list[Sample]:
    settings = {"until": ["Sum:"], "max_gen_toks": limit}
    return sample(lm, contexts, settings, temperature, [draws(seed, context) for context in contexts])


def test_a_rows_samples_hang_on_its_seed_and_prompt_alone(lm: W2SHF):
    contexts = [f"Sum: {a} + {b}\nSolution:" for a in range(3) for b in range(4)]
    together = drawn(lm, contexts)
    backwards = drawn(lm, contexts[::-1])[::-1]
    alone = [drawn(lm, [context])[0] for context in contexts]
    assert [one.text for one in together] == [one.text for one in backwards] == [one.text for one in alone]
    assert [one.logprob for one in together] == pytest.approx([one.logprob for one in alone], abs=1e-4)
    assert [one.text for one in drawn(lm, contexts, seed=1)] != [one.text for one in together]
    twice = drawn(lm, [contexts[0], contexts[1], contexts[0]])
    assert twice == [twice[0], twice[1], twice[0]]


def test_at_temperature_0_a_sample_is_the_greedy_reply(lm: W2SHF, task: HarnessTask):
    requests = task.requests(task.train_docs[:6], PromptStyle(0))
    greedy = [reply.strip() for reply in lm.generate_until(requests, disable_tqdm=True)]
    found = sample(lm, [r.args[0] for r in requests], requests[0].args[1], 0, [random.Random(0)] * 6)
    assert [one.text for one in found] == greedy


def test_samples_come_as_often_as_the_model_says(lm: W2SHF):
    context, settings = "Sum: 3 + 4\nSolution:", {"until": [], "max_gen_toks": 2}
    found = Counter(sample(lm, [context], settings, 1.0, [draws(number, context)])[0].text for number in range(300))
    with torch.no_grad():
        prompt = lm.tokenizer.encode(context)
        space = lm.tokenizer.encode(" ")
        logits = lm.language_model(torch.tensor([prompt + space])).logits[0, -2:].double()
    first = logits[0].softmax(-1)[space[0]]
    for digit in "379":
        expected = 300 * float(first * logits[1].softmax(-1)[lm.tokenizer.encode(digit)[0]])
        assert abs(found[digit] - expected) < 4 * expected**0.5 + 3, digit


def test_the_log_probability_is_the_models_own_mean_over_the_reply(lm: W2SHF):
    context = "Sum: 3 + 4\nSolution:"
    (one,) = drawn(lm, [context], temperature=0.5, limit=6)
    prompt = lm.tokenizer.encode(context)
    reply = lm.tokenizer.encode(f" {one.text}")
    assert len(reply) == 6
    with torch.no_grad():
        logprobs = lm.language_model(torch.tensor([prompt + reply])).logits[0].log_softmax(-1)
    own = [float(logprobs[len(prompt) - 1 + i, token]) for i, token in enumerate(reply)]
    assert one.logprob == pytest.approx(np.mean(own), abs=1e-4)


def test_a_killed_labelling_goes_on_where_it_was(
    lm: W2SHF, task: HarnessTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(solutions, "TOGETHER", 4)
    docs, ids = task.train_docs[:10], task.train_ids[:10]
    how, style, asked = Solutions(Generate(samples=2, temperature=0.7)), PromptStyle(0), []

    def label(out: Path) -> TextLabels:
        return how.ask(lm, task, docs, ids, style, 0, out)

    whole = label(tmp_path / "whole")
    real = solutions.sample

    def dying(lm: Any, contexts: list[str], *rest: Any) -> list[Sample]:
        if len(asked) == 3:
            raise KeyboardInterrupt
        asked.append(list(contexts))
        return real(lm, contexts, *rest)

    monkeypatch.setattr(solutions, "sample", dying)
    with pytest.raises(KeyboardInterrupt):
        label(tmp_path / "killed")
    (kept,) = (tmp_path / "killed").rglob("samples-0.jsonl")
    assert len(kept.read_text().splitlines()) == 4
    kept.write_text(kept.read_text() + '["cut sho')
    again: list[int] = []

    def counting(lm: Any, contexts: list[str], *rest: Any) -> list[Sample]:
        again.append(len(contexts))
        return real(lm, contexts, *rest)

    monkeypatch.setattr(solutions, "sample", counting)
    labels = label(tmp_path / "killed")
    assert again == [4, 4, 2, 2]
    assert (labels.row_id, labels.solution) == (whole.row_id, whole.solution)
    assert labels.logprob.tolist() == whole.logprob.tolist()
    assert (tmp_path / "killed" / SAMPLES).read_bytes() == (tmp_path / "whole" / SAMPLES).read_bytes()


def test_a_model_without_room_for_a_reply_is_one_clear_error(lm: W2SHF):
    with pytest.raises(UserError, match="leaves no room for a prompt"):
        drawn(lm, ["Sum:"], limit=4096)


def test_how_a_task_asks_for_its_replies_changes_no_sample_and_what_can_not_be_followed_is_told(lm: W2SHF):
    context = "Sum: 3 + 4\nSolution:"

    def one(**settings: Any) -> list[Sample]:
        return sample(lm, [context], {"until": ["Sum:"], "max_gen_toks": 16} | settings, 0.9, [draws(0, context)])

    assert one() == one(do_sample=True, temperature=0.2, top_p=0.1, top_k=1)
    with pytest.raises(UserError, match="can't be sampled"):
        one(num_beams=4)


# ---- one renderer --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", [False, True], ids=["plain", "chat"])
@pytest.mark.parametrize("prefix", [None, "Let me see:"], ids=["", "gen_prefix"])
def test_a_target_is_what_few_shot_examples_show(place: Path, lm: W2SHF, template: bool, prefix: str | None):
    own = Harness([str(place / "own_tasks")]).task("own_sums")
    own.task.config.gen_prefix = own.task.fewshot_cfg.gen_prefix = prefix
    shot, doc = own.train_docs[0], own.train_docs[1]
    context, target = own.reply_pair(shot, own.solution(shot), PromptStyle(0, template), lm)
    shown = own.with_shots([shot], [own.solution(shot)]).pairs(doc, PromptStyle(1, template), lm)[0][0]
    theirs = own.pairs(doc, PromptStyle(1, template), lm)[0][0]  # lm_eval's own first shot is row 0
    assert shown == theirs
    assert target.endswith(own.solution(shot))
    if template:
        prompt = context.rpartition("<bos>assistant: ")[0]
        reply = context.rpartition("<bos>assistant: ")[2] + target
        assert shown.startswith(f"{prompt}<bos>assistant: {reply.strip()}\n")
    else:
        assert shown.startswith(context + target)


def test_the_tokens_that_are_learnt_are_the_solution_and_its_end(place: Path, task: HarnessTask, lm: W2SHF):
    style, doc = PromptStyle(0), task.train_docs[0]
    labels = TextLabels.of({"a": (task.solution(doc), "1", 0.0, 1.0)})
    (row,) = language_model._rows(task, [doc], labels, lm, style, language_model.end_of_reply(lm, style))
    ((prompt, reply),) = row["requests"]
    assert lm.tok_decode(list(prompt)) == task.pairs(doc, style)[0][0]
    assert lm.tok_decode(list(reply[:-1])) == f" {task.solution(doc)}"
    assert reply[-1] == lm.eot_token_id
    assert row["targets"] == [1.0]
    assert "gold" not in row


def test_prompts_of_agree_hold_the_supervisors_solutions_and_never_gold_or_the_rows_own(task: HarnessTask, lm: W2SHF):
    ids = task.train_ids[:6]
    sure = [0.4, 0.9, 0.5, 0.8, 0.7, 0.1]
    weak = TextLabels.of(
        {i: (f"weak {n}\n#### {n}", str(n), -1.0, s) for n, (i, s) in enumerate(zip(ids, sure, strict=True))}
    )
    found = [context for context, _ in prompted(task, weak, 2, PromptStyle(2), lm)]
    shown = [[n for n in range(6) if f"weak {n}" in context] for context in found]
    assert shown == [[1, 3], [3, 4], [1, 3], [1, 4], [1, 3], [1, 3]]
    for doc, context in zip(task.train_docs[:6], found, strict=True):
        assert context.endswith(f"Sum: {doc['a']} + {doc['b']}\nSolution:")
        assert not any(task.solution(other) in context for other in task.train_docs)
    assert task.task.doc_to_target(task.train_docs[0]) == task.solution(task.train_docs[0])
    assert len(prompted(task, weak.take([0]), 2, PromptStyle(2), lm)) == 1


# ---- label files ---------------------------------------------------------------------------------------------------------

GOOD: dict[str, list[Any]] = {
    "row_id": ["a", "b"],
    "solution": ["1 + 1 = 2", "so 3"],
    "answer": ["2", "3"],
    "logprob": [-0.5, -1.0],
    "agreement": [1.0, 0.5],
}


def written(path: Path, **columns: Any) -> Path:
    table = {name: value for name, value in (GOOD | columns).items() if value is not None}
    pq.write_table(pa.table(table), path)
    return path


def test_a_label_file_comes_back_as_it_was(tmp_path: Path):
    labels = TextLabels.load(written(tmp_path / "a.parquet"))
    labels.save(tmp_path / "b.parquet")
    again = TextLabels.load(tmp_path / "b.parquet")
    assert (again.row_id, again.solution, again.answer) == (labels.row_id, labels.solution, labels.answer)
    assert again.confidence.tolist() == [[1.0, -0.5], [0.5, -1.0]]
    assert again.take([1]).join(again.take([0])).row_id == ("b", "a")
    assert again.subset(np.array([False, True])).solution == ("so 3",)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"solution": None}, "missing: solution"),
        ({name: [] for name in GOOD}, "the label set is empty"),
        ({"row_id": ["a", "a"]}, "a row id occurs twice"),
        ({"solution": ["x", None]}, "row 1: no solution"),
        ({"solution": [1, 2]}, "row 0: solution must be text, found 1"),
        ({"answer": ["2", " "]}, "row b has an empty answer"),
        ({"solution": ["", "x"]}, "row a has an empty solution"),
        ({"logprob": ["x", "y"]}, "row 0: logprob must be a number"),
        ({"logprob": [-1.0, 0.5]}, "row b has the logprob 0.5"),
        ({"logprob": [float("nan"), -1.0]}, "row a has the logprob nan"),
        ({"agreement": [0.0, 1.0]}, "row a has .*agreement 0.0"),
        ({"agreement": [1.0, 1.5]}, "row b has .*agreement 1.5"),
        ({"agreement": [True, True]}, "agreement must be a number"),
    ],
)
def test_a_malformed_label_file_is_one_clear_error(columns: dict[str, Any], message: str, tmp_path: Path):
    path = written(tmp_path / "labels.parquet", **columns)
    with pytest.raises(UserError, match=message) as error:
        TextLabels.load(path)
    assert "labels.parquet" in str(error.value)


def test_labels_of_the_other_kind_are_no_solutions(tmp_path: Path):
    LabelSet.of(("a", "b"), [[0.5, 0.5], [0.1, 0.9]]).save(tmp_path / "l.parquet")
    with pytest.raises(UserError, match="missing: solution, answer, logprob, agreement"):
        TextLabels.load(tmp_path / "l.parquet")
    with pytest.raises(UserError, match="missing: soft, hard"):
        LabelSet.load(written(tmp_path / "t.parquet"))


def test_the_surest_solutions_agree_most_and_are_likeliest_among_equals():
    rows = [(0.5, -0.1), (1.0, -2.0), (0.5, -0.2), (1.0, -1.0), (0.5, -0.1)]
    labels = TextLabels.of({str(i): ("x", "1", logprob, share) for i, (share, logprob) in enumerate(rows)})
    assert [np.flatnonzero(most_confident(labels, k / 5, True)).tolist() for k in (1, 2, 3)] == [[3], [1, 3], [0, 1, 3]]


def test_an_operation_says_which_labels_it_takes():
    def unmarked(labels, rng):  # type: ignore[no-untyped-def]
        return labels

    assert takes(METHOD_OPS["filter"], TextLabels)
    assert takes(METHOD_OPS["filter"], LabelSet)
    assert not any(takes(METHOD_OPS[name], TextLabels) for name in ("harden", "calibrate", "balance"))
    assert takes(unmarked, LabelSet)
    assert not takes(unmarked, TextLabels)


# ---- refusals ------------------------------------------------------------------------------------------------------------

LM = "objective: language_model"


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["weak={model: m, trainer: classifier}"], "weak: labels: generate needs .* trainer: full or lora with objective"),
        (["weak={model: m, trainer: reward}"], "weak: labels: generate needs"),
        (["strong={model: m, trainer: lora}"], "strong: labels: generate needs"),
        (["strong={model: m, trainer: openai}"], "strong: labels: generate needs"),
        ([f"strong={{model: m, trainer: lora, {LM}, checkpoint: holdout_agreement}}"], "strong.checkpoint"),
        (["methods=[logconf]"], "the loss has to be xent, not logconf"),
        (["methods=[harden]"], "methods: harden can't be used with labels: generate, which are solutions"),
        (["methods=[balance]"], "methods: balance can't be used"),
        (["methods=[calibrate+filter]"], "methods: calibrate can't be used"),
        (["methods=[ensemble]"], "methods: ensemble can't be used"),
        (["arms=[student, random_labels]"], "arms: random_labels is over choices"),
        (["arms=[student, noise_matched]"], "arms: noise_matched is over choices"),
        (["arms=[student, self_labels_calibrated]"], "arms: self_labels_calibrated is over choices"),
        (["arms=[student, zero_shot_calibrated]"], "arms: zero_shot_calibrated is over choices"),
        (["arms=[student, unsupervised]"], "arms: unsupervised is over choices"),
        (["arms=[student, random_shots(4)]"], r"arms: random_shots\(4\) is over choices"),
        (["generate={samples: 4, temperature: 0}"], "at 0 all 4 samples are the same"),
        (["generate.samples=0"], "generate.samples"),
        (["methods=[bootstrap]", "method_args={bootstrap: {chain: [{objective: choices}]}}"], "bootstrap.chain: labels"),
        (["labels=soft", "methods=[agree]"], "methods: agree can't be used with labels: soft"),
        (["labels=soft"], "the output_type of 'own_sums' is generate_until.*labels: generate"),
        (["task=w2s_ethics_probe_justice"], "'w2s_ethics_probe_justice' is multiple_choice"),
        (["task=w2s_ethics_probe_justice_gen"], "does not say how the answer of a reply is read"),
        (["primary={measure: auroc}"], "has no AUROC"),
    ],
)
def test_what_means_nothing_for_solutions_is_refused(sets: list[str], message: str, place: Path):
    with pytest.raises(UserError, match=message):
        Layout.load(load(str(place / "sums.yaml"), sets)[0])


@pytest.fixture
def altered(tmp_path: Path) -> Callable[..., HarnessTask]:
    """The task with something in its YAML or its scoring replaced."""

    def make(old: str, new: str, file: str = "own_sums.yaml") -> HarnessTask:
        path = write_sums(tmp_path / "own_tasks") / file
        text = path.read_text("utf-8")
        assert old in text
        path.write_text(text.replace(old, new), "utf-8")
        return Harness([str(tmp_path / "own_tasks")]).task("own_sums")

    return make


@pytest.mark.parametrize(
    ("old", "new", "file", "message"),
    [
        ("@reads(said, lambda", "@(lambda *_: lambda score: score)(said, lambda", "sums_scoring.py", "how the answer"),
        ("\\n#### {{a + b}}", "", "own_sums.yaml", "row 0 .* finds no answer"),
        ('doc_to_target: "{{a}} + {{b}} = {{a + b}}\\n#### {{a + b}}"', "doc_to_target: a", "own_sums.yaml", "give a text"),
        ("training_split: train\n", "", "own_sums.yaml", "no training_split"),
    ],
    ids=["no reader", "gold without an answer", "target is no text", "no training split"],
)
def test_a_task_that_can_not_be_learnt_is_refused(
    old: str, new: str, file: str, message: str, altered: Callable[..., HarnessTask]
):
    with pytest.raises(UserError, match=message):
        altered(old, new, file).check_trainable()


def test_agree_refuses_a_task_that_takes_no_shots(place: Path, altered: Callable[..., HarnessTask], tmp_path: Path):
    altered("fewshot_split: train", "fewshot_split: train\nnum_fewshot: 0")
    with pytest.raises(UserError, match="without the 4 shots"):
        opened(place, "methods=[agree]", f"include_path=[{tmp_path / 'own_tasks'}]")


def test_single_stages_refuse_solutions(place: Path, tmp_path: Path):
    tasks = [str(place / "own_tasks")]
    with pytest.raises(UserError, match="labels: generate"):
        label_rows("own_sums", "w2s-hf", {"pretrained": str(place / "model")}, tmp_path / "l.parquet", 8, 0, tasks)
    with pytest.raises(UserError, match="labels: generate"):
        finetune_model("own_sums", str(place / "model"), "lora", None, tmp_path / "m", 8, [], 0, tasks)


def test_the_sets_of_worked_solutions_can_be_learnt(real_data: Path) -> None:
    harness = Harness([])
    for name in ("w2s_gsm8k", "w2s_math"):
        if name == "w2s_math":
            pytest.importorskip("math_verify")
        own = harness.task(name)
        own.check_trainable()
        for doc in own.train_docs[:200]:
            said = own.reader.of(own.solution(doc))
            assert said is not None
            assert own.reader.same(said, doc["final"])
