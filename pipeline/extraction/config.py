"""What to extract: the data, a backbone, its taps, the arithmetic, the folder."""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from cache.format.spec import StorageType, StorageTypes
from pipeline.backbones import Backbone, load_backbone
from pipeline.backbones.base import Modality
from pipeline.backbones.pooling import check_pool
from pipeline.config import Config
from pipeline.extraction.job import WorkerPool
from pipeline.extraction.storage import checked_changes, checked_compression, stored_types
from pipeline.inputs import FACTS, SPANS
from pipeline.places import Place
from pipeline.systems import AnyData

_SIZE = re.compile(r"([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?")
_LOADING = (
    *("device", "dtype", "taps", "pool", "max_length", "revision", "trust_remote_code"),
    *("random_init", "seed", "tower", "fps", "max_frames", "architecture"),
)
"""Options that `load_backbone` takes as they are."""


def parse_size(text: str) -> tuple[int, int]:
    """Return (height, width) of '512' or '384x640', in pixels.

    Raises:
        ValueError: it is neither.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise ValueError(
            f"an image size is a side ('512') or height x width ('384x640') in pixels, not {text!r}"
        )
    return int(found[1]), int(found[2] or found[1])


def _checked_size(text: str) -> str:
    parse_size(text)
    return text.strip()


class ExtractConfig(Config):
    """What to extract: every input of a data set that the backbone can read, each once."""

    data: AnyData
    """The examples whose inputs are extracted, all splits together."""
    backbone: str
    """Local folder or hub id of the frozen model, or one weights file."""
    out: Place
    """Folder of the cache, or its URL in an object store (s3://bucket/name.zarr); a started one is
    resumed."""
    tower: Literal["auto", "text", "image", "video"] = "auto"
    """What the backbone reads; an image model reads videos with 'video', frame by frame."""
    views: int = Field(default=1, ge=1)
    """Versions of each training input: the clean one and, above 1, random crops and flips of
    images or texts with a fifth of their tokens corrupted."""
    spans: bool = False
    """Record where each token begins and ends in its text, in characters (tap "spans"); tasks that
    need it do so anyway."""
    taps: tuple[str, ...] | None = None
    """Glob pattern of taps to record, such as 'encoder.layer.*', or a slice of what it matches:
    'encoder.layer.*[::2]', 'encoder.layer.*[-4:]'; all taps if absent."""
    pool: Annotated[str, AfterValidator(check_pool)] = "none"
    """What to keep of a tap's tokens, patches or cells: none (all of them), mean, max, first (CLS),
    last (a text's last token): one vector each; or cells=N: maps averaged to N x N."""
    max_length: int | None = Field(default=None, ge=1)
    """Longest text in tokens; by default what tokenizer and model allow, at most 512."""
    image_size: Annotated[str, AfterValidator(_checked_size)] | None = None
    """Side, or height x width ('384x640'), of the pixels in pixels; by default the model's own."""
    fps: float = Field(default=1.0, ge=0)
    """Frames taken of a second of a video; 0 spreads max_frames over the whole video."""
    max_frames: int = Field(default=12, ge=1)
    """Most frames of a video; of a longer one as many, evenly spread."""
    architecture: str | None = None
    """Architecture of a bare state dict, such as resnext101_32x8d."""
    device: str = "auto"
    """Torch device of the forward passes; auto takes cuda, then mps, then cpu."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the arithmetic; auto is float32, and on CUDA a half type under autocast."""
    store_dtype: StorageType = "float16"
    """Type of the numbers on disk; bfloat16 where states overflow float16, int8 for half the bytes
    of float16 at an error of about 0.8 %."""
    batch_tokens: int | None = Field(default=None, ge=1)
    """Bound of a text's forward pass, in tokens with padding; by default 2048 on a CPU, 16384 on a
    GPU."""
    batch_size: int | None = Field(default=None, ge=1)
    """Images or frames of a forward pass; by default it follows from their size."""
    store_dtype_of: Annotated[tuple[str, ...], AfterValidator(checked_changes)] = ()
    """Another type for some taps, PATTERN=TYPE with a pattern as for --taps, such as
    'encoder.layer.0[0-3]=int8'; where several match a tap the last one counts."""
    compress: Annotated[str, AfterValidator(checked_compression)] = "none"
    """Compression of the numbers on disk: none, zstd or zstd:LEVEL (1 to 22); makes reading slower,
    and may pay for maps after a ReLU."""
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
    workers: int | None = Field(default=None, ge=1)
    """Processes on this machine that compute shards, one a GPU where there are several; by default
    this process computes them."""
    scheduler: str | None = None
    """Address of a running Dask scheduler whose workers compute, such as tcp://10.0.0.1:8786."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of each process that computes; by default the workers share the cores."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if self.workers is not None and self.scheduler is not None:
            raise ValueError("workers starts processes here, scheduler uses running ones: give one")
        return self

    def batch_bound(self, backbone: Backbone) -> int | None:
        """Return the bound of a forward pass for `Backbone.batches`; None lets it choose."""
        return self.batch_size if backbone.decodes else self.batch_tokens

    def storage(self, backbone: Backbone) -> StorageTypes:
        """Return the storage type of the backbone's taps, or of each of them.

        Raises:
            ConfigError: a pattern of `store_dtype_of` matches no tap that is recorded.
        """
        names = [tap.name for tap in backbone.taps]
        exact: dict[str, StorageType] = {name: "float32" for name in names if name in FACTS}
        if not self.store_dtype_of and not exact:
            return self.store_dtype
        states = [name for name in names if name not in exact]
        return stored_types(states, self.store_dtype, self.store_dtype_of) | exact

    def worker_pool(
        self, usual: Modality | None, facts: Mapping[str, Sequence[str]] | None = None
    ) -> WorkerPool | None:
        """Return who computes; None for this process. The arguments are those of `loader`."""
        if self.workers is None and self.scheduler is None:
            return None
        load = self.loader(usual, facts)
        return WorkerPool(load=load, workers=self.workers or 1, scheduler=self.scheduler)

    def loader(
        self, usual: Modality | None = None, facts: Mapping[str, Sequence[str]] | None = None
    ) -> Callable[[], Backbone]:
        """Return what loads the backbone this config names, here or in a worker.

        Args:
            usual: the tower that "auto" takes of a checkpoint of two.
            facts: what the task needs to know of the inputs, by their modality.
        """
        options: dict[str, Any] = {name: getattr(self, name) for name in _LOADING}
        size = None if self.image_size is None else parse_size(self.image_size)
        needed = {name: tuple(each) for name, each in (facts or {}).items()}
        if self.spans:
            needed["text"] = tuple(dict.fromkeys((*needed.get("text", ()), SPANS)))
        load = partial(load_backbone, self.backbone, usual=usual, image_size=size, **options)
        return partial(_with_facts, load, needed) if needed else load


def _with_facts(load: Callable[[], Backbone], facts: Mapping[str, Sequence[str]]) -> Backbone:
    backbone = load()
    return backbone.with_facts(facts.get(backbone.modality, ()))
