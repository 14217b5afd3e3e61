"""Whether the hub can be reached. Where it can't, its client would try every single file again for half a minute.

Machines without a way out are common (compute nodes, laptops on a train), and what they need is in folders and the hub's
cache. So a command that may ask the hub knocks once, while it imports, and goes offline where nobody answers.
"""

from __future__ import annotations

import functools
import logging
import os
import socket
import sys
import threading
import urllib.parse
import urllib.request

log = logging.getLogger(__name__)

ENDPOINT = "https://huggingface.co"
SETTINGS = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
"""A user who set one of these has decided: nobody knocks then."""
PATIENCE = 3.0
"""Seconds that the hub may take to accept a connection."""
READ_AT_IMPORT = ("huggingface_hub.constants", "datasets.config")
"""Modules that keep the setting of the moment in which they were imported."""


def endpoint() -> str:
    """The address that the hub's client asks: the hub's own, or a mirror's."""
    return os.environ.get("HF_ENDPOINT") or ENDPOINT


def problem() -> str | None:
    """Why the hub can't be reached; None where it accepts a connection, or where a proxy stands in between."""
    address = urllib.parse.urlsplit(endpoint())
    host = address.hostname or ""
    proxies = urllib.request.getproxies()
    if ({address.scheme, "all"} & proxies.keys()) and not urllib.request.proxy_bypass(host):
        return None
    try:
        socket.create_connection((host, address.port or (80 if address.scheme == "http" else 443)), timeout=PATIENCE).close()
    except OSError as error:
        return str(error)
    return None


class _Knock(threading.Thread):
    """Asks in the background; daemonic, so that a command that ends early does not wait for it."""

    def __init__(self) -> None:
        super().__init__(name="hub", daemon=True)
        self.problem: str | None = None

    def run(self) -> None:
        if not any(name in os.environ for name in SETTINGS):
            self.problem = problem()


@functools.cache
def knock() -> _Knock:
    """Begin to find out; further calls give the same answer."""
    knocking = _Knock()
    knocking.start()
    return knocking


def settle() -> None:
    """Go offline where the hub can't be reached, as HF_HUB_OFFLINE=1 would; a user's own setting is left alone."""
    knocking = knock()
    knocking.join()
    if knocking.problem is None:
        return
    log.info(
        "%s can't be reached (%s): only its cache is used. HF_HUB_OFFLINE=0 asks it all the same.",
        endpoint(),
        knocking.problem,
    )
    os.environ["HF_HUB_OFFLINE"] = "1"
    for name in READ_AT_IMPORT:
        module = sys.modules.get(name)
        if module is not None:
            module.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]
