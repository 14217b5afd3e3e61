"""Who speaks OpenAI's fine-tuning protocol, and in which dialect: one row a provider.

All take files by `/files` and jobs by `/fine_tuning/jobs`, so that one client serves them. They differ in what a request may
hold, in what a job gives back, and in how the trained model comes to answer. Sources, as of November 2026: Nebius' OpenAPI
document (2026-05), Azure's (Azure/azure-rest-api-specs, authoring 2024-10-21) and its samples for `trainingType`. Together,
Fireworks and Mistral are no rows: their fine-tuning has other paths, other schemas and SDKs of its own.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

from w2s_tasks.errors import nearest
from w2s_tasks.models.service import AZURE_DOMAINS, OPENAI_DOMAIN, Access


@dataclass(frozen=True)
class Trained:
    """What a job left at a provider: the job, its base model, and the provider's names of the result, where it has any."""

    job: str
    base: str
    model: str | None = None
    checkpoint: str | None = None

    @property
    def short(self) -> str:
        """A name for what is made of it."""
        return f"w2s-{self.job.rpartition('-')[2][-12:]}"


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """How one provider speaks the protocol."""

    service: str
    domains: tuple[str, ...] = ()
    """Its addresses are of these domains, or below them."""
    hyperparameters: frozenset[str] | None = frozenset({"n_epochs", "batch_size", "learning_rate_multiplier"})
    """Those it knows; None where that is not known here."""
    at_top: bool = False
    """Hyperparameters stand in the request itself, not under ``method.supervised``."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Hyperparameters that are sent unless the user says otherwise."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """More fields of the request, unless the user says otherwise."""
    epochs: int | None = None
    """Passes over the rows where none are asked for; None for OpenAI's rule by the number of rows."""
    metadata: bool = True
    """Jobs may carry metadata, and are listed by it."""
    deploy: Callable[[Trained, Access], str] | None = None
    """The command that makes a trained model answer; None where it answers by its own name at once."""

    def check(self, hyperparameters: Mapping[str, Any]) -> None:
        """Refuse what the provider does not know.

        Raises:
            ValueError: names it.
        """
        for name in hyperparameters:
            if self.hyperparameters is not None and name not in self.hyperparameters:
                known = ", ".join(sorted(self.hyperparameters))
                hint = nearest(name, self.hyperparameters)
                raise ValueError(f"{self.service} has no hyperparameter '{name}'.{hint} Known: {known}")

    def request(self, hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
        """The part of the request for a job that holds its hyperparameters; what is left out is the provider's choice."""
        values = {"hyperparameters": dict(hyperparameters)} if hyperparameters else {}
        return values if self.at_top else {"method": {"type": "supervised", "supervised": values}}


def _deploy_azure(trained: Trained, access: Access) -> str:
    resource = (urlsplit(access.base_url).hostname or "").partition(".")[0]
    command = ["az", "cognitiveservices", "account", "deployment", "create", "--resource-group", "GROUP", "--name", resource]
    command += ["--deployment-name", trained.short, "--model-name", trained.model or "MODEL", "--model-version", "1"]
    return shlex.join([*command, "--model-format", "OpenAI", "--sku-name", "Standard", "--sku-capacity", "1"])


def _deploy_nebius(trained: Trained, access: Access) -> str:
    source = f"{trained.job}:{trained.checkpoint or 'CHECKPOINT'}"
    body = json.dumps({"name": trained.short, "base_model": trained.base, "source": source})
    header = f'-H "Authorization: Bearer ${access.api_key_env}" -H "Content-Type: application/json"'
    return f"curl {shlex.quote(access.base_url.removesuffix('/v1') + '/v0/models')} {header} -d {shlex.quote(body)}"


NEBIUS = frozenset(
    {"n_epochs", "batch_size", "learning_rate", "warmup_ratio", "weight_decay", "packing", "max_grad_norm", "context_length"}
    | {"lora", "lora_r", "lora_alpha", "lora_dropout"}
)
DIALECTS: dict[str, Dialect] = {
    "openai": Dialect(service="OpenAI", domains=(OPENAI_DOMAIN,)),
    "nebius": Dialect(
        service="Nebius Token Factory",
        domains=("nebius.com",),
        hyperparameters=NEBIUS,
        at_top=True,
        defaults={"lora": True},
        epochs=3,
        metadata=False,
        deploy=_deploy_nebius,
    ),
    # Without trainingType Azure refuses some models with "The specified base model does not support fine-tuning".
    "azure": Dialect(
        service="Azure OpenAI", domains=AZURE_DOMAINS, extra={"trainingType": "Standard"}, deploy=_deploy_azure
    ),
}
AZURE_DATED = replace(DIALECTS["azure"], at_top=True, metadata=False)
"""Azure's API of a dated version (2024-10-21), whose schema has neither ``method`` nor metadata."""
UNKNOWN = Dialect(service="this service", hyperparameters=None)
"""Of an address that is none of the rows': OpenAI's own, and what it does not keep is found out."""


def dialect_of(access: Access, named: str | None = None) -> Dialect:
    """The dialect of an address, decided by its host; or the one that is named, for a gateway in front of the provider."""
    found = DIALECTS[named] if named else next((d for d in DIALECTS.values() if access.is_below(*d.domains)), UNKNOWN)
    return AZURE_DATED if found is DIALECTS["azure"] and access.api_version else found
