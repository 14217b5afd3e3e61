"""The stand-in as other providers speak the protocol, after their references: ``Service(..., speaks=Nebius())``.

Nebius Token Factory has hyperparameters in the request itself, forgets metadata, and gives a trained model a name when it is
made into one (`POST /v0/models`). Azure has its own paths and key header, looks through files before it takes a job, wants a
`trainingType`, and answers for deployments alone.
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from openai.types.fine_tuning import job_create_params

if TYPE_CHECKING:
    from loopback import Request as Plain

    from .app import Request, Service


class Speech:
    """OpenAI's own; others change what differs."""

    checked = True
    """Answers are of the SDK's types to the letter."""

    def incoming(self, request: Plain) -> Plain:
        """A request in OpenAI's paths and headers."""
        return request

    def asked(self, service: Service, request: Request) -> tuple[dict[str, Any], dict[str, Any]]:
        """What a request for a job asks for, and its hyperparameters, those of the service's choice included."""
        body = request.json(job_create_params.JobCreateParams)
        given = (body.get("method") or {}).get("supervised", {}).get("hyperparameters", {})
        return body, {k: given.get(k, "auto") for k in ("batch_size", "learning_rate_multiplier", "n_epochs")}

    def job(self, data: dict[str, Any]) -> dict[str, Any]:
        """A job as it is told."""
        return data

    def look(self, file: dict[str, Any], *, again: bool) -> dict[str, Any]:
        """A file as it is told, just uploaded or `again`."""
        return file


USUAL = {
    "batch_size": 8,
    "learning_rate": 1e-5,
    "n_epochs": 3,
    "warmup_ratio": 0,
    "weight_decay": 0,
    "packing": True,
    "max_grad_norm": 1,
    "context_length": 8192,
    "lora": False,
    "lora_r": 8,
    "lora_alpha": 8,
    "lora_dropout": 0,
}
"""Nebius' hyperparameters and what they are where they are left out."""
ASKED = {"model", "training_file", "validation_file", "hyperparameters", "integrations", "seed", "suffix", "tags"}
TOLD = (
    *("id", "created_at", "model", "status", "training_file", "error", "finished_at", "hyperparameters", "integrations"),
    *(
        "object",
        "organization_id",
        "result_files",
        "seed",
        "suffix",
        "trained_tokens",
        "validation_file",
        "estimated_finish",
    ),
)


class Nebius(Speech):
    """After the OpenAPI document of 2026-05, whose jobs name no trained model."""

    checked = False

    def asked(self, service: Service, request: Request) -> tuple[dict[str, Any], dict[str, Any]]:
        from .app import ApiError

        body = json.loads(request.body)
        given = body.get("hyperparameters") or {}
        for name in [*(set(body) - ASKED), *(set(given) - set(USUAL))]:
            raise ApiError(422, f"Extra inputs are not permitted: {name}", "extra_forbidden", param=name)
        return body, {**USUAL, **given}

    def job(self, data: dict[str, Any]) -> dict[str, Any]:
        return {k: data.get(k) for k in TOLD} | {"organization_id": "", "trained_steps": None, "total_steps": None}


@dataclass
class Azure(Speech):
    """After its schema of 2024-10-21, and at the newer address (``/openai/v1``); ``deployments``: name -> model."""

    deployments: dict[str, str] = field(default_factory=dict)
    looks: int = 2
    """How often a new file is told to be pending."""
    checked = False

    def incoming(self, request: Plain) -> Plain:
        from .app import ApiError

        query, path, body = dict(request.query), request.path.removeprefix("/openai"), request.body
        newer = path.startswith("/v1/")
        if path == request.path or (query.pop("api-version", None) is None) != newer:
            raise ApiError(404, "Resource not found", "404")
        if newer:
            return dataclasses.replace(request, path=path)
        headers = {**request.headers, "authorization": f"Bearer {request.headers.get('api-key')}", "dated": "yes"}
        if asked := re.fullmatch(r"/deployments/([^/]+)(/.+)", path):
            if asked[1] not in self.deployments:
                raise ApiError(404, "The API deployment for this resource does not exist.", "DeploymentNotFound")
            path, body = asked[2], json.dumps({**json.loads(body), "model": self.deployments[asked[1]]}).encode()
        return dataclasses.replace(request, path=f"/v1{path}", query=query, headers=headers, body=body)

    def asked(self, service: Service, request: Request) -> tuple[dict[str, Any], dict[str, Any]]:
        from .app import ApiError
        from .files import Files

        body = json.loads(request.body)
        if not body.pop("trainingType", None):
            raise ApiError(400, "The specified base model does not support fine-tuning.", "invalidPayload")
        if "dated" in request.headers:
            for name in body.keys() & {"method", "metadata"}:
                raise ApiError(400, f"Unrecognized request argument supplied: {name}", "invalidPayload")
            body["method"] = {"type": "supervised", "supervised": {"hyperparameters": body.pop("hyperparameters", {})}}
        if service.part(Files).get(body["training_file"]).data["status"] != "processed":
            raise ApiError(400, "The specified file is not ready to be used.", "invalidPayload")
        return super().asked(service, dataclasses.replace(request, body=json.dumps(body).encode()))

    def job(self, data: dict[str, Any]) -> dict[str, Any]:
        status = "pending" if data["status"] in ("validating_files", "queued") else data["status"]
        return data | {"status": status, "organization_id": None, "result_files": data["result_files"] or None}

    def look(self, file: dict[str, Any], *, again: bool) -> dict[str, Any]:
        if not again:
            file["status"], file["looks"] = "pending", self.looks
        elif file.get("looks"):
            file["looks"] -= 1
            file["status"] = "pending" if file["looks"] else "processed"
        return {k: v for k, v in file.items() if k != "looks"}
