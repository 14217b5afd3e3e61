"""`w2s plan`: the stages of an experiment with their sizes; loads no weights and needs no network."""

from __future__ import annotations

import os
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from trainers.config import Experiment, is_plain
from w2s_tasks import assets
from w2s_tasks.errors import UserError


@dataclass(frozen=True)
class Planned:
    """One stage to be: what it does and how many rows or documents it passes through a model."""

    title: str
    kind: str
    rows: int | None


def _exact(config: Experiment) -> list[Planned]:
    from pathlib import Path

    from trainers.experiment import Flow

    # A plan asks for no key, so the run folder is never touched.
    flow = Flow(config, Path(os.devnull))
    return [Planned(step.title, step.kind, step.rows()) for step in flow.steps.values()]


def _from_limits(config: Experiment) -> list[Planned]:
    """The same list where the data is not here: sizes from the config's limits, without the stages inside a method."""
    limit, planned = config.split.limit, []
    fixed = [a for a in config.arms if a == "zero_shot" or config.few_shot_k(a)]
    for arm in fixed:
        planned.append(Planned(f"evaluate {arm}", "evaluate", config.evaluate.limit))
    for seed in config.seeds:
        planned.append(Planned(f"split, seed {seed}", "split", None))
        planned.append(Planned(f"train weak, seed {seed}", "fit", limit.weak))
        planned.append(Planned(f"weak labels, seed {seed}", "labels", limit.transfer))
        for arm in config.arms:
            for method in config.methods if arm == "student" else ["xent"]:
                if not is_plain(arm):
                    planned.append(Planned(f"train {arm}, {method}, seed {seed}", "fit", limit.transfer))
                    planned.append(Planned(f"evaluate {arm}, {method}, seed {seed}", "evaluate", config.evaluate.limit))
    return planned


def show_plan(config: Experiment, console: Console) -> None:
    """Print the stages and their row counts."""
    note = None
    with assets.no_downloads():
        try:
            planned = _exact(config)
        except UserError as error:
            if "not here" not in str(error) and "not to be had" not in str(error):
                raise
            planned, note = _from_limits(config), str(error)
    table = Table(title=f"{config.name}: {len(planned)} stages", title_justify="left")
    for column in ("#", "stage", "kind", "rows"):
        table.add_column(column, justify="right" if column in ("#", "rows") else "left")
    for i, step in enumerate(planned, start=1):
        table.add_row(str(i), step.title, step.kind, "?" if step.rows is None else f"{step.rows:,}")
    console.print(table)
    trained = sum(p.rows or 0 for p in planned if p.kind == "fit")
    asked = sum(p.rows or 0 for p in planned if p.kind in ("evaluate", "safety", "labels"))
    console.print(f"Rows trained on, each epoch: {trained:,}; documents answered: {asked:,}. No API is called: no cost.")
    if note:
        console.print(f"Sizes are the config's limits, because the data is not here yet: {note}", soft_wrap=True)
