"""The right to write a cache in an object store: a small object, renewed while its holder lives.

A store has no lock that ends with a process. So the holder rewrites the object every few seconds
and before each change of the ledger, each time on condition that it is still its own, and whoever
finds it unchanged for `LEASE` seconds may take it over, on the same condition. A holder that was
killed on this machine is known to be gone at once. No clock is compared. Cost: a request of 200
bytes every `LEASE` / 3 seconds and one a shard.
"""

import json
import os
import platform
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from ..errors import CacheConflict, CacheLocked, CacheUnreachable
from ..format.geometry import LOCK
from .files import WriterLock
from .location import Location, ObjectPath

LEASE = 30.0
"""Seconds without renewal after which a holder counts as gone."""


class WriterLease:
    """The right to write the cache whose lock object is `path`; see `files.WriterLock`.

    Raises:
        CacheLocked: another writer holds it, and lives.
    """

    def __init__(self, path: ObjectPath) -> None:
        self.path = path
        self._owner: dict[str, Any] = _own() | {"token": uuid4().hex}
        self._count = 0
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._version = self._acquire()
        self._thread = threading.Thread(target=self._keep, name="cache-lease", daemon=True)
        self._thread.start()

    @property
    def held(self) -> bool:
        """Whether this object still holds the lock, as far as it knows."""
        return not self._ended.is_set()

    def renew(self) -> None:
        """Make sure that the lock is still ours, for the next `LEASE` seconds.

        Raises:
            CacheLocked: another writer has taken it.
        """
        with self._lock:
            if self._ended.is_set():
                raise self._lost()
            try:
                self._version = self.path.write(self._record(), version=self._version)
            except (CacheConflict, FileNotFoundError):
                owner, version = self._read()
                if owner.get("token") != self._owner["token"]:
                    self._ended.set()
                    raise self._lost() from None
                self._version = version  # a request of ours that was repeated after it had worked

    def release(self) -> None:
        """Give the lock up; a second call does nothing."""
        with self._lock:
            if self._ended.is_set():
                return
            self._ended.set()
            with suppress(CacheUnreachable):  # then it ends by itself
                self.path.unlink()
        self._thread.join()

    def _acquire(self) -> str:
        try:
            return self.path.write(self._record(), only="new")
        except CacheConflict:
            owner, version = self._read()
        if owner.get("token") == self._owner["token"]:
            return version
        if version and not _is_dead(owner):
            version = self._watch(version)
        try:
            if not version:
                return self.path.write(self._record(), only="new")
            return self.path.write(self._record(), version=version)
        except (CacheConflict, FileNotFoundError):
            raise self._locked() from None

    def _watch(self, version: str) -> str:
        """Return `version` if nobody renews the lock for `LEASE` seconds, or "" once it is gone."""
        end = time.monotonic() + LEASE
        while time.monotonic() < end:
            time.sleep(LEASE / 30)
            found = self._read()[1]
            if not found:
                return ""
            if found != version:
                raise self._locked()
        return version

    def _read(self) -> tuple[dict[str, Any], str]:
        """Return holder and version of the lock; an empty version if there is none."""
        try:
            content, version = self.path.read(2**16)
        except (FileNotFoundError, ValueError):
            return {}, ""
        try:
            owner = json.loads(content)
        except ValueError:
            owner = None
        return owner if isinstance(owner, dict) else {}, version

    def _record(self) -> bytes:
        self._count += 1  # the version of an object may be the digest of its content
        return json.dumps(self._owner | {"renewed": self._count}).encode()

    def _keep(self) -> None:
        while not self._ended.wait(LEASE / 3):
            with suppress(CacheUnreachable, CacheLocked):  # the next change of the ledger says it
                self.renew()

    def _locked(self) -> CacheLocked:
        return CacheLocked(
            f"{self.path.parent} is being written by another process; wait until it ends, or stop "
            "it and run again: finished shards are kept"
        )

    def _lost(self) -> CacheLocked:
        return CacheLocked(
            f"another process has taken over the writing of {self.path.parent}, as this one gave "
            f"no sign of life for {LEASE:.0f} seconds; finished shards are kept"
        )


def lock_writing(root: Location) -> WriterLock | WriterLease:
    """Take the right to write the cache in `root`, until it is released or this process ends.

    Raises:
        CacheLocked: another writer holds it.
    """
    path = root / LOCK
    return WriterLease(path) if isinstance(path, ObjectPath) else WriterLock(path)


def _own() -> dict[str, Any]:
    """Return what names this process on this machine: no other one is ever named so."""
    return {
        "host": platform.node(),
        "boot": _text("/proc/sys/kernel/random/boot_id"),
        "processes": _link("/proc/self/ns/pid"),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
    }


def _is_dead(owner: dict[str, Any]) -> bool:
    """Whether the holder was a process of this machine that is gone."""
    here = _own()
    if not here["boot"] or any(owner.get(n) != here[n] for n in ("host", "boot", "processes")):
        return False
    pid = owner.get("pid")
    return isinstance(pid, int) and _started(pid) != owner.get("started")


def _started(pid: int) -> str:
    """Return when a process was started, in ticks after the boot; empty if there is none."""
    fields = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 else ""


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _link(path: str) -> str:
    try:
        return str(Path(path).readlink())
    except OSError:
        return ""
