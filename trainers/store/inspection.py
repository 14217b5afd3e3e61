"""What a run folder or an object store holds of an experiment: its stages, are they whole, what does nothing stand on."""

from __future__ import annotations

import functools
import json
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from trainers.store.claims import STALE
from trainers.store.objects import S3, is_url, open_objects
from trainers.store.remote import MANIFEST, Manifest, Stored, read_manifest
from trainers.store.stages import busy, whole
from trainers.store.transfer import receive
from w2s_tasks.errors import UserError

READERS = 16
"""Manifests that are read at once from an object store."""


@dataclass(frozen=True)
class Holding:
    """A stage, or what is left of one."""

    name: str
    size: int
    """Bytes."""
    title: str = ""
    """The step that a report calls it; empty where no report stands on it."""
    seconds: float | None = None
    created: str = ""


class Inventory(ABC):
    """An experiment's stages, here or in a store."""

    place: str

    @abstractmethod
    def reports(self) -> Iterator[bytes]:
        """Every report.json, of the run and of a sweep's cells."""

    @abstractmethod
    def stages(self) -> list[Holding]:
        """All finished stages."""

    @abstractmethod
    def leftovers(self) -> list[Holding]:
        """What is no finished stage's: work and downloads that were cut off, checkpoints, files without a manifest."""

    @abstractmethod
    def at_work(self) -> str | None:
        """A stage that is being built now."""

    @abstractmethod
    def problem(self, stage: str) -> str:
        """What is wrong with a stage; empty where it is whole."""

    @abstractmethod
    def remove(self, names: Iterable[str]) -> None:
        """Remove stages and leftovers, each stage's manifest first.

        Raises:
            UserError: the place is read only.
        """

    @functools.cached_property
    def titles(self) -> dict[str, str]:
        """The step of each stage that a report stands on; empty where there is no report.

        Raises:
            UserError: a report that can't be read; what it stands on is then not known.
        """
        found: dict[str, str] = {}
        for report in self.reports():
            try:
                found |= {str(stage): str(title) for title, stage in json.loads(report)["stages"].items()}
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(
                    f"{self.place}: a report.json there can't be read ({error}); w2s run writes it again."
                ) from error
        return found

    def unused(self) -> list[Holding]:
        """Stages that no report stands on, and leftovers.

        Raises:
            UserError: there is no report yet, or a stage is being built: what a run needs is then not known.
        """
        if not self.titles:
            raise UserError(
                f"{self.place}: no report there, so nothing is known to be of no use. End the run first: w2s run."
            )
        worker = self.at_work()
        if worker:
            raise UserError(f"{self.place}: {worker} is being built now, by a run that will stand on it. Wait for its end.")
        return [stage for stage in self.stages() if not stage.title] + self.leftovers()


def _holding(name: str, size: int, title: str, manifest: Callable[[], Manifest | None]) -> Holding:
    """A stage with what its manifest tells."""
    try:
        told = manifest() or {}
        return Holding(name, size, title, told["seconds"], str(told.get("created", "")))
    except (UserError, KeyError):
        return Holding(name, size, title, None, "not whole")


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _read(manifest: Path) -> Manifest:
    return read_manifest(manifest.read_bytes(), str(manifest))


class Folder(Inventory):
    """Those of a run folder."""

    def __init__(self, folder: Path) -> None:
        self.place, self._folder, self._root = str(folder), folder, folder / "stages"
        if not self._root.is_dir():
            raise UserError(f"{folder}: no stages there. Give a run folder, e.g. runs/quickstart, or a URL.")

    def reports(self) -> Iterator[bytes]:
        """As `Inventory.reports`."""
        for path in (self._folder / "report.json", *sorted(self._folder.glob("cells/*/report.json"))):
            if path.is_file():
                yield path.read_bytes()

    def stages(self) -> list[Holding]:
        """As `Inventory.stages`."""
        found = []
        for folder in (path.parent for path in sorted(self._root.glob(f"[!.]*/{MANIFEST}"))):
            read = functools.partial(_read, folder / MANIFEST)
            found.append(_holding(folder.name, _size(folder), self.titles.get(folder.name, ""), read))
        return found

    def leftovers(self) -> list[Holding]:
        """As `Inventory.leftovers`."""
        folders = [p for p in sorted(self._root.iterdir()) if p.is_dir()]
        return [Holding(p.name, _size(p)) for p in folders if p.name.startswith(".") or not (p / MANIFEST).is_file()]

    def at_work(self) -> str | None:
        """As `Inventory.at_work`."""
        return busy(self._folder)

    def problem(self, stage: str) -> str:
        """As `Inventory.problem`."""
        manifest, altered = whole(self._root / stage)
        return "" if manifest is not None else altered

    def remove(self, names: Iterable[str]) -> None:
        """As `Inventory.remove`."""
        for name in names:
            (self._root / name / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(self._root / name)


class Bucket(Inventory):
    """Those of an object store."""

    def __init__(self, url: str) -> None:
        self.place = url.rstrip("/")
        base, _, experiment = self.place.rpartition("/")
        self._stored = Stored(open_objects(base), experiment)
        self._objects = self._stored.objects
        self._listed: dict[str, dict[str, int]] = {}

    def _sizes(self, what: str) -> dict[str, int]:
        """Bytes by stage below a part of the experiment; listed once."""
        if what not in self._listed:
            sizes: dict[str, int] = {}
            prefix = self._stored.name(what, "")
            for one in self._objects.listed(prefix):
                stage = one.name.removeprefix(prefix).partition("/")[0].removesuffix(".json")
                sizes[stage] = sizes.get(stage, 0) + one.size
            self._listed[what] = sizes
        return self._listed[what]

    def reports(self) -> Iterator[bytes]:
        """As `Inventory.reports`."""
        cells = (one.name for one in self._objects.listed(self._stored.name("cells", "")))
        for name in (self._stored.name("report.json"), *(name for name in cells if name.endswith("/report.json"))):
            found = self._objects.read(name)
            if found is not None:
                yield found.data

    def stages(self) -> list[Holding]:
        """As `Inventory.stages`."""
        titles, sizes, names = self.titles, self._sizes("files"), sorted(self._sizes("stages"))
        if not names:
            raise UserError(
                f"{self.place}: no stages there. Give an experiment's folder, e.g. s3://bucket/prefix/quickstart."
            )

        def one(name: str) -> Holding:
            return _holding(name, sizes.get(name, 0), titles.get(name, ""), lambda: self._stored.manifest(name))

        with ThreadPoolExecutor(READERS) as pool:
            return list(pool.map(one, names))

    def leftovers(self) -> list[Holding]:
        """As `Inventory.leftovers`; what a live claim stands over is being built."""
        there = self._sizes("stages")
        found = [Holding(f"files/{n}", size) for n, size in self._sizes("files").items() if n not in there]
        found += [Holding(f"checkpoints/{n}", size) for n, size in self._sizes("checkpoints").items()]
        return found + [Holding(f"claims/{n}", size) for n, size in self._sizes("claims").items()]

    def at_work(self) -> str | None:
        """As `Inventory.at_work`."""
        for name in self._sizes("claims"):
            held = self._objects.read(self._stored.name("claims", name))
            if held is not None and held.age < STALE:
                return name
        return None

    def problem(self, stage: str) -> str:
        """As `Inventory.problem`."""
        try:
            manifest = self._stored.manifest(stage)
            if manifest is None:
                return "its manifest is gone"
            with tempfile.TemporaryDirectory() as folder:
                receive(self._objects, self._stored.name("files", stage), manifest["files"], Path(folder))
        except UserError as error:
            return str(error).removeprefix(f"{self.place}/files/{stage}: ").partition(". ")[0]
        return ""

    def remove(self, names: Iterable[str]) -> None:
        """As `Inventory.remove`."""
        if not isinstance(self._objects, S3):
            raise UserError(f"{self.place}: read only here; nothing was removed.")
        for name in names:
            what, _, stage = name.rpartition("/")
            for part in [what] if what else ["stages", "files", "checkpoints"]:
                of_stage = (self._stored.name(part, stage), self._stored.name(part, f"{stage}.json"))
                below = [one.name for one in self._objects.listed(f"{of_stage[0]}/")]
                self._objects.delete([*of_stage, *below])


def inventory(place: str) -> Inventory:
    """What there is at a run folder, or at the URL of an experiment in a store.

    Raises:
        UserError: nothing there.
    """
    return Bucket(place) if is_url(place) else Folder(Path(place))
