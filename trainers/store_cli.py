"""`w2s store`: what stages there are of a run, whether they are whole, and what no report stands on."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Look at the stages of a run, in its folder or in an object store: what is there, is it whole, what is of no use.",
)
Run = Annotated[str, typer.Argument(help="A run folder, or its URL in an object store: s3://bucket/prefix/EXPERIMENT.")]


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f}"


@app.command("ls")
def list_stages(run: Run) -> None:
    """List the stages: the step that a report calls each, MB, seconds that it took, and when it was made.

    \b
    w2s store ls runs/quickstart
    w2s store ls s3://my-bucket/w2s/quickstart
    """
    from rich.markup import escape
    from rich.table import Table

    from trainers.report.blocks import standard_output
    from trainers.store.inspection import inventory

    held = inventory(run)
    stages, left = held.stages(), held.leftovers()
    table = Table(title=f"{len(stages)} stages", title_justify="left")
    for column in ("stage", "step", "MB", "seconds", "made"):
        table.add_column(column, justify="right" if column in ("MB", "seconds") else "left", overflow="fold")
    for one in stages:
        seconds = "" if one.seconds is None else f"{one.seconds:,.1f}"
        table.add_row(escape(one.name), escape(one.title) or "no report's", _megabytes(one.size), seconds, one.created)
    standard_output().print(table)
    typer.echo(
        f"{_megabytes(sum(s.size for s in stages))} MB in stages, {_megabytes(sum(s.size for s in left))} MB left over"
    )


@app.command()
def verify(
    run: Run,
    drop: Annotated[bool, typer.Option("--drop", help="Remove what is not whole; w2s run then builds it anew.")] = False,
) -> None:
    """Read every file and hold it against its sha256; exit code 1 where a stage is not whole.

    \b
    w2s store verify runs/quickstart
    w2s store verify s3://my-bucket/w2s/quickstart --drop
    """
    from trainers.store.inspection import inventory

    held = inventory(run)
    names = [stage.name for stage in held.stages()]
    damaged = []
    for name in names:
        problem = held.problem(name)
        if problem:
            damaged.append(name)
            typer.echo(f"{name}: {problem}")
    if drop:
        held.remove(damaged)
    typer.echo(
        f"{len(names) - len(damaged)} of {len(names)} stages are whole"
        + ("; the others are removed" if damaged and drop else "")
    )
    if damaged:
        raise typer.Exit(1)


@app.command()
def gc(
    run: Run,
    delete: Annotated[bool, typer.Option("--delete", help="Remove it; without, it is only shown.")] = False,
) -> None:
    """Show what no report stands on: stages of other settings, work that was cut off, checkpoints; --delete removes it.

    \b
    w2s store gc runs/quickstart
    w2s store gc s3://my-bucket/w2s/quickstart --delete
    """
    from trainers.store.inspection import inventory

    held = inventory(run)
    unused = held.unused()
    for one in unused:
        typer.echo(f"{one.name}  {_megabytes(one.size)} MB")
    if delete:
        held.remove([one.name for one in unused])
    total = _megabytes(sum(one.size for one in unused))
    end = "removed" if delete else "to remove with --delete"
    typer.echo(f"{len(unused)} of no use, {total} MB {end}" if unused else "nothing to remove: reports stand on all of it")
