"""Every command and every YAML in the documentation is read by the program that it is meant for; what runs in seconds, runs.

The examples are found in the text, so a new one is checked, and one of a kind that no check knows fails.
"""

from __future__ import annotations

import csv
import functools
import importlib
import importlib.util
import json
import os
import pydoc
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer
import yaml

from trainers.cli import app
from trainers.commands.init import begin
from trainers.config.bench import load_bench
from trainers.config.reading import find_config, load, parse
from trainers.plugin_loader import load_plugins
from w2s_tasks.errors import UserError
from w2s_tasks.plugin.forms import FORMS

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    p
    for p in ROOT.rglob("*.md")
    if not any(part.startswith(".") for part in p.relative_to(ROOT).parts) and p.parent != ROOT / "docs" / "pages"  # made
)
COMMAND: Any = typer.main.get_command(app)
GROUPS = {name: command for name, command in COMMAND.commands.items() if hasattr(command, "commands")}
"""Commands of commands, as `w2s store ls`."""
ELSEWHERE = {"git", "cd", "source", "pip", "pre-commit", "python3", "vllm", "unzip", "sbatch", "kubectl", "pytest"}
"""Programs that are not ours to check."""


# ---- what the texts hold ------------------------------------------------------------------------------------------------


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language, without their indentation."""
    found = re.finditer(rf"^( *)```{language}\n(.*?)^ *```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{m[1]}", "", m[2], flags=re.MULTILINE) for m in found]


def split_commands(text: str) -> Iterator[list[str]]:
    """The commands of lines of shell, word by word, without comments and assignments."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&;")
        lexer.whitespace_split, lexer.commenters = True, ""
        words: list[str] = []
        for word in lexer:
            if word.startswith("#"):
                break
            if set(word) <= {"&", ";"}:
                yield words
                words = []
            elif words or not re.match(r"[A-Z]\w*=", word):
                words.append(word)
        if words and words[0] != "export":
            yield words


def help_examples() -> Iterator[tuple[str, str]]:
    """The lines behind the sign that keeps a --help as it is, of every command of ours and of every benchmark."""
    groups = [("w2s", COMMAND), *((f"w2s {name}", group) for name, group in GROUPS.items())]
    commands = {f"{words} {name}": one.help or "" for words, group in groups for name, one in group.commands.items()}
    for path in sorted((ROOT / "scripts" / "bench").glob("*.py")):
        module = importlib.import_module(f"bench.{path.stem}")
        if callable(getattr(module, "main", None)):
            commands[f"bench.{path.stem}"] = module.main.__doc__ or ""
    for name, text in commands.items():
        for part in text.split("\b\n")[1:]:
            for line in part.split("\n\n")[0].splitlines():
                yield f"{name} --help", re.sub(r" {3,}.*", "", line.strip())


def config_headers() -> Iterator[tuple[str, str]]:
    """The indented lines of the comments above the configurations that ship."""
    for path in sorted((ROOT / "harness_configs").rglob("*.yaml")):
        for line in re.findall(r"^#   (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE):
            yield str(path.relative_to(ROOT)), line


def examples() -> list[Any]:
    """Every command as (where it stands, its words)."""
    texts = [(str(page.relative_to(ROOT)), block) for page in PAGES for block in blocks(page, "bash")]
    texts += [*help_examples(), *config_headers()]
    return [
        pytest.param(words, id=f"{where}: {' '.join(words)}"[:150])
        for where, text in texts
        for words in split_commands(text)
    ]


def mentions() -> list[Any]:
    """Commands of ours in the middle of a sentence."""
    found = {
        (str(page.relative_to(ROOT)), code)
        for page in PAGES
        for code in re.findall(r"(?<!`)`((?:w2s|scripts/)[^`]*)`(?!`)", page.read_text(encoding="utf-8"))
        if re.match(r"w2s [a-z]|scripts/\w+", code)
    }
    return [pytest.param(code, id=f"{where}: {code}") for where, code in sorted(found)]


EXAMPLES, MENTIONS = examples(), mentions()


# ---- how each is checked ------------------------------------------------------------------------------------------------


@pytest.fixture
def readers_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plugins: Any) -> Path:
    """The reader's working folder: the repository's files; `my.yaml`, `my_tasks` and plug-ins as the manual has them; what
    `w2s init my_method` writes.
    """
    for path in begin(tmp_path / "my_method"):
        path.rename(tmp_path / path.name)
    (tmp_path / "my_lab").mkdir()
    (tmp_path / "my_lab" / "filters.py").write_text("", encoding="utf-8")
    for block in blocks(ROOT / "docs" / "own_methods.md", "python"):
        (tmp_path / block.partition("\n")[0].removeprefix("# ")).write_text(block, encoding="utf-8")
    for name in ("harness_configs", "scripts"):
        (tmp_path / name).symlink_to(ROOT / name)
    experiments = [b for b in blocks(ROOT / "README.md", "yaml") if "methods:" in b]
    tasks = [b for b in blocks(ROOT / "docs" / "tasks.md", "yaml") if "output_type:" in b]
    assert len(experiments) == len(tasks) == 1
    (tmp_path / "my.yaml").write_text(experiments[0], encoding="utf-8")
    (tmp_path / "my_tasks").mkdir()
    (tmp_path / "my_tasks/my_task.yaml").write_text(tasks[0], encoding="utf-8")
    for name in ("train", "test"):
        with (tmp_path / f"my_tasks/{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            writer.writerows([f"The {name} parcel {i} was {'lost' if i % 2 else 'early'}", i % 2] for i in range(40))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    return tmp_path


def expanded(words: list[str]) -> list[str]:
    """Words with the shell's variables put in."""
    return [os.path.expandvars(word) for word in words]


def check_ours(words: list[str]) -> None:
    """`w2s`: its own reading of the options, the config and the task names; nothing is loaded."""
    group = GROUPS.get(words[0])
    if group is not None and group.invoke_without_command and words[1:2] in ([], ["--path"]):
        group = None  # `w2s tasks` itself
    if group is not None:
        words = words[1:]
    name, arguments = words[0], expanded(words[1:])
    context = (group or COMMAND).commands[name].make_context(name, arguments, parent=click.Context(COMMAND))
    values = context.params
    load_plugins(values.get("plugins"))
    if name in ("run", "plan"):
        load(values["config"], values["assignments"])
    if name == "sweep":
        from trainers.commands.sweep import lay_out, of_shard, parse_grid

        of_shard(lay_out(values["config"], values["assignments"] or [], parse_grid(values["grid"]))[1], values.get("shard"))
    if name == "eval" and context.args != ["--help-lm-eval"]:
        check_evaluation(context.args, ours=True)
    if name in ("label", "finetune"):
        assert_tasks([values["task"]])
    if name == "validate" and not values["include_path"]:
        assert_tasks(values["names"] or [])


@functools.cache
def our_tasks() -> Any:
    """The index of our tasks."""
    from w2s_tasks.plugin.manager import W2STaskManager

    return W2STaskManager(include_defaults=False)


def assert_tasks(names: list[str]) -> None:
    for name in names:
        assert our_tasks().match_tasks([name]), f"no task '{name}'"


def check_evaluation(arguments: list[str], *, ours: bool) -> None:
    """The flags as `lm_eval run` takes them, the config file, the model's arguments and the tasks."""
    from w2s_tasks import register
    from w2s_tasks.plugin.eval_arguments import _parsed, checked

    register()
    parsed = vars(_parsed(arguments))
    if ours:
        checked(arguments)
    config = yaml.safe_load(Path(parsed["config"]).read_text(encoding="utf-8")) if parsed.get("config") else {}
    named = parsed.get("tasks") or config.get("tasks") or []
    assert_tasks(named.split(",") if isinstance(named, str) else list(named))


def check_script(words: list[str]) -> None:
    """A script that is there; of a benchmark its own reading of the options."""
    script = ROOT / words[0]
    assert os.access(script, os.X_OK), f"{words[0]} is no script"
    module = re.search(r"-m (bench\.\w+)", script.read_text(encoding="utf-8"))
    if module:
        reader = typer.Typer(add_completion=False)
        reader.command()(importlib.import_module(module[1]).main)
        typer.main.get_command(reader).make_context(words[0], expanded(words[1:]))
    else:
        unknown = [w for w in words[1:] if w.startswith("--") and w not in known_options(script)]
        assert not unknown, f"{words[0]} has no {unknown}"


def known_options(script: Path) -> str:
    """The text in which a script's options stand: its own, and that of the module that it runs."""
    text = script.read_text(encoding="utf-8")
    for name in re.findall(r"-m (w2s_tasks[\w.]*)", text):
        spec = importlib.util.find_spec(name)
        assert spec is not None
        text += Path(str(spec.origin)).read_text(encoding="utf-8")
    return text


def check(words: list[str]) -> None:
    """One command up to where its work would begin."""
    program, rest = words[0], words[1:]
    if program == "w2s":
        check_ours(rest)
    elif program == "lm_eval":
        assert rest[0] == "run"
        check_evaluation(rest[1:], ours=False)
    elif program.startswith("scripts/"):
        check_script(words)
    elif program == "accelerate":
        assert rest[rest.index("-m") + 1] == "trainers.cli"
        check_ours(rest[rest.index("-m") + 2 :])
    elif program == "python" and rest[0] == "-m":
        assert rest[1].startswith("llama_cpp") or importlib.util.find_spec(rest[1]), f"no module {rest[1]}"
    else:
        assert program in ELSEWHERE, f"no check knows the program '{program}'"


@pytest.mark.usefixtures("readers_folder")
@pytest.mark.parametrize("words", EXAMPLES)
def test_an_example_is_one_that_the_program_takes(words: list[str]):
    check(words)


def test_examples_are_found_in_every_kind_of_text():
    ids = [str(example.id) for example in EXAMPLES]
    for start in (
        "README.md",
        "CONTRIBUTING.md",
        "docs/models.md",
        "w2s eval --help",
        "bench.eval --help",
        "harness_configs/eval/openai.yaml",
    ):
        assert any(name.startswith(start) for name in ids), start
    assert len(ids) > 60
    assert len(MENTIONS) > 20


@pytest.mark.usefixtures("readers_folder")
@pytest.mark.parametrize(
    "line",
    [
        "w2s run quickstrat",
        "w2s plan my.yaml --sets a=b",
        "w2s frobnicate",
        "w2s run my.yaml --set strong.lrr=1",
        "w2s eval --model w2s-hf --model_args pretrained=M --tasks w2s_sst3",
        "w2s eval --model w2s-hff --tasks w2s_sst2",
        "w2s eval --config harness_configs/eval/none.yaml",
        "w2s sweep my.yaml --grid method=xentt",
        "w2s label --task w2s_sst2 --out l.parquet",
        "scripts/bench_evil",
        "scripts/bench_eval --dogs 3",
        "scripts/coverage --jsonn",
        "lm_eval run --tasks w2s_sst2 --modle hf",
        "python -m w2s_tasks.nothing",
        "frobnicate --all",
    ],
)
def test_an_example_that_went_stale_would_be_noticed(line: str):
    (words,) = split_commands(line)
    with pytest.raises((AssertionError, UserError, KeyError, OSError, SystemExit, *typer.BadParameter.__bases__)):
        check(words)


@pytest.mark.parametrize("code", MENTIONS)
def test_a_command_in_a_sentence_has_that_name_and_those_options(code: str):
    words = code.split()
    if words[0] != "w2s":
        assert (ROOT / words[0]).exists(), code
        return
    command = COMMAND.commands.get(words[1])
    if words[1] in GROUPS and len(words) > 2 and "|" not in words[2] and not words[2].startswith("-"):
        command = GROUPS[words[1]].commands.get(words[2])
    assert command is not None, f"no command {words[1]}"
    if words[1] != "eval":
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)} | {
            "--help"
        }
        assert not [w for w in words if w.startswith("--") and w.split("=")[0] not in known], code
    if words[1] == "run" and len(words) > 2 and words[2].islower():
        find_config(words[2])


# ---- YAML, and what runs ------------------------------------------------------------------------------------------------


class _Functions(yaml.SafeLoader):
    """YAML with lm_eval's ``!function``, which names one."""


_Functions.add_constructor("!function", lambda loader, node: str(loader.construct_scalar(node)))

YAMLS = [
    pytest.param(text, id=f"{page.relative_to(ROOT)}: {text.splitlines()[0]}")
    for page in PAGES
    for text in blocks(page, "yaml")
]


@pytest.mark.parametrize("text", YAMLS)
def test_yaml_in_the_documentation_is_an_experiment_a_part_of_one_a_bench_or_a_task(text: str, tmp_path: Path):
    from lm_eval.api.task import TaskConfig

    data = yaml.load(text, Loader=_Functions)  # noqa: S506 - a safe loader
    if "class" in data:  # a form of a task of the reader's
        assert set(data) == {"include", "task", "class"}
        assert pydoc.locate(data["class"]) in FORMS.values()
        return
    if "doc_to_text" in data:
        if "include" in data:
            assert (ROOT / "w2s_tasks" / "tasks" / "NAME" / data["include"]).resolve().is_file()
        assert set(data) - {"include"} <= set(TaskConfig.__dataclass_fields__)
        return
    whole = next(b for b in blocks(ROOT / "README.md", "yaml") if "methods:" in b)
    if "bench" in data:
        (tmp_path / "my_bench.yaml").write_text(text, encoding="utf-8")
        load_bench(str(tmp_path / "my_bench.yaml"))
        return
    parse(yaml.safe_dump({**yaml.safe_load(whole), **data}), "README.md")


def test_the_manuals_own_task_is_asked_as_it_stands(readers_folder: Path):
    command = [sys.executable, "-m", "trainers.cli", "eval", "--model", "dummy", "--tasks", "my_task", "--limit", "6"]
    command += ["--include_path", "my_tasks", "--num_fewshot", "2", "--log_samples", "--output_path", "out"]
    done = subprocess.run(command, cwd=readers_folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (samples,) = (readers_folder / "out").rglob("samples_my_task_*.jsonl")
    rows = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 6
    assert rows[0]["arguments"]["gen_args_0"]["arg_0"].count("Is this a complaint?") == 3


@pytest.mark.parametrize(
    "line", ["w2s plan my.yaml", "w2s plan quickstart --set seeds=[0,1,2]", "w2s tasks", "w2s tasks --path"]
)
def test_what_needs_no_model_runs(line: str, readers_folder: Path):
    command = [sys.executable, "-m", "trainers.cli", *shlex.split(line)[1:]]
    done = subprocess.run(command, cwd=readers_folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
