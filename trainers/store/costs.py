"""What an experiment may cost: estimates from token counts and prices, and a budget that stops before it is passed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from w2s_tasks.errors import UserError
from w2s_tasks.models import prices

if TYPE_CHECKING:
    from trainers.fit.openai_settings import OpenAIStrong
    from trainers.services.chat_rows import Counts

COST_FILE = "cost.json"


@dataclass(frozen=True)
class TrainingEstimate:
    """Tokens and USD of one fine-tuning job, before it is sent; ``usd`` is None where no price is known."""

    rows: int
    tokens: int
    epochs: int
    guessed: bool
    """The service decides the epochs (`auto`); the number is its published rule's."""
    price: float | None
    as_of: str

    @property
    def trained_tokens(self) -> int:
        """What is billed: tokens of all rows times epochs."""
        return self.tokens * self.epochs

    @property
    def usd(self) -> float | None:
        """Estimated cost."""
        return self.cost(self.trained_tokens)

    def cost(self, trained_tokens: int) -> float | None:
        """USD for a number of trained tokens."""
        return None if self.price is None else trained_tokens / 1e6 * self.price

    def line(self) -> str:
        """For the terminal."""
        auto = " (auto: likely, the service decides)" if self.guessed else ""
        money = f"about {dollars(self.usd)} at prices of {self.as_of}" if self.usd is not None else "price unknown"
        return (
            f"{self.rows:,} rows, {self.tokens:,} tokens x {self.epochs} epochs{auto} = {self.trained_tokens:,} trained "
            f"tokens, {money}"
        )


def dollars(usd: float | None) -> str:
    """An amount for people: cents, and more digits where it is less than one."""
    if usd is None:
        return "?"
    return f"${usd:,.2f}" if usd >= 0.01 or usd == 0 else f"${usd:.4f}"


def training_estimate(counts: Counts, settings: OpenAIStrong) -> TrainingEstimate:
    """What training on these rows will cost."""
    from trainers.services.chat_rows import auto_epochs

    table = prices.table()
    guessed = settings.n_epochs == "auto"
    epochs = auto_epochs(counts.rows) if isinstance(settings.n_epochs, str) else settings.n_epochs
    return TrainingEstimate(counts.rows, counts.tokens, epochs, guessed, table.training(settings.model), str(table.as_of))


class Budget:
    """USD of one experiment: what its finished stages cost, and a limit that no new spending may pass."""

    def __init__(self, limit: float | None = None) -> None:
        self.limit, self.spent = limit, 0.0
        self._stages: set[Path] = set()

    @property
    def left(self) -> float | None:
        """What may still be spent; None without a limit."""
        return None if self.limit is None else max(0.0, self.limit - self.spent)

    def book(self, usd: float | None) -> None:
        """Add what was spent."""
        self.spent += usd or 0.0

    def book_stage(self, folder: Path, *, reused: bool) -> None:
        """Add what a finished stage cost, once, however many cells of a sweep find it; one just built is booked already."""
        if reused and folder not in self._stages:
            self.book(read_cost(folder))
        self._stages.add(folder)

    def check(self, usd: float | None, what: str) -> None:
        """Stop before an amount is spent that passes the limit.

        Raises:
            UserError: it does, or its price is not known.
        """
        if self.limit is None:
            return
        if usd is None:
            raise UserError(
                f"{what}: no price is known for this model, so --max-cost can't be kept. Name a price table in $W2S_PRICES "
                "(see w2s_tasks/models/prices.py), or leave --max-cost out."
            )
        if self.spent + usd > self.limit:
            raise UserError(
                f"{what} would cost about {dollars(usd)}; with {dollars(self.spent)} spent on this experiment that is more "
                f"than --max-cost {dollars(self.limit)}. Nothing was sent. Raise --max-cost, or use fewer rows "
                "(split.limit.transfer)."
            )


def write_cost(folder: Path, usd: float | None, tokens: int | None) -> None:
    """Keep a stage's cost, and its trained tokens where it has any, beside its result."""
    (folder / COST_FILE).write_text(json.dumps({"usd": usd, "tokens": tokens}), encoding="utf-8")


def read_cost(folder: Path) -> float:
    """USD that a finished stage cost; 0 for local ones."""
    path = folder / COST_FILE
    return float(json.loads(path.read_text(encoding="utf-8"))["usd"] or 0.0) if path.is_file() else 0.0
