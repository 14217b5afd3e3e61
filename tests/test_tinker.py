"""The Tinker trainer: the losses of a local training, no step paid for twice, weights that come home."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance

from trainers.config.reading import load
from trainers.fit import lora, tinker
from trainers.fit.lora import Lora
from trainers.fit.tinker import Tinker
from trainers.flow import run as ex
from trainers.flow.plan import planned_steps
from trainers.flow.progress import Progress
from trainers.harness.pool import ModelPool
from trainers.harness.tasks import HarnessTask
from trainers.labels.label_set import LabelSet
from trainers.report.report import write_report
from trainers.store import stopping
from w2s_tasks.errors import UserError
from w2s_tasks.models.ref import ModelRef
from w2s_tasks.models.tinker import weights
from w2s_tasks.models.tinker.service import Service as Reached

if TYPE_CHECKING:
    from tinker_service import Service

ROWS = 64
STEPS = 8


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("W2S_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def small(causal_model: Callable[[str], Path], tinker_service: Service) -> Callable[..., Tinker]:
    """Settings of eight steps at the stand-in."""
    own = {"model": "tiny/base", "tokenizer": str(causal_model("llama")), "r": 8, "lr": 1e-2, "batch_size": 8}
    return lambda **more: Tinker(**{**own, "holdout": 0.0, "save_steps": 3, "timeout": 20.0, **more})


def soft(task: HarnessTask, n: int = ROWS, *, weight: bool = False) -> LabelSet:
    """Unsure labels, mostly right."""
    gold = torch.tensor([task.gold(doc) for doc in task.train_docs[:n]])
    sure = 0.6 + 0.35 * torch.rand(n, generator=torch.Generator().manual_seed(0))
    probs = torch.where(torch.arange(2) == gold[:, None], sure[:, None], 1 - sure[:, None])
    weights = torch.linspace(0.2, 1.8, n).numpy() if weight else None
    return LabelSet([str(i) for i in range(n)], probs.numpy(), weight=weights)


def task_of(folder: Path) -> HarnessTask:
    from trainers.harness.evaluate import Harness

    return Harness([str(folder)]).task("own_reviews")


def fit(
    task: HarnessTask, settings: Tinker, out: Path, labels: LabelSet | None = None, **more: Any
) -> tuple[ModelRef, list[str]]:
    """Train, and the lines that the user was told."""
    out.mkdir(parents=True, exist_ok=True)
    told: list[str] = []
    pool = more.pop("pool", None) or ModelPool()
    pool.note = told.append
    return tinker.fit(task, task.train_docs[:ROWS], labels or soft(task), settings, out, pool=pool, **more), told


def losses(folder: Path) -> list[float]:
    return [point["loss"] for point in json.loads((folder / "curves.json").read_text()) if "loss" in point]


def curve(folder: Path, key: str) -> list[float]:
    return [point[key] for point in json.loads((folder / "curves.json").read_text()) if key in point]


# ---- as here ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def same_start(small: Callable[..., Tinker], tinker_service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """A local adapter begins with the service's matrices; PEFT would draw others."""
    import tinker as sdk
    from tinker_service.models import Adapter

    plain = lora.with_adapter

    def with_adapter(base: torch.nn.Module, settings: Any, *kind: Any) -> Any:
        model = plain(base, settings, *kind)
        config = sdk.types.LoraConfig(rank=settings.r, seed=3, train_unembed=False)
        for name, (a, _) in Adapter.new(tinker_service.base("tiny/base"), config).matrices.items():
            model.get_submodule(f"base_model.model.{name}").lora_A["default"].weight.data.copy_(a)
        return model

    monkeypatch.setattr(lora, "with_adapter", with_adapter)


CASES: dict[str, tuple[dict[str, Any], dict[str, Any], bool]] = {
    "soft labels": ({}, {}, False),
    "a loss over the step": ({"holdout": 0.2, "schedule": "cosine", "weight_decay": 0.1}, {"method": "logconf"}, False),
    "weights of rows, two epochs and a half": ({"epochs": 2.5, "batch_size": 24}, {}, True),
    "replies": ({"objective": "language_model", "holdout": 0.2}, {}, False),
}


@pytest.mark.parametrize("case", CASES)
def test_a_training_at_the_service_has_the_curve_of_one_here(
    case: str, own_task: Path, causal_model, small: Callable[..., Tinker], same_start: None, tmp_path: Path
) -> None:
    settings, method, weighted = CASES[case]
    task = task_of(own_task)
    labels = soft(task, weight=weighted)
    there = small(**settings)
    fit(task, there, tmp_path / "there", labels, seed=3, **method)
    shared = there.model_dump(include=Lora.model_fields.keys() - {"trainer", "model", "model_args"})
    here = Lora(model=str(causal_model("llama")), alpha=32, **shared)
    (tmp_path / "here").mkdir()
    lora.fit(task, task.train_docs[:ROWS], labels, here, tmp_path / "here", pool=ModelPool(), seed=3, **method)
    assert losses(tmp_path / "there") == pytest.approx(losses(tmp_path / "here"), abs=2e-4)
    assert curve(tmp_path / "there", "learning_rate") == pytest.approx(curve(tmp_path / "here", "learning_rate"))
    assert curve(tmp_path / "there", "epoch") == pytest.approx(curve(tmp_path / "here", "epoch"))
    if "holdout" in settings:
        assert curve(tmp_path / "there", "eval_loss") == pytest.approx(curve(tmp_path / "here", "eval_loss"), abs=2e-4)
        assert curve(tmp_path / "there", "eval_accuracy") == curve(tmp_path / "here", "eval_accuracy")
    assert max(losses(tmp_path / "there")) - min(losses(tmp_path / "there")) > 1e-2  # it moved


def test_an_objective_over_replies_takes_one_pass_and_one_over_choices_two(
    own_task: Path, small: Callable[..., Tinker], tinker_service: Service, tmp_path: Path
) -> None:
    task = task_of(own_task)
    fit(task, small(objective="language_model"), tmp_path / "replies")
    assert (tinker_service.done("forward"), tinker_service.done("forward_backward")) == (0, STEPS)
    fit(task, small(), tmp_path / "choices")
    assert (tinker_service.done("forward"), tinker_service.done("forward_backward")) == (STEPS, 2 * STEPS)


# ---- nothing twice ---------------------------------------------------------------------------------------------------


def test_a_finished_training_is_found_from_another_folder(
    own_task: Path, small: Callable[..., Tinker], tinker_service: Service, tmp_path: Path
) -> None:
    task = task_of(own_task)
    first, _ = fit(task, small(), tmp_path / "a")
    second, told = fit(task, small(), tmp_path / "b")
    assert second == first
    assert tinker_service.done("optim_step") == STEPS
    assert any("not trained again" in line for line in told)
    other, _ = fit(task, small(), tmp_path / "c", seed=1)
    assert other != first
    assert tinker_service.done("optim_step") == 2 * STEPS


def test_a_training_that_was_killed_goes_on_from_its_last_checkpoint_with_the_same_numbers(
    own_task: Path, small: Callable[..., Tinker], tinker_service: Service, tmp_path: Path
) -> None:
    task = task_of(own_task)
    tinker_service.futures.add("FUTURE forward_backward", "fail", code="user", message="out of luck", skip=5)
    with pytest.raises(UserError, match="out of luck"):
        fit(task, small(), tmp_path / "cut", seed=6)
    before = tinker_service.done("optim_step")
    # Another folder, as on another machine: the service's own lists say how far it came.
    fit(task, small(), tmp_path / "elsewhere", seed=6)
    assert tinker_service.done("optim_step") - before == STEPS - 3
    fit(task, small(max_grad_norm=1.0 + 1e-9), tmp_path / "uncut", seed=6)  # another key, the same arithmetic
    assert losses(tmp_path / "elsewhere")[-2:] == pytest.approx(losses(tmp_path / "uncut")[-2:], abs=1e-5)


def test_a_server_that_keeps_no_metadata_is_searched_by_the_names_of_checkpoints(
    own_task: Path, small: Callable[..., Tinker], tinker_service: Service, tmp_path: Path
) -> None:
    tinker_service.keeps_metadata = False
    task = task_of(own_task)
    fit(task, small(), tmp_path / "a")
    _, told = fit(task, small(), tmp_path / "b")
    assert any(f"found step {STEPS} of {STEPS}" in line for line in told)
    assert tinker_service.done("optim_step") == STEPS
    fit(task, small(), tmp_path / "c", seed=1)
    assert tinker_service.done("optim_step") == 2 * STEPS


FAULTS: dict[str, Callable[[Any], Any]] = {
    "a step that is refused with 500 once": lambda s: s.faults.add("POST /api/v1/optim_step", "status", status=500, skip=2),
    "an answer that is lost": lambda s: s.faults.add("POST /api/v1/optim_step", "lost", skip=2),
    "a connection that breaks": lambda s: s.faults.add("POST /api/v1/forward_backward", "reset", skip=3),
    "a result that is asked for twice": lambda s: s.faults.add("POST /api/v1/retrieve_future", "status", status=503, skip=7),
    "work that fails at the server": lambda s: s.futures.add("FUTURE forward_backward", "fail", code="server", skip=4),
    "a save that is lost": lambda s: s.faults.add("POST /api/v1/save_weights", "lost"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_ends_in_the_one_training(
    fault: str, own_task: Path, small: Callable[..., Tinker], tinker_service: Service, tmp_path: Path
) -> None:
    task = task_of(own_task)
    fit(task, small(max_grad_norm=1.0 + 1e-9), tmp_path / "reference")
    before = tinker_service.done("optim_step")
    FAULTS[fault](tinker_service)
    fit(task, small(), tmp_path / "faulty")
    assert losses(tmp_path / "faulty") == pytest.approx(losses(tmp_path / "reference"), abs=1e-5)
    done = tinker_service.done("optim_step") - before
    assert done <= STEPS + 3, "no more than what was not saved yet"
    if "fails at" not in fault:
        assert done == STEPS


def test_a_list_that_fails_ends_the_run_and_one_that_is_not_offered_does_not(
    own_task: Path, small: Callable[..., Tinker], tinker_service: Service, tmp_path: Path
) -> None:
    task = task_of(own_task)
    tinker_service.faults.add("GET /api/v1/training_runs", "status", status=500, times=99)
    with pytest.raises(UserError, match="looking for this training"):
        fit(task, small(timeout=2.0), tmp_path / "out")  # it may have been trained: nothing is begun
    assert tinker_service.done("create_model") == 0
    tinker_service.faults.clear()
    tinker_service.faults.add("GET /api/v1/training_runs", "status", status=404, times=99)
    _, told = fit(task, small(), tmp_path / "out")
    assert any("only this folder's record" in line for line in told)
    tinker_service.faults.clear()


def test_what_another_machine_finished_is_found_though_this_one_has_begun(
    own_task: Path, small: Callable[..., Tinker], tinker_service: Service, tmp_path: Path
) -> None:
    task = task_of(own_task)
    tinker_service.futures.add("FUTURE forward_backward", "fail", code="user", message="out of luck", skip=5)
    with pytest.raises(UserError, match="out of luck"):
        fit(task, small(), tmp_path / "here")
    first, _ = fit(task, small(), tmp_path / "there")
    done = tinker_service.done("optim_step")
    assert fit(task, small(), tmp_path / "here")[0] == first
    assert tinker_service.done("optim_step") == done


def test_a_lost_session_goes_on_in_another(
    own_task: Path, small: Callable[..., Tinker], tinker_service: Service, tmp_path: Path
) -> None:
    task = task_of(own_task)
    fit(task, small(max_grad_norm=1.0 + 1e-9), tmp_path / "reference")
    before = tinker_service.done("optim_step")

    def lose() -> None:
        while tinker_service.done("optim_step") < before + 4:
            time.sleep(0.005)
        tinker_service.lose_sessions()

    thread = threading.Thread(target=lose)
    thread.start()
    _, told = fit(task, small(), tmp_path / "lost")
    thread.join()
    assert losses(tmp_path / "lost") == pytest.approx(losses(tmp_path / "reference"), abs=1e-5)
    assert tinker_service.done("optim_step") - before <= STEPS + 4
    assert any("Going on from step" in line for line in told) or tinker_service.done("optim_step") - before == STEPS


def test_a_service_that_never_answers_is_given_up_in_time(
    own_task: Path, small: Callable[..., Tinker], tinker_service: Service, tmp_path: Path
) -> None:
    tinker_service.futures.add("FUTURE optim_step", "stall", skip=3)
    begun = time.monotonic()
    with pytest.raises(UserError, match=r"step 4 of 8: no answer within 2 s.*run again"):
        fit(task_of(own_task), small(timeout=2.0), tmp_path / "stalled")
    assert time.monotonic() - begun < 30
    fit(task_of(own_task), small(timeout=20.0), tmp_path / "stalled")
    assert len(losses(tmp_path / "stalled")) == STEPS


def test_an_end_that_is_asked_for_comes_after_a_checkpoint(
    own_task: Path, small: Callable[..., Tinker], tinker_service: Service, tmp_path: Path
) -> None:
    def ask() -> None:
        while tinker_service.done("optim_step") < 4:
            time.sleep(0.002)
        signal.raise_signal(signal.SIGTERM)

    task = task_of(own_task)
    thread = threading.Thread(target=ask)
    with stopping.on_signals():
        thread.start()
        with pytest.raises(stopping.Terminated):
            fit(task, small(save_steps=100), tmp_path / "ended")
    thread.join()
    done = tinker_service.done("optim_step")
    fit(task, small(save_steps=100), tmp_path / "ended")
    assert tinker_service.done("optim_step") == STEPS
    assert 4 <= done < STEPS
    assert len(losses(tmp_path / "ended")) == STEPS


# ---- one clear sentence ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model": "tiny/bsae"}, "has no model 'tiny/bsae'.*tiny/base"),
        ({"base_url": "http://127.0.0.1:9"}, r"no answer within|not reachable"),
        ({"api_key_env": "NO_SUCH_KEY"}, r"\$NO_SUCH_KEY was not accepted"),
        ({"max_cost": 0.01}, "more than strong.max_cost"),
    ],
)
def test_what_can_not_begin_is_told_in_one_sentence(
    change: dict[str, Any],
    sentence: str,
    own_task: Path,
    small: Callable[..., Tinker],
    tinker_service: Service,
    tmp_path: Path,
) -> None:
    with pytest.raises(UserError, match=sentence):
        fit(task_of(own_task), small(**{"timeout": 3.0, **change}), tmp_path / "out")
    assert tinker_service.done("optim_step") == 0


def test_a_server_of_another_protocol_is_named_as_such(
    own_task: Path, small: Callable[..., Tinker], tinker_service: Service, tmp_path: Path
) -> None:
    tinker_service.faults.add(
        "POST /api/v1/create_model", "status", status=422, times=9, message="unknown field optimizer_config"
    )
    with pytest.raises(UserError, match=r"do not understand each other.*tinker 0\."):
        fit(task_of(own_task), small(), tmp_path / "out")


def test_no_key_stands_in_any_file(
    own_task: Path, small: Callable[..., Tinker], tinker_service: Service, tmp_path: Path
) -> None:
    fit(task_of(own_task), small(), tmp_path / "out")
    files = [path for path in tmp_path.rglob("*") if path.is_file() and "tinker" not in path.relative_to(tmp_path).parts]
    assert files
    assert not [path for path in files if tinker_service.key.encode() in path.read_bytes()]


# ---- home ------------------------------------------------------------------------------------------------------------


def logliks(lm: Any, task: HarnessTask) -> np.ndarray:
    pairs = [("the film was ", word) for word in ("lovely", "dull", "the story")]
    requests = [Instance("loglikelihood", {}, pair, i, metadata=("t", i, 1)) for i, pair in enumerate(pairs)]
    return np.array(lm.loglikelihood(requests, disable_tqdm=True), dtype=float)


@pytest.mark.parametrize("names", ["peft", "tinker"])
@pytest.mark.parametrize("unembedding", [False, True])
def test_weights_that_came_home_answer_as_they_do_at_the_service(
    names: str, unembedding: bool, own_task: Path, causal_model, small, tinker_service: Service, tmp_path: Path
) -> None:
    from w2s_tasks.models.packed_hf import W2SHF

    task = task_of(own_task)
    tinker_service.names = names
    ref, _ = fit(task, small(unembedding=unembedding), tmp_path / "out")
    there = logliks(ModelPool().load(ref), task)
    service = Reached(tinker_service.base_url, timeout=20.0)
    folder = weights.fetch(str(ref.args["model_path"]), tmp_path / "adapter", service)
    here = logliks(W2SHF(str(causal_model("llama")), peft=str(folder), device="cpu"), task)
    assert there == pytest.approx(here, abs=1e-4)
    untuned = logliks(W2SHF(str(causal_model("llama")), device="cpu"), task)
    assert np.abs(here - untuned).max() > 1e-2
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".safetensors", ".md"}
    with pytest.raises(UserError, match="is there already"):
        weights.fetch(str(ref.args["model_path"]), folder, service)


def test_an_address_without_the_kind_of_weights_is_one_for_sampling() -> None:
    assert weights.whole("tinker://model_1/w2s-final") == "tinker://model_1/sampler_weights/w2s-final"
    assert weights.whole("tinker://model_1/weights/w2s-final") == "tinker://model_1/weights/w2s-final"
    assert weights.whole("elsewhere://a/b/c") == "elsewhere://a/b/c"


# ---- as an experiment ------------------------------------------------------------------------------------------------


@pytest.fixture
def study(tmp_path: Path, own_task: Path, encoder_folder: Path, causal_model, tinker_service: Service) -> Path:
    """An encoder supervises a model at the service."""
    path = tmp_path / "small.yaml"
    path.write_text(
        f"""\
task: own_reviews
include_path: [own_tasks]
split: {{by: source, weak: 0.5, limit: {{weak: 96, transfer: 64}}, seed: 0}}
weak: {{model: {encoder_folder}, text: text, epochs: 3, lr: 2e-3, batch_size: 16}}
strong: {{model: tiny/base, tokenizer: {causal_model("llama")}, trainer: tinker, r: 8, lr: 4e-3, batch_size: 8, epochs: 4}}
arms: [zero_shot, student, ceiling]
seeds: [0]
evaluate: {{num_fewshot: 0}}
"""
    )
    return path


def run(config: Path, runs: Path, *sets: str, max_cost: float | None = None) -> tuple[ex.Run, dict[str, Any]]:
    flow = ex.open_run(load(str(config), list(sets))[0], runs, max_cost)
    flow.build(Progress(quiet=True))
    return flow, write_report(flow)[0].json()


def test_what_would_fail_at_the_first_request_is_told_before_anything_is_trained(
    study: Path, tmp_path: Path, tinker_service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINKER_API_KEY", "sk-canary-9b3e5d17a0c2")
    with pytest.raises(UserError, match="starts with tml-") as found:
        run(study, tmp_path / "runs")
    assert "canary" not in str(found.value)
    assert not list((tmp_path / "runs").rglob("*.safetensors"))


PRICES = "as_of: 2026-11-01\nmodels:\n  tiny/base: {input: 0.2, cached_input: 0.04, output: 0.6, training: 0.4}\n"


def test_an_experiment_runs_and_its_cost_is_known(
    study: Path, tmp_path: Path, tinker_service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prices.yaml").write_text(PRICES)
    monkeypatch.setenv("W2S_PRICES", str(tmp_path / "prices.yaml"))
    planned = [step for step in planned_steps(load(str(study))[0])[0] if step.tokens]
    assert not tinker_service.log  # a plan sends nothing
    flow, report = run(study, tmp_path / "runs")
    modes = {a["arm"]: (a["mode"], a["objective"]) for a in report["arms"]}
    assert modes["zero_shot"] == ("loglikelihood", None)
    assert modes["student"] == modes["ceiling"] == ("loglikelihood", "choices")
    acc = {a["arm"]: a["metrics"]["acc"] for a in report["arms"]}
    assert acc["ceiling"] > 0.7 > acc["zero_shot"]
    points = {c["arm"]: c["points"] for c in report["curves"]}
    assert len([p for p in points["student"] if "loss" in p]) == 32
    files = [stage.path / "cost.json" for stage in flow.stages.values()]
    costs = [json.loads(file.read_text())["usd"] for file in files if file.is_file()]
    steps, asked = tinker_service.done("optim_step"), tinker_service.tokens()
    assert sum(costs) == pytest.approx(
        (asked["train"] * 0.4 + asked["prefill"] * 0.2 + asked["sample"] * 0.6) / 1e6, rel=0.05
    )
    assert sum(step.tokens for step in planned if step.kind == "fit") == pytest.approx(asked["train"], rel=0.02)
    assert sum(step.usd or 0.0 for step in planned) == pytest.approx(sum(costs), rel=0.05)
    again, second = run(study, tmp_path / "runs")
    assert all(stage.reused for stage in again.stages.values())
    assert second == report
    assert (tinker_service.done("optim_step"), tinker_service.tokens()) == (steps, asked)
    _, third = run(study, tmp_path / "elsewhere")  # nothing is asked for twice, whatever the folder
    assert (tinker_service.done("optim_step"), tinker_service.tokens()) == (steps, asked)
    assert [a["metrics"] for a in third["arms"]] == [a["metrics"] for a in report["arms"]]
    with pytest.raises(UserError, match="--max-cost"):
        run(study, tmp_path / "poor", "seeds=[7]", max_cost=1e-5)
