"""Made-up activations of BERT-base's size, for benchmarks that need bytes and no network.

Random numbers, so that nothing can compress or skip them; sentences of 4 to 54 tokens, 29 in the
mean, as movie reviews have. A sample's states are a slice of one pool of noise at a place of its
own: cheap to make, different for each sample, and the same in every format that is compared.
"""

import hashlib
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cache import Cache, CacheWriter, Fingerprint, ShardBuffer, TapSpec
from cache.format.spec import Ints

TAPS, WIDTH = 13, 768
_POOL = 4096


class Activations:
    """The states of `n` sentences, [T, taps, width] float16 each.

    Args:
        n: sentences.
        taps, width: of the network.
        length: tokens of each; None for those of sentences.
    """

    def __init__(
        self, n: int, *, taps: int = TAPS, width: int = WIDTH, length: int | None = None
    ) -> None:
        rng = np.random.default_rng(0)
        self.taps = [
            TapSpec(name=f"layer.{i:02}", kind="tokens", shape=(width,)) for i in range(taps)
        ]
        lengths = rng.integers(4, 55, n) if length is None else np.full(n, length)
        self.lengths: Ints = lengths.astype(np.int64)
        self._start = rng.integers(0, _POOL - 64, n)
        noise = rng.standard_normal((_POOL, taps, width), np.float32)
        self._pool = torch.from_numpy(noise).half()

    @property
    def nbytes(self) -> int:
        """Bytes of all states."""
        return int(self.lengths.sum()) * self._pool[0].nbytes

    def states(self, sample: int) -> Tensor:
        """Return one sentence's states, [T, taps, width], a view."""
        low = int(self._start[sample])
        return self._pool[low : low + int(self.lengths[sample])]

    def writer(self, path: Path, *, overlap: bool = False) -> CacheWriter:
        """Start a cache of these activations."""
        n = len(self.lengths)
        digests = [hashlib.md5(b"%d" % i, usedforsecurity=False).digest() for i in range(n)]
        return CacheWriter.create(
            path,
            taps=self.taps,
            lengths={"tokens": self.lengths},
            keys=np.frombuffer(b"".join(digests), np.uint8).reshape(n, 16),
            row_to_sample=np.arange(n, dtype=np.int64),
            row_ids=[str(i) for i in range(n)],
            dtype="float16",
            fingerprint=Fingerprint({"made": "up"}),
            overlap=overlap,
        )

    def write(self, path: Path) -> Cache:
        """Write the whole cache and open it."""
        with self.writer(path) as writer:
            for shard in writer.pending:
                self.fill(writer, shard)
            writer.finish()
        return Cache.open(path)

    def fill(self, writer: CacheWriter, shard: int) -> None:
        """Put all samples of a shard."""
        with writer.shard(shard) as buffer:
            self.put(buffer, writer.samples_of(shard))

    def put(self, buffer: ShardBuffer, samples: Ints) -> None:
        """Put samples into their shard, 64 at a time as an extraction does."""
        for low in range(0, len(samples), 64):
            part = samples[low : low + 64]
            states = torch.cat([self.states(sample) for sample in part.tolist()])
            buffer.put(part, {tap.name: states[:, i] for i, tap in enumerate(self.taps)})


def forget(path: Path) -> None:
    """Drop a file or all files of a folder from the page cache (`posix_fadvise`, `DONTNEED`).

    They are flushed first, as pages that still have to be written stay. Maps of them must be gone.
    """
    for file in [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file()):
        fd = os.open(file, os.O_RDONLY)
        try:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)
