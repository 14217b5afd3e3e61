"""Object stores: ``s3://`` with conditional writes, and for reading whatever else fsspec knows (``gs://``, ``https://``).

Two writers of one object are told apart by the server alone: `create` writes where nothing is, `replace` over a version that
was read. A service without such writes can't share work out, so it is read only. Credentials come from the environment, or
from what the service's own library finds there (a profile, a machine's role); never from a URL.
"""

from __future__ import annotations

import contextlib
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from w2s_tasks.errors import UserError

CONNECTIONS = 32
ATTEMPTS = 6
"""Of a request that a server refuses for the moment (500, 503) or that a connection loses."""
MARKER = ".w2s"
"""An object at the root of a store; that it can't be created twice says that the server has conditional writes."""
LAYOUT = b'{"layout": 1}'
TAKEN = {"PreconditionFailed", "ConditionalRequestConflict"}
MISSING = {"NoSuchKey", "404", "NotFound"}
FULL = {"QuotaExceeded", "InsufficientStorage", "StorageFull", "XMinioStorageFull", "XAmzStorageFull", "EntityTooLarge"}
REFUSED = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "403", "Forbidden"}


@dataclass(frozen=True)
class Object:
    """An object as it was read."""

    data: bytes
    version: str
    """For `S3.replace`."""
    age: float
    """Seconds since it was written, by the server's own clock; no machine's clock has to be right."""


class Listed(NamedTuple):
    """An object as a listing tells of it."""

    name: str
    size: int
    """Bytes."""
    tag: str = ""
    """The md5 of its content, where the service says that; what is written in parts or encrypted has another one."""


def is_url(place: str | Path) -> bool:
    """Whether a place is an object store's."""
    return "://" in str(place)


class Objects(ABC):
    """A store that can be read."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    @abstractmethod
    def read(self, name: str) -> Object | None:
        """An object; None where none is.

        Raises:
            UserError: no access, no such bucket, no answer; so every method.
        """

    @abstractmethod
    def download(self, name: str, to: Path) -> None:
        """Write an object to a file, whatever its size.

        Raises:
            FileNotFoundError: it is not there.
        """

    @abstractmethod
    def listed(self, prefix: str) -> Iterator[Listed]:
        """Objects whose names begin so; in as few requests as the service has."""

    def writable(self) -> S3:
        """Itself.

        Raises:
            UserError: two machines could not share it.
        """
        raise UserError(
            f"{self.url}: a run is not written there: machines that share work need writes which fail where another one was "
            "first (If-None-Match), and of those only s3:// is known here. Reading is possible: w2s report, w2s store ls."
        )


class S3(Objects):
    """A bucket, or a part of one, of any server that speaks S3 (``AWS_ENDPOINT_URL``)."""

    def __init__(self, url: str) -> None:
        """Nothing is asked yet.

        Raises:
            UserError: boto3 is not installed; no bucket in the URL; a key in it.
        """
        super().__init__(url)
        try:
            import boto3
            from botocore.config import Config
        except ImportError as error:
            raise UserError(f"{self.url} needs boto3: pip install 'w2s-harness[s3]'.") from error
        parts = urlsplit(self.url)
        if parts.username or parts.password:
            raise UserError(
                "a store's URL holds no keys: they are read from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)."
            )
        self.bucket, self.prefix = parts.netloc, parts.path.strip("/")
        if not self.bucket:
            raise UserError(f"{url}: no bucket; write s3://bucket/prefix.")
        config = Config(
            retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
            connect_timeout=10,
            read_timeout=120,
            max_pool_connections=CONNECTIONS,
        )
        self._client = boto3.session.Session().client("s3", config=config)

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    @contextlib.contextmanager
    def _told(self, *, writing: bool = False) -> Iterator[None]:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except (BotoCoreError, ClientError, Boto3Error) as error:
            kept = " What was finished is kept in the run folder, and the same command sends it." if writing else ""
            raise UserError(f"{self.url}: {_reason(error, self.bucket)}{kept}") from error

    def read(self, name: str) -> Object | None:
        """As `Objects.read`."""
        with self._told():
            found = self._unless(MISSING, lambda: self._client.get_object(Bucket=self.bucket, Key=self._key(name)))
            if found is None:
                return None
            now = parsedate_to_datetime(found["ResponseMetadata"]["HTTPHeaders"]["date"])
            return Object(found["Body"].read(), found["ETag"], max(0.0, (now - found["LastModified"]).total_seconds()))

    def download(self, name: str, to: Path) -> None:
        """As `Objects.download`."""

        def download() -> bool:
            self._client.download_file(self.bucket, self._key(name), str(to))
            return True

        with self._told():
            if self._unless(MISSING, download) is None:
                raise FileNotFoundError(f"{self.url}/{name}")

    def listed(self, prefix: str) -> Iterator[Listed]:
        """As `Objects.listed`: a request for a thousand."""
        cut = len(self._key(""))
        with self._told():
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self._key(prefix))
            for page in pages:
                for one in page.get("Contents", ()):
                    yield Listed(one["Key"][cut:], one["Size"], one["ETag"].strip('"'))

    def writable(self) -> S3:
        """As `Objects.writable`; asks the server."""
        tries = (self._put(MARKER, LAYOUT, IfNoneMatch="*") for _ in range(2))
        if all(version is not None for version in tries):  # one is refused at least: the second, or both after another run
            raise UserError(
                f"{self.url}: the server writes an object a second time that must not be there (If-None-Match is ignored): "
                "machines could not tell who builds what. Use one with conditional writes: AWS S3, Ceph, MinIO, SeaweedFS."
            )
        return self

    def upload(self, file: Path, name: str) -> None:
        """Write a file, of any size, whoever wrote there before."""
        with self._told(writing=True):
            self._client.upload_file(str(file), self.bucket, self._key(name))

    def write(self, name: str, data: bytes) -> str:
        """Write an object, whoever wrote there before; its version."""
        return str(self._put(name, data))

    def create(self, name: str, data: bytes) -> str | None:
        """Write an object where none is; its version, or None where another one is."""
        return self._put(name, data, IfNoneMatch="*") or self._own(name, data)

    def replace(self, name: str, data: bytes, version: str) -> str | None:
        """Write over a version that was read; the new one's, or None where another one is there, or none."""
        return self._put(name, data, IfMatch=version) or self._own(name, data)

    def _own(self, name: str, data: bytes) -> str | None:
        """The version of an object that holds just this: a retried request meets its own first try."""
        found = self.read(name)
        return found.version if found is not None and found.data == data else None

    def _put(self, name: str, data: bytes, **condition: str) -> str | None:
        def put() -> str:
            written = self._client.put_object(Bucket=self.bucket, Key=self._key(name), Body=data, **condition)
            return str(written["ETag"])

        with self._told(writing=True):
            return self._unless(TAKEN | MISSING, put)

    @staticmethod
    def _unless(codes: set[str], call: Any) -> Any:
        from botocore.exceptions import ClientError

        try:
            return call()
        except ClientError as error:
            if _code(error) in codes:
                return None
            raise

    def delete(self, names: Iterable[str]) -> None:
        """Remove objects; those that are not there are no error."""
        todo = [{"Key": self._key(name)} for name in names]
        with self._told():
            for start in range(0, len(todo), 1000):
                self._client.delete_objects(
                    Bucket=self.bucket, Delete={"Objects": todo[start : start + 1000], "Quiet": True}
                )


class Readable(Objects):
    """Whatever fsspec knows, for reading."""

    def __init__(self, url: str) -> None:
        """Nothing is asked yet.

        Raises:
            UserError: fsspec does not know it, or needs a library that is not installed.
        """
        super().__init__(url)
        import fsspec

        try:
            self._files, self._root = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise UserError(f"{self.url}: {error}") from error

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    def read(self, name: str) -> Object | None:
        """As `Objects.read`; its age is not known."""
        try:
            data = self._files.cat_file(self._path(name))
        except FileNotFoundError:
            return None
        except Exception as error:  # each file system has errors of its own
            raise UserError(f"{self.url}: {error}") from error
        return Object(data, hashlib.sha256(data).hexdigest(), 0.0)

    def download(self, name: str, to: Path) -> None:
        """As `Objects.download`."""
        try:
            self._files.get_file(self._path(name), str(to))
        except FileNotFoundError:
            raise
        except Exception as error:
            raise UserError(f"{self.url}: {error}") from error

    def listed(self, prefix: str) -> Iterator[Listed]:
        """As `Objects.listed`, without tags; `prefix` is a folder."""
        cut = len(self._files._strip_protocol(self._path("")).rstrip("/")) + 1
        try:
            found = self._files.find(self._path(prefix), detail=True)
        except FileNotFoundError:
            return
        except Exception as error:
            raise UserError(f"{self.url}: {error}") from error
        for path, info in found.items():
            yield Listed(self._files._strip_protocol(path)[cut:], int(info.get("size") or 0))


def _code(error: Exception) -> str:
    response: dict[str, Any] = getattr(error, "response", {})
    return str(response.get("Error", {}).get("Code", ""))


def _reason(error: Exception, bucket: str) -> str:
    """What to tell a user about an error of a store; never a key, which no such error holds."""
    from botocore import exceptions

    if isinstance(error.__context__, exceptions.ClientError):  # of an upload in parts
        error = error.__context__
    code = _code(error)
    response: dict[str, Any] = getattr(error, "response", {})
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    text = str(error)
    if isinstance(error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError):
        return (
            "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; they are read from there only."
        )
    if code == "NoSuchBucket":
        return f"there is no bucket '{bucket}'. Make it, or correct --store."
    if code in FULL or status == 507:
        return f"the store is full, or a quota is met ({code or text}). Make room (w2s store gc)."
    if code in REFUSED or status in (401, 403):
        return f"access was refused ({code or text}): look at AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, the bucket's policy."
    if status >= 500:
        return f"the server failed {ATTEMPTS} times ({status} {code})."
    if isinstance(error, exceptions.ConnectionError | exceptions.HTTPClientError):
        return f"no answer ({error}). Look at AWS_ENDPOINT_URL and the network."
    return f"{text}."


def open_objects(url: str) -> Objects:
    """The store of a URL.

    Raises:
        UserError: a service that is not known or whose library is missing.
    """
    return S3(url) if url.startswith("s3://") else Readable(url)
