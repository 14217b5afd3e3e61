"""`w2s plan`: the stages of an experiment with their sizes; loads no weights and needs no network."""

from __future__ import annotations

import os
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from trainers.config.experiment import Experiment, is_plain
from trainers.labels.arms import kind_of
from trainers.store.costs import dollars
from w2s_tasks.errors import UserError
from w2s_tasks.models import prices
from w2s_tasks.rows import assets


@dataclass(frozen=True)
class Planned:
    """One stage to be: what it does, how many rows or documents it passes through a model, what it sends to a service."""

    title: str
    kind: str
    rows: int | None
    tokens: int | None = None
    usd: float | None = None


def _exact(config: Experiment) -> list[Planned]:
    from pathlib import Path

    from trainers.flow.experiment import Flow
    from trainers.flow.plan_costs import Counter

    # A plan asks for no key, so the run folder is never touched.
    flow = Flow(config, Path(os.devnull))
    counter = Counter(flow)
    planned = []
    for step in flow.steps.values():
        tokens, usd = counter.spent(step) or (None, None)
        planned.append(Planned(step.title, step.kind, step.rows(), tokens, usd))
    return planned


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
            for method in config.methods if kind_of(arm).teacher == "method" else ["xent"]:
                if not is_plain(arm):
                    planned.append(Planned(f"train {arm}, {method}, seed {seed}", "fit", limit.transfer))
                    for at in ("", *(f", at {share}" for share in config.evaluate.checkpoints)):
                        title = f"evaluate {arm}, {method}, seed {seed}{at}"
                        planned.append(Planned(title, "evaluate", config.evaluate.limit))
    return planned


def _cost(config: Experiment, planned: list[Planned]) -> str:
    """One sentence about money."""
    if config.strong.trainer != "openai":
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
    auto = config.strong.n_epochs == "auto"
    return (
        f"{tokens}: about {dollars(sum(p.usd or 0.0 for p in sent))} at prices of {table.as_of}"
        f"{'; the service decides the epochs (n_epochs: auto), here its published rule' if auto else ''}. Nothing was sent. "
        "Jobs and answers that are there already cost nothing."
    )


def show_plan(config: Experiment, console: Console) -> None:
    """Print the stages with their sizes, and what they send to a service with its likely cost."""
    note = None
    with assets.no_downloads():
        try:
            planned = _exact(config)
        except UserError as error:
            if "not here" not in str(error) and "not to be had" not in str(error):
                raise
            planned, note = _from_limits(config), str(error)
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
    asked = sum(p.rows or 0 for p in planned if p.kind in ("evaluate", "safety", "labels"))
    console.print(
        f"Rows trained on, each epoch: {trained:,}; documents answered: {asked:,}. {_cost(config, planned)}", soft_wrap=True
    )
    if note:
        console.print(f"Sizes are the config's limits, because the data is not here yet: {note}", soft_wrap=True)
