"""Filling shards: the forward passes of some shards, put into their buffers in the storage type.

`ShardJob` is all that a process needs to compute any shard of one cache: this process, or a worker,
to which it is sent once (token ids at 5 bytes a token, and about 90 bytes a sample); a worker's
task is then the number of a shard. The backbone is loaded at the first task, once a process.
Memory: two shards of states, one being computed while the other is written.
"""

import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cache import ActivationOverflow, CacheLayout, ShardBuffer
from cache.format.ledger import Entry
from cache.format.spec import common_type
from cache.storage.location import Location
from pipeline.backbones import Backbone, check_frozen
from pipeline.errors import PipelineError
from pipeline.extraction.feed import Pass, feed
from pipeline.extraction.media import UNREADABLE
from pipeline.extraction.table import InputTable
from pipeline.inputs import FACTS

RESUME = "finished shards are kept. Run the same command again to go on"
_BUFFERS = 2


class InputFailed(PipelineError, RuntimeError):  # noqa: N818 - says it all
    """A media file failed during the run; the message names it and says how to go on."""


class OtherBackbone(PipelineError, RuntimeError):  # noqa: N818
    """A worker loaded another backbone than the process that started it."""


def passes(
    backbone: Backbone,
    table: InputTable,
    batches: Iterator[tuple[int, NDArray[np.int64]]],
    threads: int | None = None,
) -> Generator[Pass]:
    """Yield the forward passes of `batches`; an error while one is made ready names the way on."""
    try:
        yield from feed(backbone, table, batches, threads)
    except UNREADABLE as error:
        raise InputFailed(
            f"{error}. This came up during the run: finished shards are kept. Put the file back as "
            "it was and run the same command again to go on; without it (--bad-media skip) the "
            "cache is another one and needs another folder"
        ) from error


def numbered_batches(
    backbone: Backbone,
    layout: CacheLayout,
    table: InputTable,
    shards: Iterable[int],
    batch_bound: int | None,
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield (shard, samples) of every forward pass of `shards`, in their order."""
    for shard in shards:
        samples = layout.samples_of(shard)
        for batch in backbone.batches(samples, table.encoded.lengths, batch_bound):
            yield shard, batch


def put(buffer: ShardBuffer, each: Pass, backbone: Backbone, dtype: torch.dtype | None) -> None:
    """Compute one batch in the storage type, None if there are several; put it into the buffer."""
    try:
        buffer.put(each.samples, each.states(backbone, dtype))
    except ActivationOverflow:
        buffer.put(each.samples, each.states(backbone))  # raises with the value that overflowed
        raise


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Let torch compute with `count` threads for a while; None changes nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True, kw_only=True)
class WorkerPool:
    """Who computes: so many processes on this machine, or the workers of a running scheduler.

    Args:
        load: gives a worker its backbone; must pickle.
        workers: processes on this machine.
        scheduler: address of a Dask scheduler instead.
    """

    load: Callable[[], Backbone]
    workers: int = 1
    scheduler: str | None = None

    @property
    def threads_each(self) -> int | None:
        """Threads of torch in each process; None: what the scheduler's workers were given."""
        if self.scheduler is not None:
            return None
        return max(1, (os.cpu_count() or 1) // self.workers)


@dataclass(eq=False)
class ShardJob:
    """What fills any shard of one cache, in any process that sees the same files.

    Args:
        load: gives the backbone; must pickle where the job is sent to workers.
        table: the inputs.
        layout: of the cache, with the calibration of int8.
        root: the cache, its metadata written.
        config: digest of its root metadata.
        batch_bound: bound of a forward pass.
        threads: of torch in this process; None leaves torch's.
    """

    load: Callable[[], Backbone]
    table: InputTable
    layout: CacheLayout
    root: Location
    config: str
    batch_bound: int | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        self._backbone: Backbone | None = None
        self._computing = threading.Lock()
        self._buffers = threading.Semaphore(_BUFFERS)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.__post_init__()

    def use(self, backbone: Backbone) -> "ShardJob":
        """Take a backbone that this process has and that the cache was laid out for."""
        self._backbone = backbone
        return self

    def write(self, shard: int) -> Entry:
        """Compute a shard and write its files; return the ledger line that makes them count.

        Raises:
            OtherBackbone: the weights or the arithmetic here are not those of the existing cache.
            InputFailed, ActivationOverflow, CacheFull: as in `extract`.
        """
        with self._buffers:
            with self._computing:
                buffer = ShardBuffer(self.layout, shard)
                self.fill([shard], lambda _: nullcontext(buffer))
            return buffer.write(self.root, self.config, alone=False)

    def fill(
        self,
        shards: Iterable[int],
        buffer_of: Callable[[int], AbstractContextManager[ShardBuffer]],
        told: Callable[[int], object] = lambda _: None,
    ) -> None:
        """Compute `shards` in their order, each in the context of its buffer.

        Args:
            shards: their numbers.
            buffer_of: opens the buffer of a shard; leaving it means that the shard is full.
            told: called with the tokens (frames, images) of each forward pass.
        """
        self._backbone = self._backbone or self._checked_backbone()
        backbone, lengths = self._backbone, self.table.encoded.lengths
        types = self.layout.geometry.types
        dtype = common_type(each for tap, each in types.items() if tap not in FACTS)
        batches = numbered_batches(backbone, self.layout, self.table, shards, self.batch_bound)
        with (
            torch_threads(self.threads),
            closing(passes(backbone, self.table, batches, self.threads)) as made,
        ):
            for shard, group in groupby(made, lambda each: each.shard):
                with buffer_of(shard) as buffer:
                    for each in group:
                        put(buffer, each, backbone, dtype)
                        told(int(lengths[each.samples].sum()))

    def _checked_backbone(self) -> Backbone:
        backbone = self.load()
        check_frozen(backbone.model, backbone.tap_modules)
        here = self.table.fingerprint(backbone, self.layout.geometry.types)
        differences = self.layout.fingerprint.diff(here, ("existing cache", "this worker"))
        if differences:
            raise OtherBackbone(
                "a worker computes something else than the process that began the cache:\n  "
                + "\n  ".join(differences)
                + "\nGive all of them the same files, and --device and --dtype by name where their "
                "devices differ"
            )
        return backbone
