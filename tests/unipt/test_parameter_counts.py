"""The published numbers of trained parameters, from the presets at their published sizes."""

from __future__ import annotations

import math
from typing import Any

import pytest
from torch import nn

from unipt import GeneralizedPooling, preset
from unipt.presets import T5_LAYERS


def count(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def side(name: str, **overrides: Any) -> nn.Module:
    return preset(name, **overrides).build()


def millions(number: int) -> float:
    return round(number / 1e6, 1)


def test_vse_infinity() -> None:
    """Both side networks and both GPOs."""
    number = count(side("vse_text"), side("vse_image"), GeneralizedPooling(), GeneralizedPooling())
    assert millions(number) == 12.4


def test_clip4clip() -> None:
    """Both side networks; CLIP ViT-B/32 has 768-wide frames and 512-wide text."""
    assert millions(count(side("clip4clip_text"), side("clip4clip_frames"))) == 9.6


@pytest.mark.parametrize(("projection", "published"), [("linear", 10.3), ("mlp", 10.7)])
def test_clip_vil(projection: str, published: float) -> None:
    """Side network and the trained answer head of VQA v2 (3,129 answers); the pooler is frozen."""
    head = nn.Sequential(nn.Linear(768, 1536), nn.GELU(), nn.LayerNorm(1536), nn.Linear(1536, 3129))
    assert millions(count(side("clip_vil", projection=projection), head)) == published


def test_mdetr() -> None:
    """Side networks and trained heads: classes, box MLP, two contrastive projections."""
    heads = nn.ModuleList(
        [
            nn.Linear(256, 256),
            nn.Sequential(nn.Linear(256, 256), nn.Linear(256, 256), nn.Linear(256, 4)),
            nn.Linear(256, 64),
            nn.Linear(256, 64),
        ]
    )
    assert millions(count(side("mdetr"), heads)) == 0.7


def test_t5_base() -> None:
    """MDETR's pattern on 9 of 12 blocks (8 targets and the anchor), r = 4, in percent of T5-base.

    The denominator is everything the trained system holds: T5-base with the frozen LM head counted
    as a matrix of its own (247.6 M) and the side network itself.
    """
    width, inner, vocabulary, blocks = 768, 3072, 32128, 12
    attention, feed_forward = 4 * width**2, 2 * width * inner
    encoder = blocks * (attention + feed_forward + 2 * width) + width + 32 * 12
    decoder = blocks * (2 * attention + feed_forward + 3 * width) + width + 32 * 12
    tied = encoder + decoder + vocabulary * width
    assert tied == 222_903_552  # the published T5-base
    network = side("t5")
    assert len(T5_LAYERS) == 9 and T5_LAYERS[-1] == blocks - 1
    assert network.decoder.side_width * 4 == width
    backbone = tied + vocabulary * width
    share = count(network) / (backbone + count(network))
    assert math.isclose(100 * share, 1.36, abs_tol=0.005)
