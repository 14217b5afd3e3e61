"""Files to and from an object store: named by what they hold, in parallel, and read only where they hold it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from trainers.store.objects import S3, Objects
from w2s_tasks.errors import UserError
from w2s_tasks.rows.assets import sha256_file

THREADS = 8


def object_name(prefix: str, name: str, digest: str) -> str:
    """Where a file is: two builders of one stage never write over each other's."""
    return f"{prefix}/{digest[:16]}/{name}"


def checked_name(name: str, where: str) -> str:
    """A file's name as it came from a store.

    Raises:
        UserError: it leads out of the folder that it belongs to.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or not path.parts:
        raise UserError(f"{where}: a file's name that leads out of its folder; nothing was read.")
    return name


def send(objects: S3, folder: Path, files: Mapping[str, str], prefix: str) -> None:
    """Upload files of a folder, by their names with the sha256 of each; what is there is not sent again."""
    there = {one.name: one.size for one in objects.listed(f"{prefix}/")}

    def one(item: tuple[str, str]) -> None:
        name, digest = item
        target = object_name(prefix, name, digest)
        if there.get(target) != (folder / name).stat().st_size:
            objects.upload(folder / name, target)

    _all(one, files)


def receive(objects: Objects, prefix: str, files: Mapping[str, str], folder: Path) -> None:
    """Download files into a folder.

    Raises:
        UserError: one that is missing, or that does not hold what its name says; a name that leads out of the folder.
    """
    where = f"{objects.url}/{prefix}"

    def one(item: tuple[str, str]) -> None:
        name, digest = item
        path = folder / checked_name(name, where)
        path.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(2):  # a connection may break a download
            try:
                objects.download(object_name(prefix, name, digest), path)
            except FileNotFoundError:
                break
            if sha256_file(path) == digest:
                return
        raise UserError(
            f"{where}: {name} is missing or altered. `w2s store verify {objects.url} --drop` takes what is not whole out of "
            "the store, and the same command builds it anew."
        )

    folder.mkdir(parents=True, exist_ok=True)
    _all(one, files)


def _all(call: Callable[[tuple[str, str]], None], files: Mapping[str, str]) -> None:
    with ThreadPoolExecutor(THREADS) as pool:
        for done in [pool.submit(call, item) for item in files.items()]:
            done.result()
