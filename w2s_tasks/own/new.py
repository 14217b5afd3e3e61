"""`w2s tasks new`: a task out of a table's file, in a folder for people to edit."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from w2s_tasks.errors import UserError
from w2s_tasks.own import guess as guessing
from w2s_tasks.own.tables import read_table, size
from w2s_tasks.own.task import LABEL, Prepared, check, prepare, write


def new(
    path: Path,
    told: guessing.Told,
    *,
    name: str | None,
    out: Path | None,
    test: float | None,
    seed: int,
    shuffle: bool,
    description: str | None,
) -> Iterator[str]:
    """Make the task of a file; the lines to print, of which the last are commands that go on.

    Args:
        path: CSV, TSV, JSONL or parquet.
        told: what its columns are, where the user said it.
        name: the task's; None for the file's.
        out: the folder to write to; None for one of the task's name.
        test: the share to evaluate on; None for a fifth where no column says it.
        seed: of that share.
        shuffle: whether the choices of a row are put in another order.
        description: what stands before the shots.

    Raises:
        UserError: the file can't be read, a guess is not safe, rows are at fault, or a file would be overwritten; nothing is
            written then.
    """
    columns, notes = read_table(path)
    found = guessing.guess(columns, told, str(path))
    named = name or guessing.name_of(path)
    if test is None and found.split is None:
        test = 0.2
        found.notes.append("test: a fifth of the rows, rows with the same prompt on one side (--test SHARE, --split COLUMN)")
    prepared = prepare(
        found.columns,
        None,
        text=found.text,
        choices=found.choices,
        label=found.label,
        name=named,
        split=None if test is not None else found.split,
        test=test,
        seed=seed,
        group=told.group,
        shuffle=shuffle,
        description=description,
        where=str(path),
    )
    folder = out or Path(named)
    _refuse_overwriting(prepared, folder)
    check(prepared)
    write(prepared, folder)
    yield f"{path}: {size(columns):,} rows, {len(columns):,} columns"
    yield from (f"  {note}" for note in (*notes, *found.notes))
    yield from _next(prepared, folder)


def _refuse_overwriting(prepared: Prepared, folder: Path) -> None:
    there = [file for file in (f"{prepared.name}.yaml", *prepared.files.values()) if (folder / file).exists()]
    if there:
        raise UserError(
            f"{folder / there[0]} is there already, and is not overwritten: take it away, or say --name or --out."
        )


def _next(prepared: Prepared, folder: Path) -> Iterator[str]:
    """What was written, and what to do with it."""
    counts = ", ".join(f"{split} {len(part[LABEL]):,}" for split, part in prepared.parts.items())
    yield f"{folder / prepared.name}.yaml: {counts}. Read it: its remarks say what can be changed. Then:"
    own = shlex.quote(str(folder))
    yield f"  w2s validate {prepared.name} --include_path {own}"
    model = "--model w2s-hf --model_args pretrained=pypi:smollm2-135m-instruct"
    yield f"  w2s eval {model} --tasks {prepared.name} --include_path {own}"
    if "train" in prepared.parts:
        place = str(folder.absolute())
        place = place if re.fullmatch(r"[\w./-]+", place) else json.dumps(place)
        settings = [f"task={prepared.name}", f"include_path=[{place}]", "weak.text=null"]
        settings += ["safety=null", f"name={prepared.name}"]
        yield f"  w2s run quickstart {' '.join(f'--set {shlex.quote(setting)}' for setting in settings)}"
