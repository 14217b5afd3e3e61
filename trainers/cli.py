"""The command `w2s`. Heavy imports happen inside the commands, so that `--help` is there at once."""

from __future__ import annotations

import contextlib
import gc
import math
import sys
import time
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from trainers import store_cli
from trainers.quiet import quiet_libraries
from w2s_tasks import __version__, machine
from w2s_tasks import cli as tasks_cli
from w2s_tasks.errors import UserError
from w2s_tasks.sandbox import consent

if TYPE_CHECKING:
    from trainers.commands.run import Terms
    from trainers.config.experiment import Experiment

app = typer.Typer(
    name="w2s",
    help="Weak-to-strong generalisation on lm-evaluation-harness: train, evaluate, compare.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
tasks_cli.mount(app)
app.add_typer(store_cli.app, name="store")

RunsDir = Annotated[Path, typer.Option("--runs-dir", help="Where run folders are kept.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Override a key: --set strong.lr=1e-3 (repeatable).")]
ALONE = 5.0
"""Seconds that a process which is not the main one waits before it tells an error: by then it has met it alone."""
Unsafe = Annotated[
    bool,
    typer.Option(consent.OPTION, help="Run programs that models write, where a task asks for them."),
]
StoreUrl = Annotated[
    str | None,
    typer.Option(
        "--store", help="An object store behind the run folder, for machines that share no disk: s3://bucket/prefix."
    ),
]
Plugins = Annotated[
    list[str] | None,
    typer.Option("--plugin", help="A file or module with methods, arms, trainers or sections of your own (repeatable)."),
]
Config = Annotated[str, typer.Argument(help="An experiment YAML, or the name of one that ships (e.g. quickstart).")]


class IfExists(StrEnum):
    """What to do about a run folder that is there already."""

    resume = "resume"
    delete = "delete"
    fail = "fail"


class Engine(StrEnum):
    """What builds the steps."""

    local = "local"
    ray = "ray"


UseEngine = Annotated[
    Engine, typer.Option("--engine", help="local: one step after the other; ray: at once, on this machine or a cluster.")
]
Address = Annotated[
    str | None,
    typer.Option("--address", help="A Ray cluster for --engine ray: auto, or HOST:PORT; without, one of its own."),
]


def _amount(value: float | None) -> float | None:
    """A sum that can be compared with: NaN passes every range."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is no amount of money.")
    return value


MaxCost = Annotated[
    float | None,
    typer.Option("--max-cost", min=0, callback=_amount, help="USD that services may cost in all; local runs cost nothing."),
]
Shard = Annotated[str | None, typer.Option("--shard", help="Only every n-th cell: i/n, i from 1 to n.")]


def _version(value: bool) -> None:
    if value:
        typer.echo(f"w2s {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="More about what happens.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    tasks_cli.set_up_logging(verbose)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Turn Ctrl-C and SIGTERM into one line and exit code 130 or 143; finished stages and checkpoints are on disk by then."""
    from trainers.store import stopping

    try:
        with stopping.on_signals():
            yield
    except stopping.Terminated:
        typer.echo("terminated: what was finished is kept, a training up to this step; the same command goes on.", err=True)
        raise SystemExit(stopping.EXIT_CODE) from None
    except KeyboardInterrupt:
        typer.echo(
            "interrupted: what was finished is kept, a training up to this step; run the same command again to go on.",
            err=True,
        )
        raise SystemExit(130) from None


def _load_plugins(named: list[str] | None) -> None:
    from trainers.plugin_loader import load_plugins

    load_plugins(named)


def _tell_unused(experiment: Experiment) -> None:
    from trainers.config.unused import unused

    for line in unused(experiment):
        typer.echo(f"note: {line}.", err=True)


@app.command()
def run(
    config: Config,
    runs_dir: RunsDir = Path("runs"),
    assignments: Set = None,
    plugins: Plugins = None,
    if_exists: Annotated[IfExists, typer.Option("--if-exists", help="What to do about finished work.")] = IfExists.resume,
    max_cost: MaxCost = None,
    engine: UseEngine = Engine.local,
    address: Address = None,
    store: StoreUrl = None,
    unsafe: Unsafe = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress lines.")] = False,
) -> None:
    """Run an experiment: weak supervisor, labels, every arm, evaluation, report. Finished stages are not done again.

    \b
    w2s run quickstart
    w2s run my.yaml --runs-dir results --set strong.lr=1e-3 --set seeds=[0,1,2]
    w2s run my.yaml --plugin my_method.py                                  # a method of your own (docs/own_methods.md)
    accelerate launch --num_processes 4 -m trainers.cli run my.yaml        # several GPUs, the same numbers
    w2s run my.yaml --engine ray                                           # steps that can run at once do
    w2s run my.yaml --engine ray --address auto                            # on the cluster that this machine belongs to
    w2s run my.yaml --store s3://my-bucket/w2s                             # any machine goes on where another one ended
    """
    _load_plugins(plugins)
    from trainers.commands.run import carry_out
    from trainers.config.reading import load
    from trainers.report.report import show_report
    from trainers.store import processes

    terms = _terms(runs_dir, max_cost, engine, address, store, unsafe, quiet)
    experiment, _ = load(config, assignments)
    if processes.is_main():
        _tell_unused(experiment)
    with _interruptible():
        opened, report = carry_out(experiment, terms, if_exists.value)
    if report is None:
        return
    show_report(report)
    typer.echo(f"report: {(opened.folder / 'report.json').resolve()}")
    if opened.remote is not None:
        typer.echo(f"also: w2s report {opened.remote.url}")


def _terms(
    runs_dir: Path,
    max_cost: float | None,
    engine: Engine,
    address: str | None,
    store: str | None,
    unsafe: bool,
    quiet: bool,
) -> Terms:
    from trainers.commands.run import Terms

    terms = Terms(
        runs_dir=runs_dir,
        max_cost=max_cost,
        engine=engine.value,
        address=address,
        store=store,
        unsafe=unsafe,
        quiet=quiet,
    )
    terms.check()
    return terms


def _numbers(value: str, option: str) -> list[int]:
    try:
        numbers = [int(part) for part in value.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise typer.BadParameter(f"{option}: whole numbers from 1 with commas between them, e.g. 1,3,5")
    return numbers


@app.command()
def power(
    pilot: Annotated[str | None, typer.Argument(help="A finished run's folder or report.json: what to expect.")] = None,
    weak: Annotated[float | None, typer.Option(min=0.01, max=0.99, help="The supervisor's accuracy.")] = None,
    student: Annotated[float | None, typer.Option(min=0.01, max=0.99, help="The student's.")] = None,
    ceiling: Annotated[float | None, typer.Option(min=0.01, max=0.99, help="The ceiling's.")] = None,
    difference: Annotated[
        float | None,
        typer.Option(min=-0.99, max=0.99, help="What to look for, e.g. 0.03; by default student minus weak."),
    ] = None,
    n: Annotated[str | None, typer.Option("--n", help="Questions: --n 400,872.")] = None,
    seeds: Annotated[str, typer.Option(help="Seeds: --seeds 1,3,5,10.")] = "1,3,5,10",
    discordance: Annotated[
        float | None,
        typer.Option(min=0.001, max=0.5, help="Share of the questions that just one of two models has right."),
    ] = None,
    seed_sd: Annotated[float | None, typer.Option(min=0, max=0.3, help="A model's SD over seeds, e.g. 0.02.")] = None,
    tests: Annotated[int | None, typer.Option(min=1, help="Comparisons that p is corrected for.")] = None,
    margin: Annotated[float | None, typer.Option(min=0.001, max=0.5, help="For tests that nothing changed.")] = None,
) -> None:
    """What an experiment will be able to show: power, smallest difference, chance of a PGR, seeds that are needed.

    \b
    w2s power --weak .77 --student .80 --ceiling .85 --n 872 --seeds 1,3,5,10
    w2s power runs/quickstart --n 600,1052 --margin 0.03       # as a pilot was
    w2s power runs/quickstart --difference 0.02 --tests 24     # a change on one of 24 comparisons
    """
    from trainers.commands.power import fitting, of_report, plans, shown, with_options
    from trainers.report.blocks import show, standard_output
    from w2s_tasks.results.planning import Expected

    notes: tuple[str, ...] = ()
    if pilot is not None:
        found = of_report(pilot)
        expected, rows, notes = found.expected, str(found.n), found.notes
    elif weak is None or student is None or ceiling is None:
        raise typer.BadParameter("--weak, --student and --ceiling, or a pilot's run folder.")
    else:
        expected, rows = fitting(Expected(weak, student, ceiling)), "872"
    given = {"weak": weak, "student": student, "ceiling": ceiling, "difference": difference, "margin": margin}
    expected = with_options(expected, **given, discordance=discordance, seed_sd=seed_sd, tests=tests)
    plan = list(plans(expected, _numbers(n or rows, "--n"), _numbers(seeds, "--seeds")))
    show(shown(expected, plan, notes), standard_output())


@app.command()
def bench(
    config: Config,
    assignments: Set = None,
    plugins: Plugins = None,
    runs_dir: RunsDir = Path("runs"),
    reports: Annotated[
        Path | None,
        typer.Option(
            "--reports",
            help="A folder of finished experiments' reports: those are not run again, and others leave theirs there.",
        ),
    ] = None,
    shard: Shard = None,
    max_cost: MaxCost = None,
    engine: UseEngine = Engine.local,
    address: Address = None,
    store: StoreUrl = None,
    unsafe: Unsafe = False,
    only_report: Annotated[bool, typer.Option("--report", help="Run nothing: report what is finished.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the experiments and stop.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress lines.")] = False,
) -> None:
    """Run tasks x supervisors x methods x seeds, with one report over all tasks: pooled gains, claims, ranks.

    The file is an experiment's with a section `bench` (docs/experiments.md). The same command goes on where it stopped; an
    experiment that fails does not stop the others, and the exit code is 2 then.

    \b
    w2s bench w2s_bench_small --dry-run
    w2s bench w2s_bench_small --reports docs/w2s_bench_small             # only what is not there yet
    w2s bench w2s_bench_small --reports docs/w2s_bench_small --report    # the report of those, in a second
    w2s bench my_bench.yaml --shard 1/3
    """
    _load_plugins(plugins)
    from trainers.commands.bench import open_bench
    from trainers.commands.sweep import of_shard, show_cells
    from trainers.report.bench_page import blocks
    from trainers.report.blocks import show, standard_output

    terms = _terms(runs_dir, max_cost, engine, address, store, unsafe, quiet)
    found = open_bench(config, assignments or [], runs_dir, reports=reports, max_cost=max_cost, store=store)
    cells = [] if only_report else found.left(of_shard(found.sweep.cells, shard))
    if dry_run:
        show_cells(cells or found.sweep.cells)
        return
    with _interruptible():
        outcomes = found.run(cells, terms)
    report, path = found.report()
    show(blocks(report), standard_output())
    typer.echo(f"bench: {path}")
    _say_failed(outcomes, len(cells), "experiments")


def _say_failed(outcomes: Sequence[dict[str, Any]], of: int, what: str) -> None:
    """Name what failed; exit code 2."""
    failed = [outcome for outcome in outcomes if outcome["status"] == "failed"]
    for outcome in failed:
        typer.echo(f"error: {outcome['cell']}: {outcome['error']}", err=True)
    if failed:
        typer.echo(f"error: {len(failed)} of {of} {what} failed; the same command tries them again.", err=True)
        raise typer.Exit(2)


@app.command()
def sweep(
    config: Config,
    grid: Annotated[
        list[str] | None,
        typer.Option("--grid", help="Values of one key: --grid method=xent,logconf (repeatable; all combinations)."),
    ] = None,
    assignments: Set = None,
    plugins: Plugins = None,
    runs_dir: RunsDir = Path("runs"),
    shard: Shard = None,
    max_cost: MaxCost = None,
    engine: UseEngine = Engine.local,
    address: Address = None,
    store: StoreUrl = None,
    unsafe: Unsafe = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the cells and stop.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress lines.")] = False,
) -> None:
    """Run many variants of an experiment. Stages that cells have in common are built once; finished cells are not run again.

    A key is one of the config (strong.model, weak.lr), or method, arm or seed for one entry of a list. A failing cell does
    not stop the others; then the exit code is 2.

    \b
    w2s sweep quickstart --grid method=xent,logconf --grid seed=0,1,2
    w2s sweep my.yaml --grid strong.model=org/small,org/large --grid seed=0,1,2 --shard $SLURM_ARRAY_TASK_ID/8
    w2s sweep my.yaml --grid method=xent,logconf --grid seed=0,1,2,3 --engine ray --address auto
    w2s sweep my.yaml --grid seed=0,1,2,3 --store s3://my-bucket/w2s --shard 1/4      # each machine its own shard
    """
    _load_plugins(plugins)
    from trainers.commands.sweep import lay_out, of_shard, open_sweep, parse_grid, run_sweep, show_cells, show_sweep

    terms = _terms(runs_dir, max_cost, engine, address, store, unsafe, quiet)
    values = parse_grid(grid or [])
    if dry_run:
        show_cells(of_shard(lay_out(config, assignments or [], values)[1], shard))
        return
    with _interruptible():
        opened = open_sweep(config, assignments or [], values, runs_dir, max_cost, store)
        cells = of_shard(opened.cells, shard)
        outcomes = run_sweep(opened, cells, terms)
    if outcomes:
        show_sweep(outcomes)
    typer.echo(f"sweep: {(opened.folder / 'sweep.json').resolve()}")
    _say_failed(outcomes, len(cells), "cells")


@app.command()
def init(name: Annotated[Path, typer.Argument(help="The new folder; the method is called like it.")]) -> None:
    """Begin a method of your own: a folder with a plug-in, its test, an experiment that compares it, and a README.

    \b
    w2s init my_method
    cd my_method && pytest && w2s run experiment.yaml --plugin my_method.py
    """
    from trainers.commands.init import begin

    for path in begin(name):
        typer.echo(path)
    typer.echo(f"next: cd {name} && pytest && w2s run experiment.yaml --plugin {name.name}.py")


@app.command()
def plan(config: Config, assignments: Set = None, plugins: Plugins = None) -> None:
    """Show the stages of an experiment with their sizes; loads no weights and needs no network.

    \b
    w2s plan quickstart --set seeds=[0,1,2]
    """
    _load_plugins(plugins)
    from rich.console import Console

    from trainers.config.reading import load
    from trainers.flow.plan import show_plan

    experiment, _ = load(config, assignments)
    _tell_unused(experiment)
    show_plan(experiment, Console(highlight=False))


@app.command()
def report(
    runs: Annotated[list[str] | None, typer.Argument(help="Run folders, report.json files, or URLs of runs.")] = None,
    html: Annotated[bool, typer.Option(help="Write a single run's page, tables and model cards anew.")] = True,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Form the numbers anew from the run's stages (needs its data).")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write the page that compares several runs to this file.")
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print what report.json holds, as JSON schema.")] = False,
    plugins: Plugins = None,
) -> None:
    """Show one run's report again, or several runs (or the cells of a sweep) side by side.

    \b
    w2s report runs/quickstart                               # and report.html, tables/*.csv, model_cards/*.md beside it
    w2s report runs/quickstart --recompute                   # today's statistics over the same weights and answers
    w2s report runs/a runs/b --out comparison.html           # accuracy and PGR by size of the strong model, or by run
    w2s report s3://my-bucket/w2s/quickstart                 # a run that was made with --store s3://my-bucket/w2s
    w2s report --schema                                      # what stands under each key of report.json
    """
    _load_plugins(plugins)
    if schema:
        import json

        import trainers.report.sections  # noqa: F401 - registers them
        from trainers.report.section import json_schema

        typer.echo(json.dumps(json_schema(), indent=2))
        return
    if not runs:
        raise UserError("name a run folder or a report.json, e.g. w2s report runs/quickstart.")
    from trainers.report.blocks import show, standard_output
    from trainers.report.comparison import render_comparison, table
    from trainers.report.report import here, present, read_report, recomputed, runs_of, show_report

    folders = runs_of([here(place, stages=recompute) for place in runs])
    if recompute:
        quiet_libraries()
        for folder in folders:
            recomputed(folder)
    reports = [read_report(path) for path in folders]
    if len(reports) > 1:
        show([table(reports)], standard_output())
        if out is not None:
            from trainers.store.stages import write_atomic

            write_atomic(out, render_comparison(reports))
            typer.echo(f"comparison: {out.resolve()}")
        return
    if out is not None:
        raise UserError("--out is for the comparison of several runs; one run's page is its report.html.")
    show_report(reports[0])
    file = (folders[0] / "report.json" if folders[0].is_dir() else folders[0]).resolve()
    if html:
        present(reports[0], file.parent)
    typer.echo(f"report: {file}")


@app.command()
def view(
    run: Annotated[str, typer.Argument(help="A finished run's folder, or its URL in an object store.")],
    out: Annotated[Path | None, typer.Option(help="Another file than questions.html in the run's folder.")] = None,
    plugins: Plugins = None,
) -> None:
    """Write a page of every question and every model's answer: filters, search, sorting; one file, no network.

    \b
    w2s view runs/quickstart               # runs/quickstart/questions.html, linked from its report.html
    w2s view s3://my-bucket/w2s/quickstart --out questions.html
    """
    _load_plugins(plugins)
    from trainers.report.report import here, present, read_report, reopened

    quiet_libraries()
    from trainers.report.collected import collect
    from trainers.report.questions import write_questions

    folder = here(run, stages=True)
    folder = folder if folder.is_dir() else folder.parent
    opened = reopened(folder)
    path, count = write_questions(collect(opened), folder, out)
    if out is None:
        try:
            present(read_report(folder), folder)
        except UserError as error:
            typer.echo(f"note: report.html has no link to it: {error}", err=True)
    typer.echo(f"{count} questions: {path}")


def _model_arguments(text: str) -> dict[str, Any]:
    import json

    from lm_eval.utils import simple_parse_args_string

    if text.lstrip().startswith("{"):
        try:
            parsed: dict[str, Any] = json.loads(text)
        except ValueError as error:
            raise UserError(f"--model_args: not JSON ({error}).") from error
        return parsed
    try:
        return dict(simple_parse_args_string(text))
    except ValueError as error:
        raise UserError(f"--model_args {text}: write k=v,k=v or JSON ({error}).") from error


@app.command()
def label(
    out: Annotated[Path, typer.Option(help="The label set to write (parquet).")],
    task: Annotated[str, typer.Option(help="A trainable multiple_choice task.")],
    model_args: Annotated[str, typer.Option("--model_args", help="As lm_eval takes them: pretrained=FOLDER,...")],
    model: Annotated[
        str, typer.Option(help="w2s-classifier, w2s-hf, or any lm_eval model that scores choices.")
    ] = "w2s-classifier",
    limit: Annotated[int | None, typer.Option(min=1, help="The first n rows of the training split.")] = None,
    num_fewshot: Annotated[int, typer.Option("--num_fewshot", min=0, help="Shots.")] = 0,
    include_path: Annotated[list[str] | None, typer.Option("--include_path", help="Folders with tasks of your own.")] = None,
) -> None:
    """Let one model label rows of a task's training split.

    \b
    w2s label --task w2s_sst2 --model_args pretrained=runs/quickstart/stages/fit-.../model --limit 500 --out labels.parquet
    w2s label --task w2s_boolq --model w2s-hf --model_args pretrained=pypi:smollm2-135m-instruct --limit 100 --out l.parquet
    """
    quiet_libraries()
    from trainers.flow.alone import label_rows

    with _interruptible():
        labels, right = label_rows(task, model, _model_arguments(model_args), out, limit, num_fewshot, include_path or [])
    typer.echo(f"{len(labels)} labels, {100 * right:.1f} % as gold: {out}")


@app.command()
def finetune(
    out: Annotated[Path, typer.Option(help="The folder to write; must not exist.")],
    task: Annotated[str, typer.Option(help="A trainable multiple_choice task.")],
    model: Annotated[str, typer.Option(help="A folder, a hub id, or pypi:NAME.")],
    trainer: Annotated[str, typer.Option(help="lora, full, probe, classifier, reward, openai, or a plug-in's.")] = "lora",
    labels: Annotated[Path | None, typer.Option(help="A label set; without it the gold labels.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The first n rows.")] = None,
    assignments: Annotated[list[str] | None, typer.Option("--set", help="A setting: --set lr=1e-3 (repeatable).")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Initialisation and row order.")] = 0,
    include_path: Annotated[list[str] | None, typer.Option("--include_path", help="Folders with tasks of your own.")] = None,
    plugins: Plugins = None,
) -> None:
    """Fine-tune one model on a label set, or on gold labels.

    \b
    w2s finetune --task w2s_sst2 --model pypi:smollm2-135m-instruct --labels labels.parquet --out student
    w2s finetune --task w2s_sst2 --model pypi:all-minilm-l6-v2 --trainer classifier --limit 1000 --set text=sentence --out weak
    """
    _load_plugins(plugins)
    quiet_libraries()
    from trainers.flow.alone import finetune_model

    with _interruptible():
        command = finetune_model(task, model, trainer, labels, out, limit, assignments or [], seed, include_path or [])
    from trainers.store import processes

    if processes.is_main():
        typer.echo(command)


def told(error: Exception) -> str | None:
    """The sentence for a user's mistake or a disk's fault; None for any other error."""
    if isinstance(error, UserError):
        return str(error)
    from trainers.store import disk

    return disk.problem(error)


def _fail(error: str) -> NoReturn:
    """Tell an error and end; one that all processes of a launch meet is told by the main one, whose end ends the others."""
    from trainers.store import processes

    if not processes.is_main():
        time.sleep(ALONE)
    typer.echo(f"error: {error}", err=True)
    sys.exit(2)


def main() -> None:
    """Run `w2s`; a user's mistake is one line on standard error and exit code 2."""
    machine.share()
    try:
        app()
    except Exception as error:
        sentence = told(error)
        if sentence is None:
            raise
        _fail(sentence)
    finally:
        # The interpreter's last collection would look at each of a million objects of torch, lm_eval and pandas: 0.8 s.
        gc.freeze()


if __name__ == "__main__":
    main()
