"""Images and videos as they wait for their turn: a path and a seed each, never pixels."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.inputs import MediaInput, view_key
from pipeline.media.frames import VideoInfo

CLEAN = -1
"""Seed of a view without a random crop."""


@dataclass(frozen=True)
class EncodedMedia:
    """Images or videos as they wait for their turn.

    Attributes:
        paths: the files.
        seeds: of the random crop and flip of each, int64 [n]; -1 for a clean view.
        lengths: frames of each, 1 an image, int64 [n].
        truncated: always false: frames are chosen, nothing is cut; bool [n].
        videos: of videos, when each one's frames appear (8 bytes a frame); empty for images.
    """

    paths: tuple[Path, ...]
    seeds: NDArray[np.int64]
    lengths: NDArray[np.int64]
    truncated: NDArray[np.bool_]
    videos: tuple[VideoInfo, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    def select(self, samples: NDArray[np.int64] | Sequence[int]) -> "EncodedMedia":
        """Return the inputs numbered `samples`, in that order."""
        samples = np.asarray(samples, dtype=np.int64)
        return EncodedMedia(
            tuple(self.paths[i] for i in samples),
            self.seeds[samples],
            self.lengths[samples],
            self.truncated[samples],
            tuple(self.videos[i] for i in samples) if self.videos else (),
        )


def media_seeds(inputs: Sequence[MediaInput], views: Sequence[int] | None) -> NDArray[np.int64]:
    """Return the seed of each input's view: of its content and the view alone."""
    seeds = np.full(len(inputs), CLEAN, dtype=np.int64)
    for i, view in enumerate(views or ()):
        if view:
            seeds[i] = int.from_bytes(view_key(inputs[i].key(), view)[:8], "little") >> 1
    return seeds
