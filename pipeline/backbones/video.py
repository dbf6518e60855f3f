"""Videos through a frozen image model, frame by frame: every frame's taps, of a ragged number.

Cost: a video of 12 frames is 12 images, in the forward pass and on disk. Counting the frames
before the run reads each file once, several at a time.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from cache import TapSpec
from pipeline.backbones.base import Modality, Smaller
from pipeline.backbones.encoded_media import EncodedMedia, media_seeds
from pipeline.backbones.family import BackboneError
from pipeline.backbones.image import ImageBackbone, Size
from pipeline.inputs import VideoInput
from pipeline.media.transform import ImageTransform
from pipeline.media.video import frame_numbers, iter_frames, probe_video

FRAMES = (8, 6, 4, 2, 1)
"""Frames of a video that are tried where a cache would be too large."""
_THREADS = min(8, os.cpu_count() or 1)


class VideoBackbone(ImageBackbone):
    """An image model that sees some frames of a video.

    Args:
        model: as of `ImageBackbone`, which the other arguments belong to as well.
        transform: from a frame to pixels.
        fps: frames a second that are looked at (CLIP4Clip: 1); 0 takes `max_frames` of any video.
        max_frames: most frames of a video, spread evenly over those.
        options: of `ImageBackbone`.

    Raises:
        BackboneError: as of `ImageBackbone`; or `fps` or `max_frames` is unusable.
    """

    modality: Modality = "video"
    axis: str | None = "frames"
    unit = "frames"
    augmentation = "random crop, sides of 0.6 to 1.0, flipped half the time, one for all frames"

    def __init__(
        self,
        model: nn.Module,
        transform: ImageTransform,
        *,
        fps: float = 1.0,
        max_frames: int = 12,
        **options: Any,
    ) -> None:
        if fps < 0 or max_frames < 1:
            raise BackboneError(
                f"fps {fps} and max_frames {max_frames} are unusable: give fps of at least 0 "
                "(0: evenly over the video) and at least 1 frame"
            )
        self.fps, self.max_frames = float(fps), max_frames
        super().__init__(model, transform, **options)

    def smaller(self, longest: int) -> Iterator[Smaller]:
        """Yield backbones around the same model for fewer, and for smaller, frames."""
        for frames in FRAMES:
            if frames < longest:
                fewer = self._rebuilt(self.size, max_frames=frames)
                change = f"{frames} frame(s) of a video"
                yield Smaller(fewer, f"--max-frames {frames}", change, frames)
        yield from super().smaller(longest)

    def _rebuilt(self, size: Size, **changes: Any) -> Self:
        own = {"fps": self.fps, "max_frames": self.max_frames} | changes
        return super()._rebuilt(size, **own)

    def encode(  # type: ignore[override]  # videos, not images
        self, inputs: Sequence[VideoInput], views: Sequence[int] | None = None
    ) -> EncodedMedia:
        """Return the paths and numbers of frames of `inputs`.

        Raises:
            MediaError: a file holds no video, or no frame; the message names it.
        """
        with ThreadPoolExecutor(_THREADS, "videos") as pool:
            paths = list(dict.fromkeys(item.path for item in inputs))
            found = dict(zip(paths, pool.map(probe_video, paths), strict=True))
        videos = tuple(found[item.path] for item in inputs)
        frames = [len(frame_numbers(video, self.fps, self.max_frames)) for video in videos]
        return EncodedMedia(
            tuple(item.path for item in inputs),
            media_seeds(inputs, views),
            np.array(frames, dtype=np.int64),
            np.zeros(len(inputs), dtype=np.bool_),
            videos,
        )

    def prepare(self, encoded: EncodedMedia) -> dict[str, Tensor]:
        """Decode and transform: `pixel_values`, float32 [F, 3, H, W], on the CPU, in order.

        All frames of a video share the crop and the flip of its view.

        Raises:
            MediaError: a file cannot be read, or no longer as far as `encode` found; the message
                names it.
        """
        pixels = [
            self._pixels(frame, seed)
            for path, seed, video in zip(
                encoded.paths, encoded.seeds.tolist(), encoded.videos, strict=True
            )
            for frame in iter_frames(path, self.fps, self.max_frames, info=video)
        ]
        if len(pixels) != encoded.lengths.sum():
            raise BackboneError(
                f"{len(pixels)} frames were read, {encoded.lengths.sum()} were counted before, in "
                f"{', '.join(map(str, encoded.paths))}: a file changed. Run again"
            )
        return {"pixel_values": torch.stack(pixels)}

    def fingerprint_parts(self) -> dict[str, Any]:
        """Return what identifies the backbone: the choice of frames belongs to it."""
        parts = super().fingerprint_parts()
        parts["preprocessing"] |= {"fps": self.fps, "max_frames": self.max_frames}
        return parts

    def _own(self, tap: TapSpec) -> TapSpec:
        return replace(tap, kind="frames", axis="frames")
