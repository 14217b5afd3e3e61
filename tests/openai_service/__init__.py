"""A stand-in of the OpenAI service on loopback: real HTTP for the real SDK, real small models behind it.

    with Service(models={"gpt-4o-mini-2024-07-18": folder}) as service:
        client = openai.OpenAI(base_url=service.base_url, api_key=service.key)

Answers are checked against the SDK's own types before they leave, and a request with a field that the SDK does not know is
refused. `service.faults.add(...)` makes the next matching requests fail in the way asked for; `service.log` holds every
request. A part (`files`, `jobs`, `chat`, ...) is a module with handlers under `@route` and its state in a class that
`service.part(Class)` makes once.
"""

from __future__ import annotations

import importlib
import importlib.util

from loopback import Fault, Faults

from .app import Answer, ApiError, Request, ServedModel, Service, route
from .dialects import Azure, Nebius

for _part in ("files", "jobs", "chat", "batches"):
    if importlib.util.find_spec(f"{__name__}.{_part}"):
        importlib.import_module(f"{__name__}.{_part}")

__all__ = ["Answer", "ApiError", "Azure", "Fault", "Faults", "Nebius", "Request", "ServedModel", "Service", "route"]
