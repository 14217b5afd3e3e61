"""What tokens cost: a dated table for chat and fine-tuning, which the user's own YAML file overrides.

Prices are US dollars for a million tokens. Price pages disagree and change, so a cost from here is an estimate; token counts
are always shown beside it. ``$W2S_PRICES`` (or ``prices=FILE`` in the model arguments) names a file in this form, whose
entries replace the built-in ones::

    as_of: 2026-11-01
    models:
      gpt-4o-mini: {input: 0.15, cached_input: 0.075, output: 0.60, training: 3.00, tuned: {input: 0.30, output: 1.20}}
      meta-llama/Llama-3.3-70B-Instruct-Turbo: {input: 0.88, output: 0.88}
"""

from __future__ import annotations

import datetime as dt
import os
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from w2s_tasks.errors import UserError, nearest
from w2s_tasks.user_text import read_yaml

ENVIRONMENT = "W2S_PRICES"
BATCH_FACTOR = 0.5
"""What the Batch API costs of the ordinary price."""

USD = Annotated[float, Field(ge=0, allow_inf_nan=False)]
SNAPSHOT = re.compile(r"-\d{4}-\d{2}-\d{2}$")
TUNED = re.compile(r"^ft:([^:]+):|^(.+?)[.:]ft-")  # OpenAI's and Azure's names of fine-tuned models


def base_of(model: str) -> str:
    """The base model's name without the date of a snapshot, of a name of any kind; a base model's own stays."""
    match = TUNED.match(model)
    return SNAPSHOT.sub("", (match[1] or match[2]) if match else model)


class TokenPrice(BaseModel):
    """USD for a million tokens read, read from the service's cache, and written."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: USD
    output: USD
    cached_input: USD | None = None

    def cost(self, prompt: int, completion: int, *, cached: int = 0, batch: bool = False) -> float:
        """USD for one or many answers.

        Args:
            prompt: tokens read, cached ones included.
            completion: tokens written.
            cached: how many of `prompt` came from the service's cache.
            batch: whether the Batch API answered.
        """
        cached_price = self.input if self.cached_input is None else self.cached_input
        total = (prompt - cached) * self.input + cached * cached_price + completion * self.output
        return total / 1e6 * (BATCH_FACTOR if batch else 1.0)


class ModelPrice(TokenPrice):
    """A model's token prices; `training` for a million trained tokens and `tuned` for what it is once fine-tuned."""

    training: USD | None = None
    tuned: TokenPrice | None = None
    storage: USD | None = None
    """A month of one GB of trained weights."""
    as_of: dt.date | None = None
    """The day this price was looked up, where it is not the table's."""


class PriceTable(BaseModel):
    """Prices by model name, and the day they were looked up."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    as_of: dt.date
    models: dict[str, ModelPrice]

    def _entry(self, name: str) -> ModelPrice | None:
        return self.models.get(name) or self.models.get(SNAPSHOT.sub("", name))

    def _base(self, model: str) -> ModelPrice | None:
        match = TUNED.match(model)
        return self._entry(match[1] or match[2]) if match else None

    def tokens(self, model: str) -> TokenPrice | None:
        """What a model's answers cost; None where the table doesn't know it.

        Args:
            model: a name, a dated snapshot of one, or a fine-tuned model's name (``ft:BASE:...``).
        """
        if entry := self._entry(model):
            return entry
        base = self._base(model)
        return base.tuned if base else None

    def training(self, model: str) -> float | None:
        """USD for a million trained tokens, None where the table doesn't know; a tuned model costs what its base does."""
        entry = self._entry(model) or self._base(model)
        return entry.training if entry else None

    def trained(self, model: str, trained: int, read: int) -> float | None:
        """USD for a training by forward and backward passes, None where the table doesn't know its price.

        Args:
            model: the base.
            trained: tokens in passes with gradients.
            read: tokens in passes without.
        """
        training, tokens = self.training(model), self.tokens(model)
        if training is None or tokens is None:
            return None
        return trained / 1e6 * training + tokens.cost(read, 0)

    def storage(self, model: str) -> float | None:
        """USD for a month of one GB of weights trained from a model; None where the table doesn't know."""
        entry = self._entry(model)
        return entry.storage if entry else None

    def day(self, model: str) -> dt.date:
        """The day that a model's price was looked up."""
        entry = self._entry(model)
        return (entry and entry.as_of) or self.as_of


def _price(
    read: float,
    cached: float | None,
    written: float,
    training: float | None = None,
    tuned: tuple[float, float | None, float] | None = None,
) -> ModelPrice:
    after = TokenPrice(input=tuned[0], cached_input=tuned[1], output=tuned[2]) if tuned else None
    return ModelPrice(input=read, cached_input=cached, output=written, training=training, tuned=after)


TINKER_SEEN, TINKER_STORAGE = dt.date(2026, 10, 7), 0.10
"""When Tinker's price page was seen, and what it said of storage."""


def _tinker_price(read: float, cached: float, written: float, training: float) -> ModelPrice:
    """A base at Tinker; a model that was trained there costs what its base does."""
    entry = _price(read, cached, written, training)
    return entry.model_copy(update={"storage": TINKER_STORAGE, "as_of": TINKER_SEEN})


# Chat prices as quoted in the second quarter of 2026 from OpenAI's price page; fine-tuning prices unchanged since 2025.
BUILT_IN = PriceTable(
    as_of=dt.date(2026, 6, 21),
    models={
        "gpt-4o": _price(2.50, 1.25, 10.00, 25.00, (3.75, 1.875, 15.00)),
        "gpt-4o-mini": _price(0.15, 0.075, 0.60, 3.00, (0.30, 0.15, 1.20)),
        "gpt-4.1": _price(2.00, 0.50, 8.00, 25.00, (3.00, 0.75, 12.00)),
        "gpt-4.1-mini": _price(0.40, 0.10, 1.60, 5.00, (0.80, 0.20, 3.20)),
        "gpt-4.1-nano": _price(0.10, 0.025, 0.40, 1.50, (0.20, 0.05, 0.80)),
        "gpt-3.5-turbo": _price(0.50, None, 1.50, 8.00, (3.00, None, 6.00)),
        "davinci-002": _price(2.00, None, 2.00, 6.00, (12.00, None, 12.00)),
        "babbage-002": _price(0.40, None, 0.40, 0.40, (1.60, None, 1.60)),
        "gpt-5": _price(1.25, 0.125, 10.00),
        "gpt-5.1": _price(1.25, 0.125, 10.00),
        "gpt-5-mini": _price(0.25, 0.025, 2.00),
        "gpt-5-nano": _price(0.05, 0.005, 0.40),
        "gpt-5.4": _price(2.50, None, 15.00),
        "o3": _price(2.00, 0.50, 8.00),
        "o3-mini": _price(1.10, 0.55, 4.40),
        "o4-mini": _price(1.10, 0.275, 4.40),
        "Qwen/Qwen3-8B": _tinker_price(0.195, 0.039, 0.60, 0.44),
    },
)


def _read(path: Path) -> PriceTable:
    try:
        data: Any = read_yaml(path)
    except UserError as error:
        raise UserError(f"the price table {error}") from error
    try:
        return PriceTable.model_validate(data)
    except ValidationError as error:
        # An unknown key explains why another is missing.
        first = min(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        known = PriceTable.model_fields if len(first["loc"]) == 1 else ModelPrice.model_fields
        hint = nearest(str(first["loc"][-1]), known) if first["type"] == "extra_forbidden" else ""
        raise UserError(f"the price table {path}: {where}: {first['msg']}.{hint} See w2s_tasks/models/prices.py.") from error


def table(path: str | Path | None = None) -> PriceTable:
    """The built-in prices with the user's over them.

    Args:
        path: the user's file; by default the one that ``$W2S_PRICES`` names, where it is set.

    Raises:
        UserError: a file that can't be read or does not have the form.
    """
    chosen = path or os.environ.get(ENVIRONMENT)
    if not chosen:
        return BUILT_IN
    own = _read(Path(chosen).expanduser())
    return PriceTable(as_of=own.as_of, models=BUILT_IN.models | own.models)
