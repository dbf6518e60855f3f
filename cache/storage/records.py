"""Reading the records of a cache: manifest, metadata, ledger, COMPLETE; checked against each other.

Nothing here allocates by a size that a file merely claims. Cost: a few small files, and one `stat`
a shard file (about 2 us).
"""

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..errors import CacheDamaged, CacheError, CacheIncomplete, CacheNotFound, CacheVersionError
from ..format.checksum import crc32c
from ..format.fingerprint import Fingerprint, digest
from ..format.geometry import ACTIVATIONS, COMPLETE, LEDGER, ROOT, Geometry
from ..format.hierarchy import build_files, decode_index, find_altered
from ..format.layout import encode_complete
from ..format.ledger import Entry, parse_line
from ..format.manifest import MANIFEST, PROVENANCE, config_of, parse_manifest
from ..format.shard_file import (
    damaged_chunks,
    tail_checksum,
    tail_size,
)
from ..format.spec import Bytes, Stack
from .files import file_size, find_size, read_exact
from .location import Location, ObjectPath

MAX_METADATA = 2**26
"""Bytes beyond which a metadata file is refused unread."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What the root metadata of a cache says."""

    path: Location
    manifest: dict[str, Any]
    geometry: Geometry
    fingerprint: Fingerprint
    provenance: dict[str, Any]
    index_crcs: dict[str, str]

    @cached_property
    def config(self) -> str:
        """Digest of the manifest, by which all records know each other."""
        return config_of(self.manifest)

    @cached_property
    def files(self) -> dict[str, bytes]:
        """Every `zarr.json` as it was written, but for what may have been added to the root."""
        return build_files(self.geometry, {MANIFEST: self.manifest, PROVENANCE: self.provenance})


def read_manifest(path: Location) -> Manifest:
    """Read and check the root metadata.

    Raises:
        CacheNotFound: no cache in `path`.
        CacheVersionError: another format version.
        CacheDamaged: unreadable.
    """
    file = path / ROOT
    if not isinstance(file, ObjectPath) and not file.is_file():
        raise _not_found(path)
    try:
        content = read_small(file)
    except CacheDamaged as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise _not_found(path) from error
        raise
    try:
        root = json.loads(content)
        attributes = root["attributes"]
        if MANIFEST not in attributes:
            raise CacheNotFound(
                f"{path} is a Zarr store but no activation cache; give another folder"
            )
        geometry, fingerprint, crcs = parse_manifest(attributes[MANIFEST])
        provenance = dict(attributes[PROVENANCE])
        if (root["zarr_format"], root["node_type"]) != (3, "group"):
            raise ValueError("it is no group of Zarr v3")
    except CacheVersionError as error:
        raise CacheVersionError(f"{file}: {error}") from None
    except CacheNotFound:
        raise
    except (CacheError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CacheDamaged(
            f"{file} is damaged or was edited ({type(error).__name__}: {str(error)[:400]}); "
            "restore it, or delete the folder and extract again"
        ) from error
    return Manifest(
        path=path,
        manifest=attributes[MANIFEST],
        geometry=geometry,
        fingerprint=fingerprint,
        provenance=provenance,
        index_crcs=crcs,
    )


def _not_found(path: Location) -> CacheNotFound:
    return CacheNotFound(f"no cache in {path} ({ROOT} is missing); extract one there first")


def read_small(file: Location) -> bytes:
    """Read a metadata file, refusing absurd sizes with `CacheDamaged`."""
    if isinstance(file, ObjectPath):  # one request
        try:
            return file.read(MAX_METADATA)[0]
        except (FileNotFoundError, ValueError) as error:
            raise CacheDamaged(f"{file} is missing or absurdly large; extract again") from error
    size = file_size(file)
    if size > MAX_METADATA:
        raise CacheDamaged(f"{file} holds {size} bytes, more than any metadata; extract again")
    return file.read_bytes()


def altered_metadata(path: Location, wanted: Mapping[str, bytes]) -> list[str]:
    """Return the `zarr.json` files below the root that are missing or do not say what they should.

    Args:
        path: of the cache.
        wanted: what `build_files` gives.
    """
    here: dict[str, bytes] = {}
    for name in wanted:
        if name.endswith(f"/{ROOT}"):
            with suppress(CacheDamaged):
                here[name] = read_small(path / name)
    return [*find_altered(wanted, here)]


def check_metadata(found: Manifest) -> None:
    """Raise `CacheDamaged` unless every other `zarr.json` says what the manifest implies."""
    for name in altered_metadata(found.path, found.files):
        raise CacheDamaged(
            f"{found.path / name} is missing, was edited or is damaged; extract again into this "
            "folder to restore it (finished shards are kept)"
        )


def read_finished(found: Manifest, *, allow_incomplete: bool) -> dict[int, Entry]:
    """Return the finished shards, checked against COMPLETE and against the files' sizes.

    Raises:
        CacheIncomplete: no COMPLETE record and `allow_incomplete` is false.
        CacheDamaged: records contradict each other, or a file is missing or has the wrong size.
    """
    complete = (found.path / COMPLETE).is_file()
    if not complete and not allow_incomplete:
        raise CacheIncomplete(
            f"{found.path} is not finished ({COMPLETE} is missing); run the extraction again to "
            "resume it, or open it with allow_incomplete=True to read what is there"
        )
    ledger = found.path / LEDGER
    if complete:
        _check_complete(found, ledger)
    entries = read_ledger(ledger, tolerant=False)
    geometry = found.geometry
    if complete and (len(entries) != geometry.n_shards or set(entries) != set(range(len(entries)))):
        raise CacheDamaged(f"{ledger} does not list the {geometry.n_shards} shards; extract again")
    sizes = shard_sizes(found.path) if entries else find_size
    for shard, entry in entries.items():
        _check_entry(found, shard, entry, sizes)
    return entries


def read_ledger(path: Location, *, tolerant: bool) -> dict[int, Entry]:
    """Read a ledger; the last line of a shard wins, and a torn last line does not count.

    Args:
        path: the ledger; absent means empty.
        tolerant: drop altered lines in the middle too (their shards are then written again).

    Raises:
        CacheDamaged: an altered line that is not the last, unless `tolerant`.
    """
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return {}
    entries: dict[int, Entry] = {}
    for number, line in enumerate(lines, 1):
        entry = parse_line(line)
        if entry is not None:
            entries[entry.shard] = entry
        elif number < len(lines) and not tolerant:
            raise CacheDamaged(
                f"line {number} of {path} is damaged; extract again into this folder: its shard is "
                "rewritten, the others are kept"
            )
    return entries


def shard_sizes(root: Location) -> Callable[[Location], int | None]:
    """Return what tells the size of a file below `root`; of a store's objects from one listing."""
    if not isinstance(root, ObjectPath):
        return find_size
    listed = {str(root / ACTIVATIONS / n): size for n, size in (root / ACTIVATIONS).below().items()}
    return lambda path: listed.get(str(path))


def inspect_shard(
    geometry: Geometry, stack: Stack, shard: int, raw: Bytes, checksum: str
) -> list[str]:
    """Name what is wrong in the bytes of a shard file, given its checksum in the ledger."""
    chunks = len(geometry.blocks_of(shard)) * len(stack.taps)
    packed = geometry.level is not None
    entries, size = geometry.entries(stack), geometry.chunk_bytes(stack)
    first, names = geometry.blocks_of(shard).start, stack.tap_names
    problems = []
    bad = damaged_chunks(raw, chunks, entries, None if packed else size)
    for number in bad:
        block, tap = divmod(number, len(names))
        chunk = f"tap {names[tap]} of block {first + block}"
        problems.append("the shard index" if number < 0 else chunk)
    tail = raw[len(raw) - tail_size(chunks, entries) :]
    if not problems and tail_checksum(tail, chunks) != checksum:
        problems.append("the whole file: it is not the one that the ledger lists")
    return problems


def read_index(found: Manifest, name: str) -> np.ndarray[Any, Any]:
    """Read an index array, checked; raise `CacheDamaged` if it is not what was written."""
    shape, data_type = found.geometry.index_arrays()[name]
    relative, size = found.geometry.index_chunk(name)
    path = found.path / relative
    if not size:
        return np.empty(shape, data_type)
    content = read_exact(path, size)
    try:
        values = decode_index(found.geometry, found.files, name, content)
        if f"{crc32c(values.tobytes()):08x}" != found.index_crcs[name]:
            raise ValueError("another checksum than in the manifest")
    except ValueError as error:
        raise CacheDamaged(
            f"{path} fails its checksum; extract again into this folder to restore it (finished "
            "shards are kept)"
        ) from error
    return values


def _check_complete(found: Manifest, ledger: Location) -> None:
    content = ledger.read_bytes() if ledger.is_file() else b""
    record = found.path / COMPLETE
    if read_small(record) == encode_complete(found.geometry, found.config, content):
        return
    try:
        stored = json.loads(read_small(record))
        altered = ROOT if stored["config"] != found.config else LEDGER
        if stored["ledger"] == digest(content) and altered == LEDGER:
            altered = COMPLETE
    except (ValueError, TypeError, KeyError, RecursionError):
        altered = COMPLETE
    raise CacheDamaged(
        f"{found.path / altered} was altered after the cache was finished ({COMPLETE} disagrees); "
        "extract again into this folder: intact shards are kept"
    )


def _check_entry(
    found: Manifest, shard: int, entry: Entry, sizes: Callable[[Location], int | None]
) -> None:
    geometry = found.geometry
    if not 0 <= shard < geometry.n_shards or entry.config != found.config:
        raise CacheDamaged(f"{found.path / LEDGER}: shard {shard} belongs to another cache")
    for stack in geometry.stacks:
        path = found.path / geometry.shard_path(stack, shard)
        size, listed = sizes(path), entry.files.get(stack.name, (0, ""))[0]
        wanted = geometry.shard_bytes(stack, shard) if geometry.level is None else listed
        if size is None:
            file_size(path)  # raises, saying so
        if size != wanted or listed != wanted or not geometry.allows(stack, shard, listed):
            raise CacheDamaged(
                f"{path} holds {size} bytes instead of {wanted}; extract again into the folder: "
                "only its shard is rewritten"
            )
