"""What to extract: options that every extraction shares, and the two kinds of data they meet."""

import re
from abc import abstractmethod
from typing import Annotated, Any, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, model_validator

from cache.format.spec import StorageType, StorageTypes
from pipeline.backbones import Backbone, load_backbone
from pipeline.backbones.base import Modality
from pipeline.backbones.pooling import check_pool
from pipeline.config import Config
from pipeline.data import DataConfig, Dataset, load_dataset
from pipeline.extraction.job import Crew
from pipeline.extraction.storage import checked_changes, checked_compression, stored_types
from pipeline.inputs import ImageInput, Input, InputError
from pipeline.media.video import CONTAINERS
from pipeline.places import Place
from pipeline.retrieval.data import RetrievalData, RetrievalDataset, load_retrieval

BadMediaPolicy = Literal["error", "skip"]
_SIZE = re.compile(r"([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?")


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


class Rows(NamedTuple):
    """The inputs of an extraction, as rows of its table.

    `inputs` holds (row id, input), `augmented` [m] which rows get all `views`.
    """

    inputs: list[tuple[str, Input]]
    augmented: NDArray[np.bool_] | None = None
    views: int = 1
    bad_media: BadMediaPolicy = "error"


class ExtractOptions(Config):
    """What every extraction is asked: a backbone, its taps, the arithmetic, the folder."""

    backbone: str
    """Local folder or hub id of the frozen model."""
    out: Place
    """Folder of the cache, or its URL in an object store (s3://bucket/name.zarr); a started one is
    resumed."""
    taps: tuple[str, ...] | None = None
    """Glob pattern of taps to record, such as 'encoder.layer.*', or a slice of what it matches:
    'encoder.layer.*[::2]', 'encoder.layer.*[-4:]'; all taps if absent."""
    pool: Annotated[str, AfterValidator(check_pool)] = "none"
    """What to keep of a tap's tokens, patches or cells: none (all of them), mean, max, first (CLS),
    last (a text's last token): one vector each; or cells=N: maps averaged to N x N."""
    max_length: int | None = Field(default=None, ge=1)
    """Longest text in tokens; by default what tokenizer and model allow, at most 512."""
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
    def _one_crew(self) -> Self:
        if self.workers is not None and self.scheduler is not None:
            raise ValueError("workers starts processes here, scheduler uses running ones: give one")
        return self

    def batch_bound(self, modality: Modality) -> int | None:
        """Return the bound of a forward pass for `Backbone.batches`; None lets it choose."""
        return self.batch_tokens if modality == "text" else None

    def storage(self, backbone: Backbone) -> StorageTypes:
        """Return the storage type of the backbone's taps, or of each of them.

        Raises:
            ConfigError: a pattern of `store_dtype_of` matches no tap that is recorded.
        """
        names = [tap.name for tap in backbone.taps]
        if not self.store_dtype_of:
            return self.store_dtype
        return stored_types(names, self.store_dtype, self.store_dtype_of)

    def crew(self) -> Crew | None:
        """Return who computes; None for this process."""
        if self.workers is None and self.scheduler is None:
            return None
        return Crew(load=self.load_backbone, workers=self.workers or 1, scheduler=self.scheduler)

    @abstractmethod
    def load_data(self) -> Any:
        """Read the data set this config names."""

    @abstractmethod
    def rows(self, dataset: Any, modality: Modality) -> Rows:
        """Return the inputs of the data set for a backbone of this modality."""

    def load_backbone(self) -> Backbone:
        """Load the backbone this config names."""
        return load_backbone(self.backbone, **self._loading())

    def _loading(self) -> dict[str, Any]:
        names = ("device", "dtype", "taps", "pool", "max_length", "revision", "trust_remote_code")
        return {name: getattr(self, name) for name in (*names, "random_init", "seed")}


class ExtractConfig(ExtractOptions):
    """What to extract for a task on sentences."""

    data: DataConfig
    """The examples whose inputs are extracted, all splits together."""

    def load_data(self) -> Dataset:
        """Read the examples of `data`."""
        return load_dataset(self.data)

    def rows(self, dataset: Dataset, modality: Modality) -> Rows:
        """Return every sentence of every split."""
        return Rows([*dataset.inputs()])

    def _loading(self) -> dict[str, Any]:
        return super()._loading() | {"tower": "text"}


class RetrievalExtractConfig(ExtractOptions):
    """What to extract for retrieval: one tower at a time, the captions or the pictures or clips."""

    data: RetrievalData
    """The pictures or clips and captions, all splits together."""
    tower: Literal["auto", "text", "image", "video"] = "auto"
    """What the backbone reads; an image model reads clips with 'video', frame by frame."""
    views: int = Field(default=1, ge=1)
    """Versions of each training input: the clean one and, above 1, random crops and flips of
    pictures or captions with a fifth of their tokens corrupted."""
    image_size: Annotated[str, AfterValidator(_checked_size)] | None = None
    """Side, or height x width ('384x640'), of the pixels in pixels; by default the model's own."""
    fps: float = Field(default=1.0, ge=0)
    """Frames taken of a second of a clip; 0 spreads max_frames over the whole clip."""
    max_frames: int = Field(default=12, ge=1)
    """Most frames of a clip; of a longer one as many, evenly spread."""
    architecture: str | None = None
    """Architecture of a bare state dict, such as resnext101_32x8d."""
    batch_size: int | None = Field(default=None, ge=1)
    """Pictures or frames of a forward pass; by default it follows from their size."""

    def batch_bound(self, modality: Modality) -> int | None:
        """Return the bound of a forward pass for `Backbone.batches`; None lets it choose."""
        return self.batch_tokens if modality == "text" else self.batch_size

    def load_data(self) -> RetrievalDataset:
        """Read the captions of `data` and find their pictures or clips."""
        return load_retrieval(self.data)

    def rows(self, dataset: RetrievalDataset, modality: Modality) -> Rows:
        """Return the captions, or the pictures or clips, of every split; of train in all views.

        Raises:
            InputError: the data set holds clips, and the backbone was loaded to read pictures.
        """
        inputs = dataset.inputs(modality)
        pictures = (item.path for _, item in inputs if isinstance(item, ImageInput))
        clip = next((path for path in pictures if path.suffix.lower()[1:] in CONTAINERS), None)
        if clip is not None:
            raise InputError(
                f"{clip.name} is a clip, and {self.backbone} was loaded to read pictures: give "
                "--tower video to read clips frame by frame"
            )
        augmented = np.array([name.startswith("train/") for name, _ in inputs], dtype=np.bool_)
        return Rows(inputs, augmented, self.views, self.data.bad_media)

    def _loading(self) -> dict[str, Any]:
        media = {name: getattr(self, name) for name in ("tower", "fps", "max_frames")}
        size = None if self.image_size is None else parse_size(self.image_size)
        return super()._loading() | media | {"image_size": size, "architecture": self.architecture}
