"""The OpenAI trainer as an experiment runs it: rows, counts, costs, the whole study small, keys that stay secret."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from chat_support import TEMPLATE
from openai_service import Service
from openai_service.chat import Chat
from openai_service.files import Files
from openai_service.jobs import Jobs
from settings_reads import reads
from typer.testing import CliRunner

from trainers.cli import app
from trainers.config.reading import load, parse
from trainers.fit.openai import OpenAI
from trainers.flow import run as ex
from trainers.flow.plan import planned_steps
from trainers.flow.progress import Progress
from trainers.harness.evaluate import Harness, PromptStyle
from trainers.labels.label_set import LabelSet
from trainers.report.report import write_report
from trainers.services import chat_rows as cr
from trainers.services.estimate import training_estimate
from trainers.store.costs import Budget
from trainers.store.stages import Stage
from w2s_tasks.errors import UserError
from w2s_tasks.models.ref import ModelRef

KEY = "sk-canary-9b3e5d17a0c24f68"
MODEL = "gpt-4o-mini-2024-07-18"


@pytest.fixture(scope="module")
def base_model(causal_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that learns well: smaller weights, and a chat template that ends in a line break."""
    import torch
    import transformers as tf

    folder = tmp_path_factory.mktemp("base")
    tokenizer = tf.AutoTokenizer.from_pretrained(causal_model("llama"))
    tokenizer.chat_template = TEMPLATE
    model = tf.AutoModelForCausalLM.from_pretrained(causal_model("llama"))
    with torch.no_grad():
        for p in model.parameters():
            p.div_(3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def service(base_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("W2S_CACHE", str(tmp_path / "cache"))
    with Service(models={MODEL: base_model}, key=KEY, folder=tmp_path / "tuned") as running:
        yield running


@pytest.fixture
def study(tmp_path: Path, own_task: Path, encoder_folder: Path, service: Service) -> Path:
    """The study, small: a trained encoder supervises a model behind the service."""
    path = tmp_path / "small.yaml"
    path.write_text(
        f"""\
task: own_reviews
include_path: [own_tasks]
split: {{by: source, weak: 0.5, limit: {{weak: 96, transfer: 64}}, seed: 0}}
weak: {{model: {encoder_folder}, text: text, epochs: 3, lr: 2e-3, batch_size: 16}}
strong: {{model: {MODEL}, trainer: openai, base_url: "{service.base_url}", n_epochs: 8, batch_size: 8, poll_seconds: 0.01}}
methods: [xent]
arms: [zero_shot, student, ceiling, random_labels]
seeds: [0]
evaluate: {{num_fewshot: 0}}
"""
    )
    return path


def run(config: Path, runs: Path, *sets: str, max_cost: float | None = None) -> tuple[ex.Run, dict]:
    flow = ex.open_run(load(str(config), list(sets))[0], runs, max_cost)
    flow.build(Progress(quiet=True))
    return flow, write_report(flow)[0].json()


def _cost_of(stage: Stage) -> dict | None:
    path = stage.path / "cost.json"
    return json.loads(path.read_text()) if path.is_file() else None


# ---- the whole study ----------------------------------------------------------------------------------------------


def test_the_whole_study_runs_as_an_ordinary_experiment(study: Path, service: Service, tmp_path: Path):
    with reads() as found:
        flow, report = run(study, tmp_path / "runs", "safety={tasks: [w2s_ethics_probe_justice], limit: 8}")
    assert {f for section, f in found if section == "OpenAI"} == set(OpenAI.model_fields)  # none is ignored
    assert [a["arm"] for a in report["arms"]] == ["weak", "zero_shot", "student", "ceiling", "random_labels"]
    acc = {a["arm"]: a["metrics"]["acc"] for a in report["arms"]}
    assert acc["ceiling"] > 0.8 > acc["zero_shot"]  # the service really trained
    modes = {a["arm"]: (a["mode"], a["objective"]) for a in report["arms"]}
    assert modes["zero_shot"] == ("first_token", None)
    assert modes["student"] == modes["ceiling"] == ("first_token", "language_model")
    assert modes["weak"] == ("classifier", "choices")
    assert report["gap"]["arm"] == "student"
    assert {s["arm"] for s in report["safety"]} == {"zero_shot", "student", "ceiling", "random_labels"}
    curves = {c["arm"]: c["points"] for c in report["curves"]}
    assert len(curves["student"]) == 64  # 64 rows, 8 a step, 8 epochs
    assert curves["ceiling"][-1]["loss"] < curves["ceiling"][0]["loss"]
    assert curves["ceiling"][-1]["epoch"] == 8
    assert len(service.part(Jobs).all) == 3
    assert all(s["usd"] > 0 for s in map(_cost_of, flow.stages.values()) if s)
    ref = ModelRef.load(flow.stages["fit/student, seed 0"].path)
    assert ref.model == "w2s-chat"
    assert ref.args["model"] in service.models
    assert ref.args["api_key_env"] == "OPENAI_API_KEY"
    again, second = run(study, tmp_path / "runs", "safety={tasks: [w2s_ethics_probe_justice], limit: 8}")
    assert all(s.reused for s in again.stages.values())
    assert second == report


def test_the_service_gets_the_rows_that_the_evaluation_asks(study: Path, service: Service, tmp_path: Path):
    flow, _ = run(study, tmp_path / "runs", "arms=[student]", "strong.system_prompt=Be brief.", "strong.target=quoted")
    stored = next(iter(service.part(Files).stored.values()))
    rows = [json.loads(line) for line in stored.content.decode().splitlines()]
    labels = LabelSet.load(flow.stages["fit/student, seed 0"].path / "labels.parquet")
    assert len(rows) == len(labels) == 64
    by_id = dict(zip(flow.layout.task.train_ids, flow.layout.task.train_docs, strict=True))
    for row, row_id, hard in zip(rows, labels.row_id, labels.hard, strict=True):
        system, user, reply = row["messages"]
        assert system == {"role": "system", "content": "Be brief."}
        assert user == {"role": "user", "content": f"Review: {by_id[row_id]['text']}\nSentiment:"}
        assert reply == {"role": "assistant", "content": ['"negative"', '"positive"'][hard]}


@pytest.mark.slow
def test_the_seed_study_runs_as_it_was(service: Service, encoder_folder: Path, real_data: Path, tmp_path: Path):
    small = [
        f"strong.base_url={service.base_url}",
        "strong.poll_seconds=0.01",
        "strong.n_epochs=2",
        "split={by: study, limit: {weak: 64, transfer: 48}}",
        f"weak={{model: {encoder_folder}, text: sentence, epochs: 1}}",
        "evaluate.limit=16",
        "safety={tasks: [w2s_ethics_study_justice], limit: 2, num_fewshot: null, fewshot_as_multiturn: false}",
    ]
    config = load("seed_gpt4o_mini", small)[0]
    flow = ex.open_run(config, tmp_path / "runs")
    flow.build(Progress(quiet=True))
    report = write_report(flow)[0].json()
    asked = {a["arm"]: (a["asked"], a["mode"]) for a in report["arms"]}
    assert asked["weak"] == ("w2s_sst2_study_choice", "classifier")
    assert asked["zero_shot"] == ("w2s_sst2_study", "generated")
    assert asked["student"] == asked["ceiling_full"] == ("w2s_sst2_study_tuned", "generated")
    assert report["gap"]["arm"] == "student"  # against ceiling_full, the only ceiling
    files = [s.content.decode() for s in service.part(Files).stored.values() if s.data["purpose"] == "fine-tune"]
    rows = [[json.loads(line)["messages"] for line in text.splitlines()] for text in files]
    assert [len(r) for r in rows] == [48, 112]
    sentences = flow.layout.task.train_docs
    half = len(sentences) // 2
    for i, (system, user, reply) in enumerate(rows[0]):  # hub order, the raw sentence, the final space, quotes
        assert system["content"].startswith("Analyze these sentences")
        assert system["content"].endswith("as your reply. ")
        assert user["content"] == sentences[half + i]["sentence"]
        assert reply["content"] in ('"0"', '"1"')
    chats = [b["messages"] for b in service.part(Chat).asked]
    ethics = [m for m in chats if "reasonable or unreasonable" in m[-1]["content"]]
    assert ethics
    assert all([m["role"] for m in messages] == ["user"] for messages in ethics)
    assert all(messages[0]["content"].count("Question:") == 33 for messages in ethics)  # 32 shots
    tuned = [m for m in chats if m[0]["content"].startswith("Analyze this sentences")]
    assert len(tuned) == 2 * 16


def test_what_is_waited_and_paid_for_is_no_part_of_a_stage(study: Path, service: Service, tmp_path: Path):
    runs = tmp_path / "runs"
    run(study, runs, "arms=[student]")
    flow, _ = run(study, runs, "arms=[student]", "strong.poll_seconds=0.02", "strong.max_cost=9", "strong.suffix=new")
    assert flow.stages["fit/student, seed 0"].reused
    run(study, runs, "arms=[student]", "strong.n_epochs=1")
    assert len(service.part(Jobs).all) == 2
    run(study, tmp_path / "elsewhere", "arms=[student]")  # another run folder: the same job
    assert len(service.part(Jobs).all) == 2


@pytest.mark.slow
def test_a_killed_experiment_goes_on_with_its_job(study: Path, service: Service, tmp_path: Path):
    sets = ["arms=[student]"]
    fault = service.faults.add("POST /v1/fine_tuning/jobs", "hang_after")
    command = [
        sys.executable,
        "-m",
        "trainers.cli",
        "run",
        str(study),
        "--runs-dir",
        str(tmp_path / "runs"),
        "--set",
        sets[0],
    ]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with (tmp_path / "output").open("w") as output:
        killed = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        assert fault.reached.wait(240), (tmp_path / "output").read_text()
        killed.kill()
        killed.wait()
    service.faults.clear()
    _, report = run(study, tmp_path / "runs", *sets)
    assert len(service.part(Jobs).all) == 1
    assert len(service.part(Files).stored) == 2  # the rows and the result file
    assert [a["arm"] for a in report["arms"]] == ["weak", "student"]


def test_a_canary_key_is_nowhere(study: Path, service: Service, tmp_path: Path, capfd, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    runner = CliRunner()
    arguments = ["run", str(study), "--runs-dir", str(tmp_path / "runs"), "--set", "arms=[zero_shot, student]"]
    message = f"Incorrect API key provided: {KEY[:12]}****{KEY[-4:]}, full: {KEY}"
    said = []
    for on in (
        "POST /v1/files",
        "POST /v1/fine_tuning/jobs",
        r"GET /v1/fine_tuning/jobs/[^/]+",
        "POST /v1/chat/completions",
    ):
        service.faults.add(on, "status", status=401, code="invalid_api_key", message=message)
        failed = runner.invoke(app, arguments)
        said.append(f"{failed.output} {failed.stderr} {failed.exception}")
        assert isinstance(failed.exception, UserError), failed.exception
    done = runner.invoke(app, arguments, catch_exceptions=False)
    said += [done.output, done.stderr, *capfd.readouterr(), caplog.text]
    assert done.exit_code == 0
    assert not any(KEY in text for text in said)
    assert not any(KEY[-8:] in text for text in said)
    written = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert len(written) > 20
    assert not [p for p in written if KEY.encode() in p.read_bytes()]
    assert len(service.part(Jobs).all) == 1


# ---- money --------------------------------------------------------------------------------------------------------


def test_max_cost_stops_before_anything_is_sent(study: Path, service: Service, tmp_path: Path):
    with pytest.raises(UserError, match=r"--max-cost \$0\.00.*|more than --max-cost"):
        run(study, tmp_path / "runs", "arms=[student, ceiling]", max_cost=0.000001)
    assert not service.part(Files).stored
    with pytest.raises(UserError, match=r"strong\.max_cost"):
        run(study, tmp_path / "runs", "arms=[student]", "strong.max_cost=0.000001")
    assert not service.part(Files).stored


def test_max_cost_counts_what_finished_stages_cost(study: Path, service: Service, tmp_path: Path):
    runs = tmp_path / "runs"
    flow, _ = run(study, runs, "arms=[student]")
    spent = flow.pool.budget.spent
    assert spent > 0
    with pytest.raises(UserError, match="spent on this experiment"):
        run(study, runs, "arms=[student, ceiling]", max_cost=spent * 1.2)
    assert len(service.part(Jobs).all) == 1
    run(study, runs, "arms=[student, ceiling]", max_cost=spent * 4)
    assert len(service.part(Jobs).all) == 2


def test_epochs_that_the_service_chooses_beyond_the_limit_cancel_the_job(study: Path, service: Service, tmp_path: Path):
    service.part(Jobs).epochs = 25
    service.part(Jobs).states = ("validating_files", "queued", "running", "running", "running", "succeeded")
    config = load(str(study), ["strong.n_epochs=auto"])[0]
    flow = ex.open_run(config, tmp_path / "runs")
    rows = cr.chat_rows(flow.layout.task, flow.layout.task.train_docs[:64], [0] * 64, PromptStyle(0, True))
    estimate = training_estimate(cr.check_rows(rows, MODEL), config.strong.model, config.strong.n_epochs)
    assert estimate.epochs == 3
    with pytest.raises(UserError, match=r"chose 25 epochs.*was cancelled"):
        run(study, tmp_path / "runs", "strong.n_epochs=auto", f"strong.max_cost={estimate.usd * 2}")
    assert [j.data["status"] for j in service.part(Jobs).all.values()] == ["cancelled"]


def test_a_model_without_a_price_needs_a_table_to_keep_a_budget(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    counts = cr.Counts(10, 1000, 100, 1, 0, 0, {"a": 5, "b": 5})
    config = parse("task: w2s_sst2\nweak: {model: x}\nstrong: {model: own-8b, trainer: openai, n_epochs: 2}\n", "c.yaml")
    estimate = training_estimate(counts, config.strong.model, config.strong.n_epochs)
    assert estimate.usd is None
    with pytest.raises(UserError, match="W2S_PRICES"):
        Budget(1.0).check(estimate.usd, "train student")
    table = tmp_path / "prices.yaml"
    table.write_text("as_of: 2026-11-01\nmodels: {own-8b: {input: 1, output: 1, training: 5.0}}\n")
    monkeypatch.setenv("W2S_PRICES", str(table))
    assert training_estimate(counts, config.strong.model, config.strong.n_epochs).usd == pytest.approx(0.01)


def test_the_plan_counts_tokens_and_cost_without_a_key(
    study: Path, service: Service, monkeypatch: pytest.MonkeyPatch, tmp_path
):
    monkeypatch.delenv("OPENAI_API_KEY")
    planned = {p.title: p for p in planned_steps(load(str(study))[0])[0]}
    assert not service.log
    assert planned["train weak, seed 0"].tokens is None
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    flow, _ = run(study, tmp_path / "runs")
    lines = (flow.stages["fit/student, seed 0"].path / "train.jsonl").read_text().splitlines()
    exact = cr.check_rows([json.loads(line) for line in lines], MODEL)
    # Counted over all rows, for a half of them.
    assert planned["train student, seed 0"].tokens == pytest.approx(exact.tokens * 8, rel=0.05)
    assert planned["train student, seed 0"].usd == pytest.approx(exact.tokens * 8 * 3e-6, rel=0.05)
    asked, tuned = planned["evaluate zero_shot"], planned["evaluate student, seed 0"]
    assert asked.tokens == tuned.tokens
    assert tuned.usd == pytest.approx(2 * asked.usd)  # a tuned gpt-4o-mini costs twice as much


@pytest.mark.parametrize("name", ["seed_gpt4o_mini", "seed_gpt4o_mini_corrected"])
def test_the_shipped_studies_are_read(name: str):
    config = load(name)[0]
    assert isinstance(config.strong, OpenAI)
    assert config.strong.target == ("quoted" if name == "seed_gpt4o_mini" else "plain")
    assert ("ceiling_full" in config.arms) == (name == "seed_gpt4o_mini")


def test_the_plan_of_the_study_on_real_data(real_data: Path):
    planned = {p.title: p for p in planned_steps(load("seed_gpt4o_mini", ["safety=null"])[0])[0]}
    assert planned["train student, seed 0"].rows == 33_675
    assert planned["train ceiling_full, seed 0"].rows == 67_349
    assert 1_200_000 < planned["train student, seed 0"].tokens < 3_000_000
    assert 3 < planned["train student, seed 0"].usd < 9


# ---- rows ---------------------------------------------------------------------------------------------------------


def _rows(n: int) -> list[dict]:
    return [
        {"messages": [{"role": "user", "content": f"row {i}"}, {"role": "assistant", "content": str(i % 2)}]}
        for i in range(n)
    ]


def test_nine_rows_are_too_few():
    assert cr.check_rows(_rows(10), MODEL).rows == 10
    with pytest.raises(UserError, match="at least 10"):
        cr.check_rows(_rows(9), MODEL)


def test_empty_and_malformed_messages_are_named():
    rows = _rows(12)
    rows[3]["messages"][0]["content"] = "  "
    with pytest.raises(UserError, match="row 4: the user message is empty"):
        cr.check_rows(rows, MODEL)
    rows = _rows(12)
    rows[5]["messages"][0]["role"] = "usr"
    with pytest.raises(UserError, match="row 6: no role 'usr'"):
        cr.check_rows(rows, MODEL)
    rows = _rows(12)
    rows[0]["messages"].reverse()
    with pytest.raises(UserError, match="last message"):
        cr.check_rows(rows, MODEL)


def test_a_row_beyond_the_window_is_refused_not_cut():
    rows = _rows(12)
    rows[7]["messages"][0]["content"] = "word " * 20_000
    assert cr.check_rows(rows, MODEL).longest > 20_000
    with pytest.raises(UserError, match=r"row 8 has 20,.*gpt-3.5-turbo takes 16,385"):
        cr.check_rows(rows, "gpt-3.5-turbo")


def test_duplicates_conflicts_and_one_sided_targets_are_told():
    rows = _rows(10)
    rows += [rows[0], {"messages": [rows[1]["messages"][0], {"role": "assistant", "content": "0"}]}]
    counts = cr.check_rows(rows, MODEL)
    assert (counts.duplicates, counts.conflicts, counts.targets) == (1, 1, {"0": 7, "1": 5})
    assert len(counts.notes()) == 2
    same = [{"messages": [{"role": "user", "content": str(i)}, {"role": "assistant", "content": "1"}]} for i in range(10)]
    assert "nothing to learn" in cr.check_rows(same, MODEL).notes()[0]


def test_tokens_are_counted_offline_as_the_cookbook_does():
    # o200k_base: "hello world" is 2 tokens; 3 + 1 a message, 3 a row.
    row = {"messages": [{"role": "user", "content": "hello world"}, {"role": "assistant", "content": "1"}]}
    assert cr.row_tokens(row) == 3 + (4 + 2) + (4 + 1)


@pytest.mark.parametrize(("rows", "epochs"), [(10, 10), (33, 3), (64, 3), (8_000, 3), (10_000, 2), (33_675, 1), (4, 25)])
def test_auto_epochs_follow_the_published_rule(rows: int, epochs: int):
    assert cr.auto_epochs(rows) == epochs


def test_a_prefix_of_the_answer_becomes_part_of_the_reply(own_task: Path):
    path = own_task / "own_reviews.yaml"
    path.write_text(path.read_text() + 'gen_prefix: "It is"\n')
    task = Harness([str(own_task)]).task("own_reviews")
    row = cr.chat_row(task, task.train_docs[0], 1, PromptStyle(0, True))
    assert [m["role"] for m in row["messages"]] == ["user", "assistant"]
    assert row["messages"][-1]["content"] == "It is positive"


# ---- configs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("n_epoch: 3", "Did you mean 'n_epochs'"),
        ("n_epochs: 0", "write auto or a whole number"),
        ("api_key_env: sk-live-1234567890", "NAME of an environment variable"),
        ("api_key: sk-live-1234567890", "unknown key.*api_key_env"),
        ("base_url: 'https://user:sk-live-1234567890@host/v1'", "no user, password or query"),
        ("base_url: host/v1", "an address such as"),
        ("model_args: {api_key: x}", "looks like a secret"),
        ("model_args: {header: sk-live-1234567890}", "looks like a secret"),
        ("lr: 1e-4", "unknown key"),
    ],
)
def test_a_wrong_setting_is_named_and_a_key_is_not_repeated(settings: str, said: str):
    text = f"task: w2s_sst2\nweak: {{model: x}}\nstrong: {{model: m, trainer: openai, {settings}}}\n"
    with pytest.raises(UserError, match=rf"(?s)c\.yaml:3: strong.*{said}") as caught:
        parse(text, "c.yaml")
    assert "1234567890" not in str(caught.value)


def test_other_methods_and_other_trainers_are_refused_with_a_sentence():
    text = "task: w2s_sst2\nweak: {model: x}\nstrong: {model: m, trainer: openai}\nmethods: [xent, conf]\n"
    with pytest.raises(UserError, match="xent"):
        parse(text, "c.yaml")
    with pytest.raises(UserError, match=r"no trainer 'opnai'\. Did you mean 'openai'"):
        parse(text.replace("openai", "opnai"), "c.yaml")
