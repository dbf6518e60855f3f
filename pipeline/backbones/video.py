"""Clips through a frozen image model, frame by frame: every frame's taps, of a ragged number.

Cost: a clip of 12 frames is 12 pictures, in the forward pass and on disk. Counting the frames
before the run reads each file's header (of an animated picture: the whole file).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cache import TapSpec
from pipeline.backbones.base import Modality
from pipeline.backbones.family import BackboneError
from pipeline.backbones.image import EncodedMedia, ImageBackbone, media_seeds
from pipeline.inputs import VideoInput
from pipeline.media.transform import ImageTransform
from pipeline.media.video import frame_times, probe_video, read_frames


class VideoBackbone(ImageBackbone):
    """An image model that sees some frames of a clip.

    Args:
        model: as of `ImageBackbone`, which the other arguments belong to as well.
        transform: from a frame to pixels.
        fps: frames a second that are looked at (CLIP4Clip: 1); 0 takes `max_frames` of any clip.
        max_frames: most frames of a clip, spread evenly over those.
        options: of `ImageBackbone`.

    Raises:
        BackboneError: as of `ImageBackbone`; or `fps` or `max_frames` is unusable.
    """

    modality: Modality = "video"
    axis: str | None = "frames"

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
                "(0: evenly over the clip) and at least 1 frame"
            )
        self.fps, self.max_frames = float(fps), max_frames
        super().__init__(model, transform, **options)

    def encode(  # type: ignore[override]  # clips, not pictures
        self, inputs: Sequence[VideoInput], views: Sequence[int] | None = None
    ) -> EncodedMedia:
        """Return the paths and numbers of frames of `inputs`.

        Raises:
            MediaError: a file holds no clip, or no frame; the message names it.
        """
        frames = [
            len(frame_times(probe_video(item.path), self.fps, self.max_frames)) for item in inputs
        ]
        return EncodedMedia(
            tuple(item.path for item in inputs),
            media_seeds(inputs, views),
            np.array(frames, dtype=np.int64),
            np.zeros(len(inputs), dtype=np.bool_),
        )

    def prepare(self, encoded: EncodedMedia) -> dict[str, Tensor]:
        """Decode and transform: `pixel_values`, float32 [F, 3, H, W], clip after clip, on the CPU.

        All frames of a clip share the crop and the flip of its view.

        Raises:
            MediaError: a file cannot be read; the message names it.
            BackboneError: a clip no longer has as many frames as `encode` found.
        """
        pixels = []
        rows = zip(encoded.paths, encoded.seeds.tolist(), encoded.lengths.tolist(), strict=True)
        for path, seed, length in rows:
            frames = read_frames(path, self.fps, self.max_frames)
            if len(frames) != length:
                raise BackboneError(
                    f"{path} gave {len(frames)} frames, {length} were counted before: the file "
                    "changed, or is cut short. Run again, or leave it out"
                )
            pixels += [self._pixels(frame, seed) for frame in frames]
        return {"pixel_values": torch.stack(pixels)}

    def fingerprint_parts(self) -> dict[str, Any]:
        """Return what identifies the backbone: the choice of frames belongs to it."""
        parts = super().fingerprint_parts()
        parts["preprocessing"] |= {"fps": self.fps, "max_frames": self.max_frames}
        return parts

    def _own(self, tap: TapSpec) -> TapSpec:
        return replace(tap, kind="frames", axis="frames")
