"""From rows of inputs to a finished cache: laid out, calibrated, filled shard by shard, closed.

There is one loop, `ShardJob.fill`; this process runs it, or every worker of a pool does. The
forward passes are bucketed by length inside a shard's set of samples, which the cache permuted:
order on disk stays random, padding stays small. While one shard is written, the next is computed;
while one batch is computed, the next images are decoded. Memory: at most two shards of states.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from cache import CacheLayout, CacheWriter, Calibration, ShardBuffer, calibration_samples
from cache.format.geometry import ROOT
from cache.format.spec import StorageTypes
from cache.storage.location import Location
from pipeline.backbones import Backbone, check_frozen
from pipeline.extraction.disk import check_disk, written_bytes
from pipeline.extraction.job import (
    RESUME,
    ShardJob,
    WorkerPool,
    numbered_batches,
    passes,
    torch_threads,
)
from pipeline.extraction.report import ExtractReport, Meter, ProgressCallback
from pipeline.extraction.table import (
    BadMediaPolicy,
    InputTable,
    Row,
    build_table,
    describe_truncation,
)
from pipeline.extras import require


class ExtractionInterrupted(KeyboardInterrupt):
    """Ctrl-C during an extraction; the message says how to go on."""


def extract_inputs(
    backbone: Backbone,
    inputs: Sequence[Row],
    path: Location,
    *,
    views: int = 1,
    augmented: NDArray[np.bool_] | None = None,
    bad_media: BadMediaPolicy = "error",
    store_dtype: StorageTypes = "float16",
    compress: str = "none",
    seed: int = 0,
    batch_bound: int | None = None,
    block_tokens: int = 640,
    force: bool = False,
    pool: WorkerPool | None = None,
    threads: int | None = None,
    progress: ProgressCallback | None = None,
) -> ExtractReport:
    """Extract `inputs`, given as (row id, input), into the cache at `path`; see `extract`.

    Args:
        backbone: the frozen model.
        inputs: the rows.
        path: folder or object path of the cache.
        views: versions of each augmented row; see `build_table`.
        augmented: which rows those are, bool [m]; None for all.
        bad_media: "error" refuses media that cannot be read, "skip" leaves their rows out.
        store_dtype: type of the numbers on disk, of all taps or of each by its name.
        compress: compression of the numbers on disk: "none", "zstd" or "zstd:LEVEL".
        seed: of the order on disk.
        batch_bound: bound of a forward pass: tokens with padding, frames, or images.
        block_tokens: tokens of a cache block.
        force: start even if the free disk space looks too small.
        pool: other processes that compute; None for this one.
        threads: of torch in each process; None for all cores, shared by the workers.
        progress: called after every forward pass, or every shard of a worker.

    Raises:
        ExtractionInterrupted: Ctrl-C; finished shards are kept.
    """
    check_frozen(backbone.model, backbone.tap_modules)
    table = build_table(backbone, inputs, views=views, augmented=augmented, on_bad_media=bad_media)
    layout = table.layout(
        backbone, dtype=store_dtype, seed=seed, block_tokens=block_tokens, compression=compress
    )
    if not force:
        check_disk(path, layout.total_bytes)
    rms = None
    if layout.geometry.quantized_stacks and not (path / ROOT).exists():  # a resumed one has its own
        with torch_threads(threads):
            rms = calibrate(backbone, table, layout, batch_bound)
    with CacheWriter.create(
        path,
        taps=backbone.taps,
        lengths=table.lengths(backbone.taps),
        keys=table.keys,
        row_to_sample=table.row_to_sample,
        row_ids=table.row_ids,
        dtype=store_dtype,
        fingerprint=layout.fingerprint,
        provenance=layout.provenance,
        rms=rms,
        compression=compress,
        seed=seed,
        block_tokens=block_tokens,
        overlap=True,
    ) as writer:
        job = ShardJob(
            load=pool.load if pool else lambda: backbone,
            table=table,
            layout=writer.layout,
            root=writer.path,
            config=writer.config,
            batch_bound=batch_bound,
            threads=threads or (pool.threads_each if pool else None),
        )
        meter = _fill(writer, job.use(backbone), pool, backbone.unit, progress)
        writer.finish()
        seconds = meter.seconds
    return ExtractReport(
        path=path,
        rows=len(table.row_ids),
        samples=table.n_samples,
        tokens=int(table.encoded.lengths.sum()),
        truncated=int(table.encoded.truncated.sum()),
        truncation=describe_truncation(table, getattr(backbone, "max_length", None)),
        taps=tuple(backbone.tap_modules),
        shards=layout.n_shards,
        shards_written=meter.n_shards,
        bytes=layout.total_bytes if layout.geometry.level is None else written_bytes(path),
        seconds=seconds,
        tokens_per_second=meter.done / seconds if meter.n_shards else 0.0,
        fingerprint=layout.fingerprint.digest,
        unit=backbone.unit,
        views=table.views,
        notes=table.notes,
        skipped=table.skipped,
    )


def shard_batches(
    backbone: Backbone, layout: CacheLayout, table: InputTable, batch_bound: int | None = None
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield (shard, samples) of every forward pass of an extraction, in its order."""
    return numbered_batches(backbone, layout, table, range(layout.n_shards), batch_bound)


def calibrate(
    backbone: Backbone, table: InputTable, layout: CacheLayout, batch_bound: int | None
) -> dict[str, torch.Tensor]:
    """Return the size of every channel of the int8 taps, from some of the first shard's samples."""
    coded = [tap for stack in layout.geometry.quantized_stacks for tap in stack.tap_names]
    found, samples = Calibration(), calibration_samples(layout)
    batches = backbone.batches(samples, table.encoded.lengths, batch_bound)
    with closing(passes(backbone, table, ((0, batch) for batch in batches))) as made:
        for each in made:
            states = each.states(backbone)
            found.add({tap: states[tap] for tap in coded})
    return found.rms()


def _fill(
    writer: CacheWriter,
    job: ShardJob,
    pool: WorkerPool | None,
    unit: str,
    progress: ProgressCallback | None,
) -> Meter:
    """Compute and write what is pending, here or by the workers of a pool."""
    pending, lengths = list(writer.pending), job.table.encoded.lengths
    tokens = {shard: int(lengths[writer.samples_of(shard)].sum()) for shard in pending}
    meter = Meter(sum(tokens.values()), len(pending), unit, progress)
    try:
        if pool is None or not pending:
            job.fill(pending, _counted(writer, meter), meter.add)
            return meter
        pool = replace(pool, workers=max(1, min(pool.workers, len(pending))))  # no idle hands
        fill_by_pool(pool, job, writer, pending, lambda shard: meter.add(tokens[shard], shards=1))
    except KeyboardInterrupt as stop:
        raise ExtractionInterrupted(
            f"stopped after {meter.done:,} of {meter.total:,} {unit}; {RESUME}"
        ) from stop
    return meter


def _counted(
    writer: CacheWriter, meter: Meter
) -> Callable[[int], AbstractContextManager[ShardBuffer]]:
    """Return what opens the buffer of a shard, and counts the shard once it is full."""

    @contextmanager
    def buffer_of(shard: int) -> Iterator[ShardBuffer]:
        with writer.shard(shard) as buffer:
            yield buffer
        meter.shards += 1

    return buffer_of


def fill_by_pool(
    pool: WorkerPool,
    job: ShardJob,
    writer: CacheWriter,
    pending: Sequence[int],
    finished: Callable[[int], object],
) -> None:
    """Let the processes of `pool` fill the pending shards; each enters the ledger when done.

    Raises:
        MissingExtra: Dask's scheduler is not installed.
        WorkersFailed: workers cannot be reached, or died over and over.
    """
    workers = require("pipeline.extraction.workers")  # Dask takes a second to import
    with workers.workers_of(pool) as client:
        workers.fill_by_workers(client, job, writer, pending, finished)
