"""What a fine-tuning job will cost, from its tokens and the price table, before anything is sent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trainers.services.chat_rows import Counts, auto_epochs
from trainers.store.costs import dollars
from w2s_tasks.models import prices


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


def training_estimate(
    counts: Counts, model: str, n_epochs: int | Literal["auto"], usual: int | None = None
) -> TrainingEstimate:
    """What training on these rows will cost.

    Args:
        counts: of the rows.
        model: the base model.
        n_epochs: passes over the rows.
        usual: what the service makes of `auto`; None for OpenAI's rule.
    """
    table = prices.table()
    guessed = n_epochs == "auto"
    epochs = (usual or auto_epochs(counts.rows)) if n_epochs == "auto" else n_epochs
    return TrainingEstimate(counts.rows, counts.tokens, epochs, guessed, table.training(model), str(table.as_of))
