"""Extraction: inputs -> frozen backbone -> cache. The one stage that runs the backbone.

Cost: one forward pass over each unique input, and its states on disk (taps x width x 2 bytes a
token in float16; a ViT-B/32 frame 1 MB, ResNeXt stages at 512 px 15.7 MB). Memory is flat in the
number of inputs: token ids (5 bytes a token) or paths, a few batches of pixels, and at most two
shards of states. The forward passes are bucketed by length inside a shard's set of samples, which
the cache permuted: order on disk stays random, padding stays small. While one shard is written, the
next is computed; while one batch is computed, the next pictures are decoded.
"""

import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray

from cache import CacheLayout, CacheWriter, Calibration, calibration_samples
from cache.format.geometry import ROOT
from cache.format.spec import StorageTypes, common_type
from cache.storage.location import Location, ObjectPath, files_below
from pipeline.backbones import Backbone, check_frozen
from pipeline.errors import PipelineError
from pipeline.extraction.config import (
    BadMediaPolicy,
    ExtractConfig,
    ExtractOptions,
    RetrievalExtractConfig,
)
from pipeline.extraction.job import (
    RESUME,
    Crew,
    InputFailed,
    OtherBackbone,
    ShardJob,
    passes,
    put,
    torch_threads,
)
from pipeline.extraction.report import ExtractReport, Meter, Progress, ProgressCallback
from pipeline.inputs import Input
from pipeline.table import InputTable, build_table, describe_truncation

__all__ = [
    "Crew",
    "ExtractConfig",
    "ExtractReport",
    "ExtractionInterrupted",
    "InputFailed",
    "NotEnoughDisk",
    "OtherBackbone",
    "Progress",
    "RetrievalExtractConfig",
    "check_disk",
    "extract",
    "extract_inputs",
    "free_bytes",
    "shard_batches",
    "unit_of",
    "written_bytes",
]


class NotEnoughDisk(PipelineError, OSError):  # noqa: N818 - says it all
    """The disk cannot hold the cache that was asked for."""


class ExtractionInterrupted(KeyboardInterrupt):
    """Ctrl-C during an extraction; the message says how to go on."""


def extract(config: ExtractOptions, *, progress: ProgressCallback | None = None) -> ExtractReport:
    """Extract every input of the config's data into the cache `config.out`, or go on doing so.

    Args:
        config: an `ExtractConfig` for sentences, a `RetrievalExtractConfig` for one tower.
        progress: called after every forward pass, or every shard of several workers.

    Raises:
        BackboneError: the backbone cannot be loaded or tapped.
        BadMedia: pictures or clips cannot be read, and none may be skipped.
        InputFailed: a picture or clip failed or changed during the run.
        NotEnoughDisk: the cache would not fit, and `config.force` is off.
        FingerprintMismatch: `config.out` holds another cache.
        ActivationOverflow: a state does not fit its storage type.
        ConfigError: a pattern of `config.store_dtype_of` matches no tap.
        WorkersFailed, OtherBackbone: workers cannot be reached, died, or compute something else.
        ExtractionInterrupted: Ctrl-C; finished shards are kept.
    """
    try:
        dataset = config.load_data()
        backbone = config.load_backbone()
        rows = config.rows(dataset, backbone.modality)
        return extract_inputs(
            backbone,
            rows.inputs,
            config.out,
            views=rows.views,
            augmented=rows.augmented,
            bad_media=rows.bad_media,
            store_dtype=config.storage(backbone),
            compress=config.compress,
            seed=config.seed,
            batch_tokens=config.batch_bound(backbone.modality),
            block_tokens=config.block_tokens,
            force=config.force,
            crew=config.crew(),
            threads=config.threads,
            progress=progress,
        )
    except ExtractionInterrupted:
        raise
    except KeyboardInterrupt as stop:
        raise ExtractionInterrupted(f"stopped; {RESUME}") from stop


def extract_inputs(
    backbone: Backbone,
    inputs: Sequence[tuple[str, Input]],
    path: Location,
    *,
    views: int = 1,
    augmented: NDArray[np.bool_] | None = None,
    bad_media: BadMediaPolicy = "error",
    store_dtype: StorageTypes = "float16",
    compress: str = "none",
    seed: int = 0,
    batch_tokens: int | None = None,
    block_tokens: int = 640,
    force: bool = False,
    crew: Crew | None = None,
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
        batch_tokens: bound of a forward pass: tokens with padding, frames, or images.
        block_tokens: tokens of a cache block.
        force: start even if the free disk space looks too small.
        crew: other processes that compute; None for this one.
        threads: of torch in each process; None for all cores, shared by the crew.
        progress: called after every forward pass, or every shard of a crew.
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
            rms = _calibrate(backbone, table, layout, batch_tokens)
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
        pending = list(writer.pending)
        lengths = table.encoded.lengths
        total = sum(int(lengths[writer.samples_of(shard)].sum()) for shard in pending)
        meter = Meter(total, len(pending), unit_of(backbone), progress)
        try:
            if crew is not None:  # no more hands than shards
                crew = replace(crew, workers=max(1, min(crew.workers, len(pending))))
            if crew is None or not pending:
                with torch_threads(threads):
                    _fill(writer, pending, backbone, table, batch_tokens=batch_tokens, meter=meter)
            else:
                job = ShardJob(
                    load=crew.load,
                    table=table,
                    layout=writer.layout,
                    root=writer.path,
                    config=writer.config,
                    batch_tokens=batch_tokens,
                    threads=threads or crew.threads_each,
                )
                _fill_by_crew(crew, writer, pending, job, meter)
        except KeyboardInterrupt as stop:
            raise ExtractionInterrupted(
                f"stopped after {meter.done:,} of {total:,} {meter.unit}; {RESUME}"
            ) from stop
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
        shards_written=len(pending),
        bytes=layout.total_bytes if layout.geometry.level is None else written_bytes(path),
        seconds=seconds,
        tokens_per_second=meter.done / seconds if pending else 0.0,
        fingerprint=layout.fingerprint.digest,
        unit=unit_of(backbone),
        views=table.views,
        notes=table.notes,
        skipped=table.skipped,
    )


def unit_of(backbone: Backbone) -> str:
    """Return what the lengths of a backbone's inputs count: tokens, frames or images."""
    return {"text": "tokens", "image": "images", "video": "frames"}[backbone.modality]


def shard_batches(
    backbone: Backbone, layout: CacheLayout, table: InputTable, batch_tokens: int | None = None
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield (shard, samples) of every forward pass of an extraction, in its order."""
    for shard in range(layout.n_shards):
        for batch in backbone.batches(
            layout.samples_of(shard), table.encoded.lengths, batch_tokens
        ):
            yield shard, batch


def check_disk(path: Location, total_bytes: int) -> None:
    """Raise `NotEnoughDisk` unless the disk of `path` can take what is not yet written there."""
    if isinstance(path, ObjectPath):
        return
    missing, free = max(0, total_bytes - written_bytes(path)), free_bytes(path)
    if missing > free:
        raise NotEnoughDisk(
            f"the cache needs {missing:,} more bytes at {path}, the disk has {free:,} free. Record "
            "fewer taps (--taps), shorten texts (--max-length) or clips (--max-frames), shrink "
            "pictures (--image-size), choose another disk, or use --force to start anyway"
        )


def free_bytes(path: Location) -> int:
    """Return the free bytes of the disk that `path` is, or would be, on; a store has no end."""
    if isinstance(path, ObjectPath):
        return sys.maxsize
    existing = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    return shutil.disk_usage(existing).free


def written_bytes(path: Location) -> int:
    """Return the bytes of all files below `path`; 0 if it does not exist."""
    return sum(files_below(path).values())


def _calibrate(
    backbone: Backbone, table: InputTable, layout: CacheLayout, batch_tokens: int | None
) -> dict[str, torch.Tensor]:
    """Return the size of every channel of the int8 taps, from some of the first shard's samples."""
    coded = [tap for stack in layout.geometry.quantized_stacks for tap in stack.tap_names]
    found, samples = Calibration(), calibration_samples(layout)
    batches = backbone.batches(samples, table.encoded.lengths, batch_tokens)
    with closing(passes(backbone, table, ((0, batch) for batch in batches))) as made:
        for each in made:
            states = each.states(backbone)
            found.add({tap: states[tap] for tap in coded})
    return found.rms()


def _fill(
    writer: CacheWriter,
    pending: list[int],
    backbone: Backbone,
    table: InputTable,
    *,
    batch_tokens: int | None,
    meter: Meter,
) -> None:
    """Compute and write the `pending` shards in this process."""
    lengths, dtype = table.encoded.lengths, common_type(writer.layout.geometry.types.values())
    batches = (
        (shard, batch)
        for shard in pending
        for batch in backbone.batches(writer.samples_of(shard), lengths, batch_tokens)
    )
    with closing(passes(backbone, table, batches)) as made:
        for shard, group in groupby(made, lambda each: each.shard):
            with writer.shard(shard) as buffer:
                for each in group:
                    put(buffer, each, backbone, dtype)
                    meter.add(int(lengths[each.samples].sum()))
            meter.shards += 1


def _fill_by_crew(
    crew: Crew, writer: CacheWriter, pending: list[int], job: ShardJob, meter: Meter
) -> None:
    """Let other processes compute and write the `pending` shards."""
    try:
        from pipeline.extraction.workers import fill_by_workers, workers_of  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise PipelineError(
            f"several workers need Dask's scheduler ({error}): pip install 'dask[distributed]', or "
            "leave out --workers and --scheduler"
        ) from error

    def finished(shard: int) -> None:
        meter.shards += 1
        meter.add(int(job.table.encoded.lengths[writer.samples_of(shard)].sum()))

    with workers_of(crew) as client:
        fill_by_workers(client, job, writer, pending, finished)
