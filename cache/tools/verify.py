"""Checking a cache on the disk to the last byte, and marking what must be made again.

`verify` reads every shard file once (the speed of the disk) and reports all that is wrong, not the
first thing. With `repair` the bad shards leave the ledger, so that the command that made the cache
makes exactly those again; records that follow from intact ones are restored. No activation is ever
deleted or changed here.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from ..errors import CacheDamaged, CacheIncomplete
from ..format.geometry import COMPLETE, LEDGER, ROOT
from ..format.layout import encode_complete
from ..format.ledger import Entry, encode_ledger
from ..reading.cache import Cache
from ..storage.files import read_exact, remove, write_if_different
from ..storage.lease import lock_writing
from ..storage.location import Location, parse_location
from ..storage.records import Manifest, altered_metadata, inspect_shard, read_ledger, read_manifest

Progress = Callable[[int, int], None]
_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What `verify` found; each problem names its file.

    Attributes:
        files: shard files read; `chunks` and `nbytes` in them.
        problems: one line a file or record.
        damaged: shards that must be made again, of those that the ledger lists.
        unlisted: shards of a finished cache that the ledger does not list.
        repaired: whether they were marked and the records restored.
        complete: whether the cache can be used as it is now.
    """

    files: int
    chunks: int
    nbytes: int
    problems: tuple[str, ...]
    damaged: tuple[int, ...] = ()
    unlisted: int = 0
    repaired: bool = False
    complete: bool = True

    @property
    def ok(self) -> bool:
        """Whether every byte is as it was written."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        lists = {"problems": list(self.problems), "damaged": list(self.damaged)}
        return asdict(self) | lists | {"ok": self.ok}

    def render(self) -> str:
        """Return the report as lines of text."""
        read = f"{self.files:,} files, {self.chunks:,} chunks, {self.nbytes:,} bytes read"
        if self.ok:
            return f"{read}: every checksum agrees"
        return "\n".join(
            (f"{read}: {len(self.problems)} problem(s)", *self.problems, self._way_out)
        )

    @property
    def _way_out(self) -> str:
        count = len(self.damaged) + self.unlisted
        again = "run the command that made the cache again"
        if not self.repaired:
            return (
                f"Verify with --repair to mark {count} shard(s), then {again}: it makes only those."
            )
        if self.complete:
            return "Repaired: records were restored from intact ones; the cache is complete."
        return f"Marked {count} shard(s): {again}; it makes only those."


@dataclass
class _Findings:
    """What is sound and what is not."""

    good: dict[int, Entry] = field(default_factory=dict)
    damaged: list[int] = field(default_factory=list)
    unlisted: int = 0
    foreign: int = 0
    problems: list[str] = field(default_factory=list)
    files: int = 0
    chunks: int = 0
    nbytes: int = 0
    index_sound: bool = True


def verify(
    path: str | Location, *, repair: bool = False, progress: Progress | None = None
) -> VerifyReport:
    """Read every shard file of a cache and compare all checksums.

    Args:
        path: of the cache.
        repair: take bad shards out of the ledger and reopen the cache, so that the command that
            made it makes them again; also for an unfinished cache.
        progress: called with (shards done, shards in the ledger).

    Raises:
        CacheNotFound, CacheVersionError, CacheDamaged: the root metadata cannot be read.
        CacheIncomplete: it is not finished, and `repair` is off.
        CacheDamaged: `repair`, but root metadata and ledger are of different caches.
        CacheLocked: `repair`, and another process writes it.
    """
    root = parse_location(path)
    found = read_manifest(root)
    if not repair:
        if not (root / COMPLETE).is_file():
            raise CacheIncomplete(
                f"{root} is not finished; run the command that makes it again, or verify it with "
                "--repair to check the shards that are there"
            )
        return _report(_examine(found, progress))
    lock = lock_writing(root)
    try:
        findings = _examine(found, progress)
        complete = _repair(found, findings)
    finally:
        lock.release()
    return _report(findings, repaired=bool(findings.problems), complete=complete)


def _report(
    findings: _Findings, *, repaired: bool = False, complete: bool | None = None
) -> VerifyReport:
    return VerifyReport(
        files=findings.files,
        chunks=findings.chunks,
        nbytes=findings.nbytes,
        problems=tuple(findings.problems),
        damaged=tuple(findings.damaged),
        unlisted=findings.unlisted,
        repaired=repaired,
        complete=not findings.problems if complete is None else complete,
    )


def _examine(found: Manifest, progress: Progress | None) -> _Findings:
    findings = _Findings()
    for name in altered_metadata(found.path, found.files):
        findings.problems.append(f"{found.path / name} is missing or was altered")
    try:
        Cache(found, {}, "never")
    except CacheDamaged as error:
        findings.problems.append(str(error))
        findings.index_sound = False
    entries = _check_records(found, findings)
    for done, (shard, entry) in enumerate(sorted(entries.items()), 1):
        problems = _check_shard(found, findings, shard, entry)
        findings.problems += problems
        if problems:
            findings.damaged.append(shard)
        else:
            findings.good[shard] = entry
        if progress is not None:
            progress(done, len(entries))
    return findings


def _check_records(found: Manifest, findings: _Findings) -> dict[int, Entry]:
    """Compare ledger and COMPLETE; return the sound lines of the ledger."""
    ledger, record = found.path / LEDGER, found.path / COMPLETE
    config, count = found.config, found.geometry.n_shards
    lines = read_ledger(ledger, tolerant=True)
    entries = {
        shard: entry
        for shard, entry in lines.items()
        if entry.config == config and 0 <= shard < count
    }
    findings.foreign = len(lines) - len(entries)
    if findings.foreign:
        findings.problems.append(f"{findings.foreign} lines of {ledger} belong to another {ROOT}")
    if not record.is_file():
        return entries
    findings.unlisted = count - len(entries)
    if findings.unlisted:
        findings.problems.append(f"{ledger} lists {len(entries)} of {count} shards")
    content = ledger.read_bytes() if ledger.is_file() else b""
    if record.read_bytes() != encode_complete(found.geometry, found.config, content):
        findings.problems.append(f"{record} disagrees with the ledger or the metadata")
    return entries


def _check_shard(found: Manifest, findings: _Findings, shard: int, entry: Entry) -> list[str]:
    geometry, problems = found.geometry, []
    for stack in geometry.stacks:
        file = found.path / geometry.shard_path(stack, shard)
        size, crc = entry.files.get(stack.name, (0, ""))
        if not geometry.allows(stack, shard, size):
            problems.append(f"{file} is listed with {size} bytes in the ledger")
            continue
        try:
            raw = read_exact(file, size)
        except CacheDamaged as error:
            problems.append(str(error))
            continue
        bad = inspect_shard(geometry, stack, shard, raw, crc)
        if bad:
            more = f" and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
            problems.append(f"{file} is damaged: {', '.join(bad[:_SHOWN])}{more}")
        findings.files += 1
        findings.nbytes += size
        findings.chunks += len(geometry.blocks_of(shard)) * len(stack.taps)
    return problems


def _repair(found: Manifest, findings: _Findings) -> bool:
    """Restore what follows from sound parts; return whether the cache is complete now.

    The ledger is written before COMPLETE goes: whatever happens between, the two disagree, and no
    reader opens the cache.
    """
    geometry, record = found.geometry, found.path / COMPLETE
    if findings.foreign:
        raise CacheDamaged(
            f"{found.path / ROOT} or {LEDGER} was exchanged after shards were written "
            f"({findings.foreign} ledger lines name another configuration); put the old file back, "
            "or delete the folder and extract again. Nothing was changed"
        )
    finished = record.is_file()
    for name in altered_metadata(found.path, found.files):
        write_if_different(found.path / name, found.files[name])
    ledger = encode_ledger(findings.good.values())
    write_if_different(found.path / LEDGER, ledger)
    if finished and findings.index_sound and len(findings.good) == geometry.n_shards:
        write_if_different(record, encode_complete(geometry, found.config, ledger))
        return True
    if finished:
        remove(record)
    return False
