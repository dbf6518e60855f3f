"""A frozen image model with named taps: images in; grids, maps and vectors out.

What waits for its turn is a path (and a seed): pixels are decoded in `prepare`, which is CPU work
that threads may do while the model runs. Videos go through the same model frame by frame.
b images of a batch, F frames; P tokens of a grid, D wide; maps of C channels.
"""

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from importlib.metadata import version
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cache import TapSpec
from pipeline.backbones.base import Modality, Smaller
from pipeline.backbones.encoded_media import CLEAN, EncodedMedia, media_seeds
from pipeline.backbones.family import BackboneError, select_taps
from pipeline.backbones.fingerprint import weights_digest
from pipeline.backbones.generic import known_taps
from pipeline.backbones.pooled_taps import describe_pooling, pooled_taps
from pipeline.backbones.pooling import pool_states
from pipeline.backbones.shaping import as_tap, map_shape
from pipeline.backbones.trace import Trace, black_image, trace
from pipeline.inputs import ImageInput
from pipeline.media.images import open_image
from pipeline.media.transform import ImageTransform
from unipt.recorder import TapRecorder

Size = tuple[int, int]
CPU_PASS_PIXELS, GPU_PASS_PIXELS = 16 * 224**2, 256 * 224**2
"""Pixels of one forward pass, unless a bound is given."""
SIDES = (448, 384, 336, 288, 256, 224, 192, 160, 128)
"""Heights of images that are tried where a cache would be too large."""


class ImageBackbone:
    """An image model, its preprocessing and its taps.

    Args:
        model: a module that takes `pixel_values` [b, 3, H, W] and has a `config`.
        transform: from an image to pixels; its `size` is what the model is given.
        name: what to call it in messages.
        taps: glob patterns of the taps to record; None takes all but single blocks and heads.
        autocast: compute type of `torch.autocast`; None runs in the weights' own type.
        digest: the weights' digest, if it was taken before they were cast.
        revision: branch, tag or commit of a hub id, to find the model again.
        pool: pooling of the patches or cells of a tap, see `pooling.check_pool`.

    Attributes:
        taps: the selected taps, in the order of computation.
        tap_modules: tap name -> module path, of the selected taps.
        all_taps: the names of every tap of the model.
        emitted_taps: the same for one image, before they are pooled.
        size: height and width of the pixels, in pixels.
        arguments: given to every forward pass, beside the pixels.

    Raises:
        BackboneError: the model cannot be tapped, takes no images of this size, a pattern
            matches no tap, or the pooling does not fit.
    """

    modality: Modality = "image"
    axis: str | None = None
    unit = "images"
    pads = False
    decodes = True
    augmentation = "random crop, sides of 0.6 to 1.0, flipped half the time"

    def __init__(
        self,
        model: nn.Module,
        transform: ImageTransform,
        *,
        name: str,
        taps: Sequence[str] | None = None,
        autocast: torch.dtype | None = None,
        digest: str | None = None,
        revision: str | None = None,
        pool: str = "none",
    ) -> None:
        self.model: Any = model
        self.transform, self.name, self.autocast = transform, name, autocast
        self.config: Any = model.config
        self._digest, self.revision = digest, revision
        self.size: Size = transform.size
        self.arguments = _interpolation(model, self.size)
        seen = self._trace()
        family, known = known_taps(model, self.config, seen)
        self.family = family.name if family else "generic"
        self.all_taps = tuple(known)
        self.tap_modules = {tap: known[tap] for tap in select_taps(self.all_taps, taps)}
        patches = _patches(self.config, self.size) if family and family.cells else None
        self.emitted_taps = tuple(
            _image_tap(tap, seen.emitted[path], self.size, patches)
            for tap, path in self.tap_modules.items()
        )
        self._pool(pool)

    def with_facts(self, facts: Sequence[str]) -> Self:
        """Return this backbone: there are no facts of an image to record.

        Raises:
            BackboneError: some are asked for.
        """
        if facts:
            raise BackboneError(f"{self.name} reads no texts, which alone have {', '.join(facts)}")
        return self

    def pooled(self, pool: str) -> Self:
        """Return this backbone with its taps pooled by `pool`; it shares the model."""
        other = copy.copy(self)
        other._pool(pool)
        return other

    def smaller(self, longest: int) -> Iterator[Smaller]:
        """Yield backbones around the same model for smaller images, about as wide as high."""
        height, width = self.size
        for side in SIDES:
            size = (side, round(side * width / height / 32) * 32 if width != height else side)
            if side >= height or not size[1]:
                continue
            try:
                smaller = self._rebuilt(size)
            except (BackboneError, ValueError):  # a model of one size only
                continue
            name = f"{side}" if size[0] == size[1] else f"{size[0]}x{size[1]}"
            change = f"images of {size[0]} x {size[1]} pixels"
            yield Smaller(smaller, f"--image-size {name}", change)

    def _rebuilt(self, size: Size, **changes: Any) -> Self:
        """Return a backbone around the same model for images of another size."""
        return type(self)(
            self.model,
            self.transform.with_size(*size),
            name=self.name,
            taps=tuple(self.tap_modules),
            autocast=self.autocast,
            digest=self.fingerprint_parts()["weights"]["sha256"],
            revision=self.revision,
            pool=self.pool,
            **changes,
        )

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def compute_dtype(self) -> torch.dtype:
        """The type of the arithmetic."""
        return self.autocast or self._stored

    @property
    def pass_images(self) -> int:
        """Images of one forward pass, unless a bound is given; fewer of large ones."""
        pixels = CPU_PASS_PIXELS if self.device.type == "cpu" else GPU_PASS_PIXELS
        return max(1, pixels // (self.size[0] * self.size[1]))

    def encode(
        self, inputs: Sequence[ImageInput], views: Sequence[int] | None = None
    ) -> EncodedMedia:
        """Return the paths of `inputs`; a view other than 0 costs reading the file for its seed."""
        return EncodedMedia(
            tuple(item.path for item in inputs),
            media_seeds(inputs, views),
            np.ones(len(inputs), dtype=np.int64),
            np.zeros(len(inputs), dtype=np.bool_),
        )

    def batches(
        self, samples: NDArray[np.int64], lengths: NDArray[np.int64], batch_bound: int | None
    ) -> Iterator[NDArray[np.int64]]:
        """Yield `samples` in batches of at most `batch_bound` images or frames, in their order.

        A video of more frames than that makes a batch of its own.
        """
        bound, start, held = batch_bound or self.pass_images, 0, 0
        for i, frames in enumerate(lengths[samples].tolist()):
            if i > start and held + frames > bound:
                yield samples[start:i]
                start, held = i, 0
            held += frames
        if len(samples):
            yield samples[start:]

    def prepare(self, encoded: EncodedMedia) -> dict[str, Tensor]:
        """Decode and transform: `pixel_values`, float32 [b, 3, H, W], on the CPU.

        Raises:
            MediaError: a file cannot be read; the message names it.
        """
        pixels = [
            self._pixels(open_image(path), seed)
            for path, seed in zip(encoded.paths, encoded.seeds.tolist(), strict=True)
        ]
        return {"pixel_values": torch.stack(pixels)}

    @torch.inference_mode()
    def run(self, prepared: Mapping[str, Tensor]) -> Any:
        """Run the bare model on what `prepare` returned."""
        pixels = prepared["pixel_values"].to(self.device, self._stored)
        half = self.autocast is not None
        with torch.autocast(self.device.type, dtype=self.autocast, enabled=half):
            return self.model(pixel_values=pixels, **self.arguments)

    @torch.inference_mode()
    def forward(
        self,
        encoded: EncodedMedia,
        dtype: torch.dtype | None = None,
        *,
        prepared: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Return tap name -> states: grids [b, P, D], maps [b, C, H, W], vectors [b, D].

        Args:
            encoded: the inputs of one batch.
            dtype: type of the result; None keeps the type each module emits.
            prepared: what `prepare(encoded)` returned, if that is done.
        """
        pixels = (prepared or self.prepare(encoded))["pixel_values"]
        parts = [self._states(part, dtype) for part in torch.split(pixels, self.pass_images)]
        if len(parts) == 1:
            return parts[0]
        return {tap: torch.cat([part[tap] for part in parts]) for tap in self.tap_modules}

    def provenance(self) -> dict[str, Any]:
        """Return where the backbone came from and what ran it; neither identifies it."""
        versions = {name: version(name) for name in ("torch", "transformers", "pillow")}
        return {"backbone": self.name, "revision": self.revision, "versions": versions}

    def fingerprint_parts(self) -> dict[str, Any]:
        """Return what identifies the backbone: weights, preprocessing and taps, as JSON values."""
        if self._digest is None:
            self._digest = weights_digest(self.model)
        return {
            "weights": {"model_type": self.config.model_type, "sha256": self._digest},
            "preprocessing": {"modality": self.modality, "image": self.transform.to_dict()},
            "taps": {
                tap.name: {"module": self.tap_modules[tap.name], "shape": list(tap.shape)}
                | describe_pooling(self._own(emitted), tap, self.pool)
                for emitted, tap in zip(self.emitted_taps, self.taps, strict=True)
            },
        }

    @cached_property
    def _stored(self) -> torch.dtype:
        stored: torch.dtype = next(self.model.parameters()).dtype
        return stored

    def _own(self, tap: TapSpec) -> TapSpec:
        """Return the tap of one image as a tap of one input of this modality."""
        return tap

    def _pool(self, pool: str) -> None:
        self.pool = pool
        self.taps = tuple(self._own(tap) for tap in pooled_taps(self.emitted_taps, pool))

    def _pixels(self, image: Any, seed: int) -> Tensor:
        made = self.transform(image) if seed == CLEAN else self.transform.augmented(image, seed)
        pixels: Tensor = made
        return pixels

    def _states(self, pixels: Tensor, dtype: torch.dtype | None) -> dict[str, Tensor]:
        with TapRecorder(self.model, self.tap_modules) as recorder:
            self.run({"pixel_values": pixels})
        states = recorder.states
        if self.pool == "none":
            return {t.name: as_tap(states[t.name].to(dtype), t.shape) for t in self.emitted_taps}
        shaped = {t.name: as_tap(states[t.name], t.shape) for t in self.emitted_taps}
        return {
            name: pool_states(state, self.pool).to(dtype or state.dtype)
            for name, state in shaped.items()
        }

    def _trace(self) -> Trace:
        try:
            return trace(self.model, inputs=black_image(self.model, self.size) | self.arguments)
        except (ValueError, RuntimeError, AssertionError) as error:
            native = getattr(self.config, "image_size", None)
            raise BackboneError(
                f"{self.name} takes no images of {self.size[0]} x {self.size[1]} pixels ({error})"
                + (f"; it was made for {native}" if native else "")
                + ". Give another --image-size, or none"
            ) from error


def _interpolation(model: nn.Module, size: Size) -> dict[str, Any]:
    """Return the argument that interpolates positions to another size, where it takes one."""
    native = getattr(model.config, "image_size", None)
    native = (native, native) if isinstance(native, int) else native
    same = native is None or tuple(native) == size
    takes = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
    return {} if same or not takes else {"interpolate_pos_encoding": True}


def _patches(config: Any, size: Size) -> Size:
    """Return rows and columns of the patches of an image, the last ones filled up."""
    patch = config.patch_size
    height, width = (patch, patch) if isinstance(patch, int) else patch
    return -(-size[0] // height), -(-size[1] // width)


def _image_tap(name: str, state: Tensor, size: Size, patches: Size | None) -> TapSpec:
    """Return the tap of one image from a state [1, ...] that its module emitted."""
    shape = tuple(state.shape[1:])
    if patches is not None and state.dim() == 3:
        shape = map_shape(state, patches) or shape
    kinds = {1: "vector", 2: "grid", 3: "map"}
    if len(shape) not in kinds:
        raise BackboneError(
            f"tap {name} emits a tensor of shape {list(state.shape)}; grids [b, P, D], maps "
            "[b, C, H, W] and vectors [b, D] can be recorded"
        )
    stride = max(1, round(size[0] / shape[1])) if len(shape) == 3 else 1
    kind: Any = kinds[len(shape)]
    return TapSpec(name=name, kind=kind, shape=shape, stride=stride)
