"""Odd values of every option of every command and of every field of an experiment: one sentence, no traceback.

The options and fields are found, not listed: a new one is tried too. By default some values of each are tried; the slow
tests try all, and run what passes the first look.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
import yaml
from bad_input import LONGEST_MESSAGE, one_clear_error
from pydantic import BaseModel
from test_paths import evaluate
from typer.testing import CliRunner

from trainers import cli
from trainers.config import experiment as config
from trainers.config import reading
from trainers.fit.trainer import TRAINERS
from trainers.training.settings import SET_BY_RUNS
from trainers.training.trainer_args import HONOURED
from w2s_tasks import MODELS, register
from w2s_tasks.errors import UserError
from w2s_tasks.plugin import eval_arguments

PROBE = "w2s_ethics_probe_justice"
WORDS = [
    "",
    " ",
    "-1",
    "0",
    "-0.5",
    "1.5",
    "nan",
    "inf",
    "9" * 400,
    "é😀",
    "a" * 5000,
    "null",
    "[]",
    "{}",
    "a=b",
    "../..",
    "\n",
]
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2**63, 10**400, -0.5, 0.5, 1e308, math.nan, math.inf, "", " ", "é😀", "\0", "a" * 5000,
    "nan", "..", "a/b", [], [[]], [1], ["a"], ["a", "a"], [None], {}, {"": 1}, {"a": {"b": [1]}},
]  # fmt: skip


def some(values: list[Any], number: int) -> list[Any]:
    """Three values, others for each option."""
    return [values[(7 * number + 5 * i) % len(values)] for i in range(3)]


# ---- options of our own commands ---------------------------------------------------------------------------------------


def options() -> Iterator[tuple[str, str]]:
    group = typer.main.get_command(cli.app)
    for name, command in sorted(group.commands.items()):  # type: ignore[attr-defined] # typer's own group
        if name not in ("eval", "fetch", "doctor", "tasks"):  # no values of their own, or lm_eval's
            yield from ((name, p.opts[0]) for p in command.params if not getattr(p, "is_flag", False))


REST = {
    "run": ["nothing.yaml"],
    "plan": ["nothing.yaml"],
    "sweep": ["nothing.yaml", "--grid", "seed=0"],
    "bench": ["nothing.yaml"],
    "report": ["nothing"],
    "label": ["--out", "o.parquet", "--task", "nothing", "--model_args", "pretrained=nothing"],
    "finetune": ["--out", "o", "--task", "nothing", "--model", "nothing"],
    "rescore": ["nothing", "--parser", "strict"],
    "validate": ["nothing"],
    "power": ["nothing"],
    "view": ["nothing"],
    "init": [],
    "build": [],
}
"""Arguments with which a command ends soon: nothing of that name is there."""


def ends_with_a_sentence(arguments: list[str]) -> None:
    """A command that can't succeed ends with exit code 2, whatever else it is given."""
    done = CliRunner().invoke(cli.app, arguments)
    if isinstance(done.exception, UserError):
        assert 0 < len(str(done.exception)) < 10 * LONGEST_MESSAGE, arguments
        return
    problem = cli.told(done.exception) if isinstance(done.exception, Exception) else None
    assert problem or isinstance(done.exception, SystemExit), (arguments, repr(done.exception)[:500])
    assert problem or done.exit_code in (1, 2), (arguments, done.output[-500:])


READS_ALL = ("label", "finetune", "validate")
"""A name that is no task of ours makes these read lm_eval's large index."""
OPTIONS = [
    pytest.param(i, o, marks=[pytest.mark.slow] if o[0] in READS_ALL else [], id=" ".join(o))
    for i, o in enumerate(options())
]


@pytest.mark.parametrize(("number", "option"), OPTIONS)
def test_an_odd_value_of_an_option(number: int, option: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    command, name = option
    for value in [*some(WORDS, number), "a" * 5000]:
        if command == "init" and value.isidentifier():
            continue  # a name like any other
        given = [value] if not name.startswith("-") else [f"{name}={value}"]
        rest = REST[command][1:] if not name.startswith("-") and REST[command][:1] == ["nothing.yaml"] else REST[command]
        ends_with_a_sentence([command, *rest, *given])


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "nan", "x", ""])
@pytest.mark.parametrize("option", ["label --limit", "finetune --limit", "label --num_fewshot", "finetune --seed"])
def test_a_count_is_checked_before_any_work(option: str, value: str):
    if value == "0" and not option.endswith("limit"):
        return  # no shots, and the seed 0
    command, name = option.split()
    done = CliRunner().invoke(cli.app, [command, *REST[command], f"{name}={value}"])
    assert done.exit_code == 2, done.output
    assert name in done.output


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "x"])
def test_an_amount_of_money_is_a_number(value: str):
    done = CliRunner().invoke(cli.app, ["run", "quickstart", f"--max-cost={value}"])
    assert done.exit_code == 2, done.output
    assert "--max-cost" in done.output


# ---- options of `w2s eval`: lm_eval's ----------------------------------------------------------------------------------


def lm_evals_options() -> list[str]:
    from lm_eval._cli import HarnessCLI

    commands = next(a for a in HarnessCLI()._parser._actions if isinstance(a, argparse._SubParsersAction))
    return sorted(a.option_strings[0] for a in commands.choices["run"]._actions if a.dest != "help")


def checks(arguments: list[str]) -> None:
    """Whatever is given, the arguments pass, or there is one sentence."""
    with contextlib.suppress(UserError), contextlib.suppress(SystemExit):  # argparse's own, with its usage
        eval_arguments.checked(arguments)


BASE = ["--model", "w2s-recorded", "--model_args", "path=nothing", "--tasks", PROBE]


@pytest.mark.parametrize("option", lm_evals_options())
def test_an_odd_value_of_an_option_of_eval(option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    register()
    for value in WORDS:
        checks([*BASE, f"{option}={value}"])
        checks([*BASE, option, value])


def lm_evals_keys() -> list[str]:
    from lm_eval.config.evaluate_config import EvaluatorConfig

    return sorted(EvaluatorConfig.__dataclass_fields__)


@pytest.mark.parametrize("key", lm_evals_keys())
def test_an_odd_value_of_a_key_of_an_eval_config(key: str, tmp_path: Path):
    register()
    whole = {"model": "w2s-recorded", "model_args": {"path": "nothing"}, "tasks": [PROBE]}
    for value in VALUES:
        (tmp_path / "e.yaml").write_text(yaml.safe_dump(whole | {key: value}), encoding="utf-8")
        checks(["--config", str(tmp_path / "e.yaml")])


EVAL: dict[str, tuple[list[str], str]] = {
    "no documents": (["--limit", "0"], "limit: a number above 0"),
    "no share of them": (["--limit", "0.0"], "limit: a number above 0"),
    "fewer than none": (["--limit", "-1"], "limit: a number above 0"),
    "a document and a half": (["--limit", "1.5"], "limit: a number above 0"),
    "documents that are no number": (["--limit", "nan"], "limit: a number above 0"),
    "endless documents": (["--limit", "inf"], "limit: a number above 0"),
    "fewer shots than none": (["--num_fewshot", "-3"], "num_fewshot: a whole number from 0"),
    "no rows at once": (["--batch_size", "0"], "batch_size: a whole number from 1, auto"),
    "rows at once in words": (["--batch_size", "many"], "batch_size: a whole number from 1, auto"),
    "auto of nothing": (["--batch_size", "auto:0"], "batch_size: a whole number from 1, auto"),
    "auto of a word": (["--batch_size", "auto:x"], "batch_size: a whole number from 1, auto"),
    "auto up to nothing": (["--max_batch_size", "0"], "max_batch_size: a whole number from 1"),
    "a seed below 0": (["--seed", "-1"], "seed: one whole number from 0"),
    "a seed for numpy that is too large": (["--seed", "99999999999"], "seed: one whole number from 0"),
    "rows that count from below": (["--samples", json.dumps({PROBE: [-1]})], "samples: a mapping"),
    "rows and a limit": (["--samples", json.dumps({PROBE: [1]}), "--limit", "1"], "samples and limit"),
    "turns without a chat": (["--fewshot_as_multiturn", "true"], "fewshot_as_multiturn: turns need a chat template"),
}


@pytest.mark.parametrize("case", EVAL)
def test_what_lm_eval_would_take_and_fail_on(case: str, tmp_path: Path):
    arguments, message = EVAL[case]
    register()
    one_clear_error(lambda: eval_arguments.checked([*BASE, *arguments]), f"w2s eval: {message}", untouched=tmp_path)


@pytest.mark.parametrize("model", sorted(MODELS))
def test_odd_arguments_of_our_models(model: str):
    import inspect

    from lm_eval.api.registry import get_model

    register()
    names = [n for n, p in inspect.signature(get_model(model).__init__).parameters.items() if n != "self"]
    for name in names:
        for value in VALUES:
            with contextlib.suppress(UserError):
                eval_arguments.check_arguments(model, {name: value})


@pytest.mark.parametrize("name", ["token_budget", "max_length"])
def test_a_count_of_a_model_is_one(name: str):
    register()
    for value, message in ((-1, "a number from 0"), ("x", "valid integer"), (1.5, "valid integer")):
        args = {"pretrained": "x", name: value}
        one_clear_error(lambda a=args: eval_arguments.check_arguments("w2s-classifier", a), f"{name}: .*{message}")


def test_a_misspelt_task_of_eval_is_told_with_its_nearest(causal_model: Callable[[str], Path]):
    model = ["--model", "w2s-hf", "-a", f"pretrained={causal_model('llama')}"]
    text = one_clear_error(
        lambda: evaluate(*model, "--tasks", "w2s_ethics_probe_justise"), "no task 'w2s_ethics_probe_justise'"
    )
    assert PROBE in text
    one_clear_error(lambda: evaluate(*model, "--tasks", "a" * 300), "no task|File name too long")


# ---- fields of an experiment -------------------------------------------------------------------------------------------

GOOD: dict[str, Any] = {"task": "t", "weak": {"model": "m"}, "strong": {"model": "s"}}


def fields(model: type[BaseModel], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, field in model.model_fields.items():
        yield (*above, name)
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from fields(kind, (*above, name))


FIELDS = [
    *((None, path) for path in fields(config.Experiment)),
    *(
        (trainer, (role, *path))
        for trainer, entry in TRAINERS.items()
        for role in entry.roles
        for path in fields(entry.settings)
    ),
]


def parses(trainer: str | None, path: tuple[str, ...], value: Any) -> config.Experiment | None:
    """The experiment with a value in a field, in its file and by --set; None where it is refused in one sentence."""
    data = copy.deepcopy(GOOD)
    if trainer:
        data[path[0]]["trainer"] = trainer
    whole = json.dumps(data)
    place = data
    for part in path[:-1]:
        place = place.setdefault(part, {})
    place[path[-1]] = value
    found, lengths = None, [0]
    for text, sets in ((json.dumps(data), []), (whole, [f"{'.'.join(path)}={json.dumps(value)}"])):
        try:
            found = reading.parse(text, "x.yaml", sets)
        except UserError as error:
            lengths.append(len(str(error)))
    assert max(lengths) < LONGEST_MESSAGE, path
    return found


@pytest.mark.parametrize(
    ("number", "field"), enumerate(FIELDS), ids=lambda x: ".".join(x[1]) if isinstance(x, tuple) else ""
)
def test_an_odd_value_of_a_field(number: int, field: tuple[str | None, tuple[str, ...]]):
    for value in some(VALUES, number):
        parses(*field, value)


@pytest.mark.slow
def test_all_odd_values_of_all_fields():
    for field in FIELDS:
        for value in VALUES:
            parses(*field, value)


SETS = ["a..b=1", ".=1", "..=", "=", "", "weak..lr=1", ".weak=1", "weak.=1", "weak.lr", " = 1"]


@pytest.mark.parametrize("assignment", SETS)
def test_a_key_of_set_has_no_empty_part(assignment: str):
    one_clear_error(lambda: reading.parse(json.dumps(GOOD), "x.yaml", [assignment]), "--set .*write key=value")


@pytest.mark.parametrize(
    "assignment", ["task.x=1", "weak.model.x=1", "seeds.0=1", "tasks.x=1", "a" * 9000 + "=1", "x." * 900 + "x=1"]
)
def test_a_key_of_set_into_a_value_is_told(assignment: str):
    data = GOOD | {"seeds": [0]}
    one_clear_error(lambda: reading.parse(json.dumps(data), "x.yaml", [assignment]), "no section|unknown key")


def test_characters_that_json_writes_in_halves_are_whole():
    assert reading.parse(json.dumps(GOOD | {"task": "a😀"}), "x.yaml").task == "a😀"
    one_clear_error(lambda: reading.parse(json.dumps(GOOD | {"task": "a\ud800"}), "x.yaml"), "x.yaml:1: .* half a character")


@pytest.mark.parametrize("section", ["weak", "strong"])
@pytest.mark.parametrize("key", SET_BY_RUNS)
def test_model_args_that_a_run_sets_are_refused(section: str, key: str):
    data = copy.deepcopy(GOOD)
    data[section]["model_args"] = {key: "x"}
    one_clear_error(
        lambda: reading.parse(json.dumps(data), "x.yaml"), f"{section}.model_args: '{key}' is set by the run itself"
    )


# ---- what only models, tokenizers and libraries know -------------------------------------------------------------------


def _flow(experiment_file: Path, *sets: str) -> Any:
    from trainers.flow.run import open_run

    found, _ = reading.load(str(experiment_file), list(sets))
    return open_run(found, experiment_file.parent / "runs")


def _refused(experiment_file: Path, message: str, *sets: str) -> None:
    """A run ends with one sentence before any stage is built."""
    from trainers.flow.progress import Progress

    one_clear_error(lambda: _flow(experiment_file, *sets).build(Progress(quiet=True)), message)
    stages = experiment_file.parent / "runs" / "small" / "stages"
    assert not stages.is_dir() or not [p for p in stages.iterdir() if not p.name.startswith(".")]


RUNS = {
    "an argument of another model": ("weak.model_args={tokenizer: x}", "model_args: .* no argument 'tokenizer'"),
    "a budget below 0": ("strong.model_args={token_budget: -1}", "strong.model_args: token_budget"),
    "an optimizer that is none": ("strong.trainer_args={optim: nope}", "trainer_args: .*nope"),
    "a norm in words": ("strong.trainer_args={max_grad_norm: x}", "trainer_args: max_grad_norm: .*number"),
    "a beta that is a list": ("weak.trainer_args={adam_beta1: [1]}", "trainer_args: adam_beta1: .*number"),
    "more shots than rows": ("evaluate.num_fewshot=5000", "5000 few-shot examples can't be drawn from the 240 rows"),
}  # fmt: skip


@pytest.mark.parametrize("case", RUNS)
def test_a_run_is_refused_before_any_work(case: str, experiment_file: Path):
    _refused(experiment_file, RUNS[case][1], RUNS[case][0])


def _changed_tokenizer(source: Path, folder: Path, **changes: Any) -> Path:
    """A copy of a model whose tokenizer lacks something."""
    import shutil

    import transformers as tf

    shutil.copytree(source, folder)
    tokenizer = tf.AutoTokenizer.from_pretrained(folder)
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    for file in folder.glob("chat_template*"):
        file.unlink()
    tokenizer.save_pretrained(folder)
    return folder


def test_a_chat_without_a_template_is_refused(experiment_file: Path, causal_model: Callable[[str], Path], tmp_path: Path):
    plain = _changed_tokenizer(causal_model("llama"), tmp_path / "plain", chat_template=None)
    _refused(experiment_file, "plain has no chat template", f"strong.model={plain}", "strong.chat_template=true")
    model = ["--model", "w2s-hf", "-a", f"pretrained={plain}", "--tasks", PROBE, "--limit", "2", "--device", "cpu"]
    one_clear_error(lambda: evaluate(*model, "--apply_chat_template"), "plain has no chat template")


def test_choices_without_tokens_and_prompts_without_words(causal_model: Callable[[str], Path], tmp_path: Path):
    from w2s_tasks.models.packed_hf import W2SHF

    lm = W2SHF(str(causal_model("llama")), device="cpu")
    one_clear_error(lambda: lm.encode([("A prompt", "")], "row {}".format), "row 0: the choice '' has no token")
    one_clear_error(lambda: lm.encode([("", "")]), "request 0: the choice '' has no token")
    blank, none, whole = lm.encode([("  ", "a b"), ("", "  a b"), ("a ", " b")])
    assert blank == none
    assert whole[1]

    bare = _changed_tokenizer(causal_model("llama"), tmp_path / "bare", bos_token=None, eos_token=None)
    lm = W2SHF(str(bare), device="cpu")
    assert lm.encode([("a", " b")])[0][1]
    for prompt in ("", "  "):
        one_clear_error(lambda p=prompt: lm.encode([(p, "b")]), "prompt is empty, and .* neither a beginning nor an end")


def test_too_few_rows_for_the_shots_of_eval(own_task: Path, causal_model: Callable[[str], Path]):
    model = [
        "--model",
        "w2s-hf",
        "-a",
        f"pretrained={causal_model('llama')}",
        "--include_path",
        str(own_task),
        "--device",
        "cpu",
    ]
    one_clear_error(
        lambda: evaluate(*model, "--tasks", "own_reviews", "--limit", "2", "--num_fewshot", "5000"),
        "'own_reviews': 5000 few-shot examples can't be drawn from the 240 rows",
    )


@pytest.mark.parametrize("value", [-1, 0.5, 257, 10**30, "x", None, True])
def test_a_training_starts_no_more_processes_than_a_machine_has(value: Any):
    data = GOOD | {"strong": {"model": "s", "trainer_args": {"dataloader_num_workers": value}}}
    one_clear_error(lambda: reading.parse(json.dumps(data), "x.yaml"), "'dataloader_num_workers' must be .* 0 to 256")


@pytest.mark.slow
@pytest.mark.parametrize("key", HONOURED)
def test_odd_trainer_args_train_or_are_one_sentence(key: str, experiment_file: Path, tmp_path: Path):
    from trainers.flow.alone import finetune_model

    strong = reading.load(str(experiment_file), [])[0].strong.model
    for i, value in enumerate([-1, 0, 0.5, 10**30, "x", "", [], ["a"], {}, {"a": 1}, None, True]):
        with contextlib.suppress(UserError):
            sets = [f"trainer_args={json.dumps({key: value})}", "batch_size=4"]
            finetune_model(
                "own_reviews",
                strong,
                "lora",
                None,
                tmp_path / f"{i}",
                8,
                sets,
                0,
                [str(experiment_file.parent / "own_tasks")],
            )


@pytest.mark.slow
@pytest.mark.parametrize(
    "option", [o for o in lm_evals_options() if o not in ("--config", "--wandb_args", "--trackio_args")]
)
def test_odd_values_that_pass_evaluate_or_are_one_sentence(
    option: str, own_task: Path, causal_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    logging.disable(logging.ERROR)
    base = ["--model", "w2s-hf", "-a", f"pretrained={causal_model('llama')}", "--include_path", str(own_task)]
    for value in WORDS:
        with contextlib.suppress(UserError, SystemExit):
            evaluate(*base, "--tasks", "own_reviews", "--limit", "2", f"{option}={value}")
    logging.disable(logging.NOTSET)
