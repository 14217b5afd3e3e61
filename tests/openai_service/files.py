"""Files: upload, list, retrieve, content, delete."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass, field
from typing import Any

from openai.types import FileDeleted, FileObject

from .app import Answer, ApiError, Request, Service, route

PURPOSES = ("fine-tune", "batch", "assistants", "vision", "user_data", "evals")


@dataclass
class Stored:
    """One file."""

    data: dict[str, Any]
    content: bytes
    content_type: str = "application/octet-stream"


@dataclass
class Files:
    """All files, oldest first."""

    stored: dict[str, Stored] = field(default_factory=dict)

    def add(self, service: Service, name: str, purpose: str, content: bytes) -> Stored:
        """Store a file and return it."""
        data = {
            "id": service.new_id("file"),
            "object": "file",
            "bytes": len(content),
            "created_at": int(time.time()),
            "filename": name,
            "purpose": purpose,
            "status": "processed",
            "status_details": None,
            "expires_at": None,
        }
        stored = Stored(data, content)
        self.stored[data["id"]] = stored
        return stored

    def get(self, name: str) -> Stored:
        """One file by id."""
        if name not in self.stored:
            raise ApiError(404, f"No such File object: {name}", "not_found", param="id")
        return self.stored[name]


def _multipart(request: Request) -> dict[str, tuple[str | None, bytes]]:
    """The parts of a form, byte by byte: name -> (file name, content)."""
    boundary = re.search(r"boundary=\"?([^\";]+)", request.headers.get("content-type", ""))
    if not boundary:
        raise ApiError(400, "Request must be multipart/form-data.")
    parts = {}
    for part in request.body.split(b"--" + boundary[1].encode())[1:-1]:
        head, _, content = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        name = re.search(rb'[; ]name="([^"]*)"', head)
        file = re.search(rb'filename="([^"]*)"', head)
        if name:
            parts[name[1].decode()] = (file[1].decode() if file else None, content.removesuffix(b"\r\n"))
    return parts


@route("POST", r"/v1/files")
def create_file(service: Service, request: Request) -> Answer:
    """Upload."""
    parts = _multipart(request)
    for name in parts:
        if name not in ("file", "purpose") and not name.startswith("expires_after"):
            raise ApiError(400, f"Unknown parameter: '{name}'.", "unknown_parameter", param=name)
    purpose = parts.get("purpose", (None, b""))[1].decode()
    if purpose not in PURPOSES or "file" not in parts:
        raise ApiError(400, f"'{purpose}' is not one of {list(PURPOSES)} - 'purpose'", "invalid_value", param="purpose")
    name, content = parts["file"]
    if purpose in ("fine-tune", "batch"):
        _check_jsonl(content, purpose)
    with service.lock:
        return _answer(service, service.part(Files).add(service, name or "upload", purpose, content), again=False)


def _answer(service: Service, stored: Stored, *, again: bool = True) -> Answer:
    return Answer.of(FileObject, service.speech.look(stored.data, again=again), check=service.speech.checked)


def _check_jsonl(content: bytes, purpose: str) -> None:
    for number, line in enumerate(content.decode("utf-8", "replace").rstrip("\n").split("\n"), start=1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            message = f"Invalid file format for {purpose}. Line {number} is not a JSON object."
            raise ApiError(400, message, "invalid_file_format", param="file")


@route("GET", r"/v1/files")
def list_files(service: Service, request: Request) -> Answer:
    """Newest first, by purpose."""
    purpose = request.one("purpose")
    items = [s.data for s in service.part(Files).stored.values() if purpose in (None, s.data["purpose"])]
    newest_first = items[:: 1 if request.one("order") == "asc" else -1]
    return Answer.page(FileObject, newest_first, request, check=service.speech.checked)


@route("GET", r"/v1/files/([^/]+)")
def retrieve_file(service: Service, request: Request, name: str) -> Answer:
    """One file's data."""
    return _answer(service, service.part(Files).get(name))


@route("GET", r"/v1/files/([^/]+)/content")
def file_content(service: Service, request: Request, name: str) -> Answer:
    """One file's content."""
    stored = service.part(Files).get(name)
    return Answer(stored.content, content_type=stored.content_type)


@route("DELETE", r"/v1/files/([^/]+)")
def delete_file(service: Service, request: Request, name: str) -> Answer:
    """Delete one file."""
    files = service.part(Files)
    with service.lock:
        del files.stored[files.get(name).data["id"]]
    return Answer.of(FileDeleted, {"id": name, "object": "file", "deleted": True})
