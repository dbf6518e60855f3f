"""Extraction: inputs -> frozen backbone -> cache. The one stage that runs the backbone.

Cost: one forward pass over each unique input, and its states on disk (taps x width x 2 bytes a
token in float16). Memory is flat in the number of inputs: token ids (5 bytes a token) and at most
two shards of states. The forward passes are bucketed by length inside a shard's set of samples,
which the cache permuted: order on disk stays random, padding stays small. While one shard is
written, the next is computed.
"""

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from cache import ActivationOverflow, CacheLayout, CacheWriter, ShardBuffer
from cache.spec import TORCH_TYPES, StorageType
from pipeline.backbones import Encoded, TextBackbone, check_frozen, load_backbone
from pipeline.config import Config
from pipeline.console import duration
from pipeline.data import DataConfig, load_dataset
from pipeline.errors import PipelineError
from pipeline.inputs import TextInput
from pipeline.table import InputTable, build_table, describe_truncation

RESUME = "finished shards are kept. Run the same command again to go on"


class ExtractConfig(Config):
    """What to extract: a backbone, inputs, taps, and where the cache goes."""

    backbone: str
    """Local folder or hub id of the frozen text model."""
    out: Path
    """Folder of the cache; a started one is resumed."""
    data: DataConfig
    """The examples whose inputs are extracted, all splits together."""
    taps: tuple[str, ...] | None = None
    """Glob pattern of taps to record, such as 'encoder.layer.*'; all taps if absent."""
    max_length: int | None = Field(default=None, ge=1)
    """Longest input in tokens; by default what tokenizer and model allow, at most 512."""
    device: str = "auto"
    """Torch device of the forward passes; auto takes cuda, then mps, then cpu."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the arithmetic; auto is float32, and on CUDA a half type under autocast."""
    store_dtype: StorageType = "float16"
    """Type of the numbers on disk; bfloat16 where states overflow float16."""
    batch_tokens: int | None = Field(default=None, ge=1)
    """Bound of a forward pass, in tokens with padding; by default 2048 on a CPU, 16384 on a GPU."""
    block_tokens: int = Field(default=640, ge=1)
    """Tokens of a cache block, the unit of reading."""
    seed: int = Field(default=0, ge=0)
    """Seed of the order on disk, and of the weights with --random-init."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    trust_remote_code: bool = False
    """Run the model code that comes with a checkpoint."""
    random_init: bool = False
    """Use random weights instead of the checkpoint's: for measurements only."""
    force: bool = False
    """Start even if the free disk space looks too small."""

    def load_backbone(self) -> TextBackbone:
        """Load the backbone this config names."""
        return load_backbone(
            self.backbone,
            device=self.device,
            dtype=self.dtype,
            taps=self.taps,
            max_length=self.max_length,
            revision=self.revision,
            trust_remote_code=self.trust_remote_code,
            random_init=self.random_init,
            seed=self.seed,
        )


class Progress(NamedTuple):
    """How far an extraction is: tokens and shards of this run, tokens a second, seconds left."""

    tokens: int
    total_tokens: int
    shard: int
    n_shards: int
    rate: float
    eta: float

    def describe(self) -> str:
        """Return one line: share done, shard, tokens a second, time left."""
        return (
            f"{self.tokens / max(1, self.total_tokens):4.0%}  shard {self.shard + 1} of "
            f"{self.n_shards}  {self.rate:,.0f} tokens/s  {duration(self.eta)} left"
        )


ProgressCallback = Callable[[Progress], None]


class NotEnoughDisk(PipelineError, OSError):  # noqa: N818 - says it all
    """The disk cannot hold the cache that was asked for."""


class ExtractionInterrupted(KeyboardInterrupt):
    """Ctrl-C during an extraction; the message says how to go on."""


@dataclass(frozen=True, kw_only=True)
class ExtractReport:
    """What an extraction did.

    Attributes:
        path: the cache.
        rows: rows of the table; `samples` of them are unique.
        tokens: tokens stored, without duplicates and padding.
        truncated: unique inputs that were cut; `truncation` says which, or is None.
        shards: shards of the cache; `shards_written` of them by this run.
        bytes: size of the finished folder.
        seconds: of the forward passes and the writing, in this run.
        tokens_per_second: valid tokens of this run a second; 0 if nothing was left to do.
    """

    path: Path
    rows: int
    samples: int
    tokens: int
    truncated: int
    truncation: str | None
    taps: tuple[str, ...]
    shards: int
    shards_written: int
    bytes: int
    seconds: float
    tokens_per_second: float
    fingerprint: str

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return asdict(self) | {"path": str(self.path), "taps": list(self.taps)}

    def render(self) -> str:
        """Return the report as lines of text."""
        lines = [
            f"{self.path}: {self.samples:,} unique inputs of {self.rows:,} rows, "
            f"{self.tokens:,} tokens x {len(self.taps)} taps, {self.bytes:,} bytes",
            f"{self.shards_written} of {self.shards} shards computed in {self.seconds:.1f} s"
            + (f" ({self.tokens_per_second:,.0f} tokens/s)" if self.shards_written else ""),
        ]
        return "\n".join(lines + ([self.truncation] if self.truncation else []))


def extract(config: ExtractConfig, *, progress: ProgressCallback | None = None) -> ExtractReport:
    """Extract every input of `config.data` into the cache `config.out`, or go on doing so.

    Raises:
        BackboneError: the backbone cannot be loaded or tapped.
        NotEnoughDisk: the cache would not fit, and `config.force` is off.
        FingerprintMismatch: `config.out` holds another cache.
        ActivationOverflow: a state does not fit `config.store_dtype`.
        ExtractionInterrupted: Ctrl-C; finished shards are kept.
    """
    try:
        inputs = load_dataset(config.data).inputs()
        return extract_inputs(
            config.load_backbone(),
            inputs,
            config.out,
            store_dtype=config.store_dtype,
            seed=config.seed,
            batch_tokens=config.batch_tokens,
            block_tokens=config.block_tokens,
            force=config.force,
            progress=progress,
        )
    except ExtractionInterrupted:
        raise
    except KeyboardInterrupt as stop:
        raise ExtractionInterrupted(f"stopped; {RESUME}") from stop


def extract_inputs(
    backbone: TextBackbone,
    inputs: Sequence[tuple[str, TextInput]],
    path: Path,
    *,
    store_dtype: StorageType = "float16",
    seed: int = 0,
    batch_tokens: int | None = None,
    block_tokens: int = 640,
    force: bool = False,
    progress: ProgressCallback | None = None,
) -> ExtractReport:
    """Extract `inputs`, given as (row id, input), into the cache at `path`; see `extract`."""
    check_frozen(backbone.model, backbone.tap_modules)
    table = build_table(backbone, inputs)
    layout = table.layout(backbone, dtype=store_dtype, seed=seed, block_tokens=block_tokens)
    if not force:
        check_disk(path, layout.total_bytes)
    with CacheWriter.create(
        path,
        taps=backbone.taps,
        lengths={"tokens": table.encoded.lengths},
        keys=table.keys,
        row_to_sample=table.row_to_sample,
        row_ids=table.row_ids,
        dtype=store_dtype,
        fingerprint=layout.fingerprint,
        origin=layout.origin,
        seed=seed,
        block_tokens=block_tokens,
        overlap=True,
    ) as writer:
        pending = list(writer.pending)
        started = time.perf_counter()
        tokens = _fill(
            writer, pending, backbone, table, batch_tokens=batch_tokens, progress=progress
        )
        writer.finish()
        seconds = time.perf_counter() - started
    return ExtractReport(
        path=path,
        rows=len(table.row_ids),
        samples=table.n_samples,
        tokens=int(table.encoded.lengths.sum()),
        truncated=int(table.encoded.truncated.sum()),
        truncation=describe_truncation(table, backbone.max_length),
        taps=tuple(backbone.tap_modules),
        shards=layout.n_shards,
        shards_written=len(pending),
        bytes=layout.total_bytes,
        seconds=seconds,
        tokens_per_second=tokens / seconds if pending else 0.0,
        fingerprint=layout.fingerprint.digest,
    )


def shard_batches(
    backbone: TextBackbone, layout: CacheLayout, table: InputTable, batch_tokens: int | None = None
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield (shard, samples) of every forward pass of an extraction, in its order."""
    for shard in range(layout.n_shards):
        for batch in backbone.batches(
            layout.samples_of(shard), table.encoded.lengths, batch_tokens
        ):
            yield shard, batch


def check_disk(path: Path, total_bytes: int) -> None:
    """Raise `NotEnoughDisk` unless the disk of `path` can take what is not yet written there."""
    missing, free = max(0, total_bytes - written_bytes(path)), free_bytes(path)
    if missing > free:
        raise NotEnoughDisk(
            f"the cache needs {missing:,} more bytes at {path}, the disk has {free:,} free. Record "
            "fewer taps (--taps), shorten inputs (--max-length), choose another disk, or use "
            "--force to start anyway"
        )


def free_bytes(path: Path) -> int:
    """Return the free bytes of the disk that `path` is, or would be, on."""
    existing = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    return shutil.disk_usage(existing).free


def written_bytes(path: Path) -> int:
    """Return the bytes of all files below `path`; 0 if it does not exist."""
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def _fill(
    writer: CacheWriter,
    pending: list[int],
    backbone: TextBackbone,
    table: InputTable,
    *,
    batch_tokens: int | None,
    progress: ProgressCallback | None,
) -> int:
    """Compute and write the `pending` shards; return the number of valid tokens."""
    lengths, dtype = table.encoded.lengths, TORCH_TYPES[writer.layout.geometry.dtype]
    total = sum(int(lengths[writer.samples_of(shard)].sum()) for shard in pending)
    started, done = time.perf_counter(), 0
    try:
        for number, shard in enumerate(pending):
            with writer.shard(shard) as buffer:
                for batch in backbone.batches(writer.samples_of(shard), lengths, batch_tokens):
                    _put(buffer, batch, backbone, table.encoded.select(batch), dtype)
                    done += int(lengths[batch].sum())
                    if progress is not None:
                        rate = done / (time.perf_counter() - started)
                        eta = (total - done) / rate
                        progress(Progress(done, total, number, len(pending), rate, eta))
    except KeyboardInterrupt as stop:
        raise ExtractionInterrupted(
            f"stopped after {done:,} of {total:,} tokens; {RESUME}"
        ) from stop
    return done


def _put(
    buffer: ShardBuffer,
    batch: NDArray[np.int64],
    backbone: TextBackbone,
    encoded: Encoded,
    dtype: torch.dtype,
) -> None:
    """Compute one batch in the storage type, and put it into the shard's buffer."""
    try:
        buffer.put(batch, backbone.forward(encoded, dtype))
    except ActivationOverflow:
        buffer.put(batch, backbone.forward(encoded))  # raises with the value that overflowed
        raise
