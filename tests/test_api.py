"""The suite from Python: what the commands do, frames that are the CSV tables, and calls that go on where they ended."""

from __future__ import annotations

import csv
import doctest
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

import trainers
from trainers import Experiment, Results, api, evaluate, load_experiment, load_report, plan, run, sweep, task_from_rows
from trainers.cli import app
from trainers.report.csv_tables import _cell
from trainers.report.frames import tables
from trainers.report.report import read_report
from trainers.report.results import Plots
from trainers.report.section import Report
from w2s_tasks.errors import UserError

SMALL: dict[str, Any] = {
    "arms": ["student", "ceiling"],
    "split": {"by": "source", "limit": {"weak": 32, "transfer": 32}},
    "weak.epochs": 1,
    "evaluate.limit": 20,
}


def stages(folder: Path) -> dict[str, int]:
    """The finished stages of a run folder with the times at which they were made."""
    return {path.name: path.stat().st_mtime_ns for path in (folder / "stages").iterdir() if not path.name.startswith(".")}


@pytest.fixture(scope="module")
def results(run_folder: Path) -> Results:
    return load_report(run_folder)


# ---- importing ------------------------------------------------------------------------------------------------------------


def test_importing_loads_nothing_large_until_something_runs():
    program = """
import sys, trainers
from trainers import Experiment, run, sweep, plan, evaluate, load_report
from trainers.plugins import load_plugin
assert {"Experiment", "run"} <= set(dir(trainers))
print(*{"torch", "transformers", "lm_eval", "pandas", "datasets", "numpy"} & set(sys.modules))
made = Experiment(name="x", task="t", weak={"model": "m"}, strong={"model": "m"})
assert isinstance(made, Experiment) and not isinstance(1, Experiment)
assert type(made).__name__ == Experiment.__name__ == "Experiment"
assert Experiment.model_validate(made.model_dump()) == made
assert "torch" in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not done.stdout.strip()


def test_type_checkers_are_told_the_names_that_there_are():
    stub = Path(str(trainers.__file__)).with_suffix(".pyi").read_text(encoding="utf-8")
    told = dict(reversed(line.removeprefix("from ").split(" as ")[0].split(" import ")) for line in stub.splitlines())
    assert told == trainers.PLACES
    assert all(getattr(trainers, name).__doc__ for name in trainers.PLACES)
    with pytest.raises(AttributeError, match=r"no attribute 'ran'; it has Experiment"):
        _ = trainers.ran  # type: ignore[attr-defined]
    from trainers.commands import sweep as sweeping

    assert sweeping.lay_out is not None
    assert callable(trainers.sweep)  # no module of that name hides it


def test_the_examples_in_docstrings_hold():
    found = doctest.DocTestFinder().find(api, globs={"load_experiment": load_experiment, "plan": plan})
    runner = doctest.DocTestRunner()
    for example in found:
        runner.run(example)
    assert runner.summarize(verbose=False).failed == 0
    assert runner.tries >= 2


# ---- running -------------------------------------------------------------------------------------------------------------


def test_a_call_finds_the_stages_of_the_command_and_the_other_way_round(
    experiment_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    found = run(experiment_file, overrides=SMALL, runs_dir=tmp_path / "runs", quiet=True)
    made = stages(found.folder)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    sets = [word for key, value in SMALL.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    told = CliRunner().invoke(app, ["run", str(experiment_file), "--runs-dir", str(tmp_path / "runs"), "-q", *sets])
    assert told.exit_code == 0, told.output
    assert stages(found.folder) == made
    keys = yaml.safe_load(experiment_file.read_text(encoding="utf-8"))
    monkeypatch.chdir(tmp_path)  # folders in it are relative to the working folder
    thread: list[Results] = []
    config = load_experiment(keys, SMALL, name="small")
    assert isinstance(config, Experiment)
    worker = threading.Thread(target=lambda: thread.append(run(config, quiet=True)))
    worker.start()
    worker.join()
    assert stages(thread[0].folder) == made
    pd.testing.assert_frame_equal(thread[0].arms, found.arms)


def test_an_interrupted_call_goes_on_at_the_step_where_it_was(
    experiment_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from trainers.training import loop
    from trainers.training.checkpoints import newest_checkpoint

    original, begun = loop.Bar.on_step_end, []

    def press(self: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
        original(self, args, state, control, **more)
        begun.append(state.global_step)
        if len(begun) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(loop.Bar, "on_step_end", press)
    monkeypatch.setattr(signal, "getsignal", lambda _: signal.default_int_handler)  # whatever the test runner has
    call: Any = {"overrides": {**SMALL, "weak.epochs": 4, "weak.trainer_args": {"save_steps": 1000}, "arms": ["ceiling"]}}
    call |= {"runs_dir": tmp_path, "quiet": True}
    with pytest.raises(KeyboardInterrupt):
        run(experiment_file, **call)
    (work,) = (tmp_path / "small" / "stages").glob(".work-fit-*/checkpoints")
    assert str(newest_checkpoint(work)).endswith("-3")
    again = run(experiment_file, **call)
    assert begun[3] == 4
    assert set(again.arms.arm) == {"weak", "ceiling"}


def test_a_sweep_has_the_tables_of_its_cells(experiment_file: Path, tmp_path: Path):
    swept = sweep(
        experiment_file,
        {"arm": ["zero_shot", "few_shot(300)"], "seed": [0]},
        overrides=SMALL,
        runs_dir=tmp_path,
        quiet=True,
    )
    assert swept.cells.status.tolist() == ["done", "failed"]
    assert "few_shot(300)" in swept.cells["grid.arm"].tolist()
    assert pd.isna(swept.cells.error[0])
    assert swept.cells.error[1]
    (name,) = swept
    assert len(swept.arms) == len(swept[name].arms)
    assert swept.arms["grid.seed"].tolist() == [0] * len(swept.arms)
    with pytest.raises(KeyError, match="no finished cell"):
        swept["none"]


def test_a_model_is_measured_as_in_its_run(results: Results, run_folder: Path, tmp_path: Path):
    folder = str(run_folder.parents[1] / "own_tasks")
    found = evaluate(results.model("student", seed=1), "own_reviews", include_path=[folder], num_fewshot=0)
    own = results.arms.query("arm == 'student' and seed == 1").iloc[0]
    (row,) = found.accuracies.to_dict("records")
    assert (row["n"], row["acc"]) == (own.n, own["metrics.acc"])
    assert (row["ci95.low"], row["ci95.high"]) == (own["ci95.acc.low"], own["ci95.acc.high"])
    assert found.metrics.query("metric == 'acc'").value.item() == row["acc"]
    assert "own_reviews" in found._repr_html_()
    for wrong, words in [
        ({"model": "w2s-hff"}, "no model 'w2s-hff'.*w2s-hf"),
        ({"tasks": []}, "no tasks"),
        ({"limit": 0}, "limit 0"),
        ({"model_args": {"trust_remote_code": True}}, "trust_remote_code"),
        ({"model": results.model("student"), "model_args": "a=b"}, "has its own already"),
    ]:
        with pytest.raises(UserError, match=words):
            evaluate(**{"model": "dummy", "tasks": "own_reviews", "include_path": [folder], **wrong})  # type: ignore[arg-type]


def test_a_task_of_ones_own_rows_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("W2S_CACHE", str(tmp_path))
    rows = [{"text": f"It was {word} {i}.", "mood": word} for i in range(20) for word in ("sad", "glad")]
    task = task_from_rows(rows, text="text", choices=["sad", "glad"], label="mood", name="moods", test=0.5)
    measured = evaluate("dummy", task, num_fewshot=0)
    assert measured.accuracies.task.tolist() == ["moods"]
    assert measured.accuracies.n.item() == 20


def test_wrong_arguments_are_one_clear_error_before_anything_is_made(experiment_file: Path, tmp_path: Path):
    keys = yaml.safe_load(experiment_file.read_text(encoding="utf-8"))
    keys["include_path"] = [str(experiment_file.parent / "own_tasks")]
    named: Any = {"runs_dir": tmp_path / "runs", "name": "x"}
    for call, words in [
        (lambda: run(keys, runs_dir=tmp_path / "runs"), "has no name"),
        (lambda: run(3, **named), "not int"),  # type: ignore[arg-type]
        (lambda: run("quickstrat"), "quickstart"),
        (lambda: run({**keys, "seedz": 1}, **named), "the experiment: seedz: unknown key. Did you mean 'seeds'"),
        (lambda: run(keys, overrides={"strong.lr": object()}, **named), "overrides: strong.lr: no plain number"),
        (lambda: run(keys, overrides={"name": "../up"}, runs_dir=tmp_path), "name"),
        (lambda: run(keys, engine="spark", **named), "engine 'spark': local or ray"),  # type: ignore[arg-type]
        (lambda: run(keys, if_exists="ask", **named), "if_exists 'ask'"),  # type: ignore[arg-type]
        (lambda: run(keys, max_cost=float("nan"), **named), "max_cost nan"),
        (lambda: sweep(keys, {"seed": "0,1"}, **named), "a list of values"),
        (lambda: sweep(keys, {}, **named), "a sweep needs"),
        (lambda: sweep(keys, {"seed": [0, 0]}, **named), "occurs twice"),
        (lambda: load_report(tmp_path), "not a readable report"),
    ]:
        with pytest.raises(UserError, match=words):
            call()
    assert not (tmp_path / "runs").exists()
    with pytest.warns(UserWarning, match="changes nothing here"):
        api._tell_unused(load_experiment(keys, {"arms": ["ceiling"], "method_args.logconf.alpha": 0.5}))


# ---- results -------------------------------------------------------------------------------------------------------------


def test_frames_are_the_csv_tables(results: Results, run_folder: Path):
    files = {path.stem: path for path in (run_folder / "tables").glob("*.csv")}
    assert set(files) == {name for name, table in results.tables.items() if table.rows}
    for name, path in files.items():
        with path.open(encoding="utf-8") as file:
            told = list(csv.DictReader(file))
        frame = getattr(results, name)
        assert list(frame) == list(told[0]), name
        for column in frame:
            own = ["" if _missing(value) else str(_cell(value)) for value in frame[column]]
            assert [_plain(a) for a in own] == [_plain(row[column]) for row in told], f"{name}.{column}"


def _missing(value: Any) -> bool:
    return not isinstance(value, list | tuple) and bool(pd.isna(value))


def _plain(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text


def test_every_column_says_what_it_is(results: Results):
    for name in results.tables:
        frame = getattr(results, name)
        assert list(frame) == list(frame.attrs["columns"])
        assert frame.attrs["columns"] == results.columns(name)
        assert all(sentence.strip() for sentence in results.columns(name).values()), name
    assert "ceiling" in results.columns("gaps")["pgr"]
    assert results.columns("ladder_tasks")["ci95.low"].endswith("Lower end.")
    assert {*Results.__annotations__} <= {*results.tables}
    assert {*Plots.__annotations__} == {*results.plot._drawings}
    assert {"gaps", "plot", "questions"} <= {*dir(results)}
    assert "accuracy" in dir(results.plot)


def test_what_is_undefined_is_missing_and_has_its_reason_beside_it(results: Results):
    gaps = results.gaps
    assert gaps.pgr.dtype == float
    assert gaps.pgr.isna().tolist() == (~gaps.defined).tolist()
    assert gaps.reason[gaps.pgr.isna()].str.contains("noise").all()
    assert results.arms.seed.dtype == "Int64"
    assert results.arms.seed.isna().sum() == (results.arms.arm == "zero_shot").sum() == 1
    with pytest.raises(AttributeError, match=r"no table 'gap'.*gaps"):
        _ = results.gap


def test_questions_tell_every_answer(results: Results):
    asked = results.questions
    right = asked[asked.kind == "training task"].groupby(["arm", "seed"], dropna=False).right.mean()
    means = results.arms.set_index(["arm", "seed"])["metrics.acc"]
    assert right.to_dict() == pytest.approx(means.to_dict(), nan_ok=True)
    chosen = asked.dropna(subset=["gold", "answer"])
    assert ((chosen.gold == chosen.answer) == chosen.right).all()
    assert asked.text.str.len().min() > 0


def test_figures_are_matplotlibs_and_a_notebook_shows_them(results: Results, monkeypatch: pytest.MonkeyPatch):
    import matplotlib as mpl

    backend = mpl.get_backend()
    drawn = 0
    for name in dir(results.plot):
        if name.startswith("_"):
            continue
        if results.plot._drawings[name] is None:
            with pytest.raises(UserError, match=f"plot.{name}: .*nothing to draw"):
                getattr(results.plot, name)()
            continue
        figure = getattr(results.plot, name)()
        assert figure.axes
        drawn += 1
    assert drawn > 5
    assert results.plot.accuracy()._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]
    assert mpl.get_backend() == backend  # a notebook's own stays
    with pytest.raises(AttributeError, match=r"no figure 'acuracy'.*accuracy"):
        _ = results.plot.acuracy
    monkeypatch.setattr("trainers.report.figures.installed", lambda: False)
    with pytest.raises(UserError, match=r"pip install 'w2s-harness\[report\]'"):
        results.plot.accuracy()


HOSTILE = "<script>alert(1)</script>$\\frac{"


@pytest.fixture
def hostile(run_folder: Path, tmp_path: Path) -> Results:
    """The report with a text in place of every name in it that came from outside."""
    data = json.loads((run_folder / "report.json").read_text(encoding="utf-8"))
    data["task"] = data["experiment"] = HOSTILE
    data["notes"].append(HOSTILE)
    for table in ("arms", "arm_means", "gaps"):
        for entry in data[table]:
            entry["method"] = entry["method"] and HOSTILE
    (tmp_path / "report.json").write_text(json.dumps(data), encoding="utf-8")
    return load_report(tmp_path)


def test_what_a_notebook_shows_is_escaped(hostile: Results, results: Results):
    shown = hostile._repr_html_()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in shown
    assert "<script" not in shown
    assert "accuracy" in shown
    assert "<script" not in hostile.compare(results)._repr_html_()
    assert hostile.plot.accuracy().axes  # no formula is read out of it
    assert hostile.plot.pgr()._repr_png_()  # type: ignore[attr-defined]
    assert hostile.arm_means.method.dropna().unique().tolist() == [HOSTILE]


def test_runs_stand_side_by_side(results: Results):
    both = results.compare(results)
    assert len(both.gaps) == 2 * len(results.gaps)
    assert both.plot().axes
    with pytest.raises(UserError, match="two runs"):
        results.compare().plot()


def test_tables_without_entries_have_their_columns(report: dict[str, Any]):
    report["gains"] = []
    empty = tables(Report.read(json.loads(json.dumps(report)), Path("r")))["gains"].frame()
    assert empty.empty
    assert "to_weak.low" in empty
    assert "to_zero_shot" not in empty


def test_read_report_and_load_report_are_one(results: Results, run_folder: Path, monkeypatch: pytest.MonkeyPatch):
    assert results.report == read_report(run_folder)
    assert load_report(run_folder / "report.json").folder == run_folder
    assert results.verdict in repr(results)
    assert results.page.is_file()


def test_progress_in_a_notebook_is_one_line_a_step(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    from trainers.flow.progress import Progress
    from w2s_tasks import notebook

    monkeypatch.setattr(notebook, "inside", lambda: True)
    with Progress().step(1, 9, "train the student") as shown:
        with notebook.bar(total=3, desc="student") as bar:
            bar.update(3)
        shown.done(1.0, False)
    told = capsys.readouterr()
    assert not told.err
    assert told.out.count("\n") == 1
    assert told.out.split("\r")[-1].startswith("\x1b[") or "[1/9] train the student" in told.out.split("\r")[-1]
