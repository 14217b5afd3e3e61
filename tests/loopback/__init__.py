"""What the stand-ins of services share: HTTP on loopback, faults on demand, small models loaded without side effects."""

from __future__ import annotations

from .faults import Fault, Faults
from .server import Answer, Logged, Loopback, Request, Routes

__all__ = ["Answer", "Fault", "Faults", "Logged", "Loopback", "Request", "Routes"]
