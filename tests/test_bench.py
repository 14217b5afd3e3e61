"""The benchmarks measure what they say, on tiny random models: keys, equality verdicts, tokens. No test looks at a time."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from bench import comparison, contention, eval, linear, runs, scale, scoring, startup, train
from bench.side import Side, TokenMeter, Worker

from trainers.harness.evaluate import Harness, PromptStyle
from w2s_tasks.errors import UserError

REPOSITORY = Path(__file__).parent.parent
KEYS = {
    *("bench", "ours_s", "peer_s", "ratio", "ours_tokens", "peer_tokens"),
    *("max_abs_diff", "same_predictions", "ours_peak_mb", "peer_peak_mb"),
}


FIXED_SHOTS = """\
fewshot_config:
  sampler: !function w2s_tasks.rows.fewshot.BalancedSampler
  process_docs: !function w2s_tasks.rows.fewshot.pool
"""


def _run(main: Callable[..., None], arguments: Sequence[object], capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    comparison.run(main, [str(argument) for argument in arguments])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1, "standard output is one line of JSON"
    found = json.loads(lines[0])
    assert set(found) >= KEYS
    assert found["ratio"] == pytest.approx(found["peer_s"] / found["ours_s"], rel=1e-3)
    assert found["ours_peak_mb"] > 0 < found["peer_peak_mb"]
    return found


def _common(model: Path, own_task: Path) -> list[object]:
    return ["--model", model, "--task", "own_reviews", "--include_path", own_task, "--threads", 1, "--repeats", 1]


def _plain_tokens(model: Path, own_task: Path, documents: int) -> int:
    """Tokens of all forward passes without sharing and padding; equal passes run once, as lm_eval does."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    task = Harness([str(own_task)]).task("own_reviews")
    passes = set()
    for i, doc in enumerate(scoring.choose(task, documents, 0, training=False)):
        for prompt, choice in task.pairs(doc, PromptStyle(4)):
            passes.add((i, *tokenizer(prompt + choice)["input_ids"][:-1]))
    return sum(len(one) - 1 for one in passes)


@pytest.mark.slow
def test_evaluation_compares_every_document_and_counts_every_token(own_task: Path, causal_model, capsys):
    model = causal_model("llama")
    with (own_task / "own_reviews.yaml").open("a", encoding="utf-8") as yaml:
        yaml.write(FIXED_SHOTS)
    sizes = ["--docs", 10, "--shots", 4, "--peer-docs", 10, "--peer-batch", 1, "--repeats", 2]
    found = _run(eval.main, [*_common(model, own_task), *sizes], capsys)
    assert found["same_predictions"]
    assert found["max_abs_diff"] < 1e-4
    assert found["compared_docs"] == found["docs"] == 10
    assert found["peer_sampled_docs"] is None
    assert found["peer_tokens"] == _plain_tokens(model, own_task, 10)
    assert found["ours_tokens"] < found["peer_tokens"]
    assert found["ours_tokens"] < found["ours_first_run_tokens"], "the first run checks a model's packed scores"
    assert list(found["peer_batch_search"]) == ["1"]
    assert found["over_floor"] == pytest.approx(found["ours_s"] / found["floor_s"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_linear_layers_are_compared_on_one_row_forward_and_back(architecture: str, causal_model, capsys):
    arguments = ["--model", causal_model(architecture), "--tokens", 12, "--threads", 1, "--repeats", 2]
    found = _run(linear.main, arguments, capsys)
    assert found["same_predictions"]
    assert found["max_abs_diff"] < 1e-4
    assert found["max_abs_diff_gradient"] < 1e-4
    assert found["ours_tokens"] == found["peer_tokens"] == 12
    assert found["ours_gflops"] > 0 < found["peer_gflops"]


def test_a_sampled_peer_is_scaled_to_all_documents_of_each_task():
    class Fake:
        """Answers like a side whose documents cost their index in seconds and tokens."""

        def call(self, method: str, documents: list[int], batch: int):
            from bench.side import Reply

            return Reply([[(0.0, False)]] * len(documents), float(sum(documents)), sum(documents), 1.0, "cpu")

    tasks = ["a"] * 4 + ["b"] * 8
    sample = runs.stratified(tasks, 6, seed=0)
    assert {name: len(documents) for name, documents in sample.items()} == {"a": 2, "b": 4}
    assert all(tasks[i] == name for name, documents in sample.items() for i in documents)
    run = runs.run_peer(Fake(), sample, Counter(tasks), {"a": 1, "b": 1})  # type: ignore[arg-type]
    assert run.seconds == run.tokens == 2 * sum(sample["a"]) + 2 * sum(sample["b"])
    assert sorted(run.answers) == sorted([*sample["a"], *sample["b"]])
    assert {len(d) for d in runs.stratified(tasks, 1, seed=0).values()} == {1}, "no task is left out"


def test_the_peer_runs_as_many_documents_as_its_time_allows():
    assert runs.sample_size(0, 1000, 1, seconds_a_doc=1.0, repeats=3) == 200
    assert runs.sample_size(0, 100, 1, seconds_a_doc=0.01, repeats=3) == 100
    assert runs.sample_size(0, 1000, 12, seconds_a_doc=60.0, repeats=3) == 24
    assert runs.sample_size(5, 1000, 12, seconds_a_doc=60.0, repeats=3) == 5


def test_a_difference_is_seen():
    answers = [[(-1.0, True), (-2.0, False)], [(-3.0, False), (-1.0, False)]]
    assert scoring.compare(answers, answers) == (0.0, 1.0)
    near = [[(-1.0, True), (-2.5, False)], answers[1]]
    assert scoring.compare(answers, near) == (0.5, 1.0)
    other_choice = [[(-1.0, True), (-0.5, False)], answers[1]]
    assert scoring.compare(answers, other_choice) == (1.5, 0.5)
    other_greedy = [[(-1.0, False), (-2.0, False)], answers[1]]
    assert scoring.compare(answers, other_greedy) == (0.0, 0.5)


TRAINING = ["--rows", 32, "--batch-size", 16, "--heldout", 40, "--r", 4, "--lr", 1e-2]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="needs TRL, the peer: pip install '.[bench]'")
def test_chat_training_has_the_losses_and_predictions_of_trl(own_task: Path, causal_model, capsys):
    arguments = [*_common(causal_model("llama"), own_task), *TRAINING, "--peer-batch", "8", "--system-prompt", "Be brief."]
    found = _run(train.main, ["--format", "chat", *arguments], capsys)
    assert found["max_abs_diff"] < 1e-3
    assert found["same_predictions"]
    assert found["steps"] == 2
    assert abs(found["last_loss"] - found["first_loss"]) > 1e-2
    assert set(found["peer_batch_search"]) == {"8", "8 padding_free"}
    # Sixteen rows are asked before and after, to see whether the training killed the model: here as many as are trained on.
    assert found["ours_tokens"] < 1.5 * found["peer_tokens"]
    assert found["over_floor"] == pytest.approx(found["ours_s"] / found["floor_s"], rel=1e-3)


@pytest.mark.slow
def test_plain_training_has_the_losses_and_predictions_of_a_sequence_classifier(own_task: Path, causal_model, capsys):
    arguments = [*_common(causal_model("llama"), own_task), *TRAINING, "--peer-batch", "8"]
    found = _run(train.main, ["--format", "plain", *arguments], capsys)
    assert found["max_abs_diff"] < 1e-3
    assert found["same_predictions"]
    assert abs(found["last_loss"] - found["first_loss"]) > 1e-2
    assert found["peer_batch"] == "8"


def test_a_classifier_is_refused_where_a_choice_has_several_tokens(own_task: Path, causal_model):
    from bench.training import PlainPeer, Recipe

    yaml = own_task / "own_reviews.yaml"
    yaml.write_text(yaml.read_text().replace('["negative", "positive"]', '["not good at all", "good"]'))
    model, folders = str(causal_model("llama")), [str(own_task)]
    recipe = Recipe(False, model, "own_reviews", rows=16, r=4, lr=1e-3, batch_size=8, seed=0, include_path=folders)
    with pytest.raises(UserError, match="tokens a choice"):
        PlainPeer(recipe).prepare()


@pytest.mark.slow
def test_scale_reports_every_size_and_the_same_answers(own_task: Path, causal_model, capsys):
    found = _run(scale.main, [*_common(causal_model("llama"), own_task), "--sizes", "8,40", "--shots", 2], capsys)
    assert found["docs"] == [8, 40]
    assert len(found["seconds_a_doc"]) == len(found["peak_mb"]) == 2
    assert found["tokens_a_doc"][1] < found["tokens_a_doc"][0], "the trunk is run once"
    assert found["same_predictions"]
    assert found["max_abs_diff"] < 1e-4


@pytest.mark.slow
def test_both_programs_start_and_give_the_same_result(capsys):
    found = _run(startup.main, ["--task", "w2s_ethics_probe_justice", "--limit", 4, "--repeats", 1], capsys)
    assert found["docs"] == 4
    assert found["same_predictions"]
    assert found["max_abs_diff"] == 0


@pytest.mark.slow
def test_commands_side_by_side_give_what_they_give_alone(own_task: Path, causal_model, capsys):
    own = ["--task", "own_reviews", "--include_path", own_task, "--model", causal_model("llama")]
    comparison.run(contention.main, [str(a) for a in (*own, "--rows", 6, "--train-rows", 32, "--repeats", 1)])
    found = json.loads(capsys.readouterr().out)
    assert found["same_results"]
    assert found["max_abs_diff"] == {"eval": 0, "train": 0}
    for kind in ("eval", "train"):
        times = found[kind]
        assert times["two_over_alone"] == pytest.approx(times["two_at_once_s"] / times["alone_s"], rel=1e-3)
        assert times["alone_over_default"] == pytest.approx(times["alone_s"] / times["alone_by_default_s"], rel=1e-3)


def test_what_differs_between_runs_is_seen(tmp_path: Path):
    numbers = {tmp_path / "a": {"x": 1.0, "y": 2.0}, tmp_path / "b": {"x": 1.0, "y": 2.5}, tmp_path / "c": {"x": 1.0}}
    a, b, c = numbers
    assert contention.spread(numbers.__getitem__, [a, a]) == 0
    assert contention.spread(numbers.__getitem__, [a, a, b]) == 0.5
    assert contention.spread(numbers.__getitem__, [a, c]) == float("inf")


@pytest.mark.parametrize(("alone", "two", "within"), [(10.2, 20.0, True), (10.4, 20.0, False), (10.0, 20.1, False)])
def test_both_ratios_have_a_target(alone: float, two: float, within: bool):
    found = contention.Times([alone], [two], [10.0], [84.0]).summary()
    assert found["two_over_alone_by_default"] == 8.4
    assert found["within_targets"] == within


def test_a_run_by_openmps_default_is_one(monkeypatch: pytest.MonkeyPatch):
    from w2s_tasks import machine

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    environment = contention.clean()
    assert not set(environment) & {*machine.WAITING, *machine.NUMBER}
    monkeypatch.setattr(os, "environ", environment | contention.DEFAULT)
    assert "GOMP_SPINCOUNT" not in machine.share()


MEET = """
import pathlib, sys, time
mine, other = map(pathlib.Path, sys.argv[1:])
mine.touch()
deadline = time.monotonic() + 60
while not other.exists():
    assert time.monotonic() < deadline, "the other one does not run"
    time.sleep(0.01)
"""


def test_commands_at_once_do_run_at_once(tmp_path: Path):
    names = [str(tmp_path / name) for name in "ab"]
    commands = [[sys.executable, "-c", MEET, *names], [sys.executable, "-c", MEET, *reversed(names)]]
    assert len(startup.time_commands(commands, os.environ)) == 2


def test_a_command_that_fails_is_reported_with_what_it_said():
    with pytest.raises(UserError, match=r"(?s)ended with code 3.*no such thing"):
        startup.time_command([sys.executable, "-c", "import sys; print('no such thing'); sys.exit(3)"])


class Odd(Worker):
    """A worker that fails in the ways in which workers fail."""

    def user_error(self) -> None:
        raise UserError("take another task")

    def bug(self) -> None:
        raise ZeroDivisionError("a bug")

    def die(self) -> None:
        os._exit(7)

    def threads(self) -> int:
        import torch

        return torch.get_num_threads()


@pytest.mark.parametrize(
    ("method", "error", "message"),
    [
        ("user_error", UserError, "take another task"),
        ("bug", RuntimeError, "ZeroDivisionError: a bug"),
        ("die", UserError, "odd: its process ended with code 7"),
    ],
)
def test_what_goes_wrong_in_a_side_reaches_the_parent(method: str, error: type[Exception], message: str):
    with Side("odd", Odd, threads=1) as side:
        assert side.call("threads").value == 1
        with pytest.raises(error, match=message):
            side.call(method)


def test_tokens_are_counted_with_their_padding_and_behind_an_adapter(causal_model):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model, meter = AutoModelForCausalLM.from_pretrained(causal_model("llama")), TokenMeter()
    meter.attach(model)
    model(input_ids=torch.zeros(2, 5, dtype=torch.long))
    get_peft_model(model, LoraConfig(target_modules="all-linear"))(input_ids=torch.zeros(3, 4, dtype=torch.long))
    assert meter.tokens == 10 + 12


@pytest.mark.parametrize("name", ["eval", "train", "startup", "scale", "linear", "contention"])
def test_every_script_runs_its_benchmark(name: str):
    script = (REPOSITORY / "scripts" / f"bench_{name}").read_text(encoding="utf-8")
    assert re.search(r"exec python -m bench\.(\w+)", script).group(1) == name
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(["scripts", os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", f"bench.{name}", "--help"]
    shown = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True)
    assert f"scripts/bench_{name}" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--peer-batch", "1,x"], "whole numbers"),
        (["--rows", "30", "--batch-size", "16"], "no multiple"),
        (["--peer-batch", "5"], "divides the 32 rows"),
    ],
)
def test_options_that_do_not_fit_are_explained(arguments: list[str], message: str, capsys):
    with pytest.raises(SystemExit) as stop:
        comparison.run(train.main, ["--format", "plain", *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
