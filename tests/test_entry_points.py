"""What lm_eval's own plug-in groups say of this package: the models that `register` adds, and the folder of the tasks.

The second half runs on a checkout of lm_eval's development branch, in a process of its own: ``W2S_UPSTREAM=DIR``.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import lm_eval.tasks.manager
import pytest

from w2s_tasks import MODELS, TASK_PATH, register
from w2s_tasks.plugin.manager import W2STaskManager

ROOT = Path(__file__).parents[1]
GROUPS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]


def test_every_model_that_is_registered_is_an_entry_point_and_the_same_class():
    from lm_eval.api.registry import get_model

    assert GROUPS["lm_eval.models"] == MODELS
    register()
    for name, target in GROUPS["lm_eval.models"].items():
        module, _, attribute = target.partition(":")
        assert get_model(name) is getattr(importlib.import_module(module), attribute)


def test_the_tasks_entry_point_is_the_folder_of_the_tasks():
    assert list(GROUPS["lm_eval.tasks"]) == ["w2s"]
    found = importlib.util.find_spec(GROUPS["lm_eval.tasks"]["w2s"])
    assert found is not None
    assert [Path(place).resolve() for place in found.submodule_search_locations or ()] == [TASK_PATH.resolve()]


def test_an_lm_eval_that_finds_our_folder_itself_is_not_told_of_it_again(monkeypatch: pytest.MonkeyPatch):
    told = []
    begin = lm_eval.tasks.manager.TaskManager.__init__

    def __init__(self: W2STaskManager, **given: object) -> None:  # noqa: N807
        told.append(given["include_path"])
        begin(self, **given)  # type: ignore[arg-type]

    monkeypatch.setattr(lm_eval.tasks.manager.TaskManager, "__init__", __init__)
    W2STaskManager(include_defaults=False, include_path=str(ROOT / "scripts" / "upstream" / "sst2_review"))
    discovered = lambda: (TASK_PATH.resolve(),)  # noqa: E731
    monkeypatch.setattr(lm_eval.tasks.manager, "discover_plugin_task_paths", discovered, raising=False)
    W2STaskManager(include_defaults=False, include_path=str(ROOT / "scripts" / "upstream" / "sst2_review"))
    assert [len(paths) for paths in told] == [2, 1]


FOUND = f"""\
import lm_eval
from lm_eval.api.registry import get_model
from lm_eval.tasks import TaskManager
print(lm_eval.__file__)
print(*(get_model(name).__name__ for name in {list(MODELS)}))
print(*[name for name in TaskManager(include_defaults=False).all_tasks if name.startswith("w2s_")])
"""


def write_metadata(folder: Path) -> None:
    """What an installed package says of itself, with the entry points of pyproject.toml."""
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: w2s-harness\nVersion: 0.1.0\n", encoding="utf-8")
    groups = ("\n".join((f"[{group}]", *map(" = ".join, points.items()))) for group, points in GROUPS.items())
    (folder / "entry_points.txt").write_text("\n".join(groups), encoding="utf-8")


def test_lm_evals_development_branch_finds_models_and_tasks_by_themselves(tmp_path: Path):
    upstream = os.environ.get("W2S_UPSTREAM")
    if not upstream:
        pytest.skip("needs a checkout of EleutherAI/lm-evaluation-harness: set W2S_UPSTREAM to its folder")
    if "discover_plugin_task_paths" not in Path(upstream, "lm_eval", "tasks", "manager.py").read_text(encoding="utf-8"):
        pytest.skip(f"the checkout in W2S_UPSTREAM ({upstream}) reads no entry points of tasks yet (lm_eval's PR #4015)")
    (tmp_path / "w2s_harness-0.1.0.dist-info").mkdir()
    write_metadata(tmp_path / "w2s_harness-0.1.0.dist-info")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), upstream, str(ROOT)))}
    command = [sys.executable, "-c", FOUND]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    place, models, tasks = done.stdout.splitlines()[-3:]
    assert Path(place).is_relative_to(Path(upstream).resolve())
    assert models.split() == [target.rpartition(":")[2] for target in MODELS.values()]
    assert set(tasks.split()) == set(W2STaskManager(include_defaults=False).all_tasks)
