"""The price of the published retrieval systems at their official settings: bytes, hours, tier.

Flickr30K and COCO with ResNeXt-101 32x8d at 512 px (4 stages) and BERT-base (13 states); MSR-VTT
with CLIP ViT-B/32, 12 frames of a clip and 32 tokens of a text (13 states and the projection).
Weights are random and the media generated: bytes are exact for as many inputs of these lengths,
hours are extrapolated from a trial of some passes on this machine. Costs a minute of CPU a tower.

    python -m benchmarks.plans
"""

import csv
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image
from transformers import AutoTokenizer, CLIPConfig

from benchmarks.common import report
from benchmarks.sentences import WORK, random_bert
from pipeline.console import duration
from pipeline.demo.assets import minilm
from pipeline.plan import Plan, RetrievalPlanConfig, plan

BUDGET = "200GB"
GIVEN = 6
"""Pictures or clips that a plan is given; it assumes the others to be like them."""
CAPTIONS = 400
"""Captions that a plan is given."""
WORDS = (
    "a the man woman child dog two people young group street water field table red white blue "
    "small large old front standing sitting playing holding wearing walking riding eating looking "
    "on in of with at near and while next to his her shirt ball horse bike food kitchen beach"
)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One tower of a published system, and how many inputs the data set has for it.

    Attributes:
        words: mean and deviation of the words of a caption in the data set.
    """

    name: str
    tower: str
    count: int
    backbone: str
    words: tuple[float, float]
    options: dict[str, Any] = field(default_factory=dict)


RESNEXT = {"architecture": "resnext101_32x8d", "image_size": "512"}
FRAMES = {"fps": 1.0, "max_frames": 12}
FLICKR, COCO, MSRVTT = (12.4, 5.2), (10.5, 2.4), (9.3, 4.0)
SETTINGS = (
    Setting(
        name="Flickr30K pictures", tower="image", count=31_014, backbone="resnext", words=FLICKR,
        options=RESNEXT,
    ),
    Setting(
        name="Flickr30K captions", tower="text", count=155_070, backbone="bert", words=FLICKR
    ),
    Setting(
        name="COCO pictures", tower="image", count=123_287, backbone="resnext", words=COCO,
        options=RESNEXT,
    ),
    Setting(name="COCO captions", tower="text", count=616_767, backbone="bert", words=COCO),
    Setting(
        name="MSR-VTT clips", tower="video", count=10_000, backbone="clip", words=MSRVTT,
        options=FRAMES,
    ),
    Setting(
        name="MSR-VTT captions", tower="text", count=200_000, backbone="clip", words=MSRVTT,
        options={"max_length": 32},
    ),
)  # fmt: skip


def backbones(folder: Path) -> dict[str, str]:
    """Save what the towers are built from; return their names."""
    bert, clip = random_bert(folder / "bert"), folder / "clip"
    CLIPConfig().save_pretrained(clip)  # its defaults are ViT-B/32
    AutoTokenizer.from_pretrained(minilm(WORK)).save_pretrained(clip)
    return {"bert": str(bert), "clip": str(clip), "resnext": "resnext101_32x8d"}


def captions_file(folder: Path, media: list[Path], words: tuple[float, float]) -> Path:
    """Write captions of such lengths for `media`, evenly."""
    rng, known, path = np.random.default_rng(0), WORDS.split(), folder / "captions.csv"
    lengths = np.clip(np.rint(rng.normal(*words, CAPTIONS)), 3, 40).astype(int)
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file_name", "caption"])
        for number, length in enumerate(lengths):
            text = " ".join(rng.choice(known, length))
            table.writerow([media[number % len(media)].name, f"{text} {number}"])
    return path


def pictures(folder: Path) -> list[Path]:
    """Save generated pictures of the size that COCO's have: 640 x 480, JPEG."""
    folder.mkdir()
    paths = [folder / f"{number}.jpg" for number in range(GIVEN)]
    for path, frames in zip(paths, (_frames(n, 480, 640) for n in range(GIVEN)), strict=True):
        Image.fromarray(next(frames)).save(path, quality=90)
    return paths


def clips(folder: Path) -> list[Path]:
    """Save generated clips like those of MSR-VTT: 15 s, 25 frames a second, 320 x 240, H.264."""
    import av  # noqa: PLC0415 - the extra "video"

    folder.mkdir()
    paths = [folder / f"{number}.mp4" for number in range(GIVEN)]
    for number, path in enumerate(paths):
        with av.open(str(path), "w") as file:
            stream: Any = file.add_stream("libx264", rate=Fraction(25))
            stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
            frames = _frames(number, 240, 320)
            for _ in range(15 * 25):
                picture = av.VideoFrame.from_ndarray(next(frames), format="rgb24")
                file.mux(stream.encode(picture))
            file.mux(stream.encode())
    return paths


def _frames(seed: int, height: int, width: int) -> Iterator[np.ndarray[Any, Any]]:
    """Yield pictures of drifting smooth blobs with some grain, uint8 [H, W, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / height
    speed, phase = rng.normal(0, 0.1, (3, 2)), rng.random((3, 2)) * 6
    grain = rng.normal(0, 6, (height, width, 1))
    for frame in range(1 << 30):
        shift = phase + frame * speed
        channels = [np.sin(5 * x + a) * np.cos(4 * y + b) for a, b in shift]
        yield np.clip(128 + 90 * np.stack(channels, -1) + grain, 0, 255).astype(np.uint8)


def price(
    setting: Setting, folder: Path, names: dict[str, str], media: list[Path], seconds: float
) -> Plan:
    """Plan one tower, as many inputs assumed as the data set has."""
    values = {
        "backbone": names[setting.backbone],
        "out": folder / "cache",
        "data": {"train": captions_file(media[0].parent, media, setting.words)},
        "tower": setting.tower,
        "random_init": True,
        "assume": setting.count,
        "budget": BUDGET,
        "trial_seconds": seconds,
        **setting.options,
    }
    return plan(RetrievalPlanConfig.build(values))


def line(setting: Setting, priced: Plan, shown: int = 4) -> list[str]:
    """Return what one plan comes to, and the first options that keep it under the budget."""
    lines = [
        f"{setting.name}: {priced.samples:,} inputs, {priced.tokens:,} {priced.unit}, "
        f"{len(priced.taps)} taps, {priced.total_bytes:,} bytes ({priced.total_bytes / 1e9:,.0f} "
        f"GB); about {duration(priced.extract_seconds)} here (extrapolated from a trial at "
        f"{priced.tokens_per_second:.3g} {priced.unit}/s); read from {priced.tier}"
    ]
    if priced.total_bytes <= (priced.budget or 0):
        return [*lines, f"  within {BUDGET}"]
    within = [each for each in priced.alternatives if each.fits][:shown]
    lines += [
        f"  under {BUDGET}: {each.total_bytes / 1e9:,.0f} GB with {each.change} "
        f"({' '.join(each.options)})"
        for each in within
    ]
    return lines if within else [*lines, f"  nothing tried is under {BUDGET}"]


@click.command()
@click.option("--trial-seconds", default=3.0, show_default=True, help="Trial of each tower.")
def main(trial_seconds: float) -> None:
    """Price Flickr30K, COCO and MSR-VTT; random weights, generated media."""
    lines, figures = ["random weights, generated media; bytes exact, hours extrapolated"], {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        names = backbones(folder)
        still, moving = pictures(folder / "pictures"), clips(folder / "clips")
        for setting in SETTINGS:
            media = moving if setting.backbone == "clip" else still
            priced = price(setting, folder, names, media, trial_seconds)
            figures[setting.name] = priced.to_dict() | {"backbone": setting.backbone}
            lines += line(setting, priced)
    report("plans", {"weights": "random", "plans": figures}, lines)


if __name__ == "__main__":
    main()
