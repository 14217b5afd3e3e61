"""The suite from Python: what the commands `w2s run`, `sweep`, `plan`, `eval` and `report` do, as functions.

    from trainers import run

    results = run("quickstart", overrides={"seeds": [0, 1, 2]})     # the same stages as `w2s run quickstart --set ...`
    results.gaps                                                    # a pandas frame; results.columns("gaps") explains it
    results.plot.accuracy().savefig("accuracy.png")

An experiment is `trainers.Experiment`, a mapping of the same keys, a YAML file, or the name of one that ships. A call that
was interrupted, or whose kernel died, goes on where it was when it is made again: finished stages are found in the run
folder. What a user can mend raises `w2s_tasks.errors.UserError`.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2s_tasks import machine

if TYPE_CHECKING:
    import pandas as pd

    from trainers.commands.cells import Swept
    from trainers.commands.evaluation import Measured
    from trainers.commands.run import Engine, IfExists, Terms
    from trainers.config.experiment import Experiment
    from trainers.config.reading import Given
    from trainers.report.bench import BenchReport
    from trainers.report.results import Results
    from w2s_tasks.models.ref import ModelRef
    from w2s_tasks.own.task import RowsTask

Overrides = Mapping[str, Any]
"""Settings by dotted key, as ``--set`` has them: {"strong.lr": 1e-3, "seeds": [0, 1]}."""
Place = str | os.PathLike[str]


def load_experiment(experiment: Given, overrides: Overrides | None = None, *, name: str | None = None) -> Experiment:
    """Read and check an experiment.

    >>> load_experiment("quickstart", {"seeds": [0, 1]}).seeds
    [0, 1]

    Args:
        experiment: an `Experiment`, a mapping of its keys, a YAML file, or the name of one that ships. Folders in the first
            two are relative to the working folder.
        overrides: settings by dotted key.
        name: of the run folder; by default the experiment's own, then the file's.

    Raises:
        UserError: an unknown or missing key, a value that does not fit; for a file with its line.
    """
    _begin()
    from trainers.config.reading import as_assignments, read

    own = {} if name is None else {"name": name}
    return read(experiment, as_assignments({**(overrides or {}), **own}))


def run(
    experiment: Given,
    *,
    overrides: Overrides | None = None,
    name: str | None = None,
    runs_dir: Place = "runs",
    if_exists: IfExists = "resume",
    max_cost: float | None = None,
    engine: Engine = "local",
    address: str | None = None,
    store: str | None = None,
    confirm_run_unsafe_code: bool = False,
    quiet: bool = False,
) -> Results:
    """Run an experiment: weak supervisor, labels, every arm, evaluation, report. Finished stages are not done again.

    Ctrl-C, or a notebook's stop button, waits for the step of a training and its checkpoint; twice, it does not. The same
    call goes on.

    Args:
        experiment: an `Experiment`, a mapping of its keys, a YAML file, or the name of one that ships.
        overrides: settings by dotted key.
        name: of the run folder; by default the experiment's own, then the file's.
        runs_dir: where run folders are kept.
        if_exists: resume, delete or fail: what to do about a run folder that is there.
        max_cost: USD that services may cost in all; local runs cost nothing.
        engine: local, or ray.
        address: a Ray cluster: auto, or HOST:PORT.
        store: an object store behind the run folder, s3://bucket/prefix.
        confirm_run_unsafe_code: run programs that models write, where a task asks for them.
        quiet: no progress lines.

    Raises:
        UserError: with what to do; what was finished stays.
        KeyboardInterrupt: Ctrl-C or SIGTERM; what was finished stays.
    """
    found = _named(experiment, overrides, name)
    from trainers.commands.run import carry_out
    from trainers.report.results import Results
    from trainers.store import processes
    from w2s_tasks.errors import UserError

    if processes.count() > 1:
        raise UserError(
            "several processes of one launch share an experiment through the command: accelerate launch w2s run."
        )
    _tell_unused(found)
    where = {"engine": engine, "address": address, "store": store}
    terms = _terms(runs_dir, confirm_run_unsafe_code, max_cost=max_cost, quiet=quiet, **where)
    opened, report = carry_out(found, terms, if_exists)
    assert report is not None  # noqa: S101 - this is the only process
    return Results(report, opened.folder)


def sweep(
    experiment: Given,
    grid: Mapping[str, Sequence[Any]],
    *,
    overrides: Overrides | None = None,
    name: str | None = None,
    runs_dir: Place = "runs",
    shard: str | None = None,
    max_cost: float | None = None,
    engine: Engine = "local",
    address: str | None = None,
    store: str | None = None,
    confirm_run_unsafe_code: bool = False,
    quiet: bool = False,
) -> Swept:
    """Run many variants of an experiment, ``sweep("quickstart", {"method": ["xent", "logconf"], "seed": [0, 1, 2]})``.

    Stages that cells have in common are built once; finished cells are not run again; one that fails does not stop the
    others, and is in `Swept.cells` with its reason.

    Args:
        experiment: as for `run`.
        grid: values by dotted key, or method, arm or seed for one entry of a list; every combination is a cell.
        overrides: settings by dotted key, for all cells.
        name: of the run folder.
        runs_dir: where run folders are kept.
        shard: only every n-th cell, i/n with i from 1 to n.
        max_cost: USD that services may cost in all cells.
        engine: local, or ray.
        address: a Ray cluster: auto, or HOST:PORT.
        store: an object store behind the run folder, s3://bucket/prefix.
        confirm_run_unsafe_code: run programs that models write, where a task asks for them.
        quiet: no progress lines.

    Raises:
        UserError: a variant that does not fit; nothing was run then.
        KeyboardInterrupt: Ctrl-C or SIGTERM; what was finished stays.
    """
    found = _named(experiment, overrides, name)
    from trainers.commands.cells import Swept
    from trainers.commands.sweep import check_grid, of_shard, open_sweep, run_sweep

    check_grid(grid)
    values = {key: list(own) for key, own in grid.items()}
    where = {"engine": engine, "address": address, "store": store}
    terms = _terms(runs_dir, confirm_run_unsafe_code, max_cost=max_cost, quiet=quiet, **where)
    terms.check()
    opened = open_sweep(found, [], values, terms.runs_dir, max_cost, store)
    outcomes = run_sweep(opened, of_shard(opened.cells, shard), terms)
    return Swept(outcomes, opened.folder)


def bench(
    name: Place,
    *,
    overrides: Overrides | None = None,
    reports: Place | None = None,
    runs_dir: Place = "runs",
    shard: str | None = None,
    max_cost: float | None = None,
    engine: Engine = "local",
    address: str | None = None,
    store: str | None = None,
    confirm_run_unsafe_code: bool = False,
    only_report: bool = False,
    quiet: bool = False,
) -> BenchReport:
    """Run a bench, tasks x supervisors x methods x seeds, as far as it is not there; what all that is finished shows.

    One experiment that fails does not stop the others, and is among the report's `missing`.

    Args:
        name: a file, or a name that ships.
        overrides: settings by dotted key, for all experiments.
        reports: a folder of finished experiments' reports, which are not run again and to which others are added.
        runs_dir: where run folders are kept.
        shard: only every n-th experiment, i/n with i from 1 to n.
        max_cost: USD that services may cost in all.
        engine: local, or ray.
        address: a Ray cluster: auto, or HOST:PORT.
        store: an object store behind the run folder, s3://bucket/prefix.
        confirm_run_unsafe_code: run programs that models write, where a task asks for them.
        only_report: run nothing: report what is finished.
        quiet: no progress lines.

    Raises:
        UserError: an experiment that does not fit; nothing was run then.
        KeyboardInterrupt: Ctrl-C or SIGTERM; what was finished stays.
    """
    _begin()
    from trainers.commands.bench import open_bench
    from trainers.commands.sweep import of_shard
    from trainers.config.reading import as_assignments

    where = {"engine": engine, "address": address, "store": store}
    terms = _terms(runs_dir, confirm_run_unsafe_code, max_cost=max_cost, quiet=quiet, **where)
    terms.check()
    kept, assignments = None if reports is None else Path(reports), as_assignments(overrides)
    found = open_bench(os.fspath(name), assignments, terms.runs_dir, reports=kept, max_cost=max_cost, store=store)
    if not only_report:
        found.run(found.left(of_shard(found.sweep.cells, shard)), terms)
    return found.report()[0]


def plan(experiment: Given, *, overrides: Overrides | None = None) -> pd.DataFrame:
    """The stages that an experiment would build, a row each; loads no weights and needs no network.

    >>> plan("quickstart", overrides={"methods": ["xent"]}).kind.tolist().count("fit")  # weak, student, ceiling, random
    4

    Args:
        experiment: as for `run`.
        overrides: settings by dotted key.

    Returns:
        Columns ``title``, ``kind``, ``rows`` (rows or documents that pass through a model), ``tokens`` (sent to a service)
        and ``usd`` (their likely price); ``attrs["limits"]`` says why sizes are the config's limits alone, where the data is
        not here.

    Raises:
        UserError: as for `run`.
    """
    found = load_experiment(experiment, overrides)
    import dataclasses

    from trainers.flow.plan import Planned, planned_steps
    from trainers.quiet import quieted
    from trainers.report.frames import Table

    with quieted():
        steps, missing = planned_steps(found)
    columns = dict.fromkeys((field.name for field in dataclasses.fields(Planned)), "")
    frame = Table("A stage to be.", [dataclasses.asdict(step) for step in steps], columns).frame()
    frame.attrs["limits"] = missing
    return frame


def evaluate(
    model: str | ModelRef,
    tasks: str | RowsTask | Sequence[str | RowsTask],
    *,
    model_args: str | Mapping[str, Any] | None = None,
    num_fewshot: int | None = None,
    limit: int | None = None,
    apply_chat_template: bool = False,
    system_instruction: str | None = None,
    include_path: Sequence[str] = (),
    output_path: Place | None = None,
    max_cost: float | None = None,
    confirm_run_unsafe_code: bool = False,
) -> Measured:
    """Evaluate one model on tasks through lm_eval, ``evaluate("w2s-hf", "w2s_sst2", model_args={"pretrained": "gpt2"})``.

    Args:
        model: a model of lm_eval's or of this suite's by name, or one of a run (`Results.model`).
        tasks: names of tasks and groups, and tasks of your own rows (`task_from_rows`).
        model_args: as lm_eval takes them, a mapping or k=v,k=v.
        num_fewshot: solved questions in each prompt; None for each task's own number.
        limit: the first n documents of each task.
        apply_chat_template: whether prompts are turns of a chat.
        system_instruction: the system prompt.
        include_path: folders with tasks of your own.
        output_path: the folder for lm_eval's files; without it nothing is kept.
        max_cost: USD that a service may cost.
        confirm_run_unsafe_code: run programs that models write, where a task asks for them.

    Raises:
        UserError: an unknown model, argument or task.
    """
    _begin()
    from trainers.commands.evaluation import measure
    from trainers.quiet import quieted
    from w2s_tasks.sandbox import consent

    with quieted(), consent.during(confirm_run_unsafe_code):
        return measure(
            model,
            list(tasks) if isinstance(tasks, list | tuple) else [tasks],  # type: ignore[list-item]
            model_args=model_args,
            num_fewshot=num_fewshot,
            limit=limit,
            chat_template=apply_chat_template,
            system_prompt=system_instruction,
            include_path=list(include_path),
            out=None if output_path is None else Path(output_path),
            max_cost=max_cost,
        )


def load_report(place: Place) -> Results:
    """A finished run's report: ``load_report("runs/quickstart").gaps``.

    Args:
        place: a run folder, a report.json, or the URL of a run in an object store.

    Raises:
        UserError: no report there, one of another version, or those of a sweep.
    """
    _begin()
    from trainers.report import results

    return results.load_report(os.fspath(place))


def _begin() -> None:
    """What the command does before it loads anything large, and the plug-ins that are installed."""
    if "torch" not in sys.modules:
        machine.share()
    from trainers.plugin_loader import load_plugins

    load_plugins(())


def _terms(runs_dir: Place, unsafe: bool, **more: Any) -> Terms:
    from trainers.commands.run import Terms

    return Terms(runs_dir=Path(runs_dir), unsafe=unsafe, **more)


def _named(experiment: Given, overrides: Overrides | None, name: str | None) -> Experiment:
    from w2s_tasks.errors import UserError

    found = load_experiment(experiment, overrides, name=name)
    if not found.name:
        raise UserError("the run folder has no name: Experiment(name=...), or name=... in the call.")
    return found


def _tell_unused(experiment: Experiment) -> None:
    from trainers.config.unused import unused

    for line in unused(experiment):
        warnings.warn(line, stacklevel=3)
