"""Where a cache is: a folder on this machine, or a prefix in an object store (`s3://bucket/name`).

`ObjectPath` has what of `pathlib.Path` a cache needs, each call one request (a listing: one a 1000
objects), so most code takes either. Objects are written whole or not at all, and read back as
written by the next request: what a temporary name and a rename do on a disk, a store does itself.
Requests are repeated with growing pauses when the store is busy or the connection breaks.
"""

import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..errors import CacheConflict, CacheError, CacheUnreachable, InvalidLocation
from ..format.spec import Bytes

SCHEMES = ("s3", "gs", "az", "memory")
"""Stores that are known: Amazon S3 and what speaks like it, Google, Azure, and one for tests."""
_URL = re.compile(r"(?P<scheme>[a-z0-9]+)://(?P<bucket>[^/?#]+)/*(?P<key>[^?#]*)")
_ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT", "AZURE_STORAGE_ENDPOINT")
_TRIES = 8
_TIMEOUT = 60.0
"""Seconds after which a request counts as broken off."""
_PATIENCE = 300.0
"""Seconds after which it is not tried again."""


@dataclass(frozen=True)
class ObjectPath:
    """An object, or a prefix of objects, in a store; `url` as `parse_location` checked it."""

    url: str

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> "ObjectPath":
        return ObjectPath(f"{self.url}/{name}")

    @property
    def name(self) -> str:
        """What follows the last slash."""
        return self.url.rpartition("/")[2]

    @property
    def parent(self) -> "ObjectPath":
        """The prefix that this lies in."""
        return ObjectPath(self.url.rpartition("/")[0])

    @property
    def bucket(self) -> str:
        """The store: scheme and bucket."""
        return "/".join(self.url.split("/", 3)[:3])

    @property
    def key(self) -> str:
        """The name in the bucket."""
        return self.url.split("/", 3)[3]

    @property
    def store(self) -> Any:
        """The connection, one a bucket and process."""
        return connect(self.bucket)

    def is_file(self) -> bool:
        """Whether there is such an object."""
        return self.size() is not None

    exists = is_file

    def size(self) -> int | None:
        """Return the bytes of the object, or None if there is none."""
        try:
            with asking(self):
                size: int = library().head(self.store, self.key)["size"]
                return size
        except FileNotFoundError:
            return None

    def read_bytes(self) -> bytes:
        """Return the content; raise `FileNotFoundError` if there is no such object."""
        return self.read(2**62)[0]

    def read(self, limit: int) -> tuple[bytes, str]:
        """Return content and version; raise `ValueError`, having read nothing, above `limit`."""
        with asking(self):
            found = library().get(self.store, self.key)
            if found.meta["size"] > limit:
                raise ValueError(f"{self} holds {found.meta['size']} bytes")
            return bytes(found.bytes()), found.meta["e_tag"] or ""

    def read_ranges(self, starts: Sequence[int], lengths: Sequence[int]) -> list[Bytes]:
        """Return parts of the object, each by a request of its own, all at once."""
        with asking(self):
            parts = library().get_ranges(
                self.store, self.key, starts=starts, lengths=lengths, coalesce=0
            )
        return [np.frombuffer(part, np.uint8) for part in parts]

    def write(
        self, data: bytes | Bytes, *, only: Literal["new"] | None = None, version: str | None = None
    ) -> str:
        """Write the object whole; return its version.

        Args:
            data: the content.
            only: "new" refuses to replace anything.
            version: refuse to replace anything but this version.

        Raises:
            CacheConflict: refused.
        """
        if self.url.startswith("memory:"):
            data = bytes(data)  # it would keep the caller's buffer
        mode: Any = "create" if only else None if version is None else {"e_tag": version}
        try:
            with asking(self):
                written = library().put(self.store, self.key, data, mode=mode)
            return written["e_tag"] or ""
        except _refused() as error:
            raise CacheConflict(f"{self} was changed by another writer") from error

    def unlink(self) -> None:
        """Delete the object; one that is gone is no error."""
        with asking(self):
            library().delete(self.store, self.key)

    def below(self) -> dict[str, int]:
        """Return what lies below this prefix: relative name -> bytes."""
        start = self.key + "/"
        with asking(self):
            pages = library().list(self.store, start)
            return {
                item["path"].removeprefix(start): item["size"] for page in pages for item in page
            }


Location = Path | ObjectPath


def parse_location(place: str | Path | ObjectPath) -> Location:
    """Return a folder's path, or the object path of a URL.

    Raises:
        InvalidLocation: a URL of an unknown store, or one that names no cache in its bucket.
    """
    if not isinstance(place, str) or "://" not in place:
        return Path(place) if isinstance(place, str) else place
    found = _URL.fullmatch(place)
    if found is None or found["scheme"] not in SCHEMES:
        raise InvalidLocation(
            f"{place!r} is no place for a cache: give a folder, or a URL such as "
            f"s3://bucket/name.zarr ({', '.join(f'{known}://' for known in SCHEMES)})"
        )
    parts = found["key"].strip("/").split("/")
    if not all(parts) or {".", ".."} & set(parts):
        raise InvalidLocation(
            f"{place!r} must name one place in the bucket: a cache takes a prefix of its own, as "
            "in s3://bucket/name.zarr"
        )
    return ObjectPath(f"{found['scheme']}://{found['bucket']}/{'/'.join(parts)}")


def local_path(place: str | Path | ObjectPath, doing: str) -> Path:
    """Return the path of a folder; a URL is refused, `doing` saying what cannot be done with it.

    Raises:
        CacheError: it is a URL.
    """
    found = parse_location(place)
    if isinstance(found, ObjectPath):
        raise CacheError(
            f"{doing} works on folders of this machine, not on {found}: copy the cache here first "
            "(its objects are the files of a folder), or do it before copying it there"
        )
    return found


def absolute(place: Location) -> str:
    """Return the text that names a place from any working directory."""
    return str(place) if isinstance(place, ObjectPath) else str(place.resolve())


def files_below(root: Location) -> dict[str, int]:
    """Return every file below `root`: relative name with slashes -> bytes."""
    if isinstance(root, ObjectPath):
        return root.below()
    found = {}
    for path in root.rglob("*"):
        with suppress(FileNotFoundError):  # gone since it was listed
            status = path.stat()
            if stat.S_ISREG(status.st_mode):
                found[path.relative_to(root).as_posix()] = status.st_size
    return found


@lru_cache
def library() -> Any:
    """Return the package that talks to object stores, or raise `CacheError` naming its extra."""
    try:
        import obstore  # noqa: PLC0415
        import obstore.store  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise CacheError(
            f"object stores need the package obstore ({error}): pip install 'unipt[cloud]'"
        ) from error
    return obstore


def _refused() -> tuple[type[Exception], ...]:
    known = library().exceptions
    return (known.AlreadyExistsError, known.PreconditionError)


@lru_cache
def connect(bucket: str) -> Any:
    """Return the connection to a bucket, set up from the environment (AWS_..., GOOGLE_..., ...).

    Raises:
        CacheUnreachable: the environment does not say enough.
    """
    if bucket.startswith("memory:"):
        return library().store.MemoryStore()
    pauses: Any = {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=5)}
    plain = any(os.environ.get(name, "").startswith("http://") for name in _ENDPOINTS)
    try:
        return library().store.from_url(
            bucket,
            client_options={"timeout": timedelta(seconds=_TIMEOUT), "allow_http": plain},
            retry_config={
                "max_retries": _TRIES,
                "backoff": pauses | {"base": 2},
                "retry_timeout": timedelta(seconds=_PATIENCE),
            },
        )
    except library().exceptions.BaseError as error:
        raise CacheUnreachable(_explain(bucket, str(error))) from error


@contextmanager
def asking(place: ObjectPath) -> Iterator[None]:
    """Turn the errors of a request into ours; what is missing stays `FileNotFoundError`."""
    try:
        yield
    except FileNotFoundError as error:
        if "NoSuchBucket" in str(error):
            raise CacheUnreachable(_explain(place.bucket, str(error))) from error
        raise
    except CacheError:
        raise
    except _refused():
        raise
    except (library().exceptions.BaseError, OSError) as error:
        raise CacheUnreachable(_explain(str(place), str(error))) from error


_HINTS = (
    ("NoSuchBucket", "there is no such bucket: create it, or check its name, region and endpoint"),
    (
        "latest/api/token|computeMetadata|Missing|must be specified",
        "no credentials: set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION (a profile "
        "gives them by `aws configure export-credentials --format env`), or "
        "AWS_SKIP_SIGNATURE=true for a public bucket; GOOGLE_APPLICATION_CREDENTIALS; "
        "AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY",
    ),
    (
        "403 Forbidden|401 Unauthorized|AccessDenied|InvalidAccessKeyId|SignatureDoesNotMatch",
        "the store refuses these credentials: check them, and what they may do in this bucket",
    ),
    (
        "SlowDown|503 |429 |TooManyRequests",
        "the store asks to slow down, and did so to the last try: use fewer workers, or wait. "
        "Finished shards are kept; run the same command again to go on",
    ),
    (
        "",
        "the store cannot be reached or broke off: check the network and, for another S3 service, "
        "AWS_ENDPOINT_URL. Finished shards are kept; run "
        "the same command again to go on",
    ),
)


def _explain(place: str, said: str) -> str:
    hint = next(hint for pattern, hint in _HINTS if re.search(pattern, said))
    first = " ".join(said.partition("\n\nDebug source")[0].split())
    return f"{place}: {hint} ({first[:300]})"
