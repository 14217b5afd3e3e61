"""What stages cost: USD beside each, and a budget that stops before it is passed."""

from __future__ import annotations

import json
from pathlib import Path

from trainers.store.stages import Stage
from w2s_tasks.errors import UserError

COST_FILE = "cost.json"


def dollars(usd: float | None) -> str:
    """An amount for people: cents, and more digits where it is less than one."""
    if usd is None:
        return "?"
    return f"${usd:,.2f}" if usd >= 0.01 or usd == 0 else f"${usd:.4f}"


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

    def book_stage(self, stage: Stage) -> None:
        """Add what a finished stage cost, once, however many cells of a sweep find it; one just built is booked already."""
        if stage.reused and stage.folder not in self._stages:
            self.book(read_cost(stage))
        self._stages.add(stage.folder)

    def check(self, usd: float | None, what: str, own: float | None = None) -> None:
        """Stop before an amount is spent that passes a limit.

        Args:
            usd: the amount; None where no price is known.
            what: it is for.
            own: what this training may cost by itself (strong.max_cost).

        Raises:
            UserError: it passes one, or its price is not known.
        """
        if own is not None and (usd is None or usd > own):
            raise UserError(
                f"{what} would cost about {dollars(usd)}, more than strong.max_cost {dollars(own)}. Nothing was sent. Raise "
                "it, or use fewer rows (split.limit.transfer)."
            )
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


def read_cost(stage: Stage) -> float:
    """USD that a finished stage cost; 0 for local ones."""
    path = stage.file(COST_FILE)
    return float(json.loads(path.read_text(encoding="utf-8"))["usd"] or 0.0) if path else 0.0
