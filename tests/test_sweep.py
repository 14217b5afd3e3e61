"""A sweep runs every cell once, shares stages, goes on after failures and kills, and tells what came out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from trainers.cli import app, main
from trainers.commands import sweep as sw
from trainers.config.reading import load
from trainers.flow.progress import Progress
from trainers.flow.run import open_run
from trainers.harness import evaluate as hn
from trainers.report.report import recomputed
from trainers.steps import evaluation
from trainers.store.costs import Budget, write_cost
from trainers.store.stages import Store
from w2s_tasks.errors import UserError

SETS = ["split.limit={weak: 48, transfer: 32}", "evaluate.limit=16", "arms=[zero_shot, student, ceiling]"]
GRID = ["method=xent,logconf", "seed=0,1"]


def _sweep(file: Path, runs: Path, grid: list[str] = GRID, sets: list[str] = SETS) -> tuple[sw.Sweep, list[dict]]:
    opened = sw.open_sweep(str(file), sets, sw.parse_grid(grid), runs)
    return opened, list(sw.run_cells(opened, opened.cells, Progress(quiet=True, new_only=True)))


def test_grids_are_read_as_yaml_values():
    found = sw.parse_grid(
        ["method=xent,filter+logconf", "seed=0,1", "strong.model=pypi:a,org/b", "arms=[student, ceiling],[few_shot(4)]"]
    )
    assert found == {
        "method": ["xent", "filter+logconf"],
        "seed": [0, 1],
        "strong.model": ["pypi:a", "org/b"],
        "arms": [["student", "ceiling"], ["few_shot(4)"]],
    }


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (["method"], "write key=a,b"),
        (["method="], "write key=a,b"),
        (["=1"], "write key=a,b"),
        (["seed=1,1"], "a value occurs twice"),
        (["seed=1", "seed=2"], "given twice"),
        (["seed=1", "seeds=[2]"], "set the same key"),
        (["x=[1"], "not YAML"),
    ],
)
def test_bad_grids_are_named(grid: list[str], message: str):
    with pytest.raises(UserError, match=message):
        sw.parse_grid(grid)


def test_cells_are_all_combinations_with_folders_that_tell_them_apart(experiment_file: Path):
    grid = sw.parse_grid(["method=xent,filter+logconf", "seed=0,1", "strong.lr=1e-3,1e-2"])
    base, cells = sw.lay_out(str(experiment_file), [], grid)
    assert len(cells) == 8
    assert [c.values["seed"] for c in cells[:4]] == [0, 0, 1, 1]
    assert len({c.name for c in cells}) == 8
    assert cells[0].name == "method-xent.seed-0.lr-1e-3"
    last = cells[-1].config
    assert (last.methods, last.seeds, last.strong.lr) == (["filter+logconf"], [1], 0.01)
    assert last.name == f"{base.name}.{cells[-1].name}"
    assert sw._cell_name({"a": "x/y"}) != sw._cell_name({"a": "x-y"}) != sw._cell_name({"a": "x y"})
    assert len(sw._cell_name({"a": "x" * 500})) < 100


def test_a_mistake_in_a_grid_is_named_before_anything_runs(experiment_file: Path, tmp_path: Path):
    for grid, message in (
        (["method=xent,logcnf"], "Did you mean 'logconf'"),
        (["strong.lrr=1"], "Did you mean 'lr'"),
        ([], "needs at least one"),
    ):
        with pytest.raises(UserError, match=message):
            sw.open_sweep(str(experiment_file), [], sw.parse_grid(grid), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_shards_part_the_cells(experiment_file: Path):
    _, cells = sw.lay_out(str(experiment_file), [], sw.parse_grid(["seed=0,1,2,3,4"]))
    parts = [sw.of_shard(cells, f"{i}/3") for i in (1, 2, 3)]
    assert sorted(c.number for part in parts for c in part) == [1, 2, 3, 4, 5]
    assert [len(p) for p in parts] == [2, 2, 1]
    for bad in ("0/3", "4/3", "1", "1/0", "a/b"):
        with pytest.raises(UserError, match="write i/n"):
            sw.of_shard(cells, bad)


def test_cells_share_stages_and_a_second_sweep_builds_nothing(experiment_file: Path, tmp_path: Path, monkeypatch):
    sweep, outcomes = _sweep(experiment_file, tmp_path / "runs")
    assert [o["status"] for o in outcomes] == ["done"] * 4
    stages = list((tmp_path / "runs/small/stages").glob("*-*"))
    kinds = [p.name.split("-")[0] for p in stages]
    # Two seeds: one weak fit and one ceiling each, and one student a method; zero-shot once for all.
    assert kinds.count("fit") == 2 * (1 + 1 + 2)
    assert kinds.count("evaluate") == 1 + 2 * (1 + 1 + 2)
    report = json.loads((tmp_path / "runs/small" / outcomes[3]["report"]).read_text())
    assert {a["method"] for a in report["arms"] if a["arm"] == "student"} == {"logconf"}
    assert {a["seed"] for a in report["arms"] if a["arm"] != "zero_shot"} == {1}
    data = json.loads((tmp_path / "runs/small/sweep.json").read_text())
    assert data["schema"] == 1
    assert data["grid"] == {"method": ["xent", "logconf"], "seed": [0, 1]}
    assert [c["values"] for c in data["cells"]] == [c.values for c in sweep.cells]
    assert all({"pgr", "ci95", "defined", "arms", "seconds"} <= c.keys() for c in data["cells"])
    # A plain run of the same file finds the stages too.
    flow = open_run(load(str(experiment_file), [*SETS, "methods=[xent, logconf]", "seeds=[0, 1]"])[0], tmp_path / "runs")
    flow.build(Progress(quiet=True))
    assert all(stage.reused for stage in flow.stages.values())

    looked: list[str] = []
    find = Store.find
    monkeypatch.setattr(Store, "find", lambda self, kind, key: looked.append(key) or find(self, kind, key))
    _, again = _sweep(experiment_file, tmp_path / "runs")
    assert again == outcomes
    assert not looked


def test_what_changed_is_run_again(experiment_file: Path, own_task: Path, tmp_path: Path):
    _, first = _sweep(experiment_file, tmp_path / "runs", ["seed=0,1"])
    lines = (own_task / "test.jsonl").read_text().splitlines()
    (own_task / "test.jsonl").write_text("\n".join([json.dumps({"text": "a changed row", "label": 1}), *lines[1:]]) + "\n")
    _, second = _sweep(experiment_file, tmp_path / "runs", ["seed=0,1"])
    assert all(a["key"] != b["key"] for a, b in zip(first, second, strict=True))
    folder = tmp_path / "runs/small" / second[0]["report"]
    folder.unlink()
    _, third = _sweep(experiment_file, tmp_path / "runs", ["seed=0,1"])
    assert third == second
    assert folder.is_file()


def test_a_failing_cell_does_not_stop_the_others(experiment_file: Path, tmp_path: Path, capsys, monkeypatch):
    runs = tmp_path / "runs"
    command = [
        "w2s",
        "sweep",
        str(experiment_file),
        "--grid",
        "strong.target_modules=nothing,all-linear",
        "--grid",
        "seed=0",
    ]
    command += [x for s in SETS for x in ("--set", s)] + ["--runs-dir", str(runs)]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    out, err = capsys.readouterr()
    assert "1 of 2 cells failed" in err
    assert "target_modules" in err
    assert "Traceback" not in err + out
    data = json.loads((runs / "small/sweep.json").read_text())
    assert [c["status"] for c in data["cells"]] == ["failed", "done"]
    assert "nothing" in data["cells"][0]["error"]

    # What is no user's mistake leaves its traceback in a file, and the next start tries the cell again.
    real = evaluation.evaluate
    monkeypatch.setattr(evaluation, "evaluate", lambda *a, **k: (_ for _ in ()).throw(RuntimeError("the disk is full")))
    opened, outcomes = _sweep(experiment_file, runs, ["seed=5"])
    assert outcomes[0]["status"] == "failed"
    assert "RuntimeError: the disk is full" in outcomes[0]["error"]
    assert "Traceback" in (opened.folder_of(opened.cells[0]) / "error.txt").read_text()
    monkeypatch.setattr(evaluation, "evaluate", real)
    _, outcomes = _sweep(experiment_file, runs, ["seed=5"])
    assert outcomes[0]["status"] == "done"


def test_a_dry_run_shows_the_cells_and_touches_nothing(experiment_file: Path, tmp_path: Path):
    arguments = ["sweep", str(experiment_file), "--grid", "method=xent,logconf", "--grid", "seed=0,1,2"]
    result = CliRunner().invoke(app, [*arguments, "--runs-dir", str(tmp_path / "runs"), "--dry-run", "--shard", "2/2"])
    assert result.exit_code == 0
    assert "3 cells" in result.output
    assert "logconf" in result.output
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_two_shards_at_once_build_each_stage_once_and_a_killed_one_is_taken_over(experiment_file: Path, tmp_path: Path):
    runs = tmp_path / "runs"
    command = [sys.executable, "-m", "trainers.cli", "sweep", str(experiment_file), "--runs-dir", str(runs)]
    grid = ["method=xent,logconf"]
    command += ["--grid", *grid] + [x for s in SETS for x in ("--set", s)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def start(shard: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*command, "--shard", shard], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )

    one, two = start("1/2"), start("2/2")
    deadline = time.monotonic() + 120
    while not list((runs / "small/stages").glob("fit-*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    one.send_signal(signal.SIGKILL)
    one.communicate()
    out, err = two.communicate(timeout=300)
    assert two.returncode == 0, err
    again = start("1/2")
    _, err = again.communicate(timeout=300)
    assert again.returncode == 0, err
    data = json.loads((runs / "small/sweep.json").read_text())
    assert [c["status"] for c in data["cells"]] == ["done"] * 2
    assert "sweep: " in out
    # Equal to what one process makes, stage for stage.
    _sweep(experiment_file, tmp_path / "alone", grid)
    names = [{p.name for p in (folder / "small/stages").glob("[a-z]*")} for folder in (runs, tmp_path / "alone")]
    assert names[0] == names[1]


def test_many_finished_cells_are_looked_through_without_hashing_stages_or_loading_models(
    experiment_file: Path, tmp_path: Path, monkeypatch
):
    grid = ["weak.warmup=0.1,0.2", "seed=0"]
    sets = [*SETS, "safety={tasks: [w2s_ethics_probe], limit: 4}"]
    _sweep(experiment_file, tmp_path / "runs", grid, sets)
    hashed: list[str] = []
    from trainers.store import stages as store
    from w2s_tasks.models import ref

    real_sha, real_identity = store.sha256_file, ref.identity_of
    monkeypatch.setattr(store, "sha256_file", lambda path: hashed.append(str(path)) or real_sha(path))
    asked: list[str] = []
    monkeypatch.setattr(
        "trainers.training.settings.identity_of", lambda *a, **k: asked.append(a[0]) or real_identity(*a, **k)
    )
    monkeypatch.setattr(hn.ModelPool, "load", lambda *a: pytest.fail("a model was loaded"))
    loaded: list[str] = []
    load_task = hn.Harness._load
    monkeypatch.setattr(hn.Harness, "_load", lambda self, name: loaded.append(name) or load_task(self, name))
    _, outcomes = _sweep(experiment_file, tmp_path / "runs", grid, sets)
    assert [o["status"] for o in outcomes] == ["done", "done"]
    assert not hashed
    assert len(asked) == 2  # weak and strong, once for all cells
    assert loaded == ["own_reviews", "w2s_ethics_probe"]


def test_a_cells_report_can_be_formed_anew_from_the_shared_stages(experiment_file: Path, tmp_path: Path):
    sweep, _ = _sweep(experiment_file, tmp_path / "runs", ["seed=3"])
    folder = sweep.folder_of(sweep.cells[0])
    before = json.loads((folder / "report.json").read_text())
    (folder / "report.html").unlink()
    again = recomputed(folder)[0].json()
    assert again["arms"] == before["arms"]
    assert (folder / "report.html").is_file()


def test_a_stage_that_cells_share_is_paid_once(tmp_path: Path):
    store, budget = Store(tmp_path), Budget(5.0)
    first = {"kind": "fit", "a": 1}
    store.build("fit", first, lambda out: write_cost(out, 2.0, 10))
    for _ in range(3):
        budget.book_stage(store.build("fit", first, lambda out: None))
    assert budget.left == 3.0
    second = {"kind": "fit", "a": 2}
    budget.book(1.0)  # by the trainer, while it was built
    budget.book_stage(store.build("fit", second, lambda out: write_cost(out, 1.0, 10)))
    budget.book_stage(store.build("fit", second, lambda out: None))
    assert budget.left == 2.0
