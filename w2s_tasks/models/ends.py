"""When services and base models end: a dated table that `w2s plan`, `w2s doctor` and the trainers read.

Providers announce such days on their own pages, which change; each row says where it was read and when. A service that is
asked for a model may tell its last day itself (`trainers.services.service.check_model`); that is told too.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Literal

from w2s_tasks.models.prices import base_of
from w2s_tasks.models.service import OPENAI_DOMAIN, Access


@dataclass(frozen=True)
class End:
    """What ends at a service, and from which day it is gone."""

    service: str
    """For the reader."""
    domain: str
    """Addresses of this domain, and below it, are the service's."""
    what: str
    day: dt.date
    source: Literal["the service's own page", "copies of its page", "the press"]
    as_of: dt.date
    models: tuple[str, ...] = ()
    """The base models that end, without the date of a snapshot; empty where the service itself ends something."""

    def line(self, today: dt.date) -> str:
        """One line: what ends, in how many days, and who says so."""
        left = (self.day - today).days
        when = f"{left} {'day' if left == 1 else 'days'} left, until {self.day}" if left > 0 else f"ended on {self.day}"
        return f"{self.service}, {self.what}: {when} ({self.source}, as of {self.as_of})"


def _openai(what: str, day: str, *models: str, source: Literal["copies of its page", "the press"], as_of: str) -> End:
    dates = dt.date.fromisoformat(day), source, dt.date.fromisoformat(as_of)
    return End("OpenAI", OPENAI_DOMAIN, what, *dates, models)


_TUNED = "and its fine-tuned models"
ENDS = (
    _openai(
        "new fine-tuning jobs of organisations that never had one",
        "2026-05-07",
        source="copies of its page",
        as_of="2026-11-01",
    ),
    _openai(
        "new fine-tuning jobs of organisations that asked no fine-tuned model for 60 days",
        "2026-07-02",
        source="the press",
        as_of="2026-07-31",
    ),
    _openai(f"gpt-3.5-turbo {_TUNED}", "2026-10-23", "gpt-3.5-turbo", source="copies of its page", as_of="2026-04-23"),
    _openai(f"gpt-4.1-nano {_TUNED}", "2026-10-23", "gpt-4.1-nano", source="the press", as_of="2026-05-31"),
    _openai("new fine-tuning jobs of all others", "2027-01-06", source="copies of its page", as_of="2026-11-01"),
    *(
        _openai(f"{model} {_TUNED}", "2027-01-14", model, source="copies of its page", as_of="2026-11-01")
        for model in ("gpt-4o", "gpt-4o-mini", "gpt-4.1", "gpt-4.1-mini")
    ),
)
"""By day."""


def today() -> dt.date:
    """The day, in UTC."""
    return dt.datetime.now(dt.UTC).date()


def ends_at(base_url: str, model: str | None = None) -> list[End]:
    """What the table knows to end at an address, by day.

    Args:
        base_url: the service's address.
        model: a base model, a snapshot or a fine-tuned model, whose end is wanted too.
    """
    access, base = Access(base_url), base_of(model) if model else None
    return [end for end in ENDS if access.is_below(end.domain) and (not end.models or base in end.models)]
