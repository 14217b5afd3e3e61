"""Names longer than a file's can be, and places where nothing can be written: shortened or refused before, never lost."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from bad_input import one_clear_error
from conftest import OWN_TASK, write_own_task

from trainers.commands.sweep import LONGEST_NAME as LONGEST_CELL
from trainers.commands.sweep import _cell_name
from trainers.config.reading import parse
from trainers.flow.alone import finetune_model, label_rows
from trainers.store.stages import Store
from w2s_tasks import cli, register
from w2s_tasks.errors import UserError
from w2s_tasks.paths import LONGEST_NAME, check_folder, check_place, file_name
from w2s_tasks.plugin import eval_arguments, saving
from w2s_tasks.results.read import read_evaluation

PROBE = "w2s_ethics_probe_justice"


@pytest.mark.parametrize("text", ["a" * 400, "é" * 150, "語" * 90, "a/b", "a:b", "a\nb", "a\0b", "\ud800", "𐌰" * 64])
def test_a_name_is_one_that_a_disk_takes(text: str, tmp_path: Path):
    name = file_name(text)
    assert len(os.fsencode(name)) <= LONGEST_NAME
    (tmp_path / f"samples_{name}_2026-01-01T00-00-00.000000.jsonl").write_text("x")
    assert [p.parent for p in tmp_path.iterdir()] == [tmp_path]


def test_names_stay_as_they_are_where_they_can_and_apart_where_they_can_not():
    assert file_name("w2s_sst2") == "w2s_sst2"
    assert file_name("語" * 66) == "語" * 66
    apart = ["a/b", "a:b", "a\\b", "a_b", "x" * 300, "x" * 301, "é" * 300, "é" * 301]
    assert len({file_name(name) for name in apart}) == len(apart)


def test_places_where_nothing_can_be_written_are_refused(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    places = {
        "is too long: 300 bytes": tmp_path / ("a" * 300),
        "is too long: 400 bytes": tmp_path / ("é" * 200) / "below",
        "at most 4,095": tmp_path.joinpath(*["a" * 200] * 18),
        "is a file. Choose": tmp_path / "file" / "below",
        "a folder is expected": tmp_path / "file",
        "NUL": tmp_path / "a\0b",
    }
    for message, place in places.items():
        one_clear_error(lambda place=place: check_folder(place, "--out"), message, names="--out", untouched=tmp_path)
    one_clear_error(lambda: check_place(tmp_path / ("a" * 250), "--out", behind=10), "260 bytes")
    check_place(tmp_path / ("a" * 245), "--out", behind=10)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_refused(tmp_path: Path):
    tmp_path.chmod(0o500)
    one_clear_error(lambda: check_folder(tmp_path / "new", "--out"), "no permission")


def test_a_run_folder_of_letters_of_two_bytes_is_counted_in_bytes(tmp_path: Path):
    text = "task: t\nweak: {model: m}\nstrong: {model: s}\nname: %s\n"
    one_clear_error(lambda: parse(text % ("é" * 101), "x.yaml"), "x.yaml:4: name: .*202 bytes.* at most 200")
    assert Store(tmp_path / parse(text % ("é" * 100), "x.yaml").name).root.is_dir()


def test_a_cell_of_a_sweep_has_a_short_name():
    name = _cell_name({"weak.model": "𐌰" * 200})
    assert len(os.fsencode(name)) <= LONGEST_CELL + 7


def test_stages_of_their_own_refuse_their_output_before_any_work(tmp_path: Path):
    def label(out: Path) -> None:
        label_rows("no_such_task", "w2s-hf", {}, out, 2, 0, [])

    def finetune(out: Path) -> None:
        finetune_model("no_such_task", "m", "lora", None, out, None, [], 0, [])

    for call in (label, finetune):
        one_clear_error(lambda call=call: call(tmp_path / ("é" * 127)), "--out: the name .* too long", untouched=tmp_path)
        one_clear_error(lambda call=call: call(tmp_path / ("d" * 260) / "x"), "--out: the name", untouched=tmp_path)
    one_clear_error(lambda: Store(tmp_path / ("r" * 256)), "--runs-dir: the name", untouched=tmp_path)


@pytest.mark.parametrize("flag", ["--output_path", "--use_cache"])
def test_eval_refuses_a_place_before_any_work(flag: str, tmp_path: Path, causal_model: Callable[[str], Path]):
    register()
    (tmp_path / "file").write_text("x")
    base = ["--model", "w2s-hf", "-a", f"pretrained={causal_model('llama')}", "--tasks", PROBE, flag]
    for place, message in (("x" * 256, "too long"), ("file/x", "is a file"), ("é" * 118 + ".json", "too long")):
        one_clear_error(
            lambda place=place: eval_arguments.checked([*base, str(tmp_path / place)]),
            f"{flag[2:]}: .*{message}",
            untouched=tmp_path,
        )


class _Context:
    def __init__(self, *args: str) -> None:
        self.args = list(args)


def evaluate(*arguments: str) -> None:
    """`w2s eval`, in this process."""
    import lm_eval.tasks

    before = lm_eval.tasks.TaskManager
    try:
        cli.evaluate(_Context(*arguments))  # type: ignore[arg-type] # all that it reads
    finally:
        lm_eval.tasks.TaskManager = before


def deep(folder: Path) -> Path:
    """A folder whose path has more than 255 bytes, as that of an adapter in a run folder may have."""
    made = folder.joinpath(*["runs of a group with a long name"] * 9)
    made.mkdir(parents=True)
    return made


def test_samples_and_results_of_long_names_are_there(tmp_path: Path, causal_model: Callable[[str], Path]):
    """lm_eval makes a folder of the model's path and a file of the task's name, and ends with 0 where it can't."""
    own = write_own_task(tmp_path / "own")
    names = ["own_" + "é" * 130, "own_" + "é" * 131]
    for name in names:
        text = OWN_TASK.format(folder=own).replace("task: own_reviews", f"task: {name}")
        (own / f"{len(name)}.yaml").write_text(text, encoding="utf-8")
    model = deep(tmp_path) / "model"
    model.symlink_to(causal_model("llama"), target_is_directory=True)
    out = tmp_path / "out"
    config = {
        "model": "w2s-hf", "model_args": {"pretrained": str(model)}, "tasks": names, "include_path": str(own), "limit": 4,
        "log_samples": True, "output_path": str(out),
    }  # fmt: skip
    (tmp_path / "eval.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    evaluate("--config", str(tmp_path / "eval.yaml"))
    scores = read_evaluation(out, dict.fromkeys(names, 4))
    assert set(scores) == set(names)
    assert json.loads(next(out.rglob("results_*.json")).read_text())["model_name"] == str(model)


def test_what_lm_eval_could_not_save_is_an_error(tmp_path: Path):
    """The folder goes while the model works, or the disk is full: lm_eval warns and ends with 0."""
    tracker = saving.Tracker(output_path=str(tmp_path / "out"))
    tracker.general_config_tracker.model_name = "m"
    (tmp_path / "out").write_text("a file by now")
    tracker.save_results_aggregated({"results": {}})
    with pytest.raises(UserError, match=r"could not be saved in .*out: Could not save.*(Exists|NotADirectory)"):
        tracker.check()
