"""Reading a finished cache: opened only if it is whole, read only if its checksums hold.

Opening reads the index (about 90 bytes a sample) and stats every shard file; no activations.
"""

import threading
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

from ..errors import CacheDamaged, FingerprintMismatch, InvalidTap
from ..format.fingerprint import Fingerprint
from ..format.geometry import Geometry
from ..format.layout import check_keys
from ..format.ledger import Entry
from ..format.packing import BlockTable
from ..format.spec import Bytes, Ints, Stack, TapSpec, common_type, group_taps
from ..storage.location import Location, ObjectPath, absolute, parse_location
from ..storage.records import Manifest, check_metadata, read_finished, read_index, read_manifest
from .block_store import BlockStore, Factors
from .chunks import ChunkReader, Verify
from .dask_arrays import lazy_arrays
from .remote import BLOCKS, RemoteChunkReader

if TYPE_CHECKING:
    import dask.array

Array = np.ndarray[Any, Any]


class TapGroup(NamedTuple):
    """Taps of one stack, in the order asked for; `numbers` are their positions in the stack."""

    stack: Stack
    taps: tuple[str, ...]
    numbers: list[int]


class Cache:
    """A cache open for reading; use `open`.

    Attributes:
        path: of the folder, or in the object store.
        geometry: shapes and sizes.
        fingerprint: what the cache holds.
        provenance: what its maker noted: names, places, versions.
        table: place of every sample.
        row_to_sample: int64 [n_rows] or [n_rows, n_views].
        rms: tap -> size of each channel, float32, of those in int8.
    """

    def __init__(self, found: Manifest, finished: Mapping[int, Entry], verify: Verify) -> None:
        self.path = found.path
        self.geometry = found.geometry
        self.fingerprint: Fingerprint = found.fingerprint
        self.provenance = found.provenance
        self.finished = set(finished)
        self._nbytes = sum(size for e in finished.values() for size, _ in e.files.values())
        self._verify: Verify = verify
        index = {name: read_index(found, name) for name in self.geometry.index_arrays()}
        self.table = BlockTable(
            block=index["block"],
            slot=index["slot"],
            start={axis: index[f"start_{axis}"] for axis in self.geometry.block_tokens},
            length={axis: index[f"length_{axis}"] for axis in self.geometry.block_tokens},
        )
        self.row_to_sample: Ints = index["row_to_sample"]
        self.rms = _rms(found, index)
        self._keys: Bytes = index["keys"]
        self._ids = index["row_id_bytes"]
        self._id_offsets: Ints = index["row_id_offsets"]
        self._at_once = BLOCKS if isinstance(self.path, ObjectPath) else 1
        self._lock = threading.Lock()
        self._shared: WeakValueDictionary[tuple[str, ...], BlockStore] = WeakValueDictionary()
        _check_table(self)
        self._readers = {
            stack.name: _reader(self.path, self.geometry, stack, finished, verify)
            for stack in self.geometry.stacks
        }

    @classmethod
    def open(
        cls, path: str | Location, *, allow_incomplete: bool = False, verify: Verify = "always"
    ) -> "Cache":
        """Open a cache.

        Args:
            path: of the folder, or the URL of a prefix in an object store (`s3://bucket/name`).
            allow_incomplete: also open an unfinished one; only finished shards can be read.
            verify: when chunk checksums are checked: "always", at the "first" touch, or "never".

        Raises:
            CacheNotFound, CacheVersionError, CacheIncomplete, CacheDamaged: as they say.
            CacheUnreachable: the object store does not answer.
        """
        found = read_manifest(parse_location(path))
        check_metadata(found)
        return cls(found, read_finished(found, allow_incomplete=allow_incomplete), verify)

    @property
    def taps(self) -> tuple[TapSpec, ...]:
        """All taps, in the order they were declared."""
        return self.geometry.taps

    @property
    def n_samples(self) -> int:
        """Samples stored."""
        return self.geometry.n_samples

    @property
    def n_rows(self) -> int:
        """Rows of the table that was extracted; several may share a sample."""
        return self.geometry.n_rows

    @property
    def dtype(self) -> torch.dtype:
        """Type of taps that are handed out together: as stored, or float32 for int8 or several."""
        return common_type(self.geometry.types.values()) or torch.float32

    @property
    def lengths(self) -> dict[str, Ints]:
        """Tokens of each sample on each ragged axis, int64 [n_samples]."""
        return self.table.length

    @property
    def nbytes(self) -> int:
        """Bytes of the shard files that are finished."""
        return self._nbytes

    @property
    def keys(self) -> Bytes:
        """Content key of each sample, uint8 [n_samples, 16]."""
        return self._keys

    @cached_property
    def row_ids(self) -> tuple[str, ...]:
        """Name of each row; decoded at first use."""
        data, ends = self._ids.tobytes(), self._id_offsets.tolist()
        try:
            return tuple(data[low:high].decode("utf-8") for low, high in pairwise(ends))
        except UnicodeDecodeError as error:
            raise CacheDamaged(
                f"the row ids of {self.path} are not UTF-8 ({error.reason}); delete the folder and "
                "extract again"
            ) from error

    @cached_property
    def _sorted_keys(self) -> tuple[Array, Ints]:
        keys = self._keys.view("S16").reshape(-1)
        order = np.argsort(keys, kind="stable")
        return keys[order], order

    def find(self, keys: Bytes) -> Ints:
        """Return the sample of each content key, -1 where there is none.

        Args:
            keys: uint8 [m, 16].
        """
        wanted = check_keys(keys).view("S16").reshape(-1)
        known, order = self._sorted_keys
        if not len(known):
            return np.full(len(wanted), -1, np.int64)
        place = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
        return np.where(known[place] == wanted, order[place], -1).astype(np.int64)

    def group_taps(self, taps: Sequence[str]) -> list[TapGroup]:
        """Sort `taps` by the stack they lie in, in order of first appearance.

        Raises:
            InvalidTap: an unknown tap, or none.
        """
        stacks: dict[str, Stack] = {t.name: s for s in self.geometry.value_stacks for t in s.taps}
        unknown = [name for name in taps if name not in stacks]
        if unknown or not taps:
            raise InvalidTap(f"taps {unknown} are not in {self.path}; it has {list(stacks)}")
        chosen: dict[str, list[str]] = {}
        for name in taps:
            chosen.setdefault(stacks[name].name, []).append(name)
        groups = []
        for names in chosen.values():
            stack = stacks[names[0]]
            numbers = [stack.tap_names.index(name) for name in names]
            groups.append(TapGroup(stack, tuple(names), numbers))
        return groups

    def shapes(self, taps: Sequence[str]) -> tuple[Stack, ...]:
        """Sort `taps` by kind, shape and axis: as they lie together in a batch, in any type.

        Raises:
            InvalidTap: an unknown tap, or none.
        """
        self.group_taps(taps)
        known = {tap.name: tap for tap in self.taps}
        return group_taps([known[name] for name in taps])

    def shape_of(self, taps: Sequence[str]) -> Stack:
        """Return the one stack that `taps` make in a batch.

        Raises:
            InvalidTap: an unknown tap, or taps of more than one shape.
        """
        found = self.shapes(taps)
        if len(found) > 1:
            raise InvalidTap(
                "the taps asked for have different shapes and cannot be stacked "
                f"({_described(found)}); choose taps of one group"
            )
        return found[0]

    def stack_of(self, taps: Sequence[str]) -> tuple[Stack, list[int]]:
        """Return the stack that holds all of `taps` on the disk, and their positions in it.

        Raises:
            InvalidTap: an unknown tap, or taps of more than one shape or storage type.
        """
        self.shape_of(taps)
        groups = self.group_taps(taps)
        if len(groups) > 1:
            raise InvalidTap(
                "the taps asked for are stored in different types "
                f"({_described([group.stack for group in groups])}); choose taps of one type"
            )
        return groups[0].stack, groups[0].numbers

    def places(self, stack: Stack, samples: Ints) -> tuple[Ints, Ints]:
        """Return (block, row in the block) of every row of `samples` in a stack, in order."""
        if not stack.ragged:
            return self.table.block[samples], self.table.slot[samples]
        return self.table.rows(samples, stack.axis, self.geometry.block_tokens[stack.axis])

    def row_counts(self, stack: Stack, samples: Ints) -> Ints:
        """Return how many rows of a stack each sample has."""
        if not stack.ragged:
            return np.ones(len(samples), np.int64)
        return self.table.length[stack.axis][samples]

    def check_samples(self, samples: Ints) -> Ints:
        """Return sample numbers as int64, or raise `IndexError`."""
        samples = np.asarray(samples)
        if samples.size and samples.dtype.kind not in "iu":
            raise IndexError(f"sample numbers must be whole numbers, given {samples.dtype}")
        if samples.size and not 0 <= samples.min() <= samples.max() < self.n_samples:
            raise IndexError(
                f"samples {samples.min()} to {samples.max()} were asked for; {self.path} has "
                f"{self.n_samples} (0 is the first; -1 from find() means absent)"
            )
        return samples.astype(np.int64)

    def store(
        self, taps: Sequence[str], capacity: int, home: torch.device | None = None
    ) -> BlockStore:
        """Return room for `capacity` blocks of some taps of one stack, see `BlockStore`."""
        stack, numbers = self.stack_of(taps)
        reader, factors = self._readers[stack.name], self.factors(taps)
        return BlockStore(reader, self.geometry, numbers, capacity, factors=factors, home=home)

    def factors(self, taps: Sequence[str]) -> Factors | None:
        """Return what turns the codes of some taps of one stack into numbers; None unless int8."""
        scales = self.geometry.scales_of(self.stack_of(taps)[0])
        if scales is None:
            return None
        return Factors(self._readers[scales.name], [self.rms[tap] for tap in taps])

    def shared_store(self, taps: Sequence[str], home: torch.device | None = None) -> BlockStore:
        """Return room for all blocks, shared by all who ask for the same taps in the same order."""
        with self._lock:
            key = (str(home), *taps)
            store = self._shared.get(key)
            if store is None:
                store = self._shared[key] = self.store(taps, self.geometry.n_blocks, home)
            return store

    def read_block(self, stack: Stack, block: int, taps: Sequence[int], into: list[Bytes]) -> None:
        """Read taps of one block of a stack; see `ChunkReader.read_block`."""
        self._readers[stack.name].read_block(block, taps, into)

    def to_dask(self, taps: Sequence[str] | None = None) -> "dict[str, dask.array.Array]":
        """Return taps as lazy arrays, for analysis; see `arrays.lazy_arrays`.

        Args:
            taps: names; None for all.

        Returns:
            Tap to [rows, *shape]: every token or frame (or sample, for the kinds without a length
            of their own) once, without padding, in the order of `packed_order`.
        """
        names = [tap.name for tap in self.taps] if taps is None else list(taps)
        return lazy_arrays(self, names)

    @property
    def packed_order(self) -> Ints:
        """Samples in the order in which they lie on the disk, int64 [n_samples]."""
        return np.lexsort((self.table.slot, self.table.block)).astype(np.int64)

    def __reduce__(self) -> tuple[Any, ...]:
        incomplete = len(self.finished) < self.geometry.n_shards
        return _reopen, (absolute(self.path), self._verify, incomplete, self.fingerprint.digest)

    def read(self, samples: Ints, taps: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Read samples.

        Args:
            samples: int64 [b], in any order, also repeated.
            taps: names; None for all.

        Returns:
            Tap to values in its storage type (float32 for int8): [sum of lengths, *shape] packed in
            the order of `samples` for the kinds "tokens" and "frames", [b, *shape] otherwise.

        Raises:
            CacheDamaged, CacheIncomplete, InvalidTap, IndexError: as they say.
        """
        samples = self.check_samples(np.asarray(samples).reshape(-1))
        names = [tap.name for tap in self.taps] if taps is None else list(taps)
        result: dict[str, Tensor] = {}
        for group in self.group_taps(names):
            blocks, rows = self.places(group.stack, samples)
            # few blocks at a time: few bytes beside the result
            values = self.store(group.taps, capacity=self._at_once).gather(blocks, rows)
            result |= dict(zip(group.taps, values, strict=True))
        return {name: result[name] for name in names}


def _described(stacks: Sequence[Stack]) -> str:
    return "; ".join(f"{stack.name}: {', '.join(stack.tap_names)}" for stack in stacks)


@lru_cache(maxsize=4)
def _reopen(path: str, verify: Verify, incomplete: bool, digest: str) -> Cache:
    """Open the cache of a pickled one, once a process."""
    cache = Cache.open(path, allow_incomplete=incomplete, verify=verify)
    if cache.fingerprint.digest != digest:
        raise FingerprintMismatch(f"{path} was replaced by another cache; open it again")
    return cache


def _reader(
    root: Location,
    geometry: Geometry,
    stack: Stack,
    finished: Mapping[int, Entry],
    verify: Verify,
) -> ChunkReader:
    if isinstance(root, ObjectPath):
        return RemoteChunkReader(root, geometry, stack, finished, verify)
    return ChunkReader(root, geometry, stack, finished, verify)


def _rms(found: Manifest, index: dict[str, Array]) -> dict[str, Tensor]:
    """Return the RMS of each tap's channels; refuse what no calibration gives."""
    geometry = found.geometry
    result: dict[str, Tensor] = {}
    for stack in geometry.quantized_stacks:
        table = torch.from_numpy(index[geometry.rms_name(stack)])
        if not (torch.isfinite(table) & (table > 0)).all():
            raise CacheDamaged(
                f"the RMS of {stack.name} in {found.path} is not a positive number throughout; "
                "delete the folder and extract again"
            )
        result |= dict(zip(stack.tap_names, table, strict=True))
    return result


def _check_table(cache: Cache) -> None:
    """Raise `CacheDamaged` if the index points outside the cache."""
    geometry, table = cache.geometry, cache.table
    last = np.zeros(cache.n_samples, np.int64)  # blocks after the first
    good = True
    for axis, size in geometry.block_tokens.items():
        start, length = table.start[axis], table.length[axis]
        good &= bool(((start >= 0) & (start <= size) & (length >= 0)).all())
        last = np.maximum(last, (start + length - 1) // size)
    good &= bool(((table.block >= 0) & (table.block + last < geometry.n_blocks)).all())
    good &= bool(((table.slot >= 0) & (table.slot < geometry.samples_per_block)).all())
    rows = cache.row_to_sample
    good &= bool(((rows >= 0) & (rows < cache.n_samples)).all())
    ends = cache._id_offsets
    good &= bool(ends[0] == 0 and ends[-1] == geometry.row_id_bytes and (np.diff(ends) >= 0).all())
    if not good:
        raise CacheDamaged(
            f"the index of {cache.path} contradicts its metadata; delete the folder and extract"
            " again"
        )
