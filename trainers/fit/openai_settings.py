"""Settings of a strong model that a service fine-tunes (`strong.trainer: openai`)."""

from __future__ import annotations

import re
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, ValidationInfo, field_validator

from trainers.section import Section, no_secrets


class OpenAIStrong(Section):
    """A strong model that is fine-tuned by OpenAI's service, or by a provider of the same API."""

    trainer: Literal["openai"] = "openai"
    """openai: supervised fine-tuning through the API; the service learns the hard label's text."""
    model: str
    """The service's name of the base model, e.g. gpt-4o-mini-2024-07-18."""
    base_url: str = "https://api.openai.com/v1"
    """The service's address; another for a provider of the same API."""
    api_key_env: str = "OPENAI_API_KEY"
    """The NAME of the environment variable that holds the key; never the key."""
    n_epochs: int | Literal["auto"] = "auto"
    """Passes over the labels; auto is the service's choice."""
    batch_size: int | Literal["auto"] = "auto"
    """Rows a step; auto is the service's choice."""
    learning_rate_multiplier: float | Literal["auto"] = "auto"
    """Factor of the service's own learning rate; auto is its choice."""
    suffix: str | None = Field(default=None, min_length=1, max_length=64)
    """A word in the fine-tuned model's name."""
    system_prompt: str | None = None
    """A system message before every prompt, in training and in evaluation; a task's description comes after it."""
    target: Literal["plain", "quoted"] = "plain"
    """What the model learns to reply: the choice's text, or (as the seed study had it) the text in double quotes."""
    holdout: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of the labels held back as the service's validation file, for the curve; at most 200 rows."""
    poll_seconds: float = Field(default=30.0, gt=0)
    """Seconds between looks at a running job."""
    max_hours: float = Field(default=72.0, gt=0)
    """Hours to wait for a job; it goes on at the service, and the same command waits on."""
    max_cost: float | None = Field(default=None, ge=0)
    """USD that one job may be estimated to cost; `w2s run --max-cost` limits the whole experiment."""
    replace: list[str] = Field(default=[])
    """Ids of failed or cancelled jobs in whose place a new one is submitted."""
    model_args: dict[str, Any] = Field(default={})
    """More arguments for w2s-chat in evaluation, e.g. batch or num_concurrent."""

    @property
    def chat_template(self) -> bool:
        """Prompts of this API are messages."""
        return True

    @property
    def objective(self) -> str:
        """The service's loss: cross-entropy of the reply's tokens."""
        return "language_model"

    def recipe(self) -> dict[str, Any]:
        """The settings that the trained model depends on; how it is waited and paid for is none of them."""
        return self.model_dump(exclude={"suffix", "poll_seconds", "max_hours", "max_cost", "replace"})

    @field_validator("n_epochs", "batch_size", "learning_rate_multiplier", mode="before")
    @classmethod
    def _number_or_auto(cls, value: Any, info: ValidationInfo) -> Any:
        whole, most = (
            info.field_name != "learning_rate_multiplier",
            {"n_epochs": 50, "batch_size": 256}.get(info.field_name or "", 1e3),
        )
        number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        if value != "auto" and not (number and 0 < value <= most):
            raise ValueError(f"write auto or a {'whole ' if whole else ''}number above 0, at most {most:g}")
        return value

    @field_validator("model_args")
    @classmethod
    def _no_secrets(cls, value: dict[str, Any]) -> dict[str, Any]:
        taken = [k for k in ("model", "base_url", "api_key_env") if k in value]
        if taken:
            raise ValueError(f"'{taken[0]}' is a key of strong itself")
        return no_secrets(value)

    @field_validator("api_key_env")
    @classmethod
    def _a_name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Z][A-Z0-9_]{0,63}", value):
            raise ValueError("write the NAME of an environment variable, e.g. OPENAI_API_KEY; never the key itself")
        return value

    @field_validator("base_url")
    @classmethod
    def _an_address(cls, value: str) -> str:
        url = urlsplit(value)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError("write an address like https://api.openai.com/v1")
        if url.username or url.password or url.query:
            raise ValueError("an address without user, password or query; the key goes into the environment")
        return value.rstrip("/")
