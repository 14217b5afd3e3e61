"""Finished work is found by its recipe, checked by its hashes, and never found by a changed recipe."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

from trainers.store import stages as st
from w2s_tasks.errors import UserError

RECIPE = {"kind": "x", "a": 1}


def _writer(text: str):
    def build(out: Path) -> None:
        (out / "data.txt").write_text(text)

    return build


def test_a_stage_is_built_once(tmp_path: Path):
    store = st.Store(tmp_path)
    first = store.build("x", RECIPE, _writer("one"))
    second = store.build("x", RECIPE, _writer("two"))
    assert (first.reused, second.reused) == (False, True)
    assert (second.path / "data.txt").read_text() == "one"
    manifest = json.loads((second.path / "manifest.json").read_text())
    assert manifest["recipe"] == RECIPE
    assert set(manifest["versions"]) >= {"torch", "lm_eval"}


def test_a_changed_recipe_is_another_stage(tmp_path: Path):
    store = st.Store(tmp_path)
    assert store.build("x", RECIPE, _writer("one")).path != store.build("x", RECIPE | {"a": 2}, _writer("two")).path


@pytest.mark.parametrize("damage", ["altered", "truncated", "removed", "manifest"])
def test_an_altered_stage_is_built_anew(tmp_path: Path, damage: str):
    store = st.Store(tmp_path)
    stage = store.build("x", RECIPE, _writer("one"))
    file = stage.path / ("manifest.json" if damage == "manifest" else "data.txt")
    if damage == "removed":
        file.unlink()
    else:
        file.write_text({"altered": "onE", "truncated": "", "manifest": "{"}[damage])
    again = store.build("x", RECIPE, _writer("one"))
    assert not again.reused
    assert (again.path / "data.txt").read_text() == "one"


def test_a_failed_build_leaves_no_stage_but_its_checkpoints(tmp_path: Path):
    store = st.Store(tmp_path)

    def fail(out: Path) -> None:
        (out / "half.txt").write_text("half")
        (out / "checkpoints" / "c").write_text("kept")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.build("x", RECIPE, fail)
    assert store.find("x", st.recipe_key(RECIPE)) is None
    seen: list[list[str]] = []

    def succeed(out: Path) -> None:
        seen.append(sorted(p.name for p in out.rglob("*")))
        (out / "data.txt").write_text("whole")

    stage = store.build("x", RECIPE, succeed)
    assert seen == [["c", "checkpoints"]]
    assert sorted(p.name for p in stage.path.iterdir()) == ["data.txt", "manifest.json"]


def _slow(root: str, queue: multiprocessing.Queue) -> None:
    def build(out: Path) -> None:
        time.sleep(0.5)
        (out / "data.txt").write_text("x")

    queue.put(st.Store(Path(root)).build("x", RECIPE, build).reused)


def test_two_processes_build_a_stage_once(tmp_path: Path):
    queue: multiprocessing.Queue = multiprocessing.Queue()
    workers = [multiprocessing.Process(target=_slow, args=(str(tmp_path), queue)) for _ in range(2)]
    for w in workers:
        w.start()
    for w in workers:
        w.join(30)
    assert sorted(queue.get(timeout=5) for _ in workers) == [False, True]


def test_what_a_killed_writer_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path: Path):
    path, abandoned, held = (tmp_path / name for name in ("a[1].json", ".a[1].json.00000000.tmp", ".a[1].json.11111111.tmp"))
    abandoned.write_text("half")
    other = tmp_path / ".b.json.00000000.tmp"
    other.write_text("another file's")
    with held.open("w") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        st.write_atomic(path, "whole")
    assert path.read_text() == "whole"
    assert sorted(tmp_path.iterdir()) == sorted([path, held, other])


def test_a_key_is_the_hash_of_the_recipe_whatever_its_order():
    """Finished stages are named by it: sixteen digits of the SHA-256 of the canonical JSON, here made by sha256sum."""
    assert st.recipe_key({"b": 1, "a": "é"}) == st.recipe_key({"a": "é", "b": 1}) == "799d49d45db67c58"


def test_the_commit_is_that_of_the_repository_and_none_outside_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    commit = st._git_commit.__wrapped__
    monkeypatch.setattr(st, "__file__", str(tmp_path / "store.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert commit() is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "one"], check=True)
    log = subprocess.run([*git, "log", "--format=%H"], check=True, capture_output=True, text=True)
    assert commit() == log.stdout.strip()


def test_a_stage_tells_how_long_it_took(tmp_path: Path):
    began = time.monotonic()
    stage = st.Store(tmp_path / "new" / "run").build("x", RECIPE, lambda out: time.sleep(0.02))
    assert 0.02 <= stage.seconds <= time.monotonic() - began
    again = st.Store(tmp_path / "new" / "run").find("x", stage.key)
    assert again is not None
    assert (again.seconds, again.reused) == (stage.seconds, True)


def test_files_are_looked_at_each_time_unless_a_store_may_remember(tmp_path: Path):
    key = st.Store(tmp_path).build("x", RECIPE, _writer("one")).key
    careful, quick = st.Store(tmp_path), st.Store(tmp_path, remember=True)
    assert careful.find("x", key)
    assert quick.find("x", key)
    (careful.folder_of("x", key) / "data.txt").write_text("two")
    assert careful.find("x", key) is None
    assert quick.find("x", key)


def test_the_first_altered_file_is_named(tmp_path: Path):
    stage = st.Store(tmp_path).build("x", RECIPE, lambda out: [(out / n).write_text(n) for n in ("a", "b", "c")])
    for name in ("b", "c"):
        (stage.path / name).write_text("other")
    assert st.whole(stage.path) == (None, "b")


def test_a_folder_says_which_stage_is_being_built(tmp_path: Path):
    assert st.busy(tmp_path) is None
    (tmp_path / "stages").mkdir()
    with FileLock(tmp_path / "stages" / ".lock-train-1"):
        assert st.busy(tmp_path) == "train-1"
    assert st.busy(tmp_path) is None


def test_a_file_that_could_not_be_written_leaves_the_old_one_and_no_other(tmp_path: Path):
    path = tmp_path / "a.json"
    st.write_atomic(path, "old")
    with pytest.raises(UnicodeEncodeError):
        st.write_atomic(path, "\ud800")
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert path.read_text() == "old"
    with path.open() as f:
        assert st._locked(f, wait=True)


def test_a_run_folder_that_cannot_be_made_is_one_clear_error(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't be written"):
        st.Store(tmp_path / "file")


HASHES = """
from trainers.harness.evaluate import Harness, PromptStyle
for task in Harness().load(["w2s_ethics_probe_all"]):
    print(task.name, task.renderer_hash(PromptStyle(4)), task.eval_hash(None))
"""


def test_hashes_of_tasks_are_the_same_in_every_process():
    found = [
        subprocess.run(
            [sys.executable, "-c", HASHES],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    ]
    assert found[0] == found[1]
    assert len(set(found[0].splitlines())) == 12
