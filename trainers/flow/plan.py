"""`w2s plan`: the stages of an experiment with their sizes; loads no weights and needs no network."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from trainers.config.experiment import Experiment
from trainers.fit.tinker import Tinker
from trainers.fit.trainer import TRAINERS
from trainers.flow.layout import Layout, Tasks
from trainers.flow.plan_costs import Counter
from trainers.flow.tinker_costs import storage_line
from trainers.harness.evaluate import Harness
from trainers.steps.step import Step
from trainers.store.costs import dollars
from w2s_tasks.errors import MissingDataError
from w2s_tasks.models import ends, prices
from w2s_tasks.rows import assets


@dataclass(frozen=True)
class Planned:
    """One stage to be: what it does, how many rows or documents it passes through a model, what it sends to a service."""

    title: str
    kind: str
    rows: int | None
    tokens: int | None = None
    usd: float | None = None


def planned_steps(config: Experiment) -> tuple[list[Planned], str | None]:
    """An experiment's steps with their sizes; and why these are the limits alone, where the data is not here."""
    harness, missing = Harness(config.include_path), None
    with assets.no_downloads():
        try:
            tasks = Tasks.load(config, harness)
        except MissingDataError as error:
            tasks, missing = Tasks.named(config, harness), str(error)
        layout = Layout(config, tasks)
        counter = Counter(layout)
        return [_entry(step, counter) for step in layout.steps.values()], missing


def _entry(step: Step, counter: Counter) -> Planned:
    try:
        tokens, usd = counter.spent(step) or (None, None)
        return Planned(step.title, step.kind, step.rows(), tokens, usd)
    except MissingDataError:
        return Planned(step.title, step.kind, None)


def _cost(config: Experiment, planned: list[Planned]) -> str:
    """One sentence about money."""
    if not TRAINERS[config.strong.trainer].paid:
        return "No API is called: no cost."
    sent = [p for p in planned if p.tokens]
    if not sent:
        return "The cost is known once the data is here."
    trained = sum(p.tokens or 0 for p in sent if p.kind == "fit")
    asked = sum(p.tokens or 0 for p in sent if p.kind != "fit")
    table, known = prices.table(), all(p.usd is not None for p in sent)
    tokens = f"{trained:,} tokens trained, {asked:,} asked"
    if not known:
        return f"{tokens}; no price is known for {config.strong.model}: name a price table in $W2S_PRICES."
    auto = getattr(config.strong, "n_epochs", None) == "auto"
    return (
        f"{tokens}: about {dollars(sum(p.usd or 0.0 for p in sent))} at prices of {table.day(config.strong.model)}"
        f"{'; the service decides the epochs (n_epochs: auto), here its published rule' if auto else ''}. Nothing was sent. "
        f"Jobs and answers that are there already cost nothing.{_storage(config, planned)}"
    )


def _storage(config: Experiment, planned: list[Planned]) -> str:
    """What trained models cost where a service keeps them."""
    if not isinstance(config.strong, Tinker):
        return ""
    return storage_line(config.strong, sum(p.tokens is not None for p in planned if p.kind == "fit"))


def _ends(config: Experiment, today: dt.date) -> list[str]:
    """What the experiment uses that will end, or has ended: a line each."""
    address = getattr(config.strong, "base_url", None) or ""  # a trainer of this machine's has none
    return [end.line(today) for end in ends.ends_at(address, config.strong.model)]


def show_plan(config: Experiment, console: Console, today: dt.date | None = None) -> None:
    """Print the stages with their sizes, what they send to a service with its likely cost, and how long that is there.

    Args:
        config: the experiment.
        console: where to print.
        today: from which the days are counted that a service and its model have left.
    """
    planned, missing = planned_steps(config)
    paid = any(p.tokens for p in planned)
    table = Table(title=f"{config.name}: {len(planned)} stages", title_justify="left")
    for column in ("#", "stage", "kind", "rows", *(("tokens", "USD") if paid else ())):
        table.add_column(column, justify="left" if column in ("stage", "kind") else "right")
    for i, step in enumerate(planned, start=1):
        cells = [str(i), step.title, step.kind, "?" if step.rows is None else f"{step.rows:,}"]
        if paid:
            cells += [f"{step.tokens:,}", dollars(step.usd)] if step.tokens else ["", ""]
        table.add_row(*cells)
    console.print(table)
    trained = sum(p.rows or 0 for p in planned if p.kind == "fit")
    asked = sum(p.rows or 0 for p in planned if p.kind in ("evaluate", "safety", "labels", "embeddings"))
    console.print(
        f"Rows trained on, each epoch: {trained:,}; documents answered: {asked:,}. {_cost(config, planned)}", soft_wrap=True
    )
    for line in _ends(config, today or ends.today()):
        console.print(line, soft_wrap=True)
    if missing:
        console.print(f"Sizes are the config's limits, because the data is not here yet: {missing}", soft_wrap=True)
