"""Writing a cache: one writer, whole shards, resumable at any moment.

Order on the disk: metadata and index, then for each shard its files and after them its ledger
line, last the COMPLETE record. Whatever a `kill -9` leaves behind, `CacheWriter.create` with the
same arguments removes it and continues, and the finished folder is the same to the byte. Memory:
one shard buffer, or two when writing overlaps with computing.
"""

import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from ..errors import (
    CacheDamaged,
    CacheError,
    CacheIncomplete,
    FingerprintMismatch,
    ShardMisaligned,
)
from ..format.blocks import BLOCK_TOKENS
from ..format.checksum import crc32c
from ..format.compression import NONE
from ..format.fingerprint import Fingerprint
from ..format.geometry import ACTIVATIONS, COMPLETE, LEDGER, ROOT
from ..format.hierarchy import build_files
from ..format.layout import CacheLayout, check_keys, encode_complete, plan_layout
from ..format.ledger import Entry, encode_ledger
from ..format.manifest import config_of, make_manifest
from ..format.spec import Bytes, Ints, StorageTypes, TapSpec
from ..storage.files import (
    PARTIAL,
    WriterLock,
    append_synced,
    find_size,
    make_folders,
    read_exact,
    remove,
    write_atomic,
    write_group,
    write_if_different,
)
from ..storage.lease import WriterLease, lock_writing
from ..storage.location import Location, ObjectPath, files_below, parse_location
from ..storage.records import Manifest, altered_metadata, inspect_shard, read_ledger, read_manifest
from .preflight import refuse_foreign, saved_rms, unit_rms
from .shard import ShardBuffer


class CacheWriter:
    """The only writer of one cache; use `create`, and close it (or use it in a `with`)."""

    def __init__(
        self,
        root: Location,
        layout: CacheLayout,
        *,
        overlap: bool,
        lock: WriterLock | WriterLease,
    ) -> None:
        self.path = root
        self.layout = layout
        self._lock = lock
        self._config = ""
        self._done: dict[int, Entry] = {}
        self._spare: list[dict[str, Bytes]] = []
        self._thread = (
            ThreadPoolExecutor(1, "cache-writer", initializer=_yield_to_computing)
            if overlap
            else None
        )
        self._writing: Future[None] | None = None

    @classmethod
    def create(
        cls,
        path: str | Location,
        *,
        taps: Sequence[TapSpec],
        lengths: Mapping[str, Ints] | None,
        keys: Bytes,
        row_to_sample: Ints,
        row_ids: Sequence[str],
        dtype: StorageTypes,
        fingerprint: Fingerprint,
        seed: int = 0,
        block_tokens: int | Mapping[str, int] = BLOCK_TOKENS,
        blocks_per_shard: int | None = None,
        provenance: Mapping[str, Any] | None = None,
        rms: Mapping[str, Tensor] | None = None,
        compression: str = NONE,
        overlap: bool = False,
        check: bool = False,
    ) -> Self:
        """Start a cache in `path`, or resume the unfinished one there.

        Args:
            path: folder, or URL of a prefix in an object store; created if absent, must be empty or
                hold this very cache.
            taps: what is stored.
            lengths: tokens or frames of each sample on each ragged axis, int64 [n_samples]; None
                without.
            keys: content keys, uint8 [n_samples, 16], by which a sample is found again.
            row_to_sample: samples of the rows, int64 [n_rows] or [n_rows, n_views].
            row_ids: name of each row, any Unicode text.
            dtype: storage type of all taps, or of each by its name.
            fingerprint: what is computed; compared on resume and on reading.
            seed: of the permutation before packing.
            block_tokens: tokens of a block, or rows of single axes; frames follow from their bytes.
            blocks_per_shard: blocks of a file; None for 16 of tokens, or those of 256 MiB at most.
                Grows to hold the longest sample.
            provenance: JSON values worth keeping that identify nothing: names, places, versions. A
                resumed cache keeps its first ones.
            rms: size of each channel, by tap, for int8: what `Calibration` gives. A resumed cache
                keeps its first ones, so they may be left out then.
            compression: of the chunks: "none", "zstd" or "zstd:LEVEL".
            overlap: write a finished shard in a thread while the next one is computed.
            check: on resume, also verify the checksum of every finished file (reads them all).

        Raises:
            FingerprintMismatch: the folder holds another cache; the message lists how it differs.
            CacheLocked: another process writes it.
            CacheError: the folder holds something that is no cache.
            ValueError, InvalidTap: arguments that contradict each other.
        """
        keys = check_keys(keys)
        layout = plan_layout(
            taps=taps,
            lengths=lengths,
            n_samples=len(keys),
            row_to_sample=row_to_sample,
            row_ids=row_ids,
            dtype=dtype,
            fingerprint=fingerprint,
            seed=seed,
            block_tokens=block_tokens,
            blocks_per_shard=blocks_per_shard,
            provenance=provenance,
            rms=rms,
            compression=compression,
        )
        return cls.open(path, layout, keys, overlap=overlap, check=check)

    @classmethod
    def open(
        cls,
        path: str | Location,
        layout: CacheLayout,
        keys: Bytes,
        *,
        overlap: bool = False,
        check: bool = False,
    ) -> Self:
        """Start or resume the cache of a given layout; see `create`."""
        root = parse_location(path)
        refuse_foreign(root)
        make_folders(root)
        writer = cls(root, layout, overlap=overlap, lock=lock_writing(root))
        try:
            writer._prepare(keys)
            writer._resume(check)
        except BaseException:
            writer.close()
            raise
        return writer

    def _prepare(self, keys: Bytes) -> None:
        """Write metadata and index, the root last; or check that they are already ours."""
        self._keep_calibration()
        root, layout = self.path, self.layout
        geometry = layout.geometry
        index = layout.index_values(keys)
        crcs = {name: f"{crc32c(values.tobytes()):08x}" for name, values in index.items()}
        manifest = make_manifest(geometry, layout.fingerprint, crcs)
        self._config = config_of(manifest)
        files = build_files(geometry, layout.attributes(crcs), index)
        metadata = files.pop(ROOT)
        if (root / ROOT).exists():
            found = read_manifest(root)
            self._refuse_other(found, manifest)
            altered = altered_metadata(root, files)  # more attributes alter nothing
            kept = {n for n in files if n.endswith(f"/{ROOT}") and n not in altered}
            write_group(root, {n: content for n, content in files.items() if n not in kept})
        else:
            write_group(root, files)
            write_atomic(root / ROOT, metadata)

    def _keep_calibration(self) -> None:
        """Take the RMS of the cache that is there: it was decided once, before the first shard."""
        geometry, rms = self.layout.geometry, self.layout.rms
        quantized = [name for stack in geometry.quantized_stacks for name in stack.tap_names]
        if not quantized:
            return
        if (self.path / ROOT).exists():
            found = read_manifest(self.path)
            same = found.geometry.stacks == geometry.stacks
            rms = saved_rms(found) if same else unit_rms(geometry)  # another cache is refused later
        if rms is None or not rms.keys() >= set(quantized):
            raise ValueError(
                "int8 needs the size of each channel before the first shard: give rms=, which "
                f"Calibration measures on calibration_samples(layout), for the taps {quantized}"
            )
        self.layout = replace(self.layout, rms=rms)

    def _refuse_other(self, found: Manifest, wanted: Mapping[str, Any]) -> None:
        differences = Fingerprint(found.manifest).diff(Fingerprint(wanted))
        if differences:
            raise FingerprintMismatch(
                f"{self.path} holds another cache:\n  "
                + "\n  ".join(differences)
                + "\nGive another folder, delete this one, or go back to the old settings"
            )

    def _resume(self, check: bool) -> None:
        """Keep the shards that ledger and files agree on; remove everything else."""
        root, geometry = self.path, self.layout.geometry
        found, present = read_ledger(root / LEDGER, tolerant=True), files_below(root)
        for shard, entry in found.items():
            if shard < geometry.n_shards and self._intact(shard, entry, present, check):
                self._done[shard] = entry
        kept = {geometry.shard_path(s, shard) for s in geometry.stacks for shard in self._done}
        for name in sorted(present):
            folder, _, rest = name.partition("/")
            chunk = folder == ACTIVATIONS and rest.split("/")[1:2] == ["c"]
            if name.endswith(PARTIAL) or (chunk and name not in kept):
                with suppress(FileNotFoundError):  # a worker of a killed run finished it just now
                    (root / name).unlink()
        if self.pending and COMPLETE in present:
            remove(root / COMPLETE)
        write_if_different(root / LEDGER, encode_ledger(self._done.values()))

    def _intact(
        self, shard: int, entry: Entry, present: Mapping[str, int], check: bool = False
    ) -> bool:
        geometry = self.layout.geometry
        if entry.files.keys() != {s.name for s in geometry.stacks}:
            return False
        if entry != self.layout.entry(shard, entry.files, self._config):
            return False
        for stack in geometry.stacks:
            name = geometry.shard_path(stack, shard)
            size, crc = entry.files[stack.name]
            if present.get(name) != size or not geometry.allows(stack, shard, size):
                return False
            if check:
                raw = read_exact(self.path / name, size)
                if inspect_shard(geometry, stack, shard, raw, crc):
                    return False
        return True

    @property
    def pending(self) -> tuple[int, ...]:
        """Shards still to do."""
        return tuple(s for s in range(self.layout.n_shards) if s not in self._done)

    def samples_of(self, shard: int) -> Ints:
        """Return the sample numbers of a shard, in packed order."""
        return self.layout.samples_of(shard)

    @contextmanager
    def shard(self, number: int) -> Iterator[ShardBuffer]:
        """Fill one shard; it is written when the block is left, and dropped if it raises.

        Raises:
            CacheError: the writer is closed, or an overlapped write failed meanwhile.
            ShardMisaligned: no such shard, or a sample of it has not been put.
            CacheFull: no space left; finished shards are safe.
        """
        self._check_open()
        if not 0 <= number < self.layout.n_shards:
            raise ShardMisaligned(f"there is no shard {number}; pending: {self.pending[:5]} ...")
        if self._writing is not None and self._writing.done():
            self.wait()
        buffer = ShardBuffer(self.layout, number, self._spare.pop() if self._spare else None)
        yield buffer
        self.wait()
        if self._thread is None:
            self._write(buffer)
        else:
            buffer.check_full()
            self._writing = self._thread.submit(self._write, buffer)

    def _write(self, buffer: ShardBuffer) -> None:
        self._enter(buffer.write(self.path, self._config))
        self._spare.append(buffer.release())

    def _enter(self, entry: Entry) -> None:
        """Let a shard count whose files are in place."""
        ledger, entries = self.path / LEDGER, self._done | {entry.shard: entry}
        if isinstance(ledger, ObjectPath):  # cannot be appended to
            self._lock.renew()
            ledger.write(encode_ledger(entries.values()))
        else:
            append_synced(ledger, entry.to_line())
        self._done = entries

    @property
    def config(self) -> str:
        """Digest of the manifest, which every ledger line carries."""
        return self._config

    def accept(self, entry: Entry) -> None:
        """Enter a shard into the ledger that another process has computed and written.

        Raises:
            CacheDamaged: its files are not here, or are not those of this cache.
        """
        self._check_open()
        if entry.shard in self._done:
            return
        geometry = self.layout.geometry
        names = [geometry.shard_path(stack, entry.shard) for stack in geometry.stacks]
        sizes = {name: find_size(self.path / name) or 0 for name in names}
        if not self._intact(entry.shard, entry, sizes):
            raise CacheDamaged(
                f"shard {entry.shard} was written by a worker, and {self.path} here does not hold "
                "it: let the workers see the same folder under the same name, or use a bucket"
            )
        self._enter(entry)

    def wait(self) -> None:
        """Wait for the overlapped write, if any; its error is raised here."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def finish(self) -> None:
        """Close the cache with its COMPLETE record and release the lock.

        Raises:
            CacheIncomplete: shards are pending.
        """
        self._check_open()
        self.wait()
        if self.pending:
            raise CacheIncomplete(
                f"{len(self.pending)} of {self.layout.n_shards} shards of {self.path} are pending "
                f"(first: {self.pending[0]}); write them before finish()"
            )
        if isinstance(self.path, Path):
            for name in files_below(self.path):
                if name.endswith(PARTIAL):  # of a worker that was killed; its shard is done by now
                    (self.path / name).unlink(missing_ok=True)
        ledger = encode_ledger(self._done.values())
        write_if_different(self.path / LEDGER, ledger)
        write_if_different(
            self.path / COMPLETE, encode_complete(self.layout.geometry, self._config, ledger)
        )
        self.close()

    def close(self) -> None:
        """Let a running write end and release the lock; the cache can be resumed."""
        if self._thread is not None:
            self._thread.shutdown(wait=True)
        self._spare.clear()
        self._lock.release()

    def _check_open(self) -> None:
        if not self._lock.held:
            raise CacheError(f"the writer of {self.path} is closed; create it again to resume")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self.close()


def _yield_to_computing() -> None:
    """Let this thread run where the forward passes leave a core idle, instead of halting one.

    Threads of one matrix product wait for each other, so a core taken from one halts them all.
    """
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
