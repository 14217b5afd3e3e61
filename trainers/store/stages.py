"""The stage store: finished work is found again by the hash of its recipe, never by its name.

A stage is a folder ``stages/<kind>-<key>``. It is written to a work folder; its manifest, with the hash of every file, is
written last, and the folder is then renamed. A killed build leaves only a work folder, whose checkpoints the next build
goes on from. Files are checked against the manifest when a stage is found; an altered stage is built anew. With an object
store behind it (`trainers.store.remote`) a folder is its cache: what is built goes up, and comes down where it is read.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import hashlib
import json
import logging
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from trainers.store import processes
from trainers.store.remote import MANIFEST, Remote
from w2s_tasks import machine
from w2s_tasks.errors import UserError
from w2s_tasks.paths import check_folder
from w2s_tasks.rows.assets import sha256_file

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
LIBRARIES = ("lm_eval", "transformers", "torch", "peft", "datasets", "accelerate", "numpy")


def recipe_key(recipe: Mapping[str, Any]) -> str:
    """The key of a recipe: 16 hex digits of the sha256 of its canonical JSON."""
    text = json.dumps(recipe, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@functools.cache
def _versions() -> dict[str, str]:
    return dict.fromkeys(LIBRARIES, "missing") | machine.versions(LIBRARIES)


@functools.cache
def _git_commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _locked(file: IO[str], *, wait: bool) -> bool:
    """Lock an open file until it is closed; False where another process holds it, or where locks don't work."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (ImportError, OSError):
        return False
    return True


def write_atomic(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old one or the new one, whole.

    What a killed writer of the same file left behind is removed.
    """
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(OSError), leftover.open(encoding="utf-8") as f:
            if _locked(f, wait=False):
                leftover.unlink()
    # A name of its own: two processes may write the same file, e.g. the report of one run folder.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as f:
            _locked(f, wait=True)  # says that its writer lives
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        with contextlib.suppress(FileNotFoundError):  # another writer took it for a leftover in the moment without a lock
            temporary.replace(path)
            return
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    write_atomic(path, text)


def busy(root: Path) -> str | None:
    """The stage of a run folder that a process is building now; None where nobody is at work."""
    for path in sorted((root / "stages").glob(".lock-*")):
        try:
            FileLock(path).acquire(timeout=0).lock.release()
        except Timeout:
            return path.name.removeprefix(".lock-")
    return None


def whole(folder: Path) -> tuple[dict[str, Any] | None, str]:
    """A finished stage's manifest where every file is as it says; else None and what is wrong."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        altered = [n for n, digest in manifest["files"].items() if sha256_file(folder / n) != digest]
        float(manifest["seconds"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return None, str(error)
    return (None, altered[0]) if altered else (manifest, "")


def _manifest(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return found


@dataclass(frozen=True)
class Stage:
    """A finished stage, here or in an object store, from where it comes when it is read."""

    folder: Path
    """Where it is, or will be."""
    manifest: Mapping[str, Any]
    reused: bool
    """Whether it was there already."""
    remote: Remote | None = field(default=None, compare=False)
    """Where it is as well; None for the folder alone."""

    @property
    def kind(self) -> str:
        """What the step was."""
        return str(self.manifest["kind"])

    @property
    def key(self) -> str:
        """The hash of its recipe."""
        return str(self.manifest["key"])

    @property
    def seconds(self) -> float:
        """How long it took when it was made."""
        return float(self.manifest["seconds"])

    @property
    def path(self) -> Path:
        """Its folder, with all files.

        Raises:
            UserError: a file that the store does not have as it should be.
        """
        if self.remote is not None and not (self.folder / MANIFEST).is_file():
            self.remote.fetch(self.folder.name, self.manifest, self.folder)
        return self.folder

    def file(self, name: str) -> Path | None:
        """One of its files, without the others; None where it has none of that name."""
        if name not in self.manifest["files"]:
            return None
        if self.remote is None or (self.folder / MANIFEST).is_file():
            return self.folder / name
        part = self.folder.with_name(f".some-{self.folder.name}")
        if not (part / name).is_file():
            self.remote.fetch_file(self.folder.name, name, self.manifest["files"][name], part)
        return part / name


@dataclass(frozen=True)
class _Order:
    """A stage that is asked for, as `Store.build` is."""

    kind: str
    key: str
    recipe: Mapping[str, Any]
    builder: Callable[[Path], None]
    about: Mapping[str, Any]


class Store:
    """The stages of a run folder."""

    def __init__(self, root: Path, *, remember: bool = False, remote: Remote | None = None) -> None:
        """Open or make the store.

        Args:
            root: the run folder.
            remember: check a stage's files once in this process, not each time it is found; for sweeps.
            remote: the object store behind it.
        """
        self.root, self.remote = root / "stages", remote
        self._checked: set[str] | None = set() if remember else None
        check_folder(root, "--runs-dir")
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"the run folder {root} can't be written: {error.strerror}. Choose another with --runs-dir."
            ) from error

    def folder_of(self, kind: str, key: str) -> Path:
        """Where a finished stage is, or would be."""
        return self.root / f"{kind}-{key}"

    def work_folder(self, kind: str, key: str) -> Path:
        """Where a stage is being built; its checkpoints outlive a kill."""
        return self.root / f".work-{kind}-{key}"

    def find(self, kind: str, key: str) -> Stage | None:
        """The finished stage, if it is there and every file is as its manifest says; one that is only here goes up."""
        folder = self.folder_of(kind, key)
        manifest = self._here(folder)
        if manifest is None and self.remote is not None:
            manifest = self.remote.manifest(folder.name)
        return None if manifest is None else Stage(folder, manifest, reused=True, remote=self.remote)

    def has(self, kind: str, key: str) -> bool:
        """Whether the stage is here, or was in the object store when that was listed; for many, which are not asked for."""
        folder = self.folder_of(kind, key)
        return self._here(folder) is not None or (self.remote is not None and self.remote.has(folder.name))

    def _here(self, folder: Path) -> dict[str, Any] | None:
        """The manifest of a stage whose folder is here and whole; it goes up where the object store lacks it."""
        if not (folder / MANIFEST).is_file():
            return None
        known = self._checked is not None and folder.name in self._checked
        manifest, altered = (_manifest(folder), "") if known else whole(folder)
        if manifest is None:
            log.warning("%s: %s does not match its manifest; the stage is built anew", folder.name, altered)
            return None
        if self._checked is not None:
            self._checked.add(folder.name)
        if self.remote is not None:
            self.remote.publish(folder.name, folder)
        return manifest

    def build(
        self,
        kind: str,
        recipe: Mapping[str, Any],
        builder: Callable[[Path], None],
        about: Mapping[str, Any] | None = None,
    ) -> Stage:
        """Return the stage of this recipe, building it where it is not there whole.

        Args:
            kind: a word for the folder's name.
            recipe: all that the result depends on.
            builder: fills an empty folder (which may hold checkpoints of a killed build).
            about: what the manifest says too, and no key depends on.
        """
        order = _Order(kind, recipe_key(recipe), recipe, builder, about or {})
        if processes.count() > 1:
            return self._build_together(order)
        return self.find(kind, order.key) or self._build_locked(order)

    def _build_locked(self, order: _Order) -> Stage:
        kind, key = order.kind, order.key
        lock = FileLock(self.root / f".lock-{kind}-{key}")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.warning("%s-%s is being built by another process; waiting for it", kind, key)
            lock.acquire()
        try:
            with self._claimed(kind, key) as found:
                processes.agree(found is None)
                return found or self._build(order)
        finally:
            lock.release()

    @contextlib.contextmanager
    def _claimed(self, kind: str, key: str) -> Iterator[Stage | None]:
        """Hold the stage's claim in the object store; gives the stage where it is there by now."""
        stage = self.folder_of(kind, key).name
        while (found := self.find(kind, key)) is None and self.remote is not None:
            claim = self.remote.claim(stage)
            if not isinstance(claim, str):
                with claim:
                    yield self.find(kind, key)  # finished in the moment before
                return
            self.remote.wait(stage, claim)
        yield found

    def _build_together(self, order: _Order) -> Stage:
        """The same in several processes: the main one builds the stage, the others take part in a folder of their own."""
        stage = self.find(order.kind, order.key) if processes.is_main() else None
        if not processes.agree(stage is not None):
            if processes.is_main():
                stage = self._build_locked(order)
            else:
                self._take_part(order)
        if stage is not None:
            stage.path  # noqa: B018 - the others read it here
        processes.wait()
        folder = self.folder_of(order.kind, order.key)
        return stage or Stage(folder, _manifest(folder), reused=True)

    def _take_part(self, order: _Order) -> None:
        # Another run may finish the stage while this one waits for its lock; then nothing is built here either.
        if not processes.agree(False):
            return
        processes.wait()
        with tempfile.TemporaryDirectory(dir=self.root, prefix=f".part{processes.index()}-") as folder:
            shared = self.work_folder(order.kind, order.key).absolute() / CHECKPOINTS  # a link is read from where it stands
            (Path(folder) / CHECKPOINTS).symlink_to(shared, target_is_directory=True)
            order.builder(Path(folder))

    def _build(self, order: _Order) -> Stage:
        work = self.work_folder(order.kind, order.key)
        final = self.folder_of(order.kind, order.key)
        for folder in (work, work / CHECKPOINTS):
            folder.mkdir(exist_ok=True)
        for leftover in work.iterdir():
            if leftover.name != CHECKPOINTS:
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        snapshots = self.remote.snapshots(final.name, work / CHECKPOINTS) if self.remote else None
        if snapshots:
            snapshots.restore()
        processes.wait()  # the others' folders point into this one
        start = time.monotonic()
        with snapshots.sending() if snapshots else contextlib.nullcontext():
            order.builder(work)
        shutil.rmtree(work / CHECKPOINTS, ignore_errors=True)
        seconds = round(time.monotonic() - start, 3)
        files = {p.relative_to(work).as_posix(): sha256_file(p) for p in sorted(work.rglob("*")) if p.is_file()}
        manifest = {
            "kind": order.kind,
            "key": order.key,
            "recipe": order.recipe,
            **order.about,
            "files": files,
            "seconds": seconds,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "versions": _versions(),
            "git": _git_commit(),
        }
        # Nobody reads the folder before it has its name, and what a power cut makes of its files, the hashes tell.
        (work / MANIFEST).write_text(json.dumps(manifest, indent=2, default=str), encoding="utf-8")
        if final.exists():
            shutil.rmtree(final)
        work.replace(final)
        if self.remote and snapshots:
            self.remote.publish(final.name, final)
            snapshots.forget()
        return Stage(final, manifest, reused=False, remote=self.remote)
