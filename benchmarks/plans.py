"""The price of the published retrieval systems at their official settings: bytes, hours, tier.

Flickr30K and COCO with ResNeXt-101 32x8d at 512 px (4 stages) and BERT-base (13 states); MSR-VTT
with CLIP ViT-B/32, 12 frames of a clip and 32 tokens of a text (13 states and the projection).
Weights are random and the media generated: bytes are exact for as many inputs of these lengths,
hours are extrapolated from a trial of some passes on this machine. Costs a minute of CPU a tower.

    python -m benchmarks.plans
"""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from transformers import AutoTokenizer, CLIPConfig

from benchmarks.common import report
from benchmarks.generated import captions_file, clips, pictures
from benchmarks.sentences import WORK, random_bert
from pipeline.console import duration
from pipeline.demo.assets import minilm
from pipeline.plan import Plan, PlanConfig, plan

BUDGET = "200GB"
GIVEN = 6
"""Pictures or clips that a plan is given; it assumes the others to be like them."""
CAPTIONS = 400
"""Captions that a plan is given."""


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


def price(
    setting: Setting, folder: Path, names: dict[str, str], media: list[Path], seconds: float
) -> Plan:
    """Plan one tower, as many inputs assumed as the data set has."""
    values = {
        "backbone": names[setting.backbone],
        "out": folder / "cache",
        "data": {"task": "retrieval", "train": captions_file(media, setting.words, CAPTIONS)},
        "tower": setting.tower,
        "random_init": True,
        "assume": setting.count,
        "budget": BUDGET,
        "trial_seconds": seconds,
        **setting.options,
    }
    return plan(PlanConfig.build(values))


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
        still, moving = pictures(folder / "pictures", GIVEN), clips(folder / "clips", GIVEN)
        for setting in SETTINGS:
            media = moving if setting.backbone == "clip" else still
            priced = price(setting, folder, names, media, trial_seconds)
            figures[setting.name] = priced.to_dict() | {"backbone": setting.backbone}
            lines += line(setting, priced)
    report("plans", {"weights": "random", "plans": figures}, lines)


if __name__ == "__main__":
    main()
