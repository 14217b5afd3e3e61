"""The stages of one experiment in an object store, where machines that share no disk find them.

    <store>/<experiment>/stages/<kind>-<key>.json                    the manifest, written last: only then is the stage there
                         files/<kind>-<key>/<sha256>/<path>          its files
                         claims/<kind>-<key>                         who builds it
                         checkpoints/<kind>-<key>.json, .../<path>   what a machine goes on from
                         report.json, report.html, cells/, ...       as in a run folder

A run folder stays in front of it, as a cache: what is built there goes up, what is needed there comes down, file by file
with its sha256. Manifests are what others wrote, so no name in them leads out of the stage's folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import secrets
import shutil
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainers.store import claims
from trainers.store.claims import Claim
from trainers.store.objects import S3, Objects, open_objects
from trainers.store.snapshots import Snapshots
from trainers.store.transfer import checked_name, receive, send
from w2s_tasks.errors import UserError

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
POLL = 5.0
"""Seconds between two looks at a stage that another machine builds."""

Manifest = dict[str, Any]


def read_manifest(data: bytes, where: str) -> Manifest:
    """A manifest, with what is read of it checked.

    Raises:
        UserError: it is none.
    """
    try:
        manifest: Manifest = json.loads(data)
        manifest["seconds"] = float(manifest["seconds"])
        if all(isinstance(manifest[key], str) for key in ("kind", "key")) and all(
            map(str.isalnum, manifest["files"].values())
        ):
            return manifest
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise UserError(f"{where}: not a stage's manifest; `w2s store verify` names all that are not whole.")


@dataclass
class Stored:
    """An experiment in a store, for reading."""

    objects: Objects
    experiment: str

    def name(self, *parts: str) -> str:
        """An object's name."""
        return "/".join((self.experiment, *parts))

    @property
    def url(self) -> str:
        """For messages."""
        return f"{self.objects.url}/{self.experiment}"

    def stages(self) -> list[str]:
        """All stages that are there, as ``<kind>-<key>``."""
        prefix = self.name("stages", "")
        names = (one.name.removeprefix(prefix) for one in self.objects.listed(prefix))
        return sorted(name.removesuffix(".json") for name in names if name.endswith(".json"))

    def manifest(self, stage: str) -> Manifest | None:
        """A stage's manifest, where the stage is there."""
        name = self.name("stages", f"{checked_name(stage, self.url)}.json")  # a report's word is not more than a manifest's
        found = self.objects.read(name)
        return None if found is None else read_manifest(found.data, f"{self.objects.url}/{name}")

    def fetch(self, stage: str, manifest: Mapping[str, Any], folder: Path) -> None:
        """Bring a stage's files to a folder that is not there, whole or not at all; another process may do the same."""
        incoming = folder.with_name(f".fetch-{stage}-{secrets.token_hex(4)}")
        try:
            receive(self.objects, self.name("files", stage), manifest["files"], incoming)
            (incoming / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
            if folder.exists():
                shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # another process was first
                incoming.replace(folder)
        finally:
            shutil.rmtree(incoming, ignore_errors=True)

    def pull(self, folder: Path, below: str) -> None:
        """Bring a file that stands beside the stages, or all of a folder, to a run folder; what is the same stays."""
        prefix = self.name("")
        for one in self.objects.listed(self.name(below)):
            target = folder / checked_name(one.name.removeprefix(prefix), self.url)
            if not target.is_file() or hashlib.md5(target.read_bytes(), usedforsecurity=False).hexdigest() != one.tag:
                target.parent.mkdir(parents=True, exist_ok=True)
                temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
                self.objects.download(one.name, temporary)
                temporary.replace(target)

    def fetch_file(self, stage: str, name: str, digest: str, folder: Path) -> None:
        """Bring one file of a stage to a folder."""
        receive(self.objects, self.name("files", stage), {name: digest}, folder)


@dataclass
class Remote(Stored):
    """The same for a run that writes there too."""

    objects: S3
    _there: set[str] = field(default_factory=set)
    """Stages that are known to be there."""
    _listed: bool = False

    def has(self, stage: str) -> bool:
        """Whether a stage was there when all were listed, which is done once: a request for a thousand, not one for each."""
        if not self._listed:
            self._there.update(self.stages())
            self._listed = True
        return stage in self._there

    def publish(self, stage: str, folder: Path) -> None:
        """Send a finished stage, its manifest last, unless it is there."""
        if stage in self._there:
            return
        text = (folder / MANIFEST).read_bytes()
        name = self.name("stages", f"{stage}.json")
        if self.objects.read(name) is None:
            send(self.objects, folder, read_manifest(text, str(folder))["files"], self.name("files", stage))
            self.objects.create(name, text)  # where another machine was first its files stand beside these, and count
        self._there.add(stage)

    def claim(self, stage: str) -> Claim | str:
        """Claim a stage; where another machine builds it, which."""
        return claims.take(self.objects, self.name("claims", stage))

    def snapshots(self, stage: str, folder: Path) -> Snapshots:
        """A stage's checkpoints."""
        return Snapshots(self.objects, self.name(stage), folder)

    def wait(self, stage: str, owner: str) -> None:
        """A while, until a stage of another machine may be there."""
        log.warning("%s is being built by %s; waiting for it", stage, owner)
        time.sleep(POLL)

    def send_report(self, folder: Path, names: Iterable[str], *below: str) -> None:
        """Send what a run folder holds beside its stages; what is there is written over."""
        for name in names:
            path = folder / name
            for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                if file.is_file():
                    self.objects.upload(file, self.name(*below, file.relative_to(folder).as_posix()))


_lock = threading.Lock()
_opened: dict[tuple[str, str], Remote] = {}


def open_remote(url: str | None, experiment: str) -> Remote | None:
    """An experiment's stages in the store of a URL, one object a process; None without a URL.

    Raises:
        UserError: a service that machines can't share, no access, no such bucket.
    """
    if url is None:
        return None
    with _lock:
        if (url, experiment) not in _opened:
            _opened[url, experiment] = Remote(open_objects(url).writable(), experiment)
        return _opened[url, experiment]
