"""The two published retrieval systems at their full size, with random weights and generated media.

VSE-infinity: BERT-base (13 taps) and ResNeXt-101 32x8d at 512 pixels (4 stages as maps). CLIP4Clip:
both towers of a CLIP ViT-B/32 (13 taps and the projection each), 12 frames of a clip, 32 tokens.
Random weights say nothing about quality; sizes, bytes and times are those of the real systems.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from benchmarks.generated import captions_file, clips, pictures, random_clip, random_resnext
from benchmarks.sentences import random_bert
from cache import Part
from cache.format.spec import group_taps
from pipeline.backbones import Backbone, Encoded
from pipeline.extract import ExtractConfig, ExtractReport, extract
from pipeline.systems import train_config
from pipeline.systems.config import TrainConfig
from pipeline.systems.taps import TowerTaps

TOWERS = ("text", "media")
FRACTIONS = (0.5, 0.25, 0.25)
CAPTIONS = 2
"""Captions of each picture or clip."""
Name = Literal["VSE-infinity", "CLIP4Clip"]


@dataclass(frozen=True, kw_only=True)
class System:
    """One system with its data, ready to be extracted and trained.

    Attributes:
        name: of the system.
        recipe: of its training.
        towers: "text" and "media" -> the options of its extraction.
        backbones: "text" and "media" -> what it is, in words.
        data: the options of its data.
        media: the pictures or clips.
        folder: of everything that is made.
    """

    name: Name
    recipe: str
    towers: Mapping[str, Mapping[str, Any]]
    backbones: Mapping[str, str]
    data: Mapping[str, Any]
    media: tuple[Path, ...]
    folder: Path

    def extraction(self, tower: str, device: str = "auto") -> ExtractConfig:
        """Return what extracts the text or the media tower."""
        return ExtractConfig.build(self._extraction(tower, device))

    def extract(self, device: str = "auto") -> dict[str, ExtractReport]:
        """Extract both towers."""
        return {tower: extract(self.extraction(tower, device)) for tower in TOWERS}

    def training(self, **options: Any) -> TrainConfig:
        """Return the training from both caches, after the system's recipe but for `options`."""
        caches = {f"{tower}_cache": self.folder / tower for tower in TOWERS}
        return train_config(
            {"recipe": self.recipe, "data": self.data, "out": self.folder / "run"}
            | caches
            | options
        )

    def planning(self, tower: str, device: str = "auto") -> dict[str, Any]:
        """Return the options of the plan of a tower."""
        return self._extraction(tower, device)

    def _extraction(self, tower: str, device: str) -> dict[str, Any]:
        places = {"out": self.folder / tower, "data": self.data, "device": device}
        return {**self.towers[tower], **places}


def build_systems(folder: Path, *, pictures_given: int, clips_given: int) -> list[System]:
    """Save backbones, media and captions of both systems in `folder`."""
    return [_vse_infinity(folder / "vse", pictures_given), _clip4clip(folder / "clip", clips_given)]


def _vse_infinity(folder: Path, count: int) -> System:
    folder.mkdir()
    media = pictures(folder / "pictures", count)
    return System(
        name="VSE-infinity",
        recipe="vse_infinity",
        towers={
            "text": {"backbone": str(random_bert(folder / "bert")), "tower": "text"},
            "media": {
                "backbone": str(random_resnext(folder / "resnext101.pth")),
                "architecture": "resnext101_32x8d",
                "tower": "image",
                "image_size": "512",
            },
        },
        backbones={"text": "BERT-base", "media": "ResNeXt-101 32x8d, 512 px"},
        data=_data(media, (12.4, 5.2)),  # Flickr30K's captions
        media=tuple(media),
        folder=folder,
    )


def _clip4clip(folder: Path, count: int) -> System:
    folder.mkdir()
    media = clips(folder / "clips", count)
    clip = str(random_clip(folder / "clip"))
    return System(
        name="CLIP4Clip",
        recipe="clip4clip",
        towers={
            "text": {"backbone": clip, "tower": "text", "max_length": 32},
            "media": {"backbone": clip, "tower": "video", "fps": 1.0, "max_frames": 12},
        },
        backbones={"text": "CLIP text, 32 tokens", "media": "CLIP ViT-B/32, 12 frames"},
        data=_data(media, (9.3, 4.0)),  # MSR-VTT's captions
        media=tuple(media),
        folder=folder,
    )


def _data(media: list[Path], words: tuple[float, float]) -> dict[str, Any]:
    file = captions_file(media, words, CAPTIONS * len(media))
    return {"task": "retrieval", "train": file, "fractions": FRACTIONS}


def live_part(
    backbone: Backbone,
    taps: TowerTaps,
    encoded: Encoded,
    *,
    dtype: torch.dtype | None = None,
    prepared: Mapping[str, Tensor] | None = None,
) -> Part:
    """Run the backbone now: what a cache's loader would give for these inputs, as a `Part`.

    Args:
        backbone: the frozen model.
        taps: of its tower.
        encoded: the inputs of a batch.
        dtype: type of the states, to round them as a cache does; None leaves them as they are.
        prepared: what `backbone.prepare(encoded)` returned, if that is done.
    """
    states = backbone.forward(encoded, dtype, prepared=prepared)
    stacks = [torch.stack([states[t.name] for t in group.taps]) for group in group_taps(taps.read)]
    ends = torch.from_numpy(np.cumsum([0, *encoded.lengths]))
    return Part(
        states=states,
        stacks=tuple(stacks),
        offsets={} if backbone.axis is None else {backbone.axis: ends},
    )
