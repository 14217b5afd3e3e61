"""No setting is ignored: every field of an experiment is read by the run, and changes it, or is refused or told."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import shutil
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from safetensors.torch import load_file
from settings_reads import reads
from sums import write_experiment
from typer.testing import CliRunner

from trainers import cli
from trainers.config import experiment as config
from trainers.config import reading
from trainers.config.method_args import known as known_args
from trainers.config.unused import unused
from trainers.fit.classifier import Classifier
from trainers.fit.full import Full
from trainers.fit.lora import Lora
from trainers.fit.probe import Probe
from trainers.fit.trainer import TRAINERS
from trainers.flow import run as runs_of
from trainers.flow.jobs import jobs_of
from trainers.flow.progress import Progress
from trainers.flow.ray_engine import Machines
from trainers.harness import evaluate as hn
from trainers.labels.gold import gold_labels
from trainers.labels.operations import METHOD_OPS
from trainers.report.report import build_report
from trainers.section import Section
from trainers.store.stages import Store
from trainers.training.losses import LOSSES
from w2s_tasks.errors import UserError

GOOD: dict[str, Any] = {"task": "t", "weak": {"model": "m"}, "strong": {"model": "s"}}

# ---- every field is read ------------------------------------------------------------------------------------------------

METHODS = ("xent", "relabel+logconf", "filter+product", "ensemble+entropy", "bootstrap+window", "gold+adaptive_confidence")
BY_CLASSIFIER = (
    "arms=[zero_shot, zero_shot_calibrated, few_shot, few_shot(1), student, ceiling, self_labels, unsupervised]",
    f"methods={json.dumps(METHODS)}",
    "unsupervised={rows: 8, groups: 2, initial: 2, steps: 4}",
    "safety={tasks: [w2s_ethics_probe_justice], limit: 4, limits: {w2s_ethics_probe_justice: 6}, num_fewshot: [0, 1], "
    "margin: 0.1}",
    "evaluate={limit: 12, few_shot_k: 2, checkpoints: [0.5], task: own_reviews, tuned_task: own_reviews}",
)
BY_LORA = (
    "arms=[zero_shot, student]",
    "strong.chat_template=true",
    "strong.system_prompt=Be brief.",
    "strong.objective=language_model",
    "evaluate.limit=8",
)


def sections(model: type[Section]) -> set[type[Section]]:
    """A section and those inside it."""
    defaults = [field.get_default(call_default_factory=True) for field in model.model_fields.values()]
    return {model}.union(*(sections(type(default)) for default in defaults if isinstance(default, Section)))


def run(experiment_file: Path, runs: Path, *sets: str) -> None:
    flow = runs_of.open_run(reading.load(str(experiment_file), list(sets))[0], runs)
    flow.build(Progress(quiet=True))
    build_report(flow)
    for job in jobs_of(flow, Store(flow.folder)):  # what an engine that shares machines out asks for
        Machines(2, gpus=True).options(job)


def test_every_field_is_read_by_a_run(experiment_file: Path, causal_model: Callable[[str], Path], tmp_path: Path):
    by_lora = f"weak={{trainer: lora, model: {causal_model('llama')}, r: 2, lr: 0.01, batch_size: 16}}"
    with reads() as found:
        run(experiment_file, tmp_path / "classifier", *BY_CLASSIFIER)
        run(experiment_file, tmp_path / "lora", by_lora, *BY_LORA)
        run(write_experiment(tmp_path / "sums"), tmp_path / "generated", "methods=[agree]", "arms=[student]")
    known = sections(config.Experiment) | {Classifier, Lora, config.Safety}
    every = {(s.__name__, f) for s in known - set(PASSED_WHOLE) for f in s.model_fields}
    every -= {("Experiment", "requires"), ("Resources", "embeddings")}  # read before all others; steps of plug-ins alone
    assert sorted(every - found) == []


FUNCTIONS = {name: f for name, f in (LOSSES | METHOD_OPS).items() if name in known_args().model_fields}
PASSED_WHOLE = {type(getattr(known_args()(), name)): name for name in FUNCTIONS}


# ---- every setting of a training changes it -----------------------------------------------------------------------------

OF_ALL: dict[str, Any] = {
    "model": "other",
    "epochs": 1,
    "batch_size": 8,
    "lr": 0.02,
    "warmup": 0.9,
    "weight_decay": 0.9,
    "schedule": "cosine",
    "holdout": 0.4,
    "checkpoint": "holdout_loss",
    "trainer_args": {"max_grad_norm": 1e-3},
}
OF_CLASSIFIER: dict[str, Any] = {"text": "{{text}} {{text}}", "max_length": 8}
OF_LANGUAGE_MODEL: dict[str, Any] = {
    "chat_template": True,
    "objective": "language_model",
    "system_prompt": "Be brief.",
}
OF_ADAPTER: dict[str, Any] = {"r": 3, "alpha": 1.0, "dropout": 0.5, "target_modules": ["q_proj"]}
OF_LORA = OF_LANGUAGE_MODEL | OF_ADAPTER
OF_PROBE: dict[str, Any] = {"layer": 1, "pooling": "mean"}
TRAININGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "classifier": ({"text": "text"}, OF_ALL | OF_CLASSIFIER),
    "full": ({}, OF_ALL | OF_LANGUAGE_MODEL),
    "lora": ({"r": 2}, OF_ALL | OF_LORA),
    "probe": ({}, OF_ALL | OF_CLASSIFIER | OF_PROBE),
}
"""Settings to begin with, and a changed value for every setting."""
BESIDE: dict[str, dict[str, Any]] = {
    "system_prompt": {"chat_template": True},
    "checkpoint": {"holdout": 0.4, "epochs": 8, "lr": 0.05},  # the last is not the best
}
"""With which other settings a setting is tried."""
BESIDE_IN: dict[tuple[str, str], dict[str, Any]] = {("full", "checkpoint"): {"lr": 0.002}}
"""The same for one trainer."""
NOT_OF_TRAINING = {"trainer", "model_args", "prepare"}
"""Which trainer there is; arguments of the evaluated model; what a step of its own does (`tests/test_prepare.py`)."""
SECTIONS = {"classifier": Classifier, "full": Full, "lora": Lora, "probe": Probe}
WEIGHTS = {
    "classifier": "model/model",
    "full": "model/model",
    "lora": "adapter/adapter_model",
    "probe": "head/head",
}


def trainer(kind: str, models: dict[str, Path], own_task: Path, out: Path) -> Callable[[dict[str, Any]], str]:
    """Train on 32 rows with some settings; the hash of the weights that come out."""
    task, pool = hn.Harness([str(own_task)]).task("own_reviews"), hn.ModelPool()
    docs = task.train_docs[:32]
    labels = gold_labels(task.train_ids[:32], [task.gold(d) for d in docs], 2)
    section, fit, name = SECTIONS[kind], TRAINERS[kind].fit, WEIGHTS[kind]

    def train(settings: dict[str, Any]) -> str:
        folder = Path(tempfile.mkdtemp(dir=out))
        fit(task, docs, labels, section(**settings | {"model": str(models[settings["model"]])}), folder, pool=pool, seed=1)
        whole = hashlib.sha256()
        for key, weights in sorted(load_file(folder / f"{name}.safetensors").items()):
            whole.update(key.encode() + weights.numpy().tobytes())
        return whole.hexdigest()

    return train


@pytest.mark.parametrize("kind", TRAININGS)
def test_every_setting_of_a_training_changes_the_trained_model(
    kind: str, own_task: Path, encoder_folder: Path, causal_model: Callable[[str], Path], tmp_path: Path
):
    base, changes = TRAININGS[kind]
    encoder = kind == "classifier"
    models = {"model": encoder_folder if encoder else causal_model("llama")}
    models["other"] = shifted(models["model"], tmp_path / "other", encoder=encoder)
    base = {"model": "model", "batch_size": 16, "epochs": 2, "lr": 0.01} | base
    assert set(changes) == set(SECTIONS[kind].model_fields) - NOT_OF_TRAINING
    train = trainer(kind, models, own_task, tmp_path)
    plain = train(base)
    assert train(base) == plain
    for key, value in changes.items():
        beside = base | BESIDE.get(key, {}) | BESIDE_IN.get((kind, key), {})
        assert train({**beside, key: value}) != (train(beside) if key in BESIDE else plain), key


@pytest.mark.parametrize(
    ("name", "key"), [*(("lora", key) for key in OF_CLASSIFIER), *(("classifier", key) for key in OF_LORA)]
)
def test_a_setting_of_the_other_trainer_is_refused(name: str, key: str):
    section = {"model": "m", "trainer": name, key: (OF_CLASSIFIER | OF_LORA)[key]}
    with pytest.raises(UserError, match=rf"weak\.{key}: unknown key\. It is for trainer: [\w ]+\."):
        reading.parse(json.dumps(GOOD | {"weak": section}), "x.yaml")


def test_a_classifier_is_trained_from_the_revision_that_is_asked_for(
    own_task: Path, encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import transformers as tf

    asked: list[Any] = []
    for part in (tf.AutoConfig, tf.AutoTokenizer, tf.AutoModelForSequenceClassification):

        def load(*args: Any, plain: Callable[..., Any] = part.from_pretrained, **kwargs: Any) -> Any:
            asked.append(kwargs.get("revision"))
            return plain(*args, **kwargs)

        monkeypatch.setattr(part, "from_pretrained", load)
    task = hn.Harness([str(own_task)]).task("own_reviews")
    labels = gold_labels(task.train_ids[:8], [task.gold(d) for d in task.train_docs[:8]], 2)
    settings = Classifier(model=str(encoder_folder), text="text", model_args={"revision": "v2", "token_budget": 64})
    ref = TRAINERS["classifier"].fit(task, task.train_docs[:8], labels, settings, tmp_path, pool=hn.ModelPool())
    assert asked.count("v2") >= 3
    assert set(asked) == {"v2"}
    assert ref.args == {"pretrained": str(tmp_path / "model"), "token_budget": 64}


def shifted(folder: Path, out: Path, *, encoder: bool) -> Path:
    """The same model with other weights."""
    import torch
    from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

    model = (AutoModel if encoder else AutoModelForCausalLM).from_pretrained(folder)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.9)
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(folder).save_pretrained(out)
    return out


# ---- settings that nothing would use ------------------------------------------------------------------------------------

REFUSED = {
    "a warm-up of a constant rate": ("strong", {"schedule": "constant", "warmup": 0.3}, "would ignore `warmup`"),
    "a choice without rows": ("weak", {"checkpoint": "holdout_loss", "holdout": 0}, "set holdout above 0"),
    "the study's halves": ("split", {"by": "study", "weak": 0.3}, "would ignore `weak` and `seed`"),
    "the study's order": ("split", {"by": "study", "seed": 1}, "would ignore `weak` and `seed`"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_setting_that_another_one_makes_ignored_is_refused(case: str):
    section, values, message = REFUSED[case]
    with pytest.raises(UserError, match=message):
        reading.parse(json.dumps(GOOD | {section: GOOD.get(section, {}) | values}), "x.yaml")


TOLD: dict[str, tuple[dict[str, Any], list[str]]] = {
    "nothing": ({}, []),
    "all in use": (
        {"methods": ["filter+logconf"], "method_args": {"filter": {"keep": 0.3}, "logconf": {}}},
        [],
    ),
    "a method that is not there": (
        {"methods": ["xent"], "method_args": {"logconf": {"alpha": 0.1}}},
        ["method_args.logconf changes nothing here: it is for the arm student with a method logconf"],
    ),
    "a method of nobody": (
        {"arms": ["ceiling"], "methods": ["logconf"], "method_args": {"logconf": {}}},
        ["method_args.logconf changes nothing here: it is for the arm student with a method logconf"],
    ),
    "arms that are not there": (
        {
            "arms": ["zero_shot", "few_shot(4)"],
            "unsupervised": {"rows": 8},
            "evaluate": {"few_shot_k": 4, "checkpoints": [0.5]},
        },
        [
            "unsupervised changes nothing here: it is for the arm unsupervised",
            "evaluate.few_shot_k changes nothing here: it is for the arms few_shot, in_context and random_shots without a "
            "number of their own",
            "evaluate.checkpoints changes nothing here: it is for an arm that is trained",
        ],
    ),
    "turns without a chat": (
        {"safety": {"tasks": ["t"], "fewshot_as_multiturn": False}},
        ["safety.fewshot_as_multiturn changes nothing here: it is for strong.chat_template: true"],
    ),
    "turns without shots": (
        {"safety": {"tasks": ["t"], "fewshot_as_multiturn": False}, "strong": {"model": "s", "chat_template": True}},
        ["safety.fewshot_as_multiturn changes nothing here: it is for safety.num_fewshot above 0"],
    ),
}


@pytest.mark.parametrize("case", TOLD)
def test_settings_that_nothing_uses_are_told(case: str):
    settings, told = TOLD[case]
    assert unused(reading.parse(json.dumps(GOOD | settings), "x.yaml")) == told


def test_no_experiment_that_ships_has_such_settings():
    assert not any(unused(reading.load(name)[0]) for name in reading.shipped())


def test_plan_tells_them(experiment_file: Path):
    done = CliRunner().invoke(cli.app, ["plan", str(experiment_file), "--set", "method_args={logconf: {alpha: 0.1}}"])
    assert done.exit_code == 0
    assert "note: method_args.logconf changes nothing here" in done.stderr


# ---- options of the commands --------------------------------------------------------------------------------------------


def commands(group: Any, *names: str) -> dict[str, Any]:
    """Every command that can be called, by its words."""
    found = {}
    for name, command in group.commands.items():
        found |= commands(command, *names, name) if hasattr(command, "commands") else {" ".join([*names, name]): command}
    return found


COMMANDS = commands(typer.main.get_command(cli.app))


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_option_of_a_command_is_used(name: str):
    """Its name is read in the body of the function; what it does there has tests of its own."""
    function = inspect.unwrap(COMMANDS[name].callback)
    tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    read = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    assert set(inspect.signature(function).parameters) <= read


def test_the_options_of_report_and_validate_have_effect(run_folder: Path, tmp_path: Path):
    def w2s(*arguments: str) -> str:
        done = CliRunner().invoke(cli.app, arguments)
        assert done.exit_code == 0, done.output
        return done.output

    shutil.copytree(run_folder, tmp_path / "run")
    report = (tmp_path / "run" / "report.json").read_text(encoding="utf-8")
    for option, there in (("--no-html", False), ("--html", True)):
        (tmp_path / "run" / "report.html").unlink(missing_ok=True)
        w2s("report", str(tmp_path / "run"), option)
        assert (tmp_path / "run" / "report.html").is_file() is there
    (tmp_path / "run" / "report.json").write_text(report.replace('"n": 60', '"n": 61'), encoding="utf-8")
    w2s("report", str(tmp_path / "run"), "--recompute")
    again = (tmp_path / "run" / "report.json").read_text(encoding="utf-8")
    assert '"n": 61' not in again
    assert again.count('"n": 60') == report.count('"n": 60') > 0
    task = "w2s_ethics_probe_justice"
    assert len(w2s("validate", task, "--no-examples")) < len(w2s("validate", task)) - 100


def test_shots_for_a_classifier_that_reads_a_column_are_refused(run_folder: Path, own_task: Path, tmp_path: Path):
    weak = next(p.parent for p in (run_folder / "stages").rglob("model/config.json"))
    arguments = ("--include_path", str(own_task), "--model_args", f"pretrained={weak}", "--out", str(tmp_path / "l.parquet"))
    done = CliRunner().invoke(cli.app, ["label", "--task", "own_reviews", *arguments, "--num_fewshot", "2"])
    assert "--num_fewshot: this classifier reads 'text' of each row" in str(done.exception)
    assert not (tmp_path / "l.parquet").exists()


@pytest.mark.parametrize(("rows", "batch", "epochs"), [(300, 32, 1.0), (160, 8, 2.5), (47, 16, 0.3), (1000, 7, 3.0)])
def test_steps_of_a_training_and_epochs_of_steps_are_each_others_inverse(rows: int, batch: int, epochs: float) -> None:
    settings = Lora(model="m", batch_size=batch, epochs=epochs)
    steps = settings.steps(rows)
    for fewer in (rows, rows // 2, rows // 5):
        assert settings.of_steps(steps, fewer).steps(fewer) == steps
