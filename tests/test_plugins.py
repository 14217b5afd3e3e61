"""Plug-ins: loaded because they were named, one clear error each, keys of what stands on them and of nothing else."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainers import plugin_loader, plugins
from trainers.config.reading import load, parse
from trainers.flow.layout import Layout
from trainers.flow.run import open_run
from trainers.labels.operations import METHOD_OPS
from trainers.registry import Registry
from trainers.training.losses import LOSSES
from w2s_tasks import code_scope
from w2s_tasks.errors import UserError

Load = Callable[..., Any]
HEAD = "from trainers.plugins import *\nimport numpy as np\nimport torch\n\n"
LOSS = (
    HEAD
    + "@loss\ndef mine(logprobs, targets, state, *, power: float = 1.0):\n    return -(targets * logprobs).sum(-1) * power\n"
)


def entries() -> dict[str, list[str]]:
    return {registry.what: list(registry) for registry in Registry.known}


# ---- loading --------------------------------------------------------------------------------------------------------

BROKEN = {
    "a name of the suite's": (
        "@loss\ndef xent(l, t, s): ...\n",
        r"own\.py:5: 'xent' is the name of a loss already",
    ),
    "a name of another kind": ("@loss\ndef filter(l, t, s): ...\n", r"own\.py:5: 'filter' is the name of a label operation"),
    "an arm's name": ("@label_op\ndef student(labels, rng): ...\n", r"own\.py:5: 'student' is the name of an arm already"),
    "a name twice": ("@loss\ndef a(l, t, s): ...\n@loss\ndef a(l, t, s): ...\n", r"own\.py:7: 'a' is the name.*own\.py:5"),
    "no Python": ("def (:\n", r"own\.py:5: the plug-in can't be loaded: it is no valid Python"),
    "an error": ("\n\n1 / 0\n", r"own\.py:7: the plug-in can't be loaded: ZeroDivisionError"),
    "a library that is not there": ("import no_such_thing\n", r"own\.py:5: .*ModuleNotFoundError: No module named 'no_such"),
    "a decorator that is not there": ("from trainers.plugins import losss\n", r"own\.py:5: .*cannot import name 'losss'"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_plug_in_is_one_clear_error_and_leaves_nothing(plugins: Load, tmp_path: Path, what: str):
    text, told = BROKEN[what]
    before = entries()
    with pytest.raises(UserError, match=told):
        plugins(tmp_path, "own.py", HEAD + "@loss\ndef b(l, t, s): ...\n"[:0] + text)
    assert entries().items() >= before.items()
    assert "own" not in sys.modules
    assert "own" not in code_scope.GUESTS
    assert plugins(tmp_path, "own.py", LOSS).name == "own"  # mended
    assert "mine" in LOSSES


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("no_file.py", r"no such file.*Did you mean 'my_file.py'"),
        ("no_module_of_this_name", r"ModuleNotFoundError"),
        ("two words", r"name a file .* or a module"),
        ("not-a-name.py", r"named like a Python module"),
        ("json.py", r"Python has another module 'json'.*Rename the file"),
        ("torch.py", r"Python has another module 'torch'"),
    ],
)
def test_a_name_that_can_not_be_loaded_says_why(
    plugins: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, told: str
):
    monkeypatch.chdir(tmp_path)
    for name in ("my_file.py", "not-a-name.py", "json.py", "torch.py"):
        (tmp_path / name).write_text(LOSS)
    with pytest.raises(UserError, match=told):
        plugin_loader.load_plugin(source)


def test_two_plug_ins_of_one_name_are_refused(plugins: Load, tmp_path: Path):
    plugins(tmp_path, "own.py", LOSS)
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match=r"two plug-ins are called 'own': .*own\.py and .*other/own\.py"):
        plugins(tmp_path / "other", "own.py", LOSS)
    with pytest.raises(UserError, match=r"other\.py:5: 'mine' is the name of a loss already \(own\.py:5\)"):
        plugins(tmp_path, "other.py", LOSS)


def test_a_file_that_changed_is_loaded_anew_and_one_that_did_not_is_not(plugins: Load, tmp_path: Path):
    plugins(tmp_path, "own.py", LOSS)
    first = LOSSES["mine"]
    plugins(tmp_path, "own.py", LOSS)
    assert LOSSES["mine"] is first
    plugins(tmp_path, "own.py", LOSS.replace("mine", "other"))
    assert "mine" not in LOSSES
    assert "other" in LOSSES
    with pytest.raises(UserError, match="ZeroDivisionError"):
        plugins(tmp_path, "own.py", LOSS + "1/0\n")
    assert "own" not in plugin_loader.LOADED
    assert "mine" not in LOSSES
    assert plugins(tmp_path, "own.py", LOSS).sha256 == plugin_loader.LOADED["own"].sha256


def test_a_module_of_the_working_folder_is_found_with_its_version(
    plugins: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "lab_of_mine").mkdir()
    (tmp_path / "lab_of_mine" / "__init__.py").write_text("__version__ = '1.2'\n")
    (tmp_path / "lab_of_mine" / "losses.py").write_text(LOSS)
    monkeypatch.chdir(tmp_path)
    found = plugin_loader.load_plugin("lab_of_mine.losses")
    assert (found.name, found.module, found.file) == ("lab_of_mine.losses", "lab_of_mine", None)
    assert "mine" in LOSSES


def test_every_name_of_the_front_is_there():
    assert sorted(plugins.PLACES) == sorted(plugins.__all__) == dir(plugins)
    assert all(getattr(plugins, name) is not None for name in plugins.__all__)
    stub = Path(str(plugins.__file__)).with_suffix(".pyi").read_text(encoding="utf-8")
    assert {
        name: place for place, name in re.findall(r"^from (\S+) import (\w+) as \2$", stub, re.MULTILINE)
    } == plugins.PLACES
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        plugins.nothing  # noqa: B018


# ---- the dry call ---------------------------------------------------------------------------------------------------

LOSSES_AT_FAULT = {
    "one value": ("return (targets * logprobs).sum()", r"own\.py:5: bad gives a tensor of shape \[\]; .* shape \[24\]"),
    "a value a choice": ("return targets * logprobs", r"shape \[24, 2\]"),
    "no tensor": ("return None", r"bad gives NoneType"),
    "NaN": ("return -(targets * logprobs).sum(-1) / 0 * 0", r"bad is nan for a row with log-probabilities \[.*\], label \["),
    "infinite for hard labels": ("return (targets.log() * logprobs).sum(-1)", r"own\.py:5: bad is inf|bad is nan"),
    "nothing to learn": ("return targets.sum(-1)", r"does not depend on the student's log-probabilities"),
    "an infinite gradient": ("return (logprobs - logprobs.detach()).abs().sum(-1).sqrt()", r"gradient that is not finite"),
    "an error": ("return logprobs.nothing()", r"own\.py:7: bad can't be used: AttributeError"),
    "gold labels": ("from trainers.labels.gold import Gold\n    Gold", r"own\.py:8: bad reads gold labels"),
}


@pytest.mark.parametrize("what", LOSSES_AT_FAULT)
def test_a_loss_at_fault_is_told_before_anything_is_trained(plugins: Load, experiment_file: Path, what: str):
    body, told = LOSSES_AT_FAULT[what]
    plugins(experiment_file.parent, "own.py", f"{HEAD}@loss\ndef bad(logprobs, targets, state):\n    {body}\n")
    with pytest.raises(UserError, match=told):
        open_run(load(str(experiment_file), ["methods=[bad]"])[0], experiment_file.parent / "runs")


OPERATIONS_AT_FAULT = {
    "no labels": ("labels, rng", "return labels.soft", r"own\.py:5: bad gives ndarray, no LabelSet"),
    "rows of others": (
        "labels, rng",
        "return LabelSet(('a',), labels.soft[:1])",
        r"a label to 'a', a row that it",
    ),
    "no distribution": ("labels, rng", "return labels.with_soft(labels.soft * 2)", r"no distribution"),
    "a third argument": ("labels, rng, gold", "return labels", r"bad takes gold beside labels and rng.*@needs_gold"),
    "an error": ("labels, rng", "return labels.nothing", r"own\.py:7: bad can't be used: AttributeError"),
    "gold in a helper": ("labels, rng", "return helper(labels)", r"own\.py:10: bad reads gold labels"),
}


@pytest.mark.parametrize("what", OPERATIONS_AT_FAULT)
def test_an_operation_or_arm_at_fault_is_told_before_anything_is_trained(plugins: Load, experiment_file: Path, what: str):
    arguments, body, told = OPERATIONS_AT_FAULT[what]
    helper = "\ndef helper(task):\n    return task.gold(0)\n"
    text = f"{HEAD}@DECORATOR\ndef bad({arguments}):\n    {body}\n{helper if 'helper' in body else ''}"
    for decorator, sets in (("label_op", ["methods=[bad]"]), ("arm('#123456', 'x')", ["arms=[student, bad]"])):
        plugins(experiment_file.parent, "own.py", text.replace("DECORATOR", decorator))
        with pytest.raises(UserError, match=told):
            open_run(load(str(experiment_file), sets)[0], experiment_file.parent / "runs")


COMPUTED = """class Own(Settings):
    k: int = 1

def made(labels, states, rng, *, k):
    {body}

@model_op("own_steps", Own)
def own_steps(repetition, source, done, args):
    {steps}
    return computed(repetition, done, made, source, embeddings_of(repetition, repetition.strong), k=args.k)
"""


@pytest.mark.parametrize(
    ("body", "steps", "told"),
    [
        ("return labels.soft", "pass", r"own\.py:8: own_steps gives ndarray, no LabelSet"),
        ("return labels.take([states.shape[1] // 4, 99])", "pass", r"own\.py:9: own_steps can't be used: IndexError"),
        ("return labels", "repetition.split.task.gold", r"own\.py:13: own_steps reads gold labels"),
    ],
)
def test_steps_at_fault_are_told_before_anything_is_trained(
    plugins: Load, experiment_file: Path, body: str, steps: str, told: str
):
    plugins(experiment_file.parent, "own.py", HEAD + COMPUTED.format(body=body, steps=steps))
    with pytest.raises(UserError, match=told):
        open_run(load(str(experiment_file), ["methods=[own_steps]"])[0], experiment_file.parent / "runs")


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("power", r"own\.py:5: settings of bad: .*power needs a type and a default"),
        ("power: float", r"needs a type and a default"),
        ("power: 'Nothing' = 1", r"own\.py:5: settings of bad: .*Nothing"),
        ("power: int = 'x'", r"own\.py:5: settings of bad: .*power"),
    ],
)
def test_settings_that_a_file_can_not_hold_are_told(plugins: Load, experiment_file: Path, argument: str, told: str):
    text = f"{HEAD}@loss\ndef bad(logprobs, targets, state, *, {argument}):\n    return -(targets * logprobs).sum(-1)\n"
    plugins(experiment_file.parent, "own.py", text)
    with pytest.raises(UserError, match=told):
        load(str(experiment_file))


def test_settings_of_a_plug_in_are_checked_like_all_others(plugins: Load, experiment_file: Path):
    plugins(experiment_file.parent, "own.py", LOSS)
    config = load(str(experiment_file), ["methods=[mine]", "method_args={mine: {power: 3}}"])[0]
    assert config.method_args.of("mine") == {"power": 3.0}
    with pytest.raises(UserError, match=r"method_args\.mine\.power: Input should be a valid number"):
        load(str(experiment_file), ["method_args={mine: {power: x}}"])
    with pytest.raises(UserError, match=r"method_args\.mine\.powr: unknown key. Did you mean 'power'"):
        load(str(experiment_file), ["method_args={mine: {powr: 1}}"])


# ---- nothing is loaded because an experiment names it ---------------------------------------------------------------


def test_what_an_experiment_requires_is_refused_where_it_was_not_given(plugins: Load, experiment_file: Path):
    text = experiment_file.read_text() + "requires: [own]\n"
    (experiment_file.parent / "own.py").write_text(LOSS)
    line = text.count("\n")
    with pytest.raises(UserError, match=rf"small\.yaml:{line}: requires: the plug-in 'own' is not here.*--plugin own\.py"):
        parse(text, "small.yaml")
    assert "own" not in sys.modules
    plugins(experiment_file.parent, "own.py", LOSS)
    assert parse(text, "small.yaml").requires == ["own"]


# ---- keys -----------------------------------------------------------------------------------------------------------


def keys_of(file: Path, *methods: str) -> dict[str, str]:
    run = open_run(load(str(file), [f"methods={json.dumps(['xent', *methods])}", "arms=[student]"])[0], file.parent / "runs")
    return {name: run.key(step) for name, step in run.layout.steps.items()}


TWO = (
    LOSS
    + "\n@label_op\ndef drop(labels, rng):\n    return labels.take(first(labels))\n\ndef first(labels):\n"
    + "    import helper_beside\n    return range(len(labels) // helper_beside.PARTS)\n"
)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("* power", "* power * 1", {"mine"}),
        ("def mine", "# words\ndef mine", set()),
        ("first(labels))", "first(labels)[::-1])", {"drop"}),
        ("PARTS = 2", "PARTS = 3", {"drop"}),
        ("@loss", "UNUSED = 1\n\n@loss", set()),
    ],
)
def test_the_source_of_a_plug_in_counts_where_it_is_used(
    plugins: Load, experiment_file: Path, old: str, new: str, expected: set[str]
):
    folder, helper = experiment_file.parent, "PARTS = 2\n"
    texts = [TWO, TWO.replace(old, new)]
    keys = []
    for text, beside in zip(texts, (helper, helper.replace(old, new)), strict=True):
        (folder / "helper_beside.py").write_text(beside)
        sys.modules.pop("helper_beside", None)
        plugins(folder, "own.py", text)
        METHOD_OPS["drop"](_some_labels(), None)  # imports what stands beside it
        code_scope.forget()
        keys.append(keys_of(experiment_file, "mine", "drop"))
    sys.modules.pop("helper_beside", None)
    moved = {name for name in keys[0] if keys[0][name] != keys[1][name]}
    assert moved == {f"{kind}/student, {name}, seed 0" for name in expected for kind in ("fit", "evaluate")}


def _some_labels() -> Any:
    import numpy as np

    return plugins.LabelSet(("a", "b", "c", "d"), np.full((4, 2), 0.5))


def test_keys_of_everything_else_are_those_without_the_plug_in(plugins: Load, experiment_file: Path):
    before = keys_of(experiment_file)
    plugins(experiment_file.parent, "own.py", TWO)
    after = keys_of(experiment_file, "mine")
    assert before.items() <= after.items()


def test_what_a_notebook_defines_counts_by_its_cells(plugins: Load, experiment_file: Path, monkeypatch: pytest.MonkeyPatch):
    """The cells that were run, the last definition of each name; what a cell merely does is no part of it."""
    main = sys.modules["__main__"]
    cells = ["from trainers.plugins import loss", "SCALE = 2", "run = 1 +"]
    monkeypatch.setattr(main, "In", cells, raising=False)
    monkeypatch.delattr(main, "__file__", raising=False)
    space: dict[str, Any] = {"__name__": "__main__"}
    cell = "@loss\ndef cell_loss(logprobs, targets, state):\n    return -(targets * logprobs).sum(-1) * SCALE\n"

    def ran(text: str) -> str:
        cells.append(text)
        exec(compile(text, "<cell>", "exec"), space)  # noqa: S102 - as a notebook does
        return keys_of(experiment_file, "cell_loss")["fit/student, cell_loss, seed 0"]

    exec("\n".join(cells[:2]), space)  # noqa: S102
    first = ran(cell)
    assert ran("print()\nOTHER = 3") == first
    assert ran("SCALE = 5") != first
    assert ran("SCALE = 2") == first
    assert ran(cell.replace("* SCALE", "* SCALE * 2")) != first  # it may be defined again


# ---- from the command line ------------------------------------------------------------------------------------------


def w2s(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trainers.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=os.environ | environment)


@pytest.mark.pypi  # the build backend comes from the package index
def test_an_installed_package_is_found_by_its_entry_point(tmp_path: Path, experiment_file: Path):
    """Built as a wheel, installed, and there in every command without being named; a broken one says whose it is."""
    package, site = tmp_path / "package", tmp_path / "site"
    shutil.copytree(Path(__file__).parent / "plugin_package", package)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--target", str(site), str(package)], check=True, capture_output=True)
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    sets = ["--set", "methods=[shared_loss]", "--set", "requires=[shared]", "--set", "arms=[student]"]
    done = w2s("plan", str(experiment_file), *sets, cwd=tmp_path, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    assert "train student, shared_loss" in done.stdout
    module = next(site.rglob("method.py"))
    module.write_text(module.read_text() + "\nraise RuntimeError('broken')\n")
    done = w2s("plan", str(experiment_file), cwd=tmp_path, PYTHONPATH=path)
    assert done.returncode == 2
    assert done.stderr == "error: method.py:15: the plug-in can't be loaded: RuntimeError: broken\n"


def test_the_layout_travels_to_other_processes(plugins: Load, experiment_file: Path):
    """An experiment is pickled as text; a process that it is sent to loads the plug-ins that its parent was given."""
    plugins(experiment_file.parent, "own.py", LOSS)
    config = load(str(experiment_file), ["methods=[mine]", "method_args={mine: {power: 3}}", "requires=[own]"])[0]
    code = "import pickle, sys\nprint(pickle.load(sys.stdin.buffer).method_args.of('mine'))"
    import pickle

    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(config), capture_output=True, check=False)
    assert done.stdout.decode().strip() == "{'power': 3.0}", done.stderr.decode()
    assert Layout.load(pickle.loads(pickle.dumps(config))).steps.keys() == Layout.load(config).steps.keys()  # noqa: S301
